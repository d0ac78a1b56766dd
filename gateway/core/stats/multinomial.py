"""Do arms get units, or events, in the shares they should? One test with many uses.

Letters: n_i counts of arm i, θ_i its share, k the strength of the prior around the shares. Under
the null the arm of the next unit is a draw from the shares of its phase. The same question is
asked of assigned, of served and of answered units (a funnel), of units whose outcome is missing,
and of two models that disagree on the same request (shares ½ and ½).

Source: Lindon, Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022, arXiv
2011.03567.
"""

from collections.abc import Sequence
from math import exp, inf, lgamma, log, log1p
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from gateway.core.stats import margins
from gateway.core.stats.boundaries import bisect
from gateway.core.stats.evalues import log_mixture, threshold

CONCENTRATIONS: Final = (10.0, 100.0, 1000.0, 10_000.0)
# Pairs that differ are few and lean far.
PAIRED: Final = (1.0, 10.0, 100.0)

_PAIR: Final = 2
# Log odds that no data reach.
_FAR: Final = 100.0


class ChiSquare(NamedTuple):
    """A fixed-horizon reading, for one look: the statistic, its degrees of freedom, its p-value."""

    statistic: float
    df: int
    p_value: float


def log_e(
    counts: Sequence[float],
    shares: Sequence[float],
    concentrations: Sequence[float] = CONCENTRATIONS,
    weights: Sequence[float] | None = None,
) -> float:
    """Log evidence that counts do not follow the shares, which were the same for all units.

    Args:
        counts: n_i from 0, one per arm.
        shares: θ_i from 0, of any sum; what the sum is does not matter.
        concentrations: strengths k that are averaged, in pseudo-units. Small ones see large
            deviations early, large ones see small deviations late.
        weights: of the strengths, adding up to 1; equal if not given.

    Returns:
        The logarithm; `inf` if an arm of share 0 has a unit.

    Source: arXiv 2011.03567, Bayes factor: for each k, with α_i = kθ_i and N = Σ n_i,
    lnΓ(k) − ΣlnΓ(α_i) + ΣlnΓ(α_i+n_i) − lnΓ(k+N) − Σ n_i ln θ_i; then averaged over k.
    """
    n, theta, impossible = _prepared(counts, shares)
    if impossible.any():
        return inf
    ratios = _log_ratios(n, theta, concentrations)
    return float(log_mixture(ratios, _log_weights(concentrations, weights)))


def log_marginal(counts: Sequence[float], prior: Sequence[float]) -> float:
    """Log probability of a sequence of draws with these counts, under Dirichlet(prior) shares.

    Args:
        counts: n_i from 0.
        prior: α_i above 0.

    Source: arXiv 2011.03567, marginal likelihood, without the multinomial coefficient:
    lnΓ(Σα) − ΣlnΓ(α_i) + ΣlnΓ(α_i+n_i) − lnΓ(Σ(α_i+n_i)).
    """
    n, alpha = np.asarray(counts, dtype=np.float64), np.asarray(prior, dtype=np.float64)
    gained = special.gammaln(alpha + n) - special.gammaln(alpha)
    total = float(alpha.sum())
    return float(gained.sum()) - lgamma(total + float(n.sum())) + lgamma(total)


def log_e_over_phases(
    phases: Sequence[tuple[Sequence[float], Sequence[float]]],
    concentrations: Sequence[float] = CONCENTRATIONS,
) -> float:
    """Log evidence that counts do not follow shares that changed from phase to phase.

    Args:
        phases: (counts, shares) of each phase, the arms in one order; a unit is counted once, in
            the phase of its first exposure. Shares add up to 1 after scaling.
        concentrations: as in `log_e`.

    Returns:
        The logarithm, 0 without units; `inf` if an arm of share 0 has a unit.

    Source: see `log_e_each`.
    """
    if not phases:
        return 0.0
    counts, shares = zip(*phases, strict=True)
    return float(log_e_each(counts, shares, concentrations))


def log_e_each(
    counts: ArrayLike, shares: ArrayLike, concentrations: Sequence[float] = CONCENTRATIONS
) -> NDArray[np.float64]:
    """`log_e_over_phases` of many runs at once: the mean of two e-values.

    The first multiplies `log_e`'s ratios over phases for each k, and averages over k last: a
    product needs one k for all phases, or it would pay for not knowing k in each of them. Phases
    of equal shares are added up before, since to the null they are one phase. This sees any
    deviation, also one that a single phase has, but learns it anew in each.

    The second looks for one lasting distortion: an arm that gets r times its share in every
    phase. It is the mean over arms of `margins.log_e_each` of the arm against all others, and
    keeps its power however often shares change (a bandit).

    Each factor of each part has mean 1 under the null, whichever phase the next unit is of.

    Args:
        counts: (..., phases, arms).
        shares: (phases, arms), from 0.
        concentrations: as in `log_e`.

    Source: arXiv 2011.03567 for one phase; the product and the mixture are own derivations.
    """
    n, theta, impossible = _prepared(counts, shares)
    n, theta = _merged(n, theta)
    ratios = _log_ratios(n, theta, concentrations).sum(axis=-2)
    product = log_mixture(ratios, _log_weights(concentrations, None))
    # Of two arms one says it all: the other leans the other way.
    arms = range(1 if n.shape[-1] == _PAIR else n.shape[-1])
    totals = n.sum(axis=-1)
    leans = [
        margins.log_e_each(n[..., arm], totals - n[..., arm], theta[:, arm], 1.0, "differs")
        for arm in arms
    ]
    lasting = log_mixture(np.stack(leans, axis=-1), _log_weights(leans, None))
    mean = np.logaddexp(product, lasting) - log(2.0)
    return np.where(impossible.any(axis=-1), inf, mean)


