from collections.abc import Callable
from functools import partial
from math import sqrt

import pytest

from gateway.core.stats.boundaries import (
    best_rho,
    beta_binomial_log_mixture,
    double_stitching_bound,
    gamma_exponential_log_mixture,
    gamma_poisson_log_mixture,
    mixture_bound,
    normal_bound,
    normal_log_mixture,
    one_sided_normal_log_mixture,
    poly_stitching_bound,
)

ALPHA = 0.05
TWO_SIDED = best_rho(100, ALPHA)
ONE_SIDED = best_rho(100, 2 * ALPHA)
RANGE = (0.2, 0.8)

# Published values of `confseq`: at s = 10, v = 100, and the bound at v = 100, α = .05.
MIXTURES = [
    pytest.param(partial(normal_log_mixture, rho=TWO_SIDED), -0.6510052, 30.35209, id="normal"),
    pytest.param(
        partial(one_sided_normal_log_mixture, rho=ONE_SIDED),
        -0.06502391,
        27.66071,
        id="one-sided-normal",
    ),
    pytest.param(
        partial(gamma_exponential_log_mixture, rho=ONE_SIDED, c=2),
        -0.2490165,
        33.02017,
        id="gamma-exponential",
    ),
    pytest.param(
        partial(gamma_poisson_log_mixture, rho=ONE_SIDED, c=2),
        -0.06991219,
        30.1949,
        id="gamma-poisson",
    ),
    pytest.param(
        partial(beta_binomial_log_mixture, rho=TWO_SIDED, range_=RANGE, one_sided=False),
        -0.6941012,
        31.4308,
        id="beta-binomial",
    ),
    pytest.param(
        partial(beta_binomial_log_mixture, rho=ONE_SIDED, range_=RANGE),
        -0.07134019,
        28.41238,
        id="one-sided-beta-binomial",
    ),
]


@pytest.mark.parametrize(("mixture", "value", "bound"), MIXTURES)
def test_mixtures_have_the_published_values(
    mixture: Callable[..., float], value: float, bound: float
) -> None:
    """Each log mixture, and the boundary where it reaches ln(1/α), as `confseq` publishes them."""
    assert mixture(10, 100) == pytest.approx(value, abs=5e-8)
    found = mixture_bound(lambda s: mixture(s, 100), 100, ALPHA, 500)
    assert found == pytest.approx(bound, abs=5e-6)


def test_the_best_tuning_has_the_published_value() -> None:
    """ρ at v = 100 and α = .05."""
    assert best_rho(100, ALPHA) == pytest.approx(12.60056, abs=5e-6)


def test_the_normal_bound_in_closed_form_is_the_searched_one() -> None:
    """And it is the published value."""
    assert normal_bound(100, ALPHA, TWO_SIDED) == pytest.approx(30.35209, abs=5e-6)


def test_a_bound_is_searched_as_far_as_it_takes() -> None:
    """From v = 1 the search doubles; a sum that cannot reach the bar has its largest value."""
    rho = best_rho(1, ALPHA)
    searched = mixture_bound(lambda s: normal_log_mixture(s, 1, rho), 1, ALPHA)
    assert searched == pytest.approx(normal_bound(1, ALPHA, rho))
    assert mixture_bound(lambda s: normal_log_mixture(s, 1, rho), 1, ALPHA, 2.0) == 2.0


def test_a_one_sided_mixture_is_tighter_on_its_side() -> None:
    """At equal α, which is why guards are one-sided."""
    one = mixture_bound(lambda s: one_sided_normal_log_mixture(s, 100, ONE_SIDED), 100, ALPHA)
    assert one < normal_bound(100, ALPHA, TWO_SIDED)


def test_stitched_boundaries_have_the_published_values() -> None:
    """For scales above and below 0."""
    assert poly_stitching_bound(100, ALPHA, 10, 3) == pytest.approx(64.48755, abs=5e-6)
    assert poly_stitching_bound(100, ALPHA, 10, -1) == pytest.approx(28.99389, abs=5e-6)


def test_a_stitched_boundary_is_flat_before_it_is_tight() -> None:
    """Times below the first that counts are taken for it; later it grows slower than v."""
    assert poly_stitching_bound(1, ALPHA, 10) == poly_stitching_bound(10, ALPHA, 10)
    late, later = poly_stitching_bound(1e6, ALPHA, 10), poly_stitching_bound(1e8, ALPHA, 10)
    assert 10 < later / late < 10 * sqrt(1.2)


@pytest.mark.parametrize(("quantile", "bound"), [(0.5, 68.62803), (0.9, 43.72119), (0.1, 59.96521)])
def test_doubly_stitched_boundaries_have_the_published_values(
    quantile: float, bound: float
) -> None:
    """For the median and for both tails."""
    found = double_stitching_bound(quantile, 1000, ALPHA, 100)
    assert found == pytest.approx(bound, abs=5e-6)
