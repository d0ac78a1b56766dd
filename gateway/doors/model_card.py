"""Model cards in Markdown and as a page that needs nothing else."""

from typing import Final

from gateway.core.cards import Card
from gateway.doors.card_blocks import (
    Block,
    Cell,
    Facts,
    Note,
    Picture,
    Table,
    sections_of,
    title_of,
)
from gateway.doors.page_parts import figure, html_of, page, paragraph, section, shown, table

_SPECIAL: Final = "\\`*_[]<>|~&"
"""Signs that mean something to Markdown; what people wrote is not to be read as markup."""
_LEADING: Final = "#+-="
"""Signs that mean something where a line begins with them."""


def card_markdown(card: Card) -> str:
    """The card in Markdown; what charts show is told in lists."""
    parts = [f"# {_plain(title_of(card))}"]
    for part in sections_of(card):
        parts.append(f"## {_plain(part.title)}")
        parts += [_markdown(block) for block in part.blocks]
    return "\n\n".join(parts) + "\n"


def card_page(card: Card) -> str:
    """The card as one HTML page without scripts."""
    title = title_of(card)
    sections = [f"<h1>{html_of(title)}</h1>"]
    sections += [
        section(part.title, "".join(_html(block) for block in part.blocks))
        for part in sections_of(card)
    ]
    return page(f"{title}: model card", sections)


def _markdown(block: Block) -> str:
    if isinstance(block, Note):
        return _plain(block.text)
    if isinstance(block, Facts):
        return "\n".join(f"- **{_plain(name)}**: {_plain(text)}" for name, text in block.pairs)
    if isinstance(block, Picture):
        lines = [f"*{_plain(block.caption)}*", ""]
        return "\n".join(
            [*lines, *(f"- {_plain(name)}: {_plain(text)}" for name, text in block.rows)]
        )
    head = "| " + " | ".join(_plain(column) for column in block.columns) + " |"
    rule = "|" + "".join(
        " --- |" if place < block.words else " ---: |" for place in range(len(block.columns))
    )
    rows = ["| " + " | ".join(_plain(_words(cell)) for cell in row) + " |" for row in block.rows]
    return "\n".join([head, rule, *rows])


def _html(block: Block) -> str:
    if isinstance(block, Note):
        return paragraph(block.text)
    if isinstance(block, Picture):
        return figure(block.svg, block.caption) if block.svg else ""
    if isinstance(block, Table):
        rows = [tuple(_cell(cell) for cell in row) for row in block.rows]
        return table(block.columns, rows, words=block.words)
    rows = [(html_of(name), html_of(text)) for name, text in block.pairs]
    return table(("", ""), rows, words=2)


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return html_of(cell)
    return f'<span class="badge {html_of(cell.kind)}">{html_of(cell.text)}</span>'


def _words(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    told = "".join(f"\\{sign}" if sign in _SPECIAL else sign for sign in shown(text))
    return f"\\{told}" if told[:1] and told[0] in _LEADING else told
