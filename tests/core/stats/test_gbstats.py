"""Our readings against GrowthBook's, on the inputs and answers of `tests/golden/gbstats.json`."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from gateway.core.stats.bayes import Prior, posterior
from gateway.core.stats.means import (
    Estimate,
    Sample,
    Side,
    adjusted_relative,
    adjusted_sample,
    adjustment,
    difference,
    fixed,
    mean_sample,
    proportion_sample,
    ratio_sample,
    relative,
)
from gateway.core.stats.moments import Comoments, Moments
from gateway.core.stats.quantiles import quantile_variance
from gateway.core.stats.sequences import band

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "gbstats.json").read_bytes())
Case = dict[str, Any]
CASES: list[Case] = GOLDEN["cases"]
NAMES = [f"{case['kind']}-{number}" for number, case in enumerate(CASES)]
each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)


def near(value: float | None) -> Any:
    """The same to 1e-9, in share or in full; None stays None."""
    return value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)


def pairs(arm: Case, n: int | None = None) -> Comoments:
    """Sums of y and x from raw ones."""
    units = n or arm["n"]
    return Comoments(
        Moments.of_sums(units, arm["sum"], arm["sum_squares"]),
        Moments.of_sums(units, arm["x_sum"], arm["x_sum_squares"]),
        (arm["products"], 0.0),
    )


def sample(kind: str, arm: Case) -> Sample:
    """One arm as this house has it."""
    if kind == "mean":
        return mean_sample(Moments.of_sums(arm["n"], arm["sum"], arm["sum_squares"]))
    if kind == "proportion":
        return proportion_sample(Moments.of_counts(arm["n"], arm["sum"]))
    if kind == "ratio":
        return ratio_sample(pairs(arm))
    clustered = None
    if kind == "clustered quantile":
        clustered = ratio_sample(pairs(arm, arm["clusters"])).squared_error
    variance = quantile_variance(arm["n"], arm["nu"], arm["lower"], arm["upper"], clustered)
    return Sample(arm["n"], arm["quantile"], arm["n"] * variance)


def estimate(case: Case) -> Estimate:
    """The effect as gbstats 0.8.0 estimates it.

    Its relative effect with a covariate divides the adjusted arms' variances as if they were the
    unadjusted means'. Later versions, and we, expand the adjusted effect itself.
    """
    if case["kind"] != "adjusted":
        arms = [sample(case["kind"], arm) for arm in case["arms"]]
        found = (relative if case["difference"] == "relative" else difference)(*arms)
        assert found is not None
        return found
    control, treatment = (pairs(arm) for arm in case["arms"])
    theta = adjustment(control, treatment)
    old, new = adjusted_sample(control, theta), adjusted_sample(treatment, theta)
    effect = difference(old, new)
    if case["difference"] == "absolute":
        return effect
    a, b = control.y.mean, treatment.y.mean
    variance = new.squared_error / a**2 + old.squared_error * b**2 / a**4
    return Estimate(effect.effect / a, sqrt(variance), effect.n, effect.dof)


@each_case
@pytest.mark.parametrize("side", Side)
def test_a_single_look_says_what_gbstats_says(case: Case, side: Side) -> None:
    """Effect, error, interval and p of Welch's test agree to 1e-9."""
    said, effect = case[side.value], estimate(case)
    reading = fixed(effect, case["alpha"], side, case["null"])
    assert (effect.effect, effect.se) == (near(said["effect"]), near(said["se"]))
    assert reading.p == near(said["p"])
    if side is Side.LESS:  # gbstats 0.8.0 gives the lower end of the other side here
        width = said["effect"] - said["upper"]
        assert reading.upper == near(said["effect"] + width)
    else:
        assert (reading.lower, reading.upper) == (near(said["lower"]), near(said["upper"]))


@each_case
def test_every_look_says_what_gbstats_says(case: Case) -> None:
    """The confidence sequence and its p agree to 1e-9."""
    said = case["sequential"]
    effect = estimate(case)
    ends = band(effect, case["alpha"], case["planned"])
    assert (ends.lower, ends.upper) == (near(said["lower"]), near(said["upper"]))
    reading = band(effect, case["alpha"], case["planned"], null=case["null"])
    assert reading.p == near(said["p"])


@each_case
@pytest.mark.parametrize("belief", ["flat", "prior"])
def test_the_posterior_is_that_of_gbstats(case: Case, belief: str) -> None:
    """Mean, interval, chance to win and risks agree to 1e-9."""
    prior = Prior(case["prior_mean"], case["prior_variance"]) if belief == "prior" else None
    found = posterior(estimate(case), prior, case["alpha"])
    assert found is not None
    for name, value in case[belief].items():
        assert getattr(found, name) == near(value), name


def test_the_newer_error_of_an_adjusted_share_is_near_the_older_one() -> None:
    """Both formulas of a relative effect with a covariate give one effect and like errors."""
    cases = [c for c in CASES if (c["kind"], c["difference"]) == ("adjusted", "relative")]
    assert len(cases) > 10
    for case in cases:
        older, newer = estimate(case), adjusted_relative(*(pairs(arm) for arm in case["arms"]))
        assert newer is not None
        assert newer.effect == near(older.effect)
        assert 0.2 < newer.se / older.se < 5


def test_the_file_says_where_it_comes_from() -> None:
    """The versions that gave the answers are written beside them."""
    assert GOLDEN["versions"] == {
        "gbstats": "0.8.0",
        "numpy": "1.26.4",
        "pandas": "1.5.3",
        "scipy": "1.17.1",
    }
