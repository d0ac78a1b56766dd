"""The exporter on the real wire: its loss must equal the collector's own count."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import pytest

from gateway.adapters.otel import OtlpSender, read_config
from gateway.adapters.otel_encode import OtlpEncoder
from gateway.control.export import Exporter
from gateway.control.export_parts import Clock, ExportParts, ExportSettings, Wire
from gateway.control.pump import Pump
from gateway.serving.cells import Cells
from gateway.serving.recording import Recorder
from gateway.serving.sightings import drop_into
from gateway.settings import RecordingSettings
from gateway.telemetry import ASSIGNMENT_COUNT, Record, Trace
from tests.otlp_receiver import Answer, Receiver, plain
from tests.records import make_record

AT = 1_700_000_000_000_000_000
RESOURCE = (("service.name", "tiltyard"),)
PATIENCE_S = 20.0


def record(number: int = 0, trace: Trace | None = None, *, first: bool = False) -> Record:
    """A record of a good prediction."""
    return make_record(prediction_id=f"p{number}", trace=trace, first_exposure=first)


def total(stage: "Stage", name: str) -> int:
    """Sum of an instrument over its attributes."""
    series = stage.recorder.cells.collect()
    return int(sum(one.value for one in series if one.instrument.name == name))


def dropped(stage: "Stage") -> dict[str, int]:
    """Records that were lost, by reason."""
    return {
        str(dict(one.attributes)["tiltyard.drop.reason"]): int(one.value)
        for one in stage.recorder.cells.collect()
        if one.instrument.name == "tiltyard.record.dropped" and one.value
    }


def assert_balanced(stage: "Stage") -> None:
    """Nothing is lost without being counted."""
    settled = total(stage, "tiltyard.record.delivered") + sum(dropped(stage).values())
    assert total(stage, "tiltyard.record.emitted") == settled + stage.exporter.pending


@dataclass
class Stage:
    """A recorder and an exporter, and what carries parcels between them."""

    recorder: Recorder
    exporter: Exporter
    pump: Pump

    def emit(self, count: int, *, first_of: int = 0) -> None:
        """Record so many predictions, every `first_of`th a first exposure, and hand them over."""
        for number in range(count):
            first = bool(first_of) and number % first_of == 0
            self.recorder.record(record(number, first=first))
            if number % 10 == 9:
                self.pump.carry()
        self.pump.carry()


@asynccontextmanager
async def exporting(
    receiver: Receiver, max_records: int = 50_000, **environ: str
) -> AsyncIterator[Stage]:
    """An exporter at work on the real wire, with short pauses."""
    config = read_config({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, **environ})
    cells = Cells()
    recorder = Recorder(cells, RecordingSettings())
    encoder = OtlpEncoder(RESOURCE, AT)
    wire = Wire(encoder, OtlpSender(config, lambda: AT / 1e9))
    settings = ExportSettings(
        batch_records=100,
        linger_s=0.01,
        metric_interval_s=config.metric_interval_s,
        first_retry_s=0.01,
        last_retry_s=0.05,
        max_records=max_records,
    )
    clock = Clock(monotonic, lambda: AT, lambda: 0.5)
    exporter = Exporter(ExportParts(cells, wire, clock), settings)
    pump = Pump(recorder, exporter, RESOURCE, drop_into(cells))
    task = asyncio.create_task(exporter.run())
    try:
        yield Stage(recorder, exporter, pump)
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pump.close()
        await exporter.close(PATIENCE_S)


async def until(stage: Stage, pending: int = 0) -> None:
    """Give the exporter its turns until so much is pending."""
    async with asyncio.timeout(PATIENCE_S):
        while stage.exporter.pending > pending:  # noqa: ASYNC110 - the outcome is on another thread
            await asyncio.sleep(0.002)


async def test_every_record_arrives() -> None:
    """What the collector took is what was counted, record by record, and nothing twice."""
    with Receiver() as receiver:
        async with exporting(receiver) as stage:
            stage.emit(1_050, first_of=10)
            await until(stage)
        assert receiver.taken == total(stage, "tiltyard.record.emitted") == 1_050
        ids = [plain(entry.attributes)["tiltyard.prediction.id"] for entry in receiver.predictions]
        assert ids == [f"p{number}" for number in range(1_050)]
        assert len(receiver.evaluations) == 105
        assert dropped(stage) == {}


@pytest.mark.parametrize(
    ("script", "taken", "lost"),
    [
        pytest.param([Answer(rejected=10)], 290, {"rejected": 10}, id="partial success"),
        pytest.param([Answer(status=429, retry_after="0")] * 3, 300, {}, id="429"),
        pytest.param([Answer(status=503)] * 3, 300, {}, id="503"),
        pytest.param([Answer(status=400)] * 2, 250, {"invalid": 50}, id="400"),
        pytest.param([Answer(status=413)], 300, {}, id="413"),
        pytest.param([Answer(status=500)], 200, {"refused": 100}, id="500"),
    ],
)
async def test_loss_is_exact(script: list[Answer], taken: int, lost: dict[str, int]) -> None:
    """Emitted is what the collector took and what was counted as lost, to the record."""
    with Receiver(script=deque(script)) as receiver:
        async with exporting(receiver) as stage:
            stage.emit(300)
            await until(stage)
        assert receiver.taken == taken
        assert total(stage, "tiltyard.record.delivered") == taken
        assert dropped(stage) == lost
        assert_balanced(stage)


async def test_an_outage_is_caught_up() -> None:
    """With the collector down memory is bounded; back up, it gets all that was kept."""
    with Receiver() as receiver:
        async with exporting(receiver, max_records=250) as stage:
            receiver.stop()
            stage.emit(400)
            assert stage.exporter.pending == 250
            receiver.start()
            await until(stage)
        assert receiver.taken == 250
        assert dropped(stage) == {"queue_full": 150}
        assert_balanced(stage)


async def test_a_blackhole_times_out() -> None:
    """A collector that takes a request and never answers is given up and tried again."""
    with Receiver(script=deque([Answer(hangs=True)])) as receiver:
        async with exporting(receiver, OTEL_EXPORTER_OTLP_TIMEOUT="500") as stage:
            stage.emit(1)
            await until(stage)
        assert len(receiver.predictions) == 2
        assert receiver.taken - 1 == total(stage, "tiltyard.record.delivered") == 1
        assert_balanced(stage)


async def test_metrics_arrive() -> None:
    """Metrics go out at every interval and once more at the end, with the final counts."""
    with Receiver() as receiver:
        async with exporting(receiver, OTEL_METRIC_EXPORT_INTERVAL="10") as stage:
            stage.recorder.cells.counter(ASSIGNMENT_COUNT, (("a", "x"),)).add(3)
            async with asyncio.timeout(PATIENCE_S):
                while not receiver.metrics:  # noqa: ASYNC110 - it comes on another thread
                    await asyncio.sleep(0.002)
            stage.emit(1)
        delivered = receiver.metrics["tiltyard.record.delivered"]
        assert delivered.sum.data_points[0].as_int == 1
        assert receiver.metrics["tiltyard.assignment.count"].sum.data_points[0].as_int == 3


async def test_spans_arrive() -> None:
    """A sampled request is three spans of one trace at the collector."""
    with Receiver() as receiver:
        async with exporting(receiver, OTEL_EXPORTER_OTLP_COMPRESSION="gzip") as stage:
            stage.recorder.record(record(trace=Trace(b"t" * 16, b"s" * 8, None, sampled=True)))
        assert {span.trace_id for span in receiver.spans} == {b"t" * 16}
        assert len(receiver.spans) == 3
