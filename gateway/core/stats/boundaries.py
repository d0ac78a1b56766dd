"""Boundaries that a sum crosses with probability at most α, over all times at once.

Letters: s a centred sum, v its intrinsic time (its variance so far, say), ρ the tuning of a
mixture: where the boundary is tightest. A log mixture is a log e-value: it crosses ln(1/α) with
probability at most α. All are one-sided unless they say otherwise.

Source: Howard, Ramdas, McAuliffe, Sekhon, arXiv 1810.08240; the values of the package `confseq`.
"""

from collections.abc import Callable
from math import exp, inf, lgamma, log, sqrt
from typing import Final

from scipy import special

from gateway.core.stats.evalues import threshold
from gateway.core.stats.tails import log_beta_below

_HALVINGS: Final = 60
_DOUBLINGS: Final = 60


def best_rho(v: float, alpha: float) -> float:
    """The ρ whose two-sided boundary is tightest at time `v`; for a one-sided one give 2α.

    Source: arXiv 1810.08240, on tuning: v / (2 ln(1/α) + ln(1 + 2 ln(1/α))).
    """
    return v / (2 * threshold(alpha) + log(1 + 2 * threshold(alpha)))


def normal_log_mixture(s: float, v: float, rho: float) -> float:
    """Two-sided log mixture for a sub-Gaussian sum: ½ ln(ρ/(v+ρ)) + s²/(2(v+ρ)).

    Source: arXiv 1810.08240, two-sided normal mixture.
    """
    return 0.5 * log(rho / (v + rho)) + s * s / (2 * (v + rho))


def normal_bound(v: float, alpha: float, rho: float) -> float:
    """The s where `normal_log_mixture` reaches ln(1/α), in closed form.

    Source: arXiv 1810.08240, two-sided normal mixture: √((v+ρ)(ln(1+v/ρ) + 2 ln(1/α))).
    """
    return sqrt((v + rho) * (log(1 + v / rho) + 2 * threshold(alpha)))


def one_sided_normal_log_mixture(s: float, v: float, rho: float) -> float:
    """Log mixture for a sub-Gaussian sum: ½ ln(4ρ/(v+ρ)) + s²/(2(v+ρ)) + ln Φ(s/√(v+ρ)).

    Source: arXiv 1810.08240, one-sided normal mixture.
    """
    tail = float(special.log_ndtr(s / sqrt(v + rho)))
    return 0.5 * log(4 * rho / (v + rho)) + s * s / (2 * (v + rho)) + tail


def gamma_exponential_log_mixture(s: float, v: float, rho: float, c: float) -> float:
    """Log mixture for a sub-exponential sum of scale `c` (above 0).

    Source: arXiv 1810.08240, gamma-exponential mixture, with m = (v+ρ)/c² and x = (cs+v+ρ)/c².
    """
    start, m, x = rho / c**2, (v + rho) / c**2, (c * s + v + rho) / c**2
    first = start * log(start) - lgamma(start) - log(float(special.gammainc(start, start)))
    mass = lgamma(m) + log(float(special.gammainc(m, x)))
    return first + mass - m * log(x) + (c * s + v) / c**2


def gamma_poisson_log_mixture(s: float, v: float, rho: float, c: float) -> float:
    """Log mixture for a sub-Poisson sum of scale `c` (above 0).

    Source: arXiv 1810.08240, gamma-Poisson mixture, with m = (v+ρ)/c² and x = s/c + m.
    """
    start, m = rho / c**2, (v + rho) / c**2
    x = s / c + m
    first = start * log(start) - lgamma(start) - log(float(special.gammaincc(start, start)))
    mass = lgamma(x) + log(float(special.gammaincc(x, m)))
    return first + mass - x * log(m) + v / c**2


def beta_binomial_log_mixture(
    s: float, v: float, rho: float, range_: tuple[float, float], *, one_sided: bool = True
) -> float:
    """Log mixture for a sum of steps in [−g, h] of which the variance is at most g·h each.

    Args:
        s: the sum, at most v/g.
        v: g·h times the number of steps.
        rho: `best_rho` of the v to be tight at; from 2α for the one-sided mixture.
        range_: g and h, both above 0.
        one_sided: mix over sums above 0 only.

    Source: arXiv 1810.08240, beta-binomial mixtures, with r = ρ − gh:
    v/(gh) ln(g+h) − (v+hs)/(h(g+h)) ln g − (v−gs)/(g(g+h)) ln h + ln B_x((r+v−gs)/(g(g+h)),
    (r+v+hs)/(h(g+h))) − ln B_x(r/(g(g+h)), r/(h(g+h))), where x is h/(g+h) or 1.
    """
    g, h = range_
    width = g + h
    r = max(rho - g * h, 1e-3 * g * h)
    cut = h / width if one_sided else 1.0
    null = (v + h * s) / (h * width) * log(g) + (v - g * s) / (g * width) * log(h)
    a, b = (r + v - g * s) / (g * width), (r + v + h * s) / (h * width)
    mass = _log_incomplete(a, b, cut) - _log_incomplete(r / (g * width), r / (h * width), cut)
    return v / (g * h) * log(width) - null + mass


