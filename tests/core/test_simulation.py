import numpy as np
import pytest
from msgspec.structs import replace

from gateway.core.drawing import Scenario, Truth, Value
from gateway.core.experiments import Experiment, Fixed, Guard, Metric, Ramp, State
from gateway.core.simulation import Rollout, Summary, rate, rollout, rollouts, summary
from tests.studies import EVEN, SALES, experiment

RAMP = Ramp((500, 1_000, 2_500, 5_000), dwell_s=300, min_units=200)
MANY = 10_000


def truth(errors: float = 0.002, sales: float = 0.3, **fields: float) -> Truth:
    """Of units of which so many have an error, and so many buy."""
    return Truth(events={"errors": errors}, metrics={"sales": Value(sales)}, **fields)


def world(candidate: Truth | None = None, control: Truth | None = None, **fields: int) -> Scenario:
    """A control and a candidate that is like it unless said otherwise."""
    return Scenario(
        {"a": control or truth(), "b": candidate or truth()}, **{"units": 1_000, **fields}
    )


def simulated(document: Experiment, scenario: Scenario, count: int, seed: int = 1) -> Summary:
    """So many rollouts, always the same ones."""
    return summary(rollouts(document, scenario, count, np.random.default_rng(seed)))


def test_the_same_seed_gives_the_same_rollouts() -> None:
    """Chance comes from the generator alone."""
    document = experiment(RAMP, metrics=(SALES,))

    assert simulated(document, world(), 5) == simulated(document, world(), 5)
    assert simulated(document, world(), 5) != simulated(document, world(), 5, seed=2)


def test_a_rollout_tells_how_it_ended() -> None:
    """A candidate that breaks every tenth request is gone after the first look."""
    broken = world(truth(errors=0.1))

    ended = rollout(experiment(RAMP), broken, np.random.default_rng(1))

    assert isinstance(ended, Rollout)
    assert (ended.state, ended.reason) == (State.ROLLED_BACK, "harm")
    assert ended.seconds <= 180.0
    assert ended.winner is None
    assert 0 < ended.treated < ended.units


def test_a_treatment_that_is_taken_out_counts_as_harmed() -> None:
    """The rollout goes on with the others, so how it ends does not tell."""
    document = experiment(Fixed({"a": 4_000, "b": 3_000, "c": 3_000}), names="abc")
    scenario = Scenario(dict.fromkeys("abc", truth()) | {"c": truth(errors=0.2)}, ticks=3)

    told = simulated(document, scenario, 5)

    assert told.harmed.count == 5
    assert told.rolled_back.count == 0


def test_every_kind_of_metric_can_be_simulated() -> None:
    """Without an effect none of them does harm, and their means are where they were put."""
    metrics = (
        SALES,
        Metric("basket", "basket", margin=1.0, silence="default"),
        Metric("rate", "hits", kind="ratio", denominator="views", margin=0.1),
        Metric("score", "score", margin=0.1, covariate="output"),
        Metric("delay", "delay", kind="quantile", quantile=0.9, margin=1.0, direction="decrease"),
    )
    values = {
        "sales": Value(0.3),
        "basket": Value(5.0, 2.0),
        "rate": Value(0.5, 0.2),
        "score": Value(1.0, 1.0, correlation=0.8),
        "delay": Value(50.0, 5.0),
    }
    same = Truth(metrics=values, outcomes=0.9)
    scenario = Scenario({"a": same, "b": same}, units=4_000, ticks=12, delay=2)

    ended = rollout(experiment(metrics=metrics), scenario, np.random.default_rng(3))

    assert ended.state is State.PROMOTED
    assert ended.claimed == ()


def test_outcomes_come_with_their_delay() -> None:
    """What decides on outcomes cannot decide before there are any."""
    document = experiment(guards=(), metrics=(SALES,))
    soon, late = world(units=20_000, ticks=20), world(units=20_000, ticks=20, delay=5)

    first = rollout(document, soon, np.random.default_rng(1))
    second = rollout(document, late, np.random.default_rng(1))

    assert first.state is second.state is State.PROMOTED
    assert second.seconds == first.seconds + 300.0


def test_a_split_that_is_broken_in_truth_is_held() -> None:
    """A variant that gets 15 per cent too few units is not compared."""
    skewed = world(truth(assigned=0.85), units=5_000, ticks=20)

    told = simulated(experiment(metrics=(replace(SALES, margin=0.001),)), skewed, 20)

    assert told.held["srm"].count == 20
    assert told.undecided.count == 20


