import asyncio
import json
import logging
import threading
from typing import Any

import pytest

from gateway.core.compare import Tolerance
from gateway.core.endpoints import Recording, Shadow
from gateway.core.errors import EngineFailed, InvalidRequest
from gateway.core.snapshot import Snapshot
from gateway.core.tensors import Array
from gateway.ports import Engine
from gateway.serving.calls import Answer
from gateway.serving.threads import Threads
from gateway.settings import ShadowSettings
from gateway.telemetry import SHADOW_COMPARED, SHADOW_DISAGREED, SHADOW_SKIPPED
from tests.fakes import FailingEngine, FakeEngine, SlowEngine
from tests.planes import Plane, endpoint_of, model_of, serve_rule, snapshot_of, until

ONE, TWO = ("m", 1), ("m", 2)


def shadowed(
    share: int = 10_000, recording: Recording | None = None, tolerance: Tolerance | None = None
) -> Snapshot:
    """A Snapshot whose endpoint `e` serves version 1 and shadows it with version 2."""
    shadow = Shadow("dark", share, version=2, tolerance=tolerance or Tolerance())
    endpoint = endpoint_of(shadows=(shadow,), recording=recording or Recording())
    return snapshot_of(models={"m": model_of(1, 2)}, endpoints={"e": endpoint})


def plane_of(shadow: Engine, **settings: int) -> Plane:
    """A plane whose version 2 is this engine."""
    return Plane({ONE: FakeEngine(), TWO: shadow}, shadows=ShadowSettings(**settings))


def report_of(plane: Plane) -> dict[str, Any]:
    """What the one shadow of the endpoint found."""
    (report,) = plane.worker.shadow_report("e")
    return report


def tally_of(plane: Plane) -> tuple[int, int, int]:
    """Compared, agreed and failed copies; all 0 while nothing was offered."""
    reports = plane.worker.shadow_report("e")
    tally = reports[0]["tally"] if reports else {}
    return tally.get("compared", 0), tally.get("agreed", 0), tally.get("errors", 0)


async def test_a_copy_is_run_and_compared() -> None:
    """An answered request is run by the shadow too, and the answers are held together."""
    engine = FakeEngine()
    with plane_of(engine) as plane:
        await plane.serve(shadowed())
        engine.runs.clear()
        answer = await plane.ask(plane.call(3.0), "e")
        assert answer.variant is not None
        assert answer.variant.version == 1
        await until(lambda: tally_of(plane) == (1, 1, 0))
        assert [float(rows[0, 0]) for rows in engine.runs] == [3.0]
        assert plane.count(SHADOW_COMPARED, variant="dark") == 1
        assert plane.count(SHADOW_DISAGREED) == 0


async def test_a_disagreement_is_counted_and_the_worst_are_kept() -> None:
    """Answers beyond the tolerance are counted; the worst few samples stay, worst first."""

    class Drifting(FakeEngine):
        def run(self, tensors: Any, outputs: Any) -> list[Array]:
            (sums,) = super().run(tensors, outputs)
            return [sums * 2]

    with plane_of(Drifting(), samples=2) as plane:
        await plane.serve(shadowed())
        for value in (5.0, 1.0, 9.0, 7.0):
            await plane.ask(plane.call(value), "e")
        await until(lambda: tally_of(plane) == (4, 0, 0))
        assert plane.count(SHADOW_DISAGREED, variant="dark") == 4
        differences = [worst["comparison"]["max_absolute"] for worst in report_of(plane)["worst"]]
        assert differences == [9.0, 7.0]


