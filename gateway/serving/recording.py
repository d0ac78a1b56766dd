"""Recording: what is kept of each prediction until the exporter fetches it.

`record` costs one to two microseconds and never waits: it updates cells and appends to a bounded
ring. A full ring loses the newest record and counts it; nothing is logged. Encoding, sending and
all that can fail is someone else's work.
"""

from collections import OrderedDict, deque
from collections.abc import Collection
from math import isfinite
from typing import Final

import msgspec

from gateway.core.tensors import NAMES, Array, Tensors
from gateway.serving.cells import Cells, Counter, Histogram
from gateway.settings import RecordingSettings
from gateway.telemetry import (
    ASSIGNMENT_COUNT,
    ASSIGNMENT_REASON,
    BATCH_SIZE,
    DROP_REASON,
    ENDPOINT,
    ERROR_TYPE,
    INFERENCE_DURATION,
    MODEL_NAME,
    MODEL_VERSION,
    PREDICTION_DURATION,
    QUEUE_DURATION,
    REASON,
    RECORD_DROPPED,
    RECORD_EMITTED,
    RECORD_QUEUE_SIZE,
    SHADOW,
    STANDARD_REASONS,
    VARIANT,
    Attributes,
    Kind,
    Record,
)

MAX_SPLITS: Final = 64
"""Splits whose units are remembered at the same time."""
_MAX_CACHED: Final = 4_096
_SECOND: Final = 1e-9


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


class Recorder:
    """The ring between serving and export, and the cells of each prediction.

    `enabled` is False while nobody exports: cells are updated, records are neither kept nor
    counted. `held` counts what the exporter drained and has not settled; it takes room in the
    ring, so that emitted = settled + dropped + pending, and pending has one bound. All calls come
    from the event loop's thread.
    """

    def __init__(self, cells: Cells, settings: RecordingSettings) -> None:
        """Make an empty ring of `settings.max_records`."""
        self.enabled = True
        self.cells = cells
        self._max_records = settings.max_records
        self._max_units = settings.max_units
        # Changes with every record.
        self._ring: deque[Record] = deque()
        self.held = 0
        self._emitted = cells.counter(RECORD_EMITTED)
        self._dropped = cells.counter(RECORD_DROPPED, ((DROP_REASON, "queue_full"),))
        queue = cells.gauge(RECORD_QUEUE_SIZE)
        cells.watch(lambda: queue.set(self.pending))
        # Changes with the configuration.
        self._measures: dict[tuple[Kind, str | None], _Measures] = {}
        # Changes with every new unit.
        self._seen: OrderedDict[str, OrderedDict[bytes, None]] = OrderedDict()

    @property
    def emitted(self) -> int:
        """Records made while enabled."""
        return int(self._emitted.value)

    @property
    def dropped(self) -> int:
        """Those of them that found the ring full."""
        return int(self._dropped.value)

    @property
    def pending(self) -> int:
        """Those of them that wait in the ring or are held."""
        return len(self._ring) + self.held

    def record(self, record: Record) -> None:
        """Measure a prediction and keep its record if there is room."""
        key = (record.kind, record.error_type)
        measures = self._measures.get(key)
        if measures is None:
            measures = self._measure(key)
        measures.prediction.observe(record.latency_ns * _SECOND)
        if record.batch_rows:
            measures.inference.observe(record.run_ns * _SECOND)
            measures.queue.observe(record.queue_ns * _SECOND)
            measures.batch.observe(record.batch_rows)
        if measures.assignments is not None:
            measures.assignments.value += 1
        if not self.enabled:
            return
        self._emitted.value += 1
        if len(self._ring) + self.held < self._max_records:
            self._ring.append(record)
        else:
            self._dropped.value += 1

    def exposed(self, salt: str, unit_hash: bytes) -> bool:
        """Whether this unit is seen for the first time in the split of that salt.

        An approximation: each process remembers the most recent `max_units` of a split, so a unit
        is first seen once per process, and again after so many others.
        """
        units = self._seen.get(salt)
        if units is None:
            units = self._seen[salt] = OrderedDict()
            if len(self._seen) > MAX_SPLITS:
                self._seen.popitem(last=False)
        if unit_hash in units:
            units.move_to_end(unit_hash)
            return False
        units[unit_hash] = None
        if len(units) > self._max_units:
            units.popitem(last=False)
        return True

    def drain(self, limit: int) -> list[Record]:
        """Take the oldest records off the ring, at most `limit`."""
        ring = self._ring
        return [ring.popleft() for _ in range(min(limit, len(ring)))]

    def _measure(self, key: tuple[Kind, str | None]) -> _Measures:
        if len(self._measures) >= _MAX_CACHED:
            self._measures.clear()
        measures = self._measures[key] = _Measures(self.cells, *key)
        return measures


def payload_text(tensors: Tensors, redact: Collection[str], max_bytes: int) -> str:
    """Render tensors as compact JSON of at most `max_bytes`; nothing of them is kept.

    Each tensor has an equal share of what is left. `cut` counts the elements that did not fit;
    a tensor for which there is no room at all is missing. Names in `redact` are listed under
    `redacted`, and their values are never looked at. NaN and infinities become strings.
    """
    shown = [name for name in tensors if name not in redact]
    hidden = msgspec.json.encode(sorted(name for name in tensors if name in redact)).decode()
    tail = f'}},"redacted":{hidden}}}' if hidden != "[]" else "}}"
    room = max_bytes - len(_PAYLOAD_HEAD) - len(tail.encode())
    parts: list[str] = []
    for index, name in enumerate(shown):
        part = _tensor_text(name, tensors[name], room // (len(shown) - index) - 1)
        if part is not None:
            parts.append(part)
            room -= len(part.encode()) + 1
    text = _PAYLOAD_HEAD + ",".join(parts) + tail
    return text if len(text.encode()) <= max_bytes else "{}"


_PAYLOAD_HEAD: Final = '{"tensors":{'


def _tensor_text(name: str, tensor: Array, room: int) -> str | None:
    """One member of the object, or None when not even an empty one fits."""
    key = msgspec.json.encode(name).decode()
    datatype = NAMES.get(tensor.dtype, str(tensor.dtype))
    shape = msgspec.json.encode(tensor.shape).decode()
    head = f'{key}:{{"datatype":"{datatype}","shape":{shape},'
    left = room - len(head.encode()) - len('"data":[],"cut":}') - len(str(tensor.size))
    if left < 0:
        return None
    # An element takes two bytes at least, with its comma.
    first = tensor.reshape(-1)[: left // 2 + 1].tolist()
    texts: list[str] = []
    for value in first:
        text = msgspec.json.encode(_plain(value, left)).decode()
        left -= len(text.encode()) + 1
        if left < -1:
            break
        texts.append(text)
    cut = int(tensor.size) - len(texts)
    tail = f',"cut":{cut}}}' if cut else "}"
    return f'{head}"data":[{",".join(texts)}]{tail}'


def _plain(value: object, limit: int) -> object:
    if isinstance(value, bytes):
        return value[: max(limit, 0) + 1].decode("utf-8", "replace")
    if isinstance(value, float) and not isfinite(value):
        return {"nan": "NaN", "inf": "Infinity"}.get(str(value), "-Infinity")
    return value
