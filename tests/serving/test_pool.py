import asyncio
import threading
from collections.abc import Sequence

import pytest

from gateway.core.errors import EngineFailed, NotReady
from gateway.core.tensors import Array, Tensors
from gateway.serving.pool import State
from gateway.settings import PoolSettings
from gateway.telemetry import MODEL_LOAD_DURATION
from tests.fakes import FakeEngine, SlowEngine
from tests.planes import INLINE, THREADED, Plane, model_of, snapshot_of, until

ONE, TWO = ("m", 1), ("m", 2)
BOTH = snapshot_of(1, models={"m": model_of(1, 2, loaded=(2,))})
FIRST = snapshot_of(2, models={"m": model_of(1, 2)})


async def test_a_named_version_is_loaded_and_ready() -> None:
    """What the Snapshot names is loaded once and then gives out leases."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        plane.apply(snapshot_of(2))
        assert (plane.states(), plane.loads) == ({ONE: "ready"}, [ONE])


async def test_states_are_passed_in_order() -> None:
    """A version is loading, then warming, then ready."""
    engine = SlowEngine()
    engine.hold()
    with Plane({ONE: engine}) as plane:
        plane.gates[ONE] = threading.Event()
        plane.apply(snapshot_of())
        assert plane.states() == {ONE: "loading"}
        plane.gates[ONE].set()
        await until(lambda: plane.states() == {ONE: "warming"})
        engine.release()
        await until(lambda: plane.states() == {ONE: "ready"})


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(EngineFailed("The file is broken."), "The file is broken.", id="foreseen"),
        pytest.param(OSError("/secret/path"), "Loading failed unexpectedly.", id="unforeseen"),
    ],
)
async def test_a_version_that_cannot_be_loaded_says_why(error: Exception, reason: str) -> None:
    """A failed load is a state with a sentence, which holds nothing that nobody foresaw."""
    with Plane({ONE: error}) as plane:
        await plane.serve(snapshot_of())
        loaded = plane.worker.pool.get(ONE)
        assert loaded is not None
        assert (loaded.state, loaded.reason) == (State.FAILED, reason)
        with pytest.raises(NotReady):
            loaded.acquire()


async def test_a_failed_version_is_forgotten_once_nothing_names_it() -> None:
    """A failed version goes at once, and is tried afresh when it is named again."""
    with Plane({ONE: FakeEngine(), TWO: EngineFailed("It is broken.")}) as plane:
        await plane.serve(BOTH)
        assert plane.states() == {ONE: "ready", TWO: "failed"}
        plane.apply(FIRST)
        assert plane.states() == {ONE: "ready"}
        plane.engines[TWO] = FakeEngine()
        await plane.serve(BOTH)
        assert plane.states() == {ONE: "ready", TWO: "ready"}


async def test_versions_that_nothing_names_are_all_closed() -> None:
    """Several versions that are let go together are each closed, and their memory trimmed."""
    engines = {("m", n): FakeEngine() for n in range(1, 5)}
    with Plane(engines) as plane:
        await plane.serve(snapshot_of(models={"m": model_of(1, 2, 3, 4, loaded=(2, 3, 4))}))
        await plane.serve(snapshot_of(2, models={"m": model_of(1, 2, 3, 4)}))
        await until(lambda: plane.trims == 3)
        assert plane.states() == {ONE: "ready"}


async def test_a_version_drains_until_its_last_lease_is_back() -> None:
    """What is in flight or queued on a version that is let go is answered by it."""
    engine = SlowEngine(bias=200)
    with Plane({ONE: FakeEngine(), TWO: engine}, pool=THREADED) as plane:
        await plane.serve(BOTH)
        engine.hold()
        running = plane.submit(plane.call(1.0, version=2))
        await until(engine.entered.is_set)
        queued = plane.submit(plane.call(2.0, version=2))
        plane.apply(FIRST)
        await asyncio.sleep(0)
        assert plane.states() == {ONE: "ready", TWO: "draining"}
        engine.release()
        await plane.settled()
        assert [float(answer.outputs["y"][0, 0]) for answer in running + queued] == [201.0, 202.0]
        assert plane.states() == {ONE: "ready"}


async def test_draining_ends_at_its_deadline_and_loses_nothing() -> None:
    """After the deadline a version is closed; what it still runs is answered all the same."""
    engine = SlowEngine(bias=200)
    settings = PoolSettings(inline_ms=-1.0, executor_threads=1, drain_s=5.0)
    with Plane({ONE: FakeEngine(), TWO: engine}, pool=settings) as plane:
        await plane.serve(BOTH)
        engine.hold()
        running = plane.submit(plane.call(1.0, version=2))
        await until(engine.entered.is_set)
        queued = plane.submit(plane.call(2.0, version=2))
        plane.apply(FIRST)
        plane.clock.advance(6.0)
        await plane.settled()
        assert plane.states() == {ONE: "ready"}
        engine.release()
        await until(lambda: bool(queued))
        assert [float(answer.outputs["y"][0, 0]) for answer in running + queued] == [201.0, 202.0]


async def test_a_version_named_again_while_it_drains_is_ready_at_once() -> None:
    """Coming back needs no load: the version that still drains takes its place again."""
    engine = SlowEngine()
    with Plane({ONE: FakeEngine(), TWO: engine}, pool=THREADED) as plane:
        await plane.serve(BOTH)
        engine.hold()
        answers = plane.submit(plane.call(1.0, version=2))
        await until(engine.entered.is_set)
        plane.apply(FIRST)
        plane.apply(snapshot_of(3, models=BOTH.models))
        assert plane.states() == {ONE: "ready", TWO: "ready"}
        assert plane.loads == [ONE, TWO]
        engine.release()
        await until(lambda: bool(answers))
        await asyncio.sleep(0.06)  # longer than a draining version is looked at
        assert plane.states() == {ONE: "ready", TWO: "ready"}
        assert (await plane.ask(plane.call(3.0, version=2))).error is None


async def test_a_version_let_go_while_it_loads_is_closed_when_it_is_ready() -> None:
    """A load is not interrupted, and what nobody wants any more does not stay."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        plane.gates[TWO] = threading.Event()
        plane.apply(BOTH)
        await until(lambda: plane.loads == [ONE, TWO])
        plane.apply(FIRST)
        assert plane.states() == {ONE: "ready", TWO: "loading"}
        plane.gates[TWO].set()
        await until(lambda: plane.states() == {ONE: "ready"})


