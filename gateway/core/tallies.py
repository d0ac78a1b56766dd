"""Tallies: what experiments know of their units, as sums that add up over phases and segments.

A unit stands in one `Cell`, that of its first exposure. Whatever is seen of it later changes that
cell, so every number here is a sum over units and can be computed again from their states
(`folding.recompute`).
"""

import struct
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from gateway.core.stats.moments import Comoments, Moments

CellKey: TypeAlias = tuple[int, int, int]
"""Phase number, variant by index, and segment as in `Cell`."""


class MetricTally(Struct, frozen=True, array_like=True):
    """One metric in one cell.

    A unit waits until its time is over; then it is frozen, and from then on either counted
    (`units`) or `missing`.

    Attributes:
        units: Frozen, with a value: it is in `moments`, or in `pair` of a ratio, or in both where
            there is a covariate, or in `histogram` of a quantile.
        missing: Frozen without a value: no outcome came, or none that the metric can be computed
            from.
        waiting: Not frozen yet.
        late: Outcomes that came after their unit's time; they are in none of the sums.
        revised: Corrections that came after their unit's time, likewise.
        moments: Of the unit values. None for ratios and quantiles, and before the first unit.
        pair: Of numerator (y) and denominator (x) of a ratio, or of value (y) and covariate (x).
            With a covariate it may hold fewer units than `moments`: those whose covariate is not
            known, because no outcome came, are left out.
        histogram: Of a quantile: units by `bin_of` of their value.
        closed: Where each request is a unit: requests whose time is over.
        told: Of these, how many were told apart because an outcome came.
    """

    units: int = 0
    missing: int = 0
    waiting: int = 0
    late: int = 0
    revised: int = 0
    moments: Moments | None = None
    pair: Comoments | None = None
    histogram: dict[int, int] = {}
    closed: int = 0
    told: int = 0


class Cell(Struct, frozen=True, array_like=True):
    """The units of one phase, variant and segment, all by their first exposure.

    Attributes:
        phase: Number of the phase.
        variant: Index in the document.
        segment: 0 for `other`, else 1 + index in the document's segment values.
        assigned: Units seen at all.
        served: Of these, with an answer.
        received: Of these, with an outcome, in time or not.
        contaminated: Of these, seen under another variant, too; what came after that is not
            counted.
        events: Units with the event of each guard, in the document's order.
        metrics: By the metric's name; all of the document are there.
    """

    phase: int
    variant: int
    segment: int = 0
    assigned: int = 0
    served: int = 0
    received: int = 0
    contaminated: int = 0
    events: tuple[int, ...] = ()
    metrics: dict[str, MetricTally] = {}

    @property
    def key(self) -> CellKey:
        """What tells it from the others of its experiment."""
        return self.phase, self.variant, self.segment


class ShadowCell(Struct, frozen=True, array_like=True):
    """What the shadow of a variant did in one phase: requests compared, disagreed, failed."""

    phase: int
    variant: int
    compared: int = 0
    disagreed: int = 0
    failed: int = 0


class Evidence(Struct, frozen=True):
    """All tallies of one experiment, cells ordered by their key.

    Units whose time was over at `through_ms` (UTC) are frozen.
    """

    cells: tuple[Cell, ...] = ()
    shadows: tuple[ShadowCell, ...] = ()
    through_ms: int = 0


NO_EVIDENCE: Final = Evidence()


def merged(cells: Iterable[Cell]) -> Cell | None:
    """One cell with the sums of several, under the key of the first; None for none."""
    total: Cell | None = None
    for cell in cells:
        total = cell if total is None else _both(total, cell)
    return total


def by_phase(evidence: Evidence) -> dict[int, dict[int, Cell]]:
    """Phase to variant to one cell over all segments."""
    return _grouped(evidence, lambda cell: cell.phase)


def by_segment(evidence: Evidence) -> dict[int, dict[int, Cell]]:
    """Segment to variant to one cell over all phases."""
    return _grouped(evidence, lambda cell: cell.segment)


def by_variant(evidence: Evidence) -> dict[int, Cell]:
    """Variant to one cell over all phases and segments."""
    return _grouped(evidence, lambda _: 0).get(0, {})


