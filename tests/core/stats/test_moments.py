from collections.abc import Sequence
from fractions import Fraction
from functools import reduce

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stats.moments import LIMIT, Comoments, Moments

# Small and large together, near each other and far from zero: what raw sums of squares lose.
nasty = st.one_of(
    st.floats(-1e12, 1e12),
    st.floats(-1e-9, 1e-9),
    st.sampled_from([1e9 + 1e-3, 1e9 - 1e-3, 1e9, -1e9, 0.1, 0.2, 0.3, 1.0]),
    st.floats(0.999, 1.001).map(lambda x: x * 1e9),
)
shifts = st.sampled_from([0.0, 1.0, -1e6, 1e9, 0.1])
parts = st.lists(st.tuples(st.lists(nasty, max_size=12), shifts), min_size=1, max_size=6)


def exactly(values: Sequence[float]) -> tuple[Fraction, Fraction]:
    """Mean and variance in fractions, from the definition."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact, Fraction(0)) / len(exact)
    return mean, sum(((value - mean) ** 2 for value in exact), Fraction(0)) / (len(exact) - 1)


def close(found: float, truth: Fraction, scale: float) -> bool:
    """Whether a number is the truth to 1e-12, or to `scale`; floats end at about 1e-300."""
    return abs(Fraction(found) - truth) <= max(abs(truth) / 10**12, Fraction(scale + 1e-290))


@given(parts)
def test_merged_parts_equal_a_single_pass(parts: list[tuple[list[float], float]]) -> None:
    """Any partition with any shifts gives mean and variance to 1e-12 of exact arithmetic."""
    values = [value for part, _ in parts for value in part]
    merged = reduce(Moments.merge, (Moments.of(part, shift) for part, shift in parts))
    single = Moments.of(values)
    assert merged.n == single.n == len(values)
    if len(values) > 1:
        mean, variance = exactly(values)
        largest = max(map(abs, [*values, *(shift for _, shift in parts)]))
        for moments in (merged, single):
            assert close(moments.mean, mean, 1e-28 * largest)
            assert close(moments.variance, variance, 1e-28 * largest**2)


def test_values_far_from_zero_keep_their_spread() -> None:
    """A spread of 1e-3 around 1e9 survives, where a raw sum of squares loses all of it."""
    values = [1e9 - 1e-3, 1e9, 1e9 + 1e-3] * 100
    _, variance = exactly(values)
    raw = (sum(v * v for v in values) - sum(values) ** 2 / len(values)) / (len(values) - 1)
    assert abs(raw - float(variance)) > 0.5 * float(variance)
    assert Moments.of(values).variance == pytest.approx(float(variance), rel=1e-12)
    assert Moments.of(values, 1e9).variance == pytest.approx(float(variance), rel=1e-12)


@given(st.lists(nasty, min_size=3, max_size=20), nasty, shifts)
def test_a_revision_leaves_what_the_new_value_alone_would_have(
    values: list[float], revised: float, shift: float
) -> None:
    """Replacing a value gives the moments of the values with the new one."""
    revisited = Moments.of(values, shift).replace(values[1], revised)
    mean, variance = exactly([values[0], revised, *values[2:]])
    largest = max(map(abs, [*values, revised, shift]))
    assert revisited.n == len(values)
    assert close(revisited.mean, mean, 1e-28 * largest)
    assert close(revisited.variance, variance, 1e-28 * largest**2)


def test_taking_the_only_unit_away_leaves_nothing() -> None:
    """An emptied sum is exactly that of no unit, and keeps its shift."""
    assert Moments(shift=0.1).add(0.3).remove(0.3) == Moments(shift=0.1)
    empty = Comoments.of([], (0.1, 0.2))
    assert empty.add(0.3, 0.7).remove(0.3, 0.7) == empty


def test_nothing_can_be_taken_from_nothing() -> None:
    """A revision of a unit that was never counted is refused."""
    with pytest.raises(ValueError, match="No unit"):
        Moments().remove(1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2 * LIMIT])
def test_values_that_would_spoil_the_sums_are_refused(value: float) -> None:
    """One value that is not finite, or too large to square, cannot enter."""
    with pytest.raises(ValueError, match="finite"):
        Moments().add(value)
    with pytest.raises(ValueError, match="finite"):
        Comoments().add(1.0, value)


def test_few_units_have_no_variance() -> None:
    """Mean and variance of nothing are zero, and so is the variance of one unit."""
    assert (Moments().mean, Moments().variance) == (0.0, 0.0)
    assert (Moments.of([3.0]).mean, Moments.of([3.0]).variance) == (3.0, 0.0)
    assert Comoments.of([(1.0, 2.0)]).covariance == 0.0


def test_counts_are_moments_of_zeros_and_ones() -> None:
    """A count of events gives what adding each zero and one gives."""
    assert Moments.of_counts(5, 2) == Moments.of([1.0, 0.0, 1.0, 0.0, 0.0])


@given(st.lists(st.tuples(st.lists(st.tuples(nasty, nasty), max_size=8), shifts), min_size=1))
def test_merged_pairs_equal_a_single_pass(
    parts: list[tuple[list[tuple[float, float]], float]],
) -> None:
    """The covariance of any partition with any shifts is that of exact arithmetic to 1e-12."""
    pairs = [pair for part, _ in parts for pair in part]
    merged = reduce(Comoments.merge, (Comoments.of(p, (shift, -shift)) for p, shift in parts))
    single = Comoments.of(pairs)
    assert merged.n == single.n == len(pairs)
    if len(pairs) > 1:
        zero = Fraction(0)
        products = sum((Fraction(y) * Fraction(x) for y, x in pairs), zero)
        both = sum((Fraction(y) for y, _ in pairs), zero) * sum(
            (Fraction(x) for _, x in pairs), zero
        )
        covariance = (products - both / len(pairs)) / (len(pairs) - 1)
        largest = max(abs(value) for value in [*sum(pairs, ()), *(shift for _, shift in parts)])
        for comoments in (merged, single):
            assert close(comoments.covariance, covariance, 1e-28 * largest**2)


def test_a_revised_pair_replaces_the_old_one() -> None:
    """Sums with one pair revised are those of the revised pairs."""
    pairs = [(0.1, 5.0), (0.7, -2.0), (1e6, 3.0)]
    revised = Comoments.of(pairs, (1.0, 2.0)).replace(pairs[2], (0.2, 4.0))
    assert revised.covariance == pytest.approx(
        Comoments.of([*pairs[:2], (0.2, 4.0)]).covariance, rel=1e-12
    )


def test_both_values_of_a_pair_have_the_same_units() -> None:
    """Sums that were not taken over the same units are refused."""
    with pytest.raises(ValueError, match="same units"):
        Comoments(y=Moments.of([1.0]), x=Moments())


@given(parts)
def test_what_is_stored_is_read_back_bit_for_bit(parts: list[tuple[list[float], float]]) -> None:
    """JSON holds every digit, so that a replayed decision reads the same numbers."""
    moments = reduce(Moments.merge, (Moments.of(part, shift) for part, shift in parts))
    pair = Comoments(y=moments, x=moments, products=moments.squares)
    assert msgspec.json.decode(msgspec.json.encode(moments), type=Moments) == moments
    assert msgspec.json.decode(msgspec.json.encode(pair), type=Comoments) == pair
