"""Judging: from a record and its evidence to one decision. Pure, and the same at every replay.

Three outcomes, never two: evidence of harm rolls back; certificates for every guard and for every
metric that gates promote; all else is neither a pass nor a failure, and has a reason. In order:

1. Harm of the living treatments. One that is harmful is taken out, its units go to the control; if
   none is left, the experiment is rolled back. This holds in every state in which units are
   assigned, on hold and on pause too, and after promotion while a reverse hold-out is running.
2. What forbids to conclude anything: `srm` (which only people lift), `missing_outcomes`,
   `contamination`, `no_data`. The others go away by themselves when their reason has.
3. What the strategy does next, promotion at its end, and the deadline.

Of several treatments that are certified, the one with the best first goal is promoted.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.core import guarding, looking, shadowing, strategies
from gateway.core.assignment import SCALE
from gateway.core.experiments import (
    ENROLLING,
    Bandit,
    ExperimentRecord,
    HoldReason,
    Ramp,
    State,
)
from gateway.core.looking import Look
from gateway.core.readings import Cause, Decision, Reading
from gateway.core.strategies import Standing, Step
from gateway.core.tallies import Evidence

PATIENCE_S: Final = 60.0
"""So long a phase may be without a unit before that is a reason to hold."""


class Move(Struct, frozen=True):
    """Where to go; what is None stays as it is."""

    state: State
    reason: str = ""
    detail: str = ""
    step: Step | None = None
    winner: str | None = None


def decide(
    record: ExperimentRecord, evidence: Evidence, now: float, *, display: bool = False
) -> Decision:
    """What to do with an experiment at this moment.

    Args:
        record: as it stands.
        evidence: all of its tallies.
        now: UTC seconds.
        display: whether the readings tell everything, for reports and the ledger; the decision is
            the same. Without, evidence that cannot suffice is told as its ceiling, which is some
            ten times as fast.
    """
    if record.state is State.SHADOW:
        return _shadowed(record, evidence, now)
    seen = looking.look(record, evidence, display=display)
    return _decision(record, seen, _moved(record, seen, now))


def _shadowed(record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
    """Whether the shadow stage has passed, failed, or goes on."""
    readings, passed, failed = shadowing.read(record, evidence, now)
    if failed:
        move = Move(State.ROLLED_BACK, Cause.SHADOW, f"Shadow answers of '{failed}' differ.")
    elif passed:
        step = strategies.opening(record.document)
        move = Move(State.RUNNING, "", "The shadow stage has passed.", step)
    else:
        move = Move(State.SHADOW, record.reason)
    step = move.step or Step(0, 0, {})
    return Decision(
        state=move.state,
        step=step.step,
        exposure=step.exposure,
        weights=step.weights,
        reason=move.reason,
        detail=move.detail,
        shadows=readings,
    )


def _moved(record: ExperimentRecord, seen: Look, now: float) -> Move:
    if record.state not in ENROLLING or record.phase is None:
        return Move(record.state, record.reason)
    if harmful := _harmful(seen):
        return _harmed(record, seen, harmful)
    if record.state is State.HOLDING_OUT:
        return _holding_out(record, now)
    if record.state is State.PAUSED:
        return Move(State.PAUSED, record.reason)
    if hold := _hold(record, seen, now):
        return hold
    return _going_on(record, seen, now)


def _harmful(seen: Look) -> dict[str, Reading]:
    """The first harm of each living treatment that has any."""
    found: dict[str, Reading] = {}
    for reading in seen.gates:
        if reading.is_harm:
            found.setdefault(reading.variant, reading)
    return found


def _harmed(record: ExperimentRecord, seen: Look, harmful: Mapping[str, Reading]) -> Move:
    detail = " ".join(_harm_told(reading) for reading in harmful.values())
    left = [name for name in seen.alive if name not in harmful]
    if not left or record.phase is None or record.state is State.HOLDING_OUT:
        return Move(State.ROLLED_BACK, Cause.HARM, detail)
    weights = strategies.without(record.phase.weights, list(harmful), record.document.control)
    step = Step(record.step, record.exposure, weights)
    return Move(record.state, record.reason, detail, step)


def _holding_out(record: ExperimentRecord, now: float) -> Move:
    if now - record.since < record.document.hold_out_s:
        return Move(State.HOLDING_OUT, record.reason)
    return Move(State.PROMOTED, Cause.MATURED, "No harm was shown while outcomes matured.")


def _hold(record: ExperimentRecord, seen: Look, now: float) -> Move | None:
    """What forbids to conclude anything, if something does."""
    funnel = seen.funnel
    if seen.broken:
        e = funnel.assigned.test.e
        return _held(HoldReason.SRM, f"The variants' units are not as weighted: e = {e:.3g}.")
    if funnel.received.is_off:
        e = funnel.received.test.e
        detail = f"Outcomes come for one variant more than for another: e = {e:.3g}."
        return _held(HoldReason.MISSING_OUTCOMES, detail)
    if seen.contaminated:
        share = funnel.contaminated
        return _held(HoldReason.CONTAMINATION, f"{share:.1%} of units saw two variants.")
    if record.phase is not None and _is_silent(record, seen, now - record.phase.at):
        return _held(HoldReason.NO_DATA, "No unit was seen.")
    return None


def _is_silent(record: ExperimentRecord, seen: Look, age: float) -> bool:
    """Whether no unit came, though there was time.

    Each phase of a ramp must see units of its own, so that it does not climb on what was seen
    before traffic stopped. Other phases may hold units that are known already.
    """
    strategy = record.document.strategy
    if isinstance(strategy, Ramp):
        return seen.recent == 0 and age >= max(strategy.dwell_s, PATIENCE_S)
    return sum(seen.units.values()) == 0 and age >= PATIENCE_S


def _going_on(record: ExperimentRecord, seen: Look, now: float) -> Move:
    """The strategy's next step, promotion, or the deadline."""
    standing = _standing(record, seen, now)
    ready = strategies.is_ready(record, standing, now)
    done = ready and strategies.is_last(record)
    winner = _best(record, seen, certified=True) if done else None
    if winner and record.document.promote != "never":
        return _promotion(record, winner, Cause.CERTIFIED)
    late = ready and _is_late(record, now)
    is_ramp = isinstance(record.document.strategy, Ramp)
    step = strategies.next_step(record, standing, now) if is_ramp or not late else None
    if step is not None:
        return Move(State.RUNNING, "", "", step)
    if winner:
        return _promotion(record, winner, Cause.CERTIFIED)
    if late:
        return _after_deadline(record, seen)
    return Move(State.RUNNING, "", _forecast(seen))


