"""A steward whose winner a gate keeps back."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gateway.control.gates import Gates
from gateway.control.registry import Edit, Request
from gateway.control.reports import ReportParts, Reports
from gateway.control.steward import ALARM
from gateway.core.experiments import State
from gateway.core.gates import Gate
from gateway.core.ledger import basis_of, replay
from gateway.core.principals import Grant, PrincipalDocument, Role
from gateway.core.snapshot import ModelRecord, Snapshot
from tests.control.stewarding import HELD_OUT, Scene
from tests.fakes import MemoryStore, manifest_of
from tests.rollouts import HERE, document_of, judge_by_units

APPROVED: dict[str, Any] = {"approvals": [{}]}
ADMIN = Request(actor="admin")


async def begun(store: MemoryStore, gate: dict[str, Any], scene: Scene | None = None) -> Scene:
    """An experiment that runs, then a gate, and an approver."""
    scene = scene or await Scene(store).begin()
    document = msgspec.convert({"schema": 1, "models": ["m"], **gate}, Gate)
    await Gates(scene.registry, scene.clock).put("g", document, ADMIN)
    ben = PrincipalDocument(schema=1, grants=(Grant(Role.APPROVER),))

    async def make(base: Snapshot) -> Snapshot:
        return replace(base, principals={"ben": ben})

    await scene.registry.commit(Edit("principal.put", "principals/ben", make), ADMIN)
    return scene


async def approve(scene: Scene) -> None:
    """Have ben stand for the candidate."""
    await Gates(scene.registry, scene.clock).approve("m", 2, Request(actor="ben"))


async def champion(scene: Scene) -> int:
    """What the alias names."""
    await scene.follow()
    return scene.registry.snapshot.models["m"].aliases["champion"]


async def test_a_winner_waits_for_its_gate_and_is_promoted_once_it_opens(
    store: MemoryStore,
) -> None:
    """Held with a reason that people can read, by one commit; then promoted by another."""
    scene = await begun(store, {"promotion": APPROVED})
    scene.units = 1_000
    assert await scene.settle() == 1
    record = await scene.record()
    assert (record.state, record.reason) == (State.HELD, "gate")
    assert await champion(scene) == 1
    entry = (await scene.ledger())[-1]
    assert "1 approval by an approver is missing" in entry.reason
    assert basis_of(entry).decision.state is State.PROMOTED
    scene.clock.at += 100
    assert await scene.steward.tick() == 0
    assert "has a winner that a gate keeps back" in scene.standing.alarms[ALARM]
    await approve(scene)
    assert await scene.settle() == 1
    assert (await scene.record()).state is State.PROMOTED
    assert await champion(scene) == 2
    assert ALARM not in scene.standing.alarms
    entries = await scene.ledger()
    assert basis_of(entries[-1]).passed["gates"][0]["approvals"] == ["ben"]
    assert [replay(one, judge_by_units, HERE).difference for one in entries] == [None] * len(
        entries
    )


async def test_who_starts_an_experiment_is_not_the_second_pair_of_eyes(store: MemoryStore) -> None:
    """The steward asks for them; else one person alone would promote by an experiment."""
    scene = Scene(store)
    for number in (1, 2):
        manifest = await store.put_manifest(manifest_of("m", number))
        seed = ModelRecord(versions={}, aliases={"champion": 1})
        await scene.registry.register(manifest, Request(actor="model-store"), seed=seed)
    await scene.experiments.put("exp", document_of(), Request(actor="ana"))
    await scene.experiments.start("exp", Request(actor="ben"))
    await begun(store, {"promotion": APPROVED}, scene)
    await approve(scene)
    scene.units = 1_000
    await scene.settle()
    assert (await scene.record()).reason == "gate"
    assert await champion(scene) == 1
    assert "whoever started the experiment ('ben')" in (await scene.ledger())[-1].reason


@pytest.mark.parametrize("held_out", [False, True])
async def test_its_own_experiment_is_evidence_for_a_winner(
    store: MemoryStore, held_out: bool
) -> None:
    """Where a gate wants an experiment, the one that is about to promote is one."""
    scene = await Scene(store).begin(HELD_OUT if held_out else None)
    await begun(store, {"promotion": {"evidence": {"experiment": True}}}, scene)
    scene.units = 1_000
    await scene.settle()
    assert await champion(scene) == 2


async def test_harm_rolls_back_though_the_gate_is_closed(store: MemoryStore) -> None:
    """What is kept back is judged on."""
    scene = await begun(store, {"promotion": APPROVED})
    scene.units = 1_000
    await scene.settle()
    scene.units = 13
    assert await scene.settle() == 1
    assert (await scene.record()).state is State.ROLLED_BACK
    assert ALARM not in scene.standing.alarms


async def test_a_promotion_is_taken_back_in_a_freeze(store: MemoryStore) -> None:
    """While its hold-out runs, whatever gates say by then."""
    scene = await Scene(store).begin(HELD_OUT)
    scene.units = 1_000
    await scene.settle()
    assert await champion(scene) == 2
    freeze = {"name": "f", "starts": "1970-01-01T00:00:00Z", "ends": "1970-01-02T00:00:00Z"}
    await begun(store, {"freezes": [freeze], "promotion": APPROVED}, scene)
    scene.decide = lambda record, evidence, now: replace(
        judge_by_units(record, evidence, now), state=State.ROLLED_BACK, reason="harm"
    )
    assert await scene.settle() == 1
    assert await champion(scene) == 1


async def test_who_looks_at_the_experiment_reads_what_is_missing(store: MemoryStore) -> None:
    """In the remarks of its report, as long as it is held for that."""
    scene = await begun(store, {"promotion": APPROVED})
    reports = Reports(
        ReportParts(
            registry=scene.registry,
            evidence_of=scene.evidence_of,
            results=no_results,
            points_of=no_points,
            decide=judge_by_units,
            now=scene.clock,
        )
    )
    assert await reports.remarks("exp") == []
    scene.units = 1_000
    await scene.settle()
    (told,) = await reports.remarks("exp")
    assert told.startswith("Kept back: 1 approval by an approver is missing")
    assert (await reports.report("exp")).remarks[-1] == told
    await approve(scene)
    assert await reports.remarks("exp") == []


async def no_results() -> dict[str, dict[str, int]]:
    """Nothing became of anything."""
    return {}


async def no_points(experiment: str, limit: int) -> list[bytes]:
    """There is no history."""
    return []
