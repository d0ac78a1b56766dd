"""Guarding: what the guards of a variant say, against the control, valid at every look.

A guard counts units with at least one event. While a unit's chance of one does not depend on the
variant, each event is the variant's with the share of its phase, whatever the rate is; so two
counts per phase are enough, there is no burn-in, and the test is exact (`stats.margins`).

Safe has two ways, which share the risk of a false certificate: a rate certified below `allowed`
times the control's, or one of the variant alone certified below `negligible`. Without the second a
guard that never fires would block for ever, because silence says nothing about a ratio.

The absolute rate is of the units seen so far. Where units are people who stay, those that came
lately have had little time for an event; choose `dwell_s` accordingly.
"""

from collections.abc import Sequence
from math import exp, inf
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.arms import Pair
from gateway.core.experiments import Guard
from gateway.core.readings import Display, Evidential, Reading, Verdict, evidential
from gateway.core.stats import bernoulli, ceilings, margins, multinomial, planning, thompson

_FAR: Final = 690.0


class Asked(Struct, frozen=True):
    """At which risks guards are read.

    Attributes:
        harm: risk of false harm of each guard.
        safe: risk of a false certificate of each, by both ways together.
        exact: whether to tell evidence that falls short exactly; else as its ceiling.
    """

    harm: Sequence[float]
    safe: float
    exact: bool


def read_guards(
    guards: Sequence[Guard], variant: str, pairs: Sequence[Pair], asked: Asked
) -> list[Reading]:
    """All guards of one variant.

    Args:
        guards: of the document, in its order.
        variant: the treatment's name.
        pairs: the variant beside the control, by stratum.
        asked: the risks.
    """
    units = _units(pairs)
    readings = []
    for index, guard in enumerate(guards):
        phases = phases_of(pairs, index)
        hits = int(sum(phase.control for phase in phases)), int(sum(p.treated for p in phases))
        old, new = (_rate(count, n) for count, n in zip(hits, units, strict=True))
        harm = _harm(guard, phases, asked.harm[index], exact=asked.exact)
        safe = _safe(guard, phases, ratio_level(guard, asked.safe), exact=asked.exact)
        rare = _negligible(guard, hits[1], units[1], asked)
        readings.append(
            Reading(
                name=guard.name,
                variant=variant,
                role="guard",
                verdict=_verdict(harm, safe, rare),
                harm=harm,
                safe=safe,
                negligible=rare,
                events=hits,
                units=units,
                control=old,
                treatment=new,
                estimate=None if old is None or new is None else new - old,
                relative=new / old - 1.0 if old and new is not None else None,
            )
        )
    return readings


def ratio_level(guard: Guard, safe_level: float) -> float:
    """What the certificate by ratio may use of the risk: half, while there is another way."""
    return safe_level / 2 if guard.negligible > 0.0 else safe_level


def from_log(log_e: float, level: float) -> Evidential:
    """Evidence from its logarithm."""
    return evidential(exp(min(float(log_e), _FAR)), level)


def apart(reading: Reading, guard: Guard, level: float) -> Reading:
    """The guard read without trust in the shares: from the two rates alone.

    If units did not get their variant with the shares that they should have, whose event comes
    next says nothing. A broken split must still not shield a broken version, so harm is shown
    where the lower bound of the variant's rate is above `tolerance` times the upper bound of the
    control's, each at half the risk. Nothing is certified.
    """
    old, new = reading.units
    shown = False
    if reading.events is not None and (reading.estimate or 0.0) > 0.0:
        _, most = bernoulli.confidence_sequence(reading.events[0], old, level / 2)
        least, _ = bernoulli.confidence_sequence(reading.events[1], new, level / 2)
        shown = least > guard.tolerance * most
    return replace(
        reading,
        verdict=Verdict.WORSE if shown else Verdict.INVALID,
        harm=evidential(1.0 / level if shown else 1.0, level),
        safe=replace(reading.safe, e=1.0),
        negligible=None,
    )


def doubted(reading: Reading) -> Reading:
    """The guard where too many units saw two variants: harm still counts, and nothing else."""
    verdict = Verdict.WORSE if reading.harm.holds else Verdict.INVALID
    return replace(reading, verdict=verdict)


def excess(reading: Reading, level: float) -> float:
    """Upper bound of the share of the variant's units with an event beyond the control's."""
    old, new = reading.units
    if reading.events is None or not old or not new:
        return 1.0
    _, most = bernoulli.confidence_sequence(reading.events[1], new, level / 2)
    least, _ = bernoulli.confidence_sequence(reading.events[0], old, level / 2)
    return max(most - least, 0.0)


