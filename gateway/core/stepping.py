"""What becomes of an experiment once it was judged: pure, and the same whenever it is replayed.

A step is one commit. `next_record` says what it makes of the record alone; `step` applies it to a
Snapshot and, where it promotes or takes a promotion back, moves the alias with it.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from gateway.core.assignment import reweigh
from gateway.core.errors import Conflict
from gateway.core.experimenting import champion_of, demoted, experiment_of, with_record
from gateway.core.experiments import ENROLLING, LIVE, ExperimentRecord, HoldReason, Phase, State
from gateway.core.readings import Decision
from gateway.core.snapshot import Snapshot
from gateway.core.transitions import promote

LAST_PHASES: Final = 1_970
"""Of 2,000 that a record holds. From then on weights stay, but that a variant can be taken out, and
that what is promoted gets its traffic."""


def next_record(  # noqa: PLR0913 - what it follows from, no more
    record: ExperimentRecord,
    decision: Decision,
    *,
    at: float,
    number: int,
    champion: int | None,
    closed: Sequence[str] = (),
) -> ExperimentRecord:
    """What a record becomes; the same one if there is nothing to commit.

    Args:
        record: a live one.
        decision: what was made of its evidence.
        at: the moment for which it was decided, in UTC seconds.
        number: the revision of the commit that this would be, which a new phase is named by.
        champion: the version that the experiment's alias names, None where it names none.
        closed: what gates miss of the version that would be promoted, a sentence each.
    """
    if not decision.differs(record):
        return record
    state, reason = decision.state, decision.reason
    usurped = decision.winner is not None and not _may_promote(record, decision.winner, champion)
    barred = decision.winner is not None and bool(closed)
    if usurped:
        # What was certified is no worse than the control, which nobody else gets any more.
        state, reason = State.HELD, HoldReason.CONTROL_MOVED.value
    elif barred:
        state, reason = State.HELD, HoldReason.GATE.value
    stays = usurped or barred
    after = replace(
        record,
        state=state,
        reason=reason,
        since=record.since if state is record.state else at,
        step=record.step if stays else decision.step,
        verdicts=decision.verdicts,
    )
    begins = state in ENROLLING and decision.moves(record) and not stays
    if begins and (len(record.phases) < LAST_PHASES or _must_move(record, decision)):
        after = _in_phase(after, Phase(number, at, decision.exposure, decision.weights))
    return record if after == record else after


def step(  # noqa: PLR0913 - as `next_record`
    snapshot: Snapshot,
    name: str,
    decision: Decision,
    *,
    at: float,
    champion: int | None,
    closed: Sequence[str] = (),
) -> Snapshot:
    """Apply a decision; what gates keep `closed` is not promoted, and waits.

    Raises:
        NotFound: no such experiment.
        Conflict: it does not run any more, or its alias names another version than was judged.
        InvalidRequest: the result does not go with the rest of the Snapshot.
    """
    record = experiment_of(snapshot, name)
    if record.state not in LIVE:
        message = f"Experiment '{name}' is {record.state}; it takes no more steps."
        raise Conflict(message)
    model, now = champion_of(snapshot, record)
    if now != champion:
        message = f"'{record.document.alias}' of '{model}' moved while '{name}' was judged."
        raise Conflict(message)
    number = snapshot.revision + 1
    after = next_record(record, decision, at=at, number=number, champion=champion, closed=closed)
    if after is record:
        return snapshot
    if after.state is State.ROLLED_BACK and record.state is State.HOLDING_OUT:
        snapshot = demoted(snapshot, record)
    winner = decision.winner
    if winner is not None and after.state in (State.PROMOTED, State.HOLDING_OUT):
        version = record.versions[winner]
        if champion != version:
            snapshot = promote(snapshot, model, version, record.document.alias)
    return with_record(snapshot, name, after)


def _must_move(record: ExperimentRecord, decision: Decision) -> bool:
    """Whether a variant loses all its units, or a promotion gives them to another."""
    before = {} if record.phase is None else record.phase.weights
    gone = any(weight and not decision.weights.get(name) for name, weight in before.items())
    return gone or decision.state is not record.state


def _may_promote(record: ExperimentRecord, winner: str, champion: int | None) -> bool:
    """Whether the alias is still where it was, or already where it is to go."""
    control = record.document.control
    return champion in (None, record.versions[control], record.versions[winner])


def _in_phase(record: ExperimentRecord, phase: Phase) -> ExperimentRecord:
    return replace(
        record,
        exposure=phase.exposure,
        split=reweigh(record.split, phase.weights),
        phases=(*record.phases, phase),
    )
