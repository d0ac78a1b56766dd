import asyncio
import signal
import sys

import pytest
from msgspec.structs import replace

from gateway.adapters.redis import RedisStore
from gateway.control.registry import Request
from gateway.control.steward import ALARM, POINT_S
from gateway.core.experiments import ExperimentRecord, State
from gateway.core.ledger import replay
from gateway.core.readings import Decision
from gateway.core.tallies import Evidence
from gateway.ports import Store
from tests.control.stewarding import ASKED, HELD_OUT, Killed, Scene
from tests.fakes import MemoryStore, manifest_of
from tests.rollouts import HERE, document_of, judge_by_units


@pytest.fixture(params=["memory", "redis"])
def any_store(request: pytest.FixtureRequest, redis_store: RedisStore) -> Store:
    """A store in memory, then a real one."""
    return redis_store if request.param == "redis" else MemoryStore()


@pytest.fixture
async def scene(store: MemoryStore) -> Scene:
    """A steward with one running experiment."""
    return await Scene(store).begin()


async def test_only_changes_become_entries(scene: Scene) -> None:
    """Ten looks at the same evidence leave one entry, that of the first."""
    for _ in range(10):
        await scene.steward.tick()
        scene.clock.at += 1
    assert len(await scene.ledger()) == 1
    scene.units = 50
    assert await scene.settle() == 1
    entries = await scene.ledger()
    assert entries[-1].document["verdicts"] == {"loss/candidate": "equivalent"}
    assert {entry.actor for entry in entries} == {"steward"}


async def test_a_promotion_is_one_commit_of_record_and_alias(scene: Scene) -> None:
    """Its entry names both documents and the words of the decision."""
    scene.units = 1_000
    assert await scene.settle() == 1
    entry = (await scene.ledger())[-1]
    assert entry.target == "experiments/exp"
    assert [moved.target for moved in entry.also] == ["models/m"]
    assert entry.reason == "all that gates is certified"
    assert scene.registry.snapshot.models["m"].aliases == {"champion": 2}
    assert (await scene.record()).state is State.PROMOTED


async def test_every_entry_of_the_ledger_replays(scene: Scene) -> None:
    """A step, a verdict, a hold and a promotion, each from nothing but its entry."""
    for units in (5, 50, 500, 1_000):
        scene.units = units
        scene.clock.at += 10
        await scene.settle()
    entries = await scene.ledger()
    assert len(entries) >= 4
    assert [replay(entry, judge_by_units, HERE).difference for entry in entries] == (
        [None] * len(entries)
    )


