import asyncio
import gc
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gateway.core.assignment import Reason
from gateway.core.endpoints import Split, Weighted
from gateway.core.errors import (
    DeadlineExceeded,
    EngineFailed,
    GatewayError,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
)
from gateway.core.snapshot import Snapshot
from gateway.core.tensors import Array, Signature, Tensors, TensorSpec
from gateway.ports import Engine
from gateway.serving.calls import Answer, Call
from gateway.settings import BatchSettings, PoolSettings
from tests.fakes import FailingEngine, FakeEngine, SlowEngine
from tests.planes import (
    THREADED,
    Plane,
    endpoint_of,
    model_of,
    rows_of,
    serve_rule,
    snapshot_of,
    split_rule,
    until,
)

ONE, TWO = ("m", 1), ("m", 2)
MODELS = {"m": model_of(1, 2)}
HALVES = Split(
    exposure=10_000,
    variants=(Weighted("old", 5_000, version=1), Weighted("new", 5_000, version=2)),
)


def candidate(on_error: str = "error", revision: int = 1) -> Snapshot:
    """A Snapshot whose endpoint `e` sends every request to version 2."""
    endpoints = {"e": endpoint_of(serve_rule(2, on_error=on_error))}
    return snapshot_of(revision, models=MODELS, endpoints=endpoints)


def value_of(answer: Answer) -> float:
    """The one number of an answer."""
    assert answer.error is None, answer.error
    return float(answer.outputs["y"][0, 0])


async def test_an_answer_says_who_gave_it() -> None:
    """Version, variant, reason and revision come with the outputs, and an id that was signed."""
    with Plane({ONE: FakeEngine(bias=100)}) as plane:
        await plane.serve(snapshot_of(7))
        answer = await plane.ask(plane.call(5.0))
        assert value_of(answer) == 105.0
        assert answer.variant is not None
        assert (answer.variant.name, answer.variant.version) == ("default", 1)
        assert (answer.reason, answer.revision) == (Reason.STATIC, 7)
        assert answer.prediction_id is not None
        assert plane.worker.signer is not None
        facts = plane.worker.signer.read(answer.prediction_id)
        assert (facts.endpoint, facts.version, facts.revision) == ("m", 1, 7)


async def test_requests_of_two_versions_never_share_a_run() -> None:
    """Under a split every answer is that of the version it names, in full."""
    engines = {ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}
    with Plane(engines) as plane:
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        await plane.serve(snapshot_of(models=MODELS, endpoints=endpoints))
        asked = [plane.submit(plane.call(float(i), unit=f"u{i}"), "e") for i in range(60)]
        await until(lambda: all(asked))
        versions = set()
        for i, (answer,) in enumerate(asked):
            assert answer.variant is not None
            versions.add(answer.variant.version)
            assert value_of(answer) == 100.0 * answer.variant.version + i
        assert versions == {1, 2}


