from math import exp, inf, lgamma, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from gateway.core.stats.evalues import p_value, threshold
from gateway.core.stats.margins import Phase, log_e_differs_over_phases
from gateway.core.stats.multinomial import (
    CONCENTRATIONS,
    chi_square,
    chi_square_over_phases,
    log_e,
    log_e_each,
    log_e_over_phases,
    log_e_paired,
    log_marginal,
    log_ratio_bounds,
)

counts = st.lists(st.integers(0, 100_000), min_size=3, max_size=3)
weights = st.lists(st.integers(1, 10_000), min_size=3, max_size=3)
phases = st.lists(st.tuples(counts, weights), min_size=1, max_size=5)

HALVES = (0.5, 0.5)


def test_evidence_has_the_published_value() -> None:
    """Of `ssrm`: the e-value of ten units over three arms at k = 10,000, and its p over time."""
    stream = np.eye(3)[[2, 2, 2, 2, 0, 2, 2, 0, 1, 2]].cumsum(axis=0)
    logs = [log_e(seen.tolist(), [0.1, 0.5, 0.4], [10_000]) for seen in stream]
    assert stream[-1].tolist() == [2, 1, 7]
    assert exp(logs[-1]) == pytest.approx(1.0017496120131435, rel=1e-11)
    assert min(map(p_value, logs)) == pytest.approx(0.9980534145723241, rel=1e-11)


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ((1, 0, 0), -1.0986),
        ((1, 1, 0), -2.4849),
        ((2, 1, 0), -3.4012),
        ((2, 2, 0), -4.4998),
        ((2, 2, 1), -6.44572),
    ],
)
def test_a_stream_has_the_published_probability(drawn: tuple[int, ...], expected: float) -> None:
    """Of `ssrm`: the arms A, B, A, B, C one by one, under a flat prior."""
    assert log_marginal(drawn, (1, 1, 1)) == pytest.approx(expected, abs=6e-5)


def test_batches_have_the_published_probabilities() -> None:
    """Of `ssrm`: four batches under a flat prior and under the null of (.4, .4, .2)."""
    batches = np.array([[20, 17, 9], [18, 21, 8], [4, 6, 4], [18, 19, 11]])
    orders = [lgamma(b.sum() + 1) - float(special.gammaln(b + 1).sum()) for b in batches]
    flat = [-7.028201432, -11.947847738, -15.471401950, -19.964845211]
    null = [-4.077640647, -8.265946861, -11.610743520, -15.781031229]
    for batch in range(len(batches)):
        seen, order = batches[: batch + 1].sum(axis=0), sum(orders[: batch + 1])
        assert log_marginal(seen, (1, 1, 1)) + order == pytest.approx(flat[batch], abs=1e-9)
        under_null = float((seen * np.log([0.4, 0.4, 0.2])).sum())
        assert under_null + order == pytest.approx(null[batch], abs=1e-9)


@pytest.mark.parametrize(
    ("drawn", "concentrations", "p"),
    [
        ((5100, 4900), (10_000.0,), 0.52),
        ((5100, 4900), (1000.0,), 0.54),
        ((5100, 4900), CONCENTRATIONS, 0.85),
        ((5200, 4800), (10_000.0,), 0.0259),
        ((5200, 4800), (1000.0,), 0.0023),
        ((5200, 4800), CONCENTRATIONS, 0.0048),
        ((5300, 4700), (10_000.0,), 1.7e-4),
        ((5300, 4700), (1000.0,), 2.6e-7),
        ((5300, 4700), CONCENTRATIONS, 3.5e-7),
        ((50_500, 49_500), CONCENTRATIONS, 0.082),
        ((51_000, 49_000), CONCENTRATIONS, 4.8e-8),
    ],
)
def test_mixing_strengths_has_its_known_values(
    drawn: tuple[int, int], concentrations: tuple[float, ...], p: float
) -> None:
    """p-values of two arms of equal share, to two digits."""
    assert p_value(log_e(drawn, HALVES, concentrations)) == pytest.approx(p, rel=0.03)


@pytest.mark.parametrize(
    ("drawn", "p"),
    [
        ((5100, 4900), 0.0455),
        ((5200, 4800), 6.3e-5),
        ((5300, 4700), 2.0e-9),
        ((50_500, 49_500), 0.0016),
        ((51_000, 49_000), 2.5e-10),
    ],
)
def test_the_fixed_test_has_its_known_values(drawn: tuple[int, int], p: float) -> None:
    """Pearson's p-values of the same counts."""
    assert chi_square(drawn, HALVES).p_value == pytest.approx(p, rel=0.03)


@pytest.mark.parametrize(
    ("treated", "control", "share", "p"),
    [(10, 90, 0.1, 1.0), (20, 90, 0.1, 0.2497), (30, 90, 0.1, 0.00223), (80, 40, 0.5, 0.0377)],
)
def test_two_arms_have_their_known_values(
    treated: int, control: int, share: float, p: float
) -> None:
    """Two-sided p-values of events of two arms, at k = 100."""
    found = p_value(log_e((treated, control), (share, 1 - share), [100.0]))
    assert found == pytest.approx(p, abs=5e-5)


