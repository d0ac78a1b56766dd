"""Every commit is held to the gates, whatever way it takes."""

from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from gateway.adapters.redis import RedisStore
from gateway.control.experiments import Experiments
from gateway.control.reception import _record
from gateway.control.registry import Edit, Request
from gateway.core.audit import first_break
from gateway.core.endpoints import Endpoint, Rule, Shadow, Target
from gateway.core.errors import Conflict, Forbidden, GateClosed, InvalidRequest, NotFound
from gateway.core.snapshot import ModelRecord, Snapshot, document_digest
from gateway.core.targeting import Condition
from gateway.core.transitions import promote
from tests.control.governing import FROZEN, ONE_APPROVAL, PEOPLE, Office, gate_of
from tests.fakes import CountingEntropy, MemoryStore, manifest_of
from tests.rollouts import document_of

ANA, DAN, EVA = (Request(actor=name, reason="because") for name in ("ana", "dan", "eva"))
GOLD = (Condition(header="X-Plan", equals="gold"),)


@pytest.fixture
async def office(store: MemoryStore) -> Office:
    """A gate on model m: one approval before a promotion, one check before a trial."""
    gate = gate_of(promotion=ONE_APPROVAL, trial={"lineage": ["lineage.trainer"]})
    return await Office(store).open(gate)


async def test_a_promotion_waits_for_its_approval(office: Office, store: MemoryStore) -> None:
    """It is refused with what is missing; approved by someone else, it passes and says by whom."""
    with pytest.raises(GateClosed, match="A gate is closed for version 2 of 'm'") as refused:
        await office.registry.promote("m", 2, ANA)
    (one,) = refused.value.missing
    assert (one.gate, one.requirement) == ("g", "approvals.approver")
    assert "tiltyard approve m 2" in one.sentence
    await office.approve(2, "ana")
    with pytest.raises(GateClosed, match="'ana'"):
        await office.registry.promote("m", 2, ANA)
    await office.approve(2, "ben")
    change = await office.registry.promote("m", 2, ANA)
    assert office.champion == 2
    assert change.entry is not None
    (passage,) = change.entry.evidence["gates"]
    snapshot = office.registry.snapshot
    assert passage["approvals"] == ["ben"]
    assert passage["digest"] == document_digest(snapshot.gates["g"])
    assert passage["review"] == document_digest(snapshot.reviews["m/2"])
    assert passage["stage"] == "promotion"
    assert first_break(store.entries, snapshot.audit_head) is None


WAYS: dict[str, Callable[[Office], Awaitable[object]]] = {
    "promote": lambda office: office.registry.promote("m", 2, ANA),
    "another alias": lambda office: office.registry.promote("m", 2, ANA, alias="blue"),
    "load": lambda office: office.registry.load("m", 2, ANA),
    "a rule": lambda office: office.registry.put_endpoint(
        "e", Endpoint(1, "m", rules=(Rule("r", GOLD, serve=Target(version=2)),)), ANA
    ),
    "a default": lambda office: office.registry.put_endpoint(
        "e", Endpoint(1, "m", default=Target(version=2)), ANA
    ),
    "a shadow": lambda office: office.registry.put_endpoint(
        "e", Endpoint(1, "m", shadows=(Shadow(name="s", share=1, version=2),)), ANA
    ),
    "a draft": lambda office: Experiments(
        office.registry, now=office.clock, entropy=CountingEntropy()
    ).put("exp", document_of(), ANA),
}


@pytest.mark.parametrize("way", WAYS)
async def test_no_way_leads_round_a_gate(store: MemoryStore, way: str) -> None:
    """In a freeze nothing new is named anywhere, and afterwards it is."""
    office = await Office(store).open(gate_of(freezes=FROZEN))
    before = office.registry.snapshot
    with pytest.raises(GateClosed, match="The freeze 'now' holds until 1970-01-01 01:00 UTC"):
        await WAYS[way](office)
    assert office.registry.snapshot == before
    office.clock.at = 3_600.0
    await WAYS[way](office)


async def test_a_draft_that_stood_before_is_asked_again_at_its_start(store: MemoryStore) -> None:
    """Written before a freeze, it cannot be started in it."""
    office = await Office(store).open()
    experiments = Experiments(office.registry, now=office.clock, entropy=CountingEntropy())
    await experiments.put("exp", document_of(), ANA)
    await office.gates.put("g", gate_of(freezes=FROZEN), Request("admin"))
    with pytest.raises(GateClosed, match="freeze 'now'"):
        await experiments.start("exp", ANA)
    preview = await experiments.preview("exp", document_of(), "ana")
    assert "freeze 'now'" in str(preview.refusal)


