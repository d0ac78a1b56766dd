"""Off-policy answers over an experiment's units."""

import numpy as np
import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.whatif import LoggedUnit, Policy, PolicyRule, WhatIf, evaluate

VARIANTS = ("control", "treatment")
EVEN = {"control": 0.5, "treatment": 0.5}


def value(answer: WhatIf, name: str) -> float:
    """The estimate of that name."""
    return next(one.value for one in answer.values if one.name == name)


def logged(seed: int, count: int, share: float = 0.5) -> list[LoggedUnit]:
    """Units whose chance of success is .2 under control; .5 under treatment in `new`, else .1."""
    draws = np.random.default_rng(seed)
    units = []
    for index in range(count):
        segment = "new" if draws.random() < 0.4 else "old"
        is_treated = draws.random() < share
        chance = (0.5 if segment == "new" else 0.1) if is_treated else 0.2
        units.append(
            LoggedUnit(
                variant="treatment" if is_treated else "control",
                propensities={"control": 1 - share, "treatment": share},
                reward=float(draws.random() < chance),
                segment=segment,
                fold=index,
            )
        )
    return units


def test_the_policy_that_was_served_earns_what_was_earned() -> None:
    """Weights of one leave the mean as it is, whichever way it is estimated."""
    answer = evaluate(Policy(EVEN), logged(1, 500), VARIANTS)
    assert value(answer, "ips") == pytest.approx(answer.logged.value)
    assert value(answer, "snips") == pytest.approx(answer.logged.value)
    assert answer.support.effective_n == pytest.approx(500)
    assert answer.warnings == ()


def test_a_targeted_policy_is_worth_what_it_would_earn() -> None:
    """Treatment for the new only earns .4 x .5 + .6 x .2 = .32; every estimator comes near."""
    policy = Policy({"control": 1.0}, (PolicyRule(("new",), {"treatment": 1.0}),))
    answer = evaluate(policy, logged(2, 20_000), VARIANTS, bounds=(0.0, 1.0))
    for one in answer.values:
        assert one.value == pytest.approx(0.32, abs=0.02), one.name
    (ips, robust) = (one for one in answer.values if one.holds_always)
    for one in (ips, robust):
        assert one.lower is not None
        assert one.upper is not None
        assert one.lower < 0.32 < one.upper


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300 logs with shares of .3, at most alpha of the sequences leave out the truth."""
    policy = Policy({"control": 0.3, "treatment": 0.7})
    truth = 0.3 * 0.2 + 0.7 * (0.4 * 0.5 + 0.6 * 0.1)
    missed = {"ips": 0, "doubly_robust": 0}
    for seed in range(300):
        answer = evaluate(policy, logged(seed, 400, 0.3), VARIANTS, bounds=(0.0, 1.0))
        for one in answer.values:
            if one.holds_always and one.lower is not None and one.upper is not None:
                missed[one.name] += not one.lower <= truth <= one.upper
    assert missed["ips"] <= 300 * 0.05
    assert missed["doubly_robust"] <= 300 * 0.05


def test_a_variant_that_was_never_possible_cannot_be_judged() -> None:
    """Deterministic routing supports nothing but itself, and the answer says so."""
    units = [LoggedUnit("control", {"control": 1.0}, 1.0, fold=index) for index in range(100)]
    answer = evaluate(Policy(EVEN), units, VARIANTS)
    assert answer.support.unsupported == pytest.approx(0.5)
    assert "cannot be judged" in answer.warnings[0]


def test_units_without_an_outcome_are_left_out_and_told() -> None:
    """Silence is no reward of zero."""
    units = [*logged(3, 200), *(LoggedUnit("control", EVEN, None) for _ in range(50))]
    answer = evaluate(Policy(EVEN), units, VARIANTS)
    assert (answer.units, answer.silent) == (200, 50)
    assert any("50 units have no outcome" in warning for warning in answer.warnings)


def test_a_far_policy_is_warned_of() -> None:
    """Where few units carry the estimate, the effective sample is small."""
    units = logged(4, 2_000, 0.02)
    answer = evaluate(Policy({"treatment": 1.0}), units, VARIANTS)
    assert answer.support.effective_n < 200
    assert any("weigh like" in warning for warning in answer.warnings)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Policy({"other": 1.0}), "names variant 'other'"),
        (Policy({"control": 0.5}), "add up to 0.5"),
        (Policy({"control": 2.0, "treatment": -1.0}), "is not 0 to 1"),
        (Policy(EVEN, (PolicyRule(("new",), {"control": float("nan")}),)), "is not 0 to 1"),
        (Policy(EVEN, (PolicyRule((), EVEN),) * 101), "101 rules"),
    ],
)
def test_what_is_no_policy_is_refused(policy: Policy, told: str) -> None:
    """Each with a sentence that names the fault."""
    with pytest.raises(InvalidRequest, match=told):
        evaluate(policy, logged(5, 10), VARIANTS)


def test_without_outcomes_there_is_nothing_to_judge_by() -> None:
    """No data is never an answer."""
    with pytest.raises(InvalidRequest, match="No unit has a matured outcome"):
        evaluate(Policy(EVEN), [LoggedUnit("control", EVEN, None)], VARIANTS)
