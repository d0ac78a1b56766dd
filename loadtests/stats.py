"""The few numbers that a run is condensed to. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

Slice = Mapping[str, Any]
PERCENTS: Final = {"p50_us": 50.0, "p99_us": 99.0, "p999_us": 99.9}


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that so many per cent of all values do not exceed.

    Args:
        ascending: sorted values; none gives not-a-number.
        percent: 0 to 100.
    """
    if not len(ascending):
        return math.nan
    rank = math.ceil(percent / 100 * len(ascending) - 1e-9)
    return float(ascending[min(max(rank, 1), len(ascending)) - 1])


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """Latencies in seconds, as the percentiles in microseconds that every slice has."""
    ascending = sorted(seconds)
    return {name: percentile(ascending, percent) * 1e6 for name, percent in PERCENTS.items()}


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The same names with another one first, so that nobody always follows the same neighbour."""
    if not names:
        return []
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def chosen(slices: Iterable[Slice], **wanted: object) -> list[Slice]:
    """The slices whose fields have these values."""
    return [one for one in slices if all(one.get(name) == value for name, value in wanted.items())]


def middle(slices: Iterable[Slice], measure: str) -> float:
    """Median of a measure over slices; not-a-number where no slice has it."""
    values = [float(one[measure]) for one in slices if one.get(measure) is not None]
    return median(values) if values else math.nan


def by_round(
    over: Iterable[Slice], under: Iterable[Slice], measure: str
) -> list[tuple[float, float]]:
    """A measure of one contestant beside that of another, round by round.

    Both were measured within seconds of each other, so what disturbed one disturbed both.
    """
    below = {one["round"]: float(one[measure]) for one in under if one.get(measure)}
    return [
        (float(one[measure]), below[one["round"]])
        for one in over
        if one.get(measure) is not None and one["round"] in below
    ]


def middle_ratio(over: Iterable[Slice], under: Iterable[Slice], measure: str) -> float:
    """Median of the rounds' ratios; not-a-number without a common round."""
    pairs = by_round(over, under, measure)
    return median(one / other for one, other in pairs) if pairs else math.nan


def middle_difference(over: Iterable[Slice], under: Iterable[Slice], measure: str) -> float:
    """Median of the rounds' differences; not-a-number without a common round."""
    pairs = by_round(over, under, measure)
    return median(one - other for one, other in pairs) if pairs else math.nan
