"""What gates want of a version, held against what is known of it."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.entrances import Stage
from gateway.core.experiments import Experiment, ExperimentVariant, Fixed, State
from gateway.core.gates import ApprovalRule, Freeze, Gate, Requirements
from gateway.core.gating import Facts, Trial, examine, facts_of, missing, missing_of, trials_of
from gateway.core.principals import Grant, PrincipalDocument, Role
from gateway.core.reviews import Approval, Check, CheckResult, Outcome, Review
from gateway.core.snapshot import EMPTY, Snapshot
from gateway.core.tallies import Cell, Evidence, ShadowCell
from gateway.core.transitions import promote
from tests.rollouts import document_of, record_of, started

NOW = 1_000_000.0


def principal(*roles: Role, models: tuple[str, ...] = ("*",), **fields: Any) -> PrincipalDocument:
    """A principal with roles."""
    grants = tuple(Grant(role, models) for role in roles)
    return PrincipalDocument(schema=1, grants=grants, **fields)


PEOPLE = {
    "ana": principal(Role.APPROVER, Role.DEPLOYER),
    "ben": principal(Role.APPROVER),
    "cyd": principal(Role.APPROVER, models=("flight-*",)),
    "dee": principal(Role.APPROVER, disabled=True),
    "eve": principal(Role.VIEWER),
}


def approval(name: str, *roles: str) -> Approval:
    """An approval by someone who was an approver, unless told otherwise."""
    return Approval(principal=name, roles=roles or ("approver",), at=1.0, reason="")


def facts_with(**changes: Any) -> Facts:
    """Facts of a version that ana asks for and a machine registered; `checks` are outcomes."""
    review = Review(digest="d", registered_by="model-store", registered_at=0.0)
    for field in ("checks", "approvals", "registered_by"):
        if field in changes:
            review = replace(review, **{field: changes.pop(field)})
    facts = Facts(
        model="flight-delay",
        number=3,
        asked_by="ana",
        review=review,
        lineage={"trainer": "test", "data": [{"sha256": "a"}, {"sha256": "b"}], "empty": ""},
        principals=PEOPLE,
    )
    return replace(facts, **changes)


def wanting(**fields: Any) -> Gate:
    """A gate that wants this of a promotion."""
    wanted = msgspec.convert(fields, Requirements)
    return Gate(schema=1, models=("*",), promotion=wanted)


def lacking(gate: Gate, facts: Facts, stage: Stage = Stage.PROMOTION) -> list[str]:
    """What is missing, by requirement."""
    return [one.requirement for one in missing({"g": (gate, stage)}, facts, NOW)]


def sentence(gate: Gate, facts: Facts) -> str:
    """The one sentence of what is missing."""
    (one,) = missing({"g": (gate, Stage.PROMOTION)}, facts, NOW)
    return one.sentence


@pytest.mark.parametrize(
    ("found", "bounds", "told"),
    [
        (None, {}, "was not made of version 3; have it inspected again"),
        (CheckResult(Outcome.SKIPPED, "no champion"), {}, "no data is no pass: no champion."),
        (CheckResult(Outcome.FAILED, "It differs."), {}, "failed: It differs."),
        (CheckResult(Outcome.FAILED, measure=1.0), {"at_most": 5.0}, "failed."),
        (CheckResult(Outcome.PASSED), {"at_most": 5.0}, "without a number; at most 5 ms"),
        (CheckResult(Outcome.PASSED, measure=5.5), {"at_most": 5.0}, "found 5.5 ms; wanted is"),
        (CheckResult(Outcome.PASSED, measure=0.5), {"at_least": 1.0}, "wanted is at least 1 ms"),
        (CheckResult(Outcome.PASSED), {}, None),
        (CheckResult(Outcome.PASSED, measure=5.0), {"at_most": 5.0, "at_least": 5.0}, None),
    ],
)
def test_a_check_counts_if_it_passed_within_bounds(
    found: CheckResult | None, bounds: dict[str, float], told: str | None
) -> None:
    """What was skipped, never made or not measured is no pass."""
    gate = wanting(checks=[{"check": "latency", **bounds}])
    facts = facts_with(checks={} if found is None else {Check.LATENCY: found})
    if told is None:
        assert lacking(gate, facts) == []
    else:
        assert told in sentence(gate, facts)


def test_without_a_review_every_check_is_missing() -> None:
    """And every approval."""
    gate = wanting(checks=[{"check": "golden"}], approvals=[{}])
    assert lacking(gate, facts_with(review=None)) == ["checks.golden", "approvals.approver"]


@pytest.mark.parametrize(
    ("path", "is_there"),
    [
        ("lineage.trainer", True),
        ("lineage.data.sha256", True),
        ("lineage.data", True),
        ("lineage.data.location", False),
        ("lineage.trainer.name", False),
        ("lineage.empty", False),
        ("lineage.commit", False),
    ],
)
def test_a_field_of_the_lineage_must_say_something(path: str, is_there: bool) -> None:
    """In a list, each item must."""
    gate = wanting(lineage=[path])
    assert lacking(gate, facts_with()) == ([] if is_there else [path])
    assert lacking(gate, facts_with(lineage=None)) == [path]


@pytest.mark.parametrize(
    ("approvals", "changes", "counts"),
    [
        pytest.param(["ben"], {}, True, id="an approver"),
        pytest.param(["cyd"], {}, True, id="an approver of such models"),
        pytest.param(["ana"], {}, False, id="who asks"),
        pytest.param(["ana"], {"asked_by": "ben"}, True, id="somebody else asks"),
        pytest.param(["ben"], {"registered_by": "ben"}, False, id="who registered it"),
        pytest.param(["dee"], {}, False, id="disabled"),
        pytest.param(["zoe"], {}, False, id="gone"),
        pytest.param(["eve"], {}, False, id="without the role now"),
        pytest.param(["cyd"], {"model": "taxi"}, False, id="not of this model"),
        pytest.param([], {}, False, id="nobody"),
    ],
)
def test_an_approval_counts_by_who_may_give_it(
    approvals: list[str], changes: dict[str, Any], counts: bool
) -> None:
    """Now as well as then, and never one's own."""
    facts = facts_with(approvals=tuple(approval(name) for name in approvals), **changes)
    assert (lacking(wanting(approvals=[{}]), facts) == []) == counts