@pytest.mark.parametrize(
    ("count", "of", "lower", "upper"),
    [(0, 10, 0.0, 0.30850), (5, 10, 0.18709, 0.81291), (10, 10, 0.69150, 1.0)],
)
def test_rates_have_exact_intervals(count: int, of: int, lower: float, upper: float) -> None:
    """The published intervals of Clopper and Pearson."""
    found = rate(count, of)

    assert (found.lower, found.upper) == pytest.approx((lower, upper), abs=1e-5)


def test_without_rollouts_there_is_no_summary() -> None:
    """A rate of nothing is not a number."""
    with pytest.raises(ValueError, match="Without rollouts"):
        summary([])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_an_effect_false_alarms_stay_within_alpha_where_a_naive_test_does_not() -> None:
    """A/A, a look at every tick: no false rollback nor claim beyond 5 per cent of rollouts."""
    document = experiment(EVEN, metrics=(SALES,), promote="never")

    told = simulated(document, world(units=2_000, ticks=12), MANY)

    assert told.rolled_back.rate <= 0.05
    assert told.claimed.rate <= 0.05
    assert told.naive.rate > 3 * 0.05


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_at_the_margin_of_a_goal_false_promotion_stays_within_beta() -> None:
    """The candidate sells exactly as much less as is not allowed."""
    document = experiment(EVEN, guards=(), metrics=(SALES,))

    told = simulated(document, world(truth(sales=0.27), units=2_000, ticks=8), MANY)

    assert told.promoted.rate <= 0.05
    assert told.rolled_back.rate <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_at_the_margin_of_a_guard_false_promotion_stays_within_beta() -> None:
    """A rate that is `allowed` times the control's is not certified, nor is it harm."""
    guard = Guard("errors", "error", tolerance=1.25, allowed=1.25)
    scenario = world(truth(errors=0.025), truth(errors=0.02), units=2_000, ticks=8)

    told = simulated(experiment(EVEN, guards=(guard,)), scenario, MANY)

    assert told.promoted.rate <= 0.05
    assert told.rolled_back.rate <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_at_the_negligible_rate_false_promotion_stays_within_beta() -> None:
    """A rate that just matters is not certified as negligible."""
    guard = Guard("errors", "error", tolerance=100.0, allowed=1.01, negligible=0.01)
    scenario = world(truth(errors=0.01), truth(errors=0.001), units=2_000, ticks=8)

    told = simulated(experiment(EVEN, guards=(guard,)), scenario, 2_000)

    assert told.promoted.rate <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("control", "units"), [("remaining", 200), ("equal", 700)])
def test_five_times_the_errors_are_rolled_back_soon(control: str, units: int) -> None:
    """One per cent of errors, a canary of 5 per cent, a risk of 5 per cent, a look at each unit."""
    ramp = Ramp((500, 5_000), control=control, dwell_s=1e6)  # type: ignore[arg-type]
    document = experiment(ramp, guards=(Guard("errors", "error", alpha=0.05),))
    scenario = world(truth(errors=0.05), truth(errors=0.01), units=40, ticks=1_200, tick_s=1)

    told = simulated(document, scenario, 60)

    assert told.rolled_back.rate == 1.0
    assert told.treated is not None
    assert told.treated.p50 <= units


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_check_of_the_split_keeps_its_size_while_weights_change() -> None:
    """A ramp whose control is all the rest: a hold is as rare as it was asked for."""
    ramp = replace(RAMP, control="remaining", dwell_s=60)
    document = experiment(ramp, srm_alpha=0.05, promote="never")

    told = simulated(document, world(ticks=10), 2_000)

    assert told.held["srm"].rate <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_ramp_without_an_effect_is_promoted_in_reasonable_time() -> None:
    """Errors that happen to nobody do not block: they are negligible."""
    document = experiment(RAMP, metrics=(SALES,))

    told = simulated(document, world(truth(errors=0.0), truth(errors=0.0), ticks=60), 100)

    assert told.promoted.rate > 0.9
    assert told.rolled_back.rate <= 0.05
    assert told.seconds is not None
    assert told.seconds.p50 <= 3_000.0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_of_three_variants_without_an_effect_false_alarms_stay_within_alpha() -> None:
    """The risks are shared by treatments and metrics, whatever they are."""
    goal = Metric("basket", "basket", margin=0.2)
    split = Fixed({"a": 4_000, "b": 3_000, "c": 3_000})
    document = experiment(split, metrics=(SALES, goal), names="abc", promote="never")
    same = Truth(events={"errors": 0.01}, metrics={"sales": Value(0.3), "basket": Value(5.0, 2.0)})
    scenario = Scenario(dict.fromkeys("abc", same), units=2_000, ticks=8)

    told = simulated(document, scenario, 1_000)

    assert told.rolled_back.rate <= 0.05
    assert told.claimed.rate <= 0.05
