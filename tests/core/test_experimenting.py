from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.endpoints import Endpoint, Rule, Target
from gateway.core.errors import Conflict, InvalidRequest, NotFound
from gateway.core.experimenting import (
    Drawn,
    approve_experiment,
    delete_experiment,
    delete_hold_out,
    delete_layer,
    free_slots,
    pause_experiment,
    put_experiment,
    put_hold_out,
    put_layer,
    resume_experiment,
    roll_back_experiment,
    start_experiment,
    stop_experiment,
)
from gateway.core.experiments import (
    Bandit,
    ExperimentVariant,
    Fixed,
    HoldOut,
    Metric,
    Ramp,
    ShadowStage,
    State,
)
from gateway.core.readings import Decision
from gateway.core.snapshot import Snapshot, check, decode, encode
from gateway.core.stepping import step
from gateway.core.targeting import Condition
from gateway.core.transitions import delete_endpoint, promote
from tests.rollouts import (
    document_of,
    drafted,
    record_of,
    snapshot_of,
    started,
    with_endpoint,
)

OTHER = Drawn(id="other", salt="salt.other")
THREE = (
    ExperimentVariant(name="control", version=1),
    ExperimentVariant(name="b", version=2),
    ExperimentVariant(name="c", version=3),
)


def holding_out(snapshot: Snapshot) -> Snapshot:
    """The same experiment, promoted with a hold-out."""
    weights = {"control": 500, "candidate": 9_500}
    decision = Decision(State.HOLDING_OUT, exposure=10_000, weights=weights, winner="candidate")
    return step(snapshot, "exp", decision, at=200.0, champion=1)


def test_a_draft_assigns_nobody_and_survives_the_store() -> None:
    """It is checked and kept, and nothing of it is served."""
    snapshot = drafted()
    record = record_of(snapshot)
    assert (record.state, record.phases, record.versions) == (State.DRAFT, (), {})
    assert decode(encode(snapshot)) == snapshot


def test_a_draft_that_is_replaced_keeps_its_id_and_salt() -> None:
    """So does whatever was said of it before."""
    changed = put_experiment(drafted(), "exp", document_of(alpha=0.01), OTHER)
    assert record_of(changed).id == "idexp"
    assert record_of(changed).split.salt == "salt.exp"
    assert record_of(changed).document.alpha == 0.01


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"alpha": 0.1}, id="risk"),
        pytest.param(
            {"metrics": (Metric(name="loss", outcome="arrival", margin=0.5),)}, id="margin"
        ),
        pytest.param({"strategy": Ramp(steps=(5_000,))}, id="strategy"),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_what_was_registered_at_the_start_cannot_be_changed(
    change: dict[str, Any], ended: bool
) -> None:
    """Another metric, margin or risk is another experiment."""
    snapshot = started()
    if ended:
        snapshot = stop_experiment(snapshot, "exp", 101.0, "")
    with pytest.raises(Conflict, match="Start a new one"):
        put_experiment(snapshot, "exp", document_of(**change), OTHER)
    assert put_experiment(snapshot, "exp", document_of(), OTHER) == snapshot


def test_starting_resolves_aliases_and_begins_the_first_phase() -> None:
    """Versions are fixed, and the phase is named by the revision of its commit."""
    snapshot = started()
    record = record_of(snapshot)
    assert record.versions == {"control": 1, "candidate": 2}
    assert record.state is State.RUNNING
    assert (record.exposure, record.since) == (1_000, 100.0)
    assert [(phase.number, phase.at, phase.exposure) for phase in record.phases] == [
        (11, 100.0, 1_000)
    ]
    assert record.phases[0].weights == {"control": 5_000, "candidate": 5_000}
    after = promote(snapshot, "m", 3)
    assert record_of(after).versions["control"] == 1
    check(after)


