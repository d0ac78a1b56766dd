"""Reports: what is known of an experiment, put together for people. Nothing is decided here."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.deciding import Decide
from gateway.core.experimenting import shadows_only
from gateway.core.experiments import LIVE, Experiment, ExperimentRecord, State
from gateway.core.readings import Decision, Funnel, Interval, Reading, ShadowReading
from gateway.core.tallies import Cell, Evidence, by_variant

STALE_S: Final = 30.0
"""Evidence that is older is told as such."""
LAST_PHASES: Final = 50
"""Phases that are read one by one; of earlier ones only the weights are told."""


class MetricCount(Struct, frozen=True):
    """How many units a metric has of a variant, and what is left out of it."""

    units: int
    missing: int
    waiting: int
    late: int
    revised: int


class VariantCount(Struct, frozen=True):
    """A variant: what it runs, its share of all units now, and what was seen of its units.

    `events` holds units with the event of each guard.
    """

    name: str
    version: int | None
    share: float
    assigned: int
    served: int
    received: int
    contaminated: int
    events: dict[str, int]
    metrics: dict[str, MetricCount]


class PhaseReport(Struct, frozen=True):
    """A span with constant weights, and what its units alone say."""

    number: int
    at: float
    exposure: int
    weights: dict[str, int]
    readings: tuple[Reading, ...]


class SegmentReport(Struct, frozen=True):
    """What the units of one declared segment alone say; `other` holds those of no declared one."""

    segment: str
    readings: tuple[Reading, ...]


class Report(Struct, frozen=True):
    """Everything that is known of an experiment at a revision.

    `readings` decide; those by phase and segment are for looking at only. `results` is what became
    of sightings and outcomes, duplicates and late ones among them. `age_s` is how old the
    evidence is, None before there is any. `remarks` are sentences on what a reader should know.
    """

    name: str
    revision: int
    etag: str
    endpoint: str
    strategy: str
    state: State
    reason: str
    detail: str
    since: float
    started_at: float
    step: int
    exposure: int
    approved: bool
    age_s: float | None
    remarks: tuple[str, ...]
    variants: tuple[VariantCount, ...]
    readings: tuple[Reading, ...]
    funnel: Funnel | None
    shadows: tuple[ShadowReading, ...]
    phases: tuple[PhaseReport, ...]
    segments: tuple[SegmentReport, ...]
    results: dict[str, int] = {}


class Point(Struct, frozen=True):
    """One moment of an experiment's history, small enough to be kept by the thousand."""

    at: float
    state: State
    reason: str
    exposure: int
    weights: dict[str, int]
    units: dict[str, int]
    readings: tuple["PointReading", ...]


class PointReading(Struct, frozen=True):
    """A reading of that moment."""

    name: str
    variant: str
    verdict: str
    estimate: float | None
    interval: Interval | None
    harm: float
    safe: float
    units: tuple[int, int]


class Surroundings(Struct, frozen=True):
    """Where a report stands: revision and ETag, the moment, what the alias names now.

    `results` is what became of its sightings and outcomes.
    """

    revision: int
    etag: str
    now: float
    champion: int | None
    results: Mapping[str, int] = {}


def report_of(
    name: str, record: ExperimentRecord, evidence: Evidence, decide: Decide, around: Surroundings
) -> Report:
    """Read an experiment's evidence whole, by phase and by segment."""
    document = record.document
    looked = replace(record, state=State.SHADOW) if shadows_only(record) else record
    has_begun = record.phase is not None
    whole = decide(looked, evidence, around.now) if has_begun else Decision(record.state)
    age_s = around.now - evidence.through_ms / 1000 if evidence.through_ms else None
    return Report(
        name=name,
        revision=around.revision,
        etag=around.etag,
        endpoint=document.endpoint,
        strategy=kind_of(document),
        state=record.state,
        reason=record.reason,
        detail=whole.detail if record.state in LIVE else "",
        since=record.since,
        started_at=record.started_at,
        step=record.step,
        exposure=record.exposure,
        approved=record.approved,
        age_s=age_s,
        remarks=tuple(remarks_on(record, around.champion, age_s)),
        variants=_variants(record, evidence),
        results=dict(sorted(around.results.items())),
        readings=whole.readings,
        funnel=whole.funnel,
        shadows=whole.shadows,
        phases=_phases(looked, evidence, decide, around.now),
        segments=_segments(looked, evidence, decide, around.now) if has_begun else (),
    )


