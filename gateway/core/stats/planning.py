"""Planning: how many units a decision takes, and how many are left.

Every forecast supposes that the effect, the spread and the shares stay as they are: after m units
the standard error is se sqrt(n / m). None means that no number of units will do.

Source: the readings of `means` and `sequences`; for power in the middle of an experiment,
GrowthBook's statistics, "mid-experiment power".
"""

from collections.abc import Callable
from math import ceil, inf, log, sqrt
from typing import Final

from scipy import special

from gateway.core.stats.bayes import Prior
from gateway.core.stats.means import Estimate, Side
from gateway.core.stats.sequences import one_sided_multiplier, two_sided_multiplier

_FURTHEST: Final = 1e12
"""Nobody waits for more units than this."""
_STEPS: Final = 100

LogE = Callable[[float, float], float]
"""(events of the control, events of the treatment) to the natural log of an e-value."""


def required_units(
    effect: float, variance: float, alpha: float = 0.05, power: float = 0.8, share: float = 0.5
) -> int | None:
    """Units of both arms for one planned two-sided look at a difference of means.

    n = (z_{1 - alpha/2} + z_power)^2 variance / (effect^2 share (1 - share)).

    Args:
        effect: Difference to be found, in the metric's unit.
        variance: Variance of one unit, the same in both arms.
        share: Share of the units that get the treatment.
    """
    if effect == 0.0 or variance <= 0.0:
        return None
    z = float(special.ndtri(1 - alpha / 2) + special.ndtri(power))
    return ceil(z * z * variance / (effect * effect * share * (1 - share)))


def required_sequential_units(
    effect: float, variance: float, alpha: float = 0.05, power: float = 0.8, share: float = 0.5
) -> int | None:
    """Units of both arms after which the band, tuned to that size, excludes zero with `power`.

    Looking earlier too only helps. With the multiplier M at n = planned, which depends on alpha
    alone: n = (M + z_power)^2 variance / (effect^2 share (1 - share)).
    """
    if effect == 0.0 or variance <= 0.0:
        return None
    z = float(two_sided_multiplier(1.0, alpha, 1.0)) + float(special.ndtri(power))
    return ceil(z * z * variance / (effect * effect * share * (1 - share)))


def power_after(
    estimate: Estimate, effect: float, scale: float, alpha: float = 0.05, planned: float = inf
) -> float:
    """Chance that a true `effect` is found after (1 + scale) n units.

    Phi((|effect| - h) / s) + Phi(-(|effect| + h) / s), s = se / sqrt(1 + scale), h the half-width.

    Args:
        estimate: What is known so far: its standard error and its n.
        effect: Effect to be found, in the same unit.
        scale: Further units as a multiple of those so far.
        planned: Tuning of the confidence sequence; infinite for one planned look.
    """
    se = estimate.se / sqrt(1 + scale)
    if planned == inf:
        half = float(special.ndtri(1 - alpha / 2))
    else:
        half = float(two_sided_multiplier(estimate.n * (1 + scale), alpha, planned))
    z = abs(effect) / se
    return float(special.ndtr(z - half) + special.ndtr(-z - half))


def posterior_power_after(
    estimate: Estimate, effect: float, scale: float, prior: Prior, alpha: float = 0.05
) -> float:
    """The same where success means that the credible interval leaves out zero."""
    variance = estimate.se**2 / (1 + scale)
    half = sqrt(variance * (1 + variance / prior.variance)) * float(special.ndtri(1 - alpha / 2))
    pull = variance * prior.mean / prior.variance
    above, below = pull + abs(effect) - half, -(half + pull + abs(effect))
    return float(special.ndtr(above / sqrt(variance)) + special.ndtr(below / sqrt(variance)))


def scale_for(power_of: Callable[[float], float], target: float = 0.8) -> float | None:
    """Further units, as a multiple of those so far, after which the power is `target`.

    Args:
        power_of: Power after (1 + scale) times the units, rising with `scale`, as
            `power_after` and `posterior_power_after` give it.
    """
    if power_of(0.0) >= target:
        return 0.0
    high = 1.0
    while power_of(high) < target:
        high *= 2
        if high > _FURTHEST:
            return None
    low = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle) >= target else (middle, high)
    return high


def units_left(
    estimate: Estimate, alpha: float, planned: float, side: Side = Side.BOTH, null: float = 0.0
) -> int | None:
    """Further units of both arms until `band` rejects, if everything stays as it is.

    The smallest m >= n with |effect - null| / (se sqrt(n / m)) >= the band's multiplier at m,
    less n. None where the effect is on the wrong side of the null, or upon it.
    """
    if not estimate.is_known or estimate.n == 0:
        return None
    gap = estimate.effect - null
    gap = abs(gap) if side is Side.BOTH else gap if side is Side.GREATER else -gap
    if gap <= 0.0:
        return None
    multiplier = two_sided_multiplier if side is Side.BOTH else one_sided_multiplier
    per_unit = gap / (estimate.se * sqrt(estimate.n))

    def rejects(m: float) -> bool:
        return per_unit * sqrt(m) >= float(multiplier(m, alpha, planned))

    return _first(rejects, estimate.n)


def event_units_left(
    log_e: LogE, events: tuple[float, float], units: int, alpha: float
) -> int | None:
    """Further units until an event guard decides, if events keep coming as they did.

    The e-value is taken at (m / units) times the events, which need not be whole numbers.

    Args:
        log_e: Natural log of the guard's e-value, for instance of "safe" with its margin.
        events: Events of the control and of the treatment so far.
        units: Units of both arms so far.
        alpha: Level of the decision: the e-value must reach 1 / alpha.
    """
    if units <= 0 or sum(events) <= 0:
        return None

    def rejects(m: float) -> bool:
        scale = m / units
        return log_e(events[0] * scale, events[1] * scale) >= -log(alpha)

    return _first(rejects, units)


def _first(rejects: Callable[[float], bool], n: int) -> int | None:
    """How many more than n units are needed: by doubling, then by bisection of whole numbers."""
    if rejects(float(n)):
        return 0
    high = 2 * n
    while not rejects(float(high)):
        high *= 2
        if high > _FURTHEST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rejects(float(middle)) else (middle, high)
    return high - n
