"""Strategies: from what stands and what was read to one next step. Pure, and one page.

A strategy never looks at harm or certificates of goals: `judging` does, before it asks here. What
it decides is how traffic moves meanwhile.
"""

from collections.abc import Mapping, Sequence
from math import floor, inf, isfinite
from typing import Final, assert_never

from msgspec import Struct

from gateway.core.assignment import SCALE
from gateway.core.experiments import Bandit, Experiment, ExperimentRecord, Fixed, Phase, Ramp
from gateway.core.stats.means import Sample
from gateway.core.stats.thompson import normal_weights

HALF: Final = SCALE // 2
GROWTH: Final = 1.25
"""A step that the risk budget cuts short is taken only if it is worth a phase of its own."""
STIR: Final = SCALE // 100
"""So many units out of 10,000 must move, or a bandit leaves its weights alone."""
SLOWER: Final = 1.02
"""By this factor a bandit's weights stay longer each time, so that its phases stay few: what they
were is in every look at the evidence and in every entry of the ledger. Weights of 15 minutes have
changed at most 206 times after a month, and 332 times after a year."""


class Step(Struct, frozen=True):
    """How traffic goes: index into a ramp's steps, enrolled share and weights, out of 10,000."""

    step: int
    exposure: int
    weights: dict[str, int]


class Standing(Struct, frozen=True):
    """What a strategy needs to know of the evidence.

    Attributes:
        units: Units of each variant since the start.
        events: Units of all variants with a guarded event, added up over the guards.
        recent: Units of all variants that came in the running phase.
        certified: Whether every guard of every living treatment is certified as safe.
        excess: Upper bound of the share of a candidate's units with an event beyond the control's,
            of the worst guard; 1 where nothing is known.
        arrivals: New units per second of the running phase, if all were enrolled.
        arms: Of the first goal, each variant over all phases, matured units only.
    """

    units: Mapping[str, int]
    events: int = 0
    recent: int = 0
    certified: bool = False
    excess: float = 1.0
    arrivals: float = 0.0
    arms: Sequence[Sample] = ()


def opening(document: Experiment) -> Step:
    """The traffic that an experiment starts with, after its shadow stage if it has one."""
    strategy = document.strategy
    match strategy:
        case Fixed():
            return Step(0, strategy.exposure, dict(strategy.weights))
        case Ramp():
            return Step(0, *ramp_share(document, strategy, strategy.steps[0]))
        case Bandit():
            names = [variant.name for variant in document.variants]
            equal = apportioned([1.0] * len(names), 0)
            return Step(0, strategy.exposure, dict(zip(names, equal, strict=True)))
        case _:
            assert_never(strategy)


def ramp_share(document: Experiment, strategy: Ramp, share: int) -> tuple[int, dict[str, int]]:
    """Exposure and weights that give a share of all units, out of 10,000, to the candidate.

    With an equal control the exposure grows and the weights stay, so that nobody who is enrolled
    moves, and the candidate gets at most half. Otherwise all are enrolled and the weights grow.
    """
    control, candidate = (variant.name for variant in document.variants)
    if strategy.control == "equal":
        return min(2 * share, SCALE), {control: HALF, candidate: HALF}
    return SCALE, {control: SCALE - share, candidate: share}


def candidate_share(phase: Phase, candidate: str) -> float:
    """The share of all units that a variant gets in a phase, out of 10,000."""
    return phase.exposure * phase.weights.get(candidate, 0) / SCALE


def is_last(record: ExperimentRecord) -> bool:
    """Whether no listed step is left, so that promotion is what comes next."""
    strategy = record.document.strategy
    return not isinstance(strategy, Ramp) or record.step + 1 >= len(strategy.steps)


def is_ready(record: ExperimentRecord, standing: Standing, now: float) -> bool:
    """Whether everything but certificates is there for the next step or the promotion."""
    strategy, phase = record.document.strategy, record.phase
    if phase is None:
        return False
    match strategy:
        case Fixed():
            return True
        case Ramp():
            candidate = record.document.variants[1].name
            return (
                now - phase.at >= strategy.dwell_s
                and standing.recent > 0
                and standing.units.get(candidate, 0) >= strategy.min_units
                and standing.events >= strategy.min_events
            )
        case Bandit():
            return _has_learnt(strategy, standing, phase, record.document)
        case _:
            assert_never(strategy)


