from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.applying import Chance, DocumentChange, applied, changes, needed
from gateway.core.bundles import (
    Bundle,
    HoldOutDocument,
    LayerDocument,
    exported,
    settled,
    tags_of,
)
from gateway.core.differences import Difference
from gateway.core.endpoints import Endpoint, Rule, Split, Target, Weighted
from gateway.core.errors import Conflict, GatewayError, InvalidRequest, NotFound
from gateway.core.experimenting import (
    Drawn,
    put_experiment,
    put_hold_out,
    put_layer,
    start_experiment,
    stop_experiment,
)
from gateway.core.experiments import Experiment, ExperimentVariant, Fixed, HoldOut, State
from gateway.core.gates import Gate
from gateway.core.principals import Action, Grant, PrincipalDocument, Role, TokenRecord
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, canonical, plan_of
from gateway.core.targeting import Condition
from gateway.core.transitions import delete_endpoint, promote, put_endpoint, rollback

DIGESTS = {number: f"{number:064x}" for number in (1, 2, 3)}
CHANCE = Chance(salt=lambda name: f"{name}.drawn", id=lambda name: f"id{name}")
BARE = replace(
    EMPTY, models={"m": ModelRecord(versions=DIGESTS), "n": ModelRecord(versions=DIGESTS)}
)
SERVED = promote(promote(BARE, "m", 1), "n", 1)
GATE = Gate(schema=1, models=("m",))
ANA = PrincipalDocument(schema=1, grants=(Grant(Role.VIEWER),))


def split_of(weight: int, salt: str | None = None) -> Split:
    """Two variants of versions 1 and 2."""
    return Split(
        exposure=10_000,
        variants=(
            Weighted(name="a", weight=weight, version=1),
            Weighted(name="b", weight=10_000 - weight, version=2),
        ),
        salt=salt,
    )


def endpoint_of(weight: int | None = None, model: str = "m", **fields: Any) -> Endpoint:
    """An endpoint on a model, with a split for some of its requests if a weight is given."""
    when, salt = (Condition(header="x-tier", equals="gold"),), fields.pop("salt", None)
    split = None if weight is None else split_of(weight, salt)
    rules = () if split is None else (Rule(name="r", when=when, split=split),)
    return Endpoint(schema=1, model=model, rules=rules, **fields)


def experiment_of(endpoint: str = "m", **fields: Any) -> Experiment:
    """An A/B test of versions 1 and 2."""
    return Experiment(
        schema=1,
        endpoint=endpoint,
        variants=(
            ExperimentVariant(name="control", version=1),
            ExperimentVariant(name="candidate", version=2),
        ),
        strategy=Fixed(weights={"control": 5_000, "candidate": 5_000}),
        promote="never",
        **fields,
    )


def bundle_of(**tables: Any) -> Bundle:
    """A bundle of these tables."""
    return Bundle(schema=1, **tables)


def apply(snapshot: Snapshot, bundle: Bundle, *, prune: bool = False) -> Snapshot:
    """What stands afterwards."""
    return applied(snapshot, bundle, CHANCE, prune=prune)


def told(
    snapshot: Snapshot, bundle: Bundle, *hidden: str, prune: bool = False
) -> tuple[DocumentChange, ...]:
    """What a plan would say."""
    return changes(snapshot, apply(snapshot, bundle, prune=prune), bundle, hidden)


def test_documents_may_name_each_other_in_any_order() -> None:
    """The endpoint's alias and the experiment's endpoint and layer come with the same bundle."""
    bundle = bundle_of(
        experiments={"x": experiment_of("e", layer="l")},
        endpoints={"e": endpoint_of(default=Target(alias="best"))},
        layers={"l": LayerDocument()},
        aliases={"m": {"best": 2}},
    )
    changed = apply(BARE, bundle)
    assert plan_of(changed, "e").default.version == 2
    assert changed.experiments["x"].state is State.DRAFT
    assert apply(changed, bundle) == changed


def test_a_rule_may_take_the_name_of_a_draft_that_is_pruned() -> None:
    """Each alone would be refused while the other stands."""
    before = apply(SERVED, bundle_of(experiments={"r": experiment_of("m")}))
    bundle = bundle_of(experiments={}, endpoints={"m": endpoint_of(5_000)})
    assert apply(before, bundle, prune=True).experiments == {}
    with pytest.raises(InvalidRequest, match="has a rule of that name"):
        apply(before, bundle)


def test_an_endpoint_may_get_another_name_and_keep_its_salt() -> None:
    """The old one is gone before the new one is checked."""
    before = apply(SERVED, bundle_of(endpoints={"e": endpoint_of(5_000, salt="kept")}))
    bundle = bundle_of(endpoints={"f": endpoint_of(5_000, salt="kept")})
    assert set(apply(before, bundle, prune=True).endpoints) == {"f"}
    with pytest.raises(InvalidRequest, match="share a salt"):
        apply(before, bundle)


