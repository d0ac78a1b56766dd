"""Oracles are GrowthBook's and Eppo's published ones, and those of the cited papers."""

from math import exp, inf, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stats.means import (
    Estimate,
    Sample,
    Side,
    difference,
    mean_sample,
    proportion_sample,
    relative,
)
from gateway.core.stats.moments import Moments
from gateway.core.stats.sequences import (
    Epoch,
    band,
    inverse_propensity,
    is_settled,
    one_sided_e,
    one_sided_multiplier,
    stratified,
    tuning,
    two_sided_e,
    two_sided_multiplier,
)

CONTROL = mean_sample(Moments.of_sums(3000, 1396.87, 52377.9767))
TREATMENT = mean_sample(Moments.of_sums(3461, 2422.7, 134698.29))


def known(estimate: Estimate | None) -> Estimate:
    """The estimate that there must be."""
    assert estimate is not None
    return estimate


LIFT = known(relative(CONTROL, TREATMENT))
GAIN = difference(CONTROL, TREATMENT)


def test_two_sides_of_means_as_published() -> None:
    """Published: .50336, (-.55844, 1.56516), p 1, tightest at 1,000."""
    reading = band(LIFT, 0.05, 1000)
    assert LIFT.effect == pytest.approx(0.50336, abs=5e-6)
    assert (reading.lower, reading.upper) == pytest.approx((-0.55844, 1.56516), abs=5e-6)
    assert reading.p == 1.0


def test_two_sides_of_proportions_as_published() -> None:
    """Published: .50386, (.40098, .60675), p about zero, tightest at 5,000."""
    arms = (proportion_sample(Moments.of_counts(n, k)) for n, k in ((3000, 1396), (3461, 2422)))
    lift = known(relative(*arms))
    reading = band(lift, 0.05, 5000)
    assert lift.effect == pytest.approx(0.50386, abs=5e-6)
    assert (reading.lower, reading.upper) == pytest.approx((0.40098, 0.60675), abs=5e-6)
    assert reading.p < 1e-12


def test_two_sides_of_a_count_as_published() -> None:
    """Published: -.074074074, p .892332229, lower -.233322085, tightest at 600."""
    control = mean_sample(Moments.of_sums(100, 270, 848.79))
    lift = known(relative(control, mean_sample(Moments.of_sums(120, 300, 869))))
    reading = band(lift, 0.05, 600)
    assert lift.effect == pytest.approx(-0.074074074, abs=5e-10)
    assert reading.p == pytest.approx(0.892332229, abs=5e-10)
    assert reading.lower == pytest.approx(-0.233322085, abs=5e-10)


def test_one_side_as_published() -> None:
    """Published bounds, tightest at 5,000, to all digits."""
    above, below = (band(LIFT, 0.05, 5000, side) for side in (Side.GREATER, Side.LESS))
    assert above.lower == pytest.approx(-0.42356454602790883, rel=1e-12)
    assert below.upper == pytest.approx(1.4302867177403806, rel=1e-12)
    assert (above.upper, below.lower) == (None, None)
    assert band(GAIN, 0.05, 5000, Side.GREATER).lower == pytest.approx(
        -0.12656844172804982, rel=1e-12
    )
    assert band(GAIN, 0.05, 5000, Side.LESS).upper == pytest.approx(0.5953217750613832, rel=1e-12)


def test_one_sided_p_as_published() -> None:
    """Published .46316491943359384 is a bisection that stops within 2e-4; ours is closed."""
    assert band(GAIN, 0.05, 5000, Side.GREATER).p == pytest.approx(0.46316491943359384, abs=2e-4)


@pytest.mark.parametrize(
    ("share", "multiplier"),
    [
        (0.01, 9.084),
        (0.1, 3.855),
        (0.25, 3.264),
        (0.5, 3.084),
        (1, 3.0352),
        (2, 3.061),
        (4, 3.127),
        (10, 3.242),
        (100, 3.562),
    ],
)
def test_the_width_barely_depends_on_the_planned_size(share: float, multiplier: float) -> None:
    """Half-widths in standard errors at n = share of the planned size, alpha .05."""
    assert two_sided_multiplier(share * 10_000, 0.05, 10_000) == pytest.approx(multiplier, abs=8e-4)


