"""Looking: everything that the evidence of one experiment says at one moment.

`judging` decides on a Look; reports show it. The order of reading is fixed. First the funnel: did
each variant get the units that its weights say (assigned), did as many get an answer (served) and
an outcome (received)? All three are compared with the weights of the units' first phase: while
every variant serves and is told of alike, whose unit comes next at any stage is a draw with them.
If assigned is off, nothing can be said (`invalid`), and guards are read from rates alone. If only
received is off, those of whom outcomes are known are not alike, so metrics are invalid and guards
are not. If served is off that is no fault of the split: it is what the guards are there to see.
Where silence counts as a value, who is told of is the effect itself, so received is then asked of
the units that the other metrics could count, and of nobody if there are none.

Risks. `alpha` is shared in equal parts by all guards without an own one and by all metrics that
gate, and each part by the treatments: with a look at every tick the chance of any false harm is at
most alpha (plus what guards ask for themselves). The claims `better` and `worse` share another
alpha among the metrics that gate and the treatments; metrics that are only watched share one of
their own. A certificate needs every guard and metric, so beta is not shared among them, but it is
among the treatments, because any of them may be promoted.
"""

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from gateway.core import guarding, measuring
from gateway.core.arms import Pair, Stratum, overlap_of, pairs_of, strata
from gateway.core.experiments import Experiment, ExperimentRecord, HoldReason, Metric, State
from gateway.core.guarding import Asked, from_log
from gateway.core.measuring import Levels
from gateway.core.ranking import read_quantile
from gateway.core.readings import Funnel, Reading, Stage, Verdict, evidential
from gateway.core.stats import ceilings, multinomial
from gateway.core.stats.means import Sample
from gateway.core.tallies import Cell, Evidence

MIN_UNITS: Final = 100
"""Units from which on a share of contaminated ones is a share."""
StageName: TypeAlias = Literal["assigned", "served", "received"]
_STAGES: Final[tuple[StageName, ...]] = ("assigned", "served", "received")


class Risks(Struct, frozen=True):
    """How the risks of an experiment are shared out, per treatment."""

    guards: tuple[float, ...]
    metrics: tuple[Levels, ...]
    safe: float


class Look(Struct, frozen=True):
    """What was seen.

    Attributes:
        readings: Of the treatments that ever had a weight, guards and metrics, in document order.
        alive: The treatments that units are assigned to.
        funnel: The three stages.
        contaminated: Whether too many units were seen under two variants.
        units: Units of each variant by name, since the start.
        recent: Units whose first phase is the running one.
        events: Units with a guarded event, added up over guards and variants.
        strata: The evidence by weights.
        broken: Whether the split is not what it should be, so that all is invalid.
        risks: How the risks are shared out.
    """

    readings: tuple[Reading, ...]
    alive: tuple[str, ...]
    funnel: Funnel
    contaminated: bool
    units: dict[str, int]
    recent: int
    events: int
    strata: tuple[Stratum, ...]
    broken: bool
    risks: Risks

    def of(self, variant: str) -> list[Reading]:
        """What was read of one treatment."""
        return [reading for reading in self.readings if reading.variant == variant]

    @property
    def gates(self) -> list[Reading]:
        """What a promotion of the living treatments depends on."""
        return [r for r in self.readings if r.gates and r.variant in self.alive]


def risks_of(document: Experiment) -> Risks:
    """Share out the risks of a document; see the page."""
    return _shared(
        document.alpha,
        document.beta,
        len(document.variants) - 1,
        tuple([guard.alpha for guard in document.guards]),
        tuple([metric.role for metric in document.metrics]),
    )


@lru_cache(maxsize=1_024)
def _shared(
    alpha: float,
    beta: float,
    treatments: int,
    guards: tuple[float | None, ...],
    roles: tuple[str, ...],
) -> Risks:
    watched = roles.count("watch")
    gates = len(roles) - watched
    harm = alpha / max(gates + guards.count(None), 1) / treatments
    safe = beta / treatments
    levels = [
        Levels(harm, safe, alpha / (watched if role == "watch" else gates) / treatments)
        for role in roles
    ]
    own = tuple(harm if mine is None else mine / treatments for mine in guards)
    return Risks(own, tuple(levels), safe)


def living(record: ExperimentRecord) -> list[str]:
    """The treatments that units are assigned to in the phase that runs, or ran last."""
    phase, document = record.phase, record.document
    return [
        variant.name
        for variant in document.variants[1:]
        if phase is not None and phase.weights.get(variant.name, 0)
    ]


