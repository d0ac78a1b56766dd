"""Means: what differs between two arms, and how surely. One estimate serves every kind of metric.

Each metric becomes a `Sample` per arm: units, mean, and the variance of one unit's contribution.
Two samples become an `Estimate` of the effect, absolute or relative to the control's mean, which
`sequences` reads at any time (for decisions) and `fixed` reads once (for display only: looking
again and again at `fixed` and acting on the first p below 0.05 is wrong more than half the time).

The absolute effect is the one to decide on. The relative one is the delta method's, which is poor
where the control's mean is within some five standard errors of zero.

Source: Deng, Knoblich and Lu, "Applying the delta method in metric analytics" (KDD 2018); Deng,
Xu, Kohavi and Walker, "Improving the sensitivity of online controlled experiments by utilizing
pre-experiment data" (WSDM 2013).
"""

from enum import StrEnum
from math import inf, isfinite, sqrt
from typing import Final

from msgspec import Struct
from scipy import special

from gateway.core.stats.moments import Comoments, Moments

MIN_SPREAD: Final = 2
"""One unit has no spread, two have."""


class Side(StrEnum):
    """Which departures from the null value count as evidence."""

    BOTH = "both"
    GREATER = "greater"
    LESS = "less"


class Sample(Struct, frozen=True):
    """One arm: units, mean, and variance of one unit's contribution to the mean.

    The squared standard error of the mean is `variance / n`.
    """

    n: int
    mean: float
    variance: float

    @property
    def squared_error(self) -> float:
        """Squared standard error of the mean; infinite for fewer than two units."""
        return self.variance / self.n if self.n >= MIN_SPREAD else inf


class Estimate(Struct, frozen=True):
    """An effect, treatment minus control, and its standard error.

    Attributes:
        effect: In the metric's unit, or a share of the control's mean where it is relative.
        se: Standard error of the effect; zero or infinite where it is not known.
        n: Units of both arms.
        dof: Welch's degrees of freedom; None where the normal distribution is meant.
    """

    effect: float
    se: float
    n: int
    dof: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether the standard error is a number that can be divided by."""
        return 0.0 < self.se < inf


class Fixed(Struct, frozen=True):
    """A reading that holds at one look that was planned before the data: for display.

    `lower` or `upper` is None where the interval has no such end.
    """

    p: float
    lower: float | None
    upper: float | None


def mean_sample(moments: Moments) -> Sample:
    """The arm of a mean or count metric."""
    return Sample(moments.n, moments.mean, moments.variance)


def proportion_sample(moments: Moments) -> Sample:
    """The arm of a binary metric: variance p (1 - p), without n - 1."""
    p = moments.mean
    return Sample(moments.n, p, p * (1 - p))


def ratio_sample(sums: Comoments) -> Sample:
    """The arm of a ratio metric, sum of y over sum of x, by the delta method.

    variance = V_y / x^2 + V_x y^2 / x^4 - 2 Cov y / x^3 with y and x the means. Where the
    denominators sum to zero, or to so little that floats do not hold the ratio or its variance,
    there is no ratio, and the variance is infinite.
    """
    y, x = sums.y.mean, sums.x.mean
    if x == 0.0:
        return Sample(sums.n, 0.0, inf)
    ratio = y / x
    spread = sums.y.variance + ratio * (ratio * sums.x.variance - 2 * sums.covariance)
    variance = max(spread, 0.0) / x / x
    if not isfinite(ratio) or not isfinite(spread) or not isfinite(variance):
        return Sample(sums.n, 0.0, inf)
    return Sample(sums.n, ratio, variance)


def adjustment(control: Comoments, treatment: Comoments) -> float:
    """Theta of CUPED, over both arms together: cov(y, x) / var(x); zero where x does not vary."""
    both = control.merge(treatment)
    variance = both.x.variance
    return both.covariance / variance if variance > 0.0 else 0.0


def adjusted_sample(sums: Comoments, theta: float) -> Sample:
    """An arm with its covariate's part taken out: y - theta x.

    mean = y - theta x, variance = V_y + theta^2 V_x - 2 theta Cov. Take one theta for both arms
    (`adjustment`); the means then have meaning in their difference only.
    """
    mean = sums.y.mean - theta * sums.x.mean
    spread = sums.y.variance + theta * (theta * sums.x.variance - 2 * sums.covariance)
    return Sample(sums.n, mean, max(spread, 0.0))


def paired(differences: Moments) -> Estimate:
    """Effect where every unit had both arms, as under a shadow: the mean of B's less A's value."""
    sample = mean_sample(differences)
    return Estimate(sample.mean, sqrt(sample.squared_error), sample.n, max(sample.n - 1.0, 1.0))


def difference(control: Sample, treatment: Sample) -> Estimate:
    """Absolute effect m_B - m_A, variance s_B^2/n_B + s_A^2/n_A, Welch's degrees of freedom."""
    variance = control.squared_error + treatment.squared_error
    return Estimate(
        effect=treatment.mean - control.mean,
        se=sqrt(variance),
        n=control.n + treatment.n,
        dof=welch(control, treatment),
    )


