"""Confining: a process gives up, for good, what it does not need to inspect a version.

Limits always hold. Namespaces, Landlock and the filter of system calls are up to the kernel and to
what the host permits: what is refused is told, and the rest holds without it.
"""

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import gateway
from gateway.adapters.sandbox.filtering import filter_calls
from gateway.adapters.sandbox.landlock import restrict
from gateway.adapters.sandbox.wire import Errand

MIB: Final = 1024 * 1024
MAX_FILE_BYTES: Final = 1 * MIB
MAX_DESCRIPTORS: Final = 64
NICENESS: Final = 10
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWIPC: Final = 0x08000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def follow(parent: int) -> None:
    """Die with the parent, in a session of one's own.

    Args:
        parent: its process id; if it is gone already, so is this process.
    """
    os.setsid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGALRM, signal.SIGXCPU, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def confine(errand: Errand) -> dict[str, str]:
    """Take everything away but reading the version, computing and telling; what holds, by name.

    The working folder must be empty and private already; nothing else can be written to.
    """
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # if memory runs out, it is this process that goes
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    _limit(errand)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    folders = [errand.order.folder, *([errand.order.champion] if errand.order.champion else [])]
    network = _leave_network()
    files = restrict(readable=[*folders, *_INSTALLATION], writable=[str(Path.cwd())])
    return {
        "network": "a namespace without any" if network else "as the host's",
        "files": f"Landlock {files}" if files else "as the user's",
        "calls": "filtered" if filter_calls() else "all",
    }


def _limit(errand: Errand) -> None:
    now = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    space = int(now) * resource.getpagesize() + errand.memory_mb * MIB
    seconds = math.ceil(errand.time_s)
    for kind, soft, hard in (
        (resource.RLIMIT_AS, space, space),
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)  # noqa: PLW2901 - the host's own bound
        resource.setrlimit(kind, (soft, hard))


def _leave_network() -> bool:
    """Enter a network namespace in which there is nothing; needs a single thread."""
    spaces = _CLONE_NEWUSER | _CLONE_NEWNET
    return any(
        _LIBC.unshare(kinds) == 0 for kinds in (spaces | _CLONE_NEWIPC, spaces, _CLONE_NEWNET)
    )


def _installation() -> Iterable[str]:
    """Where Python, its packages and the libraries that they load lie; not all below its prefix."""
    paths = sysconfig.get_paths()
    yield from {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    yield str(Path(sys.base_prefix) / "lib")
    yield str(Path(gateway.__file__).parent)
    yield from ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/dev/null", "/dev/urandom")


_INSTALLATION: Final = tuple(_installation())
"""Found once, by the process that forks."""
