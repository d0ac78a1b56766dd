"""Arms: the units of a variant and of its control, laid side by side in strata of equal chances.

Which variant a unit got was drawn with the weights of its first phase. Phases with the same weights
are one stratum and simply add up; over strata with other weights nothing may be added up without
regard to them, or a change of weights looks like an effect (Simpson's paradox).
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter, mul
from typing import Final

from msgspec import Struct

from gateway.core.experiments import ExperimentRecord
from gateway.core.stats.means import MIN_SPREAD
from gateway.core.stats.moments import Comoments, Moments
from gateway.core.tallies import Cell, Evidence

Cells = Sequence[Cell]
OWN_SPREAD: Final = 30
"""Units of an arm in a stratum from which on its own variance is believed."""


class Stratum(Struct, frozen=True):
    """All units that were drawn with one set of weights: cells by variant, in document order."""

    weights: tuple[int, ...]
    cells: tuple[tuple[Cell, ...], ...]

    def counted(self, name: str) -> list[int]:
        """`assigned`, `served`, `received` or `contaminated` of each variant."""
        count = attrgetter(name)
        return [
            count(cells[0]) if len(cells) == 1 else sum(map(count, cells)) for cells in self.cells
        ]


class Pair(Struct, frozen=True):
    """One variant beside the control in one stratum; `share` is its chance among the two."""

    share: float
    control: tuple[Cell, ...]
    treatment: tuple[Cell, ...]

    @property
    def assigned(self) -> tuple[int, int]:
        """Units of the control and of the variant."""
        return _assigned(self.control), _assigned(self.treatment)

    def events(self, guard: int) -> tuple[int, int]:
        """Units with the event of a guard, by its index: of the control and of the variant."""
        return _events(self.control, guard), _events(self.treatment, guard)


def strata(record: ExperimentRecord, evidence: Evidence, *, first: int = 0) -> tuple[Stratum, ...]:
    """The evidence by weights, in the order in which those were first used.

    Args:
        first: Number of the first phase that counts. Cells of unknown phases never do.
    """
    names = [variant.name for variant in record.document.variants]
    weights = {
        phase.number: tuple(phase.weights.get(name, 0) for name in names)
        for phase in record.phases
        if phase.number >= first
    }
    found: dict[tuple[int, ...], list[list[Cell]]] = {}
    for cell in evidence.cells:
        drawn = weights.get(cell.phase)
        if drawn is None or not 0 <= cell.variant < len(names):
            continue
        found.setdefault(drawn, [[] for _ in names])[cell.variant].append(cell)
    return tuple(
        Stratum(drawn, tuple(tuple(cells) for cells in variants))
        for drawn, variants in found.items()
    )


def pairs_of(all_strata: Iterable[Stratum], index: int) -> tuple[Pair, ...]:
    """A variant beside the control, wherever both had a chance.

    Among the units of these two alone, each is the variant's with the chance w / (w + w_control),
    so strata with the same ratio are one.
    """
    found: dict[float, tuple[list[Cell], list[Cell]]] = {}
    for stratum in all_strata:
        control, treatment = stratum.weights[0], stratum.weights[index]
        if not control or not treatment:
            continue
        both = found.setdefault(treatment / (control + treatment), ([], []))
        both[0].extend(stratum.cells[0])
        both[1].extend(stratum.cells[index])
    return tuple(Pair(share, tuple(old), tuple(new)) for share, (old, new) in found.items())


def overlap(share: float, units: int) -> float:
    """What a stratum weighs in an effect over strata: n p (1 - p).

    Known before any outcome, so that nothing is chosen by results, and the weights with the least
    variance where the effect is the same in all. Many units of which hardly any had a choice weigh
    little; weights by units alone would let the first step of a ramp outweigh all that follow.

    Source: Li, Morgan and Zaslavsky, "Balancing covariates via propensity score weighting" (2018).
    """
    return units * share * (1.0 - share)


def overlap_of(weights: Sequence[int], units: int) -> float:
    """The same for any number of arms: n over the sum of 1 / p."""
    whole = sum(weights)
    return units / sum(whole / weight for weight in weights)


def together(parts: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """One arm over strata, in the form of plain sums whose mean and variance are the arm's.

    mean = sum w m and variance = n sum w^2 s^2 / n_h with w summing to one. The spread of an arm
    with few units in a stratum is that within all strata.
    """
    shares = _shares(weights)
    mean = _mixed(shares, [part.mean for part in parts])
    spread = _spread(parts, shares, [part.variance for part in parts])
    n = sum(part.n for part in parts)
    return Moments(n, mean, squares=(spread * (n - 1), 0.0))


def pairs_together(parts: Sequence[Comoments], weights: Sequence[float]) -> Comoments:
    """The same for pairs of values, with their covariance."""
    y, x = [part.y for part in parts], [part.x for part in parts]
    shares = _shares(weights)
    product = _spread(y, shares, [part.covariance for part in parts])
    old_y, old_x = together(y, weights), together(x, weights)
    return Comoments(y=old_y, x=old_x, products=(product * (old_y.n - 1), 0.0))


def has_spread(units: Sequence[int]) -> bool:
    """Whether every arm of a stratum has the units for a variance."""
    return min(units) >= MIN_SPREAD


def _shares(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]


def _mixed(shares: Sequence[float], values: Sequence[float]) -> float:
    return sum((share * value for share, value in zip(shares, values, strict=True)), 0.0)


def _spread(parts: Sequence[Moments], shares: Sequence[float], own: Sequence[float]) -> float:
    """Units times sum w^2 s^2 / n_h; s^2 is a variance, or a covariance."""
    free = [part.n - 1 for part in parts]
    within = sum(map(mul, free, own)) / sum(free)
    total = 0.0
    for part, share, spread in zip(parts, shares, own, strict=True):
        total += share * share * (spread if part.n >= OWN_SPREAD else within) / part.n
    return total * sum(part.n for part in parts)


def _assigned(cells: Iterable[Cell]) -> int:
    return sum(cell.assigned for cell in cells)


def _events(cells: Iterable[Cell], guard: int) -> int:
    return sum(cell.events[guard] for cell in cells if guard < len(cell.events))
