"""Folding: entries of the evidence stream become states of units and changes of tallies, purely.

`gathering.gather` sorts what came by experiment and unit, so that the caller can load the states of
exactly those units; `fold` works them in; `freeze_due` ends the wait of units whose time is over.
`recompute` says what the tallies are from the states alone: always the same.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from gateway.core import cohorts
from gateway.core.evidence import Compared, Counts, Entry, Outcome, encode_entry
from gateway.core.gathering import Work
from gateway.core.studies import Study
from gateway.core.sums import TallySums
from gateway.core.tallies import NO_EVIDENCE, Cell, CellKey, Evidence, ShadowCell, added_shadow
from gateway.core.unit_states import (
    ACCEPTED,
    CONTRADICTION,
    DUPLICATE,
    OVERFULL,
    REVISION,
    SUPERSEDED,
    Sighting,
    UnitState,
    add_outcome,
    add_sighting,
    decode_unit,
    due_of,
    encode_unit,
    first_of,
    freeze,
    is_after,
    is_unscored,
    standing_of,
)

# What became of events, besides what `unit_states.add_outcome` says.
SIGHTINGS: Final = "sightings"
LATE: Final = "late"
REVISED: Final = "revised"
UNSCORED: Final = "unscored"
CONTAMINATED: Final = "contaminated"
SETTLED: Final = "settled"
DAMAGED: Final = "damaged"
RESULTS: Final = (
    SIGHTINGS, ACCEPTED, DUPLICATE, CONTRADICTION, REVISION, SUPERSEDED, OVERFULL, LATE, REVISED,
    UNSCORED, CONTAMINATED, SETTLED, DAMAGED,
)  # fmt: skip
"""What is counted of each experiment:

- `sightings`: rows that workers told, repeated ones included, and requests that are units.
- `accepted`, `duplicate`, `contradiction`, `revision`, `superseded`, `overfull`: every outcome is
  one of these.
