import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, Literal

import pytest
from msgspec import structs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.adapters.segments import Segments
from gateway.control.export import SAVE_S, Exporter
from gateway.control.export_parts import Clock, ExportParts, ExportSettings, Wire
from gateway.serving.cells import Cells
from gateway.serving.recording import Recorder
from gateway.settings import RecordingSettings
from gateway.telemetry import ASSIGNMENT_COUNT, Delivery, Record, Series, Trace
from tests.otlp_receiver import log_records, plain
from tests.planes import until
from tests.records import make_record

AT = 1_700_000_000_000_000_000
PATIENCE_S = 20.0


def record(number: int = 0, **changes: Any) -> Record:
    """A record of a good prediction."""
    return make_record(**{"prediction_id": f"p{number}", **changes})


@dataclass
class FakeTime:
    """Time that stands until it is moved; the draw is always the greatest wait."""

    now: float = 100.0

    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: AT, lambda: 1.0)


class FakeEncoder:
    """Bytes are the sum of all values."""

    def metrics(self, series: Sequence[Series], at_ns: int) -> bytes:
        assert at_ns == AT
        return str(sum(one.value for one in series)).encode()


def told(signal: str, body: bytes) -> str:
    """Prediction ids in a request of logs, names of the spans in one of traces."""
    if signal == "logs":
        entries = log_records(ExportLogsServiceRequest.FromString(body))
        ids = [plain(entry.attributes).get("tiltyard.prediction.id") for entry in entries]
        return ",".join(str(one) for one in ids)
    if signal == "traces":
        message = ExportTraceServiceRequest.FromString(body)
        roots = [
            plain(span.attributes)["tiltyard.prediction.id"]
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.attributes
        ]
        return ",".join(roots)
    return body.decode()


@dataclass
class FakeSender:
    """Answers as it is told, `taken` when it is not."""

    script: deque[Delivery] = field(default_factory=deque)
    sent: list[tuple[str, str]] = field(default_factory=list)
    traces: Delivery = field(default_factory=lambda: Delivery("taken"))
    hangs: bool = False
    closed: bool = False

    async def close(self) -> None:
        self.closed = True

    async def send(self, signal: Literal["logs", "traces", "metrics"], body: bytes) -> Delivery:
        self.sent.append((signal, told(signal, body)))
        if self.hangs:
            await asyncio.Event().wait()
        if signal == "traces":
            return self.traces
        if signal == "logs" and self.script:
            return self.script.popleft()
        return Delivery("taken")


@dataclass
class Stage:
    """An exporter on a fake wire, with everything that it is wired to."""

    settings: ExportSettings = field(default_factory=lambda: ExportSettings(batch_records=4))
    max_records: int = 1_000
    time: FakeTime = field(default_factory=FakeTime)
    sender: FakeSender = field(default_factory=FakeSender)
    state: Path | None = None
    cells: Cells = field(default_factory=Cells)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self.cells, RecordingSettings())
        settings = structs.replace(self.settings, max_records=self.max_records)
        folder = None if self.state is None else Segments(self.state, 1 << 20)
        wire = Wire(FakeEncoder(), self.sender)
        parts = ExportParts(self.cells, wire, self.time.clock(), folder)
        self.exporter = Exporter(parts, settings)
        self.exporter.source("w0", (("service.name", "tiltyard"),))

    def emit(self, count: int, **changes: Any) -> None:
        """Record so many predictions and hand them over, in one parcel."""
        for number in range(count):
            self.recorder.record(record(number, **changes))
        self.recorder.encode_pending(count)
        while (parcel := self.recorder.take()) is not None:
            self.exporter.receive("w0", parcel)

    async def work(self) -> None:
        """Let the exporter run until nothing is left to do."""
        task = asyncio.create_task(self.exporter.run())
        async with asyncio.timeout(PATIENCE_S):
            while total(self.cells, "tiltyard.record.emitted") == 0 or self.exporter.pending:  # noqa: ASYNC110 - it is done by threads
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def dropped(cells: Cells, name: str = "tiltyard.record.dropped") -> dict[str, int]:
    """What was lost, by reason."""
    return {
        str(dict(one.attributes)["tiltyard.drop.reason"]): int(one.value)
        for one in cells.collect()
        if one.instrument.name == name and one.value
    }


def total(cells: Cells, name: str) -> int:
    """Sum of an instrument over its attributes."""
    return int(sum(one.value for one in cells.collect() if one.instrument.name == name))


