from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.assignment import SCALE
from gateway.core.errors import Conflict
from gateway.core.experimenting import pause_experiment, stop_experiment
from gateway.core.experiments import ExperimentRecord, ShadowStage, State
from gateway.core.readings import Decision
from gateway.core.snapshot import Snapshot, check
from gateway.core.stepping import LAST_PHASES, next_record, step
from gateway.core.transitions import promote
from tests.rollouts import (
    CERTIFIED,
    committed,
    decision_of,
    document_of,
    readings_of,
    record_of,
    started,
)

HALVES = {"control": 5_000, "candidate": 5_000}
PROMOTING = Decision(State.PROMOTED, exposure=1_000, weights=HALVES, winner="candidate")


def stepped(snapshot: Snapshot, champion: int | None = 1, **changes: Any) -> Snapshot:
    """Take the step that leaves the record as it is, but for some changes."""
    decision = decision_of(record_of(snapshot), **changes)
    return step(snapshot, "exp", decision, at=200.0, champion=champion)


def moved_units(before: ExperimentRecord, after: ExperimentRecord) -> int:
    """Of the 10,000 positions, those that another variant owns now."""

    def owners(record: ExperimentRecord) -> list[str]:
        table = [""] * SCALE
        for name, pieces in record.split.intervals.items():
            for start, end in pieces:
                table[start:end] = [name] * (end - start)
        return table

    return sum(one != two for one, two in zip(owners(before), owners(after), strict=True))


def test_a_decision_to_stay_commits_nothing() -> None:
    """The ledger holds changes, not ticks."""
    snapshot = started()
    assert stepped(snapshot) is snapshot
    assert stepped(snapshot, detail="other words") is snapshot


def test_an_advance_begins_a_phase_and_moves_nobody_who_is_enrolled() -> None:
    """With an equal control the exposure grows and the intervals stay."""
    snapshot = started()
    after = stepped(snapshot, step=1, exposure=5_000)
    record = record_of(after)
    assert (record.step, record.exposure, record.state) == (1, 5_000, State.RUNNING)
    assert [phase.number for phase in record.phases] == [11, 12]
    assert record.phase is not None
    assert record.phase.at == 200.0
    assert record.split == record_of(snapshot).split
    check(after)


@given(st.integers(1, 9_999))
def test_a_reweighing_moves_as_few_units_as_it_can(share: int) -> None:
    """Exactly those that the weights ask for."""
    snapshot = started()
    weights = {"control": SCALE - share, "candidate": share}
    after = stepped(snapshot, weights=weights)
    moved = moved_units(record_of(snapshot), record_of(after))
    assert moved == abs(share - 5_000)


def test_a_hold_says_why_and_leaves_traffic_alone() -> None:
    """Only the state and its reason change."""
    snapshot = started()
    after = stepped(snapshot, state=State.HELD, reason="srm")
    held = record_of(after)
    assert (held.state, held.reason, held.since) == (State.HELD, "srm", 200.0)
    assert held.phases == record_of(snapshot).phases
    other = stepped(committed(after), state=State.HELD, reason="no_data")
    assert (record_of(other).reason, record_of(other).since) == ("no_data", 200.0)


def test_a_verdict_that_changes_is_a_step_of_its_own() -> None:
    """Verdicts are in the ledger, one entry whenever one is another."""
    after = stepped(started(), readings=readings_of({"loss/candidate": "better"}))
    assert record_of(after).verdicts == {"loss/candidate": "better"}
    assert len(record_of(after).phases) == 1


def test_a_rollback_ends_it_and_moves_no_alias() -> None:
    """Everybody gets the default, which never was the candidate."""
    after = stepped(started(), state=State.ROLLED_BACK, reason="harm")
    assert record_of(after).state is State.ROLLED_BACK
    assert after.models["m"].aliases == {"champion": 1}
    with pytest.raises(Conflict, match="takes no more steps"):
        step(after, "exp", decision_of(record_of(after)), at=201.0, champion=1)


def test_a_promotion_moves_the_alias_in_the_same_snapshot() -> None:
    """There is no moment in which one is done and the other is not."""
    after = step(started(), "exp", PROMOTING, at=200.0, champion=1)
    assert record_of(after).state is State.PROMOTED
    assert after.models["m"].aliases == {"champion": 2}
    assert after.models["m"].previous == {"champion": (1,)}
    check(after)


def test_a_promotion_with_a_hold_out_leaves_its_share_with_the_control() -> None:
    """Those who stay had the control before; everybody else gets what was promoted."""
    snapshot = started(document_of(hold_out=500, hold_out_s=60.0))
    weights = {"control": 500, "candidate": 9_500}
    decision = replace(
        PROMOTING, state=State.HOLDING_OUT, exposure=SCALE, weights=weights, detail=CERTIFIED
    )
    after = step(snapshot, "exp", decision, at=200.0, champion=1)
    held = record_of(after)
    assert (held.state, held.exposure) == (State.HOLDING_OUT, SCALE)
    assert after.models["m"].aliases == {"champion": 2}
    kept, before = held.split.intervals["control"], record_of(snapshot).split.intervals["control"]
    assert all(any(s <= start and end <= e for s, e in before) for start, end in kept)
    check(after)