def look(record: ExperimentRecord, evidence: Evidence, *, display: bool = False) -> Look:
    """Read everything.

    Args:
        record: as it stands.
        evidence: its tallies.
        display: whether to tell all: shares of the funnel, evidence that falls short exactly, and
            what nothing is decided on. It takes some ten times as long.
    """
    document, seen = record.document, strata(record, evidence)
    funnel, risks = _funnel(record, seen, exact=display), risks_of(record.document)
    broken = funnel.assigned.is_off or _is_lifted_by_people(record)
    alive = living(record)
    kept = _kept_apart(record, evidence, seen, alive)
    share, contaminated, told = kept.share, kept.contaminated, kept.outcomes
    harm = tuple([level / kept.spent for level in risks.guards])
    comparable = not (broken or contaminated or funnel.received.is_off)
    readings: list[Reading] = []
    for index in range(1, len(document.variants)):
        if not any(stratum.weights[index] for stratum in seen):
            continue
        asked = Asked(harm, risks.safe, exact=display and not broken)
        guards = _guards(document, asked, index, pairs_of(kept.events, index))
        if contaminated:
            guards = [guarding.doubted(reading) for reading in guards]
        if broken:
            both = zip(guards, document.guards, risks.guards, strict=True)
            guards = [guarding.apart(reading, guard, level) for reading, guard, level in both]
        metrics = _metrics(document, risks, index, pairs_of(told, index), display=display)
        if not comparable:
            metrics = [replace(reading, verdict=Verdict.INVALID) for reading in metrics]
        readings += [*guards, *metrics]
    counted = [stratum.counted("assigned") for stratum in seen]
    now = record.phase.number if record.phase else 0
    return Look(
        readings=tuple(readings),
        alive=tuple(alive),
        funnel=replace(funnel, contaminated=share),
        contaminated=contaminated,
        units={v.name: sum(row[i] for row in counted) for i, v in enumerate(document.variants)},
        recent=sum(cell.assigned for cell in evidence.cells if cell.phase == now),
        events=sum(sum(c.events) for s in seen for cells in s.cells for c in cells),
        strata=seen,
        broken=broken,
        risks=risks,
    )


def goal_arms(record: ExperimentRecord, seen: Sequence[Stratum]) -> list[Sample]:
    """The first goal of each living variant over strata, for a bandit; one that is out is empty."""
    goal = next((metric for metric in record.document.metrics if metric.role == "goal"), None)
    if goal is None:
        return []
    alive = [0, *(i for i, v in enumerate(record.document.variants) if v.name in living(record))]
    rows = []
    for stratum in seen:
        weights = [stratum.weights[i] for i in alive]
        if all(weights):
            arms = [stratum.cells[i] for i in alive]
            units = sum(_counted(cells, goal.name) for cells in arms)
            rows.append((overlap_of(weights, units), arms))
    try:
        samples = measuring.arm_samples(goal, rows)
    except (ArithmeticError, ValueError):
        return []
    if not samples:
        return []
    found = dict(zip(alive, samples, strict=True))
    return [found.get(i, Sample(0, 0.0, 0.0)) for i in range(len(record.document.variants))]


def _is_lifted_by_people(record: ExperimentRecord) -> bool:
    """Whether it is held for a broken split; that evidence was enough once is enough."""
    return record.state is State.HELD and record.reason == HoldReason.SRM


class _KeptApart(Struct, frozen=True):
    """Which units can be compared, though some were moved from one variant to another.

    `events` and `outcomes` are the strata to compare those in; `spent` divides the risk of harm.
    """

    share: float
    contaminated: bool
    events: tuple[Stratum, ...]
    outcomes: tuple[Stratum, ...]
    spent: int = 1


def _kept_apart(
    record: ExperimentRecord,
    evidence: Evidence,
    seen: tuple[Stratum, ...],
    alive: Sequence[str],
) -> _KeptApart:
    """See what was moved.

    Of units that stay, a change of weights moves many; their later events are nobody's, so the
    variant that they left seems to have fewer. In a reverse hold-out, and when more units were
    moved than may be, guards are read from those that came with the weights of now, which nothing
    has moved since. That spends the risk anew: once in a hold-out; else 1 / (k (k + 1)) of it in
    the k-th phase, which adds up to once at most. Outcomes are read from those in a hold-out only.
    """
    share, contaminated = _contamination(record, seen, alive)
    stays = record.state is State.HOLDING_OUT and record.document.unit is not None
    if record.phase is None or not (stays or contaminated):
        return _KeptApart(share, contaminated, seen, seen)
    since = strata(record, evidence, first=record.phase.number)
    if not stays:
        phases = len(record.phases)
        return _KeptApart(share, contaminated, since, seen, phases * (phases + 1))
    if not contaminated:
        return _KeptApart(share, contaminated, since, seen)
    return _KeptApart(*_contamination(record, since, alive), since, since)


