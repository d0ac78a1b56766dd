"""Gathering: entries of the evidence stream, sorted by experiment and unit before they are folded.

What belongs to no experiment is set aside with its cause. A phase that is newer than the Snapshot
at hand is no error: the worker that saw it followed sooner than we did, so gathering stops there
until we have followed, too.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import msgspec

from gateway.core.evidence import (
    SIGHTING,
    Compared,
    Counts,
    Entry,
    Outcome,
    Sightings,
    decode_entry,
    encode_entry,
)
from gateway.core.predictions import NO_UNIT, UNIT_HASH_BYTES
from gateway.core.studies import Studies, Study
from gateway.core.unit_states import Sighting

# Why something is set aside.
UNREADABLE: Final = "unreadable"
NO_EXPERIMENT: Final = "no_experiment"
UNKNOWN_PHASE: Final = "unknown_phase"
UNKNOWN_VARIANT: Final = "unknown_variant"
UNKNOWN_OUTCOME: Final = "unknown_outcome"
NO_UNIT_NAMED: Final = "no_unit"
CAUSES: Final = (
    UNREADABLE, NO_EXPERIMENT, UNKNOWN_PHASE, UNKNOWN_VARIANT, UNKNOWN_OUTCOME, NO_UNIT_NAMED,
)  # fmt: skip
MAX_QUARANTINED: Final = 100
"""Of one batch, set aside whole; all are counted."""

StreamEntry: TypeAlias = tuple[bytes, bytes]
"""Id in the stream, and an encoded `Entry`."""


class Work:
    """What came for one study; each with when it was accepted, where that matters."""

    __slots__ = ("compared", "counts", "outcomes", "sightings", "study")

    def __init__(self, study: Study) -> None:
        """Nothing."""
        self.study = study
        self.sightings: dict[bytes, list[Sighting]] = {}
        self.outcomes: dict[bytes, list[tuple[int, Outcome]]] = {}
        self.counts: list[tuple[int, Counts]] = []
        self.compared: list[Compared] = []


class Gathered:
    """What came.

    Attributes:
        works: By a study's id.
        taken: So many entries are in it; the others wait.
        cursor: The id of the last of them; None if none is.
        is_held: An entry waits for a newer Snapshot.
        results: What was set aside, by cause.
        quarantined: (cause, encoded entry) of some of it.
    """

    __slots__ = ("_studies", "cursor", "is_held", "quarantined", "results", "taken", "works")

    def __init__(self, studies: Studies) -> None:
        """Nothing."""
        self._studies = studies
        self.works: dict[str, Work] = {}
        self.taken = 0
        self.cursor: bytes | None = None
        self.is_held = False
        self.results: Counter[str] = Counter()
        self.quarantined: list[tuple[str, bytes]] = []

    def take_sightings(self, rows: Iterable[tuple[int, bytes, int, int, int, int]]) -> None:
        """Sort rows of `SIGHTING`."""
        by_phase, works = self._studies.by_phase, self.works
        for phase, unit, variant, segment, bits, ms in rows:
            study = by_phase.get(phase)
            if study is None:
                self.results[UNKNOWN_PHASE if phase else NO_EXPERIMENT] += 1
                continue
            if variant >= len(study.variants):
                self.results[UNKNOWN_VARIANT] += 1
                continue
            work = works.get(study.id)
            if work is None:
                work = self._work(study)
            known = work.sightings.get(unit)
            if known is None:
                known = work.sightings[unit] = []
            known.append((phase, variant, segment, bits, ms))

    def take_outcome(self, accepted_ms: int, outcome: Outcome) -> None:
        """Sort one outcome."""
        study = self._studies.by_phase.get(outcome.phase)
        cause = _cause_of(study, outcome)
        if cause is not None or study is None:
            self._quarantine(cause or UNKNOWN_PHASE, Entry(accepted_ms, (outcome,)))
            return
        outcomes = self._work(study).outcomes
        known = outcomes.get(outcome.unit)
        if known is None:
            outcomes[outcome.unit] = [(accepted_ms, outcome)]
        else:
            known.append((accepted_ms, outcome))

    def take_counts(self, accepted_ms: int, sightings: Sightings) -> None:
        """Sort what is counted without units."""
        for counts in sightings.counts:
            study = self._studies.by_phase.get(counts.phase)
            if study is None or counts.variant >= len(study.variants) or not study.slot_ms:
                self.results[_counted_cause(study, counts.variant)] += counts.assigned
            else:
                self._work(study).counts.append((accepted_ms, counts))
        for compared in sightings.compared:
            study = self._studies.by_phase.get(compared.phase)
            if study is None or compared.variant >= len(study.variants):
                self.results[_counted_cause(study, compared.variant)] += compared.compared
            else:
                self._work(study).compared.append(compared)

    def set_unreadable_aside(self, data: bytes) -> None:
        """An entry that cannot be decoded."""
        self.results[UNREADABLE] += 1
        if len(self.quarantined) < MAX_QUARANTINED:
            self.quarantined.append((UNREADABLE, data))

    def _work(self, study: Study) -> Work:
        work = self.works.get(study.id)
        if work is None:
            work = self.works[study.id] = Work(study)
        return work

    def _quarantine(self, cause: str, entry: Entry) -> None:
        self.results[cause] += 1
        if len(self.quarantined) < MAX_QUARANTINED:
            self.quarantined.append((cause, encode_entry(entry)))


def gather(
    entries: Sequence[StreamEntry], studies: Studies, *, max_events: int, waits: bool
) -> Gathered:
    """Sort entries until there are so many events.

    Args:
        entries: In the order of the stream.
        studies: Those known now.
        max_events: Enough of them; an entry is taken whole.
        waits: Stop before an entry with a phase that the next Snapshot may know; else its events
            are set aside.
    """
    gathered, events = Gathered(studies), 0
    for entry_id, data in entries:
        if events >= max_events:
            break
        try:
            entry = decode_entry(data)
            # Rows of another length raise here, before anything of the entry is taken.
            rows = [
                list(SIGHTING.iter_unpack(event.units)) if isinstance(event, Sightings) else []
                for event in entry.events
            ]
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, struct.error):
            gathered.set_unreadable_aside(data)
        else:
            if waits and _newest_phase(entry, rows) > studies.revision:
                gathered.is_held = True
                break
            for event, sighted in zip(entry.events, rows, strict=True):
                if isinstance(event, Outcome):
                    gathered.take_outcome(entry.accepted_ms, event)
                else:
                    gathered.take_sightings(sighted)
                    gathered.take_counts(entry.accepted_ms, event)
                events += 1 + len(sighted)
        gathered.taken += 1
        gathered.cursor = entry_id
    return gathered


def _newest_phase(entry: Entry, rows: list[list[tuple[int, ...]]]) -> int:
    newest = 0
    for event, sighted in zip(entry.events, rows, strict=True):
        if isinstance(event, Outcome):
            newest = max(newest, event.phase)
            continue
        for row in sighted:
            newest = max(newest, row[0])
        counted = [one.phase for one in event.counts] + [one.phase for one in event.compared]
        newest = max(newest, *counted, 0)
    return newest


def _cause_of(study: Study | None, outcome: Outcome) -> str | None:
    """Why an outcome cannot be folded; None if it can."""
    if study is None:
        return UNKNOWN_PHASE if outcome.phase else NO_EXPERIMENT
    if outcome.variant not in study.variants:
        return UNKNOWN_VARIANT
    if outcome.name not in study.outcomes:
        return UNKNOWN_OUTCOME
    if len(outcome.unit) != UNIT_HASH_BYTES or outcome.unit == NO_UNIT:
        return NO_UNIT_NAMED
    return None


def _counted_cause(study: Study | None, variant: int) -> str:
    if study is None:
        return UNKNOWN_PHASE
    return UNKNOWN_VARIANT if variant >= len(study.variants) else NO_UNIT_NAMED
