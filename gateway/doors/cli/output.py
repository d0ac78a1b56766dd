"""Output: JSON for scripts, tables for people. What comes over the wire is never markup."""

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_json(document: object) -> None:
    """Print a document, indented; what would move a cursor or turn text around is escaped."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    odd = {letter for letter in text if not letter.isprintable()} - {"\n"}
    # Outside of its strings JSON holds nothing odd, and inside an escape means the same.
    typer.echo(text.translate({ord(letter): json.dumps(letter)[1:-1] for letter in odd}))


def show_table(  # noqa: PLR0913 - how it looks is the caller's
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str,
    styles: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print rows under their columns, or a sentence where there are none.

    Args:
        title: stands above them.
        columns: their heads.
        rows: a cell for each column.
        empty: the sentence.
        styles: one a row.
        whole: columns that a narrow terminal does not break.
    """
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold", no_wrap=column in whole)
    for row, style in zip_longest(rows, styles, fillvalue=""):
        table.add_row(*(Text(plain(cell)) for cell in row), style=str(style))
    console = Console(soft_wrap=False, highlight=False)
    console.print(table if table.row_count else Text(empty))


def say(sentence: str) -> None:
    """Print a line."""
    Console(highlight=False, soft_wrap=True).print(Text(plain(sentence)))


def plain(value: Any) -> str:  # noqa: ANN401 - whatever a document holds
    """A cell's text, with what would move the cursor taken out."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{plain(key)}: {plain(item)}" for key, item in value.items()) or "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def nearest_safe(reading: dict[str, Any]) -> dict[str, float]:
    """Of the two ways in which a guard may be certified, the one that is nearer."""
    ways = [way for way in (reading.get("safe"), reading.get("negligible")) if way]
    nearest: dict[str, float] = max(
        ways, key=lambda way: way.get("e", 1.0) / way.get("threshold", 20.0), default={}
    )
    return nearest


def share(value: float) -> str:
    """A share as a percentage."""
    return f"{value:.2%}"
