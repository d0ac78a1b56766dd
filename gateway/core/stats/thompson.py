"""Thompson sampling: each arm's weight is the probability that it is the best, computed exactly.

Quadrature instead of draws: the same tallies give the same weights, so a propensity can be
computed again from the ledger. An arm's weight never falls below the floor f, which keeps every
arm measurable: p = f + (1 - K f) w.

Weights are fixed within an epoch and logged with each unit; effects are read with
`sequences.inverse_propensity`, never from plain means.

Source: Thompson, "On the likelihood that one unknown probability exceeds another" (1933); Scott,
"A modern Bayesian look at the multi-armed bandit" (2010).
"""

from collections.abc import Sequence
from functools import cache
from math import pi, sqrt
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats: TypeAlias = NDArray[np.float64]

_HERMITE: Final = 128
_LEGENDRE: Final = 256


def normal_weights(means: Sequence[float], deviations: Sequence[float]) -> list[float]:
    """Probability of each arm to have the largest mean, for normal posteriors.

    w_k = E[prod over i != k of Phi((m_k + s_k u - m_i) / s_i)], u standard normal, by 128-point
    Gauss-Hermite quadrature; for two arms Phi((m_1 - m_2) / sqrt(s_1^2 + s_2^2)). The weights add
    up to one. Where less is better, give the negative means.

    Args:
        means: Posterior mean of each arm, in the metric's unit.
        deviations: Their posterior standard deviations, above zero.
    """
    m, s = np.asarray(means, dtype=np.float64), np.asarray(deviations, dtype=np.float64)
    if len(m) == 1:
        return [1.0]
    if len(m) == 2:  # noqa: PLR2004 - two arms have a closed form
        first = float(special.ndtr((m[0] - m[1]) / np.hypot(s[0], s[1])))
        return [first, 1.0 - first]
    nodes, node_weights = _hermite()
    drawn = m[:, None] + s[:, None] * nodes  # (arms, nodes)
    z: Floats = (drawn[:, None, :] - m[None, :, None]) / s[None, :, None]
    return _best(np.asarray(special.ndtr(z), dtype=np.float64), node_weights)


def beta_weights(successes: Sequence[float], failures: Sequence[float]) -> list[float]:
    """Probability of each arm to have the largest rate, for Beta(a, b) posteriors.

    w_k = integral over v in (0, 1) of prod over i != k of F_i(F_k^-1(v)), by 256-point
    Gauss-Legendre quadrature, with F the distribution functions. The weights add up to one.

    Args:
        successes: The a of each posterior: prior pseudo-events plus events.
        failures: The b of each posterior.
    """
    a, b = np.asarray(successes, dtype=np.float64), np.asarray(failures, dtype=np.float64)
    nodes, node_weights = _legendre()
    drawn = special.betaincinv(a[:, None], b[:, None], nodes)  # (arms, nodes)
    below = special.betainc(a[None, :, None], b[None, :, None], drawn[:, None, :])
    return _best(np.asarray(below, dtype=np.float64), node_weights)


def floored(weights: Sequence[float], floor: float) -> list[float]:
    """Propensities f + (1 - K f) w, none below the floor f.

    Raises:
        ValueError: The floor leaves nothing to distribute.
    """
    rest = 1.0 - len(weights) * floor
    if floor < 0.0 or rest < 0.0:
        raise ValueError("The floor times the number of arms must be between zero and one.")
    return [floor + rest * weight for weight in weights]


def _best(below: Floats, node_weights: Floats) -> list[float]:
    """Weights from the chance of arm i (second axis) to lie below what arm k (first) drew."""
    arms = np.arange(len(below))
    below[arms, arms] = 1.0
    weights = below.prod(axis=1) @ node_weights
    return [float(weight) for weight in weights / weights.sum()]


@cache
def _hermite() -> tuple[Floats, Floats]:
    """Nodes and weights of expectations over a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_HERMITE)
    return nodes, weights / sqrt(2 * pi)


@cache
def _legendre() -> tuple[Floats, Floats]:
    """Nodes and weights of integrals over (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(_LEGENDRE)
    return (nodes + 1) / 2, weights / 2
