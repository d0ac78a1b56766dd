"""Export: the loop that takes records out of the ring and metrics out of the cells to a collector.

A collector may be away, slow or in a bad mood; serving never notices. One batch is on its way at a
time, the rest waits in the bounded ring, and whatever is lost is counted with a reason, so that
at every moment

    emitted = delivered + dropped + pending

where the sum over dropped is over all reasons, and pending is in the ring or on its way.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from msgspec import Struct

from gateway.serving.recording import Recorder
from gateway.telemetry import (
    DROP_REASON,
    RECORD_DELIVERED,
    RECORD_DROPPED,
    SPAN_DROPPED,
    Delivery,
    Record,
    Series,
)

MAX_RETRY_AFTER_S: Final = 3_600.0
_RECORDS_SHARE: Final = 0.8
"""Of the time to stop in; the rest is for the last metrics."""


class Encoder(Protocol):
    """Makes request bodies. Called from one thread at a time, not the event loop's.

    Raises TypeError, ValueError or OverflowError for what cannot be encoded.
    """

    def logs(self, records: Sequence[Record]) -> bytes:
        """The prediction events of these records."""

    def spans(self, records: Sequence[Record]) -> tuple[bytes, int] | None:
        """The spans of the sampled ones among them and their number, None for none."""

    def metrics(self, series: Sequence[Series], at_ns: int) -> bytes:
        """All series at this Unix time."""


class Sender(Protocol):
    """Carries request bodies to a collector. Never raises for the network."""

    async def send(self, signal: Literal["logs", "traces", "metrics"], body: bytes) -> Delivery:
        """Send one body and say what became of it."""

    async def close(self) -> None:
        """Let go of the connections."""


class Wire(Struct, frozen=True):
    """The way out."""

    encoder: Encoder
    sender: Sender


class Clock(Struct, frozen=True):
    """Time and chance: monotonic seconds, Unix nanoseconds, and a draw from [0, 1)."""

    monotonic: Callable[[], float]
    unix_ns: Callable[[], int]
    draw: Callable[[], float]


class ExportSettings(Struct, frozen=True):
    """What is exported, and how often. Retries wait between `first` and `last`, doubling."""

    logs: bool = True
    traces: bool = True
    metrics: bool = True
    batch_records: int = 512
    linger_s: float = 0.2
    metric_interval_s: float = 60.0
    first_retry_s: float = 0.5
    last_retry_s: float = 30.0


@dataclass(slots=True)
class _Parcel:
    """Records on their way. Half of a refused parcel is not halved again."""

    records: list[Record]
    is_half: bool = False


class Exporter:
    """Ships records and metrics; one for each process that has cells.

    idle → sending → idle, or → backing off → sending the same parcel again; closed at the end.
    All calls come from the event loop. `run` may be cancelled at any await: a parcel leaves the
    exporter only when it is settled, so it is sent again rather than lost.
    """

    def __init__(
        self, recorder: Recorder, wire: Wire, settings: ExportSettings, clock: Clock
    ) -> None:
        """Attach to the recorder, which starts to keep records if any are exported."""
        # For ever.
        self._recorder = recorder
        self._wire = wire
        self._settings = settings
        self._clock = clock
        self._delivered = recorder.cells.counter(RECORD_DELIVERED)
        recorder.enabled = settings.logs or settings.traces
        # Between two parcels.
        self._parcels: deque[_Parcel] = deque()
        self._attempts = 0
        self._resume_at = 0.0

    async def run(self) -> None:
        """Ship until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._recorder.enabled:
                group.create_task(self._run_records())
            if self._settings.metrics:
                group.create_task(self._run_metrics())

    async def close(self, timeout_s: float) -> None:
        """Send what is left, for at most that long, drop the rest, and close the wire.

        Requires: `run` is over.
        """
        try:
            async with asyncio.timeout(timeout_s * _RECORDS_SHARE):
                self._resume_at = 0.0
                while self._recorder.pending:
                    wait = await self.ship()
                    if self._attempts:
                        await asyncio.sleep(wait)
        except TimeoutError:
            pass
        self._recorder.enabled = False
        self._abandon()
        if self._settings.metrics:
            try:
                async with asyncio.timeout(timeout_s * (1 - _RECORDS_SHARE)):
                    await self.push_metrics()
            except TimeoutError:
                pass
        await self._wire.sender.close()

    async def ship(self) -> float:
        """Send one parcel, if there is one and it is due.

        Returns:
            Seconds until there may be something to do.
        """
        wait = self._resume_at - self._clock.monotonic()
        if wait > 0:
            return wait
        parcel = self._next()
        if parcel is None:
            return self._settings.linger_s
        delivery = await self._send(parcel)
        if delivery.result == "retry":
            return self._back_off(delivery.retry_after_s)
        self._attempts = 0
        self._settle(parcel, delivery)
        if delivery.result == "taken" and self._settings.traces:
            await self._send_spans(parcel.records)
        waits_already = self._parcels or self._recorder.pending >= self._settings.batch_records
        return 0.0 if waits_already else self._settings.linger_s

    async def push_metrics(self) -> None:
        """Send all metrics as they stand. Nothing is kept: the next time tells it all again."""
        series = self._recorder.cells.collect()
        at_ns = self._clock.unix_ns()
        body = await asyncio.to_thread(self._wire.encoder.metrics, series, at_ns)
        await self._wire.sender.send("metrics", body)

    async def _run_records(self) -> None:
        while True:
            wait = await self.ship()
            await asyncio.sleep(wait)

    async def _run_metrics(self) -> None:
        while True:
            await asyncio.sleep(self._settings.metric_interval_s)
            await self.push_metrics()

    def _next(self) -> _Parcel | None:
        """The parcel whose turn it is; it stays first until it is settled."""
        if not self._parcels:
            records = self._recorder.drain(self._settings.batch_records)
            if not records:
                return None
            self._recorder.held += len(records)
            self._parcels.append(_Parcel(records))
        return self._parcels[0]

    async def _send(self, parcel: _Parcel) -> Delivery:
        if not self._settings.logs:
            return Delivery("taken")
        try:
            body = await asyncio.to_thread(self._wire.encoder.logs, parcel.records)
        except (TypeError, ValueError, OverflowError):
            return Delivery("invalid")
        return await self._wire.sender.send("logs", body)

    async def _send_spans(self, records: list[Record]) -> None:
        """Send the spans of records that were taken, once: a lost span is counted, no more."""
        try:
            encoded = await asyncio.to_thread(self._wire.encoder.spans, records)
        except (TypeError, ValueError, OverflowError):
            self._drop_spans("invalid", len(records))
            return
        if encoded is None:
            return
        body, count = encoded
        delivery = await self._wire.sender.send("traces", body)
        if delivery.result != "taken":
            self._drop_spans("refused", count)
        elif delivery.rejected:
            self._drop_spans("rejected", min(delivery.rejected, count))

    def _settle(self, parcel: _Parcel, delivery: Delivery) -> None:
        """Take a parcel off, or halve it; without an await, so that the sum always holds."""
        self._parcels.popleft()
        count = len(parcel.records)
        if delivery.result == "invalid" and not parcel.is_half and count > 1:
            middle = count // 2
            self._parcels.appendleft(_Parcel(parcel.records[middle:], is_half=True))
            self._parcels.appendleft(_Parcel(parcel.records[:middle], is_half=True))
            return
        self._recorder.held -= count
        if not self._settings.logs:
            self._drop("disabled", count)
        elif delivery.result == "taken":
            rejected = min(delivery.rejected, count)
            self._delivered.add(count - rejected)
            self._drop("rejected", rejected)
        else:
            self._drop(delivery.result, count)

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

    def _abandon(self) -> None:
        """Drop everything that is pending."""
        count = self._recorder.pending
        self._parcels.clear()
        self._recorder.held = 0
        self._recorder.drain(count)
        self._drop("shutdown", count)

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._recorder.cells.counter(RECORD_DROPPED, ((DROP_REASON, reason),)).add(count)

    def _drop_spans(self, reason: str, count: int) -> None:
        self._recorder.cells.counter(SPAN_DROPPED, ((DROP_REASON, reason),)).add(count)
