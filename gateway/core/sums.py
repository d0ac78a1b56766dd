"""Sums: the tallies of one experiment while they change, and how a unit enters and leaves them."""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
from msgspec import Struct

from gateway.core.evidence import Counts
from gateway.core.stats.exact import Pair, multiply
from gateway.core.stats.moments import Comoments, Moments
from gateway.core.studies import MetricPlan, Study
from gateway.core.tallies import (
    Cell,
    CellKey,
    Evidence,
    MetricTally,
    bin_of,
    merged_histogram,
)
from gateway.core.unit_states import Standing, Value

_FEW: Final = 16
_SPLITTER: Final = 134_217_729.0


class _MetricSums:
    """One metric of one cell; `new` waits to be summed."""

    __slots__ = ("before", "closed", "late", "missing", "new", "revised", "told", "units")

    def __init__(self, before: MetricTally) -> None:
        self.before = before
        self.units = before.units
        self.missing = before.missing
        self.late = before.late
        self.revised = before.revised
        self.closed = before.closed
        self.told = before.told
        self.new: list[Value] = []


class _CellSums:
    """One cell."""

    __slots__ = ("assigned", "contaminated", "events", "metrics", "received", "served")

    def __init__(self, cell: Cell, study: Study) -> None:
        self.assigned = cell.assigned
        self.served = cell.served
        self.received = cell.received
        self.contaminated = cell.contaminated
        self.events = [*cell.events, *(0 for _ in range(study.guards - len(cell.events)))]
        self.metrics = [
            _MetricSums(cell.metrics.get(plan.metric.name, _NOTHING)) for plan in study.plans
        ]


class Changed(Struct):
    """Cells that are to be written, and the keys of those that hold nothing any more."""

    cells: list[Cell]
    gone: list[CellKey]


class TallySums:
    """The cells of one study. `changed` ends its use."""

    __slots__ = ("_before", "_study", "_touched")

    def __init__(self, study: Study, evidence: Evidence) -> None:
        """As they stand."""
        self._study = study
        self._before = {cell.key: cell for cell in evidence.cells}
        self._touched: dict[CellKey, _CellSums] = {}

    def stand(self, standing: Standing, sign: int) -> None:
        """Add what a unit adds (sign 1), or take it off (sign -1)."""
        sums = self._cell(standing.cell)
        sums.received += sign * standing.received
        for index, late, revised in standing.after:
            metric = sums.metrics[index]
            metric.late += sign * late
            metric.revised += sign * revised
        if self._study.slot_ms:
            # Requests are counted as they come; this one was among them.
            return
        sums.assigned += sign
        sums.contaminated += sign * standing.contaminated
        bits = standing.events
        sums.served += sign * (bits & 1)
        bits >>= 1
        place = 0
        while bits and place < len(sums.events):
            sums.events[place] += sign * (bits & 1)
            bits >>= 1
            place += 1

    def freeze(self, key: CellKey, index: int, value: Value) -> None:
        """Add a unit whose metric was frozen with this value."""
        metric = self._cell(key).metrics[index]
        metric.told += bool(self._study.slot_ms)
        if value:
            metric.units += 1
            metric.new.append(value)
        else:
            metric.missing += 1

    def count(self, counts: Counts) -> None:
        """Add requests that are units."""
        sums = self._cell((counts.phase, counts.variant, counts.segment))
        sums.assigned += counts.assigned
        sums.served += counts.served
        for place, number in enumerate(counts.events[: len(sums.events)]):
            sums.events[place] += number

    def close(self, key: CellKey, index: int, requests: int) -> None:
        """Say that the time of so many requests is over for a metric."""
        self._cell(key).metrics[index].closed += requests

    def changed(self) -> Changed:
        """What is to be written."""
        changed = Changed([], [])
        for key, sums in self._touched.items():
            cell = self._finished(key, sums)
            if cell.assigned or cell.received:
                if cell != self._before.get(key):
                    changed.cells.append(cell)
            elif key in self._before:
                changed.gone.append(key)
        return changed

    def _cell(self, key: CellKey) -> _CellSums:
        sums = self._touched.get(key)
        if sums is None:
            before = self._before.get(key) or Cell(*key)
            sums = self._touched[key] = _CellSums(before, self._study)
        return sums

    def _finished(self, key: CellKey, sums: _CellSums) -> Cell:
        plans = self._study.plans
        finish = _finished_by_request if self._study.slot_ms else _finished
        metrics = {
            plan.metric.name: finish(plan, metric, sums.assigned)
            for plan, metric in zip(plans, sums.metrics, strict=True)
        }
        return Cell(
            *key,
            sums.assigned,
            sums.served,
            sums.received,
            sums.contaminated,
            tuple(sums.events),
            metrics,
        )