def next_step(record: ExperimentRecord, standing: Standing, now: float) -> Step | None:
    """The one step to take now, or None to stay. It never skips one and never goes back."""
    strategy = record.document.strategy
    if record.phase is None or not is_ready(record, standing, now):
        return None
    match strategy:
        case Fixed():
            return None
        case Ramp():
            return _climb(record, strategy, standing)
        case Bandit():
            return _reweigh(record, strategy, standing, now)
        case _:
            assert_never(strategy)


def skipping(record: ExperimentRecord) -> Step | None:
    """The next listed step whatever the evidence; what a deadline that ships takes."""
    strategy = record.document.strategy
    if not isinstance(strategy, Ramp) or is_last(record):
        return None
    share = strategy.steps[record.step + 1]
    return Step(record.step + 1, *ramp_share(record.document, strategy, share))


def affordable(strategy: Ramp, standing: Standing) -> float:
    """The largest share for the candidate, out of 10,000, that the risk budget allows.

    In the worst case that the evidence leaves, every one of `excess` of the units that arrive
    within one dwell at that share has an event which the control would not have had.
    """
    if strategy.risk_budget is None:
        return 0.0
    loss = standing.excess * standing.arrivals * strategy.dwell_s
    return strategy.risk_budget / loss * SCALE if loss > 0 else inf


def without(weights: Mapping[str, int], gone: Sequence[str], control: str) -> dict[str, int]:
    """Weights after variants are taken out; what they had goes to the control."""
    left = {name: 0 if name in gone else weight for name, weight in weights.items()}
    left[control] = left.get(control, 0) + SCALE - sum(left.values())
    return left


def apportioned(shares: Sequence[float], least: int) -> list[int]:
    """Whole weights that add up to 10,000, each at least `least`, nearest to the shares.

    The floor is `least` + (10,000 - k least) w for k shares w, so that it dilutes all alike;
    largest remainders get what rounding left over, the first of equal ones first.
    """
    total = sum(shares)
    free = SCALE - least * len(shares)
    exact = [least + free * share / total for share in shares]
    whole = [floor(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))
    for index in order[: SCALE - sum(whole)]:
        whole[index] += 1
    return whole


def _climb(record: ExperimentRecord, strategy: Ramp, standing: Standing) -> Step | None:
    """The next listed step if guards are certified, or as much of it as the budget allows."""
    if is_last(record) or record.phase is None:
        return None
    listed = strategy.steps[record.step + 1]
    if standing.certified:
        return skipping(record)
    most = affordable(strategy, standing)
    if most >= listed:
        return skipping(record)
    share = floor(most)
    if share < GROWTH * candidate_share(record.phase, record.document.variants[1].name):
        return None
    return Step(record.step, *ramp_share(record.document, strategy, share))


def _has_learnt(strategy: Bandit, standing: Standing, phase: Phase, document: Experiment) -> bool:
    """Whether each variant that lives has the units to move weights by."""
    return len(standing.arms) == len(document.variants) and all(
        arm.n >= strategy.min_units
        for arm, variant in zip(standing.arms, document.variants, strict=True)
        if phase.weights.get(variant.name, 0)
    )


def _reweigh(
    record: ExperimentRecord, strategy: Bandit, standing: Standing, now: float
) -> Step | None:
    """Weights by the chance of being best, exactly; a variant that was taken out stays out."""
    phase, document = record.phase, record.document
    stays_s = strategy.every_s * SLOWER ** (len(record.phases) - 1)
    if phase is None or now - phase.at < stays_s:
        return None
    names = [variant.name for variant in document.variants]
    alive = [index for index, name in enumerate(names) if phase.weights.get(name, 0)]
    goal = next(metric for metric in document.metrics if metric.role == "goal")
    sign = 1.0 if goal.direction == "increase" else -1.0
    arms = [standing.arms[index] for index in alive]
    errors = [arm.squared_error for arm in arms]
    if not all(error > 0.0 and isfinite(error) for error in errors):
        return None
    chances = normal_weights([sign * arm.mean for arm in arms], [error**0.5 for error in errors])
    weights = dict.fromkeys(names, 0)
    for index, weight in zip(alive, apportioned(chances, max(strategy.floor, 1)), strict=True):
        weights[names[index]] = weight
    moved = sum(max(weight - phase.weights.get(name, 0), 0) for name, weight in weights.items())
    return Step(record.step, strategy.exposure, weights) if moved >= STIR else None
