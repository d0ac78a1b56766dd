"""Checks on an experiment's document, on its own: the first fault found, as a sentence.

Whether what it names exists, and what must hold of records side by side, is checked against the
Snapshot (`gateway.core.experiment_records`).
"""

from collections.abc import Iterable
from math import isfinite
from typing import Final, NoReturn

from gateway.core.assignment import SCALE
from gateway.core.compare import check_tolerance
from gateway.core.endpoints import (
    DEFAULT_VARIANT,
    MAX_CONDITIONS,
    check_target,
    check_unit,
    is_scalar_name,
)
from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.evidence import MAX_GUARDS
from gateway.core.experiments import (
    Bandit,
    Experiment,
    Fixed,
    Guard,
    Metric,
    Ramp,
    Segment,
    ShadowStage,
    Strategy,
    names_of,
)
from gateway.core.models import check_name
from gateway.core.targeting import check_condition

MIN_VARIANTS: Final = 2
MAX_VARIANTS: Final = 20
MAX_METRICS: Final = 20
MAX_STEPS: Final = 50
MAX_SEGMENTS: Final = 50
MAX_TEXT: Final = 128
MAX_SPAN_S: Final = 366 * 86_400.0
MAX_COUNT: Final = 1_000_000_000
MAX_FACTOR: Final = 1_000.0
MAX_RISK: Final = 0.5


def check_experiment(name: str, document: Experiment) -> None:
    """Refuse a document that contradicts itself, with a sentence that says where.

    Raises:
        InvalidRequest: the first fault found.
    """
    check_name("an experiment", name)
    where = f"Experiment '{name}'"
    if document.schema != 1:
        _refuse(where, f"schema is {excerpt(document.schema)}; this gateway writes schema 1")
    check_name("an endpoint", document.endpoint)
    check_name("an alias", document.alias)
    _check_variants(where, document)
    _check_strategy(where, document.strategy, [variant.name for variant in document.variants])
    _check_measures(where, document)
    if document.unit is not None:
        check_unit(where, document.unit)
    if len(document.when) > MAX_CONDITIONS:
        _refuse(where, f"at most {MAX_CONDITIONS} conditions may stand in 'when'")
    for condition in document.when:
        check_condition(where, condition)
    if document.shadow is not None:
        _check_shadow(f"{where}, shadow", document.shadow)
    if document.segment is not None:
        _check_segment(f"{where}, segment", document.segment)
    _check_layer(where, document)
    _check_risks(where, document)
    _check_ending(where, document)


def _check_variants(where: str, document: Experiment) -> None:
    names = [variant.name for variant in document.variants]
    if not MIN_VARIANTS <= len(names) <= MAX_VARIANTS:
        _refuse(where, f"it needs {MIN_VARIANTS} to {MAX_VARIANTS} variants, the control first")
    _distinct(where, "variants", names)
    for variant in document.variants:
        check_name("a variant", variant.name)
        if variant.name == DEFAULT_VARIANT:
            _refuse(where, f"'{DEFAULT_VARIANT}' names the endpoint's default; take another")
        check_target(f"{where}, variant '{variant.name}'", variant.target)


def _check_strategy(where: str, strategy: Strategy, names: list[str]) -> None:
    where = f"{where}, strategy"
    if isinstance(strategy, Fixed):
        _check_fixed(where, strategy, names)
    elif isinstance(strategy, Ramp):
        _check_ramp(where, strategy, names)
    else:
        _check_bandit(where, strategy, names)


def _check_fixed(where: str, fixed: Fixed, names: list[str]) -> None:
    if set(fixed.weights) != set(names):
        _refuse(where, "'weights' gives each variant its weight, and names no other")
    for name in names:
        _within(where, f"the weight of '{name}'", fixed.weights[name], 1, SCALE)
    total = sum(fixed.weights.values())
    if total != SCALE:
        _refuse(where, f"the weights add up to {total}; they must add up to {SCALE}")
    _within(where, "exposure", fixed.exposure, 1, SCALE)


