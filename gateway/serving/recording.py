"""Recording: what becomes of each prediction until control fetches it.

`record` numbers a record and puts it on a list: a third of a microsecond, before the answer goes
out. `encode_pending` measures and encodes what is on the list, after it went out. Records are kept
up to a number and a size; beyond it the newest are lost and counted, and nothing is logged.
"""

import struct
from bisect import bisect_left
from collections import deque
from typing import Final

from msgspec import Struct

from gateway.ports import Parcel
from gateway.serving.cells import Cells, Counter, Histogram
from gateway.serving.otlp_records import RecordEncoder
from gateway.serving.otlp_spans import encode_spans
from gateway.serving.sightings import Watchman
from gateway.serving.vitals import HANDED_OVER, RECORDS, vitals
from gateway.settings import RecordingSettings
from gateway.telemetry import (
    ASSIGNMENT_COUNT,
    ASSIGNMENT_REASON,
    BATCH_SIZE,
    DURATION_BOUNDS,
    ENDPOINT,
    ERROR_TYPE,
    INFERENCE_DURATION,
    MODEL_NAME,
    MODEL_VERSION,
    PREDICTION_DURATION,
    QUEUE_DURATION,
    REASON,
    SHADOW,
    STANDARD_REASONS,
    VARIANT,
    Attributes,
    Kind,
    Record,
)

AT_ONCE: Final = 64
"""Records that one call encodes: about a tenth of a millisecond."""
WORTHWHILE: Final = 32
"""Fewer records at a time cost up to three times as much each."""
PARCEL_BYTES: Final = 256 * 1024
_MAX_FRESH: Final = 256
_MAX_CACHED: Final = 4_096
_SECOND: Final = 1e-9
_BOUNDS_NS: Final = tuple(round(bound / _SECOND) for bound in DURATION_BOUNDS)


class _Measures:
    """The cells that a record of one kind adds to."""

    __slots__ = ("assignments", "batch", "inference", "prediction", "queue")

    def __init__(self, cells: Cells, kind: Kind, error_type: str | None) -> None:
        model: Attributes = ((MODEL_NAME, kind.model), (MODEL_VERSION, kind.version))
        full: Attributes = (
            *model,
            (ENDPOINT, kind.endpoint),
            (VARIANT, kind.variant),
            (SHADOW, kind.shadow),
        )
        if error_type is not None:
            full = (*full, (ERROR_TYPE, error_type))
        self.prediction: Histogram = cells.histogram(PREDICTION_DURATION, full)
        self.inference: Histogram = cells.histogram(INFERENCE_DURATION, full)
        self.queue: Histogram = cells.histogram(QUEUE_DURATION, model)
        self.batch: Histogram = cells.histogram(BATCH_SIZE, model)
        self.assignments: Counter | None = None
        if not kind.shadow:
            self.assignments = cells.counter(
                ASSIGNMENT_COUNT,
                (
                    (ENDPOINT, kind.endpoint),
                    (VARIANT, kind.variant),
                    (REASON, STANDARD_REASONS[kind.reason]),
                    (ASSIGNMENT_REASON, str(kind.reason)),
                ),
            )

    def add(self, latencies: list[int], queued: list[int], run_ns: int, batch_rows: int) -> None:
        """Count predictions that one run answered, or that were never run."""
        count = len(latencies)
        if self.assignments is not None:
            self.assignments.value += count
        counts = self.prediction.counts
        for latency_ns in latencies:
            counts[bisect_left(_BOUNDS_NS, latency_ns)] += 1
        self.prediction.total += sum(latencies) * _SECOND
        if not batch_rows:
            return
        counts = self.queue.counts
        for queue_ns in queued:
            counts[bisect_left(_BOUNDS_NS, queue_ns)] += 1
        self.queue.total += sum(queued) * _SECOND
        self.inference.counts[bisect_left(_BOUNDS_NS, run_ns)] += count
        self.inference.total += count * run_ns * _SECOND
        self.batch.counts[bisect_left(self.batch.bounds, batch_rows)] += count
        self.batch.total += count * batch_rows


class _Encoded(Struct, gc=False):
    """What one call encoded."""

    records: int
    logs: bytes
    spans: bytes = b""
    span_count: int = 0