@pytest.mark.parametrize(
    ("recording", "kept"),
    [
        pytest.param(Recording(), [False, False, False], id="nothing"),
        pytest.param(Recording(inputs=True), [True, False, False], id="inputs"),
        pytest.param(Recording(outputs=True), [False, True, True], id="outputs"),
    ],
)
async def test_a_sample_holds_what_the_endpoint_lets_be_kept(
    recording: Recording, kept: list[bool]
) -> None:
    """Inputs and outputs stand in a sample only where their recording was asked for."""
    with plane_of(FakeEngine(bias=1)) as plane:
        await plane.serve(shadowed(recording=recording))
        await plane.ask(plane.call(3.0), "e")
        await until(lambda: tally_of(plane)[0] == 1)
        (worst,) = report_of(plane)["worst"]
        texts = [worst["inputs"], worst["primary"], worst["shadow"]]
        assert [text is not None for text in texts] == kept
        assert all(json.loads(text)["tensors"] for text in texts if text)


async def test_a_share_of_requests_is_copied() -> None:
    """Without a share nothing is copied, and that is no skip."""
    with plane_of(FakeEngine()) as plane:
        await plane.serve(shadowed(share=0))
        for value in range(20):
            await plane.ask(plane.call(float(value)), "e")
        assert plane.worker.shadow_report("e") == []
        assert plane.leases() == {ONE: 0, TWO: 0}


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(EngineFailed("It failed."), id="engine"),
        pytest.param(InvalidRequest("Not UTF-8."), id="input"),
        pytest.param(RuntimeError("boom"), id="unforeseen"),
    ],
)
async def test_a_failing_shadow_fails_nobody(error: Exception) -> None:
    """Whatever a shadow raises is counted, and it goes on with the next copy."""
    engine = FailingEngine(error)
    with plane_of(engine) as plane:
        await plane.serve(shadowed())
        for value in (engine.poison, 1.0):
            assert (await plane.ask(plane.call(value), "e")).error is None
        await until(lambda: tally_of(plane) == (1, 1, 1))
        assert plane.leases() == {ONE: 0, TWO: 0}
        assert plane.count(SHADOW_COMPARED) == 1


async def test_a_shadow_that_answers_in_another_form_stops_nothing() -> None:
    """Too few outputs, or outputs that cannot be compared, cost one copy."""

    class Odd(FakeEngine):
        def run(self, tensors: Any, outputs: Any) -> list[Array]:
            results = super().run(tensors, outputs)
            return [] if float(tensors["x"][0, 0]) == 13.0 else results

    with plane_of(Odd()) as plane:
        await plane.serve(shadowed())
        for value in (13.0, 1.0):
            await plane.ask(plane.call(value), "e")
        await until(lambda: tally_of(plane) == (1, 1, 1))
        assert plane.leases() == {ONE: 0, TWO: 0}


async def test_a_hanging_shadow_delays_nobody_and_is_bounded() -> None:
    """While a shadow hangs, primaries are answered; its queue fills, and the rest is counted."""
    engine = SlowEngine()
    with plane_of(engine, max_queued=2) as plane:
        await plane.serve(shadowed())
        engine.hold()
        await plane.ask(plane.call(0.0), "e")
        await until(engine.entered.is_set)
        for value in range(5):
            assert (await plane.ask(plane.call(float(value)), "e")).error is None
        assert report_of(plane)["skipped"] == {"queue_full": 3}
        assert plane.count(SHADOW_SKIPPED, variant="dark", reason="queue_full") == 3
        assert plane.leases() == {ONE: 0, TWO: 3}
        engine.release()
        await until(lambda: tally_of(plane) == (3, 3, 0))
        assert plane.leases() == {ONE: 0, TWO: 0}


def both_shadowed() -> Snapshot:
    """A Snapshot whose endpoint `e` is shadowed by version 2, `dark`, and version 3, `dim`."""
    shadows = (Shadow("dark", 10_000, version=2), Shadow("dim", 10_000, version=3))
    return snapshot_of(
        models={"m": model_of(1, 2, 3)}, endpoints={"e": endpoint_of(shadows=shadows)}
    )


