"""Off-policy evaluation: what another policy would have earned, from logged propensities.

Each logged prediction has the propensity p of the arm that answered, its reward r, and the
probability q with which the policy in question would have chosen that arm; w = q / p.

    IPS   = mean(w r),  se = sd(w r) / sqrt(n)
    SNIPS = sum(w r) / sum(w),  se = sqrt(sum w^2 (r - SNIPS)^2) / sum(w)
    DM    = mean of m,  m = sum over arms of q(arm) r^(arm), r^ a model of the reward
    DR    = mean(m + w (r - r^(chosen arm))),  se = sd / sqrt(n)
    clipping min(w, limit);  Switch-DR uses w only where w <= limit, and the model elsewhere
    shrinking w limit / (w^2 + limit);  effective sample size = sum(w)^2 / sum(w^2)

All arrays have one element per logged prediction, in the order of logging, unless said otherwise.

Source: Dudik, Langford and Li, "Doubly robust policy evaluation and learning" (2011); Swaminathan
and Joachims, "The self-normalized estimator for counterfactual learning" (2015); Wang, Agarwal
and Dudik, "Optimal and adaptive off-policy evaluation in contextual bandits" (2017); Su et al.,
"Doubly robust off-policy evaluation with shrinkage" (2020).
"""

from math import inf, log, sqrt
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import special

from gateway.core.stats.means import MIN_SPREAD, Estimate

Floats = NDArray[np.float64]
_STEPS: Final = 80


class Support(Struct, frozen=True):
    """Whether the log can tell of the policy at all. Shown with every estimate.

    Attributes:
        n: Logged predictions.
        effective_n: Effective sample size; far below n, few predictions carry the estimate.
        largest: The largest weight.
        mean_weight: Mean of the weights; about one where the log supports the policy.
        unsupported: Share of the policy's probability that goes to arms which the log could not
            have chosen; above zero the policy is not evaluable there.
    """

    n: int
    effective_n: float
    largest: float
    mean_weight: float
    unsupported: float


def weights(logged: Floats, target: Floats) -> Floats:
    """Importance weights w = q / p.

    Args:
        logged: p, the propensity with which the arm that answered was chosen.
        target: q, the probability of that arm under the policy in question.

    Raises:
        ValueError: A propensity is not in (0, 1], or a probability not in [0, 1].
    """
    if not bool(np.all((logged > 0) & (logged <= 1) & (target >= 0) & (target <= 1))):
        raise ValueError("Propensities are in (0, 1], and probabilities of a policy in [0, 1].")
    return target / logged


def clipped(w: Floats, limit: float) -> Floats:
    """Weights min(w, limit): biased towards zero, with less variance."""
    return np.minimum(w, limit)


def shrunk(w: Floats, limit: float) -> Floats:
    """Weights w limit / (w^2 + limit): near w where w is small, towards zero where it is large."""
    return w * limit / (w * w + limit)


def switched(w: Floats, limit: float) -> Floats:
    """The weights of Switch-DR: w up to the limit, zero above it. For `doubly_robust`."""
    return np.where(w <= limit, w, 0.0)


def ips(w: Floats, rewards: Floats) -> Estimate:
    """Inverse propensity score."""
    return _mean(w * rewards)


def snips(w: Floats, rewards: Floats) -> Estimate:
    """Self-normalised inverse propensity score; unknown where all weights are zero."""
    total = float(w.sum())
    if total == 0.0:
        return Estimate(effect=0.0, se=inf, n=len(w))
    value = float(w @ rewards) / total
    se = sqrt(float(np.sum((w * (rewards - value)) ** 2))) / total
    return Estimate(effect=value, se=se, n=len(w))


def direct(policy: Floats, model: Floats) -> Estimate:
    """Direct method: the model's rewards under the policy. Its error does not know the model's.

    Args:
        policy: q of every arm, of shape (n, arms).
        model: Predicted reward of every arm, of shape (n, arms).
    """
    return _mean(np.sum(policy * model, axis=1))


def doubly_robust(
    w: Floats, rewards: Floats, chosen: NDArray[np.intp], policy: Floats, model: Floats
) -> Estimate:
    """Doubly robust: right where either the propensities or the model are.

    Args:
        w: Weights; clipped, shrunk or switched ones give those estimators.
        chosen: Index of the arm that answered.
        policy: q of every arm, of shape (n, arms).
        model: Predicted reward of every arm, of shape (n, arms); it must not have seen the
            rewards that it is evaluated on.
    """
    of_chosen = model[np.arange(len(w)), chosen]
    return _mean(np.sum(policy * model, axis=1) + w * (rewards - of_chosen))


