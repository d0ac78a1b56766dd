"""Confidence sequences: readings of a mean, a ratio or an adjusted mean that hold at every look.

A leader looks each second and acts on what it sees first, so the error must be spent over all
looks. With z = (effect - null) / se after n units, and rho^2 set so that the band is tightest
after the planned number of units:

    both sides   e = exp(rho^2 n z^2 / (2 (n rho^2 + 1))) / sqrt(n rho^2 + 1)
                 half-width = se sqrt(2 (n rho^2 + 1) / (n rho^2) ln(sqrt(n rho^2 + 1) / alpha))
    one side     e = 2 (exp(rho^2 n z^2 / (2 (n rho^2 + 1))) - 1) / sqrt(n rho^2 + 1), 0 for z < 0
                 half-width with ln(1 + sqrt(n rho^2 + 1) / (2 alpha))
    rho^2 = (-2 ln alpha + ln(1 - 2 ln alpha)) / planned, with 2 alpha where one side is read

The null is rejected, at any look, when e >= 1 / alpha, which is when the band leaves it out;
p = min(1, 1/e). Being wrong about `planned` by a factor of four costs less than 8 per cent width.

The bands hold asymptotically: nothing is read before `is_settled`. They hold for the estimate on
one unit's contribution after another, so a unit counts once, when its outcome is final.

Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences" (arXiv 2103.06476), equations 9, 134, 155 and 161.
"""

from collections.abc import Sequence
from math import fsum, inf, sqrt
from typing import Final, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.core.stats.means import MIN_SPREAD, Estimate, Sample, Side
from gateway.core.stats.moments import Moments

Numbers: TypeAlias = float | NDArray[np.float64]
"""A number, or an array of them that is computed element by element."""

MIN_UNITS: Final = 100
MIN_EVENTS: Final = 10
_LARGEST: Final = 700.0  # exp of it is still finite, so that an e-value can be stored as JSON
_FAR: Final = 1e6  # standard errors beyond which nothing changes, and squares do not overflow


class Band(Struct, frozen=True):
    """What a confidence sequence says at one look. It may be stored and sent as JSON.

    Attributes:
        lower: Lower end of the band in the effect's unit, or None where it has none.
        upper: Upper end, or None.
        e_value: Evidence against effect = null, or <= null (`GREATER`), or >= null (`LESS`);
            reject at level alpha once it reaches 1 / alpha. Finite; one stands for no evidence.
        p: min(1, 1/e): valid at any look. Its running minimum is valid too.
    """

    lower: float | None
    upper: float | None
    e_value: float
    p: float


def is_settled(
    units: Sequence[int],
    events: Sequence[int] | None = None,
    *,
    min_units: int = MIN_UNITS,
    min_events: int = MIN_EVENTS,
) -> bool:
    """Whether there is enough to trust an asymptotic reading: the burn-in.

    Args:
        units: Units of each arm.
        events: Where the metric is binary or rarely different from zero: per arm the rarer of
            events and non-events. An arm without them has a variance that cannot be believed.
        min_units: Units that each arm must have.
        min_events: Events that each arm must have.
    """
    enough = all(n >= min_units for n in units)
    return enough and (events is None or all(count >= min_events for count in events))


def tuning(alpha: float, planned: float) -> float:
    """The rho^2 that makes a two-sided band of level alpha tightest after `planned` units."""
    doubled = -2 * np.log(alpha)
    return float((doubled + np.log(doubled + 1)) / planned)


def two_sided_multiplier(n: Numbers, alpha: float, planned: float) -> Numbers:
    """Half-width of the two-sided band in standard errors after n units of both arms."""
    gain = n * tuning(alpha, planned)
    wide = 2 * (gain + 1) / gain * np.log(np.sqrt(gain + 1) / alpha)
    return np.sqrt(wide)


def one_sided_multiplier(n: Numbers, alpha: float, planned: float) -> Numbers:
    """Half-width of the one-sided band in standard errors after n units of both arms."""
    gain = n * tuning(2 * alpha, planned)
    wide = 2 * (gain + 1) / gain * np.log1p(np.sqrt(gain + 1) / (2 * alpha))
    return np.sqrt(wide)