async def test_a_shadow_that_hangs_keeps_no_other_waiting() -> None:
    """It is given up, what waits for it is dropped by reason, and the others have a new thread."""
    engine, other = SlowEngine(), FakeEngine()
    settings = ShadowSettings(max_wait_s=0.01)
    engines: dict[tuple[str, int], Engine] = {ONE: FakeEngine(), TWO: engine, ("m", 3): other}
    with Plane({**engines}, shadows=settings) as plane:
        await plane.serve(both_shadowed())
        engine.hold()
        other.runs.clear()
        await plane.ask(plane.call(1.0), "e")
        await until(engine.entered.is_set)
        await plane.ask(plane.call(2.0), "e")
        assert other.runs == []
        plane.clock.advance(0.02)
        await until(lambda: plane.count(SHADOW_SKIPPED, reason="hangs") == 1)
        await plane.ask(plane.call(3.0), "e")
        await until(lambda: len(other.runs) == 1)
        assert float(other.runs[0][0, 0]) == 3.0
        reports = {one["shadow"]: one for one in plane.worker.shadow_report("e")}
        assert reports["dark"]["skipped"] == {"hangs": 2}
        engine.release()
        await until(lambda: plane.leases()[TWO] == 0)
        reports = {one["shadow"]: one for one in plane.worker.shadow_report("e")}
        assert reports["dark"]["skipped"] == {"hangs": 2, "late": 1}


async def test_a_copy_that_waited_for_too_long_is_dropped() -> None:
    """What a slow shadow does not get to in time is counted, and nothing is tried twice."""
    engine = SlowEngine()
    with Plane({ONE: FakeEngine(), TWO: engine}, shadows=ShadowSettings(max_wait_s=5.0)) as plane:
        await plane.serve(shadowed())
        engine.hold()
        await plane.ask(plane.call(1.0), "e")
        await until(engine.entered.is_set)
        engine.runs.clear()
        await plane.ask(plane.call(2.0), "e")
        plane.clock.advance(6.0)
        engine.release()
        await until(lambda: report_of(plane)["skipped"] == {"late": 1})
        await until(lambda: plane.leases()[TWO] == 0)
        assert [float(rows[0, 0]) for rows in engine.runs] == [1.0]


async def test_a_process_that_is_not_calm_runs_no_shadow() -> None:
    """Whoever watches over admission decides whether there is room for shadows."""
    with plane_of(FakeEngine()) as plane:
        plane.shadows._calm = lambda: False
        await plane.serve(shadowed())
        await plane.ask(plane.call(1.0), "e")
        assert report_of(plane)["skipped"] == {"overload": 1}


async def test_a_busy_process_runs_no_shadow() -> None:
    """While many other primaries are in flight, copies are skipped and counted."""
    with plane_of(FakeEngine(), max_busy=2) as plane:
        await plane.serve(shadowed())
        asked = [plane.submit(plane.call(float(i)), "e") for i in range(5)]
        await until(lambda: all(asked))
        await until(lambda: tally_of(plane) == (2, 2, 0))
        assert report_of(plane)["skipped"] == {"overload": 3}


async def test_a_shadow_that_is_not_warm_is_skipped() -> None:
    """On a cold start with a broken shadow, requests are answered and the copies are counted."""
    engines: dict[tuple[str, int], Engine | Exception] = {ONE: FakeEngine()}
    with Plane({**engines, TWO: EngineFailed("It is broken.")}) as plane:
        await plane.serve(shadowed())
        assert (await plane.ask(plane.call(1.0), "e")).error is None
        assert report_of(plane)["skipped"] == {"not_ready": 1}


async def test_a_version_does_not_shadow_itself() -> None:
    """Where a rule sends the request to the shadow's own version there is nothing to compare."""
    with plane_of(FakeEngine()) as plane:
        shadow = Shadow("dark", 10_000, version=2)
        endpoints = {"e": endpoint_of(serve_rule(2), shadows=(shadow,))}
        await plane.serve(snapshot_of(models={"m": model_of(1, 2)}, endpoints=endpoints))
        await plane.ask(plane.call(1.0), "e")
        assert report_of(plane)["skipped"] == {"same_version": 1}