@pytest.mark.parametrize(
    ("changes", "exposure", "weights"),
    [
        pytest.param(
            {"strategy": Ramp(steps=(300, 5_000), control="remaining")},
            10_000,
            {"control": 9_700, "candidate": 300},
            id="ramp against all others",
        ),
        pytest.param(
            {"strategy": Fixed(weights={"control": 2_000, "candidate": 8_000}, exposure=4_000)},
            4_000,
            {"control": 2_000, "candidate": 8_000},
            id="fixed",
        ),
        pytest.param(
            {"strategy": Bandit(exposure=6_000), "variants": THREE},
            6_000,
            {"control": 3_334, "b": 3_333, "c": 3_333},
            id="bandit",
        ),
    ],
)
def test_each_strategy_opens_as_its_document_says(
    changes: dict[str, Any], exposure: int, weights: dict[str, int]
) -> None:
    """Exposure and weights of the first phase follow from the document alone."""
    record = record_of(started(document_of(**changes)))
    assert (record.exposure, record.phases[0].weights) == (exposure, weights)


def test_a_shadow_stage_comes_first_and_enrols_nobody() -> None:
    """It has a phase of its own, so that what its copies did is told apart."""
    record = record_of(started(document_of(shadow=ShadowStage())))
    assert record.state is State.SHADOW
    assert record.exposure == 0
    assert record.phases[0].exposure == 0


def test_only_a_draft_is_started() -> None:
    """A second start is a conflict, and nothing moves."""
    with pytest.raises(Conflict, match="only a draft"):
        start_experiment(started(), "exp", 101.0)
    with pytest.raises(NotFound):
        start_experiment(snapshot_of(), "exp", 101.0)


def test_a_control_that_is_not_the_champion_cannot_be_promoted_over() -> None:
    """What is certified against version 1 says nothing about version 3, which serves."""
    variants = (
        ExperimentVariant(name="control", version=1),
        ExperimentVariant(name="candidate", version=2),
    )
    moved = drafted(document_of(variants=variants), champion=3)
    with pytest.raises(Conflict, match="names version 3"):
        start_experiment(moved, "exp", 100.0)
    never = drafted(document_of(variants=variants, promote="never"), champion=3)
    assert record_of(start_experiment(never, "exp", 100.0)).state is State.RUNNING


def test_a_rule_that_takes_every_request_refuses_the_start() -> None:
    """An experiment behind it would enrol nobody; the sentence says so."""
    endpoint = Endpoint(schema=1, model="m", rules=(Rule(name="all", serve=Target(version=1)),))
    with pytest.raises(InvalidRequest, match="takes every request"):
        start_experiment(with_endpoint(drafted(), endpoint), "exp", 100.0)


def test_a_rule_with_conditions_lets_it_start() -> None:
    """Whoever the rule takes is not enrolled; everybody else may be."""
    when = (Condition(attribute="plan", equals="gold"),)
    rule = Rule(name="gold", when=when, serve=Target(version=1))
    endpoint = Endpoint(schema=1, model="m", rules=(rule,))
    begun = start_experiment(with_endpoint(drafted(), endpoint), "exp", 100.0)
    assert record_of(begun).state is State.RUNNING


def test_an_endpoint_keeps_its_model_while_an_experiment_runs_on_it() -> None:
    """Version 2 of another model is not the candidate."""
    snapshot = started()
    other = replace(snapshot, models={**snapshot.models, "n": snapshot.models["m"]})
    with pytest.raises(Conflict, match="stop that first"):
        with_endpoint(other, Endpoint(schema=1, model="n"))
    ended = stop_experiment(other, "exp", 101.0, "")
    assert with_endpoint(ended, Endpoint(schema=1, model="n")).endpoints["m"].document.model == "n"


def test_an_endpoint_is_not_deleted_in_favour_of_another_model_under_an_experiment() -> None:
    """A model of that name has the same numbers, and other versions behind them."""
    snapshot = drafted()
    two_models = replace(snapshot, models={**snapshot.models, "n": snapshot.models["m"]})
    begun = start_experiment(with_endpoint(two_models, Endpoint(schema=1, model="n")), "exp", 100.0)
    with pytest.raises(Conflict, match="stop that first"):
        delete_endpoint(begun, "m")
    ended = stop_experiment(begun, "exp", 101.0, "")
    assert "m" not in delete_endpoint(ended, "m").endpoints


