"""Quantiles: latency and its like, from counts in bins that add up over replicas.

Bins are log-linear between fixed bounds: each doubling is cut into the same number of equal
pieces, so a quantile is known to one part in `pieces`, and two replicas always have the same bins.
Below the lowest bound and above the highest there is one bin each.

The reading at any time rests on one count: under "the quantile q lies at x", a unit is at most x
with probability q. Mixed over a beta prior, k of n units at most x give the e-value

    e(k) = B(b + k, a + n - k) / B(b, a) / (q^k (1 - q)^(n - k)),  a = r/q, b = r/(1 - q)

A unit at x itself may count either way, so k is whatever suits the null best. The values of x
that are not rejected are the band; the product of both arms' e-values at the x that suits best
is the evidence that their quantiles differ.

Source: Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing
and best-arm identification" (2022), as in gostevehoward/confseq; Deng, Knoblich and Lu,
"Applying the delta method in metric analytics" (KDD 2018) for the reading at one look.
"""

from bisect import bisect_left
from collections.abc import Mapping
from math import ceil, floor, frexp, inf, ldexp, log, sqrt
from typing import Final, cast

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
_LARGEST: Final = 700.0  # exp of it is still finite
_STEPS: Final = 40


class Bins(Struct, frozen=True, forbid_unknown_fields=True):
    """Log-linear bins over fixed bounds.

    Bin 0 holds what is below 2^lowest (zero and negative values too), the last one what is at
    least 2^highest; the doubling from 2^e on is cut into `pieces` bins of equal width.

    Attributes:
        lowest: Exponent of the lower bound.
        highest: Exponent of the upper bound, above `lowest`.
        pieces: Bins of each doubling.
    """

    lowest: int = -14
    highest: int = 10
    pieces: int = 32

    def __post_init__(self) -> None:
        if self.highest <= self.lowest or self.pieces < 1:
            raise ValueError("Bins need an upper bound above the lower one, and a piece at least.")

    @property
    def last(self) -> int:
        """Index of the bin of all values from the upper bound on."""
        return (self.highest - self.lowest) * self.pieces + 1

    def index(self, value: float) -> int:
        """Bin of a finite value."""
        if value < ldexp(1.0, self.lowest):
            return 0
        if value >= ldexp(1.0, self.highest):
            return self.last
        fraction, exponent = frexp(value)  # value = fraction * 2^exponent, fraction in [1/2, 1)
        piece = int((2 * fraction - 1) * self.pieces)
        return (exponent - 1 - self.lowest) * self.pieces + piece + 1

    def lower(self, index: int) -> float:
        """Lower edge of a bin; minus infinity for bin 0."""
        if index == 0:
            return -inf
        doubling, piece = divmod(index - 1, self.pieces)
        return ldexp(1 + piece / self.pieces, doubling + self.lowest)

    def upper(self, index: int) -> float:
        """Upper edge of a bin; infinity for the last."""
        return inf if index == self.last else self.lower(index + 1)