async def test_a_unit_keeps_its_variant() -> None:
    """The same unit gets the same variant for every request."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        await plane.serve(snapshot_of(models=MODELS, endpoints=endpoints))
        got = [await plane.ask(plane.call(1.0, unit="u1"), "e") for _ in range(5)]
        assert len({answer.variant for answer in got}) == 1


async def test_a_request_in_flight_keeps_what_it_read() -> None:
    """A promotion during a run changes nothing for the request that runs."""
    engine = SlowEngine(bias=100)
    two_slots = PoolSettings(inline_ms=-1.0, executor_threads=2)
    with Plane({ONE: engine, TWO: FakeEngine(bias=200)}, pool=two_slots) as plane:
        await plane.serve(snapshot_of(1, models={"m": model_of(1, 2, loaded=(2,))}))
        engine.hold()
        answers = plane.submit(plane.call(1.0))
        await until(engine.entered.is_set)
        plane.apply(snapshot_of(2, models={"m": model_of(1, 2, champion=2)}))
        assert value_of(await plane.ask(plane.call(1.0))) == 201.0
        engine.release()
        await until(lambda: bool(answers))
        assert (value_of(answers[0]), answers[0].revision) == (101.0, 1)


async def test_swaps_under_load_lose_no_request_and_mix_no_version() -> None:
    """While the champion moves back and forth, every request is answered by exactly one version."""
    engines = {ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}
    with Plane(engines, pool=THREADED) as plane:
        answers: list[list[Answer]] = []
        await plane.serve(snapshot_of(1, models={"m": model_of(1, 2)}))
        for turn in range(2, 42):
            champion, before = (2, 1) if turn % 2 == 0 else (1, 2)
            model = model_of(1, 2, champion=champion, previous={"champion": (before,)})
            plane.apply(snapshot_of(turn, models={"m": model}))
            answers += [plane.submit(plane.call(float(i))) for i in range(10)]
            await asyncio.sleep(0)
        await until(lambda: all(answers))
        for place, (answer,) in enumerate(answers):
            assert answer.variant is not None
            assert value_of(answer) == 100.0 * answer.variant.version + place % 10
        assert set(plane.leases().values()) == {0}
        assert plane.pipeline.in_flight == 0


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        pytest.param({}, InvalidRequest, id="missing"),
        pytest.param({"x": rows_of(1.0), "z": rows_of(1.0)}, InvalidRequest, id="surplus"),
        pytest.param({"x": rows_of(1.0)[:, :3]}, InvalidRequest, id="extent"),
        pytest.param({"x": rows_of(1.0).astype(np.float64)}, InvalidRequest, id="datatype"),
        pytest.param({"x": rows_of(*[1.0] * 9)}, TooLarge, id="rows"),
    ],
)
async def test_a_bad_request_is_refused_before_any_engine(
    tensors: dict[str, Array], error: type[GatewayError]
) -> None:
    """What does not suit the signature costs no run and no lease."""
    engine = FakeEngine()
    with Plane({ONE: engine}, max_request_rows=8) as plane:
        await plane.serve(snapshot_of())
        engine.runs.clear()
        answer = await plane.ask(plane.call(tensors=tensors))
        assert type(answer.error) is error
        assert engine.runs == []
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 0}, 0)


async def test_an_output_that_is_not_there_is_refused() -> None:
    """Asking for an unknown output is the caller's fault and costs no run."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        answer = await plane.ask(plane.call(1.0, outputs=["nope"]))
        assert isinstance(answer.error, InvalidRequest)


async def test_nan_is_refused_unless_the_model_allows_it() -> None:
    """A request that holds NaN is refused by default."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        call = plane.call(1.0)
        call.request.nonfinite = True
        answer = await plane.ask(call)
        assert isinstance(answer.error, InvalidRequest)
        assert "NaN" in str(answer.error)


async def test_a_unit_that_is_too_long_is_refused() -> None:
    """A decision that cannot be made is answered, and nothing stays in flight."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        await plane.serve(snapshot_of(models=MODELS, endpoints=endpoints))
        answer = await plane.ask(plane.call(1.0, unit="u" * 1_025), "e")
        assert isinstance(answer.error, InvalidRequest)
        assert plane.pipeline.in_flight == 0


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(EngineFailed("It failed."), id="engine"),
        pytest.param(RuntimeError("/secret/path"), id="unforeseen"),
    ],
)
async def test_a_failed_run_is_answered_once_and_gives_its_lease_back(error: Exception) -> None:
    """The model's failure reaches its caller, with the version that failed."""
    engine = FailingEngine(error)
    with Plane({ONE: engine}) as plane:
        await plane.serve(snapshot_of())
        answer = await plane.ask(plane.call(engine.poison))
        assert isinstance(answer.error, EngineFailed)
        assert "secret" not in str(answer.error)
        assert answer.variant is not None
        assert answer.variant.version == 1
        assert answer.prediction_id is not None
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 0}, 0)


async def test_a_full_queue_is_answered_once_and_gives_its_lease_back() -> None:
    """A refusal after the lease was taken leaks none."""
    engine = SlowEngine()
    with Plane({ONE: engine}, pool=THREADED, batching=BatchSettings(max_queued_rows=1)) as plane:
        await plane.serve(snapshot_of())
        engine.hold()
        running = plane.submit(plane.call(1.0))
        await until(engine.entered.is_set)
        queued = plane.submit(plane.call(2.0))
        refused = plane.submit(plane.call(3.0))
        assert [type(answer.error) for answer in refused] == [Overloaded]
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 2}, 2)
        engine.release()
        await until(lambda: bool(queued))
        assert [value_of(answer) for answer in running + queued] == [1.0, 2.0]
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 0}, 0)


