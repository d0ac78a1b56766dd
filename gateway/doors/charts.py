"""Charts as SVG: what a report draws, without a library, a script or a font of its own.

Colours are CSS variables of the page that holds a chart, so that it follows light and dark.
"""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, isfinite, log10
from typing import Final

from msgspec import Struct

WIDTH: Final = 720
HEIGHT: Final = 190
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 30
_TICKS: Final = 5
_STEPS: Final = (1, 2, 5, 10)
_NO_SPAN: Final = 1e-12
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))
_FOREST: Final = (200, 22)
_BAR: Final = 22
_BARS_LEFT, _BARS_RIGHT = 170, 110


class Sample(Struct, frozen=True):
    """A moment of a chart: seconds since the start, the value and its interval, as far as known."""

    at: float
    value: float | None
    lower: float | None = None
    upper: float | None = None


class Line(Struct, frozen=True):
    """A level that means something, such as no effect or the margin."""

    value: float
    label: str


class Scale(Struct, frozen=True):
    """From numbers to places: `low` stands at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, number: float) -> float:
        """Where a number stands; those beyond the ends stand at them."""
        share = (number - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def band_chart(samples: Sequence[Sample], lines: Sequence[Line] = ()) -> str:
    """An estimate over time with its interval; empty text without anything to draw."""
    known = [one for one in samples if one.value is not None and isfinite(one.value)]
    if not known:
        return ""
    across, up = _scales(known, lines)
    parts = [_frame(across, up), *(_level(across, up, line) for line in lines)]
    banded = [one for one in known if one.lower is not None and one.upper is not None]
    if banded:
        upper = [(one.at, one.upper or 0.0) for one in banded]
        lower = [(one.at, one.lower or 0.0) for one in reversed(banded)]
        parts.append(f'<polygon class="band" points="{_points([*upper, *lower], across, up)}"/>')
    middle = [(one.at, one.value or 0.0) for one in known]
    parts.append(f'<polyline class="line" points="{_points(middle, across, up)}"/>')
    last = middle[-1]
    parts.append(
        f'<circle class="dot" cx="{across.place(last[0]):.1f}" cy="{up.place(last[1]):.1f}" r="3"/>'
    )
    return _svg(WIDTH, HEIGHT, "".join(parts), "The estimate over time, with its interval.")


def steps_chart(samples: Sequence[Sample]) -> str:
    """Shares over time, as steps from 0 to 1."""
    if not samples:
        return ""
    end = max(samples[-1].at, 1.0)
    across = Scale(0.0, end, LEFT, WIDTH - RIGHT)
    up = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    corners: list[tuple[float, float]] = []
    for one in samples:
        if corners:
            corners.append((one.at, corners[-1][1]))
        corners.append((one.at, one.value or 0.0))
    corners.append((end, corners[-1][1]))
    line = f'<polyline class="line" points="{_points(corners, across, up)}"/>'
    return _svg(WIDTH, HEIGHT, _frame(across, up) + line, "Shares of units over time.")


def forest(estimate: float, lower: float, upper: float, reach: float, margin: float) -> str:
    """One interval against no effect and the margin; `reach` is the largest number of the scale."""
    width, height = _FOREST
    reach = reach if reach > _NO_SPAN else 1.0
    across = Scale(-reach, reach, 4, width - 4)
    middle, zero = height / 2, across.place(0.0)
    safe = ""
    if margin > 0:
        start, end = across.place(-margin), across.place(margin)
        safe = (
            f'<rect class="margin" x="{start:.1f}" y="2" width="{end - start:.1f}"'
            f' height="{height - 4}"/>'
        )
    body = (
        f'{safe}<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="1" y2="{height - 1}"/>'
        f'<line class="line" x1="{across.place(lower):.1f}" x2="{across.place(upper):.1f}"'
        f' y1="{middle}" y2="{middle}"/>'
        f'<circle class="dot" cx="{across.place(estimate):.1f}" cy="{middle}" r="3.5"/>'
    )
    return _svg(width, height, body, "The interval against no effect.")


def bars_chart(bars: Sequence[tuple[str, float, str]], label: str) -> str:
    """Lengths side by side: each bar's name, its length from 0 on, and the number as text.

    Empty text without anything to draw.
    """
    known = [bar for bar in bars if isfinite(bar[1]) and bar[1] >= 0]
    if not known:
        return ""
    longest = max(length for _, length, _ in known) or 1.0
    across = Scale(0.0, longest, _BARS_LEFT, WIDTH - _BARS_RIGHT)
    parts = []
    for place, (name, length, text) in enumerate(known):
        y = place * _BAR
        end = across.place(length)
        parts.append(
            f'<text x="{_BARS_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="bar" x="{_BARS_LEFT}" y="{y + 4}" width="{end - _BARS_LEFT:.1f}"'
            f' height="{_BAR - 8}"/>'
            f'<text x="{end + 6:.1f}" y="{y + 15}">{escape(text)}</text>'
        )
    return _svg(WIDTH, _BAR * len(known) + 4, "".join(parts), label)


def number_text(number: float | None) -> str:
    """A number for people: four significant digits."""
    if number is None:
        return "–"
    return f"{number:.4g}".replace("-", "−")


def span_text(seconds: float) -> str:
    """A length of time for people."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _scales(known: Sequence[Sample], lines: Sequence[Line]) -> tuple[Scale, Scale]:
    """Wide intervals of the first moments do not flatten the rest: the last half sets the scale."""
    late = known[len(known) // 2 :]
    ends = [number for one in late for number in (one.lower, one.upper, one.value)]
    numbers = [number for number in ends if number is not None and isfinite(number)]
    numbers += [line.value for line in lines]
    low, high = min(numbers), max(numbers)
    room = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    return (
        Scale(0.0, max(known[-1].at, 1.0), LEFT, WIDTH - RIGHT),
        Scale(low - room, high + room, HEIGHT - BOTTOM, TOP),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the ends."""
    rough = (high - low) / _TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough)
    return [index * step for index in range(ceil(low / step), floor(high / step) + 1)]


def _frame(across: Scale, up: Scale) -> str:
    """Grid lines with their numbers, and the times below."""
    parts = []
    for number in _ticks(up.low, up.high):
        y = up.place(number)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number_text(number)}</text>'
        )
    span = across.high
    unit = next((size for size, _ in _UNITS if span >= 2 * size), 1)
    for number in _ticks(0.0, span / unit):
        x = across.place(number * unit)
        text = span_text(number * unit)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{text}</text>')
    return "".join(parts)


def _level(across: Scale, up: Scale, line: Line) -> str:
    y = up.place(line.value)
    return (
        f'<line class="zero" x1="{across.start}" x2="{across.end}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{across.start + 4}" y="{y - 4:.1f}">{escape(line.label)}</text>'
    )


def _points(corners: Sequence[tuple[float, float]], across: Scale, up: Scale) -> str:
    return " ".join(f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in corners)


def _svg(width: int, height: int, body: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )
