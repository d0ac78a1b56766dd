"""Intake: what is seen of units and reported about them is written to the journal of this host.

An outcome is answered for when it is on disk: all that come while one write is under way share the
next one, and each caller waits for the write that holds theirs. Sightings do not wait, and are the
first to go when the journal fills up. All calls come from the event loop; the journal is touched by
one thread.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import msgspec

from gateway.core.errors import NotReady, Overloaded
from gateway.core.evidence import Sightings, accepted_of, encode_events, enter
from gateway.evidence_ports import Journal
from gateway.serving.cells import Cells
from gateway.telemetry import (
    EVIDENCE_DROPPED,
    JOURNAL_SIZE,
    JOURNAL_UNSHIPPED,
    OUTCOME_ACCEPTED,
)

MAX_WAITING_BYTES: Final = 32 * 1024 * 1024
"""Of entries that wait for the disk."""
MOST_AHEAD_MS: Final = 60_000
"""A clock that goes back further than this was wrong before."""
OPEN_LOOK_S: Final = 0.5
"""Between two attempts to open a journal that another process has, or that the disk refuses."""

log: Final = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(slots=True)
class _Wait:
    """Entries that are to be written, and who waits for it; nobody waits for sightings."""

    entries: list[bytes]
    size: int
    written: asyncio.Future[None] | None = None


class Intake:
    """Implements `gateway.ports.OutcomeSink`.

    closed → (`run` opens the journal) → open → closed. Outcomes that come while it is closed are
    refused. Sightings that come before are kept until it opens: what workers saw while control was
    away is the first that they hand over. Those that come after are dropped.
    """

    def __init__(
        self, journal: Journal, cells: Cells, now: Callable[[], float], keep_bytes: int
    ) -> None:
        """Touch nothing yet.

        Args:
            journal: of this host.
            cells: where it counts.
            now: UTC seconds.
            keep_bytes: bound of the journal; from half of it on sightings are dropped.
        """
        # For ever.
        self._journal = journal
        self._now = now
        self._keep_bytes = keep_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tiltyard-journal")
        self._accepted = cells.counter(OUTCOME_ACCEPTED)
        self._dropped = cells.counter(EVIDENCE_DROPPED)
        cells.watch(partial(self._measure, cells))
        # Change with every entry.
        self.host = ""
        self.found = 0  # the last sequence that an earlier process left
        self.shipped = 0  # and up to which it was shipped, as far as is known
        self.was_ahead = False  # what was accepted last bears a moment that is yet to come
        self._is_open = self._is_over = False
        self._last_ms = 0
        self._early: list[bytes] = []
        self._waiting: list[_Wait] = []
        self._waiting_bytes = 0
        self._pressed = asyncio.Event()
        self._writing: asyncio.Future[int] | None = None
        self._failing = False
        # For the shipper.
        self.written = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the journal is there to be written and read."""
        return self._is_open

    @property
    def is_settled(self) -> bool:
        """Whether all that was accepted is in the journal."""
        return not self._waiting and self._writing is None

    def now_ms(self) -> int:
        """Unix milliseconds that do not go back: nothing is accepted later at an earlier moment.

        A clock that was far ahead is the exception, or all would come too late until it is caught
        up with: it is believed again, and `was_ahead` says so.
        """
        now_ms = int(self._now() * 1000)
        if now_ms < self._last_ms - MOST_AHEAD_MS:
            log.error("The clock went back by %d seconds.", (self._last_ms - now_ms) // 1000)
            self.was_ahead, self._last_ms = True, now_ms
        self._last_ms = max(self._last_ms, now_ms)
        return self._last_ms

    async def accept(self, events: Sequence[bytes], outcomes: int) -> None:
        """Keep outcomes; return once they outlive any process.

        Raises:
            Overloaded: there is no room. NotReady: the disk fails, or this host begins or ends.
        """
        size = sum(map(len, events))
        if not self._is_open:
            raise NotReady(_CLOSED)
        if self._waiting and self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise Overloaded(_BUSY)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(events, size, written)
        await written
        self._accepted.value += outcomes

    def observe(self, sightings: Sightings) -> None:
        """Keep what a worker saw, if there is room; never waits and never raises."""
        events = encode_events((sightings,))
        is_full = 2 * self._journal.unshipped > self._keep_bytes
        if self._is_over or is_full or self._waiting_bytes > MAX_WAITING_BYTES // 2:
            self._dropped.value += 1
        elif self._is_open:
            self._add((events,), len(events), None)
        else:
            self._early.append(events)
            self._waiting_bytes += len(events)

    async def run(self) -> None:
        """Open the journal and write what comes, until cancelled."""
        await self.open()
        while True:
            await self._pressed.wait()
            await self.write()

    async def open(self) -> None:
        """Open the journal, once; tried until it can be had."""
        while not self._is_open:
            try:
                tail = await self.in_thread(self._journal.open)
            except OSError as error:
                self._fail(error)
                await asyncio.sleep(OPEN_LOOK_S)
                continue
            self.host, self.found, self.shipped = tail.host, tail.last, tail.shipped
            if tail.newest is not None:
                try:
                    self._last_ms = accepted_of(tail.newest)
                except msgspec.DecodeError:
                    log.warning("The last entry of the journal cannot be read.")
            self._is_open, self._failing = True, False
        early, self._early, self._waiting_bytes = self._early, [], 0
        for events in early:
            self._add((events,), len(events), None)

    async def write(self) -> None:
        """Write what waits, in one go. A caller that is cancelled leaves the writing to its end."""
        self._pressed.clear()
        if self._writing is None and self._waiting:
            batch, self._waiting = self._waiting, []
            self._waiting_bytes = 0
            entries = [entry for wait in batch for entry in wait.entries]
            self._writing = asyncio.ensure_future(self.in_thread(self._journal.append, entries))
            self._writing.add_done_callback(partial(self._done, batch))
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def close(self) -> None:
        """Write what waits, and let go of the journal. Whoever reads it must be gone."""
        self._is_over = True
        if self._is_open:
            self._is_open = False
            while not self.is_settled:
                await self.write()
            await self.in_thread(self._journal.close)
        self._thread.shutdown(wait=False)

    async def in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Touch the journal."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _add(
        self, events: Sequence[bytes], size: int, written: asyncio.Future[None] | None
    ) -> None:
        now_ms = self.now_ms()
        self._waiting.append(_Wait([enter(now_ms, one) for one in events], size, written))
        self._waiting_bytes += size
        self._pressed.set()

    def _done(self, batch: Sequence[_Wait], writing: "asyncio.Future[int]") -> None:
        """On the event loop, once a batch is on disk or the disk failed."""
        self._writing = None
        error = asyncio.CancelledError() if writing.cancelled() else writing.exception()
        if error is None:
            self._failing = False
            self.written.set()
        elif not isinstance(error, Overloaded):
            self._fail(error)
        for wait in batch:
            if wait.written is None:
                self._dropped.value += 0 if error is None else 1
            elif wait.written.done():
                continue
            elif error is None:
                wait.written.set_result(None)
            else:
                is_full = isinstance(error, Overloaded)
                wait.written.set_exception(Overloaded(str(error)) if is_full else NotReady(_DISK))

    def _fail(self, error: BaseException) -> None:
        if not self._failing:
            log.error("The journal of outcomes fails, none are accepted: %s", error)
        self._failing = True

    def _measure(self, cells: Cells) -> None:
        cells.gauge(JOURNAL_SIZE).set(self._journal.size)
        cells.gauge(JOURNAL_UNSHIPPED).set(self._journal.unshipped)


_CLOSED: Final = "Outcomes are not accepted at this moment; send them again."
_BUSY: Final = "Too many outcomes wait for the disk; retry later."
_DISK: Final = "The outcomes could not be written down; send them again."