def assert_balanced(exporter: Exporter, cells: Cells) -> None:
    """Nothing is lost without being counted: the law of this room."""
    settled = total(cells, "tiltyard.record.delivered") + sum(dropped(cells).values())
    assert total(cells, "tiltyard.record.emitted") == settled + exporter.pending


def has_delivered(stage: Stage, count: int) -> bool:
    """Whether so many records were delivered."""
    return total(stage.cells, "tiltyard.record.delivered") == count


@pytest.mark.parametrize("on_disk", [False, True])
async def test_an_idle_exporter_sleeps_until_records_come(tmp_path: Path, *, on_disk: bool) -> None:
    """Between records nothing is due at any time; those that come then are sent."""
    settings = ExportSettings(metrics=False)
    stage = Stage(settings=settings, state=tmp_path if on_disk else None)
    loop: Any = asyncio.get_running_loop()
    task = asyncio.create_task(stage.exporter.run())
    for count in (1, 2):
        stage.emit(1)
        await until(partial(has_delivered, stage, count))
        stage.time.now += SAVE_S
        await until(lambda: all(timer.cancelled() for timer in loop._scheduled))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_balanced(stage.exporter, stage.cells)


async def test_what_an_exporter_before_took_is_not_missed() -> None:
    """A source that goes on at a serial has lost nothing before it; what it loses then counts."""
    stage = Stage()
    stage.recorder.record(record())
    stage.recorder.encode_pending()
    parcel = stage.recorder.take()
    assert parcel is not None
    stage.exporter.source("w1", (), settled=41)

    stage.exporter.receive("w1", structs.replace(parcel, first=42))
    assert dropped(stage.cells) == {}
    stage.exporter.lost("w1", 45)

    assert sum(dropped(stage.cells).values()) == 3
    assert total(stage.cells, "tiltyard.record.emitted") == 4
    assert_balanced(stage.exporter, stage.cells)


async def test_a_batch_is_delivered() -> None:
    """Records leave in order, a batch at a time, and are counted when they are taken."""
    stage = Stage()
    stage.emit(6)
    assert await stage.exporter.ship() == 0.2
    assert await stage.exporter.ship() == 0.2
    assert await stage.exporter.ship() == 0.2
    assert stage.sender.sent == [("logs", "p0,p1,p2,p3"), ("logs", "p4,p5")]
    assert total(stage.cells, "tiltyard.record.delivered") == 6
    assert_balanced(stage.exporter, stage.cells)


async def test_a_full_batch_waits_for_nothing() -> None:
    """While there is a whole batch more, there is no pause."""
    stage = Stage()
    stage.emit(8)
    assert await stage.exporter.ship() == 0.0


async def test_partial_success_is_counted() -> None:
    """What the collector rejected of a batch is lost with that reason, never more than it got."""
    stage = Stage()
    stage.sender.script.extend((Delivery("taken", rejected=1), Delivery("taken", rejected=99)))
    stage.emit(8)
    await stage.exporter.ship()
    await stage.exporter.ship()
    assert total(stage.cells, "tiltyard.record.delivered") == 3
    assert dropped(stage.cells) == {"rejected": 5}
    assert_balanced(stage.exporter, stage.cells)


async def test_retry_after_is_honoured() -> None:
    """Nothing is sent before the collector's time is over, then the same records are."""
    stage = Stage()
    stage.sender.script.append(Delivery("retry", retry_after_s=60.0))
    stage.emit(2)
    assert await stage.exporter.ship() == 60.0
    stage.time.now += 59.0
    assert await stage.exporter.ship() == 1.0
    assert len(stage.sender.sent) == 1
    assert_balanced(stage.exporter, stage.cells)
    stage.time.now += 1.0
    await stage.exporter.ship()
    assert stage.sender.sent == [("logs", "p0,p1"), ("logs", "p0,p1")]
    assert stage.exporter.pending == 0
    assert_balanced(stage.exporter, stage.cells)


async def test_absurd_waits_are_cut() -> None:
    """A collector that says tomorrow is asked again within the hour."""
    stage = Stage()
    stage.sender.script.append(Delivery("retry", retry_after_s=86_400.0))
    stage.emit(1)
    assert await stage.exporter.ship() == 3_600.0


async def test_waits_double_up_to_a_limit() -> None:
    """Without a word from the collector the pauses grow, and start again after a success."""
    stage = Stage()
    stage.sender.script.extend([Delivery("retry")] * 9)
    stage.emit(4)
    waits = []
    for _ in range(9):
        waits.append(await stage.exporter.ship())
        stage.time.now += waits[-1]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    await stage.exporter.ship()
    stage.emit(4)
    stage.sender.script.append(Delivery("retry"))
    assert await stage.exporter.ship() == 0.5


