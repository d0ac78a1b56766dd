"""Which versions a change newly lets in, whatever way it takes."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.endpoints import Endpoint, Rule, Shadow, Split, Target, Weighted
from gateway.core.entrances import Stage, compare, stage_of, without_aliases
from gateway.core.entrances import entrances as let_in
from gateway.core.errors import GatewayError
from gateway.core.experimenting import start_experiment, stop_experiment
from gateway.core.experiments import ExperimentVariant, State
from gateway.core.gates import Gate
from gateway.core.snapshot import ModelRecord, Snapshot, named_versions
from gateway.core.stepping import step
from gateway.core.targeting import Condition
from gateway.core.transitions import delete_endpoint, load, promote, register, rollback, unload
from tests.rollouts import (
    decision_of,
    document_of,
    drafted,
    record_of,
    snapshot_of,
    started,
    with_endpoint,
)

GATE = Gate(schema=1, models=("*",))
PLAIN = Endpoint(schema=1, model="m")
NEW = {("m", 3): Stage.TRIAL}
FAR = {("m", 3): Stage.PROMOTION}
THREE = Target(version=3)
SOMEBODY = (Condition(header="X-Plan", equals="gold"),)


def entrances(base: Snapshot, changed: Snapshot, gate: Gate) -> Mapping[tuple[str, int], Stage]:
    """What a change lets in."""
    return let_in(compare(base, changed), gate)


def served(*rules: Rule, **fields: object) -> Snapshot:
    """Model m with an endpoint of its name."""
    return with_endpoint(snapshot_of(), replace(PLAIN, rules=rules, **fields))


def split_of(three: int, exposure: int = 10_000) -> Split:
    """A split between the champion and version 3."""
    variants = (
        Weighted(name="a", weight=10_000 - three, version=1),
        Weighted(name="b", weight=three, version=3),
    )
    return Split(exposure=exposure, salt="s", variants=variants)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param(served(Rule("r", SOMEBODY, serve=THREE)), NEW, id="a rule for some"),
        pytest.param(served(Rule("r", serve=THREE)), FAR, id="a rule for everybody"),
        pytest.param(served(Rule("r", split=split_of(5_000))), NEW, id="half of a split"),
        pytest.param(served(Rule("r", split=split_of(0))), NEW, id="nothing of a split"),
        pytest.param(served(Rule("r", split=split_of(10_000))), FAR, id="all of a split"),
        pytest.param(
            served(Rule("r", split=split_of(10_000, 9_000))), NEW, id="all of most, split"
        ),
        pytest.param(
            served(Rule("r", SOMEBODY, split=split_of(10_000))), NEW, id="all of some, split"
        ),
        pytest.param(served(default=THREE), FAR, id="the default"),
        pytest.param(served(shadows=(Shadow(name="s", share=1, version=3),)), NEW, id="a shadow"),
        pytest.param(load(snapshot_of(), "m", 3), NEW, id="loaded by hand"),
        pytest.param(promote(snapshot_of(), "m", 3), FAR, id="the champion"),
        pytest.param(promote(snapshot_of(), "m", 3, "blue"), NEW, id="another alias"),
        pytest.param(promote(snapshot_of(), "m", 1, "blue"), {}, id="an alias for what serves"),
        pytest.param(with_endpoint(snapshot_of(), PLAIN, "e"), {}, id="an endpoint for the same"),
        pytest.param(served(Rule("r", serve=Target(version=1))), {}, id="a rule for the same"),
    ],
)
def test_each_way_to_traffic_is_an_entrance(
    changed: Snapshot, expected: dict[tuple[str, int], Stage]
) -> None:
    """By what it comes to: some requests need a trial, everybody's a promotion."""
    assert entrances(snapshot_of(), changed, GATE) == expected
    assert entrances(snapshot_of(), changed, replace(GATE, models=("other-*",))) == {}


def test_an_alias_that_a_default_follows_is_as_good_as_the_champion() -> None:
    """Where an endpoint's default is an alias, moving it hands everybody over."""
    blue = promote(snapshot_of(), "m", 1, "blue")
    base = with_endpoint(blue, replace(PLAIN, default=Target(alias="blue")), "e")
    assert entrances(base, promote(base, "m", 3, "blue"), GATE) == FAR
    assert stage_of(base, "m", "blue", GATE) is Stage.PROMOTION
    assert stage_of(base, "m", "green", GATE) is Stage.TRIAL


def test_an_endpoint_that_is_deleted_hands_over_to_the_champion() -> None:
    """The champion may be nobody's until then, where a gate does not name that alias."""
    gate = replace(GATE, aliases=("stable",))
    base = promote(promote(snapshot_of(), "m", 1, "stable"), "m", 3)
    base = with_endpoint(base, replace(PLAIN, default=Target(alias="stable")))
    assert entrances(base, delete_endpoint(base, "m"), gate) == FAR