async def test_a_failed_primary_is_not_copied() -> None:
    """There is nothing to compare with an error."""
    engine = FailingEngine()
    with Plane({ONE: engine, TWO: FakeEngine()}) as plane:
        await plane.serve(shadowed())
        await plane.ask(plane.call(engine.poison), "e")
        assert plane.worker.shadow_report("e") == []


async def test_a_shadow_leaves_a_record_of_its_own() -> None:
    """The record of a copy is marked, and points to the primary prediction."""
    with plane_of(FakeEngine()) as plane:
        await plane.serve(shadowed(share=10_000))
        answer = await plane.ask(plane.call(1.0), "e")
        await until(lambda: len(plane.recorder.shown) == 2)
        primary, copy = plane.recorder.drain()
        assert (primary.kind.shadow, copy.kind.shadow) == (False, True)
        assert (copy.kind.version, copy.kind.variant, copy.error_type) == (2, "dark", None)
        assert copy.primary_id == primary.prediction_id == answer.prediction_id


async def test_a_shadow_that_is_removed_lets_its_version_go() -> None:
    """Once its copies are run, a version that only a shadow used is closed."""
    engine = SlowEngine()
    with plane_of(engine) as plane:
        await plane.serve(shadowed())
        engine.hold()
        await plane.ask(plane.call(1.0), "e")
        await until(engine.entered.is_set)
        plane.apply(snapshot_of(2, models={"m": model_of(1, 2)}))
        assert plane.states() == {ONE: "ready", TWO: "draining"}
        engine.release()
        await plane.settled()
        assert plane.states() == {ONE: "ready"}


async def test_closing_runs_no_further_copy() -> None:
    """At a stop the copies that wait are dropped; only the run under way is waited for."""
    engine = SlowEngine()
    with plane_of(engine) as plane:
        await plane.serve(shadowed())
        engine.hold()
        for value in range(4):
            await plane.ask(plane.call(float(value)), "e")
        await until(engine.entered.is_set)
        before = len(engine.runs)
        closing = asyncio.create_task(asyncio.to_thread(plane.shadows.close))
        await until(lambda: plane.leases()[TWO] < 4 or closing.done())
        engine.release()
        await closing
        await until(lambda: plane.leases()[TWO] == 0)
        assert len(engine.runs) == before + 1


async def test_after_closing_a_primary_is_answered_and_its_copy_skipped() -> None:
    """A copy that comes too late is counted; it fails no answer."""
    with plane_of(FakeEngine()) as plane:
        await plane.serve(shadowed())
        await asyncio.to_thread(plane.shadows.close)
        answer = await plane.ask(plane.call(1.0), "e")
        assert answer.error is None
        assert report_of(plane)["skipped"] == {"shutdown": 1}


async def test_a_fault_in_offering_a_copy_fails_no_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong on the shadow's side, the caller has their answer."""

    def broken(*_: object) -> None:
        raise RuntimeError("no thread")

    with plane_of(FakeEngine()) as plane:
        await plane.serve(shadowed())
        monkeypatch.setattr(Threads, "ask", broken)
        with caplog.at_level(logging.ERROR):
            answer: Answer = await plane.ask(plane.call(1.0), "e")
        assert answer.error is None
        assert "incomplete traces" in caplog.text


async def test_shadows_run_in_one_thread_of_their_own() -> None:
    """A copy runs neither on the loop nor in a thread that primaries use."""
    names: set[str] = set()

    class Named(FakeEngine):
        def run(self, tensors: Any, outputs: Any) -> list[Array]:
            names.add(threading.current_thread().name)
            return super().run(tensors, outputs)

    with plane_of(Named()) as plane:
        await plane.serve(shadowed())
        names.clear()
        for value in range(3):
            await plane.ask(plane.call(float(value)), "e")
        await until(lambda: tally_of(plane)[0] == 3)
        assert names == {"tiltyard-shadow_0"}