async def test_a_deadline_is_counted_from_arrival_in_microseconds() -> None:
    """Work whose `timeout` ran out before its run is answered unrun."""
    engine = FakeEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(snapshot_of())
        engine.runs.clear()
        hasty, patient = plane.call(1.0, timeout_us=999), plane.call(2.0, timeout_us=1_000)
        plane.clock.at_ns += 1_000_000
        asked = [plane.submit(hasty), plane.submit(patient)]
        await until(lambda: all(asked))
        assert isinstance(asked[0][0].error, DeadlineExceeded)
        assert value_of(asked[1][0]) == 2.0
        assert [len(rows) for rows in engine.runs] == [1]
        assert plane.leases() == {ONE: 0}


async def test_a_reply_that_raises_harms_nobody_else() -> None:
    """An error in one door's reply leaves leases, counts and batch-mates alone."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        told: list[Answer] = []

        def broken(answer: Answer) -> None:
            answer.settle()
            told.append(answer)
            raise RuntimeError("this door is broken")

        plane.pipeline.submit(plane.pipeline.find("m"), plane.call(1.0), broken)
        mate = plane.submit(plane.call(2.0))
        await until(lambda: bool(mate))
        assert ([value_of(answer) for answer in told], value_of(mate[0])) == ([1.0], 2.0)
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 0}, 0)


# Fallback


async def test_a_failed_variant_falls_back_when_its_rule_says_so() -> None:
    """The default answers in place of a variant that failed, and says that it did."""
    engine = FailingEngine(bias=200)
    with Plane({ONE: FakeEngine(bias=100), TWO: engine}) as plane:
        await plane.serve(candidate("fallback"))
        healthy = await plane.ask(plane.call(1.0), "e")
        fallen = await plane.ask(plane.call(engine.poison), "e")
        assert (value_of(healthy), value_of(fallen)) == (201.0, 766.0)
        assert fallen.variant is not None
        assert (fallen.variant.version, fallen.reason) == (1, Reason.FALLBACK)
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 0, TWO: 0}, 0)


async def test_a_fallback_remembers_whom_it_stands_in_for() -> None:
    """The prediction id of a fallback names the variant that was intended, with its draw."""
    engine = FailingEngine()
    with Plane({ONE: FakeEngine(), TWO: engine}) as plane:
        await plane.serve(candidate("fallback"))
        healthy = await plane.ask(plane.call(1.0), "e")
        fallen = await plane.ask(plane.call(engine.poison), "e")
        signer = plane.worker.signer
        assert signer is not None
        before, after = (signer.read(answer.prediction_id or "") for answer in (healthy, fallen))
        assert (before.intended, after.intended) == ("", before.variant)
        assert (after.variant, after.rule) == ("default", before.rule)
        assert after.propensity == before.propensity


async def test_a_failure_that_fell_back_is_one_of_its_version() -> None:
    """Statistics do not hide a failure because the caller was answered by another version."""
    engine = FailingEngine()
    with Plane({ONE: FakeEngine(), TWO: engine}) as plane:
        await plane.serve(candidate("fallback"))
        await plane.ask(plane.call(engine.poison), "e")
        counts = {
            row["version"]: (
                row["inference_stats"]["success"]["count"],
                row["inference_stats"]["fail"]["count"],
            )
            for row in plane.worker.statistics("m", None)
        }
        assert counts == {"1": (1, 0), "2": (0, 1)}


async def test_without_fallback_a_failure_is_the_answer() -> None:
    """A rule that says nothing of errors lets them through."""
    engine = FailingEngine()
    with Plane({ONE: FakeEngine(), TWO: engine}) as plane:
        await plane.serve(candidate())
        answer = await plane.ask(plane.call(engine.poison), "e")
        assert isinstance(answer.error, EngineFailed)
        assert answer.variant is not None
        assert answer.variant.version == 2


async def test_a_variant_that_is_not_there_falls_back() -> None:
    """On a cold start with a broken variant its share is answered by the default."""
    engines: dict[tuple[str, int], Engine | Exception] = {
        ONE: FakeEngine(bias=100),
        TWO: EngineFailed("It is broken."),
    }
    with Plane(engines) as plane:
        await plane.serve(candidate("fallback"))
        answer = await plane.ask(plane.call(1.0), "e")
        assert (value_of(answer), answer.reason) == (101.0, Reason.FALLBACK)


async def test_falling_back_twice_is_not_possible() -> None:
    """When the default fails too, the caller is told once, and of the default."""
    first, second = FailingEngine(), FailingEngine()
    with Plane({ONE: first, TWO: second}) as plane:
        await plane.serve(candidate("fallback"))
        answer = await plane.ask(plane.call(first.poison), "e")
        assert isinstance(answer.error, EngineFailed)
        assert answer.reason is Reason.FALLBACK
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 0, TWO: 0}, 0)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        pytest.param({"tensors": {}}, InvalidRequest, id="request"),
        pytest.param({"timeout_us": 1}, DeadlineExceeded, id="deadline"),
    ],
)
async def test_the_callers_own_fault_does_not_fall_back(
    call: dict[str, object], error: type[GatewayError]
) -> None:
    """Neither a bad request nor a spent deadline is tried with another version."""
    engine = FakeEngine()
    with Plane({ONE: engine, TWO: FakeEngine()}) as plane:
        await plane.serve(candidate("fallback"))
        engine.runs.clear()
        made = plane.call(1.0, **call)  # type: ignore[arg-type]
        plane.clock.advance(1.0)
        answer = await plane.ask(made, "e")
        assert type(answer.error) is error
        assert engine.runs == []


# Pinned and forced


async def test_a_pinned_call_is_answered_by_its_version() -> None:
    """A version in the path is served if the Snapshot names it, whatever the rules say."""
    with Plane({ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}) as plane:
        await plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        answer = await plane.ask(plane.call(1.0, version=2))
        assert (value_of(answer), answer.reason) == (201.0, Reason.PINNED)


async def test_a_version_that_the_snapshot_does_not_name_is_not_found() -> None:
    """A registered version that nothing names cannot be called."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(snapshot_of(models=MODELS))
        with pytest.raises(NotFound, match="serves no version 2"):
            plane.pipeline.find("m", 2)


