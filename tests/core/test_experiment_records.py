from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.assignment import SplitState
from gateway.core.documents import document_at
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule, Split, Target, UnitKey, Weighted
from gateway.core.errors import InvalidRequest
from gateway.core.experiments import (
    ExperimentRecord,
    ExperimentVariant,
    HoldOut,
    Layer,
    Metric,
    Phase,
    State,
)
from gateway.core.snapshot import Snapshot, check, decode, encode, named_versions
from gateway.core.targeting import Condition
from gateway.core.transitions import delete_endpoint, unload
from tests.experiments import EVEN, experiment_of, record_of, with_study

GOLD = Condition(header="x-plan", equals="gold")
LAYERS = {"pricing": Layer(salt="layer")}


def layered(name: str, *slots: tuple[int, int], **fields: Any) -> ExperimentRecord:
    """An experiment in the layer, with its slots."""
    share = sum(end - start for start, end in slots)
    document = experiment_of(layer="pricing", layer_share=share, **fields)
    return record_of(document, salt=name, slots=slots)


def endpoint(*rules: Rule, **fields: Any) -> dict[str, EndpointRecord]:
    """Endpoint `m` with a document of its own."""
    document = Endpoint(schema=1, model="m", rules=rules, **fields)
    return {"m": EndpointRecord(document=document)}


def refused(snapshot: Snapshot) -> str:
    """Why a Snapshot is refused."""
    with pytest.raises(InvalidRequest) as error:
        check(snapshot)
    return str(error.value)


def test_a_snapshot_with_experiments_is_read_as_it_was_written() -> None:
    """Records, layers and the hold-out survive the way through the store."""
    written = with_study(
        layered("one", (0, 5_000)),
        layered("two", (5_000, 8_000)),
        record_of(state=State.ROLLED_BACK, salt="gone"),
        layers=LAYERS,
        hold_out=HoldOut(salt="out", share=500),
    )
    assert decode(encode(written)) == written


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"id": "a:b"}, "letters and digits"),
        ({"split": SplitState("s", 1, {"control": ((0, 9_999),)})}, "do not tile"),
        ({"split": SplitState("s", 1, {"other": ((0, 10_000),)})}, "do not tile"),
        ({"split": SplitState("s", 101, {"control": ((0, 10_000),)})}, "hash version 101"),
        ({"split": SplitState("s", 1, {"control": ((0, 10_000),)})}, "widths of its phase"),
        ({"exposure": 10_001}, "exposure is 10001"),
        ({"exposure": 5, "phases": (Phase(7, 1.0, 6, EVEN),)}, "not that of its phase"),
        ({"phases": ()}, "without a phase"),
        ({"phases": (Phase(7, 1.0, 10_000, EVEN),) * 2}, "must grow"),
        ({"phases": (Phase(2**32, 1.0, 10_000, EVEN),)}, "no sound number"),
        ({"phases": (Phase(7, 1.0, 10_000, {"control": 9_999}),)}, "no sound number"),
        ({"versions": {"control": 1}}, "the version of each variant"),
        ({"versions": {"control": 1, "candidate": 8}}, "version 8 of 'm' is not registered"),
        ({"versions": {"z": 1}}, "a variant that it does not have"),
        ({"scalars": ("p",)}, "must stay as they were"),
        ({"slots": ((0, 5),)}, "is in no layer"),
        ({"document": experiment_of(endpoint="n")}, "no endpoint or model 'n'"),
        (
            {
                "document": experiment_of(
                    variants=(
                        ExperimentVariant(name="control", version=1),
                        ExperimentVariant(name="candidate", alias="next"),
                    )
                )
            },
            "no alias 'next'",
        ),
        (
            {"document": experiment_of(metrics=(Metric("q", "late", covariate="p"),))},
            "'p', which is not among the token scalars",
        ),
    ],
)
def test_a_torn_record_is_refused(fields: dict[str, Any], said: str) -> None:
    """Whatever would assign units other than the tokens say is never served."""
    message = refused(with_study(replace(record_of(), **fields)))
    assert said in message
    assert message.startswith("Experiment 'x0'")


def test_what_has_ended_may_name_what_has_gone() -> None:
    """History does not keep an endpoint alive."""
    check(with_study(record_of(experiment_of(endpoint="gone"), state=State.PROMOTED)))


def test_a_rule_that_takes_every_request_and_an_experiment_exclude_each_other() -> None:
    """The experiment would run and enrol nobody."""
    always = endpoint(Rule(name="all", serve=Target(version=2)))
    message = refused(with_study(record_of(), endpoints=always))
    assert "rule 'all' of endpoint 'm' takes every request" in message
    check(with_study(record_of(state=State.DRAFT), endpoints=always))
    check(with_study(record_of(), endpoints=endpoint(Rule("gold", (GOLD,), Target(version=2)))))


