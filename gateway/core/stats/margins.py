"""Guards with a margin: is the rate of an event in one arm worse, or not worse, than allowed?

Counts are units with the event, each counted once, in the phase of its first exposure. Letters:
ρ the treatment's share of the two arms' units, r the ratio of the rates (treatment over control),
R the allowed ratio. While the rates have ratio r, an event is the treatment's with probability
θ(r) = ρr/(1−ρ+ρr), whatever the rates are, so the null "r ≤ R" is about θ alone.

What decisions use are the functions *over phases*. The share differs between phases, the ratio
does not: one prior on the ratio is averaged over the likelihood of all phases together. With the
log likelihood ratio of r against R, over the phases j,

    ℓ(r) = x ln(r/R) − Σ n_j ln((1−ρ_j+ρ_j r)/(1−ρ_j+ρ_j R))

(x events of the treatment in all, n_j events of both arms in phase j; Cox's partial likelihood),
the e-values are

    e_harm = Σ w_i exp ℓ(R·exp(+d_i)),    e_safe = Σ w_i exp ℓ(R·exp(−d_i))

Why they hold. Each factor that an event adds has mean 1 at r = R; the mean is linear in θ and its
slope points away from the null, so it is at most 1 on all of the null. That is so for each d_i and
whichever phase the event belongs to: phases may overlap in time, late events may go to earlier
phases, and shares may depend on everything seen so far (a ramp, a bandit). The prior is a finite
list of points, so there is no integral to approximate and nothing to normalise. ℓ is concave in
ln r, so e_harm falls and e_safe rises with R: the bounds below agree with the decisions.

What they need. The arm of a unit is drawn with the share of its phase; units are independent; when
an event is *seen* must not depend on the arm, or arms must be compared at equal age (an arm that
only answers later looks safe for a while). Requests of one sticky unit are not units. If the
ratio changes over time, "harm" means that it was above R for long enough, not on average.

Source: own derivation from the mixture method (Robbins 1970) and D. R. Cox, "Partial likelihood",
Biometrika 62 (1975). `log_e_harm` and `log_e_safe` are the form in closed form for one share.
"""

from collections.abc import Sequence
from math import exp, inf
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gateway.core.stats import bernoulli
from gateway.core.stats.evalues import log_mixture, threshold

Side = Literal["harm", "safe", "differs"]

# The prior: distances from the allowed ratio on the log scale, 0.2 % to a factor of 100. Between
# two neighbours at most 3 % of the evidence of each event is lost. The weights have their middle
# at a factor of 1.65 and fall slowly, so that no size of effect is given up. In simulations, at
# α = .05: errors of 5 % against 1 % are seen within 121 requests of a 5 % canary in the median
# with all other traffic as control, within 270 with an equal-size control; without a difference
# 1.6 % of 1,000 runs of 3,000 looks raise an alarm. A Beta prior of k = 100 needs 171 and 647.
_DISTANCES: Final = 0.002 * 1.4 ** np.arange(24.0)
_RAW: Final = 1 / (1 + np.log(_DISTANCES / 0.5) ** 2)
_LOG_WEIGHTS: Final = np.log(_RAW / _RAW.sum())

_BOTH: Final = np.concatenate([_DISTANCES, -_DISTANCES])

# Of each side: the signed distances, exp of them less 1, and the log weights.
_PRIORS: Final[dict[Side, tuple[NDArray[np.float64], ...]]] = {
    "harm": (_DISTANCES, np.expm1(_DISTANCES), _LOG_WEIGHTS),
    "safe": (-_DISTANCES, np.expm1(-_DISTANCES), _LOG_WEIGHTS),
    "differs": (_BOTH, np.expm1(_BOTH), np.tile(_LOG_WEIGHTS, 2) - np.log(2.0)),
}

# Bounds are sought between ratios of exp(∓14), and no bound is closer to 0 or infinity. Each pass
# of zooming narrows the bracket 32 times.
_WIDEST: Final = 14.0
_ZOOM: Final = np.linspace(0.0, 1.0, 33)
_PASSES: Final = 5


class Phase(NamedTuple):
    """Units with the event among those first exposed in one phase.

    `share` is the treatment's share of the two arms in that phase: its weight over both weights.
    """

    treated: float
    control: float
    share: float


def log_e_harm(
    treated: float,
    control: float,
    share: float,
    ratio: float = 1.0,
    concentrations: Sequence[float] = bernoulli.CONCENTRATIONS,
) -> float:
    """Log evidence that the rate ratio is above `ratio`, in closed form for one share.

    Args:
        treated: events of the treatment, from 0.
        control: events of the control, from 0.
        share: ρ, in (0, 1).
        ratio: R, above 0.
        concentrations: strengths k of the Beta(kθ0, k(1−θ0)) priors that are averaged.

    Source: `bernoulli.log_e_each` at θ0 = ρR/(1−ρ+ρR).
    """
    return bernoulli.log_e_above(treated, control, _null(share, ratio), concentrations)