def relative(control: Sample, treatment: Sample) -> Estimate | None:
    """Effect as a share of the control's mean: (m_B - m_A) / |m_A|, by the delta method.

    variance = (s_B^2/n_B) / m_A^2 + (s_A^2/n_A) m_B^2 / m_A^4. None where m_A is zero, or so small
    that the share is not finite.
    """
    if control.mean == 0.0:
        return None
    lift = treatment.mean / control.mean
    effect = (treatment.mean - control.mean) / abs(control.mean)
    if not isfinite(lift) or not isfinite(effect):
        return None
    variance = treatment.squared_error + lift * lift * control.squared_error
    return Estimate(
        effect=effect,
        se=sqrt(variance) / abs(control.mean) if variance < inf else inf,
        n=control.n + treatment.n,
        dof=welch(control, treatment),
    )


def adjusted_difference(control: Comoments, treatment: Comoments) -> Estimate:
    """Absolute effect with CUPED; `x` is a covariate that the arm cannot have changed."""
    theta = adjustment(control, treatment)
    return difference(adjusted_sample(control, theta), adjusted_sample(treatment, theta))


def adjusted_relative(control: Comoments, treatment: Comoments) -> Estimate | None:
    """Effect with CUPED as a share of the control's unadjusted mean a = mean of y_A.

    With b = mean of y_B and L = b/a, each arm's variance is that of its term in the linear
    expansion of (y_B - theta x_B - y_A + theta x_A) / |a|:

        variance = [V_yB + theta^2 V_xB - 2 theta Cov_B] / (n_B a^2)
                 + [V_yA L^2 + theta^2 V_xA - 2 theta Cov_A L] / (n_A a^2)

    None where a is zero. Source: GrowthBook's statistics, "regression adjustment".
    """
    mean = control.y.mean
    if mean == 0.0:
        return None
    theta = adjustment(control, treatment)
    lift = treatment.y.mean / mean
    new, old = adjusted_sample(treatment, theta), adjusted_sample(control, theta)
    spread = (
        lift * lift * control.y.variance
        + theta * theta * control.x.variance
        - 2 * theta * lift * control.covariance
    )
    base = Sample(control.n, lift, max(spread, 0.0))
    variance = new.squared_error + base.squared_error
    return Estimate(
        effect=(new.mean - old.mean) / abs(mean),
        se=sqrt(variance) / abs(mean),
        n=control.n + treatment.n,
        dof=welch(old, new),
    )


def welch(control: Sample, treatment: Sample) -> float | None:
    """Degrees of freedom of a difference of means with unequal variances.

    (a + b)^2 / (a^2/(n_A - 1) + b^2/(n_B - 1)) with a = s_A^2/n_A and b = s_B^2/n_B. None where
    an arm has fewer than two units, or neither has a spread.

    Source: Welch, "The generalization of Student's problem" (Biometrika 1947).
    """
    a, b = control.squared_error, treatment.squared_error
    if not 0.0 < a + b < inf:
        return None
    share = a / (a + b)
    return 1 / (share * share / (control.n - 1) + (1 - share) ** 2 / (treatment.n - 1))


def fixed(
    estimate: Estimate, alpha: float = 0.05, side: Side = Side.BOTH, null: float = 0.0
) -> Fixed:
    """Welch's t-test of effect = null, and its confidence interval. It holds for one look only.

    Args:
        alpha: One minus the coverage of the interval.
        side: `GREATER` asks whether the effect is above `null`, with a lower bound only.
        null: Effect to compare with, in the effect's unit.
    """
    if not estimate.is_known:
        return Fixed(p=1.0, lower=None, upper=None)
    t = (estimate.effect - null) / estimate.se
    if side is Side.GREATER:
        width = _quantile(1 - alpha, estimate.dof) * estimate.se
        return Fixed(_below(-t, estimate.dof), estimate.effect - width, None)
    if side is Side.LESS:
        width = _quantile(1 - alpha, estimate.dof) * estimate.se
        return Fixed(_below(t, estimate.dof), None, estimate.effect + width)
    width = _quantile(1 - alpha / 2, estimate.dof) * estimate.se
    p = 2 * _below(-abs(t), estimate.dof)
    return Fixed(p, estimate.effect - width, estimate.effect + width)


def _below(t: float, dof: float | None) -> float:
    """Probability below t, of Student's distribution or of the normal one."""
    return float(special.ndtr(t) if dof is None else special.stdtr(dof, t))


def _quantile(p: float, dof: float | None) -> float:
    """Value below which Student's distribution, or the normal one, has probability p."""
    return float(special.ndtri(p) if dof is None else special.stdtrit(dof, p))