async def test_a_long_outage_is_bounded_and_counted() -> None:
    """While the collector is away no more than `max_records` are kept, whatever is on its way."""
    stage = Stage(max_records=10)
    stage.sender.script.append(Delivery("retry"))
    stage.emit(7)
    await stage.exporter.ship()
    for _ in range(20):
        stage.emit(1)
    assert stage.exporter.pending == 10
    assert dropped(stage.cells) == {"queue_full": 17}
    assert_balanced(stage.exporter, stage.cells)
    stage.time.now += 60.0
    for _ in range(3):
        await stage.exporter.ship()
    assert total(stage.cells, "tiltyard.record.delivered") == 10
    assert_balanced(stage.exporter, stage.cells)


async def test_a_refused_batch_is_dropped() -> None:
    """A collector that wants nothing from us costs the batch, and the next is tried."""
    stage = Stage()
    stage.sender.script.append(Delivery("refused"))
    stage.emit(5)
    await stage.exporter.ship()
    await stage.exporter.ship()
    assert dropped(stage.cells) == {"refused": 4}
    assert total(stage.cells, "tiltyard.record.delivered") == 1
    assert_balanced(stage.exporter, stage.cells)


async def test_an_invalid_batch_is_halved_once() -> None:
    """One bad record costs its half, not the batch."""
    stage = Stage()
    stage.sender.script.extend((Delivery("invalid"), Delivery("taken"), Delivery("invalid")))
    stage.emit(4)
    for _ in range(3):
        await stage.exporter.ship()
        assert_balanced(stage.exporter, stage.cells)
    assert [body for _, body in stage.sender.sent] == ["p0,p1,p2,p3", "p0,p1", "p2,p3"]
    assert dropped(stage.cells) == {"invalid": 2}
    assert stage.exporter.pending == 0


async def test_one_invalid_record_is_dropped_at_once() -> None:
    """A batch of one has no halves."""
    stage = Stage()
    stage.sender.script.append(Delivery("invalid"))
    stage.emit(1)
    await stage.exporter.ship()
    assert dropped(stage.cells) == {"invalid": 1}


async def test_spans_follow_the_records() -> None:
    """Spans are sent once their records are taken."""
    stage = Stage()
    stage.emit(2, trace=Trace(b"t" * 16, b"s" * 8, None, sampled=True))
    await stage.exporter.ship()
    assert stage.sender.sent == [("logs", "p0,p1"), ("traces", "p0,p1")]
    assert dropped(stage.cells, "tiltyard.span.dropped") == {}


@pytest.mark.parametrize(
    ("delivery", "lost"),
    [
        pytest.param(Delivery("retry"), {"refused": 6}, id="not now"),
        pytest.param(Delivery("refused"), {"refused": 6}, id="not ever"),
        pytest.param(Delivery("taken", rejected=1), {"rejected": 1}, id="not all"),
        pytest.param(Delivery("taken", rejected=9), {"rejected": 6}, id="more than all"),
    ],
)
async def test_lost_spans_are_counted(delivery: Delivery, lost: dict[str, int]) -> None:
    """Spans are tried once; what is lost is counted and costs no record."""
    stage = Stage(sender=FakeSender(traces=delivery))
    stage.emit(2, trace=Trace(b"t" * 16, b"s" * 8, None, sampled=True))
    await stage.exporter.ship()
    assert dropped(stage.cells, "tiltyard.span.dropped") == lost
    assert total(stage.cells, "tiltyard.record.delivered") == 2


async def test_spans_alone_may_be_exported() -> None:
    """Without logs the records are told as spans, and counted as not wanted."""
    stage = Stage(settings=ExportSettings(logs=False))
    stage.emit(2, trace=Trace(b"t" * 16, b"s" * 8, None, sampled=True))
    await stage.exporter.ship()
    assert stage.sender.sent == [("traces", "p0,p1")]
    assert dropped(stage.cells) == {"disabled": 2}
    assert_balanced(stage.exporter, stage.cells)


async def test_metrics_alone_may_be_exported() -> None:
    """Without logs, traces and a record log nobody wants a record."""
    stage = Stage(settings=ExportSettings(logs=False, traces=False))
    assert stage.exporter.wants_records is False
    stage.cells.counter(ASSIGNMENT_COUNT).add(2)
    await stage.exporter.push_metrics()
    assert stage.sender.sent == [("metrics", "2")]


