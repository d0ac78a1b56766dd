"""The nursery: the process that forks a child for each inspection, as this side holds it.

All calls block; one thread at a time makes them, but `interrupt`, which any may.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gateway.adapters.environment import process_environment
from gateway.adapters.sandbox.wire import HEAD, MAX_TOLD_BYTES, READY, Ended, Errand
from gateway.core.errors import NotReady

START_S: Final = 60.0
"""For the process to load its libraries."""
GRACE_S: Final = 10.0
"""Beyond an inspection's own time, for the nursery to end its child and say so."""
KEPT: Final = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
"""Variables of ours that the sandbox gets; any other may hold a secret."""
_LOCALE: Final = "LC_"
_NOT_UP: Final = "No inspection can be made on this host: the sandbox does not start."


class Account(NamedTuple):
    """What the child told, and how it ended; None if the nursery was lost with it."""

    told: bytes
    ended: Ended | None
    flooded: bool


class Nursery:
    """Started at the first errand, and again after it was ended or lost."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._folder = ""
        self._guard = threading.Lock()
        self._interrupted = False

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def attend(self, errand: Errand) -> Account:
        """Have one version examined.

        Raises:
            NotReady: the process does not start, is lost before its child says a word, or was
                interrupted.
        """
        self._interrupted = False
        for _ in range(2):
            with suppress(OSError):
                account = self._try(errand)
                if account.told:
                    return account
            if self._interrupted:
                break
            self.end()  # it may have been killed while it waited; a new one decides
        raise NotReady(_NOT_UP)

    def interrupt(self) -> None:
        """End what is under way: the nursery kills its child, says so, and goes."""
        self._interrupted = True
        self._hang_up()

    def end(self) -> None:
        """End the process and whatever it left."""
        self._hang_up()
        with self._guard:
            process, self._process = self._process, None
            control, self._control = self._control, None
        if process is not None:
            try:
                process.wait(GRACE_S / 2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if control is not None:
            control.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hang_up(self) -> None:
        with self._guard:
            if self._control is not None:
                with suppress(OSError):
                    self._control.shutdown(socket.SHUT_WR)

    def _try(self, errand: Errand) -> Account:
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._start()
        control = self._control
        assert control is not None  # noqa: S101 - just started
        deadline = time.monotonic() + errand.time_s + GRACE_S
        reading, telling = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                frame = msgspec.json.encode(errand)
                control.settimeout(GRACE_S)
                socket.send_fds(control, [HEAD.pack(len(frame))], [telling])
                control.sendall(frame)
            finally:
                os.close(telling)
            told, flooded = _listen(reading, deadline)
        finally:
            os.close(reading)
        if flooded:
            self._hang_up()
        ended = _read_end(control, deadline)
        if ended is None:
            self.end()
        return Account(told, ended, flooded)

    def _start(self) -> None:
        """Start the process and wait until it has loaded what its children need."""
        ours, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="tiltyard-sandbox-")
        try:
            process = subprocess.Popen(  # noqa: S603 - our own words
                [sys.executable, "-P", "-m", "gateway.adapters.sandbox", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=scrubbed(os.environ, self._folder),
                cwd=self._folder,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                umask=0o077,
            )
        finally:
            theirs.close()
        with self._guard:
            self._process, self._control = process, ours
        ours.settimeout(START_S)
        if _frame(ours) != READY:
            self.end()
            raise NotReady(_NOT_UP)


def scrubbed(inherited: Mapping[str, str], home: str) -> dict[str, str]:
    """The environment of the sandbox: what libraries need, and nothing that may be secret.

    Args:
        inherited: that of this process.
        home: a folder of its own.
    """
    kept = {
        name: text for name, text in inherited.items() if name in KEPT or name.startswith(_LOCALE)
    }
    return process_environment(
        {
            **kept,
            "HOME": home,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if Path(entry).is_absolute()),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
    )


def _listen(reading: int, deadline: float) -> tuple[bytes, bool]:
    """All that is told until nobody can tell any more, and whether it was too much."""
    parts = []
    size = 0
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reading], (), (), left)[0]:
            break
        part = os.read(reading, 1 << 16)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > MAX_TOLD_BYTES:
            return b"".join(parts)[:MAX_TOLD_BYTES], True
    return b"".join(parts), False


def _read_end(control: socket.socket, deadline: float) -> Ended | None:
    control.settimeout(max(0.1, deadline - time.monotonic()))
    try:
        return msgspec.json.decode(_frame(control), type=Ended)
    except (OSError, msgspec.DecodeError):
        return None


def _frame(control: socket.socket) -> bytes:
    """One short frame; empty if the other side is gone."""
    head = control.recv(HEAD.size, socket.MSG_WAITALL)
    if len(head) < HEAD.size:
        return b""
    return control.recv(min(HEAD.unpack(head)[0], 1 << 16), socket.MSG_WAITALL)
