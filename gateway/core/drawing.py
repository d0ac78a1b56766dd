"""Drawing: the tallies of units that never were, for simulations.

A phase is drawn whole when it begins, for all ticks that may be left, and read tick by tick as it
goes on; what lies behind its end is thrown away. That is the same as drawing each tick by itself,
and ten times as fast.
"""

from typing import Any, Final, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.core.assignment import SCALE
from gateway.core.experiments import ExperimentRecord, Metric
from gateway.core.stats.moments import Comoments, Moments
from gateway.core.tallies import Cell, MetricTally, bin_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows: TypeAlias = list[list[Any]]
"""Numbers, by tick; lists are read faster than arrays, one by one."""


class Value(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the values of a metric's units are spread.

    Attributes:
        mean: Of a binary metric the chance of a one; of a ratio, of numerator over denominator.
        deviation: Standard deviation; of a binary metric it follows from the mean.
        correlation: Of the value and its covariate, where the metric has one.
    """

    mean: float
    deviation: float = 1.0
    correlation: float = 0.0


class Truth(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is true of the units of one variant.

    Attributes:
        events: By guard, the chance that a unit has its event.
        metrics: By metric, its values.
        served: Chance of a unit to get an answer.
        outcomes: Chance that its outcomes come.
        assigned: Its true weight, as a multiple of what the split says: 1 unless the split is
            broken.
    """

    events: dict[str, float] = {}
    metrics: dict[str, Value] = {}
    served: float = 1.0
    outcomes: float = 1.0
    assigned: float = 1.0


class Scenario(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A world to try a document in.

    Attributes:
        truths: By variant.
        units: Units that come per tick, if all were enrolled; Poisson.
        ticks: Looks, at most.
        tick_s: Seconds between looks.
        delay: Ticks from a unit's arrival until its outcome is final.
    """

    truths: dict[str, Truth]
    units: float = 1_000.0
    ticks: int = 60
    tick_s: float = 60.0
    delay: int = 0


class Sums(Struct, frozen=True):
    """One metric of one variant, added up over the ticks of a phase.

    Row t holds what is known of the units of the first t ticks: of moments units, sum and sum of
    squares about the shift; of pairs also those of x and of the products. `bins` holds a bin for
    each unit of a quantile, in the order in which they came.
    """

    shift: float
    rows: Rows
    bins: Ints | None = None


class Block:
    """The units of one phase: drawn ahead, known up to the present."""

    __slots__ = ("_counts", "_events", "_final", "_metrics", "end", "number", "start")

    def __init__(
        self,
        number: int,
        ticks: tuple[int, int],
        counts: list[Rows],
        events: list[Rows],
        metrics: list[dict[str, Sums]],
    ) -> None:
        self.number = number
        self.start, self.end = ticks
        self._counts = counts
        self._events = events
        self._metrics = metrics
        self._final: list[Cell] | None = None

    def stop(self, tick: int) -> None:
        """End the phase: no unit comes after this tick."""
        self.end = tick

    def cells(self, tick: int, delay: int) -> list[Cell]:
        """What is known after a tick, when outcomes need `delay` ticks."""
        if self._final is not None:
            return self._final
        seen = min(tick, self.end) - self.start
        told = max(min(tick - delay, self.end) - self.start, 0)
        cells = []
        for variant, metrics in enumerate(self._metrics):
            assigned, served, _ = self._counts[variant][seen]
            known, _, received = self._counts[variant][told]
            cells.append(
                Cell(
                    self.number,
                    variant,
                    0,
                    assigned,
                    served,
                    received,
                    0,
                    tuple(self._events[variant][seen]),
                    {name: _tally(sums, told, known, assigned) for name, sums in metrics.items()},
                )
            )
        if tick - delay >= self.end:
            self._final = cells
        return cells


def begin(
    record: ExperimentRecord, scenario: Scenario, start: int, generator: np.random.Generator
) -> Block:
    """Draw the phase that runs, from the tick on after which it began.

    Raises:
        KeyError: the scenario says nothing of a variant or a metric.
    """
    document, phase, ticks = record.document, record.phases[-1], scenario.ticks - start
    truths = [scenario.truths[variant.name] for variant in document.variants]
    shares = np.array(
        [
            phase.propensity(variant.name) * truth.assigned
            for variant, truth in zip(document.variants, truths, strict=True)
        ]
    )
    arrivals = generator.poisson(scenario.units * phase.exposure / SCALE, ticks)
    assigned = generator.multinomial(arrivals, shares / shares.sum())
    counts, events, metrics = [], [], []
    for index, truth in enumerate(truths):
        mine = assigned[:, index]
        served = generator.binomial(mine, truth.served)
        received = generator.binomial(served, truth.outcomes)
        counts.append(_running(np.stack([mine, served, received], axis=-1)))
        rates = np.array([truth.events.get(guard.name, 0.0) for guard in document.guards])
        events.append(_running(generator.binomial(mine[:, None], rates)))
        drawn = {}
        for metric in document.metrics:
            silent = mine - received if metric.silence == "default" else np.zeros_like(mine)
            centre = truths[0].metrics[metric.name].mean
            value = truth.metrics[metric.name]
            drawn[metric.name] = _drawn(metric, value, centre, (received, silent), generator)
        metrics.append(drawn)
    return Block(phase.number, (start, scenario.ticks), counts, events, metrics)


def _drawn(
    metric: Metric,
    value: Value,
    centre: float,
    counts: tuple[Ints, Ints],
    generator: np.random.Generator,
) -> Sums:
    """One metric of one variant, from counts per tick: of units with an outcome, and without."""
    units, silent = counts
    if metric.kind == "quantile":
        values = generator.normal(value.mean, value.deviation, int(units.sum()))
        bins = np.array([bin_of(float(one)) for one in values], dtype=np.int64)
        return Sums(0.0, _running(units[:, None].astype(np.float64)), bins)
    if metric.kind == "ratio":
        spread = _SPREAD * _SPREAD
        both = value.mean * spread
        own = value.mean * both + value.deviation**2
        return _pairs((value.mean, 1.0), (own, spread, both), units, generator)
    if metric.covariate is not None:
        own, both = value.deviation**2, value.correlation * value.deviation
        return _pairs((value.mean, 0.0), (own, 1.0, both), units, generator)
    if metric.kind == "binary":
        hits = generator.binomial(units, value.mean) + silent * metric.default
        return Sums(0.0, _running(np.stack([units + silent, hits, hits], axis=-1)))
    step, silence = value.mean - centre, metric.default - centre
    total = units * step + value.deviation * np.sqrt(units) * generator.normal(size=len(units))
    scatter = value.deviation**2 * _chi_square(units - 1, generator)
    squares = np.divide(total**2, units, out=np.zeros_like(total), where=units > 0) + scatter
    columns = [units + silent, total + silent * silence, squares + silent * silence**2]
    return Sums(centre, _running(np.stack(columns, axis=-1)))


def _pairs(
    centre: tuple[float, float],
    spread: tuple[float, float, float],
    units: Ints,
    generator: np.random.Generator,
) -> Sums:
    """Sums of pairs (y, x), jointly normal: means, variances and covariance are given.

    Source: Bartlett's decomposition of a Wishart matrix.
    """
    (mean_y, mean_x), (var_y, var_x, both) = centre, spread
    slope = both / var_x
    rest = np.sqrt(max(var_y - slope * both, 0.0))
    root = np.sqrt(units)
    first, second = generator.normal(size=(2, len(units)))
    off = np.where(units > 1, generator.normal(size=len(units)), 0.0)
    long = np.sqrt(_chi_square(units - 1, generator))
    short = np.sqrt(_chi_square(units - 2, generator))
    sd_x = np.sqrt(var_x)
    x = units * mean_x + root * sd_x * first
    y = units * mean_y + root * (slope * sd_x * first + rest * second)
    in_x, in_y = sd_x * long, slope * sd_x * long + rest * off
    xx, yy, xy = in_x**2, in_y**2 + (rest * short) ** 2, in_x * in_y
    whole = np.maximum(units, 1)
    columns = [units, y, yy + y**2 / whole, x, xx + x**2 / whole, xy + x * y / whole]
    return Sums(0.0, _running(np.stack(columns, axis=-1)))


def _chi_square(freedom: Ints, generator: np.random.Generator) -> Floats:
    """Chi-squared numbers; zero where there is no freedom."""
    drawn = generator.chisquare(np.maximum(freedom, 1))
    return np.where(freedom > 0, drawn, 0.0)


def _running(rows: Ints | Floats) -> Rows:
    """Sums over the ticks before each tick, and after the last."""
    sums = np.zeros((len(rows) + 1, *rows.shape[1:]), dtype=rows.dtype)
    np.cumsum(rows, axis=0, out=sums[1:])
    listed: Rows = sums.tolist()
    return listed


def _tally(sums: Sums, told: int, known: int, assigned: int) -> MetricTally:
    """A metric of the units of the first `told` ticks, of which `known` came."""
    row = sums.rows[told]
    n = int(row[0])
    missing, waiting = known - n, assigned - known
    if sums.bins is not None:
        bins, counts = np.unique(sums.bins[:n], return_counts=True)
        histogram = dict(zip(bins.tolist(), counts.tolist(), strict=True))
        return MetricTally(n, missing, waiting, histogram=histogram)
    moments = Moments(n, sums.shift, (row[1], 0.0), (row[2], 0.0)) if n else None
    if len(row) == _PAIR and moments is not None:
        x = Moments(n, 0.0, (row[3], 0.0), (row[4], 0.0))
        pair = Comoments(moments, x, (row[5], 0.0))
        return MetricTally(n, missing, waiting, moments=moments, pair=pair)
    return MetricTally(n, missing, waiting, moments=moments)


_SPREAD: Final = 0.25
"""Standard deviation of a ratio's denominator, whose mean is one."""
_PAIR: Final = 6
