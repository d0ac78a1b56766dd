"""Studies: what folding must know of experiments, looked up by the number of a phase.

A `Study` is an experiment's record with names resolved to indices, so that a unit's state holds
small numbers and folding looks nothing up twice.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from gateway.core.experiments import TERMINAL, ExperimentRecord, Metric
from gateway.core.stats.moments import LIMIT

CLIP: Final = 1e-15
"""Probabilities are moved this far from 0 and 1 before their logarithm is taken."""
SLOTS: Final = 60
"""Requests that are units themselves are closed in slots; at least so many a metric's time."""
MAX_SLOT_MS: Final = 60_000
_HALF: Final = 0.5


class MetricPlan(Struct, frozen=True, gc=False):
    """A metric with its names resolved. Places are -1 for what it does not have or cannot find.

    Attributes:
        metric: The document's.
        outcome: Place of its outcome in `Study.outcomes`.
        denominator: The same, of a ratio's denominator.
        scalar: Place of its scalar in an outcome's scalars.
        covariate: The same, of its covariate.
        window_ms: How long after a unit's first exposure its predictions count.
        due_ms: How long after a unit's first exposure it is frozen.
    """

    metric: Metric
    outcome: int
    denominator: int
    scalar: int
    covariate: int
    window_ms: int
    due_ms: int


class Study(Struct, frozen=True):
    """One experiment, ready for folding.

    Attributes:
        id: Names its keys in the store.
        name: The experiment's.
        variants: Name to index.
        outcomes: Name to place, of every outcome that a metric reads.
        plans: One for each metric, in the document's order.
        keeps: By place of an outcome: whether its scalars are needed.
        guards: How many there are.
        soonest_ms: How long after its first exposure a unit's first metric is frozen.
        ended_at: When the experiment ended, in UTC seconds; None while it goes on.
        slot_ms: 0 where units have keys; else each request is a unit, and requests are closed in
            slots of this length.
    """

    id: str
    name: str
    variants: dict[str, int]
    outcomes: dict[str, int]
    plans: tuple[MetricPlan, ...]
    keeps: tuple[bool, ...]
    guards: int
    soonest_ms: int
    slot_ms: int
    ended_at: float | None = None


class Studies(Struct, frozen=True):
    """All studies of one Snapshot. A phase above its `revision` may be one it does not know yet."""

    revision: int = 0
    by_phase: dict[int, Study] = {}
    by_id: dict[str, Study] = {}

    def without(self, ids: Collection[str]) -> "Studies":
        """These, as if some had never been."""
        if not ids:
            return self
        by_phase = {number: study for number, study in self.by_phase.items() if study.id not in ids}
        by_id = {study_id: study for study_id, study in self.by_id.items() if study_id not in ids}
        return Studies(self.revision, by_phase, by_id)


def studies_of(revision: int, records: Mapping[str, ExperimentRecord]) -> Studies:
    """The studies of a Snapshot's experiments, by name; those that never began have none."""
    by_phase: dict[int, Study] = {}
    by_id: dict[str, Study] = {}
    for name, record in records.items():
        if not record.phases:
            continue
        study = study_of(name, record)
        by_id[study.id] = study
        by_phase.update((phase.number, study) for phase in record.phases)
    return Studies(revision, by_phase, by_id)


def study_of(name: str, record: ExperimentRecord) -> Study:
    """One experiment's study."""
    document = record.document
    read = (
        name
        for metric in document.metrics
        for name in (metric.outcome, metric.denominator)
        if name is not None
    )
    outcomes = {outcome: place for place, outcome in enumerate(dict.fromkeys(read))}
    plans = tuple(_plan(metric, outcomes, record.scalars) for metric in document.metrics)
    soonest_ms = min((plan.due_ms for plan in plans), default=SLOTS * MAX_SLOT_MS)
    with_scalars = {plan.outcome for plan in plans if plan.scalar >= 0 or plan.covariate >= 0}
    return Study(
        id=record.id,
        name=name,
        variants={variant.name: index for index, variant in enumerate(document.variants)},
        outcomes=outcomes,
        plans=plans,
        keeps=tuple(place in with_scalars for place in outcomes.values()),
        guards=len(document.guards),
        soonest_ms=soonest_ms,
        slot_ms=0 if document.unit is not None else _slot_ms(soonest_ms),
        ended_at=record.since if record.state in TERMINAL else None,
    )


def score(plan: MetricPlan, value: float, scalars: Sequence[float]) -> float | None:
    """What one outcome is worth to a metric; None if it cannot be computed.

    Sources: log loss is -(y ln p + (1 - y) ln(1 - p)) with p the scalar, natural logarithm, p
    clipped to [`CLIP`, 1 - `CLIP`]; a prediction is `correct` if scalar and value are on the same
    side of one half, where one half itself is up.
    """
    kind = plan.metric.score
    if kind == "value":
        worth = value
    else:
        predicted = scalar_of(scalars, plan.scalar)
        if predicted is None:
            return None
        if kind == "log_loss":
            worth = _log_loss(value, predicted)
        elif kind == "correct":
            worth = 1.0 if (predicted >= _HALF) == (value >= _HALF) else 0.0
        else:
            distance = abs(predicted - value)
            worth = distance if kind == "absolute_error" else distance * distance
    return worth if _is_usable(worth, plan.metric.kind) else None


def scalar_of(scalars: Sequence[float], place: int) -> float | None:
    """A prediction's scalar, if it is a number."""
    if not 0 <= place < len(scalars):
        return None
    scalar = scalars[place]
    return scalar if math.isfinite(scalar) else None


def mean_of(values: Iterable[float]) -> float:
    """The mean of at least one value, the same in whatever order they come."""
    listed = list(values)
    return listed[0] if len(listed) == 1 else math.fsum(listed) / len(listed)


def _log_loss(value: float, predicted: float) -> float:
    """NaN where the value is no label or share of one."""
    if not 0.0 <= value <= 1.0:
        return math.nan
    p = min(max(predicted, CLIP), 1.0 - CLIP)
    # A label is 0 or 1 as a rule, and then one of the two terms is zero.
    up = value * math.log(p) if value else 0.0
    down = (1.0 - value) * math.log1p(-p) if value != 1.0 else 0.0
    return -(up + down)


def _is_usable(worth: float, kind: str) -> bool:
    """Whether sums can take it; NaN is on neither side of anything."""
    if kind == "binary":
        return 0.0 <= worth <= 1.0
    return -LIMIT <= worth <= LIMIT


def _plan(metric: Metric, outcomes: Mapping[str, int], scalars: Sequence[str]) -> MetricPlan:
    window_ms = round(1000 * metric.window_s)
    return MetricPlan(
        metric=metric,
        outcome=outcomes[metric.outcome],
        denominator=-1 if metric.denominator is None else outcomes[metric.denominator],
        scalar=_place(metric.scalar, scalars),
        covariate=_place(metric.covariate, scalars),
        window_ms=window_ms,
        due_ms=window_ms + round(1000 * metric.maturity_s),
    )


def _place(name: str | None, scalars: Sequence[str]) -> int:
    return scalars.index(name) if name is not None and name in scalars else -1


def _slot_ms(soonest_ms: int) -> int:
    """Short where a metric's time is, and whole seconds, so that there are not too many slots."""
    return max(1000, min(MAX_SLOT_MS, soonest_ms // SLOTS // 1000 * 1000))
