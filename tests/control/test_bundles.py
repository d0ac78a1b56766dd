from collections.abc import Iterable
from typing import Any

import pytest

from gateway.control.bundles import Applied, BundleOptions, BundlePlan, Bundles
from gateway.control.experiments import Experiments
from gateway.control.registry import Registry
from gateway.core.applying import Right
from gateway.core.audit import AuditEntry
from gateway.core.bundles import Bundle, HoldOutDocument, LayerDocument, tag_of
from gateway.core.endpoints import Endpoint, Rule, Split, Target, Weighted
from gateway.core.errors import Conflict, Forbidden
from gateway.core.experiments import Experiment, ExperimentVariant, Fixed
from gateway.core.gates import ApprovalRule, Gate, Requirements
from gateway.core.principals import Action, PrincipalDocument
from gateway.core.snapshot import Snapshot
from gateway.core.targeting import Condition
from tests.control.building import ASKED, register
from tests.control.governing import ONE_APPROVAL, Office, gate_of
from tests.fakes import CountingEntropy, ManualClock, MemoryStore, manifest_of, signature_of


class Desk:
    """Bundles over a registry of model m with versions 1 and 2, and 3 with other tensors."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        entropy, clock = CountingEntropy(), ManualClock()
        self.registry = Registry(self.store, now=clock, entropy=entropy)
        self.experiments = Experiments(self.registry, now=clock, entropy=entropy)
        self.bundles = Bundles(self.registry, self.experiments, entropy=entropy)
        self.asked: list[Right] = []

    def permit(self, base: Snapshot, rights: Iterable[Right]) -> None:
        self.asked += rights

    async def apply(self, bundle: Bundle, **options: Any) -> Applied:
        return await self.bundles.apply(bundle, BundleOptions(**options), self.permit, ASKED)

    async def plan(self, bundle: Bundle, *, prune: bool = False) -> BundlePlan:
        return await self.bundles.plan(bundle, self.permit, prune=prune)

    async def entries(self) -> list[AuditEntry]:
        return list(await self.store.audit())


@pytest.fixture
async def desk() -> Desk:
    """The models are registered; version 1 is the champion."""
    desk = Desk()
    desk.store.manifests["m", 3] = manifest_of("m", 3, signature=signature_of(9))
    await register(desk.registry, desk.store, 1, 2, 3)
    return desk


def bundle_of(**tables: Any) -> Bundle:
    """A bundle of these tables."""
    return Bundle(schema=1, **tables)


def endpoint_of(weight: int, **fields: Any) -> Endpoint:
    """An endpoint that splits what gold customers ask."""
    variants = (
        Weighted(name="a", weight=weight, version=1),
        Weighted(name="b", weight=10_000 - weight, version=2),
    )
    rule = Rule(
        name="r",
        when=(Condition(header="x-tier", equals="gold"),),
        split=Split(exposure=10_000, variants=variants),
    )
    return Endpoint(schema=1, model="m", rules=(rule,), **fields)


WHOLE = bundle_of(
    aliases={"m": {"next": 2}},
    endpoints={"e": endpoint_of(5_000)},
    layers={"l": LayerDocument()},
    holdout=HoldOutDocument(share=100),
    gates={"g": Gate(schema=1, models=("other",))},
)


async def test_a_bundle_is_one_commit_with_each_document_in_its_entry(desk: Desk) -> None:
    """So it is one decision in the audit log, by the bundle's own digest."""
    before = desk.registry.snapshot.revision
    done = await desk.apply(WHOLE)
    entry = (await desk.entries())[-1]
    assert done.change.revision == desk.registry.snapshot.revision == before + 1
    assert (entry.action, entry.target, entry.actor, entry.document) == (
        "apply",
        "bundle",
        "ana",
        None,
    )
    moved = {one.target for one in entry.also}
    assert moved == {"models/m", "endpoints/e", "layers/l", "gates/g", "holdout"}
    assert entry.evidence == {"bundle": tag_of(WHOLE), "prune": False}


async def test_applying_twice_changes_and_writes_nothing(desk: Desk) -> None:
    """Though other salts would be drawn."""
    await desk.apply(WHOLE)
    count = len(await desk.entries())
    again = await desk.apply(WHOLE)
    assert (again.change.entry, again.changes) == (None, ())
    assert (await desk.plan(WHOLE)).changes == ()
    assert len(await desk.entries()) == count


async def test_export_then_apply_is_no_change_even_with_prune(desk: Desk) -> None:
    """With every salt written out."""
    await desk.apply(WHOLE)
    bundle = desk.bundles.export(principals=True)
    assert bundle.layers is not None
    assert bundle.layers["l"].salt
    assert (await desk.apply(bundle, prune=True)).change.entry is None


async def test_a_plan_changes_nothing_and_tells_all(desk: Desk) -> None:
    """It asks for the right to read what it tells of."""
    count = len(await desk.entries())
    plan = await desk.plan(WHOLE)
    assert [(change.kind, change.target) for change in plan.changes] == [
        ("create", "aliases/m/next"),
        ("create", "endpoints/e"),
        ("create", "gates/g"),
        ("create", "holdout"),
        ("create", "layers/l"),
    ]
    assert set(plan.expected.values()) == {""}
    assert (plan.refusal, len(await desk.entries())) == (None, count)
    assert set(desk.asked) == {(Action.READ, "m"), (Action.READ, None)}