def _check_ramp(where: str, ramp: Ramp, names: list[str]) -> None:
    if len(names) != MIN_VARIANTS:
        _refuse(where, "a ramp has two variants, the control and the candidate")
    if not 1 <= len(ramp.steps) <= MAX_STEPS:
        _refuse(where, f"a ramp has 1 to {MAX_STEPS} steps")
    # An equal control takes as many units again.
    most = SCALE // 2 if ramp.control == "equal" else SCALE
    before = 0
    for step in ramp.steps:
        _within(where, "a step", step, 1, most)
        if step <= before:
            _refuse(where, f"the steps must grow, and {step} comes after {before}")
        before = step
    _within(where, "dwell_s", ramp.dwell_s, 0, MAX_SPAN_S)
    _within(where, "min_units", ramp.min_units, 0, MAX_COUNT)
    _within(where, "min_events", ramp.min_events, 0, MAX_COUNT)
    if ramp.risk_budget is not None:
        _above(where, "risk_budget", ramp.risk_budget, 0, MAX_COUNT)


def _check_bandit(where: str, bandit: Bandit, names: list[str]) -> None:
    _within(where, "floor", bandit.floor, 1, SCALE // len(names))
    _within(where, "exposure", bandit.exposure, 1, SCALE)
    _within(where, "every_s", bandit.every_s, 1, MAX_SPAN_S)
    _within(where, "min_units", bandit.min_units, 1, MAX_COUNT)


def _check_measures(where: str, document: Experiment) -> None:
    if len(document.guards) > MAX_GUARDS:
        _refuse(where, f"it has {len(document.guards)} guards; at most {MAX_GUARDS} may be")
    if len(document.metrics) > MAX_METRICS:
        _refuse(where, f"it has {len(document.metrics)} metrics; at most {MAX_METRICS} may be")
    _distinct(where, "guards or metrics", names_of(document))
    for guard in document.guards:
        check_name("a guard", guard.name)
        _check_guard(f"{where}, guard '{guard.name}'", guard)
    for metric in document.metrics:
        check_name("a metric", metric.name)
        _check_metric(f"{where}, metric '{metric.name}'", metric)
    goals = [metric for metric in document.metrics if metric.role == "goal"]
    if isinstance(document.strategy, Bandit) and not goals:
        _refuse(where, "a bandit learns from its first goal; give a metric with that role")
    if isinstance(document.strategy, Bandit) and goals[0].kind == "quantile":
        _refuse(where, "a bandit learns from means, so its first goal cannot be a quantile")
    decides = [metric for metric in document.metrics if metric.role != "watch"]
    if document.promote != "never" and not document.guards and not decides:
        _refuse(
            where,
            "nothing could certify a promotion; give a guard or a goal, or set 'promote' to "
            "'never'",
        )


def _check_guard(where: str, guard: Guard) -> None:
    if (guard.event == "slow") != (guard.over_ms is not None):
        _refuse(where, "'over_ms' belongs to 'slow', and 'slow' needs it")
    if guard.over_ms is not None:
        _above(where, "over_ms", guard.over_ms, 0, MAX_SPAN_S)
    _within(where, "tolerance", guard.tolerance, 1, MAX_FACTOR)
    _above(where, "allowed", guard.allowed, 1, MAX_FACTOR)
    _within(where, "negligible", guard.negligible, 0, 1)
    if guard.alpha is not None:
        _above(where, "alpha", guard.alpha, 0, MAX_RISK)


def _check_metric(where: str, metric: Metric) -> None:
    _check_text(where, "outcome", metric.outcome)
    if (metric.kind == "ratio") != (metric.denominator is not None):
        _refuse(where, "'denominator' belongs to a ratio, and a ratio needs it")
    if metric.denominator is not None:
        _check_text(where, "denominator", metric.denominator)
    if (metric.score == "value") != (metric.scalar is None):
        _refuse(where, "'scalar' names the output that a score other than 'value' is made with")
    for scalar in (metric.scalar, metric.covariate):
        if scalar is not None and not (is_scalar_name(scalar) and len(scalar) <= MAX_TEXT):
            _refuse(where, "'scalar' and 'covariate' are 'output' or 'output:column'")
    if metric.covariate is not None and metric.kind in ("ratio", "quantile"):
        _refuse(where, f"a {metric.kind} takes no covariate")
    _within(where, "margin", metric.margin, 0, float(MAX_COUNT))
    _above(where, "window_s", metric.window_s, 0, MAX_SPAN_S)
    _within(where, "maturity_s", metric.maturity_s, 0, MAX_SPAN_S)
    _within(where, "default", metric.default, -float(MAX_COUNT), float(MAX_COUNT))
    if not 0 < metric.quantile < 1:
        _refuse(where, "quantile must be above 0 and below 1")
    _within(where, "planned_units", metric.planned_units, 1, MAX_COUNT)


def _check_shadow(where: str, shadow: ShadowStage) -> None:
    _within(where, "share", shadow.share, 1, SCALE)
    _within(where, "min_compared", shadow.min_compared, 1, MAX_COUNT)
    _within(where, "max_disagreed", shadow.max_disagreed, 0, 1)
    if shadow.max_disagreed == 0:
        _refuse(where, "max_disagreed is 0, of which no number of answers can be certain")
    _within(where, "dwell_s", shadow.dwell_s, 0, MAX_SPAN_S)
    check_tolerance(where, shadow.tolerance)


def _check_segment(where: str, segment: Segment) -> None:
    if (segment.header is None) == (segment.parameter is None):
        _refuse(where, "give exactly one of 'header' and 'parameter'")
    _check_text(where, "the source", segment.header or segment.parameter or "")
    if not 1 <= len(segment.values) <= MAX_SEGMENTS:
        _refuse(where, f"'values' lists 1 to {MAX_SEGMENTS} values")
    _distinct(where, "values", segment.values)
    for value in segment.values:
        _check_text(where, "a value", value)


def _check_layer(where: str, document: Experiment) -> None:
    _within(where, "layer_share", document.layer_share, 1, SCALE)
    if document.layer is not None:
        check_name("a layer", document.layer)
    elif document.layer_share != SCALE:
        _refuse(where, "'layer_share' is a share of a layer; name the layer")


def _check_risks(where: str, document: Experiment) -> None:
    _above(where, "alpha", document.alpha, 0, MAX_RISK)
    _above(where, "beta", document.beta, 0, MAX_RISK)
    _above(where, "srm_alpha", document.srm_alpha, 0, MAX_RISK)
    _within(where, "max_contaminated", document.max_contaminated, 0, 1)


def _check_ending(where: str, document: Experiment) -> None:
    if document.deadline_s is not None:
        _above(where, "deadline_s", document.deadline_s, 0, MAX_SPAN_S)
    _within(where, "hold_out", document.hold_out, 0, SCALE // 2)
    _within(where, "hold_out_s", document.hold_out_s, 0, MAX_SPAN_S)
    if (document.hold_out == 0) != (document.hold_out_s == 0):
        _refuse(where, "'hold_out' and 'hold_out_s' are given together")


def _check_text(where: str, what: str, text: str) -> None:
    if not (1 <= len(text) <= MAX_TEXT and text.isprintable()):
        _refuse(where, f"{what} holds 1 to {MAX_TEXT} printable characters")


def _distinct(where: str, what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            _refuse(where, f"two {what} are named '{excerpt(name)}'")
        seen.add(name)


def _within(where: str, what: str, value: float, least: float, most: float) -> None:
    if not (isfinite(value) and least <= value <= most):
        _refuse(where, f"{what} is {excerpt(value)}; it must be {least:.12g} to {most:.12g}")


def _above(where: str, what: str, value: float, least: float, most: float) -> None:
    if not (isfinite(value) and least < value <= most):
        _refuse(
            where,
            f"{what} is {excerpt(value)}; it must be above {least:.12g} and at most {most:.12g}",
        )


def _refuse(where: str, fault: str) -> NoReturn:
    message = f"{where}: {fault}."
    raise InvalidRequest(message)
