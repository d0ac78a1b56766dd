import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.core.stats.bernoulli import (
    Side,
    confidence_sequence,
    log_e_above,
    log_e_below,
    log_e_each,
)
from gateway.core.stats.evalues import threshold

counts = st.integers(0, 10_000_000)


@pytest.mark.parametrize(
    ("events", "trials", "best_at", "bounds"),
    [
        (700, 1000, 100, (0.651629, 0.745949)),
        (15, 50, 50, (0.129556, 0.511896)),
        (5, 50, 50, (0.013021, 0.269264)),
        (1, 50, 50, (0.0, 0.13489)),
        (100, 200, 1, (0.328923, 0.671076)),
        (1, 2, 100, (0.0, 1.0)),
        (0, 1, 100, (0.0, 1.0)),
        (1, 1, 100, (0.0, 1.0)),
    ],
)
def test_the_sequence_has_the_published_values(
    events: int, trials: int, best_at: float, bounds: tuple[float, float]
) -> None:
    """As `confseq` publishes them; its bounds are cut off after six digits."""
    assert confidence_sequence(events, trials, 0.05, best_at) == pytest.approx(bounds, abs=2e-6)


def test_without_trials_every_rate_is_possible() -> None:
    """Bounds of nothing say nothing."""
    assert confidence_sequence(0, 0) == (0.0, 1.0)


@given(events=st.integers(0, 100_000), others=st.integers(0, 100_000))
def test_the_sequence_of_the_opposite_event_is_its_complement(events: int, others: int) -> None:
    """What is said of events is said of their absence, and the observed rate is always within."""
    trials = max(events + others, 1)
    lower, upper = confidence_sequence(events, trials)
    assert 0 <= lower <= events / trials <= upper <= 1
    mirrored = confidence_sequence(trials - events, trials)
    assert mirrored == pytest.approx((1 - upper, 1 - lower), abs=1e-9)


@given(events=counts, others=counts, limit=st.floats(1e-4, 0.9999))
def test_evidence_is_finite_at_any_counts(events: int, others: int, limit: float) -> None:
    """Tails that are too small for a float do not turn evidence into infinities."""
    assert np.isfinite(log_e_above(events, others, limit))
    assert np.isfinite(log_e_below(events, others, limit))


@given(events=st.integers(0, 5000), others=st.integers(0, 5000), limit=st.floats(0.001, 0.999))
def test_both_sides_are_each_others_reflection(events: int, others: int, limit: float) -> None:
    """A rate above the limit is a rate of the opposite event below the limit's complement."""
    above = log_e_above(events, others, limit)
    assert above == pytest.approx(log_e_below(others, events, 1 - limit), abs=1e-6)


def test_without_trials_there_is_no_evidence() -> None:
    """An e-value starts at 1."""
    assert log_e_above(0, 0, 0.02) == pytest.approx(0.0, abs=1e-12)
    assert log_e_below(0, 0, 0.02) == pytest.approx(0.0, abs=1e-12)


def test_arrays_give_what_single_counts_give() -> None:
    """One formula for both."""
    events, others = np.array([[0, 3], [40, 900]]), np.array([[9, 7], [4000, 90]])
    expected = [
        [log_e_above(float(x), float(y), 0.1) for x, y in zip(xs, ys, strict=True)]
        for xs, ys in zip(events, others, strict=True)
    ]
    assert log_e_each(events, others, 0.1, "above") == pytest.approx(np.array(expected))


def crossed(rate: float, limit: float, side: Side, alpha: float) -> NDArray[np.bool_]:
    """Whether each of 10,000 runs crosses at any of 50 looks, of ever more trials each."""
    random = np.random.default_rng(20)
    ever = np.zeros(10_000, dtype=np.bool_)
    events, trials = np.zeros(10_000), 0
    for look in range(50):
        events += random.binomial(10 + 6 * look, rate, 10_000)
        trials += 10 + 6 * look
        # Of 10,000 counts few differ, and each is read once.
        counts, where = np.unique(events, return_inverse=True)
        ever |= (log_e_each(counts, trials - counts, limit, side) >= threshold(alpha))[where]
    return ever


@pytest.mark.slow
@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("limit", [0.01, 0.2])
def test_a_rate_at_its_limit_is_rarely_called_beyond_it(limit: float, side: Side) -> None:
    """Looked at 50 times, at the boundary of the null, at most alpha of all runs cross."""
    assert crossed(limit, limit, side, 0.05).mean() <= 0.05


@pytest.mark.slow
def test_a_rate_beyond_its_limit_is_seen() -> None:
    """Nearly every run with twice the allowed rate crosses, and half of the allowed one too."""
    assert crossed(0.04, 0.02, "above", 0.05).mean() > 0.99
    assert crossed(0.01, 0.02, "below", 0.05).mean() > 0.99
