"""What if: what another policy would have earned, from what an experiment logged.

A policy says with which weights units get each variant, for all units or by what is known of them.
It is judged from units that were randomised with known propensities: those whose variant the policy
likes more count for more. Where the log could not have chosen a variant that the policy would, it
says nothing, and this says so.

A unit counts once, with its one value, so that the estimates hold where a unit asked many times.
The model of the reward that the doubly robust estimate leans on is the mean by variant and segment,
taken from one half of the units and used for the other. Formulas: `gateway.core.stats.offpolicy`.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.stats import offpolicy, sequences
from gateway.core.stats.means import Estimate
from gateway.core.stats.offpolicy import Floats, Support

MAX_RULES: Final = 100
TOTAL: Final = 1.0
TOLERANCE: Final = 1e-6
FEW: Final = 0.1
"""An effective sample below this share of the units is warned of."""
ODD: Final = 0.1
"""So is a mean weight further from one than this."""


class PolicyRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Weights for units of some segments; the first rule that names a unit's segment decides."""

    segments: tuple[str, ...]
    weights: dict[str, float]


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """Weights of each variant, adding up to one; `rules` come before them."""

    weights: dict[str, float]
    rules: tuple[PolicyRule, ...] = ()


class LoggedUnit(Struct, frozen=True):
    """One unit as it was enrolled.

    `propensities` are those of every variant that it could have got; `reward` is None where its
    outcome is not known. `fold` is any number that does not depend on the outcome; its lowest bit
    says in which half the unit is.
    """

    variant: str
    propensities: Mapping[str, float]
    reward: float | None
    segment: str = ""
    fold: int = 0


class PolicyValue(Struct, frozen=True):
    """One estimate: value, standard error, and an interval at the level that was asked for.

    `holds_always` says that the interval may be looked at at any time, and as often as one likes;
    the others are for one look.
    """

    name: str
    value: float
    se: float | None
    lower: float | None
    upper: float | None
    holds_always: bool = False


class WhatIf(Struct, frozen=True):
    """The answer.

    Attributes:
        logged: Mean reward of the units as they were served.
        values: Under the policy, by each estimator.
        support: How far the log supports it.
        units: Units with a reward; those without are in `silent`.
        warnings: Sentences. With any, take the values as a hint at most.
    """

    logged: PolicyValue
    values: tuple[PolicyValue, ...]
    support: Support
    units: int
    silent: int
    warnings: tuple[str, ...]


def check_policy(policy: Policy, variants: Sequence[str]) -> None:
    """Refuse a policy that is none over these variants.

    Raises:
        InvalidRequest: with a sentence that says where.
    """
    if len(policy.rules) > MAX_RULES:
        message = f"The policy has {len(policy.rules)} rules; at most {MAX_RULES} are allowed."
        raise InvalidRequest(message)
    for weights in (policy.weights, *(rule.weights for rule in policy.rules)):
        for name, weight in weights.items():
            if name not in variants:
                known = ", ".join(variants)
                message = f"The policy names variant '{excerpt(name)}'; there are {known}."
                raise InvalidRequest(message)
            if not (isfinite(weight) and 0 <= weight <= TOTAL):
                message = f"The policy's weight of '{name}' is not 0 to 1."
                raise InvalidRequest(message)
        if abs(sum(weights.values()) - TOTAL) > TOLERANCE:
            message = f"The policy's weights add up to {sum(weights.values()):g}; they must to 1."
            raise InvalidRequest(message)


def evaluate(
    policy: Policy,
    logged: Sequence[LoggedUnit],
    variants: Sequence[str],
    *,
    alpha: float = 0.05,
    bounds: tuple[float, float] | None = None,
) -> WhatIf:
    """What the policy would have earned.

    Args:
        policy: the weights in question.
        logged: units in the order of their enrolment.
        variants: every variant of the experiment.
        alpha: intervals leave out the truth with this chance.
        bounds: lowest and highest reward that there can be; with them the interval of `ips`
            holds at any look and for any sample.

    Raises:
        InvalidRequest: the policy is none over these variants, or no unit has a reward.
    """
    check_policy(policy, variants)
    known = [unit for unit in logged if unit.reward is not None]
    if not known:
        message = "No unit has a matured outcome yet, so there is nothing to judge a policy by."
        raise InvalidRequest(message)
    table = _Table(policy, known, variants)
    values = _values(table, alpha, bounds)
    support = offpolicy.support(table.weights, table.policy, table.possible)
    rewards = table.rewards
    return WhatIf(
        logged=_value("logged", _mean(rewards), alpha),
        values=values,
        support=support,
        units=len(known),
        silent=len(logged) - len(known),
        warnings=tuple(_warnings(support, len(logged) - len(known))),
    )


