"""Oracles are confseq's published p-values and GrowthBook's published quantile reading."""

from collections import Counter
from math import inf, log

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stats.means import Sample, difference
from gateway.core.stats.quantiles import (
    Bins,
    Histogram,
    QuantileBand,
    quantile_band,
    quantile_log_e,
    quantile_p,
    quantile_variance,
    ranks,
    sample_quantile_p,
)

BINS = Bins()


def histogram(values: list[float], bins: Bins = BINS) -> Histogram:
    """The values in bins."""
    return Histogram(bins, dict(Counter(bins.index(value) for value in values)))


@pytest.mark.parametrize(
    ("level", "offset", "p"),
    [(0.5, 70, 0.814704), (0.5, 85, 0.0838055), (0.5, 100, 0.0054947), (0.9, 55, 0.0340463)],
)
def test_quantiles_of_two_arms_as_published(level: float, offset: float, p: float) -> None:
    """Arms 1..1000 and the same moved up; most powerful at 100 units."""
    arm = np.arange(1.0, 1001.0)
    assert sample_quantile_p(arm, arm + offset, level, 100) == pytest.approx(p, rel=6e-6)
    assert sample_quantile_p(arm + offset, arm, level, 100) == pytest.approx(p, rel=6e-6)


def test_a_quantile_at_one_look_as_published() -> None:
    """Published: .5365124375579775, interval (.4572559589, .6157689162)."""
    published = [
        (11054, 7.157987489967789, 7.098780136176828, 7.217194843758751),
        (10861, 7.694499927525767, 7.64180598628119, 7.747193868770344),
    ]
    arms = [Sample(n, q, n * quantile_variance(n, 0.9, lo, up)) for n, q, lo, up in published]
    effect = difference(*arms)
    half = 1.959963984540054 * effect.se
    assert effect.effect == pytest.approx(0.5365124375579775, rel=1e-13)
    assert effect.effect - half == pytest.approx(0.4572559589, abs=5e-11)
    assert effect.effect + half == pytest.approx(0.6157689162, abs=5e-11)


def test_ranks_of_the_interval_lie_around_the_quantile() -> None:
    """Ranks n (q -+ z sqrt(q (1 - q) / n)), kept within the sample."""
    assert ranks(1000, 0.9) == (881, 900, 919)
    assert ranks(5, 0.5) == (1, 3, 5)


def test_values_of_the_same_unit_widen_the_interval() -> None:
    """Where whole units repeat their value c times, the variance is c times the independent one."""
    independent = quantile_variance(1000, 0.9, 1.0, 2.0)
    clustered = quantile_variance(1000, 0.9, 1.0, 2.0, clustered=0.09 / (1000 / 4))
    assert clustered == pytest.approx(4 * independent, rel=1e-12)


@given(st.floats(-10, 1e5))
def test_a_value_lies_between_the_edges_of_its_bin(value: float) -> None:
    """Every value has one bin, whose lower edge it reaches and whose upper edge it does not."""
    index = BINS.index(value)
    assert 0 <= index <= BINS.last
    assert BINS.lower(index) <= value < BINS.upper(index)
    if 0 < index < BINS.last:
        assert BINS.upper(index) / BINS.lower(index) <= 1 + 1 / BINS.pieces
        assert BINS.index(BINS.lower(index)) == index


def test_bins_cover_the_line_without_gaps() -> None:
    """Each upper edge is the next lower one, from minus to plus infinity."""
    edges = [BINS.lower(index) for index in range(BINS.last + 1)]
    assert edges == sorted(edges)
    assert [BINS.upper(index) for index in range(BINS.last + 1)] == [*edges[1:], inf]


@pytest.mark.parametrize("bounds", [(3, 3, 8), (0, 4, 0)])
def test_impossible_bins_are_refused(bounds: tuple[int, int, int]) -> None:
    """The upper bound lies above the lower one, and a doubling has at least one piece."""
    with pytest.raises(ValueError, match="Bins need"):
        Bins(*bounds)


