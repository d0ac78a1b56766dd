"""Ratios adjusted by an earlier ratio of the same units: CUPED where the metric is itself a ratio.

A unit has a numerator m and a denominator d, and from before the experiment (or from the control's
model on the same requests) a numerator p and a denominator e that the arm cannot have changed.
With r = m/d and q = p/e of the means, and each unit's linear parts

    y = (m - r d) / d,   x = (p - q e) / e      (means below the bar)

an arm's adjusted ratio is r - theta q with variance V_y + theta^2 V_x - 2 theta Cov(y, x), and
theta = sum n Cov(y, x) / sum n V_x over the arms, each around its own means. The relative effect
divides by the control's unadjusted ratio and expands that too.

Source: Deng, Knoblich and Lu, "Applying the delta method in metric analytics" (KDD 2018);
GrowthBook's statistics, "regression adjustment of ratio metrics".
"""

from math import inf, sqrt

from msgspec import Struct

from gateway.core.stats.means import Estimate, Sample, difference, welch
from gateway.core.stats.moments import Comoments


class RatioSums(Struct, frozen=True, forbid_unknown_fields=True):
    """Sums of m, d, p and e per unit; they may be stored and sent as JSON.

    Attributes:
        now: Sums of (m, d).
        before: Sums of (p, e).
        across: Sums of (m, p), (m, e), (d, p) and (d, e).
    """

    now: Comoments = Comoments()
    before: Comoments = Comoments()
    across: tuple[Comoments, Comoments, Comoments, Comoments] = (Comoments(),) * 4

    @property
    def n(self) -> int:
        """Units."""
        return self.now.n

    def add(self, now: tuple[float, float], before: tuple[float, float]) -> "RatioSums":
        """These and one more unit, with its (m, d) and its (p, e).

        Raises:
            ValueError: A value is not a number or too large to square.
        """
        (m, d), (p, e) = now, before
        m_p, m_e, d_p, d_e = self.across
        across = (m_p.add(m, p), m_e.add(m, e), d_p.add(d, p), d_e.add(d, e))
        return RatioSums(self.now.add(m, d), self.before.add(p, e), across)

    def merge(self, other: "RatioSums") -> "RatioSums":
        """Sums over the units of both."""
        m_p, m_e, d_p, d_e = self.across
        across = (
            m_p.merge(other.across[0]),
            m_e.merge(other.across[1]),
            d_p.merge(other.across[2]),
            d_e.merge(other.across[3]),
        )
        return RatioSums(self.now.merge(other.now), self.before.merge(other.before), across)


class _Linear(Struct, frozen=True):
    """An arm's ratios r and q, and the spread of their linear parts y and x."""

    n: int
    r: float
    q: float
    y: float
    x: float
    yx: float


def adjusted_ratio_difference(control: RatioSums, treatment: RatioSums) -> Estimate | None:
    """Absolute effect on the ratio; None where a denominator sums to zero."""
    arms = _linear(control), _linear(treatment)
    if arms[0] is None or arms[1] is None:
        return None
    theta = _theta(arms[0], arms[1])
    return difference(_adjusted(arms[0], theta), _adjusted(arms[1], theta))


def adjusted_ratio_relative(control: RatioSums, treatment: RatioSums) -> Estimate | None:
    """Effect as a share of the control's ratio r_A; None where it or a denominator is zero.

    With L = (r_B - theta q_B + theta q_A) / r_A the variance is that of the treatment's term,
    and of the control's L y_A - theta x_A, each divided by r_A^2.
    """
    old, new = _linear(control), _linear(treatment)
    if old is None or new is None or old.r == 0.0:
        return None
    theta = _theta(old, new)
    a, b = _adjusted(old, theta), _adjusted(new, theta)
    lift = (new.r - theta * new.q + theta * old.q) / old.r
    spread = lift * lift * old.y + theta * theta * old.x - 2 * theta * lift * old.yx
    variance = b.squared_error + Sample(old.n, lift, max(spread, 0.0)).squared_error
    return Estimate(
        effect=(b.mean - a.mean) / abs(old.r),
        se=sqrt(variance) / abs(old.r),
        n=old.n + new.n,
        dof=welch(a, b),
    )


def _linear(sums: RatioSums) -> _Linear | None:
    """Ratios and spreads of one arm."""
    m, d, p, e = sums.now.y, sums.now.x, sums.before.y, sums.before.x
    if d.mean == 0.0 or e.mean == 0.0:
        return None
    r, q = m.mean / d.mean, p.mean / e.mean
    m_p, m_e, d_p, d_e = (pair.covariance for pair in sums.across)
    y = m.variance + r * (r * d.variance - 2 * sums.now.covariance)
    x = p.variance + q * (q * e.variance - 2 * sums.before.covariance)
    yx = m_p - q * m_e - r * d_p + r * q * d_e
    return _Linear(n=sums.n, r=r, q=q, y=y / d.mean**2, x=x / e.mean**2, yx=yx / (d.mean * e.mean))


def _theta(control: _Linear, treatment: _Linear) -> float:
    """How much of y follows x; zero where x does not vary."""
    spread = control.n * control.x + treatment.n * treatment.x
    if not 0.0 < spread < inf:
        return 0.0
    return (control.n * control.yx + treatment.n * treatment.yx) / spread


def _adjusted(arm: _Linear, theta: float) -> Sample:
    """An arm with its earlier ratio's part taken out."""
    spread = arm.y + theta * (theta * arm.x - 2 * arm.yx)
    return Sample(arm.n, arm.r - theta * arm.q, max(spread, 0.0))