def test_a_role_that_was_not_held_then_does_not_count() -> None:
    """Who became an approver since has to say it again."""
    facts = facts_with(approvals=(approval("ben", "viewer"),))
    assert lacking(wanting(approvals=[{}]), facts) == ["approvals.approver"]


def test_the_built_in_admin_counts_as_admin_only() -> None:
    """It is in no document, and no approver."""
    facts = facts_with(approvals=(approval("admin", "admin"),))
    assert lacking(wanting(approvals=[{"role": "admin"}]), facts) == []
    assert lacking(wanting(approvals=[{}]), facts) == ["approvals.approver"]


def test_one_principal_is_one_approval() -> None:
    """However often it stands there."""
    facts = facts_with(approvals=(approval("ben"), approval("ben"), approval("ana")))
    gate = wanting(approvals=[{"count": 2}])
    told = sentence(gate, facts)
    assert told == (
        "1 approval by an approver is missing besides 'ben': whoever asks ('ana') or registered it "
        "may not approve; say `tiltyard approve flight-delay 3`."
    )
    assert lacking(gate, replace(facts, asked_by="ivo")) == []


def test_evidence_adds_up_over_experiments() -> None:
    """Units and compared answers; without any, a bounded share is not met."""
    gate = wanting(
        evidence={
            "experiment": True,
            "min_units": 100,
            "min_shadow_compared": 10,
            "max_disagreement": 0.2,
        }
    )
    assert lacking(gate, facts_with()) == [
        "evidence.experiment",
        "evidence.min_units",
        "evidence.min_shadow_compared",
        "evidence.max_disagreement",
    ]
    one = Trial("one", proves=False, units=60, compared=5, differed=1)
    two = Trial("two", proves=True, units=40, compared=5, differed=1)
    assert lacking(gate, facts_with(trials=(one, two))) == []
    worse = replace(two, differed=2)
    assert lacking(gate, facts_with(trials=(one, worse))) == ["evidence.max_disagreement"]


def test_gates_and_stages_add_up() -> None:
    """A promotion wants what a trial wants, too; each gate says its own; a freeze holds for all."""
    freeze = Freeze(name="now", starts="1970-01-01T00:00:00Z", ends="2000-01-01T00:00:00Z")
    first = replace(
        wanting(approvals=[{}]), trial=msgspec.convert({"lineage": ["lineage.x"]}, Requirements)
    )
    second = Gate(schema=1, models=("*",), freezes=(freeze,))
    gates = {"a": (first, Stage.PROMOTION), "b": (second, Stage.TRIAL)}
    assert [(one.gate, one.requirement) for one in missing(gates, facts_with(), NOW)] == [
        ("a", "lineage.x"),
        ("a", "approvals.approver"),
        ("b", "freezes.now"),
    ]
    assert lacking(first, facts_with(), Stage.TRIAL) == ["lineage.x"]
    assert (
        "holds until 2000-01-01 00:00 UTC"
        in examine("b", second, Stage.TRIAL, facts_with(), NOW)[0].sentence
    )


def ended(state: State, document: Experiment | None = None, **changes: Any) -> Snapshot:
    """A Snapshot whose experiment is in a state."""
    snapshot = started(document)
    record = replace(record_of(snapshot), state=state, **changes)
    return replace(snapshot, experiments={"exp": record})


GOOD = {"loss/candidate": "better", "errors/candidate": "equivalent"}
HALF = {"loss/candidate": "better"}
THREE = document_of(
    variants=(
        ExperimentVariant(name="control", alias="champion"),
        ExperimentVariant(name="candidate", version=2),
        ExperimentVariant(name="other", version=3),
    ),
    strategy=Fixed(weights={"control": 3_000, "candidate": 3_000, "other": 4_000}),
)