def test_an_alias_that_differs_is_a_promotion_with_its_history() -> None:
    """So that it can be rolled back like any other."""
    changed = apply(SERVED, bundle_of(aliases={"m": {"champion": 2}}))
    assert changed == promote(SERVED, "m", 2)
    assert rollback(changed, "m").models["m"].aliases == {"champion": 1}


def test_an_alias_of_what_is_not_registered_is_refused() -> None:
    """By the model's name, or the version's."""
    with pytest.raises(NotFound, match="no model 'q'"):
        apply(SERVED, bundle_of(aliases={"q": {"champion": 1}}))
    with pytest.raises(NotFound, match="no version 9"):
        apply(SERVED, bundle_of(aliases={"m": {"champion": 9}}))


def test_a_split_keeps_its_salt_and_moves_as_few_units_as_a_single_change() -> None:
    """A bundle is no other way of weighing."""
    before = apply(SERVED, bundle_of(endpoints={"e": endpoint_of(5_000)}))
    changed = apply(before, bundle_of(endpoints={"e": endpoint_of(6_000)}))
    assert changed == put_endpoint(before, "e", endpoint_of(6_000), {"r": "another"})


def test_writing_out_the_salt_that_was_drawn_changes_nothing() -> None:
    """Nor does leaving out one that is written."""
    drawn = apply(SERVED, bundle_of(endpoints={"e": endpoint_of(5_000)}))
    written = bundle_of(endpoints={"e": endpoint_of(5_000, salt="e.r.drawn")})
    assert apply(drawn, written) == drawn
    stated = apply(SERVED, written)
    assert apply(stated, bundle_of(endpoints={"e": endpoint_of(5_000)})) == stated


def test_a_plan_says_what_differs_and_hides_salts_that_were_just_drawn() -> None:
    """Paths go by the names of rules and variants."""
    before = apply(SERVED, bundle_of(endpoints={"e": endpoint_of()}))
    first, *rest = told(before, bundle_of(endpoints={"e": endpoint_of(5_000)}), "e.r.drawn")
    assert (first.target, first.kind, rest) == ("endpoints/e", "update", [])
    (rule,) = first.differences
    assert rule.path == "rules"
    assert rule.before is None
    assert "salt" not in rule.after[0]["split"]
    after = apply(before, bundle_of(endpoints={"e": endpoint_of(5_000)}))
    (second,) = told(after, bundle_of(endpoints={"e": endpoint_of(6_000)}))
    assert second.differences == (
        Difference("rules.r.split.variants.a.weight", 5_000, 6_000),
        Difference("rules.r.split.variants.b.weight", 5_000, 4_000),
    )


def test_prune_deletes_only_of_kinds_that_the_bundle_names() -> None:
    """An empty table names its kind."""
    before = apply(
        SERVED,
        bundle_of(
            endpoints={"e": endpoint_of()},
            gates={"g": GATE},
            principals={"ana": ANA},
            layers={"l": LayerDocument()},
            holdout=HoldOutDocument(share=100),
        ),
    )
    assert apply(before, bundle_of(), prune=True) == before
    kinds = ("endpoints", "gates", "principals", "layers")
    for kind in kinds:
        pruned = apply(before, bundle_of(**{kind: {}}), prune=True)
        assert [left for left in kinds if getattr(pruned, left)] == [k for k in kinds if k != kind]
        assert pruned.models == before.models
        assert pruned.hold_out == before.hold_out
    deleted = told(before, bundle_of(gates={}), prune=True)
    assert deleted == (DocumentChange("gates/g", "delete", ()),)


def test_a_pruned_principal_takes_its_tokens_along() -> None:
    """Or who comes back under that name would have them."""
    token = TokenRecord(principal="ana", sha256="0" * 64, created_at=1.0, created_by="admin")
    other = replace(token, principal="admin")
    before = replace(SERVED, principals={"ana": ANA}, tokens={"t1": token, "t2": other})
    assert set(apply(before, bundle_of(principals={}), prune=True).tokens) == {"t2"}


def test_prune_never_touches_an_experiment_that_was_started() -> None:
    """One that runs is refused with a sentence, one that ended is history."""
    drafted = put_experiment(SERVED, "x", experiment_of("m"), Drawn("i", "s"))
    running = start_experiment(drafted, "x", 5.0)
    with pytest.raises(Conflict, match="'x' is running and the bundle does not name it"):
        apply(running, bundle_of(experiments={}), prune=True)
    ended = stop_experiment(running, "x", 9.0, "enough")
    assert apply(ended, bundle_of(experiments={}), prune=True) == ended
    assert exported(ended).experiments is None


