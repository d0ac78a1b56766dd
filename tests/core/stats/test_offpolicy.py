"""Oracles are those of the tests of VowpalWabbit/estimators, and worked examples."""

from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.core.stats.offpolicy import (
    binomial_interval,
    clipped,
    direct,
    doubly_robust,
    ips,
    normal_interval,
    shrunk,
    snips,
    support,
    switched,
    value_sequence,
    weights,
)

Floats = NDArray[np.float64]

CHOSEN = np.array([0, 1, 1, 0])
POLICY = np.tile([0.3, 0.7], (4, 1))
MODEL = np.tile([0.2, 0.5], (4, 1))
REWARDS = np.array([0.0, 1.0, 0.0, 1.0])
W = weights(np.full(4, 0.5), POLICY[np.arange(4), CHOSEN])


def alternating(n: int) -> tuple[Floats, Floats]:
    """Two arms in turn at .5, rewards 1 and 0, wanted at .2 and .8: a value of .2."""
    first = np.arange(n) % 2 == 0
    w = weights(np.full(n, 0.5), np.where(first, 0.2, 0.8))
    return w, first.astype(np.float64)


def test_one_prediction_as_published() -> None:
    """Propensity .3, reward 1, wanted at .6: IPS 2 and SNIPS 1."""
    w = weights(np.array([0.3]), np.array([0.6]))
    assert ips(w, np.ones(1)).effect == pytest.approx(2.0)
    assert snips(w, np.ones(1)).effect == pytest.approx(1.0)


def test_a_thousand_predictions_as_published() -> None:
    """IPS .2 with its normal, binomial and always-valid intervals."""
    w, rewards = alternating(1000)
    estimate = ips(w, rewards)
    assert estimate.effect == pytest.approx(0.2, abs=1e-12)
    assert normal_interval(estimate) == pytest.approx((0.187598, 0.212402), abs=5e-7)
    assert binomial_interval(w, rewards) == pytest.approx((0.169319, 0.233546), abs=5e-7)
    assert value_sequence(w, rewards) == pytest.approx((0.175724, 0.296355), abs=5e-7)


def test_four_predictions_by_hand() -> None:
    """IPS 1.22375, SNIPS .657047, effective sample size 2.3387."""
    w = weights(np.array([0.8, 0.25, 0.5, 0.2]), np.array([0.6, 0.4, 0.3, 0.9]))
    rewards = np.array([0.1, 0.2, 0.0, 1.0])
    assert ips(w, rewards).effect == pytest.approx(1.22375, abs=1e-12)
    assert snips(w, rewards).effect == pytest.approx(0.657047, abs=5e-7)
    told = support(w)
    assert told.effective_n == pytest.approx(2.3387, abs=5e-5)
    assert told.n == 4
    assert (told.largest, told.mean_weight) == pytest.approx((4.5, 1.8625))


def test_a_model_and_weights_by_hand() -> None:
    """DR .5 with error .31522, DM .41, IPS .5."""
    robust = doubly_robust(W, REWARDS, CHOSEN, POLICY, MODEL)
    assert (robust.effect, robust.se) == pytest.approx((0.5, 0.31522), abs=5e-6)
    assert direct(POLICY, MODEL).effect == pytest.approx(0.41)
    assert ips(W, REWARDS).effect == pytest.approx(0.5)


def test_weights_above_the_switch_leave_it_to_the_model() -> None:
    """With a switch below every weight the estimate is the direct one."""
    nothing = doubly_robust(switched(W, 0.1), REWARDS, CHOSEN, POLICY, MODEL)
    everything = doubly_robust(switched(W, 10.0), REWARDS, CHOSEN, POLICY, MODEL)
    assert nothing.effect == pytest.approx(direct(POLICY, MODEL).effect)
    assert everything == doubly_robust(W, REWARDS, CHOSEN, POLICY, MODEL)


def test_large_weights_can_be_tamed() -> None:
    """Clipping cuts, shrinking bends; both leave small weights nearly alone."""
    w = np.array([0.1, 1.0, 50.0])
    assert clipped(w, 5.0).tolist() == [0.1, 1.0, 5.0]
    assert shrunk(w, 100.0) == pytest.approx([0.09999, 0.990099, 1.923077], abs=5e-7)


def test_arms_that_the_log_could_not_choose_are_told() -> None:
    """A deterministic log says nothing of what a policy would do elsewhere."""
    possible = np.tile([1.0, 0.0], (4, 1))
    assert support(np.ones(4), POLICY, possible).unsupported == pytest.approx(0.7)
    assert support(W, POLICY, np.full((4, 2), 0.5)).unsupported == 0.0


def test_nothing_logged_is_nothing_known() -> None:
    """Without predictions, or with weights of zero, no error is known and the band is full."""
    none = np.empty(0)
    assert (ips(none, none).effect, ips(none, none).se) == (0.0, inf)
    assert snips(np.zeros(3), np.ones(3)).se == inf
    assert value_sequence(none, none) == (0.0, 1.0)
    assert binomial_interval(none, none) == (0.0, 1.0)
    assert support(none).effective_n == 0.0


@pytest.mark.parametrize(("logged", "target"), [(0.0, 0.5), (1.1, 0.5), (0.5, -0.1), (0.5, 1.1)])
def test_impossible_propensities_are_refused(logged: float, target: float) -> None:
    """A propensity of zero cannot have been logged."""
    with pytest.raises(ValueError, match="Propensities"):
        weights(np.array([logged]), np.array([target]))


def test_rewards_of_another_range_scale_the_sequence() -> None:
    """Rewards from -5 to 15 give the same sequence on their scale."""
    w, rewards = alternating(500)
    low, high = value_sequence(w, rewards)
    found = value_sequence(w, 20 * rewards - 5, bounds=(-5.0, 15.0))
    assert found == pytest.approx((20 * low - 5, 20 * high - 5), abs=1e-6)


def test_weights_that_do_not_average_one_cannot_leave_the_bounds() -> None:
    """Rewards of one at twice their weight: the value is at most the highest reward."""
    assert value_sequence(np.full(500, 2.0), np.ones(500)) == (1.0, 1.0)


@pytest.mark.slow
def test_the_sequence_holds_the_value_at_every_look() -> None:
    """Weights up to 18 and 300 logs with 15 looks each: missed at most 5 per cent of the time."""
    rng = np.random.default_rng(1)
    missed = naive = 0
    for _ in range(300):
        chosen = rng.random(1500) < 0.05
        rewards = (rng.random(1500) < np.where(chosen, 0.4, 0.2)).astype(np.float64)
        w = np.where(chosen, 0.9 / 0.05, 0.1 / 0.95)
        looks = [slice(0, n) for n in range(100, 1501, 100)]
        ends = [value_sequence(w[look], rewards[look]) for look in looks]
        missed += any(not low <= 0.38 <= high for low, high in ends)
        ends = [normal_interval(ips(w[look], rewards[look])) for look in looks]
        naive += any(not low <= 0.38 <= high for low, high in ends)
    assert missed <= 0.05 * 300
    assert naive > 0.2 * 300