class Recorder:
    """What this process knows of its predictions and has not handed over.

    At every moment, `made` = records handed over + `dropped` + `pending`. While not `enabled`,
    predictions are measured and nothing of them is kept. All calls come from the event loop's
    thread. Whoever answers calls `encode_pending` after the answers went out if it `has_many`, and
    whoever takes parcels before; without either, `record` does it in time.
    """

    def __init__(
        self,
        cells: Cells,
        settings: RecordingSettings,
        shared: memoryview | None = None,
        *,
        with_spans: bool = True,
    ) -> None:
        """Know of no prediction yet.

        Args:
            cells: are up to date whenever they are collected.
            settings: bounds.
            shared: vitals of this process, where a serial outlives it; private ones if None.
            with_spans: whether the spans of sampled requests go anywhere.
        """
        self.cells = cells
        self.with_spans = with_spans
        self._max_records = settings.max_records
        self._max_bytes = settings.max_bytes
        self._max_units = settings.max_units
        self._vitals = vitals() if shared is None else shared
        self._enabled = True
        # Change with every record.
        self.made = 0
        self._fresh: list[Record] = []
        # Change with every flush.
        self.encoded_bytes = 0
        self.dropped = 0
        self._told_dropped = 0
        self._encoded_records = 0
        self._handed_over = 0
        self._encoded: deque[_Encoded] = deque()
        self._encoder = RecordEncoder()
        self.watchman = Watchman(cells, settings.max_units)
        # Change with the configuration.
        self._measures: dict[tuple[Kind, str | None], _Measures] = {}
        # Change with every new unit.
        self._seen: set[int] = set()
        self._seen_before: set[int] = set()
        cells.watch(self._catch_up)

    @property
    def enabled(self) -> bool:
        """Whether anybody wants the records."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._catch_up()
        self._enabled = enabled

    @property
    def pending(self) -> int:
        """Records that are neither handed over nor dropped."""
        return self._encoded_records + (len(self._fresh) if self._enabled else 0)

    def record(self, record: Record) -> None:
        """Take note of a prediction."""
        if self._enabled:
            self._vitals[RECORDS] = self.made = self.made + 1
        fresh = self._fresh
        fresh.append(record)
        if len(fresh) >= _MAX_FRESH:
            self.encode_pending(_MAX_FRESH)

    def record_all(self, records: list[Record]) -> None:
        """Take note of several predictions at once."""
        if self._enabled:
            self._vitals[RECORDS] = self.made = self.made + len(records)
        fresh = self._fresh
        fresh += records
        if len(fresh) >= _MAX_FRESH:
            self.encode_pending(_MAX_FRESH)

    def encode_pending(self, limit: int = AT_ONCE) -> int:
        """Measure and encode the oldest records, at most `limit`; how many are left to do."""
        fresh = self._fresh
        batch = fresh[:limit]
        if not batch:
            return 0
        del fresh[:limit]
        if self._measure(batch):
            self.watchman.note(batch)
        if self._enabled:
            self._encode(batch)
        return len(fresh)

    def has_many(self) -> bool:
        """Whether what is pending is worth a call of `encode_pending`."""
        return len(self._fresh) >= WORTHWHILE

    def take(self, limit_bytes: int = PARCEL_BYTES) -> Parcel | None:
        """Hand over what is encoded, the oldest first, what was dropped, and sightings.

        None if there is nothing. Its records are larger than `limit_bytes` only if what one call
        encoded is.
        """
        untold = self.dropped - self._told_dropped
        if not self._encoded and not untold and not self.watchman.has_news:
            return None
        taken: list[_Encoded] = []
        size = 0
        while self._encoded:
            size += len(self._encoded[0].logs) + len(self._encoded[0].spans)
            if taken and size > limit_bytes:
                break
            taken.append(self._encoded.popleft())
        parcel = Parcel(
            first=self._handed_over + 1,
            records=sum(one.records for one in taken),
            dropped=untold,
            logs=b"".join([one.logs for one in taken]),
            spans=b"".join([one.spans for one in taken]),
            span_count=sum(one.span_count for one in taken),
            sightings=self.watchman.take(),
        )
        self.encoded_bytes -= len(parcel.logs) + len(parcel.spans)
        self._encoded_records -= parcel.records
        self._told_dropped = self.dropped
        self._handed_over += parcel.records + untold
        self._vitals[HANDED_OVER] = self._handed_over
        return parcel

    def exposed(self, salt: str, unit_hash: bytes) -> bool:
        """Whether this unit is seen for the first time in the split of that salt.

        An approximation: each process remembers, over all splits, the most recent `max_units` and
        up to as many more, so a unit is first seen once per process, and again after that many
        others.
        """
        mark = hash((salt, unit_hash))
        seen = self._seen
        if mark in seen:
            return False
        is_new = mark not in self._seen_before
        if len(seen) >= self._max_units:
            self._seen_before, self._seen = seen, {mark}
        else:
            seen.add(mark)
        return is_new

    def _catch_up(self) -> None:
        while self.encode_pending(_MAX_FRESH):
            pass

    def _measure(self, batch: list[Record]) -> bool:
        """Add to the cells, the predictions of one kind and one run together.

        Returns:
            Whether some belong to an experiment.
        """
        is_studied = False
        runs: dict[tuple[Kind, str | None, int, int], tuple[list[int], list[int]]] = {}
        for record in batch:
            key = (record.kind, record.error_type, record.run_ns, record.batch_rows)
            run = runs.get(key)
            if run is None:
                run = runs[key] = ([], [])
            run[0].append(record.latency_ns)
            run[1].append(record.queue_ns)
        for (kind, error_type, run_ns, batch_rows), (latencies, queued) in runs.items():
            measures = self._measures.get((kind, error_type))
            if measures is None:
                measures = self._measures_of(kind, error_type)
            measures.add(latencies, queued, run_ns, batch_rows)
            if kind.study is not None:
                is_studied = True
        return is_studied

    def _measures_of(self, kind: Kind, error_type: str | None) -> _Measures:
        if len(self._measures) >= _MAX_CACHED:
            self._measures.clear()
        measures = self._measures[kind, error_type] = _Measures(self.cells, kind, error_type)
        return measures

    def _encode(self, batch: list[Record]) -> None:
        room = self._max_records - self._encoded_records
        if self.encoded_bytes >= self._max_bytes:
            room = 0
        if room < len(batch):
            self.dropped += len(batch) - room
            batch = batch[:room]
        try:
            self._keep(batch)
        except _UNFIT:
            for record in batch:
                try:
                    self._keep([record])
                except _UNFIT:
                    self.dropped += 1

    def _keep(self, batch: list[Record]) -> None:
        if not batch:
            return
        encoded = _Encoded(len(batch), self._encoder.logs(batch))
        if self.with_spans:
            encoded.spans, encoded.span_count = encode_spans(batch)
        self._encoded.append(encoded)
        self._encoded_records += len(batch)
        self.encoded_bytes += len(encoded.logs) + len(encoded.spans)


_UNFIT: Final = (struct.error, TypeError, ValueError, AttributeError)
"""What the encoder raises for a record that holds what it may not hold."""
