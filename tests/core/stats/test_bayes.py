"""Oracles are GrowthBook's published ones (growthbook: packages/stats/tests/bayesian)."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stats.bayes import Prior, posterior, risks
from gateway.core.stats.means import Estimate, mean_sample, proportion_sample, relative
from gateway.core.stats.moments import Moments


def test_proportions_as_published() -> None:
    """49 and 51 of 100: .04082, deviation .14725, chance .60918, risks .0814 and .04058."""
    lift = relative(*(proportion_sample(Moments.of_counts(100, k)) for k in (49, 51)))
    assert lift is not None
    found = posterior(lift)
    assert found is not None
    assert (found.mean, found.deviation) == pytest.approx((0.04082, 0.14725), abs=5e-6)
    assert found.chance_to_win == pytest.approx(0.60918, abs=5e-6)
    assert (found.control_risk, found.treatment_risk) == pytest.approx((0.0814, 0.04058), abs=6e-6)


def test_means_as_published() -> None:
    """Ten units each, sums 100 and 105, squares 1002.25 and 1111.5: .05, chance .91923."""
    arms = (Moments.of_sums(10, 100, 1002.25), Moments.of_sums(10, 105, 1111.5))
    lift = relative(*map(mean_sample, arms))
    assert lift is not None
    found = posterior(lift)
    assert found is not None
    assert found.mean == pytest.approx(0.05, rel=1e-12)
    assert found.chance_to_win == pytest.approx(0.91923, abs=5e-6)


def test_risks_as_published() -> None:
    """A posterior of mean .1 and deviation .05."""
    assert risks(0.1, 0.05) == pytest.approx((0.1004245351308, 0.0004245351308), abs=5e-14)


@given(st.floats(-2, 2), st.floats(0.01, 2))
def test_risks_are_what_is_lost_on_average(mean: float, deviation: float) -> None:
    """Their difference is the effect, and neither is negative."""
    keep, take = risks(mean, deviation)
    assert min(keep, take) >= 0.0
    assert keep - take == pytest.approx(mean, abs=1e-12)


def test_a_prior_pulls_by_its_precision() -> None:
    """Equal precisions meet in the middle, with half the variance."""
    found = posterior(Estimate(0.2, 0.1, 100), Prior(0.0, 0.01))
    assert found is not None
    assert (found.mean, found.deviation) == pytest.approx((0.1, 0.1 / np.sqrt(2)))


def test_an_unknown_error_has_no_posterior() -> None:
    """Without a standard error nothing is believed."""
    assert posterior(Estimate(0.2, inf, 1)) is None