def test_the_band_is_another_vendors_boundary_in_other_letters() -> None:
    """B = sqrt((t + r)/t ln((t + r)/(r alpha^2))) with r = 1 / rho^2, at every size."""
    for n in (50, 777, 10_000, 3_000_000):
        r = 1 / tuning(0.05, 10_000)
        boundary = sqrt((n + r) / n * log((n + r) / (r * 0.05**2)))
        assert two_sided_multiplier(n, 0.05, 10_000) == pytest.approx(boundary, rel=1e-12)
    assert two_sided_multiplier(10_000, 0.05, 10_000) == pytest.approx(3.0352, abs=5e-5)


def test_the_mixture_sequential_ratio_test_is_the_same_e_value() -> None:
    """Johari's statistic with tau^2 = rho^2 V: n 5,000, effect .1, V 2, tau^2 .01."""
    n, effect, v, tau2 = 5000, 0.1, 2.0, 0.01
    ratio = sqrt(v / (v + n * tau2)) * exp(n**2 * tau2 * effect**2 / (2 * v * (v + n * tau2)))
    planned = tuning(0.05, 1.0) / (tau2 / v)
    found = two_sided_e(effect / sqrt(v / n), n, 0.05, planned)
    assert ratio == pytest.approx(32538.6047, abs=5e-5)
    assert found == pytest.approx(ratio, rel=1e-12)


@given(
    st.floats(-3, 3),
    st.floats(0.01, 2),
    st.integers(10, 10**7),
    st.floats(10, 1e7),
    st.sampled_from([0.2, 0.05, 0.001]),
)
def test_the_band_leaves_out_exactly_what_the_e_value_rejects(
    effect: float, se: float, n: int, planned: float, alpha: float
) -> None:
    """The e-value reaches 1 / alpha where the null lies on the edge."""
    estimate = Estimate(effect, se, n)
    for side in Side:
        reading = band(estimate, alpha, planned, side)
        for edge, inward in ((reading.lower, 1), (reading.upper, -1)):
            if edge is not None:
                step = 1e-6 * se
                inside = band(estimate, alpha, planned, side, edge + inward * step)
                outside = band(estimate, alpha, planned, side, edge - inward * step)
                assert inside.e_value < 1 / alpha < outside.e_value
                assert outside.p == 1 / outside.e_value


@given(st.floats(0, 5), st.integers(100, 10**6))
def test_one_side_is_easier_than_two(z: float, n: int) -> None:
    """At the same level a one-sided band is the narrower one, and no e-value favours the null."""
    assert one_sided_multiplier(n, 0.05, 5000) < two_sided_multiplier(n, 0.05, 5000)
    assert one_sided_e(-z, n, 0.05, 5000) == 0.0


def test_overwhelming_evidence_stays_a_number() -> None:
    """An e-value is finite, so that JSON can hold it."""
    reading = band(Estimate(1.0, 1e-9, 10**6), 0.05, 5000)
    assert 1e300 < reading.e_value < inf
    assert 0.0 < reading.p < 1e-300


@pytest.mark.parametrize("se", [0.0, inf, float("nan")])
def test_an_unknown_error_is_no_evidence(se: float) -> None:
    """Without a standard error there is no band and the e-value is one."""
    reading = band(Estimate(1.0, se, 10), 0.05, 5000)
    assert (reading.lower, reading.upper, reading.e_value, reading.p) == (None, None, 1.0, 1.0)


def test_a_reading_settles_with_units_and_events_of_every_arm() -> None:
    """The burn-in asks each arm for units and, where events are rare, for events."""
    assert is_settled([100, 5000])
    assert not is_settled([99, 5000])
    assert is_settled([100, 5000], [10, 500])
    assert not is_settled([100, 5000], [9, 500])
    assert is_settled([20, 20], [1, 1], min_units=20, min_events=1)