async def test_closing_sends_what_is_left() -> None:
    """The last records and then the last metrics leave before the end."""
    stage = Stage()
    stage.emit(6)
    await stage.exporter.close(PATIENCE_S)
    assert [signal for signal, _ in stage.sender.sent] == ["logs", "logs", "metrics"]
    assert total(stage.cells, "tiltyard.record.delivered") == 6
    assert stage.sender.closed
    assert_balanced(stage.exporter, stage.cells)


async def test_closing_does_not_wait_out_a_pause() -> None:
    """A back-off that still runs is cut short by the stop."""
    stage = Stage()
    stage.sender.script.append(Delivery("retry", retry_after_s=600.0))
    stage.emit(2)
    await stage.exporter.ship()
    await stage.exporter.close(PATIENCE_S)
    assert total(stage.cells, "tiltyard.record.delivered") == 2


async def test_closing_ends_in_time() -> None:
    """A collector that hangs costs the records, which are counted, and not the stop."""
    stage = Stage(sender=FakeSender(hangs=True))
    stage.emit(6)
    began = monotonic()
    await stage.exporter.close(0.2)
    assert monotonic() - began < PATIENCE_S
    assert dropped(stage.cells) == {"shutdown": 6}
    assert stage.exporter.pending == 0
    assert_balanced(stage.exporter, stage.cells)


async def test_closing_gives_up_while_the_collector_is_away() -> None:
    """Pauses between tries are within the time to stop, too."""
    stage = Stage()
    stage.sender.script.extend([Delivery("retry")] * 1_000)
    stage.emit(6)
    await stage.exporter.close(0.2)
    assert dropped(stage.cells) == {"shutdown": 6}
    assert_balanced(stage.exporter, stage.cells)


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_without_being_counted(seed: int) -> None:
    """Whatever the collector answers and whenever requests come, the sum holds at each step."""
    random = Random(seed)
    stage = Stage(max_records=30)
    answers = [
        Delivery("taken"),
        Delivery("taken", rejected=2),
        Delivery("retry"),
        Delivery("retry", retry_after_s=3.0),
        Delivery("invalid"),
        Delivery("refused"),
    ]
    for _ in range(200):
        stage.emit(random.choice((0, 1, 5, 20)))
        assert_balanced(stage.exporter, stage.cells)
        stage.sender.script.append(random.choice(answers))
        await stage.exporter.ship()
        assert stage.exporter.pending <= 30
        assert_balanced(stage.exporter, stage.cells)
        stage.time.now += random.choice((0.0, 1.0, 40.0))
    stage.sender.script.clear()
    await stage.exporter.close(PATIENCE_S)
    assert stage.exporter.pending == 0
    assert_balanced(stage.exporter, stage.cells)


async def test_a_large_parcel_is_sent_in_batches() -> None:
    """No request holds more records than were asked for."""
    stage = Stage()
    stage.emit(10)
    for _ in range(3):
        await stage.exporter.ship()
    sent = [body for _, body in stage.sender.sent]
    assert sent == ["p0,p1,p2,p3", "p4,p5,p6,p7", "p8,p9"]
    assert_balanced(stage.exporter, stage.cells)


async def test_what_a_killed_process_took_with_it_is_counted() -> None:
    """Whatever it made and never sent is lost, to the record; its successor begins again."""
    stage = Stage()
    stage.emit(3)
    stage.exporter.lost("w0", 10)
    assert dropped(stage.cells) == {"process_lost": 7}
    stage.recorder = Recorder(stage.cells, RecordingSettings())
    stage.emit(2)
    stage.exporter.lost("w0", 2)
    assert dropped(stage.cells) == {"process_lost": 7}
    assert stage.exporter.pending == 5
    assert_balanced(stage.exporter, stage.cells)


async def test_a_gap_between_parcels_is_counted() -> None:
    """A parcel that was lost on its way is lost, no more."""
    stage = Stage()
    stage.emit(2)
    stage.recorder.record(record())
    stage.recorder.encode_pending()
    stage.recorder.take()
    stage.emit(2)
    assert dropped(stage.cells) == {"process_lost": 1}
    assert stage.exporter.pending == 4
    assert_balanced(stage.exporter, stage.cells)


async def test_what_found_no_room_in_its_process_is_counted_here() -> None:
    """A parcel tells how many were dropped before it."""
    stage = Stage()
    stage.recorder = Recorder(stage.cells, RecordingSettings(max_records=3))
    stage.emit(8)
    assert dropped(stage.cells) == {"queue_full": 5}
    assert total(stage.cells, "tiltyard.record.emitted") == 8
    assert_balanced(stage.exporter, stage.cells)