def support(w: Floats, policy: Floats | None = None, possible: Floats | None = None) -> Support:
    """How far the log supports a policy.

    Args:
        policy: q of every arm, of shape (n, arms), where it is known.
        possible: Logged propensity of every arm, of shape (n, arms); zero where the log could
            not have chosen the arm.
    """
    squares = float(w @ w)
    total = float(w.sum())
    missing = 0.0
    if policy is not None and possible is not None and len(w):
        missing = float(np.mean(np.sum(np.where(possible <= 0, policy, 0.0), axis=1)))
    return Support(
        n=len(w),
        effective_n=total * total / squares if squares > 0 else 0.0,
        largest=float(w.max(initial=0.0)),
        mean_weight=total / len(w) if len(w) else 0.0,
        unsupported=missing,
    )


def value_sequence(
    w: Floats, rewards: Floats, alpha: float = 0.05, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Confidence sequence of the policy's value: it holds after every prediction, for any log.

    With x = w (r - lowest) / (highest - lowest) >= 0 and a guess of x from the ones before,
    (sum + 1/2) / (t + 1), the wealth of betting that the value is above mu is, for s = sum of
    (x - mu) and v = sum of (x - guess)^2, the gamma-exponential mixture with rho = 1

        ln wealth = s + v + rho ln rho - (v + rho) ln(s + v + rho)
                    + ln lower-gamma(v + rho, s + v + rho) - ln lower-gamma(rho, rho)

    The lower end is the least mu with wealth below 2 / alpha; the upper end is the same for
    highest - r.

    Args:
        w: Weights, neither clipped nor shrunk.
        rewards: Those outside of the bounds are taken as the bound.
        bounds: Lowest and highest reward that there can be.

    Source: Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic
    confidence sequences" (2021); Waudby-Smith, Wu, Ramdas, Karampatziakis and Mineiro, "Anytime-
    valid off-policy inference for contextual bandits" (2022), as in VowpalWabbit/estimators.
    """
    lowest, highest = bounds
    scale = highest - lowest
    share = (np.clip(rewards, lowest, highest) - lowest) / scale
    below = _least_mean(w * share, alpha / 2)
    above = _least_mean(w * (1 - share), alpha / 2)
    return lowest + scale * below, highest - scale * above


def normal_interval(estimate: Estimate, alpha: float = 0.05) -> tuple[float, float]:
    """The effect -+ z se: for one look and many predictions; for display."""
    half = float(special.ndtri(1 - alpha / 2)) * estimate.se
    return estimate.effect - half, estimate.effect + half


def binomial_interval(
    w: Floats, rewards: Floats, alpha: float = 0.05, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Clopper and Pearson's interval, counting each prediction as 1 / max(w) of a trial.

    Successes are sum(w r) / max(w), for rewards scaled to (0, 1), out of n / max(w). For one look:
    wide, but it does not rest on the normal distribution.

    Source: Clopper and Pearson (Biometrika 1934), as in VowpalWabbit/estimators.
    """
    lowest, highest = bounds
    largest = float(w.max(initial=0.0))
    if largest == 0.0:
        return bounds
    share = (np.clip(rewards, lowest, highest) - lowest) / (highest - lowest)
    n = len(w) / largest
    k = min(float(w @ share) / largest, n)
    lower = float(special.betaincinv(k, n - k + 1, alpha / 2)) if k > 0 else 0.0
    upper = float(special.betaincinv(k + 1, n - k, 1 - alpha / 2)) if k < n else 1.0
    return lowest + (highest - lowest) * lower, lowest + (highest - lowest) * upper


def _mean(values: Floats) -> Estimate:
    """Mean of independent contributions."""
    n = len(values)
    if n < MIN_SPREAD:
        return Estimate(effect=float(values.sum()), se=inf, n=n)
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / sqrt(n), n)


def _least_mean(x: Floats, alpha: float) -> float:
    """Lower end for the mean, at most one, of values that are at least zero."""
    if len(x) == 0:
        return 0.0
    total = float(x.sum())
    before = np.cumsum(x) - x
    guess = (before + 0.5) / np.arange(1, len(x) + 1)
    v = float(np.sum((x - guess) ** 2))
    threshold = -log(alpha)
    low, high = 0.0, min(1.0, total / len(x))
    if _log_wealth(total, v) <= threshold:
        return 0.0
    if _log_wealth(total - len(x) * high, v) >= threshold:
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        rejected = _log_wealth(total - len(x) * middle, v) > threshold
        low, high = (middle, high) if rejected else (low, middle)
    return low


def _log_wealth(s: float, v: float) -> float:
    """Log of the gamma-exponential mixture with rho = 1."""
    shape, point = v + 1, s + v + 1
    growth = s + v - shape * log(point)
    return growth + _log_gamma_below(shape, point) - _log_gamma_below(1.0, 1.0)


def _log_gamma_below(shape: float, point: float) -> float:
    """Log of the lower incomplete gamma function."""
    return log(float(special.gammainc(shape, point))) + float(special.gammaln(shape))
