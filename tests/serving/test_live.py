import threading

import msgspec
import pytest

from gateway.core.assignment import Reason
from gateway.core.endpoints import Split, Target, Weighted
from gateway.core.errors import EngineFailed, NotFound, NotReady
from gateway.core.models import Key
from gateway.core.snapshot import Snapshot
from gateway.ports import Artifact, Engine, Update
from tests.fakes import FakeEngine, manifest_of
from tests.planes import (
    Plane,
    endpoint_of,
    model_of,
    serve_rule,
    snapshot_of,
    split_rule,
    until,
)

ONE, TWO, THREE = ("m", 1), ("m", 2), ("m", 3)
HALVES = Split(
    exposure=10_000,
    variants=(Weighted("old", 5_000, version=1), Weighted("new", 5_000, version=2)),
)


def promoted(revision: int, champion: int, *previous: int) -> Snapshot:
    """A Snapshot in which a version was promoted and others were champion before."""
    model = model_of(1, 2, 3, champion=champion, previous={"champion": previous})
    return snapshot_of(revision, models={"m": model})


async def version_of(plane: Plane, endpoint: str = "m") -> tuple[int, int]:
    """Revision and version that answer now."""
    answer = await plane.ask(plane.call(1.0), endpoint)
    assert answer.variant is not None
    return answer.revision, answer.variant.version


async def test_a_model_without_an_endpoint_follows_its_champion() -> None:
    """A promotion moves the endpoint that a model is by itself."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(promoted(1, 1))
        assert await version_of(plane) == (1, 1)
        await plane.serve(promoted(2, 2, 1))
        assert await version_of(plane) == (2, 2)


async def test_an_endpoint_keeps_its_plan_until_the_next_one_is_ready() -> None:
    """While a promoted version loads, the one before answers; then the new one does."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(promoted(1, 1))
        plane.gates[TWO] = threading.Event()
        plane.apply(promoted(2, 2, 1))
        assert await version_of(plane) == (1, 1)
        report = plane.worker.report()
        assert report.revision == 2
        assert report.endpoints["m"].revision == 1
        assert report.endpoints["m"].lagging == "version 2 is loading"
        assert report.ready
        plane.gates[TWO].set()
        await plane.settled()
        assert await version_of(plane) == (2, 2)
        assert plane.worker.report().endpoints["m"].lagging is None


async def test_a_rollback_to_a_warm_version_is_immediate() -> None:
    """Rolling back needs no load: the very next request is answered by the version before."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(promoted(1, 1))
        await plane.serve(promoted(2, 2, 1))
        plane.apply(promoted(3, 1, 2))
        assert plane.pipeline.find("m").plan.default.version == 1
        assert await version_of(plane) == (3, 1)
        assert plane.loads == [ONE, TWO]


@pytest.mark.parametrize(
    "broken", [pytest.param(True, id="failed"), pytest.param(False, id="away")]
)
async def test_a_broken_candidate_leaves_the_old_plan_serving_and_says_so(broken: bool) -> None:
    """An endpoint whose next plan cannot be served lags and says why; the process is ready."""
    engines: dict[Key, Engine | Exception] = {ONE: FakeEngine()}
    if broken:
        engines[TWO] = EngineFailed("It is broken.")
    with Plane(engines) as plane:
        await plane.serve(promoted(1, 1))
        await plane.serve(promoted(2, 2, 1))
        assert await version_of(plane) == (1, 1)
        lagging = "version 2: It is broken" if broken else "version 2: It is away"
        assert plane.worker.report().endpoints["m"].lagging == lagging
        assert plane.worker.ready


async def test_an_endpoint_that_needs_no_load_is_not_delayed_by_another() -> None:
    """Each endpoint moves by itself."""
    engines = {ONE: FakeEngine(), TWO: FakeEngine(), ("n", 1): FakeEngine(), ("n", 2): FakeEngine()}
    with Plane(engines) as plane:
        models = {"m": model_of(1, 2, loaded=(2,)), "n": model_of(1, 2)}
        await plane.serve(snapshot_of(1, models=models))
        plane.gates["n", 2] = threading.Event()
        moved = {"m": model_of(1, 2, champion=2), "n": model_of(1, 2, champion=2)}
        plane.apply(snapshot_of(2, models=moved))
        assert await version_of(plane, "m") == (2, 2)
        assert await version_of(plane, "n") == (1, 1)


async def test_a_cold_start_with_a_broken_variant_serves_the_others() -> None:
    """Without a plan to keep, an endpoint serves what it can and refuses only its broken share."""
    endpoints = {"e": endpoint_of(split_rule(HALVES))}
    models = {"m": model_of(1, 2)}
    with Plane({ONE: FakeEngine(), TWO: EngineFailed("It is broken.")}) as plane:
        await plane.serve(snapshot_of(1, models=models, endpoints=endpoints))
        answers = [await plane.ask(plane.call(1.0, unit=f"u{i}"), "e") for i in range(40)]
        errors = {type(answer.error) for answer in answers}
        assert errors == {type(None), NotReady}
        assert {a.variant.version for a in answers if a.error is None and a.variant} == {1}
        assert plane.worker.report().endpoints["e"].lagging == "version 2: It is broken"
        assert plane.worker.ready


async def test_a_cold_start_waits_for_what_is_still_loading() -> None:
    """Before all versions have succeeded or failed, a new endpoint is known and not ready."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        plane.gates[TWO] = threading.Event()
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        plane.apply(snapshot_of(1, models={"m": model_of(1, 2)}, endpoints=endpoints))
        await until(lambda: plane.states()[ONE] == "ready")
        with pytest.raises(NotReady, match="version 2 is loading"):
            plane.pipeline.find("e")
        assert not plane.worker.ready
        plane.gates[TWO].set()
        await plane.settled()
        assert plane.pipeline.find("e").plan.revision == 1
        assert plane.worker.ready


