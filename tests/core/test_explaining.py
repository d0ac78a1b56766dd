from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gateway.core.assignment import Reason, positions
from gateway.core.audit import AuditEntry, commit_of
from gateway.core.endpoints import Endpoint, Rule, Split, UnitKey, Weighted
from gateway.core.errors import Conflict, InvalidRequest, NotFound
from gateway.core.experiments import HoldOut, Layer, State
from gateway.core.explaining import Rebuilding, Situation, explain
from gateway.core.models import CHAMPION
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot
from gateway.core.transitions import delete_endpoint, promote, put_endpoint, register
from tests.experiments import experiment_of, record_of, with_study

GOLD = {
    "name": "gold",
    "when": [{"header": "X-Plan", "equals": "gold"}],
    "serve": {"version": 2},
}


def document_of(unit: dict[str, str], exposure: int = 10_000) -> Endpoint:
    """An endpoint that splits by this unit key, with a salt that is written out."""
    split = {
        "exposure": exposure,
        "salt": "pepper",
        "unit": unit,
        "variants": [
            {"name": "a", "alias": CHAMPION, "weight": 5_000},
            {"name": "b", "version": 2, "weight": 5_000},
        ],
    }
    document = {"schema": 1, "model": "m", "rules": [GOLD, {"name": "half", "split": split}]}
    return msgspec.convert(document, Endpoint)


def history(
    *steps: tuple[str, Callable[[Snapshot], Snapshot]],
) -> tuple[Snapshot, list[AuditEntry]]:
    """Commit steps one after the other; the Snapshot and the audit log that they make."""
    snapshot, entries = EMPTY, []
    for target, step in steps:
        commit = commit_of(
            snapshot, step(snapshot), at=1.0, actor="a", action="x", target=target, reason=""
        )
        snapshot = commit.snapshot
        entries.append(commit.entry)
    return snapshot, entries


SEED = ModelRecord(versions={}, aliases={CHAMPION: 1})
BEGUN = (
    ("models/m", lambda snapshot: register(snapshot, "m", 1, "1" * 64, SEED)),
    ("models/m", lambda snapshot: register(snapshot, "m", 2, "2" * 64)),
    (
        "endpoints/e",
        lambda snapshot: put_endpoint(snapshot, "e", document_of({"header": "X-Unit-Id"}), {}),
    ),
)


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param({"header": "X-Unit-Id"}, id="header"),
        pytest.param({"parameter": "user"}, id="parameter"),
        pytest.param({"input": "user_id"}, id="input"),
    ],
)
@pytest.mark.parametrize(
    ("text", "variant", "enrolment", "place"),
    [
        pytest.param("ada", "a", 9_565, 1_097, id="ada"),
        pytest.param("eve", "b", 6_071, 7_556, id="eve"),
        pytest.param("grâce", "a", 2_194, 4_012, id="not-ascii"),
    ],
)
def test_a_unit_gets_the_same_variant_wherever_it_stands(
    unit: dict[str, str], text: str, variant: str, enrolment: int, place: int
) -> None:
    """The unit's bytes decide, whether a header, a parameter or an input brought them."""
    put = ("endpoints/e", lambda snapshot: put_endpoint(snapshot, "e", document_of(unit), {}))
    snapshot, _ = history(*BEGUN[:2], put)
    found = explain(snapshot, "e", Situation(unit=text.encode()))
    assert (found.variant, found.reason, found.rule) == (variant, Reason.SPLIT, "half")
    assert (found.unit, found.propensity, found.revision) == (text, 0.5, 3)
    gold, half = found.rules
    assert (gold.holds, gold.decides, gold.position) == (False, False, None)
    assert (half.holds, half.decides) == (True, True)
    assert half.position is not None
    assert (half.position.enrolment, half.position.variant) == (enrolment, place)
    assert (half.position.salt, half.position.enrolled) == ("pepper", True)


def test_conditions_read_the_situation() -> None:
    """A rule that holds decides, and the split's position is told all the same."""
    snapshot, _ = history(*BEGUN)
    situation = Situation(unit=b"ada", headers={"x-plan": "gold"}, parameters={"n": 1})
    found = explain(snapshot, "e", situation)
    assert (found.variant, found.version, found.reason) == ("gold", 2, Reason.TARGETING_MATCH)
    assert [rule.decides for rule in found.rules] == [True, False]
    assert found.rules[1].position is not None


def test_a_unit_that_is_not_enrolled_gets_the_default() -> None:
    """Whose position is beyond the exposure is not enrolled."""
    closed = document_of({"header": "X-Unit-Id"}, exposure=0)
    put = ("endpoints/e", lambda snapshot: put_endpoint(snapshot, "e", closed, {}))
    snapshot, _ = history(*BEGUN[:2], put)
    found = explain(snapshot, "e", Situation(unit=b"ada"))
    assert (found.variant, found.reason, found.propensity) == ("default", Reason.DEFAULT, 1.0)
    assert found.rules[1].position is not None
    assert found.rules[1].position.enrolled is False


@pytest.mark.parametrize("unit", [b"", b" \t", b"x" * 1_025], ids=["empty", "blank", "long"])
def test_what_is_no_unit_is_refused(unit: bytes) -> None:
    """A unit that the data plane would not take as one is not explained."""
    snapshot, _ = history(*BEGUN)
    with pytest.raises(InvalidRequest, match="1 to 1024 bytes"):
        explain(snapshot, "e", Situation(unit=unit))


