import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from gateway.core.stats.tails import log_beta_above, log_beta_below


def by_quadrature(a: float, b: float, x: float) -> float:
    """The log of the integral of the density up to x, after the substitution t = x exp(-u)."""
    slope = a - (b - 1) * x / (1 - x)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    reach = 60 / slope
    u = (nodes + 1) / 2 * reach
    logs = a * (np.log(x) - u) + (b - 1) * np.log1p(-x * np.exp(-u))
    top = logs.max()
    total = np.sum(weights * np.exp(logs - top)) * reach / 2
    return float(top + np.log(total) - special.betaln(a, b))


@given(a=st.floats(0.1, 2000), b=st.floats(0.1, 2000), x=st.floats(0.02, 0.98))
def test_tails_agree_with_the_distribution_where_it_holds(a: float, b: float, x: float) -> None:
    """Both tails are those of the beta distribution, as far as those are floats."""
    below, above = stats.beta.cdf(x, a, b), stats.beta.sf(x, a, b)
    if below > 1e-280:
        assert log_beta_below(a, b, x) == pytest.approx(np.log(below), rel=1e-9, abs=1e-9)
    if above > 1e-280:
        assert log_beta_above(a, b, x) == pytest.approx(np.log(above), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "x"),
    [
        pytest.param(20_000, 80_000, 0.15, id="moderate"),
        pytest.param(2e6, 8e6, 0.19, id="near-the-mean"),
        pytest.param(1e7, 1e7, 0.4, id="ten-million"),
        pytest.param(500, 500, 0.001, id="far"),
        pytest.param(3000, 1e7, 1e-4, id="rare"),
        pytest.param(1e7, 3, 0.9, id="lopsided"),
    ],
)
def test_tails_below_every_float_keep_their_logarithm(a: float, b: float, x: float) -> None:
    """A probability of exp(-900) and less is told to ten digits."""
    expected = by_quadrature(a, b, x)
    assert expected < -900
    assert log_beta_below(a, b, x) == pytest.approx(expected, rel=1e-9)
    assert log_beta_above(b, a, 1 - x) == pytest.approx(expected, rel=1e-9)


def test_arrays_hold_tails_of_both_kinds() -> None:
    """One that is a float beside one that is not."""
    logs = log_beta_below(np.array([[2.0, 500.0]]), np.array([[3.0, 500.0]]), 0.001)
    assert logs.shape == (1, 2)
    assert logs[0, 0] == pytest.approx(np.log(stats.beta.cdf(0.001, 2, 3)))
    assert logs[0, 1] == pytest.approx(by_quadrature(500, 500, 0.001))
