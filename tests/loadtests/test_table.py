from typing import Any

from loadtests.table import closed_table, markdown, open_table, target_table
from loadtests.targets import Target, judge

TARGET = Target("fast", ("a",), "≥", 2)


def sliced(contestant: str, turn: int, rps: float, **more: Any) -> dict[str, Any]:
    """A slice as the arena notes it."""
    return {
        "scenario": "peak",
        "model": "m",
        "wire": "json",
        "contestant": contestant,
        "round": turn,
        "rps": rps,
        "p50_us": 1.0,
        "p99_us": 2.0,
        "p999_us": 3.0,
        "cpu_us": 40.0,
        "refused": 0,
        "errors": 1,
        **more,
    }


def cells(table: str) -> list[list[str]]:
    """What stands in the table, line by line."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_table_has_a_line_under_its_head() -> None:
    """The form that Markdown wants, numbers to the right."""
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_a_missed_target_is_shown_as_missed() -> None:
    """A miss stands out."""
    assert cells(target_table(judge({"a": 1.0}, [TARGET])))[2][2:4] == ["1", "**no**"]


def test_a_target_that_was_not_measured_has_no_value() -> None:
    """Neither yes nor no."""
    assert cells(target_table(judge({}, [TARGET])))[2][2:4] == ["", "not measured"]


def test_closed_loops_are_shown_with_their_ratio_to_bare_and_all_failures() -> None:
    """Medians and ratios over the rounds, failures added up."""
    slices = [sliced("bare", 0, 10), sliced("ours", 0, 30), sliced("ours", 1, 50)]

    rows = cells(closed_table(slices))[2:]

    assert [row[1:4] for row in rows] == [["bare", "10", "1.00"], ["ours", "40", "3.00"]]
    assert [row[-1] for row in rows] == ["1", "2"]


def test_open_loops_are_shown_by_the_share_that_was_offered() -> None:
    """Each share is a line of its own; late answers count as failed."""
    slices = [
        sliced("ours", 0, 99, scenario="rates", share=share, offered_rps=100, late=1, wrong=0)
        for share in (50, 80)
    ]

    rows = cells(open_table(slices))[2:]

    assert [row[0] for row in rows] == ["rates m 50", "rates m 80"]
    assert rows[0][-2:] == ["0", "2"]