@pytest.mark.parametrize("at", ["before the commit", "after the commit", "reply lost"])
@pytest.mark.parametrize("units", [26 // 2, 500, 1_000], ids=["rollback", "step", "promotion"])
async def test_a_steward_killed_at_a_transition_takes_it_exactly_once(
    any_store: Store, at: str, units: int
) -> None:
    """Whoever comes after sees the record before or the record after, and goes on from there."""
    scene = await Scene(any_store).begin(HELD_OUT)
    whole = await Scene(MemoryStore()).begin(HELD_OUT)
    for one in (scene, whole):
        one.units = units
    await whole.settle()
    scene.fragile.at = at
    try:
        await scene.steward.tick()
    except Killed:
        scene.born()
    await scene.settle()
    assert (await scene.record()).state is (await whole.record()).state
    assert (await scene.record()).phases == (await whole.record()).phases
    assert [entry.document for entry in await scene.ledger()] == [
        entry.document for entry in await whole.ledger()
    ]
    assert scene.registry.snapshot.models == whole.registry.snapshot.models


@pytest.mark.parametrize("at", ["before the commit", "after the commit"])
async def test_a_whole_life_survives_a_kill_at_every_step(any_store: Store, at: str) -> None:
    """From the first step over the promotion to the end of the hold-out."""
    scene = await Scene(any_store).begin(HELD_OUT)
    for units in (5, 50, 500, 1_000, 1_000):
        scene.units = units
        scene.clock.at += 100
        for _ in range(4):
            await scene.follow()
            scene.fragile.at = at
            try:
                await scene.steward.tick()
            except Killed:
                scene.born()
                if at == "before the commit":
                    await scene.follow()
                    await scene.steward.tick()
    states = [entry.document["state"] for entry in await scene.ledger()]
    assert states == ["held", "held", "running", "held", "holding_out", "promoted"]
    assert [len(entry.document["phases"]) for entry in await scene.ledger()] == [1, 1, 2, 2, 3, 3]
    assert scene.registry.snapshot.models["m"].aliases == {"champion": 2}
    assert scene.registry.snapshot.models["m"].previous == {"champion": (1,)}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
async def test_a_process_killed_at_every_transition_takes_each_step_once(
    redis_store: RedisStore, valkey_url: str, namespace: str, moment: str
) -> None:
    """With kill -9, and a new process each time: a step, then the promotion into a hold-out."""
    scene = await Scene(redis_store).begin(HELD_OUT)
    for units in (500, 1_000):
        doomed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.control.stewarding"),
            *(valkey_url, namespace, moment, str(units)),
        )
        assert await doomed.wait() == -signal.SIGKILL
        scene.born()
        scene.units = units
        await scene.follow()
        await scene.steward.tick()
    assert [entry.document["state"] for entry in await scene.ledger()][-1] == "holding_out"
    assert [len(entry.document["phases"]) for entry in await scene.ledger()][-1] == 3
    assert scene.registry.snapshot.models["m"].previous == {"champion": (1,)}
    assert len({entry.revision for entry in await scene.ledger()}) == len(await scene.ledger())


async def test_two_that_believe_they_lead_take_a_step_once(any_store: Store) -> None:
    """The lock is for comfort; compare-and-set keeps it safe."""
    one = await Scene(any_store).begin()
    two = Scene(any_store)
    await two.follow()
    one.units = two.units = 1_000
    taken = await asyncio.gather(one.steward.tick(), two.steward.tick())
    assert sum(taken) == 1
    assert len(await one.ledger()) == 1


async def test_a_record_that_moved_is_judged_again(scene: Scene) -> None:
    """A decision on what was there before is never applied to what is there now."""
    other = Scene(scene.fragile._store)
    await other.follow()
    await other.experiments.pause("exp", Request(actor="ana", reason="wait"))
    scene.units = 1_000
    assert await scene.steward.tick() == 0
    record = await scene.record()
    assert (record.state, record.reason) == (State.PAUSED, "wait")


async def test_an_alias_that_moved_is_judged_again(scene: Scene) -> None:
    """A promotion by hand between look and commit is not overwritten."""
    manifest = manifest_of("m", 3)
    await scene.fragile.put_manifest(manifest)
    await scene.registry.register(manifest, ASKED)
    other = Scene(scene.fragile._store)
    await other.follow()
    await other.registry.promote("m", 3, ASKED)
    scene.units = 1_000
    assert await scene.steward.tick() == 0
    await scene.settle()
    record = await scene.record()
    assert (record.state, record.reason) == (State.HELD, "control_moved")
    assert scene.registry.snapshot.models["m"].aliases == {"champion": 3}


async def test_who_does_not_lead_asks_nothing(scene: Scene) -> None:
    """Of many processes one does the work."""
    scene.standing.leads = False
    assert await scene.steward.tick() == 0
    assert scene.asked == []


async def test_everything_is_frozen_while_the_store_is_away(scene: Scene) -> None:
    """No step, no point, and no harm done: the next look goes on."""
    scene.units, scene.away = 1_000, True
    assert await scene.steward.tick() == 0
    assert (await scene.record()).state is State.RUNNING
    assert scene.points == []
    scene.away = False
    assert await scene.settle() == 1


async def test_all_experiments_are_read_in_one_go(scene: Scene) -> None:
    """A hundred experiments cost one round trip."""
    await scene.experiments.put("exp2", document_of(layer="page"), ASKED)
    await scene.steward.tick()
    live = [one.id for one in scene.registry.snapshot.experiments.values() if one.phases]
    assert scene.asked == [live]


async def test_one_that_cannot_be_judged_leaves_the_others_alone(scene: Scene) -> None:
    """Its fault is an alarm, until it is gone."""
    await scene.experiments.put_layer("page", None, ASKED)
    broken = True

    def decide(record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
        if broken:
            raise ZeroDivisionError
        return judge_by_units(record, evidence, now)

    scene.decide = decide
    assert await scene.steward.tick() == 0
    assert "'exp' cannot be judged" in scene.standing.alarms[ALARM]
    broken = False
    assert await scene.steward.tick() == 1
    assert ALARM not in scene.standing.alarms


async def test_a_rollback_does_not_wait_for_what_cannot_be_told(scene: Scene) -> None:
    """The step is taken on what was decided from, and the fault is an alarm."""
    scene.untellable = True
    scene.units = 13

    assert await scene.steward.tick() == 1

    assert scene.registry.snapshot.experiments["exp"].state is State.ROLLED_BACK
    assert "'exp' cannot be judged" in scene.standing.alarms[ALARM]


async def test_points_of_history_are_few_and_only_of_what_moved(scene: Scene) -> None:
    """At most one in a few seconds, and none while numbers stand still."""
    await scene.steward.tick()
    scene.clock.at += 1
    scene.units = 6
    await scene.steward.tick()
    assert len(scene.points) == 1
    scene.clock.at += POINT_S
    await scene.steward.tick()
    assert [point["units"] for _, point in scene.points] == [
        {"control": 5, "candidate": 5},
        {"control": 6, "candidate": 6},
    ]
    scene.clock.at += POINT_S
    await scene.steward.tick()
    scene.clock.at += POINT_S
    await scene.steward.tick()
    assert len(scene.points) == 2


async def test_a_step_that_contradicts_the_snapshot_is_an_alarm(scene: Scene) -> None:
    """It is refused, told, and nothing moves."""

    def decide(record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
        decision = judge_by_units(record, evidence, now)
        weights = {"control": 5_000, "candidate": 5_000}
        return replace(decision, state=State.RUNNING, exposure=20_000, weights=weights)

    scene.decide = decide
    assert await scene.steward.tick() == 0
    assert "is refused" in scene.standing.alarms[ALARM]
