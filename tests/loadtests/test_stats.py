import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.stats import (
    chosen,
    middle,
    middle_difference,
    middle_ratio,
    percentile,
    percentiles,
    rotated,
)


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1), (50, 50), (99, 99), (99.9, 100), (100, 100)]
)
def test_percentile_is_the_smallest_value_that_covers_so_many(percent: float, value: int) -> None:
    """Nearest rank: no value is made up between two that were measured."""
    assert percentile(list(range(1, 101)), percent) == value


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_is_one_of_the_values_and_covers_enough(
    values: list[float], percent: float
) -> None:
    """Whatever the values, the percentile was measured and enough of them lie at or below it."""
    ascending = sorted(values)

    found = percentile(ascending, percent)

    assert found in ascending
    assert sum(value <= found for value in ascending) >= percent / 100 * len(ascending) - 1e-6


def test_percentiles_of_nothing_are_no_numbers() -> None:
    """A slice without an answer has no latency, not a latency of zero."""
    assert all(math.isnan(value) for value in percentiles([]).values())


def test_percentiles_are_in_microseconds_whatever_the_order() -> None:
    """Seconds go in, microseconds come out."""
    assert percentiles([0.003, 0.001, 0.002])["p50_us"] == pytest.approx(2000)


def test_each_round_begins_with_another_contestant() -> None:
    """Nobody always runs first, or after the same neighbour."""
    assert [rotated("abc", turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]


def test_rotation_leaves_nobody_out() -> None:
    """Turning the order changes the order only."""
    assert sorted(rotated("abc", 5)) == ["a", "b", "c"]


def test_ratios_are_taken_between_slices_of_one_round() -> None:
    """The median of the rounds' ratios, not the ratio of medians of different minutes."""
    ours = [{"round": 0, "rps": 20.0}, {"round": 1, "rps": 4.0}, {"round": 2, "rps": 60.0}]
    bare = [{"round": 0, "rps": 10.0}, {"round": 1, "rps": 1.0}, {"round": 2, "rps": 20.0}]

    assert middle_ratio(ours, bare, "rps") == 3.0


def test_a_round_that_only_one_ran_gives_no_ratio() -> None:
    """What was measured at different times is not compared."""
    assert math.isnan(middle_ratio([{"round": 0, "rps": 1.0}], [{"round": 1, "rps": 1.0}], "rps"))


def test_differences_are_taken_between_slices_of_one_round() -> None:
    """As with ratios, for what is added and not multiplied."""
    on = [{"round": 0, "cpu_us": 30.0}, {"round": 1, "cpu_us": 90.0}]
    off = [{"round": 0, "cpu_us": 20.0}, {"round": 1, "cpu_us": 70.0}]

    assert middle_difference(on, off, "cpu_us") == 15.0


def test_a_slice_without_the_measure_does_not_count() -> None:
    """A slice that measured nothing does not pull the median down."""
    assert middle([{"p50_us": None}, {"p50_us": 3.0}], "p50_us") == 3.0


def test_slices_are_chosen_by_all_wanted_fields() -> None:
    """Every wanted field must agree."""
    slices = [{"a": 1, "b": 1}, {"a": 1, "b": 2}]

    assert chosen(slices, a=1, b=2) == [{"a": 1, "b": 2}]
