"""Records and spans encoded with the official messages: what the gateway's own bytes must equal."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final, TypeAlias

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway import __version__
from gateway import telemetry as names
from gateway.core.assignment import HASH_VERSION
from gateway.telemetry import Attributes, Kind, Record, Trace

Value: TypeAlias = str | int | float | bool
Pairs: TypeAlias = Iterable[tuple[str, Value | None]]

MAX_TEXT: Final = 4_096
MAX_PAYLOAD_TEXT: Final = 65_536
_MAX_TEMPLATES: Final = 1_024
_SECOND: Final = 1e-9
_MAX_INT: Final = (1 << 63) - 1
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200
_SCOPE: Final = InstrumentationScope(name="tiltyard", version=__version__)


class ReferenceEncoder:
    """Makes request bodies."""

    def __init__(self, resource: Attributes = ()) -> None:
        self._resource = Resource(attributes=_attributes(resource))
        self._templates: dict[tuple[Kind, str | None], LogRecord] = {}

    def logs(self, records: Sequence[Record]) -> bytes:
        """The prediction event of each record, and an evaluation event for a first exposure."""
        request = ExportLogsServiceRequest()
        scope = request.resource_logs.add(resource=self._resource).scope_logs.add(scope=_SCOPE)
        for record in records:
            self._add_prediction(scope.log_records.add(), record)
            if record.first_exposure:
                _add_evaluation(scope.log_records.add(), record)
        body: bytes = request.SerializeToString()
        return body

    def spans(self, records: Sequence[Record]) -> tuple[bytes, int] | None:
        """The spans of the sampled records and their number; None if no record is sampled."""
        request = ExportTraceServiceRequest()
        scope = request.resource_spans.add(resource=self._resource).scope_spans.add(scope=_SCOPE)
        for record in records:
            if record.trace is not None and record.trace.sampled:
                scope.spans.extend(_spans(record, record.trace))
        count = len(scope.spans)
        if not count:
            return None
        body: bytes = request.SerializeToString()
        return body, count

    def _add_prediction(self, entry: LogRecord, record: Record) -> None:
        key = (record.kind, record.error_type)
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            template = self._templates[key] = _template(record)
        entry.CopyFrom(template)
        _stamp(entry, record)
        attributes = entry.attributes
        # In the order of `_template`.
        attributes[0].value.double_value = record.latency_ns * _SECOND
        attributes[1].value.double_value = record.queue_ns * _SECOND
        attributes[2].value.int_value = record.batch_rows
        attributes[3].value.int_value = record.rows
        for name, text, limit in (
            (names.PREDICTION_ID, record.prediction_id, MAX_TEXT),
            (names.UNIT, record.unit_hash and record.unit_hash.hex(), MAX_TEXT),
            (names.REQUEST_ID, record.request_id, MAX_TEXT),
            (names.PRIMARY_PREDICTION_ID, record.primary_id, MAX_TEXT),
            (names.INPUTS, record.inputs, MAX_PAYLOAD_TEXT),
            (names.OUTPUTS, record.outputs, MAX_PAYLOAD_TEXT),
        ):
            if text:
                attributes.add(key=name).value.string_value = clean(text, limit)
        if record.cached:
            attributes.add(key=names.CACHE_HIT).value.bool_value = True


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Make text fit for the wire: valid UTF-8 without NUL, at most `limit` characters."""
    cut = text[:limit]
    if cut.isascii() and "\0" not in cut:
        return cut
    return cut.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _template(record: Record) -> LogRecord:
    """What every prediction of this kind says, after room for what differs in all of them."""
    failed = _failed(record)
    severity = (
        SeverityNumber.SEVERITY_NUMBER_ERROR if failed else SeverityNumber.SEVERITY_NUMBER_INFO
    )
    drawn = record.kind.salt is not None
    return LogRecord(
        severity_number=severity,
        severity_text="ERROR" if failed else "INFO",
        event_name=names.PREDICTION_EVENT,
        attributes=_attributes(
            (
                (names.LATENCY, 0.0),
                (names.QUEUE_LATENCY, 0.0),
                (names.BATCH_ROWS, 0),
                (names.ROWS, 0),
                *_evaluation(record),
                (names.ASSIGNMENT_RULE, record.kind.rule),
                (names.ASSIGNMENT_INTENDED, record.kind.intended),
                (names.ASSIGNMENT_SALT, record.kind.salt),
                (names.ASSIGNMENT_HASH_VERSION, HASH_VERSION if drawn else None),
                (names.ASSIGNMENT_PROPENSITY, float(record.kind.propensity)),
                (names.ASSIGNMENT_STICKY, record.kind.sticky),
                (names.ASSIGNMENT_REASON, str(record.kind.reason)),
                (names.MODEL_NAME, record.kind.model),
                (names.MODEL_VERSION, record.kind.version),
                (names.MODEL_DIGEST, record.kind.digest or None),
                (names.SHADOW, record.kind.shadow),
                (names.ERROR_TYPE, record.error_type),
            )
        ),
    )