def test_what_is_warm_must_still_come_in() -> None:
    """Loading by hand is let through, and naming the version in a rule is asked again."""
    base = load(snapshot_of(), "m", 3)
    ruled = with_endpoint(base, replace(PLAIN, rules=(Rule("r", SOMEBODY, serve=THREE),)))
    assert entrances(base, ruled, GATE) == NEW
    two = with_endpoint(ruled, replace(PLAIN, default=Target(version=1), rules=()), "e")
    assert entrances(ruled, two, GATE) == {}


def test_going_back_is_no_entrance() -> None:
    """By a rollback, by a promotion of what the alias named, and as a default."""
    base = promote(promote(snapshot_of(), "m", 2), "m", 3)
    assert entrances(base, rollback(base, "m"), GATE) == {}
    assert entrances(base, promote(base, "m", 1), GATE) == {}
    default = with_endpoint(base, replace(PLAIN, default=Target(version=1)), "e")
    assert entrances(base, default, GATE) == {}
    again = rollback(base, "m")
    assert entrances(again, promote(again, "m", 3), GATE) == FAR


def test_what_an_alias_named_as_a_trial_is_nothing_to_go_back_to() -> None:
    """Else a promotion is: try it as `blue`, have everybody follow `blue`, and roll that back."""
    tried = promote(promote(snapshot_of(), "m", 3, "blue"), "m", 1, "blue")
    following = replace(PLAIN, default=Target(alias="blue"))
    assert entrances(tried, with_endpoint(tried, following, "e"), GATE) == FAR
    at_once = with_endpoint(rollback(tried, "m", "blue"), following, "e")
    assert entrances(tried, at_once, GATE) == FAR
    split = Split(exposure=10_000, salt="s", variants=(Weighted("a", 10_000, alias="blue"),))
    ruled = with_endpoint(tried, replace(PLAIN, rules=(Rule("r", split=split),)), "e")
    assert entrances(tried, ruled, GATE) == FAR


def test_an_alias_that_everybody_follows_goes_back_freely() -> None:
    """What it named while it led to everybody had been let in."""
    following = replace(PLAIN, default=Target(alias="blue"))
    led = with_endpoint(promote(snapshot_of(), "m", 1, "blue"), following, "e")
    moved_on = promote(promote(led, "m", 3, "blue"), "m", 2, "blue")
    assert entrances(moved_on, rollback(moved_on, "m", "blue"), GATE) == {}


def two_models() -> Snapshot:
    """Model m, and n whose second version is its champion."""
    base = snapshot_of()
    other = replace(base.models["m"], aliases={"champion": 2})
    return replace(base, models={**base.models, "n": other})


def test_another_model_in_the_place_of_one_is_held_to_its_gates() -> None:
    """Else whoever writes rules serves, under a gated name, what no gate means."""
    gate = replace(GATE, models=("m",))
    base = two_models()
    taken = with_endpoint(base, replace(PLAIN, model="n"), "m")
    assert entrances(base, taken, gate) == {("n", 2): Stage.PROMOTION}
    assert entrances(taken, taken, gate) == {}
    assert entrances(taken, promote(taken, "n", 3), gate) == {("n", 3): Stage.PROMOTION}
    assert entrances(taken, promote(taken, "n", 3, "blue"), gate) == {}
    moved_on = promote(taken, "n", 3)
    assert entrances(moved_on, rollback(moved_on, "n"), gate) == {}
    assert entrances(taken, delete_endpoint(taken, "m"), gate) == {}
    free = promote(promote(base, "n", 3), "n", 2)
    brought = entrances(free, with_endpoint(free, replace(PLAIN, model="n"), "m"), gate)
    assert brought == {("n", 2): Stage.PROMOTION, ("n", 3): Stage.PROMOTION}
    rule = Rule("r", SOMEBODY, serve=Target(version=1))
    ruled = with_endpoint(taken, replace(PLAIN, model="n", rules=(rule,)), "m")
    assert entrances(taken, ruled, gate) == {("n", 1): Stage.TRIAL}


def test_an_endpoint_of_any_name_is_not_moved_off_a_gated_model_unasked() -> None:
    """Its clients get everything else than what was let in for them."""
    gate = replace(GATE, models=("m",))
    base = with_endpoint(two_models(), PLAIN, "e")
    moved_off = with_endpoint(base, replace(PLAIN, model="n"), "e")
    assert entrances(base, moved_off, gate) == {("n", 2): Stage.PROMOTION}
    assert entrances(base, with_endpoint(base, replace(PLAIN, model="n"), "f"), gate) == {}


def test_another_alias_of_the_gate_is_asked_for_by_itself() -> None:
    """What is the champion has not been let in as `stable`."""
    gate = replace(GATE, aliases=("champion", "stable"))
    base = promote(snapshot_of(), "m", 3)
    assert entrances(base, promote(base, "m", 3, "stable"), gate) == FAR


