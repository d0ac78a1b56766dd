from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from gateway.core.stats.bayes import Prior
from gateway.core.stats.means import Estimate, Side, mean_sample, relative
from gateway.core.stats.moments import Moments
from gateway.core.stats.planning import (
    event_units_left,
    posterior_power_after,
    power_after,
    required_sequential_units,
    required_units,
    scale_for,
    units_left,
)
from gateway.core.stats.sequences import band


def published() -> Estimate:
    """500 units of each arm, sums 500 and 525, squares 1,500 and 1,551.25; relative."""
    arms = (Moments.of_sums(500, 500, 1500), Moments.of_sums(500, 525, 1551.25))
    lift = relative(*map(mean_sample, arms))
    assert lift is not None
    return lift


def power(reading: str, scale: float) -> float:
    """Power to find 5 per cent after (1 + scale) times the published units."""
    if reading == "posterior":
        return posterior_power_after(published(), 0.05, scale, Prior(0.05, 0.001))
    planned = 5000 if reading == "sequential" else inf
    return power_after(published(), 0.05, scale, planned=planned)


@pytest.mark.parametrize(
    ("reading", "scale"),
    [("fixed", 25.45703125), ("sequential", 55.66796875), ("posterior", 13.9404296875)],
)
def test_units_still_needed_as_published(reading: str, scale: float) -> None:
    """GrowthBook's scales come from a bisection that stops at a power of .8 to 1e-5."""
    assert power(reading, scale) == pytest.approx(0.8, abs=1e-5)
    found = scale_for(lambda further: power(reading, further))
    assert found == pytest.approx(scale, rel=1e-4)
    assert found is not None
    assert power(reading, found) == pytest.approx(0.8, abs=1e-12)


def test_power_that_is_there_needs_no_units() -> None:
    """A scale of zero where the power is reached, and None where it never will be."""
    assert scale_for(lambda _: 0.9) == 0.0
    assert scale_for(lambda _: 0.1) is None


def test_units_for_one_look_are_the_textbooks() -> None:
    """Accuracy .90 to .91 takes about 27,000 labels, as for unpooled variances."""
    assert required_units(0.01, (0.9 * 0.1 + 0.91 * 0.09) / 2) == pytest.approx(2 * 13492, rel=5e-3)
    assert required_units(0.0, 1.0) is None
    assert required_units(0.1, 0.0) is None


def test_looking_all_the_time_takes_about_twice_the_units() -> None:
    """At full power by the planned size, 1.9 times; most true effects stop earlier."""
    one_look, every_look = required_units(0.01, 0.1), required_sequential_units(0.01, 0.1)
    assert one_look is not None
    assert every_look is not None
    assert 1.7 < every_look / one_look < 2.2
    assert required_sequential_units(0.0, 1.0) is None


@given(
    st.floats(-1, 1),
    st.floats(0.001, 1),
    st.integers(100, 10**5),
    st.sampled_from(list(Side)),
    st.floats(-0.2, 0.2),
)
def test_the_forecast_is_the_first_size_at_which_the_band_rejects(
    effect: float, se: float, n: int, side: Side, null: float
) -> None:
    """After as many further units, and not after one less, the same effect is decided."""
    left = units_left(Estimate(effect, se, n), 0.05, 5000, side, null)
    gap = {Side.BOTH: abs(effect - null), Side.GREATER: effect - null, Side.LESS: null - effect}
    if left is None:
        assert gap[side] < 1e-3
        return

    def rejects(m: int) -> bool:
        later = Estimate(effect, se * (n / m) ** 0.5, m)
        return band(later, 0.05, 5000, side, null).e_value >= 20 * (1 - 1e-9)

    assert rejects(n + left)
    assert left == 0 or not band(
        Estimate(effect, se * (n / (n + left - 1)) ** 0.5, n + left - 1), 0.05, 5000, side, null
    ).e_value >= 20 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("side", "null"), [(Side.GREATER, 0.3), (Side.LESS, 0.1), (Side.BOTH, 0.2), (Side.LESS, 0.2)]
)
def test_never_is_none(side: Side, null: float) -> None:
    """An effect on the wrong side of the null, or upon it, is never decided."""
    assert units_left(Estimate(0.2, 0.1, 1000), 0.05, 5000, side, null) is None
    assert units_left(Estimate(0.2, inf, 1000), 0.05, 5000) is None


def beta_binomial(old: float, new: float) -> float:
    """Log e-value against equal event rates of equal arms."""
    total = float(special.betaln(100 + new, 100 + old) - special.betaln(100, 100))
    return total - (old + new) * log(0.5)


def test_a_guard_on_events_is_forecast_by_its_own_e_value() -> None:
    """(50, 65) of 10,000 units is not decided; more of the same is, at the size that is told."""
    assert beta_binomial(50, 65) < log(20)
    left = event_units_left(beta_binomial, (50, 65), 10_000, 0.05)
    assert left is not None
    scale = (10_000 + left) / 10_000
    assert beta_binomial(50 * scale, 65 * scale) == pytest.approx(log(20), abs=1e-3)
    assert event_units_left(beta_binomial, (500, 800), 10_000, 0.05) == 0


def test_a_guard_that_will_not_decide_has_no_forecast() -> None:
    """Equal rates never show a difference, and no events show nothing."""
    assert event_units_left(beta_binomial, (50, 50), 10_000, 0.05) is None
    assert event_units_left(beta_binomial, (0, 0), 10_000, 0.05) is None
