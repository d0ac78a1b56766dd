"""Measuring: what the metrics of a variant say, against the control, valid at every look.

All intervals and e-values are asymptotic confidence sequences (`stats.sequences`) on the absolute
difference over strata (`arms`); the relative one is for display. Nothing is read before each arm
has `MIN_UNITS` units and, of a binary metric, before `MIN_EVENTS` of the rarer kind of unit are due
in each arm. What is due is reckoned from both arms together: a variant that lost all of them must
not hide behind the burn-in.

Harm is a loss beyond the margin, because the margin is what may be lost without harm. Safe is a
loss within it, for certain. Claims are two-sided: `better` and `worse` leave no effect out.
"""

from collections.abc import Iterator, Sequence
from math import exp, sqrt
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace
from scipy import special

from gateway.core.arms import Pair, has_spread, overlap, pairs_together, together
from gateway.core.experiments import Metric
from gateway.core.readings import Display, Evidential, Interval, Reading, Verdict, evidential
from gateway.core.stats import means, planning, sequences
from gateway.core.stats.means import Estimate, Sample, Side
from gateway.core.stats.moments import Comoments, Moments
from gateway.core.tallies import Cell, MetricTally

_NOBODY: Final = Sample(0, 0.0, 0.0)
_FAR: Final = 690.0
_ROUNDING: Final = 1e-9
Sums = TypeVar("Sums", Moments, Comoments)


class Levels(Struct, frozen=True):
    """Risks of one metric of one variant: of false harm, of a false certificate and claim."""

    harm: float
    safe: float
    claim: float


class Effect(Struct, frozen=True):
    """Control and variant over all strata, and what differs between them; relative as asked."""

    control: Sample
    treatment: Sample
    absolute: Estimate
    relative: Estimate | None = None


def read_effect(
    metric: Metric, variant: str, effect: Effect, levels: Levels, *, display: bool
) -> Reading:
    """A mean, a count, a share or a ratio.

    Args:
        metric: its declaration.
        variant: the treatment's name.
        effect: what was measured.
        levels: at which harm, safety and claims count.
        display: whether to tell what nothing is decided on, too.
    """
    known, n, planned = _with_spread(effect), effect.absolute.n, metric.planned_units
    settled = known.is_known and is_settled(metric, effect)
    reading = replace(
        unread(metric, variant, levels),
        control=effect.control.mean if effect.control.n else None,
        treatment=effect.treatment.mean if effect.treatment.n else None,
        estimate=known.effect if effect.control.n and effect.treatment.n else None,
        error=known.se if known.is_known else None,
        units=(effect.control.n, effect.treatment.n),
        settled=settled,
    )
    if not settled:
        return reading
    sign = 1.0 if metric.direction == "increase" else -1.0
    z = (sign * known.effect + metric.margin) / known.se
    told = replace(
        reading,
        harm=_one_sided(-z, n, levels.harm, planned, exact=display),
        safe=_one_sided(z, n, levels.safe, planned, exact=display),
    )
    band = sequences.band(known, levels.claim, planned)
    told = replace(
        told,
        verdict=verdict_of(metric, (band.lower, band.upper)),
        claim=evidential(band.e_value, levels.claim),
        interval=(band.lower, band.upper),
    )
    return _with_display(told, metric, effect, levels) if display else told


def unread(metric: Metric, variant: str, levels: Levels) -> Reading:
    """A metric of which nothing can be said: no pass, and no failure."""
    return Reading(
        name=metric.name,
        variant=variant,
        role=metric.role,
        harm=evidential(1.0, levels.harm),
        safe=evidential(1.0, levels.safe),
        claim=evidential(1.0, levels.claim),
        settled=False,
    )


def _one_sided(z: float, n: int, level: float, planned: float, *, exact: bool) -> Evidential:
    """Evidence above a null that is z standard errors away: at most 2 exp(z^2 / 2)."""
    most = evidential(2.0 * exp(min(z * z / 2.0, _FAR)) if z > 0.0 else 0.0, level)
    if not exact and not most.holds:
        return most
    return evidential(float(sequences.one_sided_e(z, n, level, planned)), level)


