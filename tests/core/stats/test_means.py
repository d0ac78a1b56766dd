"""Oracles are GrowthBook's published ones (growthbook: packages/stats/tests)."""

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stats.means import (
    Estimate,
    Sample,
    Side,
    adjusted_difference,
    adjusted_relative,
    adjustment,
    difference,
    fixed,
    mean_sample,
    paired,
    proportion_sample,
    ratio_sample,
    relative,
)
from gateway.core.stats.moments import Comoments, Moments

CONTROL = mean_sample(Moments.of_sums(3407, 1396.87, 52377.9767))
TREATMENT = mean_sample(Moments.of_sums(3461, 2422.7, 134698.29))
SMALLER = mean_sample(Moments.of_sums(3000, 1396.87, 52377.9767))


def sums(n: int, y: tuple[float, float], x: tuple[float, float], products: float) -> Comoments:
    """Pairs from raw (sum, sum of squares) of y and x and the sum of products."""
    return Comoments(Moments.of_sums(n, *y), Moments.of_sums(n, *x), (products, 0.0))


def known(estimate: Estimate | None) -> Estimate:
    """The estimate that there must be."""
    assert estimate is not None
    return estimate


def test_the_relative_effect_of_means_is_the_delta_methods() -> None:
    """Published: .70732, se .37879, interval (-.03526, 1.44989), p .06191."""
    lift = known(relative(CONTROL, TREATMENT))
    reading = fixed(lift)
    assert (lift.effect, lift.se) == pytest.approx((0.70732, 0.37879), abs=5e-6)
    assert (reading.lower, reading.upper) == pytest.approx((-0.03526, 1.44989), abs=5e-6)
    assert reading.p == pytest.approx(0.06191, abs=5e-6)


def test_the_absolute_effect_of_means_is_welchs() -> None:
    """Published: .29, interval (.04538, .53462), p .02016."""
    effect = difference(CONTROL, TREATMENT)
    reading = fixed(effect)
    assert effect.effect == pytest.approx(0.29, abs=1e-12)
    assert (reading.lower, reading.upper) == pytest.approx((0.04538, 0.53462), abs=5e-6)
    assert reading.p == pytest.approx(0.02016, abs=5e-6)


def test_proportions_have_their_own_variance() -> None:
    """Published: 14 of 28 against 16 of 30 is .06667, (-.47767, .61101), p .80707."""
    arms = (proportion_sample(Moments.of_counts(n, k)) for n, k in ((28, 14), (30, 16)))
    lift = known(relative(*arms))
    reading = fixed(lift)
    assert lift.effect == pytest.approx(0.06667, abs=5e-6)
    assert (reading.lower, reading.upper) == pytest.approx((-0.47767, 0.61101), abs=5e-6)
    assert reading.p == pytest.approx(0.80707, abs=5e-6)


def test_a_count_metric_has_the_published_p() -> None:
    """Published: p .145219005."""
    control = mean_sample(Moments.of_sums(100, 270, 848.79))
    treatment = mean_sample(Moments.of_sums(120, 300, 869))
    assert fixed(known(relative(control, treatment))).p == pytest.approx(0.145219005, abs=5e-10)


def test_adjustment_by_a_covariate_has_the_published_lift() -> None:
    """Published: lift -.281707154, p .003732549."""
    zero = sums(3001, (300, 600), (210, 415), -20)
    one = sums(3000, (222, 555), (120, 405), -10)
    lift = known(adjusted_relative(zero, one))
    assert lift.effect == pytest.approx(-0.281707154, abs=5e-10)
    assert fixed(lift).p == pytest.approx(0.003732549, abs=5e-10)


@pytest.mark.parametrize(
    ("side", "is_relative", "lower", "upper", "p"),
    [
        (Side.GREATER, True, -0.045136675850396046, None, 0.06558262868467746),
        (Side.GREATER, False, 0.020791480063255735, None, 0.03554272489873023),
        (Side.LESS, True, None, 1.0518588475628676, 0.9344173713153225),
        (Side.LESS, False, None, 0.44796185327007765, 0.9644572751012698),
    ],
)
def test_one_side_is_read_as_published(
    side: Side, is_relative: bool, lower: float | None, upper: float | None, p: float
) -> None:
    """The published one-sided readings, to all digits."""
    effect = relative(SMALLER, TREATMENT) if is_relative else difference(SMALLER, TREATMENT)
    reading = fixed(known(effect), side=side)
    assert reading.lower == (lower and pytest.approx(lower, rel=1e-11))
    assert reading.upper == (upper and pytest.approx(upper, rel=1e-11))
    assert reading.p == pytest.approx(p, rel=1e-11)


