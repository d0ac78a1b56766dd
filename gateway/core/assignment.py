"""Assignment: which Variant a Unit gets, computed from stored state and nothing else.

Two hashes of the unit, both from one keyed BLAKE2b digest over the unit's bytes with the split's
salt as key: the first 64 bits decide enrolment, the last 64 the variant. They are independent, so
a ramp of exposure never moves a unit that is enrolled. Each is scaled to 0..9,999 by
`(hash * 10,000) >> 64`, which is uniform to one part in 10^15.

Each variant owns a stored list of intervals of 0..9,999. A weight edit cuts surplus off the
shrinking variants and hands exactly those pieces to the growing ones, so the share of enrolled
units that move is the total variation distance between the two sets of weights, the least
possible.

An assignment never changes for a given `hash_version`: `tests/golden/assignment.json` holds it.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Final, TypeAlias

from msgspec import Struct

SCALE: Final = 10_000
HASH_VERSION: Final = 1
_PERSON: Final = b"tiltyard-split-1"

Interval: TypeAlias = tuple[int, int]
"""A half-open range [start, end) of 0..10,000."""


class Reason(StrEnum):
    """Why a request was answered by its variant."""

    STATIC = "static"
    """No rule is configured: the endpoint follows its default."""
    SPLIT = "split"
    """A weighted split drew the variant."""
    TARGETING_MATCH = "targeting_match"
    """A rule with a single target held."""
    DEFAULT = "default"
    """No rule held, or the unit is not enrolled."""
    FORCED = "forced"
    """The caller forced the variant; left out of analysis."""
    PINNED = "pinned"
    """The caller named a version in the path; left out of analysis."""
    FALLBACK = "fallback"
    """The assigned variant could not answer and the rule falls back to the default."""


class SplitState(Struct, frozen=True, forbid_unknown_fields=True):
    """What must be remembered of a split so that units keep their variant."""

    salt: str
    hash_version: int
    intervals: dict[str, tuple[Interval, ...]]

    @classmethod
    def fresh(cls, *, salt: str, hash_version: int, weights: Mapping[str, int]) -> "SplitState":
        """Contiguous intervals in the given order, for a split that was never served."""
        intervals: dict[str, tuple[Interval, ...]] = {}
        start = 0
        for name, weight in weights.items():
            intervals[name] = ((start, start + weight),) if weight else ()
            start += weight
        return cls(salt=salt, hash_version=hash_version, intervals=intervals)


@dataclass(frozen=True, slots=True)
class Positions:
    """Where a unit stands in a split: two independent numbers out of 0..9,999."""

    enrolment: int
    variant: int


def positions(salt: str, unit: bytes) -> Positions:
    """Hash a unit under hash version 1.

    Args:
        salt: the split's salt, at most 64 bytes of UTF-8.
        unit: the unit's bytes, exactly as they came.
    """
    digest = blake2b(unit, digest_size=16, key=salt.encode(), person=_PERSON).digest()
    return Positions(
        enrolment=(int.from_bytes(digest[:8], "big") * SCALE) >> 64,
        variant=(int.from_bytes(digest[8:], "big") * SCALE) >> 64,
    )


def reweigh(state: SplitState, weights: Mapping[str, int]) -> SplitState:
    """Move to new weights with the least movement of units.

    Args:
        state: the stored intervals, which cover 0..9,999 exactly.
        weights: the weight of each variant after the change, adding up to 10,000; a variant
            that is missing has none.

    Source: total variation coupling; the moved share is half the sum of |new - old| weights.
    """
    pool: list[Interval] = []
    kept: dict[str, tuple[Interval, ...]] = {}
    for name, owned in state.intervals.items():
        surplus = _width(owned) - weights.get(name, 0)
        kept[name], cut = _cut_tail(owned, max(surplus, 0))
        pool.extend(cut)
    pool.sort()
    grown: dict[str, tuple[Interval, ...]] = {}
    for name, weight in weights.items():
        owned = kept.get(name, ())
        given = _take(pool, weight - _width(owned))
        grown[name] = _join((*owned, *given))
    return SplitState(salt=state.salt, hash_version=state.hash_version, intervals=grown)


def covers_exactly(state: SplitState) -> bool:
    """Whether the intervals tile 0..9,999 without a gap or an overlap."""
    pieces = sorted(piece for owned in state.intervals.values() for piece in owned)
    edge = 0
    for start, end in pieces:
        if start != edge or end <= start:
            return False
        edge = end
    return edge == SCALE


class Drawer:
    """A split compiled for drawing: a hasher that holds the salt, and sorted interval edges."""

    __slots__ = ("_edges", "_hasher", "_left_out", "_owners")

    def __init__(self, state: SplitState, exposure: int) -> None:
        """Compile the stored state; `exposure` is out of 10,000."""
        pieces = sorted(
            (start, name) for name, owned in state.intervals.items() for start, _ in owned
        )
        self._edges = [_least(start) for start, _ in pieces]
        self._owners = [name for _, name in pieces]
        self._left_out = _least(exposure)
        self._hasher = blake2b(digest_size=16, key=state.salt.encode(), person=_PERSON)

    def draw(self, unit: bytes) -> str | None:
        """The name of the unit's variant, or None when the unit is not enrolled."""
        hasher = self._hasher.copy()
        hasher.update(unit)
        digest = hasher.digest()
        if digest[:8] >= self._left_out:
            return None
        return self._owners[bisect_right(self._edges, digest[8:]) - 1]


def _least(position: int) -> bytes:
    """The least hash that is scaled to this position; for 10,000 more than any hash.

    Hashes are compared as they come, big-endian, which says the same as to scale each of them.
    """
    if position == SCALE:
        return b"\xff" * 9
    return (-(-(position << 64) // SCALE)).to_bytes(8, "big")


def _width(owned: tuple[Interval, ...]) -> int:
    return sum(end - start for start, end in owned)


def _cut_tail(
    owned: tuple[Interval, ...], surplus: int
) -> tuple[tuple[Interval, ...], list[Interval]]:
    kept = list(owned)
    cut: list[Interval] = []
    while surplus > 0:
        start, end = kept.pop()
        taken = min(surplus, end - start)
        cut.append((end - taken, end))
        if taken < end - start:
            kept.append((start, end - taken))
        surplus -= taken
    return tuple(kept), cut


def _take(pool: list[Interval], wanted: int) -> list[Interval]:
    given: list[Interval] = []
    while wanted > 0:
        start, end = pool.pop(0)
        taken = min(wanted, end - start)
        given.append((start, start + taken))
        if taken < end - start:
            pool.insert(0, (start + taken, end))
        wanted -= taken
    return given


def _join(pieces: tuple[Interval, ...]) -> tuple[Interval, ...]:
    joined: list[Interval] = []
    for start, end in sorted(pieces):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)
