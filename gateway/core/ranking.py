"""Ranking: what a quantile metric of a variant says, valid at every look.

The share of units at or below x has the mean q and the variance q (1 - q) where x is the quantile.
So the asymptotic confidence sequence of that share, with the variance known, leaves those values
of x that are not rejected: the interval of one arm. Over strata shares are weighted like means
(`arms.overlap`). The difference of two arms lies between the ends of their intervals, each at half
the risk; that is wider than need be and holds whatever the shapes are.

E-values are not kept below the threshold here: an interval that excludes what it must is told as
evidence that just suffices.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import floor, sqrt
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.arms import Pair, overlap
from gateway.core.experiments import Metric
from gateway.core.measuring import Levels, turned, verdict_of
from gateway.core.readings import Evidential, Interval, Reading
from gateway.core.stats import sequences
from gateway.core.tallies import Cell, edges_of, merged_histogram

_ROUNDING: Final = 1e-12


class Ranked(Struct, frozen=True):
    """One arm over strata: bins in order, the weighted share of units through each.

    `n` counts units; `effective` is that number after weighting.
    """

    bins: tuple[int, ...]
    through: tuple[float, ...]
    n: int
    effective: float


def read_quantile(metric: Metric, variant: str, pairs: Sequence[Pair], levels: Levels) -> Reading:
    """A quantile of one variant over all strata; arguments as of `measuring.read_effect`."""
    control, treatment = _arms(metric, pairs)
    rarer = min(metric.quantile, 1.0 - metric.quantile)
    due = [floor(arm.effective * rarer) for arm in (control, treatment)]
    settled = sequences.is_settled((control.n, treatment.n), due)
    old, new = quantile_of(control, metric.quantile), quantile_of(treatment, metric.quantile)
    reading = Reading(
        name=metric.name,
        variant=variant,
        role=metric.role,
        harm=Evidential(1.0, 1.0 / levels.harm),
        safe=Evidential(1.0, 1.0 / levels.safe),
        claim=Evidential(1.0, 1.0 / levels.claim),
        control=old,
        treatment=new,
        estimate=None if old is None or new is None else new - old,
        relative=(new - old) / abs(old) if old and new is not None else None,
        units=(control.n, treatment.n),
        settled=settled,
    )
    if not settled:
        return reading
    both = (control, treatment)
    interval = _difference(metric, both, levels.claim)
    harmless, _ = _good(metric, _difference(metric, both, levels.safe))
    _, best = _good(metric, _difference(metric, both, levels.harm))
    shown = best is not None and best < -metric.margin
    certified = harmless is not None and harmless > -metric.margin
    return replace(
        reading,
        verdict=verdict_of(metric, interval),
        harm=_told(reading.harm, holds=shown),
        safe=_told(reading.safe, holds=certified),
        interval=interval,
    )


def quantile_of(arm: Ranked, level: float) -> float | None:
    """The middle of the bin in which the quantile lies; None without units."""
    return sum(edges_of(arm.bins[_first(arm, level)])) / 2 if arm.bins else None


def limits(arm: Ranked, level: float, width: float) -> Interval:
    """The values of which the share at or below is within `width` of the level."""
    lower = upper = None
    if level > width:
        lower = edges_of(arm.bins[_first(arm, level - width)])[0]
    if level + width < 1.0:
        upper = edges_of(arm.bins[_first(arm, level + width)])[1]
    return lower, upper


def _first(arm: Ranked, share: float) -> int:
    """Where the first bin stands through which there is at least such a share of the units."""
    return min(bisect_left(arm.through, share - _ROUNDING), len(arm.through) - 1)


def _difference(metric: Metric, arms: tuple[Ranked, Ranked], risk: float) -> Interval:
    """Treatment minus control, at a risk that both arms share."""
    total = sum(arm.n for arm in arms)
    spread = metric.quantile * (1.0 - metric.quantile)
    ends = []
    for arm in arms:
        planned = max(metric.planned_units * arm.n / total, 1.0)
        times = float(sequences.two_sided_multiplier(arm.n, risk / 2, planned))
        ends.append(limits(arm, metric.quantile, times * sqrt(spread / arm.effective)))
    (low_old, high_old), (low_new, high_new) = ends
    return (
        None if low_new is None or high_old is None else low_new - high_old,
        None if high_new is None or low_old is None else high_new - low_old,
    )


def _good(metric: Metric, interval: Interval) -> Interval:
    """An interval of what is gained."""
    return interval if metric.direction == "increase" else turned(interval)


def _told(evidence: Evidential, *, holds: bool) -> Evidential:
    return replace(evidence, e=evidence.threshold) if holds else evidence


def _arms(metric: Metric, pairs: Sequence[Pair]) -> tuple[Ranked, Ranked]:
    """Both arms over the strata in which both have units."""
    strata = []
    for pair in pairs:
        old, new = _histogram(metric, pair.control), _histogram(metric, pair.treatment)
        if old and new:
            weight = overlap(pair.share, sum(old.values()) + sum(new.values()))
            strata.append((weight, old, new))
    weights = [weight for weight, _, _ in strata]
    return (
        _ranked([old for _, old, _ in strata], weights),
        _ranked([new for _, _, new in strata], weights),
    )


def _ranked(histograms: Sequence[dict[int, int]], weights: Sequence[float]) -> Ranked:
    if not histograms:
        return Ranked((), (), 0, 0.0)
    sizes = [sum(histogram.values()) for histogram in histograms]
    total = sum(weights)
    shares: dict[int, float] = {}
    spread = 0.0
    for histogram, size, weight in zip(histograms, sizes, weights, strict=True):
        spread += (weight / total) ** 2 / size
        for index, count in histogram.items():
            shares[index] = shares.get(index, 0.0) + weight / total * count / size
    bins = sorted(shares)
    through = tuple(accumulate(shares[index] for index in bins))
    return Ranked(tuple(bins), through, sum(sizes), 1.0 / spread)


def _histogram(metric: Metric, cells: Sequence[Cell]) -> dict[int, int]:
    total: dict[int, int] = {}
    for cell in cells:
        tally = cell.metrics.get(metric.name)
        if tally is not None:
            total = merged_histogram(total, tally.histogram)
    return total