def _finished(plan: MetricPlan, sums: _MetricSums, assigned: int) -> MetricTally:
    moments, pair, histogram = _summed(plan, sums)
    return MetricTally(
        units=sums.units,
        missing=sums.missing,
        waiting=assigned - sums.units - sums.missing,
        late=sums.late,
        revised=sums.revised,
        moments=moments,
        pair=pair,
        histogram=histogram,
    )


def _finished_by_request(plan: MetricPlan, sums: _MetricSums, assigned: int) -> MetricTally:
    """Where each request is a unit: those whose time is over and of which nothing came are silent.

    They are told apart by their number only. A request is frozen with its slot; where it was
    counted a moment later, in the next one, the number of the silent is right once that is closed.
    """
    moments, pair, histogram = _summed(plan, sums)
    silent = max(0, sums.closed - sums.told)
    more = silent - max(0, sums.before.closed - sums.before.told)
    units, missing = sums.units, sums.missing
    if plan.metric.silence == "missing":
        missing += more
    elif more:
        units += more
        default = plan.metric.default
        if plan.denominator >= 0:
            copies = Comoments(_copies(default, more), _copies(0.0, more))
            pair = copies if pair is None else pair.merge(copies)
        elif plan.metric.kind == "quantile":
            histogram = merged_histogram(histogram, {bin_of(default): more})
        else:
            copied = _copies(default, more)
            moments = copied if moments is None else moments.merge(copied)
    return MetricTally(
        units=units,
        missing=missing,
        waiting=max(0, assigned - max(sums.closed, sums.told)),
        late=sums.late,
        revised=sums.revised,
        moments=moments if moments is not None and moments.n else None,
        pair=pair if pair is not None and pair.n else None,
        histogram={place: number for place, number in histogram.items() if number},
        closed=sums.closed,
        told=sums.told,
    )


def _summed(
    plan: MetricPlan, sums: _MetricSums
) -> tuple[Moments | None, Comoments | None, dict[int, int]]:
    """What was there and what is new."""
    before, new = sums.before, sums.new
    moments, pair, histogram = before.moments, before.pair, before.histogram
    if not new:
        return moments, pair, histogram
    if plan.metric.kind == "quantile":
        added: dict[int, int] = {}
        for value in new:
            place = bin_of(value[0])
            added[place] = added.get(place, 0) + 1
        return moments, pair, merged_histogram(histogram, dict(sorted(added.items())))
    pairs = [value for value in new if len(value) > 1]
    if pairs:
        more = comoments_of(pairs)
        pair = more if pair is None else pair.merge(more)
    if plan.denominator < 0:
        some = moments_of([value[0] for value in new])
        moments = some if moments is None else moments.merge(some)
    return moments, pair, histogram


def moments_of(values: list[float]) -> Moments:
    """The same as `Moments.of`, faster for many values."""
    if len(values) < _FEW:
        return Moments.of(values)
    return Moments(len(values), 0.0, _sum(values), _sum_of_products(values, values))


def comoments_of(pairs: Iterable[Value]) -> Comoments:
    """The same as `Comoments.of`, faster for many pairs."""
    y, x = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len(y) < _FEW:
        return Comoments.of(zip(y, x, strict=True))
    return Comoments(moments_of(y), moments_of(x), _sum_of_products(y, x))


def _copies(value: float, number: int) -> Moments:
    """So many units with one value; a negative number takes units off when it is merged."""
    times = (float(number), 0.0)
    square = multiply((value, 0.0), (value, 0.0))
    return Moments(number, 0.0, multiply((value, 0.0), times), multiply(square, times))


def _sum(values: list[float]) -> Pair:
    """Their sum, rounded once to a pair."""
    high = math.fsum(values)
    return high, math.fsum([*values, -high])


def _sum_of_products(one: list[float], other: list[float]) -> Pair:
    """Sum of the products, each without error (`exact.two_product`, for many at once)."""
    a, b = np.array(one), np.array(other)
    product = a * b
    scaled = _SPLITTER * a
    a_high = scaled - (scaled - a)
    scaled = _SPLITTER * b
    b_high = scaled - (scaled - b)
    a_low, b_low = a - a_high, b - b_high
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return _sum([*product.tolist(), *rest.tolist()])


_NOTHING: Final = MetricTally()