def with_display(
    reading: Reading, guard: Guard, pairs: Sequence[Pair], index: int, level: float
) -> Reading:
    """Add the bounds of the ratio, the forecast, and what one look would say.

    Args:
        reading: to add to.
        guard: its declaration.
        pairs: the same as for the reading.
        index: of the guard in the document.
        level: risk of a false certificate, by both ways together.
    """
    phases = phases_of(pairs, index)
    if not phases:
        return reading
    risk = 1.0 / reading.harm.threshold / 2
    lowest, highest = margins.lower_ratio(phases, risk), margins.upper_ratio(phases, risk)
    shares = [((phase.control, phase.treated), (1 - phase.share, phase.share)) for phase in phases]
    hits, units = reading.events or (0, 0), reading.units
    fewer = thompson.beta_weights(
        [1.0 + hits[0], 1.0 + hits[1]],
        [1.0 + max(units[0] - hits[0], 0.0), 1.0 + max(units[1] - hits[1], 0.0)],
    )[0]
    return replace(
        reading,
        relative_interval=(lowest - 1.0, None if highest == inf else highest - 1.0),
        left=_left(reading, guard, phases, level),
        display=Display(multinomial.chi_square_over_phases(shares).p_value, (None, None), fewer),
    )


def phases_of(pairs: Sequence[Pair], guard: int) -> list[margins.Phase]:
    """Units with the event of a guard, by its index, as the statistics take them."""
    phases = []
    for pair in pairs:
        old, new = pair.events(guard)
        phases.append(margins.Phase(new, old, pair.share))
    return phases


def _harm(guard: Guard, phases: list[margins.Phase], level: float, *, exact: bool) -> Evidential:
    """Evidence that the ratio of rates is above `tolerance`."""
    most = from_log(ceilings.ratio_above(phases, guard.tolerance), level)
    if not exact and not most.holds:
        return most
    return from_log(margins.log_e_harm_over_phases(phases, guard.tolerance), level)


def _safe(guard: Guard, phases: list[margins.Phase], level: float, *, exact: bool) -> Evidential:
    """Evidence that the ratio of rates is below `allowed`."""
    most = from_log(ceilings.ratio_below(phases, guard.allowed), level)
    if not exact and not most.holds:
        return most
    return from_log(margins.log_e_safe_over_phases(phases, guard.allowed), level)


def _negligible(guard: Guard, events: int, units: int, asked: Asked) -> Evidential | None:
    """Evidence that the variant's own rate is below what matters."""
    level, limit = asked.safe / 2, guard.negligible
    if limit <= 0.0:
        return None
    if limit >= 1.0:
        return from_log(_FAR if units else 0.0, level)
    others = max(units - events, 0)
    most = from_log(ceilings.rate_below(events, others, limit), level)
    if not asked.exact and not most.holds:
        return most
    return from_log(bernoulli.log_e_below(events, others, limit), level)


def _verdict(harm: Evidential, safe: Evidential, rare: Evidential | None) -> Verdict:
    if harm.holds:
        return Verdict.WORSE
    certified = safe.holds or (rare is not None and rare.holds)
    return Verdict.EQUIVALENT if certified else Verdict.INCONCLUSIVE


def _rate(events: int, units: int) -> float | None:
    return events / units if units else None


def _units(pairs: Sequence[Pair]) -> tuple[int, int]:
    both = [pair.assigned for pair in pairs]
    return sum(old for old, _ in both), sum(new for _, new in both)


def _left(
    reading: Reading, guard: Guard, phases: Sequence[margins.Phase], level: float
) -> int | None:
    """Units of both arms until one of the two ways certifies, if events come as they did."""
    if reading.is_safe:
        return 0
    units, events = sum(reading.units), reading.events or (0, 0)
    if not reading.units[1]:
        return None

    def by_ratio(control: float, treated: float) -> float:
        scale = (control + treated) / max(sum(events), 1)
        grown = [margins.Phase(p.treated * scale, p.control * scale, p.share) for p in phases]
        return margins.log_e_safe_over_phases(grown, guard.allowed)

    risk = ratio_level(guard, level)
    ways = [planning.event_units_left(by_ratio, (events[0], events[1]), units, risk)]
    if 0.0 < guard.negligible < 1.0:
        ways.append(_until_negligible(reading, guard, level / 2))
    known = [way for way in ways if way is not None]
    return min(known) if known else None


def _until_negligible(reading: Reading, guard: Guard, level: float) -> int | None:
    hits, units = (reading.events or (0, 0))[1], reading.units[1]
    if hits / units >= guard.negligible:
        return None

    def below(events: float, others: float) -> float:
        return bernoulli.log_e_below(events, others, guard.negligible)

    left = planning.event_units_left(below, (hits, units - hits), units, level)
    return None if left is None else round(left * sum(reading.units) / units)
