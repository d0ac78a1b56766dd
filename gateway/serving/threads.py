"""Threads: slots for runs that are too slow for the event loop, shared fairly.

Whoever has work asks for a slot and is asked for one run when its turn comes, so that no version
keeps another waiting for more than a run. A run that does not come back is stuck: its thread
cannot be ended, so another takes its place, up to a bound; and whoever has too many stuck runs
gets no further slot, so that a version that hangs does not take what others need.
"""

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, Protocol

from msgspec import Struct

SLOW: Final = 8
"""A run is stuck when it takes so many times what was expected, and `stuck_s` at least."""
JOIN_S: Final = 5.0
"""How long closing waits for runs that are not stuck."""

log: Final = logging.getLogger(__name__)


class Source(Protocol):
    """Who asks for slots. All but `Run.execute` happens on the event loop."""

    is_asking: bool
    """It stands in line; kept by `Threads`."""
    stuck: int
    """Its runs that are stuck; kept by `Threads`."""

    def next_run(self) -> "Run | None":
        """What to run now, if anything; called when a slot is free."""

    def has_more(self) -> bool:
        """Whether it wants another slot."""

    def landed(self, run: Any, result: Any, run_ns: int) -> None:  # noqa: ANN401 - its own
        """A run came back; `result` is what its `execute` returned."""

    def gave_up(self) -> None:
        """So many of its runs are stuck that it gets no slot until one comes back."""


class Run(ABC):
    """One thing that a thread does for a source."""

    __slots__ = ("expected_ns", "is_stuck", "source", "start_ns")

    def __init__(self, source: Source, expected_ns: float = 0.0) -> None:
        """`expected_ns` is how long it should take, 0 if nobody knows."""
        self.source = source
        self.expected_ns = expected_ns
        self.start_ns = 0
        self.is_stuck = False

    @abstractmethod
    def execute(self) -> Any:  # noqa: ANN401 - between a run and its source
        """Runs in a thread; never raises."""


class ThreadLimits(Struct, frozen=True):
    """How many threads, and when one counts as stuck.

    `slots` runs go on at the same time, beside those that are stuck; up to `spare` of the latter
    are replaced. A source with `stuck_each` stuck runs gets no further slot.
    """

    slots: int = 2
    spare: int = 4
    stuck_each: int = 2
    stuck_s: float = 2.0