class _Table:
    """The log as arrays: one row a unit, one column a variant."""

    def __init__(
        self, policy: Policy, known: Sequence[LoggedUnit], variants: Sequence[str]
    ) -> None:
        place = {name: column for column, name in enumerate(variants)}
        self.rewards = np.array([unit.reward for unit in known], np.float64)
        self.chosen = np.array([place[unit.variant] for unit in known], np.intp)
        self.possible = np.array(
            [[unit.propensities.get(name, 0.0) for name in variants] for unit in known], np.float64
        )
        by_segment = {
            segment: [_weights_for(policy, segment).get(name, 0.0) for name in variants]
            for segment in {unit.segment for unit in known}
        }
        self.policy = np.array([by_segment[unit.segment] for unit in known], np.float64)
        rows = np.arange(len(known))
        self.weights = offpolicy.weights(
            self.possible[rows, self.chosen], self.policy[rows, self.chosen]
        )
        self.model = _model(self, known, len(variants))


def _weights_for(policy: Policy, segment: str) -> Mapping[str, float]:
    rules = (rule.weights for rule in policy.rules if segment in rule.segments)
    return next(rules, policy.weights)


def _model(table: _Table, known: Sequence[LoggedUnit], columns: int) -> Floats:
    """The expected reward of every unit under every variant, learned from the other half."""
    half = np.array([unit.fold & 1 for unit in known], np.intp)
    names = sorted({unit.segment for unit in known})
    place = {name: row for row, name in enumerate(names)}
    segment = np.array([place[unit.segment] for unit in known], np.intp)
    model = np.empty((len(known), columns))
    for fold in (0, 1):
        others = half != fold
        means = _means(table, others, segment, (len(names), columns))
        model[~others] = means[segment[~others]]
    return model


def _means(
    table: _Table, among: NDArray[np.bool_], segment: NDArray[np.intp], shape: tuple[int, int]
) -> Floats:
    """Mean rewards by segment and variant; where nobody is, those of the variant, or of all."""
    rewards, chosen, part = table.rewards[among], table.chosen[among], segment[among]
    overall = float(rewards.mean()) if len(rewards) else 0.0
    counts, sums = np.zeros(shape), np.zeros(shape)
    np.add.at(counts, (part, chosen), 1.0)
    np.add.at(sums, (part, chosen), rewards)
    of_variant = np.full(shape[1], overall)
    seen = counts.sum(axis=0) > 0
    of_variant[seen] = sums.sum(axis=0)[seen] / counts.sum(axis=0)[seen]
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), of_variant)


def _values(
    table: _Table, alpha: float, bounds: tuple[float, float] | None
) -> tuple[PolicyValue, ...]:
    weights, rewards = table.weights, table.rewards
    ips = _value("ips", offpolicy.ips(weights, rewards), alpha)
    if bounds is not None:
        lower, upper = offpolicy.value_sequence(weights, rewards, alpha, bounds)
        ips = PolicyValue("ips", ips.value, ips.se, lower, upper, holds_always=True)
    robust = offpolicy.doubly_robust(weights, rewards, table.chosen, table.policy, table.model)
    band = sequences.band(robust, alpha, max(robust.n, 1))
    settled = sequences.is_settled([robust.n])
    return (
        ips,
        _value("snips", offpolicy.snips(weights, rewards), alpha),
        _value("direct", offpolicy.direct(table.policy, table.model), alpha, is_blind=True),
        PolicyValue(
            "doubly_robust",
            robust.effect,
            robust.se if robust.is_known else None,
            band.lower,
            band.upper,
            holds_always=settled,
        ),
    )


def _value(name: str, estimate: Estimate, alpha: float, *, is_blind: bool = False) -> PolicyValue:
    """An estimate with its interval for one look; a blind one does not know its own error."""
    if is_blind or not estimate.is_known:
        return PolicyValue(name, estimate.effect, None, None, None)
    lower, upper = offpolicy.normal_interval(estimate, alpha)
    return PolicyValue(name, estimate.effect, estimate.se, lower, upper)


def _mean(rewards: Floats) -> Estimate:
    return offpolicy.ips(np.ones(len(rewards)), rewards)


def _warnings(support: Support, silent: int) -> list[str]:
    warnings = []
    if support.unsupported > 0:
        warnings.append(
            f"{support.unsupported:.1%} of what the policy would do was never tried where it would "
            "do it; that part cannot be judged from this log."
        )
    if support.effective_n < FEW * support.n:
        warnings.append(
            f"{support.n} units weigh like {support.effective_n:.0f}: the policy is far from what "
            "was served."
        )
    if abs(support.mean_weight - 1) > ODD:
        warnings.append(
            f"The weights are {support.mean_weight:.2f} in the mean and should be 1: chance, or "
            "propensities that are not those with which the units were drawn."
        )
    if silent:
        warnings.append(
            f"{silent} units have no outcome; if that depends on the variant, so does the answer."
        )
    return warnings