def test_a_ratio_has_the_variance_of_its_linear_part() -> None:
    """The delta variance is the plain variance of (y - r x) / mean x."""
    rng = np.random.default_rng(1)
    x = rng.gamma(3.0, 2.0, 500)
    y = 0.3 * x + rng.normal(size=500)
    ratio = ratio_sample(Comoments.of(zip(y.tolist(), x.tolist(), strict=True)))
    linear = (y - y.sum() / x.sum() * x) / x.mean()
    assert ratio.mean == pytest.approx(y.sum() / x.sum(), rel=1e-12)
    assert ratio.variance == pytest.approx(linear.var(ddof=1), rel=1e-10)


def test_a_ratio_without_denominator_is_not_known() -> None:
    """Denominators that sum to zero give no reading, rather than a division."""
    nothing = ratio_sample(sums(10, (3.0, 4.0), (0.0, 0.0), 0.0))
    reading = fixed(difference(nothing, TREATMENT))
    assert (reading.p, reading.lower, reading.upper) == (1.0, None, None)


def test_adjustment_removes_what_the_covariate_explains() -> None:
    """With a covariate of correlation .9 the variance falls to 1 - .81 of what it was."""
    rng = np.random.default_rng(2)
    arms = []
    for _ in range(2):
        x = rng.normal(size=4000)
        y = 0.9 * x + sqrt(1 - 0.81) * rng.normal(size=4000)
        arms.append(Comoments.of(zip(y.tolist(), x.tolist(), strict=True)))
    plain = difference(mean_sample(arms[0].y), mean_sample(arms[1].y))
    adjusted = adjusted_difference(arms[0], arms[1])
    assert adjusted.se**2 == pytest.approx(0.19 * plain.se**2, rel=0.05)
    assert adjustment(arms[0], arms[1]) == pytest.approx(0.9, abs=0.02)


def test_a_constant_covariate_changes_nothing() -> None:
    """Without spread in x, theta is zero and the reading is the unadjusted one."""
    arms = [Comoments.of([(y, 7.0) for y in values]) for values in ([1.0, 2.0], [2.0, 5.0])]
    plain = difference(mean_sample(arms[0].y), mean_sample(arms[1].y))
    assert adjusted_difference(arms[0], arms[1]) == plain
    assert known(adjusted_relative(arms[0], arms[1])).effect == pytest.approx(2.0 / 1.5)


def test_no_share_of_a_mean_of_zero() -> None:
    """There is no relative effect where the control's mean is zero."""
    zero = Sample(10, 0.0, 1.0)
    assert relative(zero, TREATMENT) is None
    assert relative(Sample(10, 1e-320, 1.0), TREATMENT) is None
    assert adjusted_relative(sums(5, (0.0, 1.0), (1.0, 1.0), 0.0), Comoments()) is None


@pytest.mark.parametrize("few", [Moments(), Moments.of([3.0])])
def test_an_arm_of_one_unit_says_nothing(few: Moments) -> None:
    """An arm without a spread of its own gives p one and no interval."""
    effect = difference(mean_sample(few), TREATMENT)
    assert effect.se == inf
    assert fixed(effect).p == 1.0
    share = known(relative(TREATMENT, mean_sample(few)))
    assert share.se == inf
    assert fixed(share).lower is None


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=20),
    st.lists(st.floats(-100, 100), min_size=2, max_size=20),
    st.floats(0.1, 10),
    st.floats(-50, 50),
)
def test_the_reading_does_not_depend_on_the_unit(
    a: list[float], b: list[float], factor: float, offset: float
) -> None:
    """Scaling and moving all values scales the absolute effect and leaves its p."""
    plain = difference(mean_sample(Moments.of(a)), mean_sample(Moments.of(b)))
    moved = difference(
        mean_sample(Moments.of([factor * y + offset for y in a])),
        mean_sample(Moments.of([factor * y + offset for y in b])),
    )
    if plain.is_known and plain.se > 1e-6:
        assert moved.effect == pytest.approx(factor * plain.effect, abs=1e-9)
        assert fixed(moved).p == pytest.approx(fixed(plain).p, abs=1e-6)


@given(st.integers(2, 500), st.integers(2, 500), st.data())
def test_swapping_the_arms_turns_the_sign(n: int, m: int, data: st.DataObject) -> None:
    """Control and treatment exchanged give the opposite absolute effect and the same p."""
    a = proportion_sample(Moments.of_counts(n, data.draw(st.integers(0, n))))
    b = proportion_sample(Moments.of_counts(m, data.draw(st.integers(0, m))))
    there, back = difference(a, b), difference(b, a)
    assert there.effect == -back.effect
    assert fixed(there).p == pytest.approx(fixed(back).p, abs=1e-12)


def test_units_with_both_arms_are_read_by_their_differences() -> None:
    """A shadow's differences: mean, its error, and n - 1 degrees of freedom."""
    effect = paired(Moments.of([0.5, -0.5, 1.0, 0.0]))
    assert (effect.effect, effect.n, effect.dof) == (0.25, 4, 3.0)
    assert effect.se == pytest.approx(sqrt(1.25 / 3 / 4))
    assert not paired(Moments.of([1.0])).is_known