class Threads:
    """Slots in this process; asked on the event loop only."""

    __slots__ = (
        "_alive",
        "_closed",
        "_inbox",
        "_limits",
        "_line",
        "_name",
        "_pool",
        "_prepare",
        "_runs",
        "_serial",
        "_watch",
        "after_flush",
        "loop",
        "now_ns",
        "stuck",
        "work_ns",
    )

    def __init__(  # noqa: PLR0913 - built in few places
        self,
        loop: AbstractEventLoop,
        now_ns: Callable[[], int],
        limits: ThreadLimits | None = None,
        *,
        name: str = "tiltyard-run",
        prepare: Callable[[], None] | None = None,
        after_flush: Callable[[], None] | None = None,
        work_ns: Callable[[], int] | None = None,
    ) -> None:
        """Start without threads; they come with the first runs.

        Args:
            loop: results come back there.
            now_ns: a monotonic clock.
            limits: how many.
            name: of the threads.
            prepare: called first in each new thread.
            after_flush: called after the answers of a flush, on the loop or from a thread, were
                given out; for what should not hold them up.
            work_ns: processor time of the event loop's thread, where a run on it has no other
                threads: so a core that others took from it is not held against a model.
        """
        self.loop = loop
        self.work_ns = work_ns or now_ns
        self.now_ns = now_ns
        self.after_flush = after_flush
        self.stuck = 0
        self._limits = limits or ThreadLimits()
        self._name = name
        self._prepare = prepare
        self._line: deque[Source] = deque()
        self._runs: set[Run] = set()
        self._inbox: SimpleQueue[Run | None] = SimpleQueue()
        self._pool: list[threading.Thread] = []
        self._alive = 0
        self._serial = 0
        self._watch: TimerHandle | None = None
        self._closed = False

    @property
    def busy(self) -> int:
        """Runs under way, stuck ones too."""
        return len(self._runs)

    def share(self) -> float:
        """Slots that one source can count on now."""
        waiting = len(self._line)
        return self._limits.slots / waiting if waiting > 1 else float(self._limits.slots)

    def ask(self, source: Source) -> None:
        """Stand in line; with a free slot the run starts before this returns."""
        if source.is_asking or self._closed or source.stuck >= self._limits.stuck_each:
            return
        source.is_asking = True
        self._line.append(source)
        self._fill()

    def close(self) -> None:
        """Start nothing more, and wait for what runs, though not for what is stuck.

        Requires: nobody asks any more.
        """
        self._closed = True
        for _ in range(self._alive):
            self._inbox.put(None)
        deadline = time.monotonic() + (0 if self.stuck else JOIN_S)
        for thread in self._pool:
            thread.join(max(deadline - time.monotonic(), 0))

    def _fill(self) -> None:
        """Give free slots to those in line, one run each in turn."""
        limits = self._limits
        while self._line and len(self._runs) < limits.slots + min(self.stuck, limits.spare):
            source = self._line.popleft()
            source.is_asking = False
            run = source.next_run()
            if run is None:
                continue
            self._start(run)
            if source.has_more():
                source.is_asking = True
                self._line.append(source)

    def _start(self, run: Run) -> None:
        run.start_ns = self.now_ns()
        self._runs.add(run)
        if self._alive < len(self._runs):
            self._alive += 1
            name = f"{self._name}_{self._serial}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._serial += 1
            self._pool.append(thread)
            thread.start()
        self._inbox.put(run)
        if self._watch is None:
            self._watch = self.loop.call_later(self._limits.stuck_s / 2, self._look)

    def _work(self) -> None:
        """The life of a thread."""
        if self._prepare is not None:
            self._prepare()
        while (run := self._inbox.get()) is not None:
            start = self.now_ns()
            result = run.execute()
            took = self.now_ns() - start
            with suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
                self.loop.call_soon_threadsafe(self._landed, run, result, took)
            del run, result  # while the thread waits it must not hold a version's memory

    def _landed(self, run: Run, result: Any, run_ns: int) -> None:  # noqa: ANN401 - see `Run`
        self._runs.discard(run)
        source = run.source
        if run.is_stuck:
            self.stuck -= 1
            source.stuck -= 1
            self._shrink()
        self._fill()  # first, so that the slot works while answers are given out
        try:
            source.landed(run, result, run_ns)
        except Exception:
            log.exception("what came back from a thread could not be taken")
        if source.has_more():
            self.ask(source)
        if self.after_flush is not None:
            self.after_flush()

    def _shrink(self) -> None:
        """Let a thread go that stood in for one that came back."""
        if self._alive > self._limits.slots + min(self.stuck, self._limits.spare):
            self._alive -= 1
            self._inbox.put(None)
            self._pool = [thread for thread in self._pool if thread.is_alive()]

    def _look(self) -> None:
        """See which runs are stuck; comes again while anything runs."""
        self._watch = None
        if self._closed:
            return
        now = self.now_ns()
        least = self._limits.stuck_s * 1e9
        for run in list(self._runs):
            if not run.is_stuck and now - run.start_ns > max(least, SLOW * run.expected_ns):
                self._give_up(run)
        if self._runs:
            self._watch = self.loop.call_later(self._limits.stuck_s / 2, self._look)
        self._fill()

    def _give_up(self, run: Run) -> None:
        run.is_stuck = True
        self.stuck += 1
        source = run.source
        source.stuck += 1
        log.warning("a run is stuck; %d threads of this process are now", self.stuck)
        if source.stuck >= self._limits.stuck_each:
            if source.is_asking:
                source.is_asking = False
                self._line.remove(source)
            source.gave_up()


def give_way(niceness: int) -> None:
    """Let the scheduler prefer other threads to this one, where it knows them apart (Linux)."""
    if niceness:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
