"""The supervisor: starts control and the workers, starts again what ends, stops them in order.

It holds what must outlive them: one listening socket for each worker, the admin socket, the link's
socket and the roster. It never ends because a process did; only a signal ends it, or a first start
that was refused for a stated reason before anything was served.

Imports next to nothing, so that it stays small and has nothing that could fail.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from typing import Final

from gateway.core.errors import Conflict
from gateway.processes.birth import REFUSED, Birth, for_worker, spawn
from gateway.processes.roster import CONTROL, make_memory, share
from gateway.processes.slots import Slot, workers_stop_s
from gateway.serving.vitals import READY, STATE

log: Final = logging.getLogger(__name__)

TICK_S: Final = 0.25
START_S: Final = 120.0
"""How long a process that is starting may go without a heartbeat."""
RESCUE_S: Final = 2.0
"""Between SIGTERM and SIGKILL for a process whose loop does not beat."""
BACKLOG: Final = 2048
SECRET_BYTES: Final = 32
STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_WATCHED: Final = STOP_SIGNALS | {signal.SIGCHLD}
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Supervisor:
    """Requires: built and `run` in the main thread of a process that has no other."""

    def __init__(self, birth: Birth) -> None:
        """Open every socket.

        Raises:
            Conflict: a port is taken.
        """
        settings = birth.settings
        http = settings.http
        self._settings = settings
        self._banner = birth.banner
        self._listeners = listen_together(http.host, http.port, birth.workers)
        self._admin = listen(settings.admin.host, settings.admin.port)
        self._link = socket.socket(socket.AF_UNIX)
        self._link.bind("")  # the kernel chooses a name that no file has
        self._link.listen(BACKLOG)
        self._secret = os.urandom(SECRET_BYTES).hex()
        self._memory = make_memory(birth.workers + 1)
        self._roster = share(self._memory, birth.workers + 1)
        # Nobody writes to it: its end says that we are gone.
        self._lifeline, self._held = os.pipe()
        self._control = Slot("control", CONTROL)
        self._workers = [Slot(f"worker {n}", n) for n in range(1, birth.workers + 1)]
        # Changes while it runs.
        self._looked_at = time.monotonic()
        self._graced_until = 0.0
        self._served = False
        self._stop_at: float | None = None
        self._code = 0

    def run(self) -> int:
        """Supervise until a signal ends it; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        while not self._is_over():
            heard = signal.sigtimedwait(_WATCHED, TICK_S)
            now = time.monotonic()
            self._reap(now)
            if heard is not None and heard.si_signo in STOP_SIGNALS:
                self._begin_stop(now)
            if self._stop_at is None:
                self._tend(now)
            else:
                self._stop(now, self._stop_at)
        return self._code

    def _is_over(self) -> bool:
        return self._stop_at is not None and all(slot.pid is None for slot in self._slots)

    @property
    def _slots(self) -> list[Slot]:
        return [self._control, *self._workers]

    def _tend(self, now: float) -> None:
        """Start what is due, end what hangs or has grown, say once that all are ready."""
        late = now - self._looked_at
        self._looked_at = now
        if late > self._settings.processes.heartbeat_s / 2:
            # We were stopped ourselves, and so, perhaps, were they: let them catch up.
            self._graced_until = now + self._settings.processes.heartbeat_s
        for slot in self._slots:
            if slot.is_due(now):
                self._start(slot, now)
        self._recycle(now)
        if not self._served and all(self._is_ready(slot) for slot in self._workers):
            self._served = True
            sys.stdout.write(self._banner)
            sys.stdout.flush()

    def _is_ready(self, slot: Slot) -> bool:
        return slot.pid is not None and self._roster.newest(slot.number)[STATE] == READY

    def _start(self, slot: Slot, now: float) -> None:
        is_control = slot is self._control
        slot.life += 1
        self._roster.open(slot.number, slot.life, time.monotonic_ns())
        birth = Birth(
            settings=self._settings if is_control else for_worker(self._settings),
            workers=len(self._workers),
            slot=slot.number,
            life=slot.life,
            listeners=() if is_control else tuple(one.fileno() for one in self._listeners),
            admin=self._admin.fileno() if is_control else -1,
            link=self._link.fileno() if is_control else -1,
            address=os.fsdecode(self._link.getsockname()),
            secret=self._secret,
            memory=self._memory,
            lifeline=self._lifeline,
        )
        try:
            pid = spawn("control" if is_control else "worker", birth)
        except OSError as error:
            pause = slot.end(now)
            log.error("%s cannot be started, again in %.1f s: %s", slot.name, pause, error.strerror)  # noqa: TRY400 - known
        else:
            slot.begin(pid, now)

    def _reap(self, now: float) -> None:
        """Take leave of every process that has ended, also of those that were left to us."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for slot in self._slots:
                    if slot.pid == pid:
                        self._bury(slot, os.waitstatus_to_exitcode(status), now)

    def _bury(self, slot: Slot, code: int, now: float) -> None:
        was_ready = self._is_ready(slot)
        asked = slot.ending
        self._roster.end(slot.number, slot.life, code)
        pause = slot.end(now)
        if self._stop_at is not None:
            if code not in (0, -signal.SIGTERM):
                log.error("%s ended with code %d.", slot.name, code)
                self._code = self._code or 1
            return
        if code > REFUSED and not (self._served or was_ready) and slot.life == 1:
            self._code = code - REFUSED
            self._begin_stop(now)
        elif not asked:
            log.error("%s ended with code %d; it starts again in %.1f s.", slot.name, code, pause)

    def _recycle(self, now: float) -> None:
        """End a process whose loop does not beat, or that outgrew its limit; one at a time."""
        for slot in self._slots:
            if slot.kill_at is not None and slot.pid is not None and now >= slot.kill_at:
                _signal(slot, signal.SIGKILL)
        if any(slot.ending for slot in self._slots) or now < self._graced_until:
            return
        everybody_serves = all(self._is_ready(slot) for slot in self._workers)
        for slot in self._slots:
            if slot.pid is None:
                continue
            age_s = self._roster.age_ns(slot.number, time.monotonic_ns()) / 1e9
            limit = self._settings.processes.heartbeat_s
            if age_s > (limit if self._is_ready(slot) else max(limit, START_S)):
                log.error("%s has had no heartbeat for %.1f s and is replaced.", slot.name, age_s)
                self._finish(slot, now + RESCUE_S)
                return
            if slot is not self._control and everybody_serves and self._is_too_large(slot):
                log.warning("%s outgrew its memory limit and is replaced.", slot.name)
                self._finish(slot, now + self._workers_s())
                return

    def _is_too_large(self, slot: Slot) -> bool:
        limit = self._settings.processes.memory_mib
        if not limit or not self._is_ready(slot):
            return False
        try:
            with open(f"/proc/{slot.pid}/statm", encoding="ascii") as file:  # noqa: PTH123 - pathlib is large
                resident = int(file.read().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError, ValueError):
            return False
        return resident > limit * 2**20

    def _finish(self, slot: Slot, kill_at: float) -> None:
        slot.ending = True
        slot.kill_at = kill_at
        self._roster.relieve(slot.number, slot.life)
        _signal(slot, signal.SIGTERM)

    def _workers_s(self) -> float:
        """What workers may take to stop."""
        return workers_stop_s(self._settings.stop_s, self._settings.drain_delay_s)

    def _begin_stop(self, now: float) -> None:
        """Tell the workers to stop; a second signal changes nothing."""
        if self._stop_at is not None:
            return
        self._stop_at = now
        for slot in self._workers:
            _signal(slot, signal.SIGTERM)

    def _stop(self, now: float, since: float) -> None:
        """One look at a stop under way: the workers, then control, each within its time."""
        if now - since >= self._settings.drain_delay_s:
            for listener in self._listeners:
                listener.close()
        if any(slot.pid is not None for slot in self._workers):
            if now - since < self._workers_s():
                return
            for slot in self._workers:
                self._kill(slot)
            return
        if not self._control.ending:
            self._control.ending = True
            _signal(self._control, signal.SIGTERM)
        if now - since >= self._settings.stop_s:
            self._kill(self._control)

    def _kill(self, slot: Slot) -> None:
        if slot.pid is not None:
            log.error("%s did not stop in time and is killed.", slot.name)
            self._code = 1
            _signal(slot, signal.SIGKILL)


def listen_together(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that share a port, among which the kernel spreads connections.

    Raises:
        Conflict: somebody else listens there.
    """
    with listen(host, port) as probe:  # one that shares nothing: others with our name would join
        chosen = probe.getsockname()[1]
    return [listen(host, chosen, shared=True) for _ in range(count)]


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Listen on a port.

    Raises:
        Conflict: somebody else does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except OSError as error:
        message = f"Cannot listen on {host}, port {port}: {error.strerror}."
        raise Conflict(message) from error


def _signal(slot: Slot, signum: signal.Signals) -> None:
    if slot.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, signum)
