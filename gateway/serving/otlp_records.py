"""Prediction records, as repeated `log_records` fields of an OTLP `ScopeLogs`.

What all records of one kind say is encoded once. Of each record only the times, the sizes and the
ids are new, and they are put between pieces of known length: two microseconds a record.

Source: OpenTelemetry protocol 1.x; semantic conventions 1.44.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Final

from gateway import telemetry as names
from gateway.core.otlp.wire import (
    BYTES,
    TextAttribute,
    bytes_field,
    key_value,
    varint,
    varint_field,
)
from gateway.serving.otlp_spans import attribute_fields, evaluation, failed, shadow_trace
from gateway.telemetry import Kind, Record, Trace

MAX_PAYLOAD_TEXT: Final = 65_536
_LOG_RECORDS: Final = 2
_ATTRIBUTES: Final = 6
_INFO: Final = 9
_ERROR: Final = 17
_SECOND: Final = 1e-9
_MAX_TEMPLATES: Final = 4_096
_MAX_SIZES: Final = 4_096
_UNIT_BYTES: Final = 16


def _before_double(name: str) -> bytes:
    """An attribute of a double, without the eight bytes of its value."""
    return bytes_field(_ATTRIBUTES, key_value(name, 0.0))[:-8]


_LATENCY: Final = _before_double(names.LATENCY)
_QUEUE: Final = _before_double(names.QUEUE_LATENCY)
_HEAD: Final = Struct(f"<BQBQ{len(_LATENCY)}sd{len(_QUEUE)}sd")
"""Both times, both latencies, in nanoseconds and seconds."""
_TIME: Final = 1 << 3 | 1
_OBSERVED: Final = 11 << 3 | 1
_STAMP: Final = Struct("<BQBQ")
_TRACE: Final = Struct("<BB16sBB8s")
_TRACE_TAGS: Final = (9 << 3 | BYTES, 16, 10 << 3 | BYTES, 8)
_SAMPLED: Final = b"\x45\x01\x00\x00\x00"


class RecordEncoder:
    """Makes log records; keeps what the records of a kind have in common. Not thread-safe."""

    __slots__ = ("_evaluations", "_failures", "_prefixes", "_sizes", "_templates")

    def __init__(self) -> None:
        """Know nothing yet."""
        # Change with the configuration.
        self._templates: dict[Kind, bytes] = {}
        self._evaluations: dict[Kind, bytes] = {}
        self._failures: dict[tuple[Kind, str], bytes] = {}
        # Change with new sizes of requests, batches and records.
        self._sizes: dict[tuple[int, int], bytes] = {}
        self._prefixes: dict[int, bytes] = {}

    def logs(self, records: Sequence[Record]) -> bytes:
        """The prediction event of each record, and an evaluation event for a first exposure.

        Raises:
            struct.error, TypeError, AttributeError: a record holds what it may not hold.
        """
        parts: list[bytes] = []
        pack, size_of_head, add = _HEAD.pack, _HEAD.size, parts.extend
        templates, sizes, prefixes = self._templates, self._sizes, self._prefixes
        for record in records:
            kind, error_type = record.kind, record.error_type
            static = templates.get(kind) if error_type is None else None
            if static is None:
                static = self._template(kind, error_type)
            counts = sizes.get((record.batch_rows, record.rows))
            if counts is None:
                counts = self._counts(record.batch_rows, record.rows)
            at_ns, latency_ns = record.at_ns, record.latency_ns
            head = pack(
                _TIME,
                at_ns,
                _OBSERVED,
                at_ns + latency_ns,
                _LATENCY,
                latency_ns * _SECOND,
                _QUEUE,
                record.queue_ns * _SECOND,
            )
            tail = _tail(record)
            size = size_of_head + len(counts) + len(static) + len(tail)
            prefix = prefixes.get(size)
            if prefix is None:
                prefix = self._prefix(size)
            add((prefix, head, counts, static, tail))
            if record.first_exposure:
                parts.append(bytes_field(_LOG_RECORDS, self._evaluation(record)))
        return b"".join(parts)

    def _evaluation(self, record: Record) -> bytes:
        """The standard's own event, which experiment tools read without knowing us."""
        kind = record.kind
        static = self._evaluations.get(kind)
        if static is None:
            if len(self._evaluations) >= _MAX_TEMPLATES:
                self._evaluations.clear()
            told = attribute_fields(_ATTRIBUTES, evaluation(kind))
            static = self._evaluations[kind] = _event(names.EVALUATION_EVENT) + told
        stamp = _STAMP.pack(_TIME, record.at_ns, _OBSERVED, record.at_ns + record.latency_ns)
        unit = b"" if record.unit_hash is None else _unit(record.unit_hash)
        trace = b"" if record.trace is None else _trace(record, record.trace)
        return stamp + static + unit + trace

    def _template(self, kind: Kind, error_type: str | None) -> bytes:
        if error_type is None:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            template = self._templates[kind] = _static(kind, None)
            return template
        known = self._failures.get((kind, error_type))
        if known is None:
            if len(self._failures) >= _MAX_TEMPLATES:
                self._failures.clear()
            known = self._failures[kind, error_type] = _static(kind, error_type)
        return known

    def _counts(self, batch_rows: int, rows: int) -> bytes:
        if len(self._sizes) >= _MAX_SIZES:
            self._sizes.clear()
        told = ((names.BATCH_ROWS, batch_rows), (names.ROWS, rows))
        counts = self._sizes[batch_rows, rows] = attribute_fields(_ATTRIBUTES, told)
        return counts

    def _prefix(self, size: int) -> bytes:
        if len(self._prefixes) >= _MAX_SIZES:
            self._prefixes.clear()
        prefix = self._prefixes[size] = varint(_LOG_RECORDS << 3 | BYTES) + varint(size)
        return prefix


