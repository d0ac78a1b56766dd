"""Moments: what is remembered of a metric's values, one per unit. It adds up over replicas.

Sums are taken of deviations from a shift c, because raw sums of squares cancel, and are held as
pairs of floats (`exact`), so that any partition, in any order, with any
shifts, gives the mean and the variance of a single pass to 1e-12.

Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983).

    mean = c + S1/n,   variance = (S2 - S1^2/n) / (n - 1),   S1 = sum(y - c), S2 = sum((y - c)^2)
    shift c to c':  S1' = S1 + n d,   S2' = S2 + d (2 S1 + n d),   d = c - c'
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from gateway.core.stats.exact import ZERO, Pair, add, divide, multiply, negative, two_sum

LIMIT: Final = 1e100
"""Values, shifts and their differences beyond this magnitude are refused: squares must be finite.
"""
_PLAIN: Final = 0.01


class Moments(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sums of one value per unit; they may be stored and sent as JSON.

    Attributes:
        n: Units.
        shift: The c that is subtracted of each value, in the value's unit. Any number near the
            values will do; zero does too.
        total: Sum of (y - c), high and low part.
        squares: Sum of (y - c)^2, high and low part.
    """

    n: int = 0
    shift: float = 0.0
    total: Pair = ZERO
    squares: Pair = ZERO

    @classmethod
    def of(cls, values: Iterable[float], shift: float = 0.0) -> "Moments":
        """Sums of the values in one pass."""
        moments = cls(shift=shift)
        for value in values:
            moments = moments.add(value)
        return moments

    @classmethod
    def of_counts(cls, n: int, events: int) -> "Moments":
        """Sums of n units of which `events` have the value one, the others zero."""
        return cls.of_sums(n, float(events), float(events))

    @classmethod
    def of_sums(cls, n: int, total: float, squares: float) -> "Moments":
        """From a raw sum and a raw sum of squares that somebody else took."""
        return cls(n, 0.0, (total, 0.0), (squares, 0.0))

    @property
    def mean(self) -> float:
        """Mean, in the value's unit; zero where nothing was counted."""
        if self.n == 0:
            return 0.0
        if self.shift == 0.0:
            return self.total[0] / self.n
        return add(divide(self.total, self.n), (self.shift, 0.0))[0]

    @property
    def variance(self) -> float:
        """Variance of a unit with n - 1 below, never negative; zero for fewer than two units."""
        if self.n < 2:  # noqa: PLR2004 - one value has no spread
            return 0.0
        return max(_spread(self.squares, self.total, self.total, self.n) / (self.n - 1), 0.0)

    def add(self, value: float) -> "Moments":
        """These and one more unit.

        Raises:
            ValueError: The value is not a number or beyond `LIMIT`.
        """
        return self._stepped(value, 1)

    def remove(self, value: float) -> "Moments":
        """These without a unit that was added with this value.

        Raises:
            ValueError: There is no unit to take away, or no unit can have had this value.
        """
        if self.n == 0:
            raise ValueError("No unit was counted that could be taken away.")
        if self.n == 1:
            return Moments(shift=self.shift)
        return self._stepped(value, -1)

    def replace(self, old: float, new: float) -> "Moments":
        """These with one unit's value revised.

        Raises:
            ValueError: As for `add` and `remove`.
        """
        return self.remove(old).add(new)

    def merge(self, other: "Moments") -> "Moments":
        """Sums over the units of both, with this shift (the other's where this is empty)."""
        if self.n == 0:
            return other
        moved = other if other.shift == self.shift else other.rebased(self.shift)
        return Moments(
            self.n + moved.n,
            self.shift,
            add(self.total, moved.total),
            add(self.squares, moved.squares),
        )

    def rebased(self, shift: float) -> "Moments":
        """The same units with another shift."""
        step = deviation(self.shift, shift)
        moved = multiply(step, (float(self.n), 0.0))
        total = self.total
        twice = (2 * total[0], 2 * total[1])
        squares = add(self.squares, multiply(step, add(twice, moved)))
        return Moments(self.n, shift, add(total, moved), squares)

    def _stepped(self, value: float, sign: int) -> "Moments":
        """These and one unit more (sign 1) or less (sign -1)."""
        step = deviation(value, self.shift)
        square = multiply(step, step)
        if sign < 0:
            step, square = negative(step), negative(square)
        return Moments(self.n + sign, self.shift, add(self.total, step), add(self.squares, square))