def _with_spread(effect: Effect) -> Estimate:
    """The effect, with an error even if no unit differs from the others of its arm.

    Where all of one arm have one value and all of the other another, what is left is the spread
    about their common mean: the squared error is then the squared effect over the units.
    """
    known, scale = effect.absolute, abs(effect.control.mean) + abs(effect.treatment.mean)
    if known.se != 0.0 or abs(known.effect) <= _ROUNDING * scale:
        return known
    return replace(known, se=abs(known.effect) / sqrt(known.n))


def is_settled(metric: Metric, effect: Effect) -> bool:
    """Whether the burn-in of a mean, count, share or ratio is over."""
    old, new = effect.control, effect.treatment
    units = (old.n, new.n)
    if metric.kind != "binary":
        return sequences.is_settled(units)
    hits = old.n * old.mean + new.n * new.mean
    rarer = min(hits, sum(units) - hits)
    due = [int(rarer * n / sum(units)) if sum(units) else 0 for n in units]
    return sequences.is_settled(units, due)


def verdict_of(metric: Metric, interval: Interval) -> Verdict:
    """What an interval of the difference allows to say.

    A gain is `better` even if it is small; a loss within the margin is `equivalent`.
    """
    lower, upper = interval if metric.direction == "increase" else turned(interval)
    if lower is not None and lower > 0.0:
        return Verdict.BETTER
    if lower is not None and upper is not None and -metric.margin <= lower:
        return Verdict.EQUIVALENT if upper <= metric.margin else Verdict.INCONCLUSIVE
    if upper is not None and upper < 0.0:
        return Verdict.WORSE
    return Verdict.INCONCLUSIVE


def turned(interval: Interval) -> Interval:
    """The interval of the negative number."""
    lower, upper = interval
    return (None if upper is None else -upper, None if lower is None else -lower)


def effect_of(metric: Metric, pairs: Sequence[Pair], *, display: bool = True) -> Effect:
    """Control and variant over all strata in which both have a variance.

    With a covariate its part is taken out (CUPED), as long as it is known of every counted unit:
    where silence counts as a value, units without an outcome have no covariate, and leaving them
    out would compare those who answered only.
    """
    if metric.kind == "ratio":
        old, new = _both_pairs(metric, pairs)
        return _effect(means.ratio_sample(old), means.ratio_sample(new), display=display)
    if metric.covariate is not None and _is_covered(metric, pairs):
        old, new = _both_pairs(metric, pairs)
        return Effect(
            means.mean_sample(old.y),
            means.mean_sample(new.y),
            means.adjusted_difference(old, new),
            means.adjusted_relative(old, new) if display else None,
        )
    return _effect(*_both_means(metric, pairs), display=display)


def arm_samples(
    metric: Metric, strata: Sequence[tuple[float, Sequence[Sequence[Cell]]]]
) -> list[Sample]:
    """Every variant of a metric over strata, each with its weight; what a bandit learns from."""
    if metric.kind == "ratio":
        pairs = [(weight, [_sums(metric, cells) for cells in arms]) for weight, arms in strata]
        return [means.ratio_sample(pairs_together(*arm)) for arm in _by_arm(pairs)]
    sums = [(weight, [moments_of(metric, cells) for cells in arms]) for weight, arms in strata]
    return [means.mean_sample(together(*arm)) for arm in _by_arm(sums)]


def _by_arm(
    strata: Sequence[tuple[float, Sequence[Sums]]],
) -> Iterator[tuple[list[Sums], list[float]]]:
    """Of each arm the sums of every stratum in which all have a variance, and their weights."""
    read = [(weight, arms) for weight, arms in strata if has_spread([arm.n for arm in arms])]
    weights = [weight for weight, _ in read]
    for place in range(len(read[0][1]) if read else 0):
        yield [arms[place] for _, arms in read], weights