def log_e_safe(
    treated: float,
    control: float,
    share: float,
    ratio: float = 1.0,
    concentrations: Sequence[float] = bernoulli.CONCENTRATIONS,
) -> float:
    """Log evidence that the rate ratio is below `ratio`; the rest as in `log_e_harm`."""
    return bernoulli.log_e_below(treated, control, _null(share, ratio), concentrations)


def log_e_harm_over_phases(phases: Sequence[Phase], ratio: float = 1.0) -> float:
    """Log evidence that the treatment's rate is more than `ratio` times the control's.

    Roll back at ln(1/α). Without events it is 0.

    Source: e_harm of this page.
    """
    return _log_e(phases, "harm", ratio)


def log_e_safe_over_phases(phases: Sequence[Phase], ratio: float) -> float:
    """Log evidence that the treatment's rate is less than `ratio` times the control's.

    Certified as not inferior at ln(1/β). Without events it is 0: silence proves nothing.

    Source: e_safe of this page.
    """
    return _log_e(phases, "safe", ratio)


def log_e_differs_over_phases(phases: Sequence[Phase], ratio: float = 1.0) -> float:
    """Log evidence that the rate ratio is not `ratio`: the mean of e_harm and e_safe."""
    return _log_e(phases, "differs", ratio)


def lower_ratio(phases: Sequence[Phase], alpha: float) -> float:
    """The ratio above which the truth lies at all times with probability 1 − alpha.

    The largest R for which harm is proven: `log_e_harm_over_phases(phases, R) >= ln(1/α)`. From 0.
    For bounds of both sides give each half of the error rate. Cost: about 0.2 ms.
    """
    return _bound(phases, alpha, "harm", rising=False)


def upper_ratio(phases: Sequence[Phase], alpha: float) -> float:
    """The ratio below which the truth lies at all times with probability 1 − alpha.

    The smallest R for which safety is proven: `log_e_safe_over_phases(phases, R) >= ln(1/α)`.
    Infinite while none is. For bounds of both sides give each half of the error rate.
    """
    return _bound(phases, alpha, "safe", rising=True)


def log_e_each(
    treated: ArrayLike, control: ArrayLike, shares: ArrayLike, ratio: ArrayLike, side: Side
) -> NDArray[np.float64]:
    """The e-values over phases of many runs, guards or ratios at once.

    Ten guards of five phases in one call cost about what one of them costs alone.

    Args:
        treated: events of the treatment, (..., phases).
        control: events of the control, (..., phases).
        shares: ρ of each phase, (phases,) or (..., phases).
        ratio: R: one number for all, or (..., ) to vary it along the leading axes.
        side: which alternative.
    """
    x, y = np.asarray(treated, dtype=np.float64), np.asarray(control, dtype=np.float64)
    rho = np.asarray(shares, dtype=np.float64)
    allowed = np.asarray(ratio, dtype=np.float64)
    distances, growths, log_weights = _PRIORS[side]
    # The treatment's share of events at R: (..., phases). Then (..., phases, distances).
    events = rho * allowed[..., None]
    events /= 1 - rho + events
    cost = (x + y)[..., None, :] @ np.log1p(events[..., None] * growths)
    gained = x.sum(axis=-1)[..., None] * distances
    return log_mixture(gained - cost[..., 0, :], log_weights)


def _log_e(phases: Sequence[Phase], side: Side, ratio: float) -> float:
    if not phases:
        return 0.0
    treated, control, shares = zip(*phases, strict=True)
    return float(log_e_each(treated, control, shares, ratio, side))


def _bound(phases: Sequence[Phase], alpha: float, side: Side, *, rising: bool) -> float:
    treated, control, shares = np.array(phases, dtype=np.float64).reshape(-1, 3).T
    # Seen from the end where nothing is proven, to the end where it may be.
    near, far = (-_WIDEST, _WIDEST) if rising else (_WIDEST, -_WIDEST)
    bar = threshold(alpha)
    for _ in range(_PASSES):
        logs = near + (far - near) * _ZOOM
        proven = log_e_each(treated, control, shares, np.exp(logs), side) >= bar
        if not proven.any():
            return inf if rising else 0.0
        first = int(proven.argmax())
        if first == 0:
            return exp(near)
        near, far = float(logs[first - 1]), float(logs[first])
    return exp(far)


def _null(share: float, ratio: float) -> float:
    return share * ratio / (1 - share + share * ratio)
