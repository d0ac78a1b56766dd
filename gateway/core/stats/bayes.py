"""Bayesian readings, for display only.

With a flat prior, stopping once the chance to win passes 97.5 per cent is exactly the naive
z-test, and errs as often under peeking: nothing is decided by these numbers.

The posterior of the effect is normal, with mean m and deviation s:

    chance to win = Phi(m/s)
    risk of the control   = E max(effect, 0)  = m Phi(m/s) + s phi(m/s)
    risk of the treatment = E max(-effect, 0) = risk of the control - m

Source: Stucchi, "Bayesian A/B testing at VWO" (2015); GrowthBook's statistics.
"""

from math import erfc, exp, pi, sqrt

from msgspec import Struct
from scipy import special

from gateway.core.stats.means import Estimate


class Prior(Struct, frozen=True, forbid_unknown_fields=True):
    """A normal prior of the effect, in the effect's unit."""

    mean: float
    variance: float


class Posterior(Struct, frozen=True):
    """What is believed of the effect after the data.

    Attributes:
        mean: In the effect's unit.
        deviation: Standard deviation.
        lower: Lower end of the credible interval.
        upper: Upper end.
        chance_to_win: Probability that the effect is above zero. Where less is better, one minus
            it.
        control_risk: What is lost on average by keeping the control, in the effect's unit.
        treatment_risk: What is lost on average by taking the treatment.
    """

    mean: float
    deviation: float
    lower: float
    upper: float
    chance_to_win: float
    control_risk: float
    treatment_risk: float


def posterior(
    estimate: Estimate, prior: Prior | None = None, alpha: float = 0.05
) -> Posterior | None:
    """Posterior of an effect; the prior is flat where none is given. None without a known error.

    precision = 1/se^2 + 1/variance, mean = (effect/se^2 + prior mean/variance) / precision.
    """
    if not estimate.is_known:
        return None
    mean, deviation = estimate.effect, estimate.se
    if prior is not None:
        precision = 1 / deviation**2 + 1 / prior.variance
        mean = (mean / deviation**2 + prior.mean / prior.variance) / precision
        deviation = sqrt(1 / precision)
    half = float(special.ndtri(1 - alpha / 2)) * deviation
    control_risk, treatment_risk = risks(mean, deviation)
    chance = erfc(-mean / deviation / sqrt(2)) / 2
    return Posterior(
        mean, deviation, mean - half, mean + half, chance, control_risk, treatment_risk
    )


def risks(mean: float, deviation: float) -> tuple[float, float]:
    """Expected losses by keeping the control and by taking the treatment, in the effect's unit."""
    return _excess(mean, deviation), _excess(-mean, deviation)


def _excess(mean: float, deviation: float) -> float:
    """E max(X, 0) of a normal X."""
    z = mean / deviation
    density = exp(-z * z / 2) / sqrt(2 * pi)
    return max(mean * erfc(-z / sqrt(2)) / 2 + deviation * density, 0.0)