async def test_each_process_is_told_under_its_own_name() -> None:
    """Records of two processes leave in one request, each with its resource."""
    stage = Stage()
    bodies: list[bytes] = []
    send = stage.sender.send

    async def kept(signal: Literal["logs", "traces", "metrics"], body: bytes) -> Delivery:
        bodies.append(body)
        return await send(signal, body)

    stage.sender.send = kept  # type: ignore[method-assign]
    stage.exporter.source("w1", (("service.instance.id", "1"),))
    stage.emit(1)
    other = Recorder(Cells(), RecordingSettings())
    other.record(record(7))
    other.encode_pending()
    parcel = other.take()
    assert parcel is not None
    stage.exporter.receive("w1", parcel)
    await stage.exporter.ship()
    (body,) = bodies
    resources = ExportLogsServiceRequest.FromString(body).resource_logs
    told = [plain(one.resource.attributes) for one in resources]
    assert told == [{"service.name": "tiltyard"}, {"service.instance.id": "1"}]


async def test_without_a_collector_the_record_log_is_where_records_go(tmp_path: Path) -> None:
    """They count as delivered once it has them, and nothing is sent."""
    settings = ExportSettings(logs=False, traces=False, metrics=False, linger_s=0.001)
    stage = Stage(settings=settings, state=tmp_path)
    assert stage.exporter.wants_records
    stage.emit(5)
    await stage.work()
    await stage.exporter.close(PATIENCE_S)
    assert total(stage.cells, "tiltyard.record.delivered") == 5
    assert stage.sender.sent == []
    later = Stage(settings=ExportSettings(linger_s=0.001), state=tmp_path)
    later.emit(1)
    await later.work()
    await later.exporter.close(PATIENCE_S)
    assert later.sender.sent[0] == ("logs", "p0")


async def test_an_outage_outlives_the_process(tmp_path: Path) -> None:
    """What is on disk at the end is no loss: the next process sends it, before its own."""
    stage = Stage(state=tmp_path)
    stage.sender.script.extend([Delivery("retry")] * 100)
    await stage.exporter.recover()
    stage.emit(6)
    await stage.exporter.close(PATIENCE_S)
    assert dropped(stage.cells) == {}
    assert total(stage.cells, "tiltyard.record.queue.size") == 6
    assert_balanced(stage.exporter, stage.cells)

    later = Stage(settings=ExportSettings(linger_s=0.001), state=tmp_path)
    await later.work()
    assert ",".join(body for _, body in later.sender.sent) == "p0,p1,p2,p3,p4,p5"
    assert total(later.cells, "tiltyard.record.delivered") == 6
    assert_balanced(later.exporter, later.cells)
    await later.exporter.close(PATIENCE_S)


async def test_what_comes_while_the_log_is_opened_is_counted(tmp_path: Path) -> None:
    """Opening takes a while, and records do not wait for it."""
    stage = Stage(state=tmp_path)
    opening = asyncio.create_task(stage.exporter.recover())
    await asyncio.sleep(0)
    stage.emit(3)
    await opening
    assert total(stage.cells, "tiltyard.record.emitted") == 3
    await stage.exporter.close(PATIENCE_S)
    assert_balanced(stage.exporter, stage.cells)
    assert total(stage.cells, "tiltyard.record.delivered") == 3


@pytest.mark.parametrize("seed", range(5))
async def test_a_disk_changes_nothing_about_the_sum(seed: int, tmp_path: Path) -> None:
    """With a record log that overflows the sum holds all the same, at each step."""
    random = Random(seed)
    stage = Stage(max_records=40, state=tmp_path)
    await stage.exporter.recover()
    answers = [Delivery("taken"), Delivery("retry"), Delivery("invalid"), Delivery("refused")]
    for _ in range(100):
        stage.emit(random.choice((0, 1, 20)), inputs="x" * 6_000)
        stage.sender.script.append(random.choice(answers))
        if random.random() < 0.7:
            await stage.exporter.write()
        assert_balanced(stage.exporter, stage.cells)
        await stage.exporter.ship()
        assert_balanced(stage.exporter, stage.cells)
        stage.time.now += random.choice((0.0, 40.0))
    assert dropped(stage.cells)["spool_full"] > 0
    await stage.exporter.close(PATIENCE_S)
    assert_balanced(stage.exporter, stage.cells)