@given(st.lists(st.lists(st.floats(0.001, 100), max_size=10), min_size=1, max_size=4))
def test_merged_histograms_are_those_of_all_values(parts: list[list[float]]) -> None:
    """Counts of replicas add up to the counts of one pass, and survive JSON."""
    merged = Histogram(BINS)
    for part in parts:
        merged = merged.merge(histogram(part))
    assert merged == histogram([value for part in parts for value in part])
    assert merged.n == sum(map(len, parts))
    assert msgspec.json.decode(msgspec.json.encode(merged), type=Histogram) == merged


def test_histograms_over_other_bins_do_not_mix() -> None:
    """Bins are fixed per metric: others are refused, not misread."""
    other = Histogram(Bins(pieces=8))
    with pytest.raises(ValueError, match="add up"):
        Histogram(BINS).merge(other)
    with pytest.raises(ValueError, match="compared"):
        quantile_p(Histogram(BINS), other, 0.5, 100)


def test_a_band_holds_the_values_that_are_not_rejected() -> None:
    """Its ends are where the e-value of the count at or below first reaches 1 / alpha."""
    values = [float(number) for number in range(1, 1001)]
    n = len(values)
    band = quantile_band(histogram(values, Bins(0, 10, 1024)), 0.5, 1000)
    kept = [
        k for k in range(n + 1) if float(quantile_log_e(k, n, 0.5, 1000)) < -log(0.05)
    ]  # k values at or below
    assert band.lower == pytest.approx(values[kept[0] - 1], abs=1.0)
    assert band.upper == pytest.approx(values[kept[-1]], abs=1.0)
    assert band.estimate == pytest.approx(500, abs=1.0)


def test_a_band_without_units_is_empty() -> None:
    """Nothing counted, nothing said."""
    assert quantile_band(Histogram(BINS), 0.5, 100) == QuantileBand(None, None, None)
    assert quantile_p(Histogram(BINS), Histogram(BINS), 0.5, 100) == 1.0


def test_an_end_beyond_the_bounds_is_open() -> None:
    """Where too few values lie above, or the bins end, the band has no upper end."""
    few = quantile_band(histogram([1.0, 2.0, 3.0]), 0.99, 100)
    beyond = quantile_band(histogram([1e9] * 1000), 0.5, 100)
    assert few.upper is None
    assert (beyond.lower, beyond.upper) == (1024.0, None)


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=60),
    st.lists(st.floats(0.01, 100), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_bins_are_never_surer_than_the_values(a: list[float], b: list[float], q: float) -> None:
    """The p-value from bins is at least the one from the values, and symmetric in the arms."""
    exact = sample_quantile_p(np.array(a), np.array(b), q, 100)
    binned = quantile_p(histogram(a), histogram(b), q, 100)
    assert binned >= exact * (1 - 1e-9)
    assert quantile_p(histogram(b), histogram(a), q, 100) == pytest.approx(binned, rel=1e-9)


def test_a_slower_arm_is_found_from_bins() -> None:
    """Twenty per cent more latency shows in the median of 1,000 units of each arm."""
    rng = np.random.default_rng(1)
    fast, slow = (rng.lognormal(0, 0.3, 1000) * factor for factor in (1.0, 1.2))
    assert quantile_p(histogram(fast.tolist()), histogram(slow.tolist()), 0.5, 1000) < 0.001


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_looking_all_the_time_rejects_the_true_quantile_within_alpha(level: float) -> None:
    """10,000 rollouts, 200 looks: the true quantile is left out at most 5 per cent of the time."""
    rng = np.random.default_rng(2)
    rejected, below, n = np.zeros(10_000, bool), np.zeros(10_000), 0
    for step in np.diff(np.unique(np.geomspace(1, 20_000, 200).astype(int)), prepend=0):
        n += int(step)
        below += rng.binomial(int(step), level, 10_000)
        rejected |= np.asarray(quantile_log_e(below, n, level, 2_000)) >= log(20)
    assert rejected.mean() <= 0.05
