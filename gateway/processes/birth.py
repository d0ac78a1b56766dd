"""Birth: what a process is given when it starts, and how it is started.

Settings travel in anonymous memory, never in arguments or the environment, where others could read
them. A worker is given no more than it needs: no address of the store, no token.
"""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal, NoReturn

import msgspec
from msgspec import Struct
from msgspec.structs import replace

import gateway
from gateway.adapters.environment import process_environment
from gateway.settings import PREFIX, Settings

Role = Literal["supervise", "control", "worker"]

PR_SET_PDEATHSIG: Final = 1
REFUSED: Final = 70
"""Added to the command line's exit code by a process that could not start for a stated reason."""
_FOREIGN: Final = (PREFIX, "OTEL_")
"""Variables that a worker does not need; their values may be secret."""


class Birth(Struct, frozen=True, kw_only=True):
    """All that a process is told. Descriptors are inherited under the same numbers.

    `listeners` are the sockets of all workers, in the order of their slots; `lifeline` is a pipe
    that ends with the supervisor; `link` is where control listens for workers, and `secret` what
    they show there.
    """

    settings: Settings
    workers: int
    slot: int = 0
    life: int = 0
    banner: str = ""
    listeners: tuple[int, ...] = ()
    admin: int = -1
    link: int = -1
    address: str = ""
    secret: str = ""
    memory: int = -1
    lifeline: int = -1

    def inherited(self) -> list[int]:
        """Descriptors that the process must find open."""
        numbers = (*self.listeners, self.admin, self.link, self.memory, self.lifeline)
        return [number for number in numbers if number >= 0]


def for_worker(settings: Settings) -> Settings:
    """Settings without what a worker must not know."""
    return replace(
        settings,
        redis=replace(settings.redis, url=None, seal_key=None),
        admin=replace(settings.admin, token=None),
    )


def leave(birth: Birth) -> int:
    """Put a birth into memory of its own; its descriptor, which the process inherits."""
    descriptor = os.memfd_create("tiltyard-birth", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(msgspec.msgpack.encode(birth))
    return descriptor


def find(descriptor: int) -> Birth:
    """What `leave` put there; the memory is given back."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, "rb") as file:
        return msgspec.msgpack.decode(file.read(), type=Birth)


def become_supervisor(settings: Settings, workers: int, banner: str) -> NoReturn:
    """Turn this process into the supervisor, small again: the same pid, another program."""
    descriptor = leave(Birth(settings=settings, workers=workers, banner=banner))
    os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no keyword
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, words("supervise", descriptor), environment(()))  # noqa: S606 - ourselves


def spawn(role: Role, birth: Birth) -> int:
    """Start a process; its pid. It inherits what its birth names, and no signal mask of ours."""
    descriptor = leave(birth)
    try:
        return os.posix_spawn(
            sys.executable,
            words(role, descriptor),
            environment(_FOREIGN if role == "worker" else (PREFIX,)),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, number, number)  # on itself: it stays open in the child
                for number in (*birth.inherited(), descriptor)
            ],
            setsigmask=(),
        )
    finally:
        os.close(descriptor)


def words(role: Role, descriptor: int) -> list[str]:
    """The command of a process: this Python with its options, and this package."""
    options = list(sys.orig_argv[1 : sys.orig_argv.index("-m")]) if "-m" in sys.orig_argv else []
    root = Path(gateway.__file__).parents[1]
    if "-P" not in options and root != Path.cwd():
        options.append("-P")  # what lies in the folder where somebody started us is not ours
    return [sys.executable, *options, "-m", "gateway.processes", role, str(descriptor)]


def environment(foreign: Iterable[str]) -> dict[str, str]:
    """Our variables without those that begin with one of `foreign`."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(tuple(foreign))}
    return process_environment(kept)


def follow_parent() -> None:
    """Be told to stop when the supervisor is gone, and leave Ctrl-C to it."""
    import ctypes  # noqa: PLC0415 - the supervisor, which stays small, never calls this

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
