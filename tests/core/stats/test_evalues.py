from math import exp, log

import numpy as np
import pytest

from gateway.core.stats.evalues import log_mixture, p_value, threshold


def test_a_p_value_is_the_inverse_of_the_evidence() -> None:
    """1/e, and never above 1."""
    assert p_value(log(20)) == pytest.approx(0.05)
    assert p_value(-3.0) == 1.0


def test_a_test_of_size_alpha_rejects_at_one_over_alpha() -> None:
    """The bar is the evidence of which the p-value is alpha."""
    assert p_value(threshold(0.01)) == pytest.approx(0.01)


def test_a_mixture_is_the_weighted_mean() -> None:
    """Also of evidence that is too large for a float."""
    weights = np.log([0.25, 0.75])
    assert exp(log_mixture(np.log([4.0, 8.0]), weights)) == pytest.approx(7.0)
    assert log_mixture(np.array([5000.0, 0.0]), weights) == pytest.approx(5000 + log(0.25))