def test_rate_bounds_have_their_known_values() -> None:
    """The log rate ratio of 30 events against 90, at a share of .1."""
    assert log_ratio_bounds(30, 90, 0.1, 0.05) == pytest.approx((0.183, 1.894), abs=5e-4)


@given(treated=st.integers(0, 10**6), control=st.integers(0, 10**6), share=st.floats(0.01, 0.99))
def test_rate_bounds_hold_zero_exactly_while_nothing_is_proven(
    treated: int, control: int, share: float
) -> None:
    """The bounds and the test of equal rates are one statement."""
    lower, upper = log_ratio_bounds(treated, control, share, 0.05)
    proven = log_e((treated, control), (share, 1 - share), [100.0]) - threshold(0.05)
    if abs(proven) > 1e-6:
        assert (lower <= 0 <= upper) == (proven < 0)


def test_rate_bounds_are_open_where_there_are_no_events() -> None:
    """A side without events is unbounded."""
    assert log_ratio_bounds(0, 0, 0.1, 0.05) == (-inf, inf)
    lower, upper = log_ratio_bounds(0, 300, 0.1, 0.05)
    assert (lower, upper < 0) == (-inf, True)
    lower, upper = log_ratio_bounds(90, 0, 0.1, 0.05)
    assert (lower > 0, upper) == (True, inf)


def test_without_units_there_is_no_evidence() -> None:
    """An e-value starts at 1, and a fixed test without units has nothing to say."""
    assert log_e((0, 0), HALVES) == pytest.approx(0.0, abs=1e-12)
    assert log_e_over_phases([]) == 0.0
    assert log_e_over_phases([((0, 0), HALVES)]) == pytest.approx(0.0, abs=1e-12)
    assert chi_square((0, 0), HALVES) == (0.0, 0, 1.0)
    assert chi_square((7,), (1.0,)).p_value == 1.0


def test_an_arm_that_should_get_nothing_may_get_nothing() -> None:
    """An arm of share 0 changes nothing while it is empty, and is proof when it is not."""
    three = [((60, 40, 0), (0.5, 0.5, 0.0)), ((80, 5, 10), (0.8, 0.1, 0.1))]
    two = ((60, 40), HALVES)
    assert log_e(*three[0]) == pytest.approx(log_e(*two))
    assert log_e((60, 40, 1), (0.5, 0.5, 0.0)) == inf
    assert np.isfinite(log_e_over_phases(three))
    assert log_e_over_phases([*three, ((5, 5, 1), (0.5, 0.5, 0.0))]) == inf
    assert chi_square(*three[0]) == chi_square(*two)
    assert chi_square((60, 40, 1), (0.5, 0.5, 0.0)).p_value == 0.0


@given(drawn=counts, shares=weights, scale=st.floats(1e-4, 10))
def test_shares_are_relative(drawn: list[int], shares: list[int], scale: float) -> None:
    """Weights out of 10,000, or the shares of some of all arms, do as well."""
    scaled = [share * scale for share in shares]
    assert log_e(drawn, scaled) == pytest.approx(log_e(drawn, shares), rel=1e-9, abs=1e-6)


@given(phases=phases)
def test_the_order_of_arms_and_phases_does_not_matter(
    phases: list[tuple[list[int], list[int]]],
) -> None:
    """Arms have no rank, and a later phase is worth no more than an early one."""
    turned = [(drawn[::-1], shares[::-1]) for drawn, shares in reversed(phases)]
    expected = log_e_over_phases(phases)
    assert log_e_over_phases(turned) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(phases=phases, extra=counts)
def test_phases_of_equal_shares_are_one(
    phases: list[tuple[list[int], list[int]]], extra: list[int]
) -> None:
    """A phase may be cut in two, or come back later, and nothing changes."""
    (drawn, shares), *rest = phases
    joined = [([a + b for a, b in zip(drawn, extra, strict=True)], shares), *rest]
    apart = [(drawn, shares), *rest, (extra, shares)]
    expected = log_e_over_phases(joined)
    assert log_e_over_phases(apart) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_phases_are_weighed_as_written() -> None:
    """The mean of a product over phases per strength, and of a lasting lean of one arm."""
    drawn = [((30, 70), (0.2, 0.8)), ((55, 45), HALVES)]
    products = [exp(sum(log_e(n, share, [k]) for n, share in drawn)) for k in CONCENTRATIONS]
    lean = exp(log_e_differs_over_phases([Phase(30, 70, 0.2), Phase(55, 45, 0.5)]))
    expected = (sum(products) / 4 + lean) / 2
    assert log_e_over_phases(drawn) == pytest.approx(log(expected), rel=1e-9)


def test_arrays_give_what_single_runs_give() -> None:
    """One formula for both."""
    shares = np.array([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8], [0.2, 0.3, 0.5]])
    runs = np.random.default_rng(1).integers(0, 50, (4, 3, 3))
    alone = [log_e_over_phases(list(zip(run, shares, strict=True))) for run in runs]
    assert log_e_each(runs, shares) == pytest.approx(np.array(alone))