def test_drafts_and_starts_are_entrances() -> None:
    """A draft warms its versions, a start gives them units; each is asked for."""
    document = document_of()
    base = snapshot_of()
    assert entrances(base, drafted(document), GATE) == {("m", 2): Stage.TRIAL}
    draft = drafted(document)
    assert entrances(draft, start_experiment(draft, "exp", 1.0), GATE) == {("m", 2): Stage.TRIAL}
    running = started(document)
    assert entrances(running, stop_experiment(running, "exp", 1.0, ""), GATE) == {}


def test_what_an_experiment_takes_back_is_no_entrance() -> None:
    """Though the alias has forgotten that it named the control."""
    held = started(document_of(hold_out=500, hold_out_s=60.0))
    decision = decision_of(
        record_of(held),
        state=State.HOLDING_OUT,
        exposure=10_000,
        weights={"control": 500, "candidate": 9_500},
        winner="candidate",
    )
    holding = step(held, "exp", decision, at=1.0, champion=1)
    assert entrances(held, holding, GATE) == {("m", 2): Stage.PROMOTION}
    model = replace(holding.models["m"], previous={})
    forgotten = replace(holding, models={"m": model})
    harm = decision_of(record_of(forgotten), state=State.ROLLED_BACK, reason="harm")
    back = step(forgotten, "exp", harm, at=2.0, champion=2)
    assert back.models["m"].aliases == {"champion": 1}
    assert entrances(forgotten, back, GATE) == {}


def test_a_control_that_a_promotion_would_be_taken_back_to_is_asked_for() -> None:
    """When the experiment starts, where its alias names nothing; later it goes back freely."""
    variants = (
        ExperimentVariant(name="control", version=3),
        ExperimentVariant(name="candidate", version=2),
    )
    document = document_of(alias="fresh", variants=variants)
    draft = drafted(document)
    begun = start_experiment(draft, "exp", 1.0)
    assert entrances(draft, begun, GATE)["m", 3] is Stage.PROMOTION
    never = drafted(replace(document, promote="never"))
    assert entrances(never, start_experiment(never, "exp", 1.0), GATE)["m", 3] is Stage.TRIAL
    served = drafted(replace(document, variants=document_of().variants))
    assert ("m", 1) not in entrances(served, start_experiment(served, "exp", 1.0), GATE)


def test_a_new_model_that_a_gate_means_gets_no_alias() -> None:
    """Its first version is registered all the same."""
    seed = ModelRecord(versions={}, aliases={"champion": 1}, labels=("a",))
    gated = replace(snapshot_of(), gates={"g": Gate(schema=1, models=("flight-*",))})
    assert without_aliases(gated, "flight-delay", seed) == replace(seed, aliases={})
    assert without_aliases(gated, "taxi", seed) == seed
    assert without_aliases(gated, "flight-delay", None) is None


NUMBERS = st.sampled_from([1, 2, 3])
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("promote"), NUMBERS, st.sampled_from(["champion", "blue"])),
        st.tuples(st.just("rollback"), st.sampled_from(["champion", "blue"])),
        st.tuples(st.just("load"), NUMBERS),
        st.tuples(st.just("unload"), st.none()),
        st.tuples(st.just("rule"), NUMBERS, st.booleans()),
        st.tuples(st.just("default"), NUMBERS),
        st.tuples(st.just("register"), st.integers(4, 6)),
    ),
    max_size=8,
)


def moved(snapshot: Snapshot, move: tuple[object, ...]) -> Snapshot:
    """One change, or none where it is not legal."""
    kind, *given_ = move
    try:
        if kind == "promote":
            return promote(snapshot, "m", *given_)  # type: ignore[arg-type]
        if kind == "rollback":
            return rollback(snapshot, "m", *given_)  # type: ignore[arg-type]
        if kind == "load":
            return load(snapshot, "m", *given_)  # type: ignore[arg-type]
        if kind == "unload":
            return unload(snapshot, "m", None)
        if kind == "register":
            return register(snapshot, "m", int(str(given_[0])), "a" * 64)
        target = Target(version=int(str(given_[0])))
        if kind == "default":
            return with_endpoint(snapshot, replace(PLAIN, default=target), "e")
        rule = Rule("r", SOMEBODY if given_[1] else (), serve=target)
        return with_endpoint(snapshot, replace(PLAIN, rules=(rule,)), "e")
    except GatewayError:
        return snapshot


@settings(max_examples=50)
@given(MOVES, MOVES)
def test_only_what_is_named_anew_is_gated(
    before: list[tuple[object, ...]], after: list[tuple[object, ...]]
) -> None:
    """Nothing enters where nothing changed; and only what the changed Snapshot keeps warm."""
    base = snapshot_of()
    for move in before:
        base = moved(base, move)
    assert entrances(base, base, GATE) == {}
    changed = base
    for move in after:
        changed = moved(changed, move)
    found = entrances(base, changed, GATE)
    assert {number for _, number in found} <= named_versions(changed)["m"]
    served_by_all = {changed.models["m"].aliases["champion"]}
    fresh = served_by_all - {base.models["m"].aliases["champion"]}
    for number in fresh - set(base.models["m"].previous.get("champion", ())):
        assert found[("m", number)] is Stage.PROMOTION