def point_of(record: ExperimentRecord, evidence: Evidence, decision: Decision, now: float) -> Point:
    """What is kept of one look."""
    phase = record.phase
    units = [0] * len(record.document.variants)
    for cell in evidence.cells:
        units[cell.variant] += cell.assigned
    return Point(
        at=now,
        state=record.state,
        reason=record.reason,
        exposure=record.exposure,
        weights={} if phase is None else phase.weights,
        units={
            variant.name: count
            for variant, count in zip(record.document.variants, units, strict=True)
        },
        readings=tuple(
            PointReading(
                reading.name,
                reading.variant,
                reading.verdict.value,
                reading.estimate,
                reading.interval,
                reading.harm.e,
                reading.safe.e,
                reading.units,
            )
            for reading in decision.readings
        ),
    )


def remarks_on(
    record: ExperimentRecord, champion: int | None, age_s: float | None = None
) -> list[str]:
    """What a reader should know of a live experiment besides its numbers."""
    if record.state not in LIVE:
        return []
    remarks = []
    document = record.document
    control = record.versions.get(document.control)
    known = {control, None}
    if record.state is State.HOLDING_OUT:
        known = set(record.versions.values())
    if champion not in known and document.promote != "never":
        remarks.append(
            f"'{document.alias}' names version {champion} now, and the control is version "
            f"{control}: someone moved it. The experiment goes on with its own versions and will "
            "not move the alias."
        )
    if age_s is not None and age_s > STALE_S:
        remarks.append(f"The newest evidence is {age_s:.0f} seconds old.")
    return remarks


def kind_of(document: Experiment) -> str:
    """The strategy's name."""
    return type(document.strategy).__name__.lower()


def _variants(record: ExperimentRecord, evidence: Evidence) -> tuple[VariantCount, ...]:
    document, phase = record.document, record.phase
    cells: Mapping[int, Cell] = by_variant(evidence)
    counts = []
    for place, variant in enumerate(document.variants):
        cell = cells.get(place) or Cell(0, place)
        share = 0.0 if phase is None else phase.exposure / 10_000 * phase.propensity(variant.name)
        counts.append(
            VariantCount(
                name=variant.name,
                version=record.versions.get(variant.name, variant.version),
                share=share if record.state in LIVE else 0.0,
                assigned=cell.assigned,
                served=cell.served,
                received=cell.received,
                contaminated=cell.contaminated,
                events={
                    guard.name: count
                    for guard, count in zip(document.guards, cell.events, strict=False)
                },
                metrics={
                    name: MetricCount(
                        tally.units, tally.missing, tally.waiting, tally.late, tally.revised
                    )
                    for name, tally in cell.metrics.items()
                },
            )
        )
    return tuple(counts)


def _phases(
    record: ExperimentRecord, evidence: Evidence, decide: Decide, now: float
) -> tuple[PhaseReport, ...]:
    found = []
    told = {phase.number for phase in record.phases[-LAST_PHASES:]}
    for phase in record.phases:
        cells: tuple[Cell, ...] = ()
        if phase.number in told:
            cells = tuple(cell for cell in evidence.cells if cell.phase == phase.number)
        part = replace(evidence, cells=cells)
        found.append(
            PhaseReport(
                number=phase.number,
                at=phase.at,
                exposure=phase.exposure,
                weights=phase.weights,
                readings=decide(record, part, now).readings if cells else (),
            )
        )
    return tuple(found)


def _segments(
    record: ExperimentRecord, evidence: Evidence, decide: Decide, now: float
) -> tuple[SegmentReport, ...]:
    declared = record.document.segment
    if declared is None:
        return ()
    found = []
    for place, segment in enumerate(("other", *declared.values)):
        cells = tuple(cell for cell in evidence.cells if cell.segment == place)
        if cells:
            readings = decide(record, replace(evidence, cells=cells), now).readings
            found.append(SegmentReport(segment, readings))
    return tuple(found)
