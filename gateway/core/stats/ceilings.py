"""Ceilings: the most that an e-value can be, for a hundredth of what the e-value costs.

A mixture is a mean of likelihood ratios, so it is at most the largest of them, and that one is in
closed form. While a ceiling is below the threshold nobody needs to know the e-value. All are
natural logarithms and at least 0.

Source: sup over the alternatives of each phase on its own; Σ n ln(p̂/p) is the log likelihood ratio
statistic of Wilks, Ann. Math. Statist. 9 (1938).
"""

from collections.abc import Iterable, Sequence
from math import inf, log


def rate_above(events: float, others: float, limit: float) -> float:
    """Of `bernoulli.log_e_above`, of any prior; `limit` is in (0, 1)."""
    n = events + others
    return _ratio(events, others, limit) if events > n * limit else 0.0


def rate_below(events: float, others: float, limit: float) -> float:
    """Of `bernoulli.log_e_below`, of any prior."""
    n = events + others
    return _ratio(events, others, limit) if events < n * limit else 0.0


def ratio_above(phases: Iterable[tuple[float, float, float]], ratio: float) -> float:
    """Of `margins.log_e_harm_over_phases`; a phase is (treated, control, share)."""
    total = 0.0
    for treated, control, share in phases:
        odds = share * ratio
        total += rate_above(treated, control, odds / (1.0 - share + odds))
    return total


def ratio_below(phases: Iterable[tuple[float, float, float]], ratio: float) -> float:
    """Of `margins.log_e_safe_over_phases`."""
    total = 0.0
    for treated, control, share in phases:
        odds = share * ratio
        total += rate_below(treated, control, odds / (1.0 - share + odds))
    return total


def shares(rows: Iterable[Sequence[float]], weights: Iterable[Sequence[float]]) -> float:
    """Of `multinomial.log_e_over_phases`: counts and weights of each phase, weights of any sum."""
    total = 0.0
    for counts, drawn in zip(rows, weights, strict=True):
        n, whole = sum(counts), sum(drawn)
        for count, weight in zip(counts, drawn, strict=True):
            if count > 0:
                if weight <= 0:
                    return inf
                total += count * log(count * whole / (n * weight))
    return max(total, 0.0)


def _ratio(events: float, others: float, limit: float) -> float:
    n = events + others
    total = 0.0
    if events > 0:
        total += events * log(events / (n * limit))
    if others > 0:
        total += others * log(others / (n * (1.0 - limit)))
    return max(total, 0.0)
