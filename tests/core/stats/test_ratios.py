"""The oracle is GrowthBook's published one (growthbook: packages/stats/tests/test_gbstats.py)."""

import msgspec
import numpy as np
import pytest

from gateway.core.stats.means import difference, fixed, ratio_sample
from gateway.core.stats.moments import Comoments, Moments
from gateway.core.stats.ratios import (
    RatioSums,
    adjusted_ratio_difference,
    adjusted_ratio_relative,
)
from gateway.core.stats.sequences import band


def sums(
    m: tuple[float, float],
    d: tuple[float, float],
    p: tuple[float, float],
    e: tuple[float, float],
    products: tuple[float, float, float, float, float, float],
) -> RatioSums:
    """100 units from raw (sum, sum of squares) and products m d, p e, m p, m e, d p, d e."""
    of = {name: Moments.of_sums(100, *raw) for name, raw in zip("mdpe", (m, d, p, e), strict=True)}
    names = ("md", "pe", "mp", "me", "dp", "de")
    now, before, *across = (
        Comoments(of[name[0]], of[name[1]], (product, 0.0))
        for name, product in zip(names, products, strict=True)
    )
    return RatioSums(now, before, (across[0], across[1], across[2], across[3]))


CONTROL = sums(
    (485.112236689623, 2715.484666118136),
    (679.9093275844917, 4939.424001640236),
    (192.59138069991536, 460.076026390857),
    (290.1398399750233, 920.9461385038898),
    (
        3602.146836776702,
        634.239482353647,
        1113.6215759318352,
        1559.2878434944676,
        1460.3181079276983,
        2130.9404074446747,
    ),
)
TREATMENT = sums(
    (514.7757826608777, 2994.897482705013),
    (705.4090874383759, 5291.36604146392),
    (206.94157227402536, 514.2903702246757),
    (302.54389139107326, 994.4506208125663),
    (
        3918.1561431600717,
        698.4173425817908,
        1237.0953021125997,
        1701.0287270040265,
        1604.0759503266522,
        2292.081739775257,
    ),
)


def test_an_adjusted_ratio_as_published() -> None:
    """Published: -.000701483, p .857710405; at any look (-.02063, .01923), p 1, at 5,000."""
    lift = adjusted_ratio_relative(CONTROL, TREATMENT)
    assert lift is not None
    assert lift.effect == pytest.approx(-0.000701483, abs=5e-10)
    assert lift.se == pytest.approx(0.00391, abs=5e-6)
    assert fixed(lift).p == pytest.approx(0.857710405, abs=5e-10)
    reading = band(lift, 0.05, 5000)
    assert (reading.lower, reading.upper) == pytest.approx((-0.02063, 0.01923), abs=5e-6)
    assert reading.p == 1.0


def drawn(seed: int, follows: float) -> tuple[RatioSums, RatioSums]:
    """Two arms whose numerators follow the earlier ones so much."""
    rng = np.random.default_rng(seed)
    arms = []
    for _ in range(2):
        arm = RatioSums()
        for _ in range(300):
            e, p = rng.gamma(4.0), rng.normal(2.0)
            d = rng.gamma(4.0)
            arm = arm.add((follows * p + 0.3 * rng.normal(), d), (p, e))
        arms.append(arm)
    return arms[0], arms[1]


def test_an_earlier_ratio_narrows_the_reading() -> None:
    """Numerators that follow earlier ones are read with a smaller error."""
    control, treatment = drawn(1, follows=1.0)
    plain = difference(ratio_sample(control.now), ratio_sample(treatment.now))
    adjusted = adjusted_ratio_difference(control, treatment)
    assert adjusted is not None
    assert adjusted.se < 0.9 * plain.se
    assert abs(adjusted.effect) < 4 * adjusted.se


def test_parts_of_an_arm_add_up() -> None:
    """Sums of two replicas give the reading of all units, also after JSON."""
    first, second = drawn(2, follows=0.5)
    merged = first.merge(second)
    read_back = msgspec.json.decode(msgspec.json.encode(merged), type=RatioSums)
    assert read_back == merged
    assert merged.n == 600
    assert merged.across[3].covariance == pytest.approx(
        second.merge(first).across[3].covariance, rel=1e-12
    )


def test_an_earlier_ratio_that_does_not_vary_adjusts_nothing() -> None:
    """With constant p and e the effect is the plain one."""
    arms = []
    for values in ([(1.0, 2.0), (3.0, 4.0), (2.0, 2.0)], [(2.0, 2.0), (5.0, 3.0), (1.0, 2.0)]):
        arm = RatioSums()
        for pair in values:
            arm = arm.add(pair, (1.0, 1.0))
        arms.append(arm)
    plain = difference(*(ratio_sample(arm.now) for arm in arms))
    adjusted = adjusted_ratio_difference(arms[0], arms[1])
    assert adjusted is not None
    assert (adjusted.effect, adjusted.se) == pytest.approx((plain.effect, plain.se))


def test_no_denominator_no_ratio() -> None:
    """Denominators that sum to zero have no reading."""
    assert adjusted_ratio_difference(RatioSums(), TREATMENT) is None
    assert adjusted_ratio_relative(CONTROL, RatioSums()) is None
