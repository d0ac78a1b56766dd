"""Parts of pages that need nothing else: no script, no network, light and dark.

What is handed in as a cell or a body is HTML already; titles, captions and sentences are text.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final


def shown(text: str) -> str:
    """What people wrote, in one line, without what moves a cursor or turns text around."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def html_of(text: str) -> str:
    """What people wrote as HTML that is only text."""
    return escape(shown(text))


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of the sections that are not empty."""
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html_of(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of a page under its heading."""
    return f"<section><h2>{html_of(title)}</h2>{body}</section>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A table; the first `words` columns hold words, the others numbers. Cells are HTML."""
    head = "".join(f"<th>{html_of(column)}</th>" for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{'' if place < words else ' class=number'}>{cell}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def figure(chart: str, caption: str) -> str:
    """A chart under what it shows."""
    return f"<figure><figcaption>{html_of(caption)}</figcaption>{chart}</figure>"


def paragraph(sentence: str) -> str:
    """A paragraph of text."""
    return f"<p>{html_of(sentence)}</p>"


def moment(at: float) -> str:
    """UTC seconds for people; 0 is not yet."""
    if not at:
        return "not yet"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_STYLE: Final = """
:root{--ink:#1b1f24;--soft:#5c6670;--rule:#dfe3e8;--paper:#fff;--line:#1f5fbf;--band:#1f5fbf2e;
--good:#17743a;--bad:#b3261e;--odd:#8a5a00;--plain:#4a5561;--margin:#17743a1f}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b1;--rule:#333b45;
--paper:#14181d;--line:#7fb0ff;--band:#7fb0ff33;--good:#6fd08c;--bad:#ff8a80;--odd:#f0bf5f;--plain:#aab4bf;
--margin:#6fd08c26}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:24px;margin:0 0 8px}h2{font-size:17px;margin:32px 0 8px}
small{color:var(--soft)}p{margin:6px 0}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:8px;margin:16px 0}
dt{color:var(--soft);font-size:13px}dd{margin:0}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th{color:var(--soft);font-weight:500;text-align:left;white-space:nowrap}
td,th{padding:6px 10px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
.number{font-variant-numeric:tabular-nums;white-space:nowrap}
.badge{border:1px solid currentColor;border-radius:9px;padding:0 8px;font-size:13px;font-weight:500;
white-space:nowrap;color:var(--plain);vertical-align:middle}
.better,.equivalent,.promoted,.holding_out{color:var(--good)}
.worse,.rolled_back,.invalid{color:var(--bad)}.held,.paused{color:var(--odd)}
.passed{color:var(--good)}.failed,.forced{color:var(--bad)}.skipped{color:var(--soft)}
.bar{fill:var(--line)}.running,.shadow{color:var(--line)}.reached{font-weight:700}
.remark{border-left:3px solid var(--odd);padding-left:10px}
figure{margin:12px 0}figcaption{color:var(--soft);font-size:13px}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11px}
.grid{stroke:var(--rule)}.zero{stroke:var(--soft);stroke-dasharray:4 3}
.line{fill:none;stroke:var(--line);stroke-width:2}.band{fill:var(--band)}.dot{fill:var(--line)}
.margin{fill:var(--margin)}
footer{margin-top:36px;color:var(--soft);font-size:13px}
"""