def rebuilt(entries: list[AuditEntry], revision: int) -> Snapshot:
    """The Snapshot of an earlier revision."""
    rebuilding = Rebuilding()
    for entry in entries[:revision]:
        rebuilding.add(entry)
    return rebuilding.snapshot()


def test_an_earlier_revision_is_rebuilt_from_the_audit_log() -> None:
    """Every revision's documents come back as they were, deleted ones included."""
    snapshot, entries = history(
        *BEGUN,
        ("models/m", lambda snapshot: promote(snapshot, "m", 2)),
        ("endpoints/e", lambda snapshot: delete_endpoint(snapshot, "e")),
    )
    third, fifth = rebuilt(entries, 3), rebuilt(entries, 5)
    assert third.revision == 3
    assert third.models["m"].aliases == {CHAMPION: 1}
    assert third.endpoints["e"].document == document_of({"header": "X-Unit-Id"})
    assert third.endpoints["e"].splits["half"].salt == "pepper"
    assert replace(fifth, audit_head=snapshot.audit_head) == snapshot
    assert fifth.endpoints == {}


def test_documents_that_moved_along_are_rebuilt_too() -> None:
    """A commit that moved two documents leaves both as they were."""

    def both(snapshot: Snapshot) -> Snapshot:
        return delete_endpoint(promote(snapshot, "m", 2), "e")

    snapshot, entries = history(*BEGUN, ("endpoints/e", both))
    again = rebuilt(entries, 4)
    assert (again.models, again.endpoints) == (snapshot.models, snapshot.endpoints)
    assert again.models["m"].aliases == {CHAMPION: 2}


def without(position: int) -> Callable[[list[AuditEntry]], list[AuditEntry]]:
    """Leave an entry out."""
    return lambda entries: [entry for at, entry in enumerate(entries) if at != position]


def forged(entries: list[AuditEntry]) -> list[AuditEntry]:
    """Change an entry."""
    return [replace(entries[0], actor="mallory"), *entries[1:]]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        pytest.param(without(0), NotFound, id="cut-head"),
        pytest.param(without(1), NotFound, id="hole"),
        pytest.param(forged, Conflict, id="forged"),
    ],
)
def test_nothing_is_rebuilt_from_a_damaged_log(damage: Any, kind: type[Exception]) -> None:
    """A log that does not lead without a break to the revision proves nothing."""
    _, entries = history(*BEGUN)
    with pytest.raises(kind):
        rebuilt(damage(entries), 3)


def test_an_experiment_is_explained_as_a_rule_behind_the_others() -> None:
    """With its phase, where the unit stands, and why it is left out if it is."""
    out = HoldOut(salt="out", share=3_000)
    snapshot = with_study(record_of(exposure=5_000), hold_out=out)
    reasons = set()
    for number in range(60):
        unit = f"u{number}".encode()
        explained = explain(snapshot, "m", Situation(unit=unit))
        (rule,) = explained.rules
        at = positions("study", unit)
        assert rule.position is not None
        assert (rule.rule, rule.phase, rule.holds) == ("x0", 7, True)
        assert (rule.position.enrolment, rule.position.variant) == (at.enrolment, at.variant)
        assert rule.decides == (rule.left_out is None) == (explained.rule == "x0")
        reasons.add(rule.left_out)
    assert reasons == {None, "hold_out", "exposure"}


def test_a_unit_is_put_where_the_experiment_looks_for_it() -> None:
    """As for splits."""
    snapshot = with_study(record_of(experiment_of(unit=UnitKey(parameter="user"))))
    assert explain(snapshot, "m", Situation(unit=b"u")).rule == "x0"


def test_a_split_that_draws_as_growthbook_is_explained_by_its_one_place() -> None:
    """The place decides both whether and what."""
    split = Split(5_000, (Weighted("a", 10_000, version=1),), salt="seed", hash="growthbook-2")
    document = Endpoint(schema=1, model="m", rules=(Rule("ab", split=split),))
    snapshot = put_endpoint(with_study(), "e", document, {})
    for unit, place, enrolled in (("a", 505, True), ("b", 2_696, True), ("c", None, None)):
        explained = explain(snapshot, "e", Situation(unit=unit.encode()))
        position = explained.rules[0].position
        assert position is not None
        assert position.hash_version == 102
        if place is not None:
            assert (position.variant, position.enrolled) == (place, enrolled)
        assert (explained.variant == "a") is position.enrolled


def test_experiments_layers_and_the_hold_out_are_rebuilt_from_the_audit_log() -> None:
    """Each from the entry that changed it last."""
    layers = {"l": Layer(salt="layer")}
    study = record_of(state=State.DRAFT)
    snapshot, entries = history(
        *BEGUN,
        ("layers", lambda before: replace(before, layers=layers)),
        ("holdout", lambda before: replace(before, hold_out=HoldOut(salt="out", share=5))),
        ("experiments/x", lambda before: replace(before, experiments={"x": study})),
        (
            "experiments/x",
            lambda before: replace(before, experiments={"x": replace(study, reason="b")}),
        ),
        ("holdout", lambda before: replace(before, hold_out=None)),
    )
    assert rebuilt(entries, 6).experiments == {"x": study}
    assert rebuilt(entries, 5).hold_out == HoldOut(salt="out", share=5)
    last = rebuilt(entries, 8)
    assert (last.experiments, last.layers, last.hold_out) == (
        snapshot.experiments,
        layers,
        None,
    )
