import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.assignment import SplitState, reweigh
from gateway.core.experiments import Bandit, Fixed, Phase, Ramp
from gateway.core.stats.means import Sample
from gateway.core.strategies import (
    Standing,
    Step,
    affordable,
    apportioned,
    candidate_share,
    is_last,
    is_ready,
    next_step,
    opening,
    ramp_share,
    without,
)
from tests.studies import SALES, experiment, running

RAMP = Ramp((500, 1_000, 5_000), dwell_s=60, min_units=100)
READY = Standing({"a": 200, "b": 200}, recent=400, certified=True)


def test_a_fixed_split_opens_with_its_weights_and_takes_no_step() -> None:
    """Its weights stay, whatever is seen."""
    document = experiment(Fixed({"a": 9_000, "b": 1_000}, exposure=4_000))

    assert opening(document) == Step(0, 4_000, {"a": 9_000, "b": 1_000})
    assert next_step(running(document), READY, 1e6) is None


def test_a_ramp_with_an_equal_control_enrols_twice_the_step_and_keeps_its_weights() -> None:
    """As many units are its control."""
    document = experiment(RAMP)

    steps = [ramp_share(document, RAMP, share) for share in RAMP.steps]

    assert steps == [(2 * share, {"a": 5_000, "b": 5_000}) for share in RAMP.steps]


def test_no_enrolled_unit_moves_in_a_ramp_with_an_equal_control() -> None:
    """Only the exposure grows; the intervals stay."""
    document = experiment(RAMP)
    split = SplitState.fresh(salt="s", hash_version=1, weights=opening(document).weights)

    for share in RAMP.steps:
        exposure, weights = ramp_share(document, RAMP, share)
        assert reweigh(split, weights) == split
        assert exposure >= 2 * RAMP.steps[0]


def test_an_equal_control_never_leaves_the_candidate_more_than_half() -> None:
    """More would have to be taken from the control."""
    assert ramp_share(experiment(RAMP), RAMP, 8_000) == (10_000, {"a": 5_000, "b": 5_000})


def test_with_the_remaining_traffic_as_control_all_are_enrolled() -> None:
    """The weights are the step."""
    ramp = Ramp((500, 1_000), control="remaining")

    assert opening(experiment(ramp)) == Step(0, 10_000, {"a": 9_500, "b": 500})


def test_a_certified_ramp_takes_the_next_listed_step() -> None:
    """Time, units and certificates are there."""
    step = next_step(running(experiment(RAMP)), READY, 60.0)

    assert step == Step(1, 2_000, {"a": 5_000, "b": 5_000})


@pytest.mark.parametrize(
    ("standing", "now"),
    [
        (READY, 59.9),
        (Standing({"a": 200, "b": 99}, recent=299, certified=True), 60.0),
        (Standing({"a": 200, "b": 200}, recent=0, certified=True), 60.0),
        (Standing({"a": 200, "b": 200}, recent=400), 60.0),
    ],
    ids=["dwell", "units", "nobody came in this phase", "not certified"],
)
def test_a_ramp_waits_for_its(standing: Standing, now: float) -> None:
    """Any one that is missing is enough to stay."""
    assert next_step(running(experiment(RAMP)), standing, now) is None


def test_a_ramp_waits_for_its_events() -> None:
    """Those of all variants and guards count."""
    ramp = Ramp((500, 1_000), min_events=5)
    few = Standing({"a": 200, "b": 200}, events=4, recent=400, certified=True)
    enough = Standing({"a": 200, "b": 200}, events=5, recent=400, certified=True)

    assert not is_ready(running(experiment(ramp)), few, 60.0)
    assert is_ready(running(experiment(ramp)), enough, 60.0)


def test_the_last_step_has_no_next() -> None:
    """What comes then is promotion, which is not the strategy's."""
    record = running(experiment(RAMP), step=2)

    assert is_last(record)
    assert next_step(record, READY, 1e6) is None


def test_the_dwell_is_counted_from_the_start_of_the_phase() -> None:
    """A hold in between does not start it anew."""
    record = running(experiment(RAMP), Phase(2, 500.0, 2_000, {"a": 5_000, "b": 5_000}), step=1)

    assert next_step(record, READY, 559.0) is None
    assert next_step(record, READY, 560.0) == Step(2, 10_000, {"a": 5_000, "b": 5_000})


def test_a_risk_budget_takes_the_whole_step_if_the_worst_case_fits() -> None:
    """Six units may be lost where ten are allowed."""
    ramp = Ramp((500, 1_000), dwell_s=60, risk_budget=10.0)
    # 100 units a second, 60 s, a tenth of them, one in a hundred hit: 6 units.
    standing = Standing({"a": 200, "b": 200}, recent=400, excess=0.01, arrivals=100.0)

    assert next_step(running(experiment(ramp)), standing, 60.0) == Step(
        1, 2_000, {"a": 5_000, "b": 5_000}
    )


def test_a_risk_budget_sizes_the_step_if_the_worst_case_does_not_fit() -> None:
    """The largest share whose worst case is five units."""
    ramp = Ramp((500, 2_000), dwell_s=60, risk_budget=5.0)
    standing = Standing({"a": 200, "b": 200}, recent=400, excess=0.01, arrivals=100.0)

    step = next_step(running(experiment(ramp)), standing, 60.0)

    assert affordable(ramp, standing) == pytest.approx(833.3, abs=0.1)
    assert step == Step(0, 1_666, {"a": 5_000, "b": 5_000})