def shadow_of(evidence: Evidence, variant: int) -> ShadowCell | None:
    """What a variant's shadow did in all phases, under the first one's number; None for none."""
    total: ShadowCell | None = None
    for cell in evidence.shadows:
        if cell.variant == variant:
            total = cell if total is None else added_shadow(total, cell)
    return total


def added_shadow(one: ShadowCell, other: ShadowCell) -> ShadowCell:
    """The sums of both, under the key of the first."""
    return ShadowCell(
        one.phase,
        one.variant,
        one.compared + other.compared,
        one.disagreed + other.disagreed,
        one.failed + other.failed,
    )


def merged_metric(one: MetricTally, other: MetricTally) -> MetricTally:
    """The sums of both."""
    return MetricTally(
        one.units + other.units,
        one.missing + other.missing,
        one.waiting + other.waiting,
        one.late + other.late,
        one.revised + other.revised,
        _merged_moments(one.moments, other.moments),
        _merged_pair(one.pair, other.pair),
        merged_histogram(one.histogram, other.histogram),
        one.closed + other.closed,
        one.told + other.told,
    )


def merged_histogram(one: dict[int, int], other: dict[int, int]) -> dict[int, int]:
    """The sums of both, in the order of their bins."""
    if not one or not other:
        return one or other
    return {key: one.get(key, 0) + other.get(key, 0) for key in sorted({*one, *other})}


def bin_of(value: float) -> int:
    """Which bin of a histogram a finite value is in; greater values have no lower bins.

    A bin is what shares sign, exponent and the first 7 bits of the fraction: its upper edge is at
    most 1/128 above its lower one, whatever the scale. Zero has the bin 0.
    """
    (bits,) = _BITS.unpack(_FLOAT.pack(abs(value)))
    index: int = bits >> _DROPPED
    return index if value >= 0 else -1 - index


def edges_of(index: int) -> tuple[float, float]:
    """The smallest and the largest value of a bin."""
    place = index if index >= 0 else -1 - index
    (low,) = _FLOAT.unpack(_BITS.pack(place << _DROPPED))
    (high,) = _FLOAT.unpack(_BITS.pack((place << _DROPPED) | _REST))
    return (low, high) if index >= 0 else (-high, -low)


def encode_cell(cell: Cell | ShadowCell) -> bytes:
    """A cell as the store holds it."""
    return _ENCODER.encode(cell)


def decode_cell(data: bytes) -> Cell:
    """Read a cell back.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _CELLS.decode(data)


def decode_shadow(data: bytes) -> ShadowCell:
    """Read a shadow's cell back.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _SHADOWS.decode(data)


def _both(one: Cell, other: Cell) -> Cell:
    metrics = dict(one.metrics)
    for name, metric in other.metrics.items():
        before = metrics.get(name)
        metrics[name] = metric if before is None else merged_metric(before, metric)
    return Cell(
        one.phase,
        one.variant,
        one.segment,
        one.assigned + other.assigned,
        one.served + other.served,
        one.received + other.received,
        one.contaminated + other.contaminated,
        tuple(map(sum, zip(one.events, other.events, strict=True))),
        metrics,
    )


def _grouped(evidence: Evidence, group_of: Callable[[Cell], int]) -> dict[int, dict[int, Cell]]:
    groups: dict[int, dict[int, Cell]] = {}
    for cell in evidence.cells:
        group = groups.setdefault(group_of(cell), {})
        before = group.get(cell.variant)
        group[cell.variant] = cell if before is None else _both(before, cell)
    return groups


def _merged_moments(one: Moments | None, other: Moments | None) -> Moments | None:
    return one.merge(other) if one is not None and other is not None else one or other


def _merged_pair(one: Comoments | None, other: Comoments | None) -> Comoments | None:
    return one.merge(other) if one is not None and other is not None else one or other


_FLOAT: Final = struct.Struct(">d")
_BITS: Final = struct.Struct(">Q")
_DROPPED: Final = 45
_REST: Final = (1 << _DROPPED) - 1
_ENCODER: Final = msgspec.msgpack.Encoder()
_CELLS: Final = msgspec.msgpack.Decoder(Cell)
_SHADOWS: Final = msgspec.msgpack.Decoder(ShadowCell)