_ID: Final = TextAttribute(_ATTRIBUTES, names.PREDICTION_ID)
_UNIT: Final = TextAttribute(_ATTRIBUTES, names.UNIT)
_UNIT_PREFIX: Final = _UNIT.prefix(2 * _UNIT_BYTES)
_REQUEST: Final = TextAttribute(_ATTRIBUTES, names.REQUEST_ID)
_PRIMARY: Final = TextAttribute(_ATTRIBUTES, names.PRIMARY_PREDICTION_ID)
_INPUTS: Final = TextAttribute(_ATTRIBUTES, names.INPUTS, MAX_PAYLOAD_TEXT)
_OUTPUTS: Final = TextAttribute(_ATTRIBUTES, names.OUTPUTS, MAX_PAYLOAD_TEXT)

_CACHED: Final = bytes_field(_ATTRIBUTES, key_value(names.CACHE_HIT, value=True))


def _tail(record: Record) -> bytes:
    """Ids, payload and trace: what a record may or may not have."""
    identity, unit_hash = record.prediction_id, record.unit_hash
    told = _ID.encode(identity) if identity else b""
    if unit_hash:
        told += _unit(unit_hash)
    if record.request_id:
        told += _REQUEST.encode(record.request_id)
    if record.primary_id:
        told += _PRIMARY.encode(record.primary_id)
    if record.inputs:
        told += _INPUTS.encode(record.inputs)
    if record.outputs:
        told += _OUTPUTS.encode(record.outputs)
    if record.cached:
        told += _CACHED
    return told if record.trace is None else told + _trace(record, record.trace)


def _unit(unit_hash: bytes) -> bytes:
    if len(unit_hash) == _UNIT_BYTES:
        return _UNIT_PREFIX + unit_hash.hex().encode()
    return _UNIT.encode(unit_hash.hex())


def _trace(record: Record, trace: Trace) -> bytes:
    own = shadow_trace(record, trace) if record.kind.shadow else trace
    first, first_size, second, second_size = _TRACE_TAGS
    place = _TRACE.pack(first, first_size, own.trace_id, second, second_size, own.span_id)
    return place + _SAMPLED if trace.sampled else place


def _static(kind: Kind, error_type: str | None) -> bytes:
    """What every prediction of this kind says, besides what differs in all of them."""
    drawn = kind.salt is not None
    told = (
        *evaluation(kind),
        (names.ASSIGNMENT_RULE, kind.rule),
        (names.ASSIGNMENT_INTENDED, kind.intended),
        (names.ASSIGNMENT_SALT, kind.salt),
        (names.ASSIGNMENT_HASH_VERSION, kind.hash_version if drawn else None),
        (names.ASSIGNMENT_PROPENSITY, float(kind.propensity)),
        (names.ASSIGNMENT_STICKY, kind.sticky),
        (names.ASSIGNMENT_REASON, str(kind.reason)),
        (names.EXPERIMENT_NAME, kind.experiment),
        (names.EXPERIMENT_PHASE, kind.phase or None),
        (names.MODEL_NAME, kind.model),
        (names.MODEL_VERSION, kind.version),
        (names.MODEL_DIGEST, kind.digest or None),
        (names.SHADOW, kind.shadow),
        (names.ERROR_TYPE, error_type),
    )
    event = _event(names.PREDICTION_EVENT, is_error=failed(error_type))
    return event + attribute_fields(_ATTRIBUTES, told)


def _event(name: str, *, is_error: bool = False) -> bytes:
    severity = varint_field(2, _ERROR if is_error else _INFO)
    text = bytes_field(3, b"ERROR" if is_error else b"INFO")
    return severity + text + bytes_field(12, name.encode())
