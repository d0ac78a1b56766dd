"""Experiments and what is seen of their units, for tests of several rooms."""

from collections.abc import Iterable, Mapping, Sequence

from gateway.core.assignment import SplitState
from gateway.core.endpoints import UnitKey
from gateway.core.evidence import (
    SIGHTING,
    Compared,
    Counts,
    Entry,
    Outcome,
    Sightings,
    encode_entry,
)
from gateway.core.experiments import (
    Experiment,
    ExperimentRecord,
    ExperimentVariant,
    Fixed,
    Guard,
    Metric,
    Phase,
    Segment,
    State,
)
from gateway.core.folding import StudyChange, fold, freeze_due, keys_of
from gateway.core.gathering import gather
from gateway.core.studies import Studies, Study, studies_of
from gateway.core.tallies import NO_EVIDENCE, Cell, Evidence

PHASES = (7, 9)
UNIT = UnitKey(header="X-Unit")


def metric(name: str = "m", outcome: str = "bought", **settings: object) -> Metric:
    """A metric with a window of one second, unless said otherwise."""
    stated = {"window_s": 1.0, **settings}
    return Metric(name, outcome, **stated)  # type: ignore[arg-type] # settings of any field


def record_of(
    metrics: Sequence[Metric] = (metric(),),
    *,
    unit: UnitKey | None = UNIT,
    segment: Segment | None = None,
    phases: Sequence[int] = PHASES,
    id: str = "x1",  # noqa: A002 - the field's name
    **settings: object,
) -> ExperimentRecord:
    """A running experiment of two variants, `a` and `b`, with guards on errors and slowness."""
    weights = {"a": 5000, "b": 5000}
    document = Experiment(
        schema=1,
        endpoint="e",
        variants=(ExperimentVariant("a", 1), ExperimentVariant("b", 2)),
        strategy=Fixed(weights),
        metrics=tuple(metrics),
        guards=(Guard("errors", "error"), Guard("slowness", "slow", over_ms=5.0)),
        unit=unit,
        segment=segment,
    )
    stated = {"state": State.RUNNING, "scalars": ("p", "q"), **settings}
    return ExperimentRecord(
        document=document,
        id=id,
        split=SplitState.fresh(salt="s", hash_version=1, weights=weights),
        phases=tuple(Phase(number, 0.0, 10_000, weights) for number in phases),
        **stated,  # type: ignore[arg-type] # settings of any field
    )


def study_from(*metrics: Metric, **settings: object) -> Study:
    """The study of such an experiment."""
    record = record_of(metrics or (metric(),), **settings)  # type: ignore[arg-type] # likewise
    return studies_of(100, {"exp": record}).by_id[record.id]


def unit_of(number: int) -> bytes:
    """A unit's hash."""
    return number.to_bytes(16, "big")


def row(
    unit: int = 1, *, ms: int = 0, variant: int = 0, phase: int = 7, segment: int = 0, bits: int = 1
) -> bytes:
    """One sighting, answered unless said otherwise."""
    return SIGHTING.pack(phase, unit_of(unit), variant, segment, bits, ms)


def seen(*rows: bytes) -> Sightings:
    """Sightings of these rows."""
    return Sightings(b"".join(rows))


def told(value: float = 1.0, **settings: object) -> Outcome:
    """An outcome of unit 1 under the first variant, unless said otherwise.

    `unit` and `nonce` are numbers here.
    """
    stated = {
        "phase": 7,
        "variant": "a",
        "version": 1,
        "endpoint": "e",
        "at_ms": 0,
        "propensity": 0.5,
        "name": "bought",
        **settings,
    }
    stated["unit"] = unit_of(stated.pop("unit", 1))  # type: ignore[arg-type] # a number
    stated["nonce"] = stated.pop("nonce", 1).to_bytes(8, "big")  # type: ignore[attr-defined]
    return Outcome(value=value, **stated)  # type: ignore[arg-type] # settings of any field


def counted(assigned: int, *, served: int | None = None, variant: int = 0) -> Sightings:
    """Requests that are units."""
    answered = assigned if served is None else served
    return Sightings(counts=(Counts(7, variant, 0, assigned, answered, (assigned - answered, 0)),))


def shadowed(compared: int, disagreed: int = 0, failed: int = 0) -> Sightings:
    """What a shadow did."""
    return Sightings(compared=(Compared(7, 1, compared, disagreed, failed),))


class Folded:
    """What a store keeps of one study, in memory."""

    def __init__(self, study: Study) -> None:
        """Nothing yet."""
        self.study = study
        self.units: dict[bytes, bytes] = {}
        self.due: dict[bytes, int] = {}
        self.evidence: Evidence = NO_EVIDENCE
        self.results: dict[str, int] = {}
        self.late: list[bytes] = []

    def take(self, *entries: Entry) -> "Folded":
        """Fold entries as one batch."""
        studies = Studies(100, dict.fromkeys(PHASES, self.study), {self.study.id: self.study})
        stream = [(b"%d-0" % place, encode_entry(entry)) for place, entry in enumerate(entries)]
        gathered = gather(stream, studies, max_events=10**9, waits=True)
        assert gathered.taken == len(entries)
        self.count(gathered.results)
        for work in gathered.works.values():
            states = {key: self.units.get(key) for key in keys_of(work)}
            self.write(fold(work, states, self.evidence))
        return self

    def tell(self, *events: Sightings | Outcome, at_ms: int = 0) -> "Folded":
        """Fold events that were accepted at one moment."""
        return self.take(Entry(at_ms, events))

    def freeze(self, through_ms: int) -> "Folded":
        """Freeze all that is due, as often as it takes."""
        while due := [key for key, ms in self.due.items() if ms <= through_ms]:
            states = {key: self.units.get(key) for key in due}
            self.write(freeze_due(self.study, states, self.evidence, through_ms))
        return self

    def write(self, change: StudyChange) -> None:
        """Write a change as the store does."""
        self.units.update(change.units)
        self.due.update(change.due)
        for key in change.undue:
            self.due.pop(key, None)
        cells = {cell.key: cell for cell in self.evidence.cells}
        cells.update((cell.key, cell) for cell in change.cells)
        for gone in change.gone:
            del cells[gone]
        shadows = {(cell.phase, cell.variant): cell for cell in self.evidence.shadows}
        shadows.update(((cell.phase, cell.variant), cell) for cell in change.shadows)
        self.evidence = Evidence(ordered(cells.values()), tuple(shadows.values()))
        self.late += change.late
        self.count(change.results)

    def count(self, results: Mapping[str, int]) -> None:
        """Add up results."""
        for name, number in results.items():
            self.results[name] = self.results.get(name, 0) + number

    @property
    def cell(self) -> Cell:
        """The only cell."""
        (cell,) = self.evidence.cells
        return cell


def ordered(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Cells by their key."""
    return tuple(sorted(cells, key=lambda cell: cell.key))


def killed_record() -> ExperimentRecord:
    """What a process folds that is killed meanwhile."""
    return record_of()
