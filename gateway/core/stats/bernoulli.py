"""One rate of events that happen or not: e-values against a limit, and a confidence sequence.

Letters: x events among n trials, θ the rate, θ0 the limit. A trial may depend on the past, as long
as its chance of an event, given the past, is on the null's side of the limit.

Sources: Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", arXiv 1810.08240; the mixture method is Robbins, Ann. Math. Statist. 41 (1970).
"""

from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, log, log1p
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from gateway.core.stats.boundaries import best_rho, bisect
from gateway.core.stats.evalues import log_mixture, threshold
from gateway.core.stats.tails import log_beta_above, log_beta_below

CONCENTRATIONS: Final = (10.0, 100.0, 1000.0)
_SMALL: Final = 1e-290

Side = Literal["above", "below"]


def log_e_above(
    events: float, others: float, limit: float, concentrations: Sequence[float] = CONCENTRATIONS
) -> float:
    """Log evidence that the rate is above the limit; the null is "at most the limit".

    Args:
        events: trials with the event, from 0.
        others: trials without it, from 0.
        limit: θ0 in (0, 1).
        concentrations: strengths k of the priors that are averaged, in pseudo-trials.

    Source: see `log_e_each`.
    """
    return _log_e(events, others, limit, "above", tuple(concentrations))


def log_e_below(
    events: float, others: float, limit: float, concentrations: Sequence[float] = CONCENTRATIONS
) -> float:
    """Log evidence that the rate is below the limit; the null is "at least the limit".

    Arguments as in `log_e_above`. Source: see `log_e_each`.
    """
    return _log_e(events, others, limit, "below", tuple(concentrations))


def log_e_each(
    events: ArrayLike,
    others: ArrayLike,
    limit: float,
    side: Side,
    concentrations: Sequence[float] = CONCENTRATIONS,
) -> NDArray[np.float64]:
    """`log_e_above` or `log_e_below` of each pair of counts, in arrays of one shape.

    The e-value is the likelihood of the counts, averaged over a Beta(kθ0, k(1−θ0)) that is cut to
    one side of θ0, over their likelihood at θ0:

        lnB(a+x, b+y) + ln P[Beta(a+x, b+y) > θ0] − lnB(a, b) − ln P[Beta(a, b) > θ0]
            − x ln θ0 − y ln(1−θ0),    a = kθ0, b = k(1−θ0), y = n − x

    and then averaged over k. It is valid for every rate θ' on the null's side: each trial
    multiplies by (θ/θ0)^X ((1−θ)/(1−θ0))^(1−X), of which the mean is 1 at θ' = θ0 and is linear in
    θ', with a slope that points to the alternative's side. The cut prior must be divided by its
    own mass, or the average would not start at 1.

    Source: mixture of likelihood ratios, Robbins 1970; own derivation of the cut.
    """
    x, y = np.asarray(events, dtype=np.float64), np.asarray(others, dtype=np.float64)
    log_mass = log_beta_above if side == "above" else log_beta_below
    null = special.xlogy(x, limit) + special.xlog1py(y, -limit)
    parts = []
    for k in concentrations:
        a, b = k * limit, k * (1 - limit)
        posterior = special.betaln(a + x, b + y) + log_mass(a + x, b + y, limit)
        parts.append(posterior - special.betaln(a, b) - log_mass(a, b, limit) - null)
    equal = np.full(len(parts), -np.log(len(parts)))
    return log_mixture(np.stack(parts, axis=-1), equal)


def _log_e(
    events: float, others: float, limit: float, side: Side, concentrations: tuple[float, ...]
) -> float:
    """`log_e_each` of one pair of counts, without the cost of arrays."""
    null = events * log(limit) + others * log1p(-limit)
    parts = []
    for a, b, prior in _priors(limit, side, concentrations):
        posterior = _log_beta_cut(a + events, b + others, limit, side)
        parts.append(posterior - prior - null)
    top = max(parts)
    if top == inf:
        return inf
    return top + log(sum(exp(part - top) for part in parts) / len(parts))


@lru_cache(maxsize=1024)
def _priors(
    limit: float, side: Side, concentrations: tuple[float, ...]
) -> tuple[tuple[float, float, float], ...]:
    """Of each strength: a, b and the log of their cut beta function."""
    pairs = [(k * limit, k * (1 - limit)) for k in concentrations]
    return tuple((a, b, _log_beta_cut(a, b, limit, side)) for a, b in pairs)


def _log_beta_cut(a: float, b: float, limit: float, side: Side) -> float:
    """lnB(a, b) + ln P[Beta(a, b) on the side of the limit]."""
    inside = special.betaincc(a, b, limit) if side == "above" else special.betainc(a, b, limit)
    if inside > _SMALL:
        return float(special.betaln(a, b)) + log(inside)
    log_mass = log_beta_above if side == "above" else log_beta_below
    return float(special.betaln(a, b)) + float(log_mass(a, b, limit))


def confidence_sequence(
    events: float, trials: float, alpha: float = 0.05, best_at: float = 100.0
) -> tuple[float, float]:
    """Bounds of the rate that hold at all numbers of trials at once, with probability 1 − alpha.

    All p whose two-sided beta-binomial mixture is under 1/α, by bisection, where the mixture is
    tuned to p(1−p)·`best_at` for each p. Without trials the bounds are 0 and 1.

    Args:
        events: trials with the event, from 0 to `trials`.
        trials: n, from 0.
        alpha: error rate over all looks together, in (0, 1).
        best_at: the number of trials at which the bounds are narrowest.

    Source: Howard et al., arXiv 1810.08240, beta-binomial mixture; the values of `confseq`'s
    `bernoulli_confidence_interval`, which tunes for α = .05 whatever α is.
    """
    if trials <= 0:
        return 0.0, 1.0
    observed, bar = events / trials, threshold(alpha)

    def excess(p: float) -> float:
        if p in (0.0, 1.0):
            return inf
        return _two_sided(p, events, trials, best_at) - bar

    lower = 0.0 if observed == 0 else bisect(excess, observed, 0.0)
    upper = 1.0 if observed == 1 else bisect(excess, observed, 1.0)
    return lower, upper


def _two_sided(p: float, events: float, trials: float, best_at: float) -> float:
    """The beta-binomial mixture of `boundaries` at g = p, h = 1 − p: a ratio of likelihoods.

    Its prior is Beta(r/(1−p), r/p) on the rate of *no* event, with r per unit of p(1−p).
    """
    # The tuned r is ρ − g·h with ρ for v = p(1−p)·best_at, at least a thousandth of g·h.
    strength = max(best_rho(best_at, 0.05) - 1.0, 1e-3)
    a, b = strength * p, strength * (1 - p)
    ratio = special.betaln(a + events, b + trials - events) - special.betaln(a, b)
    null = special.xlogy(events, p) + special.xlog1py(trials - events, -p)
    return float(ratio - null)