- `late`, `revised`: of the accepted and the revisions, those after their unit's time.
- `unscored`: of the accepted, those that a metric cannot be computed from.
- `contaminated`: outcomes of predictions that ran another variant than their unit's.
- `settled`: earlier exposures than the first, seen when a metric of the unit was frozen already.
- `damaged`: events of units whose state cannot be read; they are lost.
"""
MAX_LATE: Final = 1_000
"""Of one batch and study, late outcomes that are kept whole; all are counted."""


class StudyChange(Struct):
    """What is to be written of one study.

    Attributes:
        id: The study's.
        units: Key to new state, of units and cohorts.
        due: Key to when it is to be frozen, in Unix milliseconds.
        undue: Keys that wait for nothing any more.
        cells: Whole, as they are now.
        gone: Keys of cells that hold nothing any more.
        shadows: Whole, as they are now.
        late: Encoded entries with one outcome each, that came after their unit's time.
        results: What became of events.
    """

    id: str
    units: dict[bytes, bytes]
    due: dict[bytes, int]
    undue: list[bytes]
    cells: list[Cell]
    gone: list[CellKey]
    shadows: list[ShadowCell]
    late: list[bytes]
    results: dict[str, int]


def keys_of(work: Work) -> list[bytes]:
    """The keys whose states must be loaded before this work is folded."""
    slots = (cohorts.key_of(work.study, counts, at_ms) for at_ms, counts in work.counts)
    return [*dict.fromkeys((*work.sightings, *work.outcomes, *slots))]


def fold(work: Work, states: Mapping[bytes, bytes | None], evidence: Evidence) -> StudyChange:
    """Work in what came for one study.

    Args:
        work: What came.
        states: Of each of `keys_of(work)`, what is stored, None if nothing is.
        evidence: The study's tallies as they are stored.
    """
    folding = _Folding(work.study, evidence)
    for key in dict.fromkeys((*work.sightings, *work.outcomes)):
        sightings, outcomes = work.sightings.get(key, ()), work.outcomes.get(key, ())
        folding.add(key, states.get(key), sightings, outcomes)
    folding.add_counts(work.counts, states)
    folding.add_compared(work.compared, evidence)
    return folding.change()


def freeze_due(
    study: Study, states: Mapping[bytes, bytes | None], evidence: Evidence, through_ms: int
) -> StudyChange:
    """Freeze what was due.

    Args:
        study: Whose units these are.
        states: What is stored of each key that is due.
        evidence: The study's tallies as they are stored.
        through_ms: Everything that was accepted until then has been folded.
    """
    folding = _Folding(study, evidence)
    for key, data in states.items():
        if data is None:
            folding.undue.append(key)
        elif cohorts.is_cohort(key):
            folding.close(key, data, through_ms)
        else:
            folding.freeze(key, data, through_ms)
    return folding.change()


def recompute(study: Study, states: Mapping[bytes, bytes]) -> tuple[Cell, ...]:
    """What the cells are, from the states of all units and cohorts alone.

    Raises:
        msgspec.DecodeError: a state cannot be read.
    """
    sums = TallySums(study, NO_EVIDENCE)
    for key, data in states.items():
        if cohorts.is_cohort(key):
            cohort = cohorts.decode_cohort(data)
            counts = cohort.counts
            sums.count(counts)
            for index in cohort.closed:
                cell = (counts.phase, counts.variant, counts.segment)
                sums.close(cell, index, counts.assigned)
        else:
            state = decode_unit(data)
            standing = standing_of(study, state)
            sums.stand(standing, 1)
            for index, value in state.frozen.items():
                sums.freeze(standing.cell, index, value)
    return tuple(sorted(sums.changed().cells, key=lambda cell: cell.key))


class _Folding:
    """One study's change while it is made."""

    __slots__ = ("due", "late", "results", "shadows", "study", "sums", "undue", "units")

    def __init__(self, study: Study, evidence: Evidence) -> None:
        self.study = study
        self.sums = TallySums(study, evidence)
        self.units: dict[bytes, bytes] = {}
        self.due: dict[bytes, int] = {}
        self.undue: list[bytes] = []
        self.late: list[bytes] = []
        self.shadows: list[ShadowCell] = []
        self.results: Counter[str] = Counter()

    def add(
        self,
        key: bytes,
        data: bytes | None,
        sightings: "list[Sighting] | tuple[()]",
        outcomes: "list[tuple[int, Outcome]] | tuple[()]",
    ) -> None:
        """Work in what came of one unit."""
        study = self.study
        try:
            state = UnitState() if data is None else decode_unit(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.results[DAMAGED] += len(sightings) + len(outcomes)
            return
        before = None if data is None else standing_of(study, state)
        was_due = None if data is None else due_of(study, state)
        if sightings:
            self._sight(state, sightings)
        results = [
            (add_outcome(study, state, outcome, accepted_ms), accepted_ms, outcome)
            for accepted_ms, outcome in outcomes
        ]
        after = standing_of(study, state)
        if after != before:
            if before is not None:
                self.sums.stand(before, -1)
            self.sums.stand(after, 1)
        for result, accepted_ms, outcome in results:
            self._count(state, after.cell[1], result, accepted_ms, outcome)
        encoded = encode_unit(state)
        if encoded != data:
            self.units[key] = encoded
        is_due = due_of(study, state)
        if is_due is not None and is_due != was_due:
            self.due[key] = is_due

    def _sight(self, state: UnitState, sightings: "list[Sighting]  | tuple[()]") -> None:
        self.results[SIGHTINGS] += len(sightings)
        for sighting in sightings:
            add_sighting(state, sighting)
            if state.first is not None and sighting[4] < state.first[0]:
                self.results[SETTLED] += 1

    def _count(
        self, state: UnitState, variant: int, result: str, accepted_ms: int, outcome: Outcome
    ) -> None:
        results, study = self.results, self.study
        results[result] += 1
        if study.variants[outcome.variant] != variant:
            results[CONTAMINATED] += 1
        if state.first is not None and outcome.at_ms < state.first[0]:
            results[SETTLED] += 1
        if result == ACCEPTED and is_unscored(study, outcome):
            results[UNSCORED] += 1
        if result in (ACCEPTED, REVISION) and is_after(study, state, outcome, accepted_ms):
            results[LATE if result == ACCEPTED else REVISED] += 1
            if len(self.late) < MAX_LATE:
                self.late.append(encode_entry(Entry(accepted_ms, (outcome,))))

    def add_counts(
        self, counted: list[tuple[int, Counts]], states: Mapping[bytes, bytes | None]
    ) -> None:
        """Work in requests that are units."""
        study = self.study
        slots: dict[bytes, cohorts.Cohort] = {}
        for accepted_ms, counts in counted:
            self.sums.count(counts)
            self.results[SIGHTINGS] += counts.assigned
            key = cohorts.key_of(study, counts, accepted_ms)
            cohort = slots.get(key)
            if cohort is None:
                cohort = self._cohort(key, states.get(key))
                slots[key] = cohort
            cohorts.add_counts(cohort, counts)
            cell = (counts.phase, counts.variant, counts.segment)
            for index in cohort.closed:
                self.sums.close(cell, index, counts.assigned)
        for key, cohort in slots.items():
            self._put_cohort(key, cohort)

    def add_compared(self, came: list[Compared], evidence: Evidence) -> None:
        """Add what shadows did."""
        shadows = {(cell.phase, cell.variant): cell for cell in evidence.shadows}
        touched: dict[tuple[int, int], ShadowCell] = {}
        for one in came:
            key = (one.phase, one.variant)
            known = touched.get(key) or shadows.get(key) or ShadowCell(*key)
            more = ShadowCell(one.phase, one.variant, one.compared, one.disagreed, one.failed)
            touched[key] = added_shadow(known, more)
        self.shadows.extend(touched.values())

    def freeze(self, key: bytes, data: bytes, through_ms: int) -> None:
        """Freeze one unit as far as it is due."""
        study = self.study
        try:
            state = decode_unit(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.results[DAMAGED] += 1
            self.undue.append(key)
            return
        newly = freeze(study, state, through_ms)
        if newly:
            _, phase, variant, segment = first_of(state)
            for index, value in newly:
                self.sums.freeze((phase, variant, segment), index, value)
            self.units[key] = encode_unit(state)
        self._put_due(key, due_of(study, state))

    def close(self, key: bytes, data: bytes, through_ms: int) -> None:
        """Close one slot of requests as far as it is due."""
        cohort = self._cohort(key, data)
        counts = cohort.counts
        for index in cohorts.close(self.study, cohort, through_ms):
            cell = (counts.phase, counts.variant, counts.segment)
            self.sums.close(cell, index, counts.assigned)
        self._put_cohort(key, cohort)

    def _cohort(self, key: bytes, data: bytes | None) -> cohorts.Cohort:
        try:
            if data is not None:
                return cohorts.decode_cohort(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.results[DAMAGED] += 1
        return cohorts.cohort_of(key, self.study)

    def _put_cohort(self, key: bytes, cohort: cohorts.Cohort) -> None:
        self.units[key] = cohorts.encode_cohort(cohort)
        self._put_due(key, cohorts.cohort_due(self.study, cohort))

    def _put_due(self, key: bytes, due_ms: int | None) -> None:
        if due_ms is None:
            self.undue.append(key)
        else:
            self.due[key] = due_ms

    def change(self) -> StudyChange:
        """What is to be written."""
        changed = self.sums.changed()
        return StudyChange(
            self.study.id,
            self.units,
            self.due,
            self.undue,
            changed.cells,
            changed.gone,
            self.shadows,
            self.late,
            dict(self.results),
        )