async def test_a_rollback_passes_a_closed_gate(store: MemoryStore) -> None:
    """In a freeze, and to a version that would not pass any more."""
    office = await Office(store).open()
    await office.registry.promote("m", 2, ANA)
    await office.gates.put("g", gate_of(promotion=ONE_APPROVAL, freezes=FROZEN), Request("admin"))
    change = await office.registry.rollback("m", DAN)
    assert office.champion == 1
    assert change.entry is not None
    assert change.entry.evidence is None
    with pytest.raises(GateClosed):
        await office.registry.promote("m", 2, ANA)


async def test_gates_add_up(office: Office) -> None:
    """What each of them misses is told under its name."""
    more = gate_of(models=["*"], trial={"checks": [{"check": "golden"}]})
    await office.gates.put("all", more, Request("admin"))
    with pytest.raises(GateClosed) as refused:
        await office.registry.promote("m", 2, ANA)
    assert [(one.gate, one.requirement) for one in refused.value.missing] == [
        ("all", "checks.golden"),
        ("g", "approvals.approver"),
    ]


async def test_an_override_takes_its_role_and_a_reason(office: Office) -> None:
    """And stands out in the audit log, with all that was missing."""
    for request, error, told in (
        (DAN, Forbidden, "takes the role 'emergency'"),
        (Request(actor="admin", reason="x"), Forbidden, "takes the role 'emergency'"),
        (Request(actor="eva", reason=" "), InvalidRequest, "gives a reason"),
    ):
        with pytest.raises(error, match=told):
            await office.registry.promote("m", 2, replace(request, override=True))
    assert office.champion == 1
    change = await office.registry.promote("m", 2, replace(EVA, override=True))
    assert change.entry is not None
    assert change.entry.evidence["override"] is True
    assert [one["requirement"] for one in change.entry.evidence["missing"]] == [
        "approvals.approver"
    ]


async def test_an_override_that_nothing_needs_is_a_promotion_like_any_other(
    office: Office,
) -> None:
    """It says what was met, and nothing of force."""
    await office.approve(2, "ben")
    change = await office.registry.promote("m", 2, replace(DAN, override=True))
    assert change.entry is not None
    assert list(change.entry.evidence) == ["gates"]


async def test_a_new_model_that_a_gate_means_is_registered_without_its_champion(
    store: MemoryStore,
) -> None:
    """Its first version waits for a promotion instead of serving at once."""
    office = await Office(store).open(gate_of(models=["new*"], promotion=ONE_APPROVAL))
    for name in ("newer", "old"):
        manifest = await store.put_manifest(manifest_of(name, 1))
        seed = _record({"labels": ["a"]}, 1)
        await office.registry.register(manifest, Request(actor="model-store"), seed=seed)
    models = office.registry.snapshot.models
    assert models["newer"] == ModelRecord(
        versions=models["newer"].versions, aliases={}, labels=("a",)
    )
    assert models["old"].aliases == {"champion": 1}
    with pytest.raises(GateClosed):
        await office.registry.promote("newer", 1, ANA)
    await office.gates.approve("newer", 1, Request(actor="ben"))
    await office.registry.promote("newer", 1, ANA)


async def test_an_approval_that_is_withdrawn_in_between_does_not_count(
    office: Office, store: MemoryStore
) -> None:
    """The commit was let through by what it read; the store has moved, so it is asked again."""
    await office.approve(2, "ben")
    other = Office(store)
    once = True

    async def make(base: Snapshot) -> Snapshot:
        nonlocal once
        changed = await office.registry.promoted(base, ("m", 2), "champion", ANA)
        if once:
            once = False
            await other.gates.unapprove("m", 2, Request(actor="ben"))
        return changed

    with pytest.raises(GateClosed, match="1 approval by an approver"):
        await office.registry.commit(Edit("model.promote", "models/m", make), ANA)
    assert office.champion == 1


async def test_of_two_promotions_of_one_document_one_wins(redis_store: RedisStore) -> None:
    """Both are approved and expect what they saw; the other is told that it moved."""
    office = await Office(redis_store).open(gate_of(promotion=ONE_APPROVAL))
    await office.approve(2, "ben")
    await office.approve(3, "ben")
    rival = Office(redis_store)
    seen = replace(ANA, if_match=office.registry.etag("models/m"))
    await rival.registry.promote("m", 3, seen)
    with pytest.raises(Conflict, match="moved") as refused:
        await office.registry.promote("m", 2, seen)
    assert not isinstance(refused.value, GateClosed)
    assert office.champion == 3