def test_a_rule_cannot_have_the_name_of_an_experiment() -> None:
    """Ids and records name a rule, and it must be clear which one."""
    named = endpoint(Rule("x0", (GOLD,), Target(version=2)))
    assert "has a rule of that name" in refused(with_study(record_of(), endpoints=named))


def test_token_scalars_stay_while_an_experiment_runs() -> None:
    """They are what its metrics are made of."""
    document = experiment_of(metrics=(Metric("q", "late", score="correct", scalar="p"),))
    record = record_of(document, scalars=("p",))
    check(with_study(record, endpoints=endpoint(token_scalars=("p",))))
    assert "must stay" in refused(with_study(record, endpoints=endpoint(token_scalars=("q",))))


def test_two_experiments_on_one_endpoint_need_one_layer_and_equal_units() -> None:
    """Nothing else would keep their units apart."""
    message = refused(with_study(record_of(), record_of(salt="other")))
    assert "put both in one layer" in message
    one, two = layered("one", (0, 10)), layered("two", (10, 20), unit=UnitKey(header="x-user"))
    assert "has other units" in refused(with_study(one, two, layers=LAYERS))
    check(with_study(one, layered("two", (10, 20)), layers=LAYERS))


def test_slots_of_a_layer_are_disjoint_parts_of_it() -> None:
    """Wherever the experiments run."""
    one = layered("one", (0, 10), (90, 100))
    assert "overlap those of 'x0'" in refused(
        with_study(one, layered("two", (95, 99)), layers=LAYERS)
    )
    assert "no layer 'pricing'" in refused(with_study(one))
    assert "no part of" in refused(with_study(layered("one", (9_999, 10_001)), layers=LAYERS))
    short = replace(one, slots=((0, 10),))
    assert "not its share" in refused(with_study(short, layers=LAYERS))


@pytest.mark.parametrize("owner", ["rule", "layer", "hold-out", "experiment"])
def test_salts_are_unique_wherever_they_stand(owner: str) -> None:
    """Equal salts would correlate what must be independent."""
    fields: dict[str, dict[str, Any]] = {
        "layer": {"layers": {"l": Layer(salt="study")}},
        "hold-out": {"hold_out": HoldOut(salt="study", share=1)},
    }
    others = [record_of(state=State.STOPPED)] if owner == "experiment" else []
    snapshot = with_study(record_of(), *others, **fields.get(owner, {}))
    if owner == "rule":
        gold = Rule("gold", (GOLD,), split=Split(10_000, (Weighted("a", 10_000, version=1),)))
        state = SplitState("study", 1, {"a": ((0, 10_000),)})
        named = EndpointRecord(Endpoint(schema=1, model="m", rules=(gold,)), {"gold": state})
        snapshot = replace(snapshot, endpoints={"e": named})
    assert "share a salt" in refused(snapshot)


def test_the_hold_out_and_layers_are_checked_by_themselves() -> None:
    """Also where no experiment stands."""
    assert "its share" in refused(with_study(hold_out=HoldOut(salt="s", share=5_001)))
    assert "a salt holds" in refused(with_study(layers={"l": Layer(salt="")}))


def test_versions_stay_warm_from_draft_until_the_end() -> None:
    """So that neither a start nor a rollback needs a load, the control while it holds out too."""
    document = experiment_of(
        variants=(
            ExperimentVariant(name="control", alias="champion"),
            ExperimentVariant(name="candidate", version=3),
        )
    )
    draft = record_of(document, versions={}, state=State.DRAFT)
    assert named_versions(with_study(draft))["m"] == {1, 3}
    versions = {"control": 2, "candidate": 3}
    holding = record_of(document, versions=versions, state=State.HOLDING_OUT)
    assert named_versions(with_study(holding))["m"] == {1, 2, 3}
    over = record_of(document, versions=versions, state=State.ROLLED_BACK)
    assert named_versions(with_study(over))["m"] == {1}
    with pytest.raises(Exception, match="in use by an alias, an endpoint or an experiment"):
        unload(with_study(holding), "m", 2)


def test_an_endpoint_is_not_deleted_under_an_experiment() -> None:
    """Its units would change what they get without a phase that says so."""
    named = {"e": EndpointRecord(document=Endpoint(schema=1, model="m"))}
    study = with_study(record_of(experiment_of(endpoint="e")), endpoints=named)
    with pytest.raises(InvalidRequest, match="no endpoint or model 'e'"):
        delete_endpoint(study, "e")


def test_documents_are_found_by_their_target() -> None:
    """As audit entries and ETags name them."""
    out = HoldOut(salt="out", share=1)
    snapshot = with_study(record_of(), layers=LAYERS, hold_out=out)
    assert document_at(snapshot, "experiments/x0") == snapshot.experiments["x0"]
    for name, layer in LAYERS.items():
        assert document_at(snapshot, f"layers/{name}") == layer
    assert document_at(snapshot, "holdout") == out
    assert document_at(snapshot, "models/m") == snapshot.models["m"]
    assert document_at(snapshot, "experiments/none") is None
    assert document_at(with_study(), "holdout") is None