def mixture_bound(
    log_mixture: Callable[[float], float], v: float, alpha: float, highest: float = inf
) -> float:
    """The s at which an increasing log mixture of time `v` reaches ln(1/α), by bisection.

    Args:
        log_mixture: of s alone; the caller binds v and the tuning.
        v: where the search for a value above begins; above 0.
        alpha: crossing probability, in (0, 1).
        highest: the largest possible s, which is the answer if even it stays under.
    """
    bar = threshold(alpha)
    top = v if highest == inf else highest
    for _ in range(_DOUBLINGS if highest == inf else 0):
        if log_mixture(top) > bar:
            break
        top *= 2
    if log_mixture(top) < bar:
        return top
    return bisect(lambda s: log_mixture(s) - bar, 0.0, top)


def poly_stitching_bound(v: float, alpha: float, v_min: float, c: float = 0.0) -> float:
    """Boundary that grows as √(v ln ln v), for a sub-gamma sum of scale `c`.

    Args:
        v: intrinsic time.
        alpha: crossing probability, in (0, 1).
        v_min: the time from which the boundary is tight; it is flat before.
        c: scale; 0 is sub-Gaussian.

    Source: arXiv 1810.08240, stitched boundary, with s = 1.4 and η = 2.
    """
    k1, k2 = _stitch(_ETA)
    at = max(v, v_min)
    ell = _S * log(log(_ETA * at / v_min)) + log(_ZETA / log(_ETA) ** _S) + threshold(alpha)
    linear = k2 * c * ell
    return sqrt(k1 * k1 * at * ell + linear * linear) + linear


def double_stitching_bound(
    quantile: float, t: float, alpha: float, t_opt: float, delta: float = 0.5
) -> float:
    """Boundary for all quantiles at once: of |events below the quantile − t·quantile|.

    Args:
        quantile: in (0, 1).
        t: observations so far.
        alpha: crossing probability over all times and quantiles, in (0, 1).
        t_opt: observations from which the boundary is tight.
        delta: fineness of the grid of quantiles.

    Source: Howard, Ramdas, "Sequential estimation of quantiles", arXiv 1906.09712, double
    stitching, with s = 1.4 and η = 2.
    """
    k1, k2 = _stitch(_ETA)
    at = max(t, t_opt)
    logit = log(quantile / (1 - quantile))
    near = quantile
    if quantile < 0.5:  # noqa: PLR2004 - the middle of all quantiles
        shifted = logit + 2 * delta * sqrt(t_opt * _ETA / at)
        near = min(0.5, 1 / (1 + exp(-shifted)))
    variance = near * (1 - near)
    rank = sqrt(at / t_opt) * abs(logit) / (2 * delta) + 1
    ell = _S * log(log(_ETA * at / t_opt)) + _S * log(rank)
    ell += log(2 * _ZETA * (2 * _ZETA + 1) / (alpha * log(_ETA) ** _S))
    linear = k2 * (1 - 2 * quantile) / 3 * ell
    grid = delta * sqrt(_ETA * at * variance / t_opt)
    return grid + sqrt(k1 * k1 * variance * at * ell + linear * linear) + linear


def bisect(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """The point between two where `excess` changes sign, seen from `inside`, where it is below 0.

    Of the last bracket the end on the far side is given, so that a bound errs to be wide.
    """
    near, far = inside, outside
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        if excess(middle) < 0:
            near = middle
        else:
            far = middle
    return far


_S: Final = 1.4
_ETA: Final = 2.0
_ZETA: Final = float(special.zeta(_S))


def _stitch(eta: float) -> tuple[float, float]:
    return (eta**0.25 + eta**-0.25) / sqrt(2), (sqrt(eta) + 1) / 2


def _log_incomplete(a: float, b: float, x: float) -> float:
    """Logarithm of B_x(a, b), not divided by B(a, b)."""
    whole = float(special.betaln(a, b))
    return whole if x == 1 else whole + float(log_beta_below(a, b, x))