def test_two_experiments_on_one_endpoint_need_one_layer() -> None:
    """Otherwise a unit would be in both."""
    both = put_experiment(started(), "exp2", document_of(), OTHER)
    with pytest.raises(InvalidRequest, match="put both in one layer"):
        start_experiment(both, "exp2", 101.0)


def test_a_layer_hands_out_slots_and_takes_them_back() -> None:
    """Experiments of one layer never share a slot; what ended gives its own back."""
    layered = document_of(layer="page", layer_share=4_000)
    snapshot = put_layer(drafted(layered), "page", "salt.page")
    snapshot = start_experiment(snapshot, "exp", 100.0)
    for number in (2, 3):
        drawn = Drawn(id=f"id{number}", salt=f"salt.{number}")
        snapshot = put_experiment(snapshot, f"exp{number}", layered, drawn)
    snapshot = start_experiment(snapshot, "exp2", 101.0)
    assert record_of(snapshot).slots == ((0, 4_000),)
    assert record_of(snapshot, "exp2").slots == ((4_000, 8_000),)
    with pytest.raises(Conflict, match="2000 are free"):
        start_experiment(snapshot, "exp3", 102.0)
    snapshot = stop_experiment(snapshot, "exp", 103.0, "")
    assert free_slots(snapshot, "page") == [(0, 4_000), (8_000, 10_000)]
    assert record_of(start_experiment(snapshot, "exp3", 104.0), "exp3").slots == ((0, 4_000),)


def test_slots_may_lie_apart() -> None:
    """A share is taken from wherever there is room."""
    snapshot = put_layer(snapshot_of(), "page", "salt.page")
    for number, share in enumerate((3_000, 3_000, 3_000, 4_000)):
        drawn = Drawn(id=f"id{number}", salt=f"salt.{number}")
        document = document_of(layer="page", layer_share=share)
        snapshot = put_experiment(snapshot, f"exp{number}", document, drawn)
    for number in range(3):
        snapshot = start_experiment(snapshot, f"exp{number}", 100.0)
    snapshot = stop_experiment(snapshot, "exp1", 101.0, "")
    snapshot = start_experiment(snapshot, "exp3", 102.0)
    assert record_of(snapshot, "exp3").slots == ((3_000, 6_000), (9_000, 10_000))


def test_a_layer_that_is_not_there_refuses_the_start() -> None:
    """Layers are put first, by somebody who means to share them."""
    with pytest.raises(Conflict, match="there is no layer 'page'"):
        start_experiment(drafted(document_of(layer="page")), "exp", 100.0)


def test_a_layer_in_use_keeps_its_salt_and_stays() -> None:
    """Another salt would move everybody; a deleted layer would leave them without one."""
    snapshot = put_layer(drafted(document_of(layer="page")), "page", "salt.page")
    with pytest.raises(Conflict, match="cannot be deleted"):
        delete_layer(snapshot, "page")
    snapshot = start_experiment(snapshot, "exp", 100.0)
    with pytest.raises(Conflict, match="has another salt"):
        put_layer(snapshot, "page", "salt.two")
    snapshot = stop_experiment(snapshot, "exp", 101.0, "")
    assert delete_layer(snapshot, "page").layers == {}
    with pytest.raises(NotFound):
        delete_layer(snapshot, "other")


def test_the_hold_out_is_put_and_taken_away() -> None:
    """It is a document of its own."""
    snapshot = put_hold_out(snapshot_of(), HoldOut(salt="salt.h", share=100))
    assert snapshot.hold_out == HoldOut(salt="salt.h", share=100)
    assert delete_hold_out(snapshot).hold_out is None
    with pytest.raises(NotFound):
        delete_hold_out(snapshot_of())
    with pytest.raises(InvalidRequest):
        put_hold_out(snapshot, HoldOut(salt="salt.h", share=9_000))