def _promotion(record: ExperimentRecord, winner: str, cause: Cause) -> Move:
    """Promote, or say what stands in between."""
    document = record.document
    detail = f"'{winner}' is certified." if cause is Cause.CERTIFIED else "The deadline has passed."
    if document.promote == "never":
        if cause is Cause.CERTIFIED:
            return Move(State.RUNNING, "", detail)
        return _held(HoldReason.INCONCLUSIVE, detail)
    if document.promote == "approval" and not record.approved:
        return _held(HoldReason.APPROVAL, detail)
    if not document.hold_out or document.hold_out_s <= 0.0:
        return Move(State.PROMOTED, cause, detail, winner=winner)
    weights = {variant.name: 0 for variant in document.variants}
    weights[document.control] = document.hold_out
    weights[winner] = SCALE - document.hold_out
    return Move(State.HOLDING_OUT, cause, detail, Step(record.step, SCALE, weights), winner)


def _after_deadline(record: ExperimentRecord, seen: Look) -> Move:
    """What the document says to do without certificates. Without data it says nothing."""
    document = record.document
    if _lacks_data(seen):
        return _held(HoldReason.NO_DATA, "Nothing is known of a metric that decides.")
    if document.on_deadline == "rollback":
        return Move(State.ROLLED_BACK, Cause.DEADLINE, _forecast(seen))
    if document.on_deadline == "ship":
        if step := strategies.skipping(record):
            return Move(State.RUNNING, "", _forecast(seen), step)
        if winner := _best(record, seen, certified=False):
            return _promotion(record, winner, Cause.DEADLINE)
    return _held(HoldReason.INCONCLUSIVE, _forecast(seen))


