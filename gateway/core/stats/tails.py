"""Logarithms of tail probabilities that would underflow as floats."""

from math import inf, log
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

_SMALL: Final = 1e-290
_MAX_TERMS: Final = 20_000
_CLOSE: Final = 1e-15


def log_beta_below(a: ArrayLike, b: ArrayLike, x: float) -> NDArray[np.float64]:
    """Logarithm of P[Beta(a, b) < x], also where the probability is too small to be a float.

    Args:
        a: first parameter, above 0.
        b: second parameter, above 0; of the shape of `a`.
        x: in (0, 1).

    Source: NIST DLMF 8.17.22, the continued fraction of the incomplete beta function, which
    converges fast in the far tail: at counts of 10 million in about 100 terms.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    probability = special.betainc(first, second, x)
    return _log_or_fraction(probability, first, second, x)


def log_beta_above(a: ArrayLike, b: ArrayLike, x: float) -> NDArray[np.float64]:
    """Logarithm of P[Beta(a, b) > x]; arguments and source as in `log_beta_below`."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    probability = special.betaincc(first, second, x)
    # The tail above x is the tail below 1 − x with the parameters swapped.
    return _log_or_fraction(probability, second, first, 1 - x)


def _log_or_fraction(
    probability: NDArray[np.floating], a: NDArray[np.float64], b: NDArray[np.float64], x: float
) -> NDArray[np.float64]:
    tiny = probability < _SMALL
    if not np.any(tiny):
        return np.log(np.asarray(probability, dtype=np.float64))
    shape = np.shape(tiny)
    result = np.log(np.maximum(np.atleast_1d(probability), _SMALL), dtype=np.float64)
    many_a, many_b = np.atleast_1d(np.broadcast_to(a, shape), np.broadcast_to(b, shape))
    for index in zip(*np.nonzero(np.atleast_1d(tiny)), strict=True):
        result[index] = _log_tail(float(many_a[index]), float(many_b[index]), x)
    return result.reshape(shape)


def _log_tail(a: float, b: float, x: float) -> float:
    """Logarithm of I_x(a, b) far below the mean, by the fraction of Lentz's algorithm."""
    front = a * log(x) + b * float(np.log1p(-x)) - float(special.betaln(a, b)) - log(a)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction, step, m = d, inf, 0
    while abs(step - 1) > _CLOSE and m < _MAX_TERMS:
        m += 1
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + even * d)
        c = 1 + even / c
        fraction *= c * d
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + odd * d)
        c = 1 + odd / c
        step = c * d
        fraction *= step
    return front + log(fraction)
