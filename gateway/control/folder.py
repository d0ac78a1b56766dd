"""The Folder: the loop that folds the stream of evidence into tallies, on the leader only.

Leading is for comfort: two that fold at once cost each other turns and nothing else, because a
batch is written only if nobody wrote since its turn began. Each turn begins with a look at the
store and remembers nothing of the one before, so it may be killed anywhere.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.core.errors import StoreUnavailable
from gateway.core.folding import StudyChange, fold, freeze_due, keys_of
from gateway.core.gathering import Gathered, Work, gather
from gateway.core.studies import Studies, Study
from gateway.evidence_ports import FoldBatch, FoldStore, Stored, Waiting
from gateway.serving.cells import Cells
from gateway.telemetry import EVIDENCE_FOLDED, EVIDENCE_FROZEN, EVIDENCE_QUARANTINED, RESULT

log: Final = logging.getLogger(__name__)

TURN_S: Final = 0.1
"""Between two turns when there is nothing more to do."""
IDLE_S: Final = 1.0
"""The same while no experiment is known; evidence for none cannot be folded sooner."""
MAX_PAUSE_S: Final = 5.0
MAX_ENTRIES: Final = 1_000
"""Read at once."""
MAX_EVENTS: Final = 1_000
"""Folded at once, about."""
MAX_FROZEN: Final = 1_000
"""Units looked at for freezing at once."""
FREEZE_S: Final = 0.5
"""Between two looks for units whose time is over."""
AWAY_S: Final = 900.0
"""A host that has shipped nothing for so long is not waited for: its outcomes will be late."""
BACK_S: Final = 30.0
"""But it is waited for so long once the store is back, and as long as it catches up: what it
accepted while the store was away is on its way."""
GAP_S: Final = 15.0
"""When nothing was read for so long, the store was away, or somebody else read it."""
_CLOSER_MS: Final = 1_000
HELD_S: Final = 10.0
"""How long an entry may wait for a Snapshot that knows its phase."""
RETENTION_S: Final = 30 * 86_400.0
"""How long after its end everything is kept of an experiment."""
SWEEP_S: Final = 3_600.0
"""Between two looks for what is left of experiments that were deleted."""
MARK_BYTES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderParts:
    """What the folder works with.

    `studies` are those of the Snapshot at hand, and `newest` those of the one that the store has;
    it raises StoreUnavailable. `leads` says whether this process leads, `now` is in UTC seconds,
    and `cells` count.
    """

    store: FoldStore
    studies: Callable[[], Studies]
    newest: Callable[[], Awaitable[Studies]]
    leads: Callable[[], bool]
    now: Callable[[], float]
    entropy: Callable[[int], bytes]
    cells: Cells


class Folder:
    """Requires: `run` for ever; or `turn` until it is False."""

    def __init__(self, parts: FolderParts) -> None:
        """Nothing is folded yet."""
        self._parts = parts
        self._held_since: float | None = None
        self._gave_up_at = -1
        self._careful = 0
        self._looked_at = float("-inf")
        self._read_at = float("-inf")
        self._behind: dict[str, tuple[int, float]] = {}  # by how much at best, and since when
        self._forgotten: set[str] = set()

    async def run(self) -> None:
        """Fold while this process leads, for ever; what cannot be written now stays there."""
        pause_s, swept_at = TURN_S, float("-inf")
        while True:
            try:
                is_busy = self._parts.leads() and await self.turn()
                pause_s = 0.0 if is_busy else TURN_S if self._parts.studies().by_id else IDLE_S
                now = self._parts.now()
                if self._parts.leads() and not is_busy and not 0 <= now - swept_at < SWEEP_S:
                    await self.sweep()
                    swept_at = now
            except StoreUnavailable:
                pause_s = min(max(2 * pause_s, TURN_S), MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def turn(self) -> bool:
        """Fold a part of what waits, and freeze a part of what is due; True if there is more.

        Raises:
            StoreUnavailable: the store is away; nothing was lost.
        """
        waiting = await self._parts.store.waiting(1 if self._careful else MAX_ENTRIES)
        returning = self._returning(waiting)
        studies, over = self._studies()
        gathered = Gathered(studies)
        if waiting.entries:
            # In a thread, as all that takes milliseconds, so that this process goes on meanwhile.
            waits = self._waits(studies.revision)
            gathered = await asyncio.to_thread(
                gather, waiting.entries, studies, max_events=MAX_EVENTS, waits=waits
            )
        self._note_held(gathered)
        mark: bytes | None = waiting.mark
        if gathered.taken:
            mark = await self._fold(waiting, gathered)
        if mark is None or gathered.is_held:
            return mark is None
        if gathered.taken < len(waiting.entries) or not waiting.is_all:
            return True
        now = self._parts.now()
        if now - self._looked_at < FREEZE_S and now >= self._looked_at:
            return False
        through_ms = watermark(waiting.shipped, now, returning)
        is_done = await self._freeze(studies, mark, max(through_ms, waiting.through_ms), over)
        self._looked_at = now if is_done else float("-inf")
        return not is_done

    async def sweep(self) -> None:
        """Delete what is left of experiments that are no longer in the Snapshot.

        Raises:
            StoreUnavailable: some of it may be left to the next time.
        """
        folded = await self._parts.store.results()
        # Read after what was folded: whatever began before that is in it, unless it was deleted.
        studies = await self._parts.newest()
        gone = folded.keys() - studies.by_id.keys() - {""}
        for study_id in gone if studies.revision else ():
            await self.forget(study_id)

    async def forget(self, study_id: str) -> None:
        """Delete everything of an experiment at once; it must not be folded any more.

        Raises:
            StoreUnavailable: it may be deleted or not.
        """
        is_written = False
        while not is_written:
            mark = (await self._parts.store.waiting(1)).mark
            batch = FoldBatch(expected=mark, mark=self._mark(), forgotten=(study_id,))
            is_written = await self._parts.store.write(batch)

    def _returning(self, waiting: Waiting) -> frozenset[str]:
        """Hosts that are far behind and may catch up; freezing has passed none of them yet."""
        now = self._parts.now()
        if not 0 <= now - self._read_at <= GAP_S:
            self._behind.clear()
        self._read_at = now
        before, self._behind = self._behind, {}
        for host, through_ms in waiting.shipped.items():
            if through_ms >= waiting.through_ms:
                behind_ms = int(1000 * now) - through_ms
                best_ms, since = before.get(host, (behind_ms, now))
                if behind_ms < best_ms - _CLOSER_MS:
                    best_ms, since = behind_ms, now
                self._behind[host] = best_ms, since
        return frozenset(host for host, (_, since) in self._behind.items() if now - since < BACK_S)

    def _studies(self) -> tuple[Studies, tuple[str, ...]]:
        """Those that are folded, and the ids of those that are over since their retention."""
        studies, now = self._parts.studies(), self._parts.now()
        over = [
            study.id
            for study in studies.by_id.values()
            if study.ended_at is not None and study.ended_at + RETENTION_S < now
        ]
        news = tuple(study_id for study_id in over if study_id not in self._forgotten)
        return studies.without(over), news

    def _waits(self, revision: int) -> bool:
        """Whether an entry of an unknown phase may become known soon.

        Once it did not in time, others are not waited for either until there is a newer Snapshot.
        """
        since = self._held_since
        if since is not None and self._parts.now() - since >= HELD_S:
            self._gave_up_at = revision
        return revision != self._gave_up_at

    def _note_held(self, gathered: Gathered) -> None:
        if gathered.taken or not gathered.is_held:
            self._held_since = None
        elif self._held_since is None:
            self._held_since = self._parts.now()

    async def _fold(self, waiting: Waiting, gathered: Gathered) -> bytes | None:
        """Fold what was gathered; the new mark, None if another folder was faster."""
        works = list(gathered.works.values())
        stored = await self._parts.store.stored({work.study.id: keys_of(work) for work in works})
        changes: tuple[StudyChange, ...] = ()
        try:
            changes = await asyncio.to_thread(_folded, works, stored)
        except Exception:
            log.exception("Evidence could not be folded; it is looked at entry by entry.")
            if gathered.taken > 1:
                self._careful = gathered.taken
                return None
            gathered.set_unreadable_aside(waiting.entries[0][1])
        self._careful = max(0, self._careful - 1)
        batch = FoldBatch(
            expected=waiting.mark,
            mark=self._mark(),
            cursor=gathered.cursor,
            changes=changes,
            quarantined=tuple(gathered.quarantined),
            results=gathered.results,
        )
        return batch.mark if await self._write(batch) else None

    async def _freeze(
        self, studies: Studies, mark: bytes, through_ms: int, over: tuple[str, ...]
    ) -> bool:
        """Freeze what was due and delete what is over; True if there is no more of it."""
        if not studies.by_id and not over:
            return True
        store, ids = self._parts.store, [*studies.by_id]
        limit = max(1, MAX_FROZEN // max(1, len(ids)))
        due = await store.due(ids, through_ms, limit)
        stored = await store.stored(due)
        changes = await asyncio.to_thread(_frozen, studies.by_id, stored, through_ms)
        is_done = all(len(units) < limit for units in due.values())
        batch = FoldBatch(
            expected=mark,
            mark=self._mark(),
            through_ms=through_ms if is_done else None,
            changes=changes,
            forgotten=over,
        )
        if not await self._write(batch):
            return False
        self._forgotten.update(over)
        self._parts.cells.counter(EVIDENCE_FROZEN).add(sum(map(len, due.values())))
        return is_done

    async def _write(self, batch: FoldBatch) -> bool:
        if not await self._parts.store.write(batch):
            log.info("Another process folded at the same time; this one looks again.")
            return False
        totals: Counter[str] = Counter()
        for change in batch.changes:
            totals.update(change.results)
        for result, number in totals.items():
            self._parts.cells.counter(EVIDENCE_FOLDED, ((RESULT, result),)).add(number)
        for cause, number in batch.results.items():
            self._parts.cells.counter(EVIDENCE_QUARANTINED, ((RESULT, cause),)).add(number)
        return True

    def _mark(self) -> bytes:
        return self._parts.entropy(MARK_BYTES)


def watermark(
    shipped: Mapping[str, int], now: float, returning: Collection[str] = frozenset()
) -> int:
    """Through which moment all that was accepted anywhere is in the stream, in Unix milliseconds.

    Args:
        shipped: Host to the moment before which all that it accepted is there. Only hosts that
            have said so lately count; without any, nothing is known.
        now: UTC seconds.
        returning: Hosts that count though they are behind.
    """
    now_ms = int(1000 * now)
    since_ms = now_ms - int(1000 * AWAY_S)
    counted = [ms for host, ms in shipped.items() if ms > since_ms or host in returning]
    return max(0, min(now_ms, min(counted) - 1)) if counted else 0


def _folded(works: Iterable[Work], stored: Mapping[str, Stored]) -> tuple[StudyChange, ...]:
    return tuple(
        fold(work, stored[work.study.id].states, stored[work.study.id].evidence) for work in works
    )


def _frozen(
    studies: Mapping[str, Study], stored: Mapping[str, Stored], through_ms: int
) -> tuple[StudyChange, ...]:
    return tuple(
        freeze_due(studies[study_id], known.states, known.evidence, through_ms)
        for study_id, known in stored.items()
    )