async def test_a_version_let_go_and_named_again_while_it_loads_is_loaded_once() -> None:
    """A change of mind during a load costs nothing."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        plane.gates[TWO] = threading.Event()
        plane.apply(BOTH)
        plane.apply(FIRST)
        plane.apply(snapshot_of(3, models=BOTH.models))
        plane.gates[TWO].set()
        await plane.settled()
        assert plane.states() == {ONE: "ready", TWO: "ready"}
        assert sorted(plane.loads) == [ONE, TWO]


class MeanEngine(FakeEngine):
    """Answers each row with the mean of all rows: rows depend on each other."""

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        (sums,) = super().run(tensors, outputs)
        return [sums * 0 + sums.mean()]


async def test_a_version_whose_rows_depend_on_each_other_runs_each_request_alone() -> None:
    """What warming finds decides whether requests share a run."""
    engine = MeanEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(snapshot_of())
        engine.runs.clear()
        answers = [plane.submit(plane.call(value)) for value in (2.0, 4.0)]
        await until(lambda: all(answers))
        assert [float(got.outputs["y"][0, 0]) for (got,) in answers] == [2.0, 4.0]
        assert [len(rows) for rows in engine.runs] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "on_loop"),
    [pytest.param(INLINE, True, id="fast"), pytest.param(THREADED, False, id="slow")],
)
async def test_only_fast_versions_run_on_the_event_loop(
    settings: PoolSettings, on_loop: bool
) -> None:
    """A version runs on the loop if its warm run took no longer than allowed, else in a thread."""
    threads: list[bool] = []

    class Watching(FakeEngine):
        def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
            threads.append(threading.current_thread() is threading.main_thread())
            return super().run(tensors, outputs)

    with Plane({ONE: Watching()}, pool=settings) as plane:
        await plane.serve(snapshot_of())
        threads.clear()
        await plane.ask(plane.call(1.0))
        assert threads == [on_loop]


async def test_the_time_of_a_load_is_measured_with_its_result() -> None:
    """A histogram says how long versions took to load, and whether they were then served."""
    with Plane({ONE: FakeEngine(), TWO: EngineFailed("It is broken.")}) as plane:
        await plane.serve(BOTH)
        await until(lambda: len(results(plane)) == 2)
        assert results(plane) == {(1, "ready"), (2, "failed")}


def results(plane: Plane) -> set[tuple[object, object]]:
    """Version and result of each load that was measured."""
    return {
        (labels["tiltyard.model.version"], labels["tiltyard.result"])
        for labels in (
            dict(series.attributes)
            for series in plane.cells.collect()
            if series.instrument is MODEL_LOAD_DURATION
        )
    }