def moments_of(metric: Metric, cells: Sequence[Cell]) -> Moments:
    """Sums of the unit values over cells; of a ratio, of its numerator."""
    total: Moments | None = None
    for cell in cells:
        tally = cell.metrics.get(metric.name)
        if tally is None:
            continue
        found = tally.pair.y if tally.moments is None and tally.pair else tally.moments
        if found is not None:
            total = found if total is None else total.merge(found)
    return total or Moments()


def _both_means(metric: Metric, pairs: Sequence[Pair]) -> tuple[Sample, Sample]:
    old = [moments_of(metric, pair.control) for pair in pairs]
    new = [moments_of(metric, pair.treatment) for pair in pairs]
    if len(pairs) == 1:
        return means.mean_sample(old[0]), means.mean_sample(new[0])
    read, weights = _readable(pairs, [arm.n for arm in old], [arm.n for arm in new])
    if not read:
        return _NOBODY, _NOBODY
    return (
        means.mean_sample(together([old[i] for i in read], weights)),
        means.mean_sample(together([new[i] for i in read], weights)),
    )


def _both_pairs(metric: Metric, pairs: Sequence[Pair]) -> tuple[Comoments, Comoments]:
    old = [_sums(metric, pair.control) for pair in pairs]
    new = [_sums(metric, pair.treatment) for pair in pairs]
    if len(pairs) == 1:
        return old[0], new[0]
    read, weights = _readable(pairs, [arm.n for arm in old], [arm.n for arm in new])
    if not read:
        return Comoments(), Comoments()
    return (
        pairs_together([old[i] for i in read], weights),
        pairs_together([new[i] for i in read], weights),
    )


def _readable(
    pairs: Sequence[Pair], old: Sequence[int], new: Sequence[int]
) -> tuple[list[int], list[float]]:
    """Which strata have a variance in both arms, and what they weigh."""
    read = [i for i in range(len(pairs)) if has_spread((old[i], new[i]))]
    return read, [overlap(pairs[i].share, old[i] + new[i]) for i in read]


def _sums(metric: Metric, cells: Sequence[Cell]) -> Comoments:
    total = Comoments()
    for cell in cells:
        tally = cell.metrics.get(metric.name)
        if tally is not None and tally.pair is not None:
            total = total.merge(tally.pair)
    return total


def _is_covered(metric: Metric, pairs: Sequence[Pair]) -> bool:
    return all(
        tally.pair is not None and tally.pair.n == tally.moments.n
        for pair in pairs
        for cell in (*pair.control, *pair.treatment)
        if (tally := cell.metrics.get(metric.name, MetricTally())).moments is not None
    )


def _effect(control: Sample, treatment: Sample, *, display: bool) -> Effect:
    absolute = means.difference(control, treatment)
    relative = means.relative(control, treatment) if display else None
    return Effect(control, treatment, absolute, relative)


def _with_display(reading: Reading, metric: Metric, effect: Effect, levels: Levels) -> Reading:
    """Add what people like to see: relative effect, forecast, and what one look would say."""
    known, planned = _with_spread(effect), metric.planned_units
    rising = metric.direction == "increase"
    once = means.fixed(known, levels.claim)
    above = float(special.ndtr(known.effect / known.se))
    relative = effect.relative if effect.relative and effect.relative.is_known else None
    band = None if relative is None else sequences.band(relative, levels.claim, planned)
    return replace(
        reading,
        relative=None if relative is None else relative.effect,
        relative_interval=None if band is None else (band.lower, band.upper),
        left=planning.units_left(
            known,
            levels.safe,
            planned,
            Side.GREATER if rising else Side.LESS,
            -metric.margin if rising else metric.margin,
        ),
        display=Display(once.p, (once.lower, once.upper), above if rising else 1.0 - above),
    )