def test_a_pause_leaves_traffic_as_it_is() -> None:
    """Units keep their variants, and resuming changes nothing but the state."""
    snapshot = started()
    paused = pause_experiment(snapshot, "exp", 101.0, "lunch")
    assert (record_of(paused).state, record_of(paused).reason) == (State.PAUSED, "lunch")
    assert record_of(paused).phases == record_of(snapshot).phases
    resumed = resume_experiment(paused, "exp", 102.0)
    assert replace(record_of(resumed), since=100.0) == record_of(snapshot)


def test_a_paused_shadow_stage_is_resumed_as_one() -> None:
    """It does not begin to enrol because somebody paused it."""
    snapshot = started(document_of(shadow=ShadowStage()))
    paused = pause_experiment(snapshot, "exp", 101.0, "")
    assert record_of(resume_experiment(paused, "exp", 102.0)).state is State.SHADOW


def test_approval_is_given_once_and_only_where_it_is_asked_for() -> None:
    """Anything else would be a slip."""
    snapshot = approve_experiment(started(document_of(promote="approval")), "exp")
    assert record_of(snapshot).approved
    with pytest.raises(Conflict, match="has it already"):
        approve_experiment(snapshot, "exp")
    with pytest.raises(Conflict, match="does not wait for it"):
        approve_experiment(started(), "exp")


@pytest.mark.parametrize(
    ("end", "state"),
    [
        pytest.param(stop_experiment, State.STOPPED, id="stop"),
        pytest.param(roll_back_experiment, State.ROLLED_BACK, id="roll back"),
    ],
)
def test_people_end_an_experiment(end: Callable[..., Snapshot], state: State) -> None:
    """The reason is theirs; the alias stays where it was."""
    ended = end(started(), "exp", 101.0, "enough")
    assert (record_of(ended).state, record_of(ended).reason) == (state, "enough")
    assert ended.models["m"].aliases == {"champion": 1}
    with pytest.raises(Conflict):
        end(ended, "exp", 102.0, "")


def test_rolling_back_a_hold_out_takes_the_promotion_back() -> None:
    """In the same Snapshot, and as if it had never been: nothing is left to go back to."""
    held = holding_out(started(document_of(hold_out=500, hold_out_s=60.0)))
    assert held.models["m"].aliases == {"champion": 2}
    ended = roll_back_experiment(held, "exp", 201.0, "late outcomes")
    assert ended.models["m"].aliases == {"champion": 1}
    assert ended.models["m"].previous == {"champion": ()}


def test_rolling_back_a_hold_out_leaves_a_later_promotion_alone() -> None:
    """Somebody's own promotion is never undone."""
    held = holding_out(started(document_of(hold_out=500, hold_out_s=60.0)))
    ended = roll_back_experiment(promote(held, "m", 3), "exp", 201.0, "")
    assert ended.models["m"].aliases == {"champion": 3}


def test_stopping_a_hold_out_keeps_the_promotion() -> None:
    """It was promoted; only the watching ends."""
    held = holding_out(started(document_of(hold_out=500, hold_out_s=60.0)))
    ended = stop_experiment(held, "exp", 201.0, "")
    assert record_of(ended).state is State.PROMOTED
    assert ended.models["m"].aliases == {"champion": 2}


def test_a_successor_stops_the_one_before_in_the_same_commit() -> None:
    """Two would not run beside each other; there is no moment with none or with both."""
    both = put_experiment(started(), "exp2", document_of(), OTHER)
    after = start_experiment(both, "exp2", 105.0, supersedes="exp")
    assert record_of(after).state is State.STOPPED
    assert record_of(after).reason == "superseded by 'exp2'"
    assert record_of(after, "exp2").state is State.RUNNING
    with pytest.raises(InvalidRequest, match="cannot supersede itself"):
        start_experiment(drafted(), "exp", 100.0, supersedes="exp")


def test_what_runs_is_not_deleted() -> None:
    """Drafts and what has ended are."""
    assert delete_experiment(drafted(), "exp").experiments == {}
    with pytest.raises(Conflict, match="stop it first"):
        delete_experiment(started(), "exp")
    ended = stop_experiment(started(), "exp", 101.0, "")
    assert delete_experiment(ended, "exp").experiments == {}