def test_a_step_that_the_budget_makes_tiny_is_not_taken() -> None:
    """No new phase for what is already there."""
    ramp = Ramp((500, 2_000), dwell_s=60, risk_budget=3.0)
    standing = Standing({"a": 200, "b": 200}, recent=400, excess=0.01, arrivals=100.0)

    assert next_step(running(experiment(ramp)), standing, 60.0) is None


def test_after_a_partial_step_the_listed_one_comes_next() -> None:
    """It stands between two steps, not on the second."""
    ramp = Ramp((500, 2_000), dwell_s=60, risk_budget=5.0)
    record = running(experiment(ramp), Phase(2, 60.0, 1_666, {"a": 5_000, "b": 5_000}))

    assert candidate_share(record.phases[-1], "b") == 833.0
    assert next_step(record, READY, 120.0) == Step(1, 4_000, {"a": 5_000, "b": 5_000})


BANDIT = Bandit(floor=500, every_s=900, min_units=100)
SPLIT = experiment(BANDIT, metrics=(SALES,), names="abc")
ARMS = [Sample(1_000, mean, 0.09) for mean in (0.10, 0.12, 0.11)]


def test_a_bandit_opens_with_equal_weights() -> None:
    """The first of equals gets what rounding leaves."""
    assert opening(SPLIT).weights == {"a": 3_334, "b": 3_333, "c": 3_333}


def test_a_bandit_weighs_by_the_chance_of_being_best_over_its_floor() -> None:
    """The chances are those of the reference."""
    # Chances .04715, .72875 and .22410 of means .10, .12 and .11 with errors of .01.
    arms = [Sample(1_000, mean, 0.1) for mean in (0.10, 0.12, 0.11)]

    step = next_step(running(SPLIT), Standing({}, arms=arms), 900.0)

    assert step is not None
    expected = [500 + 8_500 * chance for chance in (0.04715, 0.72875, 0.22410)]
    assert list(step.weights.values()) == pytest.approx(expected, abs=1.0)
    assert sum(step.weights.values()) == 10_000


def test_a_bandit_leaves_alone_what_is_nearly_right() -> None:
    """Each change of weights is a phase, which every later look has to read."""
    record = running(experiment(BANDIT, metrics=(SALES,), names="abc"))
    step = next_step(record, Standing({}, arms=ARMS), 900.0)
    assert step is not None
    near = {"a": step.weights["a"] + 60, "b": step.weights["b"] - 60, "c": step.weights["c"]}
    far = {"a": step.weights["a"] + 160, "b": step.weights["b"] - 160, "c": step.weights["c"]}

    settled, off = (
        running(experiment(BANDIT, metrics=(SALES,), names="abc"), Phase(2, 0.0, 10_000, weights))
        for weights in (near, far)
    )

    assert next_step(settled, Standing({}, arms=ARMS), 1e6) is None
    assert next_step(off, Standing({}, arms=ARMS), 1e6) == step


def test_a_bandit_takes_its_time_once_it_has_moved_often() -> None:
    """Two per cent longer each time: a hundred phases later seven times as long."""
    later = (Phase(n, 0.0, 10_000, {"a": 4_000, "b": 3_000, "c": 3_000}) for n in range(2, 102))
    record = running(experiment(BANDIT, metrics=(SALES,), names="abc"), *later)

    assert next_step(record, Standing({}, arms=ARMS), 7.2 * 900) is None
    assert next_step(record, Standing({}, arms=ARMS), 7.3 * 900) is not None


def test_a_bandit_turns_to_the_least_where_less_is_better() -> None:
    """The smallest mean gets the largest weight."""
    goal = SALES.__class__("loss", "loss", direction="decrease")
    record = running(experiment(BANDIT, metrics=(goal,), names="abc"))

    step = next_step(record, Standing({}, arms=ARMS), 900.0)

    assert step is not None
    assert max(step.weights, key=step.weights.__getitem__) == "a"


@pytest.mark.parametrize(
    ("arms", "now"),
    [
        (ARMS, 899.0),
        ([*ARMS[:2], Sample(99, 0.1, 0.09)], 900.0),
        ([], 900.0),
        ([*ARMS[:2], Sample(1_000, 0.0, 0.0)], 900.0),
    ],
    ids=["its time", "units of each arm", "outcomes", "a spread"],
)
def test_a_bandit_waits_for(arms: list[Sample], now: float) -> None:
    """Without any of these the weights stay."""
    assert next_step(running(SPLIT), Standing({}, arms=arms), now) is None


def test_a_bandit_leaves_out_what_was_taken_out() -> None:
    """Its weight stays zero, floor or not."""
    record = running(SPLIT, Phase(2, 100.0, 10_000, {"a": 6_667, "b": 3_333, "c": 0}))

    step = next_step(record, Standing({}, arms=ARMS), 1_100.0)

    assert step is not None
    assert step.weights["c"] == 0
    assert sum(step.weights.values()) == 10_000


def test_what_a_variant_had_goes_to_the_control() -> None:
    """Nobody else moves."""
    weights = without({"a": 4_000, "b": 3_000, "c": 3_000}, ["b"], "a")

    assert weights == {"a": 7_000, "b": 0, "c": 3_000}


@given(
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=10).filter(lambda shares: sum(shares) > 0),
    st.integers(0, 1_000),
)
def test_weights_are_whole_add_up_and_respect_the_floor(shares: list[float], least: int) -> None:
    """Whatever the chances are."""
    weights = apportioned(shares, least)

    assert sum(weights) == 10_000
    assert min(weights) >= least