async def test_a_cold_start_waits_for_what_is_on_its_way() -> None:
    """A version that is being copied to the host is waited for; one that cannot come is not."""
    with Plane({ONE: FakeEngine()}) as plane:
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        snapshot = snapshot_of(1, models={"m": model_of(1, 2)}, endpoints=endpoints)
        update = Update(
            snapshot=snapshot,
            artifacts={ONE: Artifact(manifest=manifest_of("m", 1), path="unused")},
            missing={TWO: "It is being copied."},
            pending=frozenset({TWO}),
        )
        plane.worker.apply(update)
        await plane.settled()
        with pytest.raises(NotReady, match="version 2: It is being copied"):
            plane.pipeline.find("e")
        assert plane.pipeline.find("m").plan.default.version == 1
        plane.worker.apply(msgspec.structs.replace(update, pending=frozenset()))
        assert plane.pipeline.find("e").plan.revision == 1


async def test_a_cold_start_with_a_broken_default_is_not_ready() -> None:
    """An endpoint without its default answers nothing, and says why."""
    with Plane({ONE: EngineFailed("It is broken.")}) as plane:
        await plane.serve(snapshot_of())
        with pytest.raises(NotReady, match="version 1: It is broken"):
            plane.pipeline.find("m")
        assert not plane.worker.ready


@pytest.mark.parametrize(
    "broken", [pytest.param(True, id="failed"), pytest.param(False, id="slow")]
)
async def test_a_new_endpoint_that_is_not_there_yet_takes_no_readiness_away(broken: bool) -> None:
    """Once a process was ready, an endpoint that is added cannot take it out of the balancer."""
    added = EngineFailed("It is broken.") if broken else FakeEngine()
    with Plane({ONE: FakeEngine(), ("n", 1): added}) as plane:
        await plane.serve(snapshot_of())
        plane.gates["n", 1] = threading.Event()
        plane.apply(snapshot_of(2, models={"m": model_of(1), "n": model_of(1)}))
        assert plane.worker.ready
        if broken:
            plane.gates["n", 1].set()
            await plane.settled()
        assert plane.worker.ready
        with pytest.raises(NotReady):
            plane.pipeline.find("n")


async def test_nothing_is_ready_before_a_snapshot_was_read() -> None:
    """An empty start is not ready, and does not know yet which endpoints there are."""
    with Plane({}) as plane:
        assert not plane.worker.ready
        with pytest.raises(NotReady):
            plane.pipeline.find("m")


async def test_an_endpoint_that_left_the_snapshot_is_gone() -> None:
    """What is no longer configured is not found, at once, and its version is let go."""
    with Plane({ONE: FakeEngine(), ("n", 1): FakeEngine()}) as plane:
        await plane.serve(snapshot_of(1, models={"m": model_of(1), "n": model_of(1)}))
        plane.apply(snapshot_of(2))
        with pytest.raises(NotFound):
            plane.pipeline.find("n")
        await plane.settled()
        assert plane.states() == {ONE: "ready"}


async def test_versions_of_a_plan_that_lags_are_held() -> None:
    """A version that the newest Snapshot does not name stays while a lagging endpoint serves it."""
    with Plane(
        {ONE: FakeEngine(), TWO: EngineFailed("It is broken."), THREE: FakeEngine()}
    ) as plane:
        before = {"e": endpoint_of(default=Target(version=3))}
        after = {"e": endpoint_of(default=Target(version=2))}
        models = {"m": model_of(1, 2, 3)}
        await plane.serve(snapshot_of(1, models=models, endpoints=before))
        await plane.serve(snapshot_of(2, models=models, endpoints=after))
        assert await version_of(plane, "e") == (1, 3)
        await plane.serve(snapshot_of(3, models=models))
        assert plane.states() == {ONE: "ready"}


async def test_what_may_be_pinned_follows_the_snapshot_while_the_endpoint_lags() -> None:
    """A version loaded by hand can be called, and one let go cannot, whatever holds the plan up."""
    with Plane(
        {ONE: FakeEngine(), TWO: EngineFailed("It is broken."), THREE: FakeEngine()}
    ) as plane:
        await plane.serve(snapshot_of(1, models={"m": model_of(1, 2, 3)}))
        lagging = model_of(1, 2, 3, champion=2, previous={"champion": (1,)}, loaded=(3,))
        await plane.serve(snapshot_of(2, models={"m": lagging}))
        answer = await plane.ask(plane.call(1.0, version=3))
        assert answer.error is None
        assert answer.reason is Reason.PINNED
        with pytest.raises(NotReady):
            plane.pipeline.find("m", 2)
        unloaded = model_of(1, 2, 3, champion=2, previous={"champion": (1,)})
        await plane.serve(snapshot_of(3, models={"m": unloaded}))
        with pytest.raises(NotFound):
            plane.pipeline.find("m", 3)


async def test_a_rule_that_names_a_version_has_it_loaded() -> None:
    """A candidate in a rule is loaded before any request is sent to it."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine(bias=200)}) as plane:
        models = {"m": model_of(1, 2)}
        await plane.serve(snapshot_of(1, models=models, endpoints={"e": endpoint_of()}))
        plane.gates[TWO] = threading.Event()
        plane.apply(snapshot_of(2, models=models, endpoints={"e": endpoint_of(serve_rule(2))}))
        assert await version_of(plane, "e") == (1, 1)
        plane.gates[TWO].set()
        await plane.settled()
        assert await version_of(plane, "e") == (2, 2)
