"""Shipping: the journal of this host goes to the stream that all hosts share, in order, each once.

The store keeps how far it has each host's journal and passes over what it has, so a batch may be
tried again whatever became of the last try. A store that has less than it said has lost data (it
failed over, or crashed between two syncs): what the journal still keeps is shipped again. With each
batch, and every second without one, the
store is told through which moment it has all that was accepted here; folding waits for that.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from gateway.control.intake import Intake
from gateway.core.errors import StoreUnavailable
from gateway.core.evidence import accepted_of
from gateway.evidence_ports import EvidenceStore, Journal
from gateway.serving.cells import Cells
from gateway.telemetry import EVIDENCE_SHIPPED

MAX_ENTRIES: Final = 500
MAX_BYTES: Final = 1024 * 1024
"""Of one batch."""
IDLE_S: Final = 1.0
"""Between two words to the store when there is nothing to ship."""
LINGER_S: Final = 0.05
"""Behind a batch that was not full: what comes meanwhile shares the next one."""
FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 5.0

log: Final = logging.getLogger(__name__)


class Shipper:
    """Requires: `intake` is open before `ship`; `run` sees to that."""

    def __init__(
        self,
        intake: Intake,
        journal: Journal,
        store: EvidenceStore,
        cells: Cells,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Ship nothing yet.

        Args:
            intake: who writes the journal, and in whose thread it is read.
            journal: of this host.
            store: where to.
            cells: where it counts.
            draw: from [0, 1), so that hosts do not try again in step.
        """
        self._intake = intake
        self._journal = journal
        self._store = store
        self._draw = draw
        self._shipped = cells.counter(EVIDENCE_SHIPPED)
        self._has_met = False
        self._shipped_to = 0  # what the store said that it has
        self._tried_to = 0  # what it may have, if it did not answer
        self._failures = 0

    async def run(self) -> None:
        """Ship until cancelled."""
        while True:
            rest_s = await self.step()
            await asyncio.sleep(rest_s)

    async def step(self) -> float:
        """Ship one batch, or wait up to a second for one; seconds to rest before the next step."""
        intake = self._intake
        if not intake.is_open:
            return FIRST_RETRY_S
        intake.written.clear()
        try:
            count = await self.ship()
        except (StoreUnavailable, OSError) as error:
            return self._rest(error)
        self._failures = 0
        if not count:
            await _set_within(intake.written, IDLE_S)
        return 0.0 if count == MAX_ENTRIES else LINGER_S

    async def ship(self) -> int:
        """Ship the next batch; how many entries it had. With none, only the time is told.

        Raises:
            StoreUnavailable: the store is away; nothing is lost and nothing is done twice.
            OSError: the disk failed.
        """
        intake = self._intake
        if not self._has_met:
            await self._meet()
        if intake.was_ahead:
            await self._begin_anew()
        was_settled, now_ms = intake.is_settled, intake.now_ms()
        entries = await intake.in_thread(self._journal.read, MAX_ENTRIES, MAX_BYTES)
        if not entries and not was_settled:
            return 0  # something is on its way to the disk
        through_ms = _moment(entries, intake.now_ms()) if entries else now_ms
        least, most = self._shipped_to, max(self._shipped_to, self._tried_to)
        last = entries[-1][0] if entries else most
        self._tried_to = max(most, last)
        has = await self._store.ship(intake.host, entries, through_ms, (least, most))
        if has < least:
            await self._go_back(has)
            return await self.ship()
        if has > most and has != last:
            log.error("Another host ships under the id of this one.")
            await self._rename()
            return await self.ship()
        self._shipped_to = has
        if entries:
            self._shipped.value += len(entries)
            await intake.in_thread(self._journal.mark, last)
        return len(entries)

    async def finish(self, timeout_s: float) -> None:
        """Write and ship what is left, for at most that long; the rest waits for the next start.

        Requires: `run` is over, and the intake takes nothing more.
        """
        with suppress(TimeoutError, StoreUnavailable, OSError):
            async with asyncio.timeout(timeout_s):
                await self._intake.write()
                while self._intake.is_open and await self.ship():
                    pass

    async def _meet(self) -> None:
        """See what the store has of this host: more than there is means that it is another's."""
        intake = self._intake
        self._shipped_to = self._tried_to = await self._store.ship(intake.host, (), 0)
        if self._shipped_to > intake.found:
            log.error("The store has more of this host's journal than is here.")
            await self._rename()
        elif self._shipped_to < intake.shipped:
            await self._go_back(self._shipped_to)
        self._has_met = True

    async def _begin_anew(self) -> None:
        """Take an id of which the store was not told moments that are yet to come."""
        intake = self._intake
        has = await self._store.ship(intake.host, (), 0)
        await intake.in_thread(self._journal.read, MAX_ENTRIES, MAX_BYTES)
        await intake.in_thread(self._journal.mark, has)
        await self._rename()
        intake.was_ahead = False

    async def _rename(self) -> None:
        """Begin anew under another id, with what is not marked."""
        intake = self._intake
        log.warning("The journal goes on under another id of this host.")
        intake.host = await intake.in_thread(self._journal.rename)
        self._shipped_to = self._tried_to = 0

    async def _go_back(self, sequence: int) -> None:
        """Ship again what the store has lost."""
        log.error("The store has lost outcomes that it had; what the journal keeps is sent again.")
        await self._intake.in_thread(self._journal.rewind, sequence)
        self._shipped_to = self._tried_to = sequence

    def _rest(self, error: Exception) -> float:
        if not self._failures:
            log.warning("Outcomes wait in the journal: %s", error)
        wait = min(FIRST_RETRY_S * 2.0**self._failures, LAST_RETRY_S)
        self._failures = min(self._failures + 1, 16)
        return wait * (0.5 + self._draw() / 2)


def _moment(entries: Sequence[tuple[int, bytes]], now_ms: int) -> int:
    """When the last of these was accepted; 0 if that says nothing of what comes behind it.

    One that cannot be read says nothing, nor does one from when the clock was wrong.
    """
    for _, entry in reversed(entries):
        with suppress(msgspec.DecodeError):
            moment = accepted_of(entry)
            return moment if moment <= now_ms else 0
    return 0


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
