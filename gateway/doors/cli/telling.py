"""Telling the demo's story: tables for people, a document for scripts."""

from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.doors.cli.output import nearest_safe
from gateway.doors.cli.story import Story, Told


def show(story: Story, console: Console) -> None:
    """Print what came of each chapter; 80 columns suffice."""
    for told in story.chapters:
        console.print()
        console.print(_readings(told))
        console.print(_sentence(told), highlight=False)
    rate = story.answered / story.seconds if story.seconds else 0.0
    console.print(
        f"\n{story.answered} answers and {story.outcomes} outcomes in {story.seconds:.1f} s "
        f"({rate:.0f}/s), errors: {dict(story.errors) or 'none'}",
        highlight=False,
    )


def document_of(story: Story) -> dict[str, Any]:
    """The story for scripts."""
    return {
        "chapters": [
            {
                "experiment": told.chapter.name,
                "is_right": told.is_right,
                "state": told.report["state"],
                "reason": told.report["reason"],
                "seconds": told.seconds,
                "answers": dict(told.answers),
                "took": told.took,
                "moves": told.moves,
                "report": told.report,
            }
            for told in story.chapters
        ],
        "answers": story.answered,
        "outcomes": story.outcomes,
        "seconds": story.seconds,
        "errors": dict(story.errors),
    }


def _readings(told: Told) -> Table:
    table = Table(title=told.chapter.title, title_justify="left", box=None, pad_edge=False)
    for column in ("metric", "verdict"):
        table.add_column(column)
    for column in ("control", "variant", "difference", "e harm", "e safe"):
        table.add_column(column, justify="right")
    for reading in told.report["readings"]:
        table.add_row(
            reading["name"],
            reading.get("verdict", "inconclusive"),
            _number(reading.get("control")),
            _number(reading.get("treatment")),
            _difference(reading),
            _number(reading.get("harm", {}).get("e", 1.0)),
            _number(nearest_safe(reading).get("e", 1.0)),
        )
    return table


def _sentence(told: Told) -> str:
    why = f" ({told.report['reason']})" if told.report["reason"] else ""
    units = sum(variant["assigned"] for variant in told.report["variants"])
    mark = "as it should" if told.is_right else "NOT as it should"
    return (
        f"It ended {told.report['state']}{why}, {mark}, after {told.answers.total()} answers, "
        f"{told.took} of them of the variant under study, to {units} units."
    )


def _difference(reading: dict[str, Any]) -> str:
    if reading.get("estimate") is None:
        return "-"
    ends = reading.get("interval")
    if ends is None:
        return _number(reading["estimate"])
    return f"{_number(reading['estimate'])} [{_number(ends[0])}, {_number(ends[1])}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