async def test_a_version_that_is_named_and_broken_is_not_ready() -> None:
    """A named version that is not warm is known, and cannot be called."""
    engines: dict[tuple[str, int], Engine | Exception] = {ONE: FakeEngine()}
    with Plane({**engines, TWO: EngineFailed("It is broken.")}) as plane:
        await plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        with pytest.raises(NotReady, match="Version 2 of 'm' is not ready"):
            plane.pipeline.find("m", 2)


async def test_a_forced_variant_answers() -> None:
    """A caller who may names the variant; a name that is none is refused with those that are."""
    with Plane({ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}) as plane:
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        await plane.serve(snapshot_of(models=MODELS, endpoints=endpoints))
        answer = await plane.ask(plane.call(1.0, force="new"), "e")
        assert (value_of(answer), answer.reason) == (201.0, Reason.FORCED)
        refused = await plane.ask(plane.call(1.0, force="nope"), "e")
        assert isinstance(refused.error, InvalidRequest)
        assert "default, new, old" in str(refused.error)


async def test_nothing_is_found_before_there_are_keys() -> None:
    """Without signing keys no request is taken, because no answer could be signed."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        plane.worker.signer = None
        with pytest.raises(NotReady, match="starting"):
            plane.pipeline.find("m")
        assert not plane.worker.ready


UNBATCHED = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(2, 4)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(2, 1)),),
    batched=False,
)


async def test_requests_of_a_version_without_a_batch_dimension_run_one_by_one() -> None:
    """A fixed first dimension is no batch: each request is a run."""
    engine = FakeEngine(signature=UNBATCHED)
    with Plane({ONE: engine}) as plane:
        await plane.serve(snapshot_of())
        engine.runs.clear()
        asked = [plane.submit(plane.call(float(i), float(i))) for i in range(3)]
        await until(lambda: all(asked))
        assert [value_of(answer) for (answer,) in asked] == [0.0, 1.0, 2.0]
        assert [rows.shape for rows in engine.runs] == [(2, 4)] * 3


class Whole(FakeEngine):
    """Answers the same, whatever it is asked."""

    def __init__(self, signature: Signature, told: Array) -> None:
        super().__init__(signature=signature)
        self.told = told

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        return [self.told]


def telling(*shape: int, batched: bool) -> Signature:
    """A signature whose output has this shape."""
    return Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=shape),),
        batched=batched,
    )


@pytest.mark.parametrize(
    ("signature", "told"),
    [
        pytest.param(telling(-1, 2, batched=True), np.ones((3, 2), np.float32), id="many rows"),
        pytest.param(telling(-1, 2, batched=True), np.ones((0, 2), np.float32), id="no rows"),
        pytest.param(telling(2, 1, batched=False), np.ones((2, 1), np.float32), id="fixed"),
        pytest.param(telling(batched=False), np.float32(7).reshape(()), id="a number"),
    ],
)
async def test_an_output_that_has_no_rows_is_answered_whole(
    signature: Signature, told: Array
) -> None:
    """One row goes in; what comes out keeps its shape, whatever its first dimension."""
    with Plane({ONE: Whole(signature, told)}) as plane:
        await plane.serve(snapshot_of())
        for _ in range(2):
            answer = await plane.ask(plane.call(1.0))
            assert answer.error is None
            assert answer.outputs["y"].shape == told.shape
            assert np.array_equal(answer.outputs["y"], told)


class Asking:
    """A caller who holds what they may cancel, as doors do."""

    def __init__(self, plane: Plane, call: Call) -> None:
        self.answer: Answer | None = None
        self.flight = plane.pipeline.submit(plane.pipeline.find("m"), call, self.answered)

    def answered(self, answer: Answer) -> None:
        self.answer = answer


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param({"tensors": {}}, InvalidRequest, id="no input"),
        pytest.param({"outputs": ["z"]}, InvalidRequest, id="no such output"),
        pytest.param({"timeout_us": -1}, DeadlineExceeded, id="late"),
        pytest.param({}, Overloaded, id="no room"),
    ],
)
async def test_who_is_refused_at_once_leaves_no_circle_behind(
    fields: dict[str, Any], error: type[GatewayError]
) -> None:
    """Their flight is over before they could hold it, so nothing waits for the collector."""
    engine = SlowEngine()
    with Plane({ONE: engine}, pool=THREADED, batching=BatchSettings(max_queued_rows=1)) as plane:
        await plane.serve(snapshot_of())
        engine.hold()
        others = [plane.submit(plane.call(1.0))]
        await until(engine.entered.is_set)
        others.append(plane.submit(plane.call(2.0)))
        gc.collect()
        gc.disable()
        try:
            asking = Asking(plane, plane.call(3.0, **fields))
            gone = weakref.ref(asking)
            assert asking.answer is not None
            assert type(asking.answer.error) is error
            assert asking.flight is None
            del asking
            assert gone() is None
        finally:
            gc.enable()
        engine.release()
        await until(lambda: all(others))


async def test_versions_never_share_a_run() -> None:
    """Requests of one tick for two versions of a model run apart, each with its own engine."""
    engines = {ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}
    with Plane(dict(engines)) as plane:
        await plane.serve(snapshot_of(1, models={"m": model_of(1, 2, loaded=(2,))}))
        for engine in engines.values():
            engine.runs.clear()
        asked = [plane.submit(plane.call(float(i), version=1 + i % 2)) for i in range(4)]
        await until(lambda: all(asked))
        assert [value_of(got[0]) for got in asked] == [100.0, 201.0, 102.0, 203.0]
        assert [[len(rows) for rows in engine.runs] for engine in engines.values()] == [[2], [2]]