def two_sided_e(z: Numbers, n: Numbers, alpha: float, planned: float) -> Numbers:
    """E-value against effect = null; z is (effect - null) / se, n the units of both arms."""
    gain = n * tuning(alpha, planned)
    far = np.minimum(np.abs(z), _FAR)
    exponent = np.minimum(gain * far * far / (2 * (gain + 1)), _LARGEST)
    evidence: Numbers = np.exp(exponent) / np.sqrt(gain + 1)
    return evidence


def one_sided_e(z: Numbers, n: Numbers, alpha: float, planned: float) -> Numbers:
    """E-value against effect <= null; turn the sign of z for effect >= null."""
    gain = n * tuning(2 * alpha, planned)
    positive = np.minimum(np.maximum(z, 0.0), _FAR)
    exponent = np.minimum(gain * positive * positive / (2 * (gain + 1)), _LARGEST)
    return 2 * np.expm1(exponent) / np.sqrt(gain + 1)


def band(
    estimate: Estimate,
    alpha: float,
    planned: float,
    side: Side = Side.BOTH,
    null: float = 0.0,
) -> Band:
    """Reading of an estimate that holds at every look after the burn-in.

    Args:
        alpha: Chance, over all looks together, of ever rejecting a null that is true; below one
            half.
        planned: Units of both arms at which the decision is expected, above zero.
        side: `GREATER` gives evidence that the effect is above `null` and a lower bound; `LESS`
            the other way round. A harm test and a non-inferiority test are each one-sided.
        null: Effect to compare with, for instance the margin, in the effect's unit.
    """
    if not estimate.is_known:
        return Band(None, None, 1.0, 1.0)
    effect, se, n = estimate.effect, estimate.se, estimate.n
    z = (effect - null) / se
    if side is Side.BOTH:
        width = float(two_sided_multiplier(n, alpha, planned)) * se
        return _band(effect - width, effect + width, two_sided_e(z, n, alpha, planned))
    width = float(one_sided_multiplier(n, alpha, planned)) * se
    if side is Side.GREATER:
        return _band(effect - width, None, one_sided_e(z, n, alpha, planned))
    return _band(None, effect + width, one_sided_e(-z, n, alpha, planned))


def stratified(phases: Sequence[tuple[Sample, Sample]]) -> tuple[Sample, Sample]:
    """Both arms over phases that each kept its weights, so that no mix of phases misleads.

    An arm's mean is sum w_k m_k and its squared error sum w_k^2 s_k^2 / n_k, with w_k the share of
    phase k among the units of both arms. Take the `difference` or `relative` effect of the result.
    Phases in which an arm has fewer than two units are left out: that depends on counts alone,
    never on outcomes.

    Args:
        phases: Control and treatment of each phase.

    Source: Miratrix, Sekhon and Yu, "Adjusting treatment effect estimates by post-stratification"
    (2013).
    """
    read = [pair for pair in phases if min(pair[0].n, pair[1].n) >= MIN_SPREAD]
    sizes = [control.n + treatment.n for control, treatment in read]
    n = sum(sizes)
    weights = [size / n for size in sizes]
    return (
        _weighted([control for control, _ in read], weights),
        _weighted([treatment for _, treatment in read], weights),
    )


def _weighted(samples: Sequence[Sample], weights: Sequence[float]) -> Sample:
    """One arm over phases."""
    n = sum(sample.n for sample in samples)
    both = list(zip(samples, weights, strict=True))
    mean = sum((weight * sample.mean for sample, weight in both), 0.0)
    error = sum((weight * weight * sample.squared_error for sample, weight in both), 0.0)
    return Sample(n, mean, n * error)


class Epoch(Struct, frozen=True):
    """What a time with constant weights collected: the input of `inverse_propensity`.

    Attributes:
        n: Units that entered, of all arms.
        control: Their outcomes in the control arm.
        treatment: Their outcomes in the treatment arm.
        control_share: Logged propensity of the control arm.
        treatment_share: Logged propensity of the treatment arm.
    """

    n: int
    control: Moments
    treatment: Moments
    control_share: float
    treatment_share: float


