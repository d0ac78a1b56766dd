"""Assignment as GrowthBook does it, for units that must keep the variant that they have there.

For moving an experiment over, and for nothing new: one hash decides both enrolment and variant,
with a resolution of a thousandth (version 1) or a ten-thousandth (version 2), version 1 correlates
experiments that share units, and a change of weights moves more units than it must.

Source: GrowthBook's public SDK specification 0.5.4: `hash`, `getBucketRanges`, `chooseVariation`
and `inNamespace`; its published cases are `tests/golden/growthbook.json`.
"""

import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from gateway.core.assignment import SCALE

Range: TypeAlias = tuple[float, float]
"""A half-open part of 0 to 1."""

VERSIONS: Final[Mapping[str, int]] = {"growthbook-1": 101, "growthbook-2": 102}
"""What a split calls them, and the hash version that its state has."""
FIRST: Final = 101
_OFFSET: Final = 0x811C9DC5
_PRIME: Final = 0x01000193
_MASK: Final = 0xFFFFFFFF
_STEPS: Final = {1: 1_000, 2: 10_000}
_TOLERANCE: Final = 0.01
"""By how much weights may miss 1 before they count as equal ones."""


def fnv1a32(text: str) -> int:
    """FNV-1a of 32 bits over UTF-16 code units, as a script in a browser sees a text.

    Source: Fowler, Noll and Vo; the units are GrowthBook's choice.
    """
    encoded = text.encode("utf-16-le", "surrogatepass")
    value = _OFFSET
    for unit in struct.unpack(f"<{len(encoded) // 2}H", encoded):
        value = ((value ^ unit) * _PRIME) & _MASK
    return value


def hashed(seed: str, value: str, version: int) -> float | None:
    """Where a value stands between 0 and 1; None under a version that is unknown."""
    if version == 1:
        return (fnv1a32(value + seed) % _STEPS[1]) / _STEPS[1]
    if version == 2:  # noqa: PLR2004 - GrowthBook's number
        return (fnv1a32(str(fnv1a32(seed + value))) % _STEPS[2]) / _STEPS[2]
    return None


def ranges_of(count: int, coverage: float, weights: Sequence[float] | None) -> list[Range]:
    """The part of each variation: it starts where the one before would end at full coverage.

    So no start moves with coverage. Weights that are not one for each, or do not add up to 1, are
    equal ones; coverage is cut to 0 to 1.
    """
    covered = min(max(coverage, 0.0), 1.0)
    if weights is None or len(weights) != count or abs(sum(weights) - 1) > _TOLERANCE:
        weights = [1 / count] * count
    ranges = []
    start = 0.0
    for weight in weights:
        ranges.append((start, start + covered * weight))
        start += weight
    return ranges


def choose(place: float, ranges: Sequence[Range]) -> int:
    """The first range that a place is in; -1 for none."""
    for index, (start, end) in enumerate(ranges):
        if start <= place < end:
            return index
    return -1


def in_namespace(unit: str, name: str, start: float, end: float) -> bool:
    """Whether a unit is in a part of a namespace, which keeps experiments apart."""
    place = hashed(f"__{name}", unit, 1)
    return place is not None and start <= place < end


class Ranges:
    """A split compiled for drawing as GrowthBook does; draws as `assignment.Drawer`."""

    __slots__ = ("_names", "_ranges", "_seed", "_version")

    def __init__(
        self, seed: str, hash_version: int, weights: Mapping[str, int], exposure: int
    ) -> None:
        """Weights in the order of the document, and `exposure`, are out of 10,000."""
        self._seed = seed
        self._version = hash_version - FIRST + 1
        self._names = list(weights)
        fractions = [weight / SCALE for weight in weights.values()]
        self._ranges = ranges_of(len(fractions), exposure / SCALE, fractions)

    def place(self, unit: bytes) -> float | None:
        """Where a unit stands; bytes that are no UTF-8 are told apart all the same."""
        return hashed(self._seed, unit.decode("utf-8", "surrogateescape"), self._version)

    def draw(self, unit: bytes) -> str | None:
        """The name of the unit's variant, or None when the unit is not enrolled."""
        place = self.place(unit)
        index = -1 if place is None else choose(place, self._ranges)
        return None if index < 0 else self._names[index]

    def share(self, name: str) -> float:
        """The share of all units that gets a variant: what the hash's steps make of its weight."""
        steps = _STEPS.get(self._version)
        if steps is None:
            return 0.0
        grid, (start, end) = _grid(steps), self._ranges[self._names.index(name)]
        return (bisect_left(grid, end) - bisect_left(grid, start)) / steps

    def moved(self, other: "Ranges") -> float:
        """The share of units that get another variant there, under the same seed and version."""
        steps = _STEPS.get(self._version, 0)
        places = _grid(steps)
        changed = sum(self._at(place) != other._at(place) for place in places)  # noqa: SLF001 - its own kind
        return changed / max(steps, 1)

    def _at(self, place: float) -> str | None:
        index = choose(place, self._ranges)
        return None if index < 0 else self._names[index]


@lru_cache(maxsize=2)
def _grid(steps: int) -> list[float]:
    return [step / steps for step in range(steps)]
