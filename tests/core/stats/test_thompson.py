from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stats.thompson import beta_weights, floored, normal_weights


def test_weights_of_two_rates() -> None:
    """Beta(11, 91) against Beta(16, 86): .85328379, and with a floor of .05 (.18204, .81796)."""
    weights = beta_weights([11, 16], [91, 86])
    assert weights[1] == pytest.approx(0.85328379, abs=5e-9)
    assert floored(weights, 0.05) == pytest.approx([0.18204, 0.81796], abs=6e-6)


def test_weights_of_three_means() -> None:
    """Means .10, .12, .11 with deviation .01: (.04715, .72875, .22410)."""
    weights = normal_weights([0.10, 0.12, 0.11], [0.01] * 3)
    assert weights == pytest.approx([0.04715, 0.72875, 0.22410], abs=6e-6)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.3, 1)), min_size=1, max_size=6),
    st.floats(0, 0.15),
)
def test_weights_add_up_and_keep_their_floor(arms: list[tuple[float, float]], f: float) -> None:
    """Propensities are at least the floor, add up to one, and follow the means."""
    means, deviations = [m for m, _ in arms], [s for _, s in arms]
    weights = floored(normal_weights(means, deviations), f)
    assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    assert min(weights) >= f
    alike = normal_weights(sorted(means), [0.5] * len(means))
    assert all(a <= b + 1e-12 for a, b in pairwise(alike))


def test_quadrature_agrees_with_draws() -> None:
    """Two million draws of unequal posteriors give the same weights to their own error."""
    rng = np.random.default_rng(1)
    means, deviations = [0.0, 0.2, 0.1, -0.1], [0.3, 0.1, 0.2, 0.5]
    best = rng.normal(means, deviations, (2_000_000, 4)).argmax(axis=1)
    drawn = np.bincount(best, minlength=4) / 2_000_000
    assert normal_weights(means, deviations) == pytest.approx(drawn, abs=2e-3)
    a, b = [3, 5, 20], [30, 40, 200]
    best = rng.beta(a, b, (2_000_000, 3)).argmax(axis=1)
    drawn = np.bincount(best, minlength=3) / 2_000_000
    assert beta_weights(a, b) == pytest.approx(drawn, abs=2e-3)


def test_the_same_tallies_give_the_same_weights() -> None:
    """No draws are made: weights are equal bit for bit."""
    assert normal_weights([1, 2, 3], [1, 1, 2]) == normal_weights([1, 2, 3], [1, 1, 2])
    assert beta_weights([1, 2], [3, 4]) == beta_weights([1, 2], [3, 4])


@pytest.mark.parametrize("floor", [-0.01, 0.34])
def test_a_floor_that_leaves_nothing_is_refused(floor: float) -> None:
    """Three arms cannot each have more than a third."""
    with pytest.raises(ValueError, match="floor"):
        floored([0.2, 0.3, 0.5], floor)
