import gc
import json
import logging
import weakref

import numpy as np
import pytest

from gateway.core.assignment import Reason
from gateway.core.endpoints import Recording, Split, Weighted
from gateway.core.predictions import NO_UNIT
from gateway.core.snapshot import Snapshot
from gateway.settings import BatchSettings
from gateway.telemetry import ADMISSION_REJECTED, Record
from tests.fakes import FailingEngine, FakeEngine, SlowEngine
from tests.planes import (
    THREADED,
    Plane,
    endpoint_of,
    model_of,
    rows_of,
    snapshot_of,
    split_rule,
    until,
)

ONE, TWO = ("m", 1), ("m", 2)


def split_of(exposure: int) -> Snapshot:
    """A Snapshot whose endpoint `e` splits evenly over the enrolled share of units."""
    split = Split(
        exposure=exposure,
        variants=(Weighted("old", 5_000, version=1), Weighted("new", 5_000, version=2)),
    )
    endpoints = {"e": endpoint_of(split_rule(split))}
    return snapshot_of(models={"m": model_of(1, 2)}, endpoints=endpoints)


async def recorded(plane: Plane, *values: float, endpoint: str = "m", **fields: object) -> Record:
    """Ask once and take the record of it."""
    await plane.ask(plane.call(*values, **fields), endpoint)  # type: ignore[arg-type]
    (record,) = plane.recorder.drain()
    return record


async def test_each_answer_leaves_one_record() -> None:
    """It says who asked for what, who answered, and how long each part took."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of(3))
        call = plane.call(1.0, 2.0)
        plane.clock.advance(0.25)
        answer = await plane.ask(call)
        (record,) = plane.recorder.drain()
        assert (
            record.kind.endpoint,
            record.kind.model,
            record.kind.version,
            record.kind.revision,
        ) == ("m", "m", 1, 3)
        assert (record.kind.reason, record.kind.variant, record.kind.rule) == (
            Reason.STATIC,
            "default",
            None,
        )
        assert (record.latency_ns, record.rows, record.batch_rows) == (250_000_000, 2, 2)
        assert record.at_ns == plane.clock.unix_ns() - 250_000_000
        assert record.prediction_id == answer.prediction_id
        assert (record.inputs, record.outputs, record.error_type) == (None, None, None)


async def test_a_failure_leaves_a_record_with_its_kind() -> None:
    """An error is a prediction too: counted for its version, and no exposure."""
    engine = FailingEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(snapshot_of())
        record = await recorded(plane, engine.poison)
        assert (record.error_type, record.kind.version) == ("model_error", 1)
        assert not record.first_exposure


async def test_a_refused_request_leaves_a_record() -> None:
    """What never reached an engine is recorded with the variant that it was given."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        record = await recorded(plane, tensors={})
        assert (record.error_type, record.rows, record.kind.digest) == ("invalid_request", 0, "")


async def test_a_split_is_recorded_so_that_it_can_be_computed_again() -> None:
    """Salt, rule, propensity and a blinded unit stand in the record and in the id."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(split_of(10_000))
        record = await recorded(plane, 1.0, endpoint="e", unit="alice")
        assert (record.kind.salt, record.kind.rule) == ("salt-experiment", "experiment")
        assert (record.kind.propensity, record.kind.sticky) == (0.5, True)
        assert record.unit_hash is not None
        assert b"alice" not in record.unit_hash
        assert plane.worker.signer is not None
        assert plane.worker.signer.read(record.prediction_id).unit_hash == record.unit_hash


async def test_a_unit_is_exposed_once() -> None:
    """The first served answer of a split is the exposure; later ones are not."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(split_of(10_000))
        exposures = [
            (await recorded(plane, 1.0, endpoint="e", unit=unit)).first_exposure
            for unit in ("a", "a", "b", "a")
        ]
        assert exposures == [True, False, True, False]


async def test_a_unit_that_is_not_enrolled_is_not_exposed() -> None:
    """Units outside the experiment get the default, and leave their exposure for later."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(split_of(0))
        record = await recorded(plane, 1.0, endpoint="e", unit="a")
        assert (record.kind.reason, record.first_exposure) == (Reason.DEFAULT, False)
        await plane.serve(split_of(10_000))
        assert (await recorded(plane, 1.0, endpoint="e", unit="a")).first_exposure


async def test_a_request_that_names_no_unit_is_no_exposure() -> None:
    """A fresh draw for each request is not a unit that could be met again."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(split_of(10_000))
        record = await recorded(plane, 1.0, endpoint="e")
        assert (record.kind.sticky, record.first_exposure) == (False, False)
        await plane.serve(snapshot_of(2))
        plain = await recorded(plane, 1.0)
        assert plane.worker.signer is not None
        assert plane.worker.signer.read(plain.prediction_id).unit_hash == NO_UNIT