class Comoments(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Sums of a pair of values per unit: numerator and denominator, or value and covariate.

    Attributes:
        y: Sums of the first values.
        x: Sums of the second values, over the same units.
        products: Sum of (y - shift of y) (x - shift of x), high and low part.
    """

    y: Moments = Moments()
    x: Moments = Moments()
    products: Pair = ZERO

    def __post_init__(self) -> None:
        if self.y.n != self.x.n:
            raise ValueError("Both values of a pair are counted over the same units.")

    @classmethod
    def of(
        cls, pairs: Iterable[tuple[float, float]], shifts: tuple[float, float] = (0.0, 0.0)
    ) -> "Comoments":
        """Sums of (y, x) pairs in one pass; `shifts` are those of y and x."""
        comoments = cls(y=Moments(shift=shifts[0]), x=Moments(shift=shifts[1]))
        for y, x in pairs:
            comoments = comoments.add(y, x)
        return comoments

    @property
    def n(self) -> int:
        """Units."""
        return self.y.n

    @property
    def covariance(self) -> float:
        """Covariance of y and x with n - 1 below; zero for fewer than two units."""
        if self.n < 2:  # noqa: PLR2004 - one pair has no spread
            return 0.0
        return _spread(self.products, self.y.total, self.x.total, self.n) / (self.n - 1)

    def add(self, y: float, x: float) -> "Comoments":
        """These and one more unit.

        Raises:
            ValueError: A value is not a number or beyond `LIMIT`.
        """
        product = multiply(deviation(y, self.y.shift), deviation(x, self.x.shift))
        return Comoments(self.y.add(y), self.x.add(x), add(self.products, product))

    def remove(self, y: float, x: float) -> "Comoments":
        """These without a unit that was added with these values.

        Raises:
            ValueError: There is no unit to take away, or no unit can have had these values.
        """
        left_y, left_x = self.y.remove(y), self.x.remove(x)
        if left_y.n == 0:
            return Comoments(y=left_y, x=left_x)
        product = multiply(deviation(y, self.y.shift), deviation(x, self.x.shift))
        return Comoments(left_y, left_x, add(self.products, negative(product)))

    def replace(self, old: tuple[float, float], new: tuple[float, float]) -> "Comoments":
        """These with one unit's pair (y, x) revised.

        Raises:
            ValueError: As for `add` and `remove`.
        """
        return self.remove(*old).add(*new)

    def merge(self, other: "Comoments") -> "Comoments":
        """Sums over the units of both, with these shifts (the other's where this is empty)."""
        if self.n == 0:
            return other
        moved = other.rebased(self.y.shift, self.x.shift)
        return Comoments(
            self.y.merge(moved.y),
            self.x.merge(moved.x),
            add(self.products, moved.products),
        )

    def rebased(self, y_shift: float, x_shift: float) -> "Comoments":
        """The same units with other shifts: P' = P + d_y S_x' + d_x S_y, S_x' after the shift."""
        if (y_shift, x_shift) == (self.y.shift, self.x.shift):
            return self
        y, x = self.y.rebased(y_shift), self.x.rebased(x_shift)
        by_y = multiply(deviation(self.y.shift, y_shift), x.total)
        by_x = multiply(deviation(self.x.shift, x_shift), self.y.total)
        return Comoments(y, x, add(self.products, add(by_y, by_x)))


def deviation(value: float, shift: float) -> Pair:
    """How far a value is from a shift, without error.

    Raises:
        ValueError: A number is not finite, or beyond `LIMIT`.
    """
    step = two_sum(value, -shift)
    if not -LIMIT <= value <= LIMIT or not -LIMIT <= step[0] <= LIMIT:
        raise ValueError("A value must be a finite number of at most 1e100 in magnitude.")
    return step


def _spread(products: Pair, y: Pair, x: Pair, n: int) -> float:
    """P - S_y S_x / n; in plain floats where less than two digits cancel, which is faster."""
    plain = products[0] - y[0] * x[0] / n
    if abs(plain) > _PLAIN * abs(products[0]):
        return plain
    return add(products, negative(divide(multiply(y, x), n)))[0]