def _is_late(record: ExperimentRecord, now: float) -> bool:
    """Whether the deadline has passed: of a ramp's step, else of the whole.

    A shadow stage, a pause and a hold are no time in which evidence was waited for: who resumes an
    experiment does not want it shipped, or rolled back, at the next look.
    """
    deadline, phase = record.document.deadline_s, record.phase
    if deadline is None or phase is None:
        return False
    began = phase.at if isinstance(record.document.strategy, Ramp) else record.started_at
    if record.state is State.RUNNING:
        began = max(began, record.since)
    return now - began >= deadline


def _lacks_data(seen: Look) -> bool:
    """Whether a guard or a metric that gates has not one unit in an arm."""
    return not seen.gates or any(min(reading.units) == 0 for reading in seen.gates)


def _best(record: ExperimentRecord, seen: Look, *, certified: bool) -> str | None:
    """The treatment to promote: of those certified, or of all that live, the best first goal."""
    candidates = [name for name in seen.alive if not certified or _is_certified(seen.of(name))]
    goals = [metric for metric in record.document.metrics if metric.role == "goal"]
    if not candidates or not goals:
        return candidates[0] if candidates else None
    sign = 1.0 if goals[0].direction == "increase" else -1.0

    def gain(name: str) -> float:
        found = next(reading for reading in seen.of(name) if reading.name == goals[0].name)
        return sign * (found.estimate or 0.0)

    return max(candidates, key=gain)


def _is_certified(readings: list[Reading]) -> bool:
    """Whether everything that gates is certified; with nothing that gates, nothing is."""
    gates = [reading for reading in readings if reading.gates]
    return bool(gates) and all(reading.is_safe for reading in gates)


def _standing(record: ExperimentRecord, seen: Look, now: float) -> Standing:
    """What the strategy needs to know, and no more."""
    phase, strategy, document = record.phase, record.document.strategy, record.document
    if isinstance(strategy, Bandit):
        return Standing(seen.units, seen.events, arms=looking.goal_arms(record, seen.strata))
    if not isinstance(strategy, Ramp) or phase is None:
        return Standing(seen.units, seen.events)
    role = "guard" if document.guards else "guardrail"
    gates = [reading for reading in seen.gates if reading.role == role]
    certified = all(reading.is_safe for reading in gates)
    age, enrolled = now - phase.at, phase.exposure / SCALE
    arrivals = seen.recent / age / enrolled if age > 0 and enrolled > 0 else 0.0
    standing = Standing(seen.units, seen.events, seen.recent, certified, 1.0, arrivals)
    if certified or strategy.risk_budget is None or strategies.is_last(record):
        return standing
    if role != "guard" or not strategies.is_ready(record, standing, now):
        return standing
    level = seen.risks.safe
    worst = max(guarding.excess(reading, level) for reading in gates)
    return replace(standing, excess=worst)


def _held(reason: HoldReason, detail: str) -> Move:
    return Move(State.HELD, reason, detail)


def _harm_told(reading: Reading) -> str:
    return (
        f"'{reading.variant}' does harm by '{reading.name}': e = {reading.harm.e:.3g} after "
        f"{reading.units[1]} units of it and {reading.units[0]} of the control."
    )


def _forecast(seen: Look) -> str:
    """What is missing for a promotion, in a sentence."""
    open_ = [reading for reading in seen.gates if not reading.is_safe]
    if not open_:
        return ""
    told = []
    for reading in open_:
        left = "" if reading.left is None else f" (about {reading.left} more units)"
        told.append(f"{reading.key}{left}")
    return f"Not certified yet: {', '.join(told)}."


def _decision(record: ExperimentRecord, seen: Look, move: Move) -> Decision:
    """Spell out what a move changes."""
    phase = record.phase
    step = move.step or Step(
        record.step,
        phase.exposure if phase else record.exposure,
        dict(phase.weights) if phase else {},
    )
    return Decision(
        state=move.state,
        step=step.step,
        exposure=step.exposure,
        weights=step.weights,
        reason=str(move.reason),
        detail=move.detail,
        winner=move.winner,
        readings=seen.readings,
        funnel=seen.funnel,
    )