async def test_payloads_are_kept_where_they_were_asked_for() -> None:
    """Inputs and outputs stand in the record if the endpoint says so, without what is redacted."""
    recording = Recording(inputs=True, outputs=True, redact=("x",))
    with Plane({ONE: FakeEngine()}) as plane:
        endpoints = {"e": endpoint_of(recording=recording)}
        await plane.serve(snapshot_of(endpoints=endpoints))
        record = await recorded(plane, 3.0, endpoint="e")
        assert json.loads(record.inputs or "")["redacted"] == ["x"]
        assert json.loads(record.outputs or "")["tensors"]["y"]["data"] == [3.0]


@pytest.mark.parametrize(
    ("engine", "values"),
    [
        pytest.param(FakeEngine(), (3.0, 4.0), id="answered"),
        pytest.param(FailingEngine(), (3.0, FailingEngine.poison), id="failed"),
        pytest.param(FakeEngine(), (float("nan"), 4.0), id="refused"),
    ],
)
async def test_a_record_retains_nothing_of_its_request(
    engine: FakeEngine, values: tuple[float, ...]
) -> None:
    """B12 With records and answers kept, the request's buffer is let go at once, uncollected."""
    recording = Recording(inputs=True, outputs=True)
    with Plane({ONE: engine}) as plane:
        await plane.serve(snapshot_of(endpoints={"e": endpoint_of(recording=recording)}))
        engine.runs.clear()
        buffer = bytearray(rows_of(*values).tobytes())
        rows = np.frombuffer(buffer, np.float32).reshape(-1, 4)
        gone = weakref.ref(rows)
        gc.collect()
        gc.disable()
        try:
            call = plane.call(tensors={"x": rows})
            call.request.nonfinite = bool(np.isnan(rows).any())
            answer = await plane.ask(call, "e")
            engine.runs.clear()
            buffer[:] = bytes(len(buffer))
            del call, rows
            assert gone() is None
        finally:
            gc.enable()
        (record,) = plane.recorder.drain()
        assert record.prediction_id == answer.prediction_id
        shown = json.loads(record.inputs or "")["tensors"]["x"]["data"]
        assert shown[4] == values[1]


async def test_declared_scalars_stand_in_the_id() -> None:
    """An endpoint's token scalars travel with the id, row by row."""
    with Plane({ONE: FakeEngine()}) as plane:
        endpoints = {"e": endpoint_of(token_scalars=("y",))}
        await plane.serve(snapshot_of(endpoints=endpoints))
        record = await recorded(plane, 3.0, 4.0, endpoint="e")
        assert plane.worker.signer is not None
        assert plane.worker.signer.read(record.prediction_id).scalars == ((3.0,), (4.0,))


async def test_the_outputs_asked_for_are_answered_in_their_order() -> None:
    """Outputs come in the order of the request, and all of them when none is named."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        named = await plane.ask(plane.call(1.0, outputs=["y"]))
        plain = await plane.ask(plane.call(1.0))
        assert list(named.outputs) == list(plain.outputs) == ["y"]


async def test_statistics_tell_success_from_failure() -> None:
    """Triton's counters of a version follow its answers."""
    engine = FailingEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(snapshot_of())
        call = plane.call(1.0)
        plane.clock.advance(0.001)
        await plane.ask(call)
        await plane.ask(plane.call(engine.poison))
        (row,) = plane.worker.statistics("m", 1)
        assert row["inference_stats"]["success"] == {"count": 1, "ns": 1_000_000}
        assert row["inference_stats"]["fail"]["count"] == 1
        assert row["inference_stats"]["queue"]["count"] == 1
        assert row["last_inference"] == plane.clock.unix_ns() // 1_000_000


async def test_refusals_for_want_of_room_or_time_are_counted() -> None:
    """A full queue and a spent deadline show in a counter of their own."""
    engine = SlowEngine()
    with Plane({ONE: engine}, pool=THREADED, batching=BatchSettings(max_queued_rows=1)) as plane:
        await plane.serve(snapshot_of())
        engine.hold()
        plane.submit(plane.call(1.0))
        await until(engine.entered.is_set)
        late = plane.submit(plane.call(2.0, timeout_us=1))
        plane.submit(plane.call(3.0))
        plane.clock.advance(1.0)
        engine.release()
        await until(lambda: bool(late))
        assert plane.count(ADMISSION_REJECTED, key="m", type="overloaded") == 1
        assert plane.count(ADMISSION_REJECTED, key="m", type="deadline_exceeded") == 1


async def test_a_fault_in_recording_fails_no_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer is given also when its record cannot be kept."""

    def broken(_: list[Record]) -> None:
        raise RuntimeError("no room")

    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        monkeypatch.setattr(plane.recorder, "record_all", broken)
        with caplog.at_level(logging.ERROR):
            answer = await plane.ask(plane.call(1.0))
        assert answer.error is None
        assert "incomplete traces" in caplog.text


async def test_a_fault_in_concluding_is_answered_and_gives_the_lease_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that cannot be signed is an error that tells nothing of itself."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        monkeypatch.setattr(plane.clock, "unix_ns", lambda: -(10**18))
        with caplog.at_level(logging.ERROR):
            answer = await plane.ask(plane.call(1.0))
        assert str(answer.error) == "The gateway failed; its log says more."
        assert (plane.leases(), plane.pipeline.in_flight) == ({ONE: 0}, 0)
        assert "nobody foresaw" in caplog.text