def test_an_experiment_that_runs_cannot_be_rewritten_but_may_stay_in_the_file() -> None:
    """What is measured was registered when it started."""
    drafted = put_experiment(SERVED, "x", experiment_of("m"), Drawn("i", "s"))
    running = start_experiment(drafted, "x", 5.0)
    assert apply(running, exported(running)) == running
    with pytest.raises(Conflict, match="cannot be changed"):
        apply(running, bundle_of(experiments={"x": experiment_of("m", alpha=0.01)}))


def test_a_layer_that_a_draft_needs_is_not_pruned() -> None:
    """Unless the draft goes with it."""
    both = {"layers": {"l": LayerDocument()}, "experiments": {"x": experiment_of("m", layer="l")}}
    before = apply(SERVED, bundle_of(**both))
    with pytest.raises(Conflict, match="while experiment 'x' is in it"):
        apply(before, bundle_of(layers={}), prune=True)
    assert apply(before, bundle_of(layers={}, experiments={}), prune=True) == SERVED


def test_the_built_in_admin_stands_in_no_bundle() -> None:
    """It is not written, and not exported."""
    with pytest.raises(InvalidRequest, match="built in"):
        apply(SERVED, bundle_of(principals={"admin": ANA}))


def test_a_bundle_of_another_schema_is_refused() -> None:
    """It may mean something else."""
    with pytest.raises(InvalidRequest, match="schema 2"):
        apply(SERVED, Bundle(schema=2))


def test_the_rights_needed_are_those_of_the_single_changes() -> None:
    """Of the models concerned: those served before and those served now."""
    before = apply(SERVED, bundle_of(endpoints={"e": endpoint_of(model="n")}))
    bundle = bundle_of(
        aliases={"n": {"champion": 2}},
        endpoints={"e": endpoint_of(), "m": endpoint_of(5_000)},
        experiments={"x": experiment_of("n")},
        layers={"l": LayerDocument()},
        gates={"g": GATE},
        principals={"ana": ANA},
    )
    changed = apply(before, bundle)
    assert set(needed(before, changed, changes(before, changed, bundle))) == {
        (Action.PROMOTE, "n"),
        (Action.RULES, "m"),
        (Action.RULES, "n"),
        (Action.EXPERIMENT, "n"),
        (Action.EXPERIMENT, None),
        (Action.GATES, None),
        (Action.ACCESS, None),
    }


def test_who_uncovers_an_implied_endpoint_needs_the_right_on_its_model() -> None:
    """Without the document, the model of that name answers there."""
    before = apply(SERVED, bundle_of(endpoints={"m": endpoint_of(model="n")}))
    bundle = bundle_of(endpoints={})
    changed = apply(before, bundle, prune=True)
    rights = needed(before, changed, changes(before, changed, bundle))
    assert set(rights) == {(Action.RULES, "m"), (Action.RULES, "n")}


def test_what_stands_already_needs_no_right() -> None:
    """Who applies a whole file needs rights for what it changes only."""
    before = apply(SERVED, bundle_of(gates={"g": GATE}, endpoints={"e": endpoint_of()}))
    bundle = bundle_of(gates={"g": GATE}, endpoints={"e": endpoint_of(5_000)})
    changed = apply(before, bundle)
    assert needed(before, changed, changes(before, changed, bundle)) == ((Action.RULES, "m"),)


def test_a_step_of_the_steward_does_not_move_what_a_bundle_saw() -> None:
    """Nor does a new version beside an alias; a changed document does."""
    drafted = put_experiment(SERVED, "x", experiment_of("m"), Drawn("i", "s"))
    running = start_experiment(drafted, "x", 5.0)
    targets = ("experiments/x", "aliases/m/champion", "endpoints/none")
    assert tags_of(drafted, targets) == tags_of(running, targets)
    moved = promote(running, "m", 3)
    was, now = tags_of(running, targets), tags_of(moved, targets)
    assert [target for target in targets if was[target] != now[target]] == ["aliases/m/champion"]


def test_intervals_that_weights_moved_travel_with_an_export() -> None:
    """Or units would move where the bundle is applied to a store that has nothing."""
    before = apply(SERVED, bundle_of(endpoints={"e": endpoint_of(5_000)}))
    moved = apply(before, bundle_of(endpoints={"e": endpoint_of(6_000)}))
    bundle = exported(moved)
    assert bundle.intervals == {
        "e": {"r": {"a": ((0, 5_000), (9_000, 10_000)), "b": ((5_000, 9_000),)}}
    }
    assert apply(BARE, bundle).endpoints["e"].splits == moved.endpoints["e"].splits


