"""Sums that do not cancel: numbers held as an unevaluated pair of floats, about 32 digits.

A pair (high, low) stands for high + low with |low| <= half a unit in the last place of high.
Numbers must be below 1e150 in magnitude, so that no product overflows.

Source: Dekker, "A floating-point technique for extending the available precision" (1971); Hida,
Li and Bailey, "Algorithms for quad-double precision floating point arithmetic" (2001).
"""

from typing import Final, TypeAlias

Pair: TypeAlias = tuple[float, float]
"""High and low part of one number."""

ZERO: Final[Pair] = (0.0, 0.0)
_SPLITTER: Final = 134_217_729.0  # 2^27 + 1 cuts a float into two halves of 26 bits


def two_sum(a: float, b: float) -> Pair:
    """Sum of a and b without error."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def two_product(a: float, b: float) -> Pair:
    """Product of a and b without error."""
    high = a * b
    scaled = _SPLITTER * a
    a_high = scaled - (scaled - a)
    a_low = a - a_high
    scaled = _SPLITTER * b
    b_high = scaled - (scaled - b)
    b_low = b - b_high
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


def add(a: Pair, b: Pair) -> Pair:
    """Sum of a and b, relative error about 1e-32."""
    high, low = two_sum(a[0], b[0])
    rest, rest_low = two_sum(a[1], b[1])
    high, low = _renormal(high, low + rest)
    return _renormal(high, low + rest_low)


def negative(a: Pair) -> Pair:
    """The number with the other sign."""
    return -a[0], -a[1]


def multiply(a: Pair, b: Pair) -> Pair:
    """Product of a and b, relative error about 1e-31."""
    high, low = two_product(a[0], b[0])
    return _renormal(high, low + (a[0] * b[1] + a[1] * b[0]))


def divide(a: Pair, b: float) -> Pair:
    """Quotient of a and a plain float b that is not zero, relative error about 1e-31."""
    quotient = a[0] / b
    high, low = two_product(quotient, b)
    return _renormal(quotient, ((a[0] - high) - low + a[1]) / b)


def _renormal(high: float, low: float) -> Pair:
    """The same number with the low part below the last place of the high one."""
    total = high + low
    return total, low - (total - high)