def _guards(document: Experiment, asked: Asked, index: int, pairs: Sequence[Pair]) -> list[Reading]:
    name = document.variants[index].name
    readings = guarding.read_guards(document.guards, name, pairs, asked)
    if not asked.exact:
        return readings
    return [
        guarding.with_display(reading, guard, pairs, place, asked.safe)
        for place, (reading, guard) in enumerate(zip(readings, document.guards, strict=True))
    ]


def _metrics(
    document: Experiment, risks: Risks, index: int, pairs: Sequence[Pair], *, display: bool
) -> list[Reading]:
    name = document.variants[index].name
    both = zip(document.metrics, risks.metrics, strict=True)
    return [_metric(metric, levels, name, pairs, display=display) for metric, levels in both]


def _metric(
    metric: Metric, levels: Levels, variant: str, pairs: Sequence[Pair], *, display: bool
) -> Reading:
    """One metric. Outcomes that no arithmetic can take must not blind the guards beside it."""
    try:
        if metric.kind == "quantile":
            return read_quantile(metric, variant, pairs, levels)
        effect = measuring.effect_of(metric, pairs, display=display)
        return measuring.read_effect(metric, variant, effect, levels, display=display)
    except (ArithmeticError, ValueError):
        return measuring.unread(metric, variant, levels)


def _funnel(record: ExperimentRecord, seen: Sequence[Stratum], *, exact: bool) -> Funnel:
    """Every stage against the weights of the units' first phases."""
    weights = [stratum.weights for stratum in seen]
    stages = [_stage(record, name, seen, weights, exact=exact) for name in _STAGES]
    assigned, served, received = stages
    return Funnel(assigned, served, received)


def _stage(
    record: ExperimentRecord,
    name: StageName,
    seen: Sequence[Stratum],
    weights: Sequence[tuple[int, ...]],
    *,
    exact: bool,
) -> Stage:
    """One stage; shares are told if they are off or if all is to be told."""
    rows, level = [stratum.counted(name) for stratum in seen], record.document.srm_alpha
    units = sum(map(sum, rows))
    asked = _answered(record.document, seen, rows) if name == "received" else [rows]
    most = from_log(max((ceilings.shares(one, weights) for one in asked), default=0.0), level)
    if not exact and not most.holds:
        return Stage(name, units, test=most)
    # The mean of e-values is one, however they depend on each other.
    found = [multinomial.log_e_over_phases(list(zip(one, weights, strict=True))) for one in asked]
    test = evidential(fmean([from_log(log_e, level).e for log_e in found] or [1.0]), level)
    names = [variant.name for variant in record.document.variants]
    due = _shares(names, _due(rows, weights), units)
    return Stage(name, units, _shares(names, rows, units), due, test)


def _answered(
    document: Experiment, seen: Sequence[Stratum], received: list[list[int]]
) -> list[list[list[int]]]:
    """Units by stratum and variant that should be as many as the weights say; one for each test.

    Outcomes of a metric whose silence is a value come because of what they say: one that is only
    told when somebody buys comes more often for the better variant, and that is no fault.
    """
    needed = [m for m in document.metrics if m.silence == "missing" and m.role != "watch"]
    is_plain = all(metric.silence == "missing" for metric in document.metrics)
    if is_plain and len(needed) <= 1:
        return [received]
    counted = [
        [[_counted(cells, metric.name) for cells in stratum.cells] for stratum in seen]
        for metric in needed
    ]
    return [received, *counted] if is_plain else counted


def _counted(cells: Sequence[Cell], metric: str) -> int:
    return sum(cell.metrics[metric].units for cell in cells if metric in cell.metrics)


def _due(rows: Sequence[Sequence[int]], weights: Sequence[Sequence[int]]) -> list[list[float]]:
    """Units that each variant should have had of those that were seen, by stratum."""
    return [
        [sum(row) * weight / sum(drawn) for weight in drawn]
        for row, drawn in zip(rows, weights, strict=True)
    ]


def _shares(names: Sequence[str], rows: Sequence[Sequence[float]], total: int) -> dict[str, float]:
    if not total:
        return {}
    return {name: sum(row[i] for row in rows) / total for i, name in enumerate(names)}


def _contamination(
    record: ExperimentRecord, seen: Sequence[Stratum], alive: Sequence[str]
) -> tuple[float, bool]:
    """Share of units that were seen under two variants, and whether it is too large.

    Only of variants that are still assigned: the units of one that was taken out had to move.
    """
    if not any(cell.contaminated for stratum in seen for cells in stratum.cells for cell in cells):
        return 0.0, False
    keep = [i for i, v in enumerate(record.document.variants) if i == 0 or v.name in alive]
    units = moved = 0
    for stratum in seen:
        assigned, contaminated = stratum.counted("assigned"), stratum.counted("contaminated")
        units += sum(assigned[i] for i in keep)
        moved += sum(contaminated[i] for i in keep)
    share = moved / units if units else 0.0
    return share, units >= MIN_UNITS and share > record.document.max_contaminated