def test_intervals_that_do_not_go_with_the_weights_are_passed_over() -> None:
    """Someone changed the weights in the file: it begins as any new split does."""
    torn = {"e": {"r": {"a": ((0, 1),), "b": ((1, 10_000),)}}}
    both = bundle_of(endpoints={"e": endpoint_of(5_000)}, intervals=torn)
    assert apply(SERVED, both) == apply(SERVED, replace(both, intervals=None))


WEIGHTS = st.sampled_from((0, 1, 2_500, 5_000, 7_777, 10_000))
NAMES = st.sampled_from(("e", "f", "m"))
Move = Callable[[Snapshot], Snapshot]


def _endpoint(name: str, weight: int | None, salted: bool, alias: str) -> Move:
    salt = f"{name}.own" if salted else None
    document = endpoint_of(weight, salt=salt, default=Target(alias=alias))
    return lambda snapshot: put_endpoint(snapshot, name, document, {"r": f"{name}.salt"})


def _draft(name: str, endpoint: str, layer: str | None) -> Move:
    document = experiment_of(endpoint, layer=layer, layer_share=3_000)
    return lambda snapshot: put_experiment(
        snapshot, name, document, Drawn(f"id{name}", f"salt.{name}")
    )


def _given(table: str, name: str, document: object) -> Move:
    return lambda held: replace(held, **{table: {**getattr(held, table), name: document}})


PUTS = st.builds(
    _endpoint,
    NAMES,
    st.none() | WEIGHTS,
    st.booleans(),
    st.sampled_from(("champion", "best")),
)
MOVES: st.SearchStrategy[Move] = st.one_of(
    PUTS,
    PUTS,
    st.builds(
        lambda model, number, alias: lambda snapshot: promote(snapshot, model, number, alias),
        st.sampled_from(("m", "n")),
        st.integers(1, 3),
        st.sampled_from(("champion", "best")),
    ),
    st.builds(lambda name: lambda snapshot: delete_endpoint(snapshot, name), NAMES),
    st.builds(_draft, st.sampled_from(("x", "y")), NAMES, st.sampled_from((None, "l"))),
    st.builds(
        lambda name: lambda snapshot: start_experiment(snapshot, name, 1.0),
        st.sampled_from(("x", "y")),
    ),
    st.builds(
        lambda name: lambda snapshot: stop_experiment(snapshot, name, 2.0, ""),
        st.sampled_from(("x", "y")),
    ),
    st.just(lambda snapshot: rollback(snapshot, "m")),
    st.just(lambda snapshot: put_hold_out(snapshot, HoldOut("hold.salt", 500))),
    st.just(_given("gates", "g", GATE)),
    st.just(_given("principals", "ana", ANA)),
)


def reached(moves: list[Move]) -> Snapshot:
    """The Snapshot after those moves that are legal."""
    snapshot = put_layer(promote(SERVED, "m", 2, "best"), "l", "layer.salt")
    for weight in (5_000, 7_000):
        snapshot = put_endpoint(snapshot, "e", endpoint_of(weight), {"r": "e.salt"})
    for move in moves:
        try:
            snapshot = replace(move(snapshot), revision=snapshot.revision + 1)
        except GatewayError:
            continue
    return snapshot


STATES = st.lists(MOVES, min_size=5, max_size=16).map(reached)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=STATES, prune=st.booleans())
def test_applying_what_was_exported_changes_nothing(state: Snapshot, prune: bool) -> None:
    """In every state that can be reached, pruning or not."""
    bundle = exported(state)
    assert apply(state, bundle, prune=prune) == state
    assert changes(state, state, bundle) == ()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(state=STATES)
def test_an_export_serves_the_same_units_the_same_where_nothing_stood(state: Snapshot) -> None:
    """Salts and moved intervals travel with it, through JSON too; then it exports the same."""
    bundle = msgspec.json.decode(canonical(exported(state)), type=Bundle)
    fresh = apply(BARE, bundle)
    assert _assignments(fresh) == _assignments(state)
    assert {name: model.aliases for name, model in fresh.models.items()} == {
        name: model.aliases for name, model in state.models.items()
    }
    assert (fresh.layers, fresh.hold_out) == (state.layers, state.hold_out)
    assert exported(fresh) == exported(state)
    assert apply(fresh, bundle) == fresh


def _assignments(snapshot: Snapshot) -> Mapping[str, object]:
    """All that decides who gets what at an endpoint, but for experiments that run."""
    return {
        name: (
            settled(record),
            {
                rule: (
                    state.salt,
                    {owner: own for owner, own in state.intervals.items() if own},
                )
                for rule, state in record.splits.items()
            },
        )
        for name, record in snapshot.endpoints.items()
    }
