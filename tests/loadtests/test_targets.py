import math

import pytest

from loadtests.targets import TARGETS, Target, judge

AT_LEAST = Target("fast", ("peak/*/over_bare",), "≥", 2.5, " ×", 3.5)
AT_MOST = Target("cheap", ("telemetry/*",), "≤", 12)
BELOW = Target("quick", ("peers/*/p99",), "<", 1)


def test_the_lowest_figure_counts_where_more_is_better() -> None:
    """One model that is too slow misses the target for all."""
    (verdict,) = judge({"peak/a/over_bare": 3.0, "peak/b/over_bare": 2.0}, [AT_LEAST])

    assert (verdict.figure, verdict.value, verdict.passed) == ("peak/b/over_bare", 2.0, False)


def test_the_highest_figure_counts_where_less_is_better() -> None:
    """One model that is too dear misses the target for all."""
    (verdict,) = judge({"telemetry/a": 5.0, "telemetry/b": 11.0}, [AT_MOST])

    assert (verdict.figure, verdict.passed) == ("telemetry/b", True)


@pytest.mark.parametrize(
    ("target", "figure", "passes"),
    [
        (AT_LEAST, {"peak/a/over_bare": 2.5}, True),
        (AT_MOST, {"telemetry/a": 12.0}, True),
        (BELOW, {"peers/a/p99": 1.0}, False),
    ],
    ids=["at least", "at most", "below"],
)
def test_a_figure_on_the_bound(target: Target, figure: dict[str, float], passes: bool) -> None:
    """At least and at most include the bound, below does not."""
    assert judge(figure, [target])[0].passed is passes


@pytest.mark.parametrize("figures", [{}, {"peak/a/over_bare": math.nan}], ids=["none", "nan"])
def test_what_was_not_measured_neither_holds_nor_fails(figures: dict[str, float]) -> None:
    """A run of one scenario says nothing about the others."""
    assert judge(figures, [AT_LEAST])[0].passed is None


def test_digits_is_none_of_the_three_small_models() -> None:
    """The target names three models; the sample model is measured beside them."""
    (verdict,) = judge({"peak/digits/tiltyard/over_bare": 1.0}, TARGETS[:1])

    assert verdict.passed is None


def test_a_bound_is_told_with_its_aim() -> None:
    """The table shows what must be reached and what is hoped for."""
    assert AT_LEAST.words() == "≥ 2.5 ×, aim 3.5"
