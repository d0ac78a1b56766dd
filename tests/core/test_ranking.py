import numpy as np
import pytest

from gateway.core.arms import Pair
from gateway.core.experiments import Metric
from gateway.core.measuring import Levels
from gateway.core.ranking import read_quantile
from gateway.core.readings import Reading, Verdict
from gateway.core.tallies import MetricTally, bin_of
from tests.studies import cell

LEVELS = Levels(harm=0.05, safe=0.05, claim=0.05)
DELAY = Metric("delay", "delay", kind="quantile", quantile=0.9, direction="decrease", margin=2.0)


def timed(n: int, mean: float, seed: int) -> MetricTally:
    """Units whose delays are normal with a deviation of ten."""
    counts: dict[int, int] = {}
    for value in np.random.default_rng(seed).normal(mean, 10.0, n).tolist():
        counts[bin_of(value)] = counts.get(bin_of(value), 0) + 1
    return MetricTally(n, histogram=counts)


def pair(old: MetricTally, new: MetricTally, share: float = 0.5) -> Pair:
    """One stratum."""
    return Pair(share, (cell(0, 1, delay=old),), (cell(1, 1, delay=new),))


def read(*pairs: Pair) -> Reading:
    """What the quantile says."""
    return read_quantile(DELAY, "b", pairs, LEVELS)


def test_a_quantile_is_known_to_its_bin_and_lies_in_its_interval() -> None:
    """The ninetieth percentile of two equal distributions, 112.8."""
    reading = read(pair(timed(20_000, 100.0, 1), timed(20_000, 100.0, 2)))

    assert reading.control == pytest.approx(112.8, rel=0.01)
    assert reading.interval is not None
    lower, upper = reading.interval
    assert lower is not None
    assert upper is not None
    assert lower < 0.0 < upper
    assert reading.verdict is Verdict.EQUIVALENT


def test_a_slower_tail_is_harm_and_a_faster_one_is_safe() -> None:
    """Ten more or less, where two may be lost."""
    slow = read(pair(timed(20_000, 100.0, 1), timed(20_000, 110.0, 2)))
    fast = read(pair(timed(20_000, 100.0, 1), timed(20_000, 90.0, 2)))

    assert (slow.verdict, slow.is_harm, slow.is_safe) == (Verdict.WORSE, True, False)
    assert (fast.verdict, fast.is_harm, fast.is_safe) == (Verdict.BETTER, False, True)


def test_few_units_say_nothing_of_a_tail() -> None:
    """Nine in the tenth that lies above."""
    assert not read(pair(timed(90, 100.0, 1), timed(5_000, 200.0, 2))).settled
    assert not read().settled


def test_strata_are_weighted_alike_in_both_arms() -> None:
    """The second phase is slower for both, and mostly the variant's."""
    one = pair(timed(9_000, 100.0, 1), timed(1_000, 100.0, 2), share=0.1)
    two = pair(timed(1_000, 150.0, 3), timed(9_000, 150.0, 4), share=0.9)

    reading = read(one, two)

    assert reading.estimate == pytest.approx(0.0, abs=2.5)
    assert not reading.is_harm