class Histogram(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Units per bin; only bins that hold something need to be there."""

    bins: Bins = Bins()
    counts: dict[int, int] = {}

    @property
    def n(self) -> int:
        """Units."""
        return sum(self.counts.values())

    def merge(self, other: "Histogram") -> "Histogram":
        """Units of both.

        Raises:
            ValueError: The bins differ.
        """
        if other.bins != self.bins:
            raise ValueError("Histograms over different bins do not add up.")
        counts: dict[int, int] = dict(self.counts)
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count
        return Histogram(self.bins, counts)


class QuantileBand(Struct, frozen=True):
    """A quantile and where it may lie; None where an end is beyond the fixed bounds."""

    estimate: float | None
    lower: float | None
    upper: float | None


def quantile_variance(
    n: int, level: float, lower: float, upper: float, clustered: float | None = None
) -> float:
    """Squared standard error of a sample quantile, from two order statistics: for one look.

    ((upper - lower) / (2 z))^2 (n - 1) / n with z = 1.96, where `lower` and `upper` are the values
    at ranks n (q -+ z sqrt(q (1 - q) / n)), see `ranks`. It needs n > 4 max(q/(1-q), (1-q)/q).

    Args:
        n: Values.
        level: The q of the quantile.
        clustered: Where a unit has several values: the variance of the share of values below the
            quantile, taken over units (`ratio_sample` divided by its n); the result is then
            multiplied by clustered / (q (1 - q) / n).
    """
    z = float(special.ndtri(0.975))
    iid = ((upper - lower) / (2 * z)) ** 2 * (n - 1) / n
    return iid if clustered is None else iid * clustered / (level * (1 - level) / n)


def ranks(n: int, level: float) -> tuple[int, int, int]:
    """Ranks, from 1, of the sample quantile and of the 95 per cent interval around it."""
    half = float(special.ndtri(0.975)) * sqrt(n * level * (1 - level))
    middle = min(max(ceil(n * level), 1), n)
    return max(floor(n * level - half), 1), middle, min(ceil(n * level + half), n)


def quantile_log_e(
    below: float | Floats, n: float, level: float, planned: float, alpha: float = 0.05
) -> float | Floats:
    """Natural log of e(k) above, k = `below` units of n at or below the supposed quantile.

    Args:
        below: Units at or below; it need not be a whole number.
        planned: Units of this arm at which the band shall be tightest.
        alpha: Level at which it shall.
    """
    a, b, base = _prior(level, planned, alpha)
    above = n - below
    likelihood = below * log(level) + above * log(1 - level)
    log_e = special.betaln(b + below, a + above) - base - likelihood
    return cast("float | Floats", log_e)


def quantile_band(
    histogram: Histogram, level: float, planned: float, alpha: float = 0.05
) -> QuantileBand:
    """One arm's quantile, with a band that holds at every look.

    The estimate is the middle of its bin; the band's ends are the outer edges of theirs.
    """
    indexes, through = _cumulated(histogram)
    n = int(through[-1]) if len(through) else 0
    if n == 0:
        return QuantileBand(None, None, None)
    bins = histogram.bins
    first, last = _accepted(n, level, planned, alpha)
    # x is too low while fewer than `first` units lie at or below it, and too high once more than
    # `last` lie strictly below it.
    low, high = (bisect_left(through, rank) for rank in (max(first, 1), last + 1))
    middle = indexes[bisect_left(through, max(ceil(n * level), 1))]
    lower = bins.lower(indexes[low]) if first > 0 else -inf
    upper = bins.upper(indexes[high]) if last < n else inf
    centre = (bins.lower(middle) + bins.upper(middle)) / 2
    return QuantileBand(_finite(centre), _finite(lower), _finite(upper))


def quantile_p(
    control: Histogram, treatment: Histogram, level: float, planned: float, alpha: float = 0.05
) -> float:
    """P-value, valid at every look, of the two arms having the same quantile.

    Within a bin the order of values is not known and the order that suits the null is taken.

    Args:
        planned: Units of each arm at which the test shall be most powerful.

    Raises:
        ValueError: The bins differ.
    """
    if control.bins != treatment.bins:
        raise ValueError("Histograms over different bins cannot be compared.")
    both = sorted({*control.counts, *treatment.counts})
    log_e = sum(
        _suited(*_around(arm.counts, both), level=level, planned=planned, alpha=alpha)
        for arm in (control, treatment)
    )
    return _p(log_e)


def sample_quantile_p(
    control: Floats, treatment: Floats, level: float, planned: float, alpha: float = 0.05
) -> float:
    """The same from the values themselves, sorted or not."""
    both = np.union1d(control, treatment)
    log_e = sum(
        _suited(
            np.searchsorted(np.sort(arm), both, "left").astype(np.float64),
            np.searchsorted(np.sort(arm), both, "right").astype(np.float64),
            level=level,
            planned=planned,
            alpha=alpha,
        )
        for arm in (control, treatment)
    )
    return _p(log_e)


def _prior(level: float, planned: float, alpha: float) -> tuple[float, float, float]:
    """Parameters a and b of the prior, and the log of its beta function."""
    spread = level * (1 - level)
    doubled = -2 * log(alpha)
    rho = planned * spread / (doubled + log(1 + doubled))
    r = max(rho - spread, 1e-3 * spread)
    a, b = r / level, r / (1 - level)
    return a, b, float(special.betaln(a, b))


def _least(n: float, level: float, planned: float, alpha: float) -> float:
    """The k in 0..n at which e(k) is least: where its derivative is zero, by bisection.

    psi(b + k) - psi(a + n - k) = ln(q / (1 - q)), whose left side rises with k.
    """
    a, b, _ = _prior(level, planned, alpha)
    target = log(level / (1 - level))
    near = level * (a + n - 0.5) - (1 - level) * (b - 0.5)  # psi(x) is about ln(x - 1/2)
    low, high = max(near - 2, 0.0), min(near + 2, float(n))
    for _ in range(_STEPS):
        k = (low + high) / 2
        if special.psi(b + k) - special.psi(a + n - k) < target:
            low = k
        else:
            high = k
    return (low + high) / 2


def _accepted(n: int, level: float, planned: float, alpha: float) -> tuple[int, int]:
    """The first and the last whole k of 0..n with e(k) < 1 / alpha."""
    threshold = -log(alpha)
    least = _least(n, level, planned, alpha)

    def rejects(k: int) -> bool:
        return bool(quantile_log_e(k, n, level, planned, alpha) >= threshold)

    low, high = -1, ceil(least)  # low is rejected, high is not
    while high - low > 1:
        k = (low + high) // 2
        low, high = (k, high) if rejects(k) else (low, k)
    first = high
    low, high = floor(least), n + 1
    while high - low > 1:
        k = (low + high) // 2
        low, high = (low, k) if rejects(k) else (k, high)
    return first, low


def _suited(
    below: Floats, through: Floats, *, level: float, planned: float, alpha: float
) -> Floats:
    """Log e of one arm at each place, with the k in [below, through] that suits the null best."""
    n = float(through[-1]) if len(through) else 0.0
    k = np.clip(_least(n, level, planned, alpha), below, through)
    return np.asarray(quantile_log_e(k, n, level, planned, alpha), dtype=np.float64)


def _around(counts: Mapping[int, int], indexes: list[int]) -> tuple[Floats, Floats]:
    """Units in the bins before each of the bins, and through it."""
    own = np.array([counts.get(index, 0) for index in indexes], dtype=np.float64)
    through = np.cumsum(own)
    return through - own, through


def _cumulated(histogram: Histogram) -> tuple[list[int], list[int]]:
    """Bins that hold something, in order, and the units through each."""
    indexes = sorted(index for index, count in histogram.counts.items() if count > 0)
    through, total = [], 0
    for index in indexes:
        total += histogram.counts[index]
        through.append(total)
    return indexes, through


def _p(log_e: Floats | float) -> float:
    """Least evidence of all places, as a p-value; one where there is no place."""
    least = float(np.min(log_e, initial=inf))
    return 1.0 if least in (inf, -inf) else float(np.exp(-max(min(least, _LARGEST), 0.0)))


def _finite(value: float) -> float | None:
    return value if -inf < value < inf else None