def test_a_hold_out_that_is_over_keeps_the_promotion() -> None:
    """Its end moves no alias."""
    snapshot = started(document_of(hold_out=500, hold_out_s=60.0))
    weights = {"control": 500, "candidate": 9_500}
    opened = replace(PROMOTING, state=State.HOLDING_OUT, exposure=SCALE, weights=weights)
    held = committed(step(snapshot, "exp", opened, at=200.0, champion=1))
    after = stepped(held, champion=2, state=State.PROMOTED, reason="matured")
    assert record_of(after).state is State.PROMOTED
    assert after.models["m"].aliases == {"champion": 2}


def test_harm_in_a_hold_out_takes_the_promotion_back() -> None:
    """Late outcomes can still do that, in one Snapshot."""
    snapshot = started(document_of(hold_out=500, hold_out_s=60.0))
    weights = {"control": 500, "candidate": 9_500}
    opened = replace(PROMOTING, state=State.HOLDING_OUT, exposure=SCALE, weights=weights)
    held = committed(step(snapshot, "exp", opened, at=200.0, champion=1))
    after = stepped(held, champion=2, state=State.ROLLED_BACK, reason="harm")
    assert record_of(after).state is State.ROLLED_BACK
    assert after.models["m"].aliases == {"champion": 1}


def test_somebody_elses_promotion_is_never_overwritten() -> None:
    """What was certified against version 1 is held, and says that the control moved."""
    snapshot = promote(started(), "m", 3)
    after = step(snapshot, "exp", PROMOTING, at=200.0, champion=3)
    held = record_of(after)
    assert (held.state, held.reason) == (State.HELD, "control_moved")
    assert after.models["m"].aliases == {"champion": 3}
    again = step(committed(after), "exp", PROMOTING, at=201.0, champion=3)
    assert record_of(again) == held


def test_a_candidate_that_was_promoted_by_hand_meanwhile_counts_as_promoted() -> None:
    """The alias is already where it should go."""
    snapshot = promote(started(), "m", 2)
    after = step(snapshot, "exp", PROMOTING, at=200.0, champion=2)
    assert record_of(after).state is State.PROMOTED
    assert after.models == snapshot.models


def test_an_alias_that_moved_while_it_was_judged_is_a_conflict() -> None:
    """The next look judges what is there now."""
    with pytest.raises(Conflict, match="moved while"):
        step(promote(started(), "m", 3), "exp", PROMOTING, at=200.0, champion=1)


def test_a_stopped_experiment_takes_no_step() -> None:
    """However late the decision comes."""
    stopped = stop_experiment(started(), "exp", 150.0, "")
    with pytest.raises(Conflict):
        step(stopped, "exp", PROMOTING, at=200.0, champion=1)


def test_a_shadow_stage_that_passed_enrols() -> None:
    """Its first units come with a phase of their own."""
    snapshot = started(document_of(shadow=ShadowStage()))
    after = stepped(snapshot, state=State.RUNNING, exposure=1_000, reason="")
    record = record_of(after)
    assert record.state is State.RUNNING
    assert [phase.exposure for phase in record.phases] == [0, 1_000]
    check(after)


def test_a_paused_experiment_can_be_rolled_back() -> None:
    """Harm does not wait for anybody."""
    paused = committed(pause_experiment(started(), "exp", 150.0, ""))
    after = stepped(paused, state=State.ROLLED_BACK, reason="harm")
    assert record_of(after).state is State.ROLLED_BACK


def test_weights_stay_when_a_record_is_full_of_phases() -> None:
    """A record is bounded; the experiment goes on with the weights that it has."""
    record = record_of(started())
    first = record.phases[0]
    full = replace(record, phases=tuple(replace(first, number=n + 1) for n in range(LAST_PHASES)))
    decision = decision_of(full, exposure=9_000)
    assert next_record(full, decision, at=1.0, number=9_999, champion=1) is full


def test_a_variant_is_taken_out_even_of_a_record_that_is_full_of_phases() -> None:
    """Harm goes before bounds, and there is room left for it."""
    record = record_of(started())
    first = record.phases[0]
    full = replace(record, phases=tuple(replace(first, number=n + 1) for n in range(LAST_PHASES)))
    decision = decision_of(full, weights={"control": 10_000, "candidate": 0})

    after = next_record(full, decision, at=1.0, number=9_999, champion=1)

    assert after.phases[-1].weights == {"control": 10_000, "candidate": 0}
