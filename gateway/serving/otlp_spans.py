"""Spans of sampled predictions, as repeated `spans` fields of an OTLP `ScopeSpans`.

Source: OpenTelemetry protocol 1.x; semantic conventions 1.44.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

from gateway import telemetry as names
from gateway.core.otlp.wire import (
    Value,
    bytes_field,
    clean,
    fixed32_field,
    fixed64_field,
    key_value,
    varint_field,
)
from gateway.telemetry import Kind, Record, Trace

_SPANS: Final = 2
_ATTRIBUTES: Final = 9
_SERVER: Final = 2
_INTERNAL: Final = 1
_ERROR: Final = 2
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200


def encode_spans(records: Sequence[Record]) -> tuple[bytes, int]:
    """The spans of the sampled records, and their number."""
    spans = [
        span
        for record in records
        if record.trace is not None and record.trace.sampled
        for span in _spans(record, record.trace)
    ]
    return b"".join(bytes_field(_SPANS, span) for span in spans), len(spans)


def failed(error_type: str | None) -> bool:
    """Whether the gateway or the model failed; what a caller did wrong is no alarm."""
    return error_type is not None and error_type not in names.CALLER_ERRORS


def evaluation(kind: Kind) -> tuple[tuple[str, Value], ...]:
    """The attributes that the standard gives to an evaluation."""
    return (
        (names.ENDPOINT, kind.endpoint),
        (names.VARIANT, kind.variant),
        (names.REASON, names.STANDARD_REASONS[kind.reason]),
        (names.REVISION, str(kind.revision)),
        (names.PROVIDER, names.PROVIDER_NAME),
    )


def attribute_fields(number: int, pairs: Iterable[tuple[str, Value | None]]) -> bytes:
    """Repeated attributes; those that are None are left out."""
    return b"".join(
        bytes_field(number, key_value(name, value)) for name, value in pairs if value is not None
    )


def shadow_trace(record: Record, primary: Trace) -> Trace:
    """A shadow's own trace, derived from the request's, so that nobody has to remember it."""
    derived = _derive(primary, f"shadow {record.kind.variant}", 24)
    return Trace(derived[:16], derived[16:], None, primary.sampled)


def _derive(trace: Trace, purpose: str, size: int) -> bytes:
    key = trace.trace_id + trace.span_id
    return blake2b(purpose.encode("utf-8", "replace"), digest_size=size, key=key).digest()


def _spans(record: Record, trace: Trace) -> list[bytes]:
    """The span of a request or shadow, and within it those of its wait and its run."""
    own = shadow_trace(record, trace) if record.kind.shadow else trace
    end = record.at_ns + record.latency_ns
    root = _root(record, trace, own)
    if not record.batch_rows:
        return [root]
    ran = max(end - record.run_ns, record.at_ns)
    queued = max(ran - record.queue_ns, record.at_ns)
    return [
        root,
        _child(own, names.QUEUE_SPAN, queued, ran),
        _child(own, names.INFERENCE_SPAN, ran, end),
    ]


def _root(record: Record, trace: Trace, own: Trace) -> bytes:
    kind = record.kind
    shadow = kind.shadow
    first: tuple[tuple[str, Value], ...] = ((names.SHADOW, True),)
    if not shadow:
        first = ((names.HTTP_METHOD, "POST"), (names.HTTP_ROUTE, names.SERVER_ROUTE))
    remote = _IS_REMOTE if own.parent_id is not None else 0
    told = attribute_fields(
        _ATTRIBUTES,
        (
            *first,
            *evaluation(kind),
            (names.MODEL_NAME, kind.model),
            (names.MODEL_VERSION, kind.version),
            (names.PREDICTION_ID, record.prediction_id or None),
            (names.ERROR_TYPE, record.error_type),
        ),
    )
    return b"".join(
        (
            _place(own),
            b"" if own.parent_id is None else bytes_field(4, own.parent_id),
            bytes_field(5, (names.SHADOW_SPAN if shadow else names.SERVER_SPAN).encode()),
            varint_field(6, _INTERNAL if shadow else _SERVER),
            _times(record.at_ns, record.at_ns + record.latency_ns),
            told,
            bytes_field(13, _place(trace) + fixed32_field(6, 1)) if shadow else b"",
            bytes_field(15, varint_field(3, _ERROR)) if failed(record.error_type) else b"",
            fixed32_field(16, 1 | _HAS_IS_REMOTE | remote),
        )
    )


def _child(parent: Trace, name: str, start_ns: int, end_ns: int) -> bytes:
    place = Trace(parent.trace_id, _derive(parent, name, 8), None, sampled=True, state=parent.state)
    return b"".join(
        (
            _place(place),
            bytes_field(4, parent.span_id),
            bytes_field(5, name.encode()),
            varint_field(6, _INTERNAL),
            _times(start_ns, end_ns),
            fixed32_field(16, 1 | _HAS_IS_REMOTE),
        )
    )


def _place(trace: Trace) -> bytes:
    """Trace id, span id and state, which spans and links number alike."""
    place = bytes_field(1, trace.trace_id) + bytes_field(2, trace.span_id)
    return place + bytes_field(3, clean(trace.state)) if trace.state else place


def _times(start_ns: int, end_ns: int) -> bytes:
    return fixed64_field(7, start_ns) + fixed64_field(8, end_ns)
