import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.adapters.segments import Segments
from gateway.control.spool import Frame, Losses, Spool, SpoolBounds
from gateway.core.otlp.requests import request
from gateway.ports import Extent
from gateway.serving.otlp_records import RecordEncoder
from tests.records import make_record

KEEP = 1 << 20


def frame(records: int = 1, *, padding: int = 0, spans: int = 0) -> Frame:
    """A request of some records."""
    told = [make_record(inputs="x" * padding or None) for _ in range(records)]
    body = request(b"", b"", RecordEncoder().logs(told))
    return Frame(records, len(body), body, spans=b"s" * spans, span_count=spans)


class FailingDisk(Segments):
    """A record log whose disk fails when it is told to."""

    failing = False

    def append(self, bodies: Sequence[bytes]) -> list[Extent]:
        if self.failing:
            raise OSError(28, "No space left on device")
        return super().append(bodies)


@dataclass
class Stage:
    """A spool on a real folder, with the counts of what it lost."""

    state: Path
    keep_bytes: int = KEEP
    max_records: int = 1_000
    max_bytes: int = 1 << 20
    may_skip_disk: bool = True
    records: dict[str, int] = field(default_factory=dict)
    spans: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.disk = FailingDisk(self.state, self.keep_bytes)
        self.spool = Spool(
            self.disk,
            SpoolBounds(self.max_records, self.max_bytes),
            Losses(self._lost_records, self._lost_spans),
            may_skip_disk=self.may_skip_disk,
        )

    def _lost_records(self, reason: str, count: int) -> None:
        if count:
            self.records[reason] = self.records.get(reason, 0) + count

    def _lost_spans(self, reason: str, count: int) -> None:
        self.spans[reason] = self.spans.get(reason, 0) + count

    def is_failing(self) -> bool:
        return self.spool.failing

    async def drain(self, limit: int = 10_000) -> bytes:
        """Take, read and settle all that is ready."""
        bodies = []
        while frames := self.spool.take(limit, 1 << 20):
            bodies.append(await self.spool.body_of(frames))
            self.spool.settle(frames)
        return b"".join(bodies)


async def test_what_is_written_is_ready_and_in_order(tmp_path: Path) -> None:
    """Frames wait for the disk, then come out as they came in."""
    stage = Stage(tmp_path)
    await stage.spool.recover()
    frames = [frame(n) for n in (1, 2, 3)]
    for one in frames:
        assert stage.spool.add(one)
    assert stage.spool.take(10, KEEP) == []
    await stage.spool.write()
    assert stage.spool.pending == 6
    assert [one.records for one in stage.spool.take(3, KEEP)] == [1, 2]
    assert [one.records for one in stage.spool.take(1, KEEP)] == [3]
    assert stage.spool.pending == 0
    await stage.spool.close()


async def test_the_next_process_finds_what_was_not_delivered(tmp_path: Path) -> None:
    """After a kill the records behind the cursor are there again, with their number."""
    stage = Stage(tmp_path)
    await stage.spool.recover()
    for n in (1, 2, 3):
        stage.spool.add(frame(n))
    await stage.spool.write()
    taken = stage.spool.take(1, KEEP)
    stage.spool.settle(taken)
    await stage.spool.save()
    stage.disk.close()

    later = Stage(tmp_path)
    assert await later.spool.recover() == 5
    assert later.spool.pending == 5
    assert await later.drain() == (frame(2).body or b"") + (frame(3).body or b"")
    await later.spool.close()
    assert await Stage(tmp_path).spool.recover() == 0


async def test_an_outage_fills_the_disk_and_not_the_memory(tmp_path: Path) -> None:
    """What is beyond half of the memory is remembered by its place, neighbours as one."""
    stage = Stage(tmp_path, keep_bytes=64 << 20, max_bytes=100_000)
    await stage.spool.recover()
    frames = [frame(padding=4_000) for _ in range(500)]
    for one in frames:
        assert stage.spool.add(one)
        await stage.spool.write()
    assert stage.spool._held_bytes <= 50_000 + frames[0].size
    assert len(stage.spool._ready) < 50
    assert stage.spool.pending == 500
    assert await stage.drain() == (frame(padding=4_000).body or b"") * 500
    assert (stage.records, stage.spool._held_bytes) == ({}, 0)
    await stage.spool.close()


async def test_spans_are_not_spooled(tmp_path: Path) -> None:
    """Where memory is short spans go first, and are counted."""
    stage = Stage(tmp_path, max_bytes=10_000)
    await stage.spool.recover()
    for _ in range(4):
        stage.spool.add(frame(padding=2_000, spans=3))
        await stage.spool.write()
    assert stage.spans == {"queue_full": 9}
    await stage.spool.close()