def log_e_paired(first_only: float, second_only: float) -> float:
    """Log evidence that one of two models is right more often, on the same requests.

    McNemar's question at any time: of the requests on which exactly one is right, does each get
    half? For one side with a margin use `margins.log_e_harm` with share ½.

    Args:
        first_only: requests that only the first model got right.
        second_only: requests that only the second got right.
    """
    return log_e((first_only, second_only), (0.5, 0.5), PAIRED)


def chi_square(counts: Sequence[float], shares: Sequence[float]) -> ChiSquare:
    """Pearson's test that counts follow shares, for one look only: Σ(n−e)²/e on k−1 degrees.

    Arms of share 0 without a unit are left out; with one the statistic is infinite. Without units,
    or with fewer than two arms, the p-value is 1.
    """
    return chi_square_over_phases([(counts, shares)])


def chi_square_over_phases(
    phases: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> ChiSquare:
    """Pearson's test within each phase, statistics and degrees added up; for one look only.

    To pool the counts instead would test them against shares that no unit was drawn with.
    """
    statistic, df = 0.0, 0
    for counts, shares in phases:
        total, whole = sum(counts), sum(shares)
        if total == 0:
            continue
        cells = [(n, total * share / whole) for n, share in zip(counts, shares, strict=True)]
        drawn = [(n, expected) for n, expected in cells if expected > 0 or n > 0]
        statistic += sum((n - e) ** 2 / e if e > 0 else inf for n, e in drawn)
        df += len(drawn) - 1
    p = float(special.chdtrc(df, statistic)) if df > 0 else 1.0
    return ChiSquare(statistic, df, p)


def log_ratio_bounds(
    treated: float, control: float, share: float, alpha: float, concentration: float = 100.0
) -> tuple[float, float]:
    """Bounds of the log rate ratio δ of two arms that hold at all times, for one share.

    All θ with x ln θ + y ln(1−θ) ≥ ln α + lnB(a+x, b+y) − lnB(a, b), where a = kρ, b = k(1−ρ) and
    δ = logit θ − logit ρ. Both are infinite without events; a side without events is unbounded.

    Args:
        treated: events of the treatment, x.
        control: events of the control, y.
        share: the treatment's share ρ, in (0, 1).
        alpha: error rate over all looks and both sides, in (0, 1).
        concentration: k.

    Source: arXiv 2011.03567, inverted as a confidence sequence.
    """
    a, b = concentration * share, concentration * (1 - share)
    floor = float(special.betaln(a + treated, b + control) - special.betaln(a, b))
    floor -= threshold(alpha)
    offset = log(share) - log(1 - share)

    def excess(logit: float) -> float:
        # ln θ = −ln(1+exp(−logit)) and ln(1−θ) = −ln(1+exp(logit)), without cancelling.
        return floor + treated * _softplus(-logit) + control * _softplus(logit)

    lower, upper = -inf, inf
    if treated > 0:
        lower = bisect(excess, log(treated / control) if control > 0 else _FAR, -_FAR)
    if control > 0:
        upper = bisect(excess, log(treated / control) if treated > 0 else -_FAR, _FAR)
    return lower - offset, upper - offset


def _softplus(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))


def _log_weights(parts: Sequence[object], weights: Sequence[float] | None) -> NDArray[np.float64]:
    if weights is None:
        return np.full(len(parts), -log(len(parts)))
    return np.log(np.asarray(weights, dtype=np.float64))


def _prepared(
    counts: ArrayLike, shares: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Counts, shares scaled to 1, and where an arm of share 0 has units (..., phases)."""
    n, theta = np.asarray(counts, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    impossible = np.asarray(((theta <= 0) & (n > 0)).any(axis=-1))
    return n, np.asarray(theta / theta.sum(axis=-1, keepdims=True)), impossible


def _log_ratios(
    n: NDArray[np.float64], theta: NDArray[np.float64], concentrations: Sequence[float]
) -> NDArray[np.float64]:
    """Log Bayes factor for each strength: (..., arms) becomes (..., strengths)."""
    # An arm of share 0 has no unit here, so that any share stands for it without adding a thing.
    drawn = np.where(theta > 0, theta, 1.0)
    k = np.asarray(concentrations, dtype=np.float64)
    prior = k[:, None] * drawn[..., None, :]
    gained = special.gammaln(prior + n[..., None, :]) - special.gammaln(prior)
    whole = special.gammaln(k + n.sum(axis=-1)[..., None]) - special.gammaln(k)
    null = (n * np.log(drawn)).sum(axis=-1)[..., None]
    ratios: NDArray[np.float64] = gained.sum(axis=-1) - whole - null
    return ratios


def _merged(
    counts: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts of phases with equal shares added up: (..., phases, arms)."""
    places: dict[bytes, int] = {}
    owners = [places.setdefault(row.tobytes(), len(places)) for row in shares]
    if len(places) == len(owners):
        return counts, shares
    groups = [
        [i for i, owner in enumerate(owners) if owner == place] for place in range(len(places))
    ]
    sums = np.stack([counts[..., group, :].sum(axis=-2) for group in groups], axis=-2)
    return sums, shares[[group[0] for group in groups]]