def inverse_propensity(epochs: Sequence[Epoch], centre: float = 0.0) -> Estimate:
    """Effect where weights follow the outcomes (a bandit): each unit weighted by 1 / propensity.

    Every unit that entered contributes, with its own epoch's propensities p and centres c,

        phi = (c_B - c_A) + [arm B] (y - c_B) / p_B - [arm A] (y - c_A) / p_A

    whose expectation is the effect whatever the weights were. The centres are the arms' means in
    the epochs before, so that they are known before the unit's arm is drawn; in the first epoch,
    and for an arm without units, they are `centre`. The effect is the mean of phi, se^2 = V / n.
    Epochs in which an arm had no chance say nothing of the effect and are left out.

    V is the larger of two variances of phi. The observed one misses what few heavily weighted
    units have not shown yet; the expected one assumes that outcomes vary alike in all epochs:

        mean over units of E(y_B - c_B)^2 / p_B + E(y_A - c_A)^2 / p_A - (effect - c_B + c_A)^2

    Args:
        epochs: In the order of time; the weights of each may depend on all before it.
        centre: A typical outcome that is known beforehand, such as the metric's shift.

    Source: arXiv 2103.06476 section 3 (doubly robust pseudo-outcomes); Bibaut, Kallus and
    Lindon, "Near-optimal non-parametric sequential tests under adaptive designs" (2022). The
    larger variance is our own: simulated, the observed one alone errs three times too often
    where events are rare.
    """
    parts: list[tuple[int, float, float]] = []  # units, mean of phi, squares around that mean
    centres: list[tuple[Epoch, float, float]] = []
    old, new = Moments(), Moments()
    used = [epoch for epoch in epochs if min(epoch.control_share, epoch.treatment_share) > 0.0]
    for epoch in used:
        c_a = old.mean if old.n else centre
        c_b = new.mean if new.n else centre
        centres.append((epoch, c_a, c_b))
        parts.append(_part(epoch.control, c_a, -1 / epoch.control_share, c_b - c_a))
        parts.append(_part(epoch.treatment, c_b, 1 / epoch.treatment_share, c_b - c_a))
        parts.append((epoch.n - epoch.control.n - epoch.treatment.n, c_b - c_a, 0.0))
        old, new = old.merge(epoch.control), new.merge(epoch.treatment)
    n = sum(epoch.n for epoch in used)
    effect = fsum(count * mean for count, mean, _ in parts) / max(n, 1)
    if min(old.n, new.n) < MIN_SPREAD:
        return Estimate(effect, inf, n)
    observed = fsum(rest + count * (mean - effect) ** 2 for count, mean, rest in parts) / (n - 1)
    expected = fsum(_expected(old, new, *known) for known in centres) / n
    return Estimate(effect, sqrt(max(observed, expected) / n), n)


def _part(arm: Moments, centre: float, factor: float, step: float) -> tuple[int, float, float]:
    """One arm's units in an epoch: how many, mean of step + factor (y - centre), its squares."""
    squares = factor * factor * arm.variance * (arm.n - 1)
    return arm.n, step + factor * (arm.mean - centre), squares if arm.n else 0.0


def _expected(old: Moments, new: Moments, epoch: Epoch, c_a: float, c_b: float) -> float:
    """Variance of phi that an epoch's weights give outcomes like those of all epochs, times n."""
    spread = (new.variance + (new.mean - c_b) ** 2) / epoch.treatment_share
    spread += (old.variance + (old.mean - c_a) ** 2) / epoch.control_share
    return epoch.n * (spread - (new.mean - old.mean - c_b + c_a) ** 2)


def _band(lower: float | None, upper: float | None, e: Numbers) -> Band:
    evidence = float(e)
    return Band(lower, upper, evidence, 1.0 if evidence <= 1.0 else 1.0 / evidence)