async def test_the_size_bound_costs_the_oldest_and_counts_them(tmp_path: Path) -> None:
    """What was deleted before its turn is lost; what memory has is not."""
    stage = Stage(tmp_path, keep_bytes=KEEP, max_bytes=100_000)
    await stage.spool.recover()
    for _ in range(100):
        stage.spool.add(frame(padding=40_000))
        await stage.spool.write()
    lost = stage.records["spool_full"]
    assert stage.spool.pending + lost == 100
    assert stage.spool.pending * 40_000 < 2 * KEEP
    drained = await stage.drain()
    assert drained == (frame(padding=40_000).body or b"") * (100 - lost)
    assert stage.records == {"spool_full": lost}
    await stage.spool.close()


async def test_a_failing_disk_leaves_the_memory(tmp_path: Path) -> None:
    """Records are sent all the same, up to what memory holds; the rest is refused."""
    stage = Stage(tmp_path, max_records=3)
    await stage.spool.recover()
    stage.disk.failing = True
    assert [stage.spool.add(frame()) for _ in range(4)] == [True, True, True, False]
    await stage.spool.write()
    assert stage.is_failing()
    assert await stage.drain() == (frame().body or b"") * 3
    stage.disk.failing = False
    assert stage.spool.add(frame())
    await stage.spool.write()
    assert not stage.is_failing()
    assert await stage.drain() == frame().body
    await stage.spool.close()


async def test_without_a_collector_records_wait_for_the_disk(tmp_path: Path) -> None:
    """They are ready once they are written, and never before."""
    stage = Stage(tmp_path, may_skip_disk=False)
    await stage.spool.recover()
    stage.disk.failing = True
    stage.spool.add(frame())
    await stage.spool.write()
    assert stage.spool.take(9, KEEP) == []
    stage.disk.failing = False
    await stage.spool.write()
    assert stage.spool.has_ready
    await stage.spool.close()


async def test_closing_loses_what_memory_alone_had(tmp_path: Path) -> None:
    """What the disk has is still pending, for the next process."""
    stage = Stage(tmp_path)
    await stage.spool.recover()
    stage.spool.add(frame(2))
    await stage.spool.write()
    stage.disk.failing = True
    stage.spool.add(frame(3))
    assert await stage.spool.close() == 3
    assert stage.spool.pending == 2
    assert await Stage(tmp_path).spool.recover() == 2


async def test_a_log_of_another_process_is_left_alone(tmp_path: Path) -> None:
    """Records then wait in memory."""
    other = Stage(tmp_path)
    await other.spool.recover()
    stage = Stage(tmp_path)
    stage.spool.add(frame())
    assert await stage.spool.recover() == 0
    assert not stage.spool.on_disk
    assert await stage.drain() == frame().body
    await stage.spool.close()
    await other.spool.close()


async def test_a_writer_that_is_cancelled_writes_once(tmp_path: Path) -> None:
    """The writing goes on to its end, and nothing is written twice."""
    stage = Stage(tmp_path)
    await stage.spool.recover()
    stage.spool.add(frame())
    task = asyncio.create_task(stage.spool.write())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stage.spool.close()
    assert await Stage(tmp_path).spool.recover() == 1


async def test_much_at_once_asks_to_be_written(tmp_path: Path) -> None:
    """At full load the disk is not left until the next round."""
    stage = Stage(tmp_path)
    await stage.spool.recover()
    for _ in range(16):
        assert not stage.spool.pressed.is_set()
        stage.spool.add(frame())
    assert stage.spool.pressed.is_set()
    await stage.spool.write()
    assert not stage.spool.pressed.is_set()
    await stage.spool.close()


async def test_a_damaged_request_is_skipped(tmp_path: Path) -> None:
    """One that cannot be read costs itself."""
    disk = Segments(tmp_path, KEEP)
    list(disk.undelivered())
    disk.append([frame().body or b"", b"\x0a\x7f", frame().body or b""])
    disk.close()
    stage = Stage(tmp_path)
    assert await stage.spool.recover() == 2
    await stage.spool.close()


async def test_a_folder_that_cannot_be_opened_is_done_without() -> None:
    """A disk that fails at the start costs the log, not the gateway."""

    class NoDisk(Segments):
        def undelivered(self) -> Iterator[tuple[Extent, bytes]]:
            raise OSError(30, "Read-only file system")

    losses = Losses(lambda *_: None, lambda *_: None)
    spool = Spool(NoDisk(Path("none"), KEEP), SpoolBounds(10, KEEP), losses)
    assert await spool.recover() == 0
    assert spool.add(frame())
    assert spool.has_ready
    await spool.close()