@pytest.mark.parametrize(
    ("snapshot", "proves"),
    [
        pytest.param(ended(State.RUNNING), False, id="running"),
        pytest.param(ended(State.RUNNING, verdicts=GOOD), True, id="certified"),
        pytest.param(ended(State.RUNNING, verdicts=HALF), False, id="half certified"),
        pytest.param(ended(State.PROMOTED), True, id="promoted"),
        pytest.param(ended(State.STOPPED), False, id="stopped"),
        pytest.param(ended(State.STOPPED, verdicts=GOOD), True, id="stopped, certified"),
        pytest.param(ended(State.ROLLED_BACK, verdicts=GOOD), False, id="rolled back"),
        pytest.param(ended(State.PROMOTED, THREE), False, id="promoted another"),
        pytest.param(
            promote(ended(State.PROMOTED, THREE), "m", 2), True, id="promoted it, of several"
        ),
    ],
)
def test_an_experiment_proves_what_it_certified_or_promoted(
    snapshot: Snapshot, proves: bool
) -> None:
    """And never what it rolled back."""
    (trial,) = trials_of(snapshot, ("m", 2), {})
    assert trial.proves == proves


def test_a_control_is_not_on_trial() -> None:
    """Nor is a version that no experiment ran, or one of another model."""
    snapshot = ended(State.PROMOTED)
    assert trials_of(snapshot, ("m", 1), {}) == ()
    assert trials_of(snapshot, ("m", 3), {}) == ()
    assert trials_of(snapshot, ("other", 2), {}) == ()


def test_tallies_are_counted_by_variant() -> None:
    """Over phases and segments; a shadow that failed was compared, and differed."""
    snapshot = ended(State.RUNNING)
    evidence = Evidence(
        cells=(Cell(1, 0, assigned=7), Cell(1, 1, assigned=10), Cell(2, 1, 1, assigned=5)),
        shadows=(ShadowCell(1, 1, compared=20, disagreed=2, failed=1),),
    )
    found = trials_of(snapshot, ("m", 2), {record_of(snapshot).id: evidence})
    assert found == (Trial("exp", proves=False, units=15, compared=21, differed=3),)


def test_a_change_cannot_bring_along_what_lets_it_pass() -> None:
    """Principals and approvals count as they stood; a version's first review comes with it."""
    base = started()
    digest = base.models["m"].versions[2]
    mine = Review(digest, "ana", 0.0, approvals=(approval("ben"),))
    changed = replace(base, reviews={"m/2": mine}, principals=PEOPLE)
    facts = facts_of(base, changed, ("m", 2), asked_by="x", lineage=None, evidence={})
    assert facts.review is None
    assert facts.principals == {}
    fresh = facts_of(EMPTY, changed, ("m", 2), asked_by="x", lineage=None, evidence={})
    assert fresh.review == mine
    other = replace(base, reviews={"m/2": replace(mine, digest="0" * 64)})
    facts = facts_of(other, other, ("m", 2), asked_by="x", lineage=None, evidence={})
    assert facts.review is None


NAMES = st.sampled_from(["ana", "ben", "cyd", "dee", "eve", "zoe", "admin", "steward"])
ROLES = st.sampled_from([role.value for role in Role])
APPROVALS = st.builds(
    Approval,
    principal=NAMES,
    roles=st.lists(ROLES, max_size=3).map(tuple),
    at=st.just(1.0),
    reason=st.just(""),
)
GATES = st.lists(
    st.builds(ApprovalRule, role=st.sampled_from(list(Role)), count=st.integers(1, 3)),
    max_size=3,
    unique_by=lambda rule: rule.role,
).map(lambda rules: Gate(1, ("*",), promotion=Requirements(approvals=tuple(rules))))


@given(GATES, st.lists(APPROVALS, max_size=5), APPROVALS, NAMES, NAMES)
def test_an_approval_never_adds_to_what_is_missing(
    gate: Gate, standing: list[Approval], one: Approval, asks: str, registered: str
) -> None:
    """And none by who asks or registered ever takes from it."""
    facts = facts_with(approvals=tuple(standing), registered_by=registered, asked_by=asks)
    more = facts_with(approvals=(*standing, one), registered_by=registered, asked_by=asks)
    before, after = set(lacking(gate, facts)), set(lacking(gate, more))
    assert after <= before
    if one.principal in (asks, registered):
        assert after == before


@given(GATES, st.lists(APPROVALS, max_size=5), NAMES)
def test_what_is_not_missing_is_met(gate: Gate, standing: list[Approval], asks: str) -> None:
    """Every requirement is told once, met or not, whatever the facts."""
    facts = facts_with(approvals=tuple(standing), asked_by=asks)
    found = examine("g", gate, Stage.PROMOTION, facts, NOW)
    assert len(found) == len(gate.promotion.approvals)
    assert len(missing_of(found)) == sum(not one.met for one in found)
    assert lacking(gate, facts, Stage.TRIAL) == []
