"""A chart of bars as SVG, by hand: nothing to install, and the file is small and stays readable."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from loadtests.stats import Slice, chosen, middle

WIDTH: Final = 760
LABELS: Final = 190
VALUES: Final = 120
BAR: Final = 18
GAP: Final = 6
TITLE: Final = 34
INK: Final = "#1f2933"
COLOURS: Final = {"tiltyard": "#0b7285", "bare": "#868e96"}
OTHER: Final = "#adb5bd"


@dataclass(frozen=True)
class Group:
    """Bars that are compared with each other; the longest fills the width."""

    title: str
    bars: Sequence[tuple[str, float]]


def draw(title: str, groups: Sequence[Group], unit: str = "requests/s") -> str:
    """The chart, dark ink on white.

    Args:
        title: said on top.
        groups: one block of bars each; bars without a value are left out.
        unit: behind each value.
    """
    body, y = [_text(12, 24, title, size=16, weight="bold")], 44
    for group in groups:
        bars = [(name, value) for name, value in group.bars if not math.isnan(value)]
        if not bars:
            continue
        body.append(_text(12, y + 20, group.title, size=13, weight="bold"))
        y += TITLE
        longest = max(value for _, value in bars) or 1.0
        for name, value in bars:
            length = max(1.0, (WIDTH - LABELS - VALUES) * value / longest)
            colour = COLOURS.get(name.split("-")[0], OTHER)
            body.append(_text(LABELS - 8, y + 14, name, anchor="end"))
            body.append(
                f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" '
                f'rx="2" fill="{colour}"/>'
            )
            body.append(_text(LABELS + length + 6, y + 14, f"{value:,.0f} {unit}"))
            y += BAR + GAP
        y += GAP
    inner = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 8}" '
        f'viewBox="0 0 {WIDTH} {y + 8}" role="img" aria-label="{escape(title, quote=True)}">\n'
        f'<rect width="{WIDTH}" height="{y + 8}" fill="#ffffff"/>\n{inner}\n</svg>\n'
    )


def throughput(title: str, slices: Sequence[Slice]) -> str:
    """Peaks of each model, then the peers beside bare and Tiltyard."""
    groups = []
    peak = chosen(slices, scenario="peak")
    for model in dict.fromkeys(one["model"] for one in peak):
        of = chosen(peak, model=model)
        groups.append(Group(f"{model}, JSON, 32 connections", _bars(of)))
    bouts = chosen(slices, scenario="peers")
    if bouts:
        groups.append(Group(f"peers, {bouts[0]['model']}, JSON, 32 connections", _bars(bouts)))
    tensors = chosen(slices, scenario="tensors")
    for model in dict.fromkeys(one["model"] for one in tensors):
        bars: list[tuple[str, float]] = []
        for wire in ("json", "binary"):
            of = chosen(tensors, model=model, wire=wire)
            bars += [(f"{name}-{wire}", value) for name, value in _bars(of)]
        groups.append(Group(f"{model}, 1×3×224×224", bars))
    return draw(title, groups)


def _bars(slices: Sequence[Slice]) -> list[tuple[str, float]]:
    names = dict.fromkeys(one["contestant"] for one in slices)
    bars = [(name, middle(chosen(slices, contestant=name), "rps")) for name in names]
    return sorted(bars, key=lambda bar: -bar[1])


def _text(x: float, y: float, words: str, **style: Any) -> str:
    anchor, weight = style.get("anchor", "start"), style.get("weight", "normal")
    return (
        f'<text x="{x:.1f}" y="{y}" font-family="system-ui, sans-serif" fill="{INK}" '
        f'font-size="{style.get("size", 12)}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
