"""Export: what the processes recorded goes to the record log and to a collector.

A collector may be away, slow or in a bad mood; serving never notices. One batch is on its way at a
time, the rest waits in the spool, and whatever is lost is counted with a reason, so that at every
moment

    emitted = delivered + dropped + pending

where the sum over dropped is over all reasons. A record is emitted once its parcel is here, or once
it is known that it will never come.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from gateway import __version__
from gateway.control.export_parts import ExportParts, ExportSettings
from gateway.control.pace import Pace
from gateway.control.spool import Frame, Losses, Spool, SpoolBounds
from gateway.core.errors import InvalidRequest
from gateway.core.otlp.requests import pieces, request, resource_field, scope_field
from gateway.ports import Parcel
from gateway.telemetry import (
    DROP_REASON,
    PREDICTION_EVENT,
    RECORD_DELIVERED,
    RECORD_DROPPED,
    RECORD_EMITTED,
    RECORD_QUEUE_SIZE,
    SPAN_DROPPED,
    Attributes,
    Delivery,
)

MAX_RETRY_AFTER_S: Final = 3_600.0
SAVE_S: Final = 1.0
"""How often the cursor of the record log is written down."""
_RECORDS_SHARE: Final = 0.8
"""Of the time to stop in; the rest is for the last metrics."""
_EVENT: Final = PREDICTION_EVENT.encode()
_SCOPE: Final = scope_field("tiltyard", __version__)


@dataclass(slots=True)
class _Source:
    """A process that records: how its requests begin, and the serial that it is to send next."""

    resource: bytes
    expected: int = 1


@dataclass(slots=True)
class _Sending:
    """Frames on their way, or `half`, so many of their records; a half is not halved again.

    The first half has no frames: they are settled with the second.
    """

    frames: list[Frame] = field(default_factory=list)
    body: bytes | None = None
    half: int | None = None

    @property
    def records(self) -> int:
        """How many they are; fewer once some cannot be read any more."""
        return sum(one.records for one in self.frames) if self.half is None else self.half


class Exporter:
    """Takes parcels in and ships them; one for each host.

    idle → sending → idle, or → backing off → sending the same records again; closed at the end.
    All calls come from the event loop. `run` may be cancelled at any await: records leave the
    exporter only when they are settled, so they are sent again rather than lost.
    """

    def __init__(self, parts: ExportParts, settings: ExportSettings) -> None:
        """Send nothing yet; every source must be named by `source` before its first parcel."""
        # For ever.
        self._parts = parts
        self._wire = parts.wire
        self._settings = settings
        self._clock = parts.clock
        self._emitted = parts.cells.counter(RECORD_EMITTED)
        self._delivered = parts.cells.counter(RECORD_DELIVERED)
        queue = parts.cells.gauge(RECORD_QUEUE_SIZE)
        parts.cells.watch(lambda: queue.set(self.pending))
        self._spool = Spool(
            parts.folder,
            SpoolBounds(settings.max_records, settings.max_bytes),
            Losses(self._drop, self._drop_spans),
            may_skip_disk=settings.logs,
        )
        self._pace = Pace(settings.drain_bytes_s, self._clock.monotonic)
        # Changes with the processes.
        self._sources: dict[str, _Source] = {}
        # Change with every request.
        self._busy = asyncio.Event()  # records came; until then `run` does nothing
        self._sending: deque[_Sending] = deque()
        self._attempts = 0
        self._resume_at = 0.0

    @property
    def pending(self) -> int:
        """Records that are here and neither delivered nor dropped."""
        return self._spool.pending + sum(one.records for one in self._sending)

    @property
    def wants_records(self) -> bool:
        """Whether records have anywhere to go."""
        return self._settings.logs or self._settings.traces or self._spool.on_disk

    def source(self, name: str, resource: Attributes, settled: int = 0) -> None:
        """Name a process that is going to send parcels, in place of any of that name before.

        Args:
            name: its name in `receive` and `lost`.
            resource: who it is.
            settled: the last serial that an exporter before this one took.
        """
        self._sources[name] = _Source(resource_field(resource), settled + 1)

    def receive(self, source: str, parcel: Parcel) -> None:
        """Take a parcel in; never waits. Parcels of a source come in the order of their serials."""
        known = self._sources[source]
        self._lose(known, parcel.first - 1)
        known.expected = parcel.first + parcel.records + parcel.dropped
        self._emitted.value += parcel.records + parcel.dropped
        self._drop("queue_full", parcel.dropped)
        if not parcel.records:
            return
        self._busy.set()
        for frame in self._frames_of(known, parcel):
            self._pace.came(frame.size)
            if not self._spool.add(frame):
                self._drop("queue_full", frame.records)
                self._drop_spans("queue_full", frame.span_count)

    def lost(self, source: str, made: int) -> None:
        """Count what a dead process made and never sent; its successor counts from 1 again.

        Called before the first parcel of the successor.

        Args:
            source: the process's name.
            made: serial of the last record that it made.
        """
        known = self._sources[source]
        self._lose(known, made)
        known.expected = 1

    async def run(self) -> None:
        """Ship until cancelled."""
        await self.recover()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_records())
            if self._spool.on_disk:
                group.create_task(self._run_disk())
            if self._settings.metrics:
                group.create_task(self._run_metrics())

    async def close(self, timeout_s: float) -> None:
        """Send what is left, for at most that long, and close the wire.

        What is on disk stays there for the next process, and is still pending; the rest is dropped.

        Requires: `run` is over.
        """
        try:
            async with asyncio.timeout(timeout_s * _RECORDS_SHARE):
                self._resume_at = 0.0
                await self._spool.write()
                while self._sending or self._spool.has_ready:
                    wait = await self.ship()
                    if self._attempts:
                        if self._spool.on_disk and not self._spool.failing:
                            break
                        await asyncio.sleep(wait)
        except TimeoutError:
            pass
        await self._abandon()
        if self._settings.metrics:
            try:
                async with asyncio.timeout(timeout_s * (1 - _RECORDS_SHARE)):
                    await self.push_metrics()
            except TimeoutError:
                pass
        await self._wire.sender.close()

    async def recover(self) -> None:
        """Open the record log, once; what an earlier process left there is emitted again."""
        found = await self._spool.recover()
        self._emitted.value += found

    async def write(self) -> None:
        """Append what came to the record log."""
        await self._spool.write()

    async def ship(self) -> float:
        """Send one batch, if there is one and it is due.

        Returns:
            Seconds until there may be something to do.
        """
        wait = self._resume_at - self._clock.monotonic()
        if wait > 0:
            return wait
        sending = self._next()
        if sending is None:
            return self._settings.linger_s
        body = await self._body_of(sending)
        delivery = await self._send(body)
        if delivery.result == "retry":
            return self._back_off(delivery.retry_after_s)
        self._attempts = 0
        self._settle(sending, delivery)
        if delivery.result == "taken":
            await self._send_spans(sending.frames)
        waits_already = self._sending or self._spool.pending >= self._settings.batch_records
        return self._pace.sent(len(body)) if waits_already else self._settings.linger_s

    async def push_metrics(self) -> None:
        """Send all metrics as they stand. Nothing is kept: the next time tells it all again."""
        collect = self._parts.collect
        series = self._parts.cells.collect() if collect is None else await collect()
        at_ns = self._clock.unix_ns()
        body = await asyncio.to_thread(self._wire.encoder.metrics, series, at_ns)
        await self._wire.sender.send("metrics", body)

    async def _run_records(self) -> None:
        while True:
            wait = await self.ship()
            if not self.pending:
                self._busy.clear()
                await self._busy.wait()
            await asyncio.sleep(wait)

    async def _run_disk(self) -> None:
        """Append what comes, at once if it is much, and keep the cursor."""
        saved_at = self._clock.monotonic()
        while True:
            await self._spool.write()
            if self._clock.monotonic() - saved_at >= SAVE_S:
                await self._spool.save()
                saved_at = self._clock.monotonic()
            if self._spool.is_saved and not self._busy.is_set():
                await self._busy.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.linger_s):
                    await self._spool.pressed.wait()

    async def _run_metrics(self) -> None:
        while True:
            await asyncio.sleep(self._settings.metric_interval_s)
            await self.push_metrics()

    def _frames_of(self, known: _Source, parcel: Parcel) -> list[Frame]:
        """A parcel as requests, one if it holds no more records than are sent at a time."""
        body = request(known.resource, _SCOPE, parcel.logs)
        most = self._settings.batch_records
        cut = [(body, parcel.records)]
        if parcel.records > most:
            cut = pieces(body, _EVENT, most)
        frames = [Frame(records, len(piece), piece) for piece, records in cut]
        if parcel.span_count and self._settings.traces:
            frames[-1].spans = request(known.resource, _SCOPE, parcel.spans)
            frames[-1].span_count = parcel.span_count
        return frames

    def _next(self) -> _Sending | None:
        """The records whose turn it is; they stay first until they are settled."""
        if not self._sending:
            frames = self._spool.take(self._settings.batch_records, self._settings.batch_bytes)
            if not frames:
                return None
            self._sending.append(_Sending(frames))
        return self._sending[0]

    async def _body_of(self, sending: _Sending) -> bytes:
        if not self._settings.logs:
            return b""
        if sending.body is None:
            sending.body = await self._spool.body_of(sending.frames)
        return sending.body

    async def _send(self, body: bytes) -> Delivery:
        if not body:
            return Delivery("taken")
        return await self._wire.sender.send("logs", body)

    async def _send_spans(self, frames: list[Frame]) -> None:
        """Send the spans of records that were taken, once: a lost span is counted, no more."""
        count = sum(frame.span_count for frame in frames)
        if not count:
            return
        delivery = await self._wire.sender.send("traces", b"".join(one.spans for one in frames))
        if delivery.result != "taken":
            self._drop_spans("refused", count)
        elif delivery.rejected:
            self._drop_spans("rejected", min(delivery.rejected, count))

    def _settle(self, sending: _Sending, delivery: Delivery) -> None:
        """Take records off, or halve them; without an await, so that the sum always holds."""
        if delivery.result == "invalid" and self._halve(sending):
            return
        self._sending.popleft()
        self._spool.settle(sending.frames)
        if not self._settings.logs and not self._spool.on_disk:
            self._drop("disabled", sending.records)
        elif delivery.result == "taken":
            rejected = min(delivery.rejected, sending.records)
            self._delivered.add(sending.records - rejected)
            self._drop("rejected", rejected)
        else:
            self._drop(delivery.result, sending.records)

    def _halve(self, sending: _Sending) -> bool:
        """Put two halves in the place of what was refused; False if that cannot be done."""
        if sending.half is not None or sending.records < 2 or not sending.body:  # noqa: PLR2004 - two halves
            return False
        try:
            (first, count), (second, rest) = pieces(sending.body, _EVENT, -(-sending.records // 2))
        except (InvalidRequest, ValueError):
            return False
        self._sending.popleft()
        self._sending.appendleft(_Sending(sending.frames, second, half=rest))
        self._sending.appendleft(_Sending([], first, half=count))
        return True

    def _back_off(self, retry_after_s: float | None) -> float:
        """Wait as long as the collector asks, or twice as long as last time, with jitter."""
        self._attempts += 1
        if retry_after_s is not None:
            wait = min(retry_after_s, MAX_RETRY_AFTER_S)
        else:
            doublings = min(self._attempts - 1, 16)
            ceiling = min(self._settings.first_retry_s * 2**doublings, self._settings.last_retry_s)
            wait = ceiling * (0.5 + self._clock.draw() / 2)
        self._resume_at = self._clock.monotonic() + wait
        return wait

    async def _abandon(self) -> None:
        """Drop what only memory has; the rest is the next process's."""
        lost = await self._spool.close()
        for sending in tuple(self._sending):
            if sending.half is not None or any(frame.extent is None for frame in sending.frames):
                self._sending.remove(sending)
                lost += sending.records
        self._drop("shutdown", lost)

    def _lose(self, known: _Source, upto: int) -> None:
        missing = upto + 1 - known.expected
        if missing > 0:
            known.expected += missing
            self._emitted.value += missing
            self._drop("process_lost", missing)

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._parts.cells.counter(RECORD_DROPPED, ((DROP_REASON, reason),)).add(count)

    def _drop_spans(self, reason: str, count: int) -> None:
        if count:
            self._parts.cells.counter(SPAN_DROPPED, ((DROP_REASON, reason),)).add(count)