def test_phases_with_other_weights_do_not_mislead() -> None:
    """Pooled, the arms seem to differ; within each phase they do not."""
    early = (Sample(900, 0.2, 0.16), Sample(100, 0.2, 0.16))
    late = (Sample(500, 0.6, 0.24), Sample(500, 0.6, 0.24))
    pooled = (900 * 0.2 + 500 * 0.6) / 1400, (100 * 0.2 + 500 * 0.6) / 600
    assert pooled[1] - pooled[0] > 0.18
    effect = difference(*stratified([early, late]))
    assert effect.effect == pytest.approx(0.0, abs=1e-15)
    parts = [difference(*phase).se for phase in (early, late)]
    assert effect.se == pytest.approx(sqrt(sum((se / 2) ** 2 for se in parts)), rel=1e-12)
    assert effect.n == 2000


def test_a_phase_counts_once_each_arm_has_a_spread() -> None:
    """A phase in which an arm has one unit is left out, one without events is not."""
    phase = (Sample(100, 0.5, 0.25), Sample(100, 0.6, 0.24))
    begun = (Sample(40, 0.5, 0.25), Sample(1, 1.0, 0.0))
    quiet = (Sample(100, 0.0, 0.0), Sample(100, 0.0, 0.0))
    assert difference(*stratified([phase, begun])) == difference(*stratified([phase]))
    assert difference(*stratified([phase, quiet])).effect == pytest.approx(0.05)
    assert not difference(*stratified([])).is_known


def test_inverse_propensities_agree_with_one_score_per_unit() -> None:
    """From sums per epoch comes what adding up each unit's own pseudo-outcome gives."""
    rng = np.random.default_rng(3)
    epochs, scores, centre = [], [], 2.0
    seen: dict[str, list[float]] = {"a": [], "b": []}
    for shares in ((0.5, 0.3), (0.2, 0.7), (0.05, 0.9)):
        arms = rng.choice(["a", "b", "other"], size=50, p=[*shares, 1 - sum(shares)])
        values = rng.normal(3.0, 1.0, 50) + (arms == "b")
        c_a, c_b = (float(np.mean(seen[arm])) if seen[arm] else centre for arm in "ab")
        for arm, value in zip(arms, values, strict=True):
            score = c_b - c_a
            score += (value - c_b) / shares[1] if arm == "b" else 0.0
            score -= (value - c_a) / shares[0] if arm == "a" else 0.0
            scores.append(score)
        of = {arm: values[arms == arm].tolist() for arm in "ab"}
        epochs.append(Epoch(50, Moments.of(of["a"]), Moments.of(of["b"], 1.0), *shares))
        for arm in "ab":
            seen[arm] += of[arm]
    estimate = inverse_propensity([*epochs, Epoch(0, Moments(), Moments(), 1.0, 1.0)], centre)
    assert estimate.n == 150
    assert estimate.effect == pytest.approx(np.mean(scores), rel=1e-12)
    assert estimate.se >= np.std(scores, ddof=1) / sqrt(150) * (1 - 1e-12)


def test_units_that_weigh_heavily_are_expected_before_they_are_seen() -> None:
    """An arm that got too few units to show its spread has the spread of its earlier ones."""
    even = Epoch(200, Moments.of_counts(100, 10), Moments.of_counts(100, 10), 0.5, 0.5)
    lean = Epoch(200, Moments.of_counts(190, 19), Moments.of_counts(10, 0), 0.95, 0.05)
    alike = 0.09 * (100 / 99) / np.array([0.95, 0.05])
    estimate = inverse_propensity([even, lean], 0.1)
    assert estimate.se**2 * 400 == pytest.approx((alike.sum() + 0.36) / 2, rel=0.1)


def test_an_epoch_in_which_an_arm_had_no_chance_is_left_out() -> None:
    """What a killed arm would have got cannot be told from the others' outcomes."""
    even = Epoch(200, Moments.of_counts(100, 10), Moments.of_counts(100, 20), 0.5, 0.5)
    killed = Epoch(200, Moments.of_counts(200, 100), Moments(), 1.0, 0.0)
    assert inverse_propensity([even, killed], 0.1) == inverse_propensity([even], 0.1)


def test_no_epoch_gives_no_estimate() -> None:
    """Before any unit there is nothing to read."""
    assert not inverse_propensity([]).is_known