def test_weights_of_strengths_may_be_chosen() -> None:
    """All the weight on one strength is that strength alone."""
    mixed = log_e((60, 40), HALVES, (10.0, 100.0), (1e-300, 1.0))
    assert mixed == pytest.approx(log_e((60, 40), HALVES, (100.0,)))


def test_paired_models_that_win_equally_often_do_not_differ() -> None:
    """And 30 against 6 do, at once."""
    assert p_value(log_e_paired(30, 30)) == 1.0
    assert p_value(log_e_paired(30, 6)) < 0.01
    assert log_e_paired(30, 6) == pytest.approx(log_e_paired(6, 30))


@given(drawn=st.lists(st.integers(1, 1000), min_size=3, max_size=3), shares=weights)
def test_the_fixed_test_is_pearsons(drawn: list[int], shares: list[int]) -> None:
    """As an independent library computes it."""
    expected = stats.chisquare(drawn, sum(drawn) * np.array(shares) / sum(shares))
    found = chi_square(drawn, shares)
    assert found.df == 2
    assert found.statistic == pytest.approx(float(expected.statistic))
    assert found.p_value == pytest.approx(float(expected.pvalue), abs=1e-12)


def test_fixed_tests_of_phases_add_up() -> None:
    """Statistics and degrees of freedom, where phases without units count nothing."""
    one, two = ((60, 40), HALVES), ((15, 85), (0.1, 0.9))
    both = chi_square_over_phases([one, ((0, 0), HALVES), two])
    assert both.df == 2
    expected = chi_square(*one).statistic + chi_square(*two).statistic
    assert both.statistic == pytest.approx(expected)
    assert both.p_value == pytest.approx(float(stats.chi2.sf(both.statistic, 2)))


RAMP = np.array([[0.95, 0.05], [0.9, 0.1], [0.75, 0.25], [0.5, 0.5]])
BATCHES = 12


def ramped(lean: float, runs: int) -> list[NDArray[np.int64]]:
    """Counts (runs, phases so far, arms) after each batch of 200 units of a ramp.

    `lean` multiplies the odds of the second arm.
    """
    random = np.random.default_rng(42)
    drawn = np.zeros((runs, len(RAMP), 2), dtype=np.int64)
    looks = []
    for phase, (first, second) in enumerate(RAMP):
        share = second * lean / (first + second * lean)
        for _ in range(BATCHES):
            units = random.binomial(200, share, runs)
            drawn[:, phase] += np.stack([200 - units, units], axis=-1)
            looks.append(drawn[:, : phase + 1].copy())
    return looks


def crossed(looks: list[NDArray[np.int64]], alpha: float) -> float:
    """The share of runs that were ever called mismatched."""
    ever = np.zeros(len(looks[0]), dtype=np.bool_)
    for drawn in looks:
        ever |= log_e_each(drawn, RAMP[: drawn.shape[1]]) >= threshold(alpha)
    return float(ever.mean())


@pytest.mark.slow
def test_changing_weights_keep_the_size_of_the_test() -> None:
    """Of 10,000 ramps with a look after each batch at most alpha are called mismatched.

    The fixed test within phases keeps its size at the last look. The naive one, of pooled counts
    against the weights of the day, is wrong nearly always.
    """
    looks = ramped(1.0, 10_000)
    assert crossed(looks, 0.05) <= 0.05

    last = looks[-1]
    expected = last.sum(axis=-1, keepdims=True) * RAMP
    summed = special.chdtrc(len(RAMP), ((last - expected) ** 2 / expected).sum(axis=(1, 2)))
    assert 0.04 < float((summed < 0.05).mean()) < 0.06
    pooled = last.sum(axis=1)
    naive = pooled.sum(axis=-1, keepdims=True) * RAMP[-1]
    p = special.chdtrc(1, ((pooled - naive) ** 2 / naive).sum(axis=1))
    assert float((p < 0.05).mean()) > 0.99


@pytest.mark.slow
def test_a_mismatch_over_changing_weights_is_found() -> None:
    """An arm with odds a fifth too high is found in nearly all ramps, at alpha .001."""
    assert crossed(ramped(1.2, 1_000), 0.001) > 0.95


def banded(lean: float, runs: int) -> NDArray[np.float64]:
    """The largest log e of runs of a bandit: 80 phases of 200 units, a share drawn for each."""
    random = np.random.default_rng(8)
    shares = random.uniform(0.1, 0.9, 80)
    odds = shares * lean
    drawn = random.binomial(200, odds / (1 - shares + odds), (runs, 80))
    both = np.stack([drawn, 200 - drawn], axis=-1)
    arms = np.stack([shares, 1 - shares], axis=-1)
    looks = [log_e_each(both[:, :seen], arms[:seen]) for seen in range(8, 81, 8)]
    highest: NDArray[np.float64] = np.stack(looks).max(axis=0)
    return highest


@pytest.mark.slow
def test_a_bandit_keeps_size_and_power() -> None:
    """With new weights every 200 units there is no false alarm more, and a mismatch is found."""
    assert (banded(1.0, 5_000) >= threshold(0.05)).mean() <= 0.05
    assert (banded(1.15, 500) >= threshold(0.001)).mean() > 0.95