def _failed(record: Record) -> bool:
    """Whether the gateway or the model failed; what a caller did wrong is no alarm."""
    return record.error_type is not None and record.error_type not in names.CALLER_ERRORS


def _evaluation(record: Record) -> tuple[tuple[str, Value | None], ...]:
    return (
        (names.ENDPOINT, record.kind.endpoint),
        (names.VARIANT, record.kind.variant),
        (names.REASON, names.STANDARD_REASONS[record.kind.reason]),
        (names.REVISION, str(record.kind.revision)),
        (names.PROVIDER, names.PROVIDER_NAME),
    )


def _add_evaluation(entry: LogRecord, record: Record) -> None:
    """The standard's own event, which experiment tools read without knowing us."""
    entry.severity_number = SeverityNumber.SEVERITY_NUMBER_INFO
    entry.severity_text = "INFO"
    entry.event_name = names.EVALUATION_EVENT
    unit = None if record.unit_hash is None else record.unit_hash.hex()
    entry.attributes.extend(_attributes((*_evaluation(record), (names.UNIT, unit))))
    _stamp(entry, record)


def _stamp(entry: LogRecord, record: Record) -> None:
    entry.time_unix_nano = record.at_ns
    entry.observed_time_unix_nano = record.at_ns + record.latency_ns
    trace = record.trace
    if trace is not None:
        own = shadow_trace(record, trace) if record.kind.shadow else trace
        entry.trace_id = own.trace_id
        entry.span_id = own.span_id
        entry.flags = int(trace.sampled)


def shadow_trace(record: Record, primary: Trace) -> Trace:
    """A shadow's own trace, derived from the request's, so that nobody has to remember it."""
    derived = _derive(primary, f"shadow {record.kind.variant}", 24)
    return Trace(derived[:16], derived[16:], None, primary.sampled)


def _derive(trace: Trace, purpose: str, size: int) -> bytes:
    return blake2b(purpose.encode(), digest_size=size, key=trace.trace_id + trace.span_id).digest()


def _spans(record: Record, trace: Trace) -> list[Span]:
    """The span of a request or shadow, and within it those of its wait and its run."""
    root = _shadow_root(record, trace) if record.kind.shadow else _server_root(record, trace)
    root.attributes.extend(
        _attributes(
            (
                *_evaluation(record),
                (names.MODEL_NAME, record.kind.model),
                (names.MODEL_VERSION, record.kind.version),
                (names.PREDICTION_ID, record.prediction_id or None),
                (names.ERROR_TYPE, record.error_type),
            )
        )
    )
    if _failed(record):
        root.status.code = Status.STATUS_CODE_ERROR
    if not record.batch_rows:
        return [root]
    end = root.end_time_unix_nano
    ran = max(end - record.run_ns, record.at_ns)
    queued = max(ran - record.queue_ns, record.at_ns)
    own = Trace(root.trace_id, root.span_id, None, sampled=True, state=root.trace_state)
    return [
        root,
        _child(own, names.QUEUE_SPAN, queued, ran),
        _child(own, names.INFERENCE_SPAN, ran, end),
    ]


def _server_root(record: Record, trace: Trace) -> Span:
    remote = _IS_REMOTE if trace.parent_id is not None else 0
    return Span(
        trace_id=trace.trace_id,
        span_id=trace.span_id,
        parent_span_id=trace.parent_id or b"",
        trace_state=trace.state,
        flags=1 | _HAS_IS_REMOTE | remote,
        name=names.SERVER_SPAN,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=record.at_ns,
        end_time_unix_nano=record.at_ns + record.latency_ns,
        attributes=_attributes(
            ((names.HTTP_METHOD, "POST"), (names.HTTP_ROUTE, names.SERVER_ROUTE))
        ),
    )


def _shadow_root(record: Record, trace: Trace) -> Span:
    own = shadow_trace(record, trace)
    link = Span.Link(
        trace_id=trace.trace_id, span_id=trace.span_id, trace_state=trace.state, flags=1
    )
    return Span(
        trace_id=own.trace_id,
        span_id=own.span_id,
        flags=1 | _HAS_IS_REMOTE,
        name=names.SHADOW_SPAN,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=record.at_ns,
        end_time_unix_nano=record.at_ns + record.latency_ns,
        attributes=_attributes(((names.SHADOW, True),)),
        links=[link],
    )


def _child(parent: Trace, name: str, start_ns: int, end_ns: int) -> Span:
    return Span(
        trace_id=parent.trace_id,
        span_id=_derive(parent, name, 8),
        parent_span_id=parent.span_id,
        trace_state=parent.state,
        flags=1 | _HAS_IS_REMOTE,
        name=name,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=end_ns,
    )


def _attributes(pairs: Pairs) -> list[KeyValue]:
    return [KeyValue(key=name, value=_value(value)) for name, value in pairs if value is not None]


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=clean(value))
    if isinstance(value, int):
        return AnyValue(int_value=max(min(value, _MAX_INT), -_MAX_INT))
    return AnyValue(double_value=value)