async def test_who_lost_the_role_or_is_disabled_does_not_count(office: Office) -> None:
    """An approval is as good as who gave it is now."""
    await office.approve(2, "ben", "cyd")
    await office.people({name: roles for name, roles in PEOPLE.items() if name != "ben"})
    found = await office.registry.gatekeeper.findings(
        office.registry.snapshot, ("m", 2), "champion", "ana"
    )
    assert [one.sentence for one in found if one.requirement == "approvals.approver"] == [
        "Approved by 'cyd' (approver)."
    ]
    await office.people(PEOPLE, disabled="cyd")
    await office.registry.promote("m", 2, ANA)
    await office.people({"ana": PEOPLE["ana"]})
    await office.approve(3, "ana")
    with pytest.raises(GateClosed):
        await office.registry.promote("m", 3, ANA)


async def test_approvals_are_recorded_once_each(office: Office) -> None:
    """With the roles held then; again is no change, another's stays; who registered may not."""
    await office.approve(2, "ana", "ben")
    again = await office.gates.approve("m", 2, Request(actor="ben"))
    assert again.entry is None
    review = office.registry.snapshot.reviews["m/2"]
    assert [(one.principal, one.roles) for one in review.approvals] == [
        ("ana", ("approver", "deployer")),
        ("ben", ("approver",)),
    ]
    assert review.digest == office.registry.snapshot.models["m"].versions[2]
    await office.gates.unapprove("m", 2, Request(actor="ben"))
    with pytest.raises(NotFound, match="has not approved"):
        await office.gates.unapprove("m", 2, Request(actor="ben"))
    with pytest.raises(NotFound, match="no version 9"):
        await office.approve(9, "ben")

    async def make(base: Snapshot) -> Snapshot:
        mine = replace(base.reviews["m/2"], registered_by="cyd")
        return replace(base, reviews={"m/2": mine})

    await office.registry.commit(Edit("model.inspect", "reviews/m/2", make), Request("x"))
    with pytest.raises(Forbidden, match="someone else has to approve"):
        await office.approve(2, "cyd")


async def test_a_gate_says_what_it_would_mean(office: Office) -> None:
    """Which models, and what serves that would not pass; a document is put as it was meant."""
    gate = gate_of(models=["*"], promotion={"checks": [{"check": "golden"}]})
    preview = await office.gates.preview("more", gate)
    assert (preview.models, preview.changes, preview.etag) == (("m",), True, None)
    (one,) = preview.failing
    assert (one.model, one.alias, one.version) == ("m", "champion", 1)
    assert one.missing[0].requirement == "checks.golden"
    assert "more" not in office.registry.snapshot.gates
    await office.gates.put("more", gate, replace(DAN, if_match=""))
    with pytest.raises(Conflict):
        await office.gates.put("more", gate, replace(DAN, if_match=""))
    await office.gates.delete("more", DAN)
    with pytest.raises(NotFound, match="There is no gate 'more'"):
        await office.gates.delete("more", DAN)


async def test_a_lineage_that_cannot_be_read_is_missing(office: Office, store: MemoryStore) -> None:
    """No manifest, no lineage."""
    fresh = Office(store)
    del store.manifests["m", 2]
    with pytest.raises(GateClosed, match="does not say 'trainer'"):
        await fresh.registry.load("m", 2, ANA)
    assert office.champion == 1


async def test_an_endpoints_preview_says_that_a_gate_is_closed(office: Office) -> None:
    """As a refusal, for who asks."""
    document = Endpoint(1, "m", default=Target(version=2))
    preview = await office.registry.preview_endpoint("e", document, "ana")
    assert "A gate is closed" in str(preview.refusal)
    assert "'ana'" in str(preview.refusal)


async def test_a_change_that_takes_its_gate_away_is_held_to_it(office: Office) -> None:
    """Documents that are applied whole cannot bring along what lets them pass."""

    async def make(base: Snapshot) -> Snapshot:
        return replace(promote(base, "m", 2), gates={})

    with pytest.raises(GateClosed):
        await office.registry.commit(Edit("apply", "bundles/x", make, {"bundle": "x"}), ANA)
    await office.approve(2, "ben")
    change = await office.registry.commit(Edit("apply", "bundles/x", make, {"bundle": "x"}), ANA)
    assert change.entry is not None
    assert set(change.entry.evidence) == {"bundle", "gates"}