async def test_what_moved_since_the_plan_is_named(desk: Desk) -> None:
    """Only what the bundle speaks of counts."""
    plan = await desk.plan(WHOLE)
    await desk.apply(bundle_of(gates={"other": Gate(schema=1, models=("q",))}))
    await desk.apply(bundle_of(endpoints={"e": endpoint_of(1_000)}))
    with pytest.raises(Conflict, match=r"looked at: 'endpoints/e'; revision \d+ stands"):
        await desk.apply(WHOLE, expected=plan.expected)
    fresh = await desk.plan(WHOLE)
    await desk.experiments.put_layer("another", None, ASKED)
    assert (await desk.apply(WHOLE, expected=fresh.expected)).change.entry is not None


async def test_nothing_is_pruned_that_the_plan_did_not_show(desk: Desk) -> None:
    """It came after somebody looked."""
    bundle = bundle_of(gates={})
    plan = await desk.plan(bundle, prune=True)
    await desk.apply(WHOLE)
    with pytest.raises(Conflict, match="'gates/g'"):
        await desk.apply(bundle, prune=True, expected=plan.expected)


@pytest.mark.parametrize(
    "bundle",
    [
        bundle_of(aliases={"m": {"champion": 3}}),
        bundle_of(endpoints={"e": Endpoint(schema=1, model="m", default=Target(version=3))}),
        bundle_of(
            experiments={
                "x": Experiment(
                    schema=1,
                    endpoint="m",
                    variants=(
                        ExperimentVariant(name="control", version=1),
                        ExperimentVariant(name="candidate", version=3),
                    ),
                    strategy=Fixed(weights={"control": 5_000, "candidate": 5_000}),
                    promote="never",
                )
            }
        ),
    ],
    ids=["alias", "endpoint", "experiment"],
)
async def test_other_tensors_are_refused_as_for_single_changes(desk: Desk, bundle: Bundle) -> None:
    """The plan says so before; whoever means it can say so."""
    if bundle.endpoints:
        await desk.apply(bundle_of(endpoints={"e": endpoint_of(5_000)}))
    refusal = (await desk.plan(bundle)).refusal
    assert refusal is not None
    assert "is not like" in refusal
    with pytest.raises(Conflict, match="is not like"):
        await desk.apply(bundle)
    assert (await desk.apply(bundle, allow_signature_change=True)).change.entry is not None


async def test_a_right_that_is_missing_leaves_everything_as_it_is(desk: Desk) -> None:
    """Also what the caller could have changed alone."""

    def permit(base: Snapshot, rights: Iterable[Right]) -> None:
        if (Action.GATES, None) in rights:
            message = "No."
            raise Forbidden(message)

    before = desk.registry.snapshot
    with pytest.raises(Forbidden):
        await desk.bundles.apply(WHOLE, BundleOptions(), permit, ASKED)
    assert desk.registry.snapshot == before


async def test_whoever_may_not_see_roles_is_told_of_none(desk: Desk) -> None:
    """Neither by a plan nor by an export."""
    bundle = bundle_of(principals={"ana": PrincipalDocument(schema=1)})
    await desk.apply(bundle)
    assert desk.bundles.export(principals=False).principals is None
    desk.asked = []
    await desk.plan(bundle)
    assert desk.asked == [(Action.ACCESS, None)]


CLOSED = Gate(schema=1, models=("m",), promotion=Requirements(approvals=(ApprovalRule(),)))


async def test_a_bundle_cannot_open_its_own_gate(desk: Desk) -> None:
    """The gate that stood before it counts."""
    await desk.apply(bundle_of(gates={"g": CLOSED}))
    both = bundle_of(gates={"g": Gate(schema=1, models=("m",))}, aliases={"m": {"champion": 2}})
    with pytest.raises(Conflict):
        await desk.apply(both)


async def test_a_bundle_must_pass_the_gate_that_it_brings(desk: Desk) -> None:
    """Or what it says would not have been met from the beginning."""
    both = bundle_of(gates={"g": CLOSED}, aliases={"m": {"champion": 2}})
    with pytest.raises(Conflict):
        await desk.apply(both)


async def test_a_plan_counts_no_approval_of_who_asks(store: MemoryStore) -> None:
    """It says what applying would: somebody else must have approved."""
    office = await Office(store).open(gate_of(promotion=ONE_APPROVAL))
    await office.approve(2, "ben")
    experiments = Experiments(office.registry, now=office.clock, entropy=CountingEntropy())
    bundles = Bundles(office.registry, experiments, entropy=CountingEntropy())
    bundle = bundle_of(aliases={"m": {"champion": 2}})

    async def refusal(actor: str) -> str | None:
        return (await bundles.plan(bundle, lambda *_: None, prune=False, actor=actor)).refusal

    assert await refusal("dan") is None
    assert "approval" in str(await refusal("ben"))
