"""E-values: numbers from 0 of which the mean is at most 1 while a null hypothesis holds.

A process of them stays under 1/α at all times with probability 1 − α (Ville's inequality), so 1/e
is a p-value that may be looked at after every event. Everything is kept as a natural logarithm,
because evidence grows past floats.

Source: Ramdas, Grünwald, Vovk, Shafer, "Game-theoretic statistics and safe anytime-valid
inference", arXiv 2210.01948.
"""

from math import exp, log

import numpy as np
from numpy.typing import NDArray


def p_value(log_e: float) -> float:
    """The p-value min(1, 1/e), valid at any time; so is its running minimum."""
    return 1.0 if log_e <= 0 else exp(-log_e)


def threshold(alpha: float) -> float:
    """The log e-value at which a test of size `alpha` rejects: ln(1/α)."""
    return -log(alpha)


def log_mixture(
    log_es: NDArray[np.float64], log_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Log of the weighted mean of finite e-values over the last axis: ln Σ exp(log e + log w).

    A mean of e-values under weights that were fixed before the data is an e-value, however they
    depend on each other. Weights add up to 1.
    """
    terms = log_es + log_weights
    top = terms.max(axis=-1)
    mixture: NDArray[np.float64] = np.log(np.exp(terms - top[..., None]).sum(axis=-1)) + top
    return mixture
