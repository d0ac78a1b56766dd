from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as Encoded
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from gateway.core.assignment import Reason
from gateway.core.otlp.requests import request, resource_field, scope_field
from gateway.serving.otlp_records import RecordEncoder
from gateway.serving.otlp_spans import encode_spans, shadow_trace
from gateway.telemetry import Record, Trace
from tests.otlp_receiver import is_prediction, log_records, plain
from tests.otlp_reference import ReferenceEncoder
from tests.records import make_record

AT = 1_700_000_000_000_000_000
RESOURCE = resource_field((("service.name", "tiltyard"), ("process.pid", 12)))
SCOPE = scope_field("tiltyard", "1")
TRACE = Trace(b"t" * 16, b"s" * 8, b"p" * 8, sampled=True, state="vendor=1")

STANDARD = {
    Reason.STATIC: "static",
    Reason.SPLIT: "split",
    Reason.TARGETING_MATCH: "targeting_match",
    Reason.DEFAULT: "default",
    Reason.FORCED: "targeting_match",
    Reason.PINNED: "static",
    Reason.FALLBACK: "error",
}


def record(**changes: Any) -> Record:
    """A record of a good prediction."""
    return make_record(**{"model": "digits-model", **changes})


def logs(*records: Record) -> list[Encoded]:
    """The log records of these records, as a collector reads them."""
    return decoded(RecordEncoder().logs(records))


def decoded(rows: bytes) -> list[Encoded]:
    """Log records as a collector reads them."""
    return log_records(ExportLogsServiceRequest.FromString(request(RESOURCE, SCOPE, rows)))


def spans(*records: Record) -> list[Span]:
    """The spans of these records, as a collector reads them."""
    rows, count = encode_spans(records)
    message = ExportTraceServiceRequest.FromString(request(RESOURCE, SCOPE, rows))
    found = [
        span for one in message.resource_spans for scope in one.scope_spans for span in scope.spans
    ]
    assert len(found) == count
    return found


def random_record(random: Random, **changes: Any) -> Record:
    """A record that may hold anything that a record may hold."""

    def maybe(value: Any) -> Any:
        return random.choice((None, value))

    def text() -> str:
        return "".join(random.choices('aé漢😀"\\ \n\t-_.', k=random.randint(1, 40)))

    return make_record(
        at_ns=random.randrange(1 << 62),
        endpoint=text(),
        model=text(),
        version=random.randrange(1 << 31),
        digest=text(),
        variant=text(),
        reason=random.choice(list(Reason)),
        prediction_id=text(),
        latency_ns=random.randrange(1 << 40),
        queue_ns=random.randrange(1 << 30),
        run_ns=random.randrange(1 << 30),
        rows=random.randrange(1 << 20),
        batch_rows=random.randrange(1 << 20),
        revision=random.randrange(1 << 40),
        rule=maybe(text()),
        intended=maybe(text()),
        propensity=random.random(),
        salt=maybe(text()),
        sticky=random.random() < 0.5,
        unit_hash=maybe(random.randbytes(16)),
        request_id=maybe(text()),
        error_type=random.choice((None, "model_error", "invalid_request")),
        trace=maybe(
            Trace(random.randbytes(16), random.randbytes(8), None, random.random() < 0.5, text())
        ),
        primary_id=maybe(text()),
        inputs=maybe(text()),
        outputs=maybe(text()),
        cached=random.random() < 0.2,
        **changes,
    )


def expected_attributes(record: Record) -> Mapping[str, Any]:
    """What the event says of a record, written out once more."""
    attributes = {
        "feature_flag.key": record.kind.endpoint,
        "feature_flag.result.variant": record.kind.variant,
        "feature_flag.result.reason": STANDARD[record.kind.reason],
        "feature_flag.version": f"{record.kind.revision}",
        "feature_flag.provider.name": "tiltyard",
        "feature_flag.context.id": record.unit_hash.hex() if record.unit_hash else None,
        "tiltyard.assignment.rule": record.kind.rule,
        "tiltyard.assignment.intended": record.kind.intended,
        "tiltyard.assignment.salt": record.kind.salt,
        "tiltyard.assignment.hash_version": 1 if record.kind.salt else None,
        "tiltyard.assignment.propensity": record.kind.propensity,
        "tiltyard.assignment.sticky": record.kind.sticky,
        "tiltyard.assignment.reason": record.kind.reason.value,
        "tiltyard.model.name": record.kind.model,
        "tiltyard.model.version": record.kind.version,
        "tiltyard.model.digest": record.kind.digest,
        "tiltyard.prediction.id": record.prediction_id,
        "tiltyard.primary.prediction.id": record.primary_id,
        "tiltyard.request.id": record.request_id,
        "tiltyard.latency": record.latency_ns * 1e-9,
        "tiltyard.queue.latency": record.queue_ns * 1e-9,
        "tiltyard.batch.size": record.batch_rows,
        "tiltyard.rows": record.rows,
        "tiltyard.shadow": record.kind.shadow,
        "tiltyard.inputs": record.inputs,
        "tiltyard.outputs": record.outputs,
        "tiltyard.cache.hit": record.cached or None,
        "error.type": record.error_type,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def by_the_sdk(record: Record) -> Encoded:
    """The same event, encoded by the SDK's own encoder."""
    context = None
    if record.trace is not None:
        place = SpanContext(
            trace_id=int.from_bytes(record.trace.trace_id, "big"),
            span_id=int.from_bytes(record.trace.span_id, "big"),
            is_remote=False,
            trace_flags=TraceFlags(int(record.trace.sampled)),
        )
        context = set_span_in_context(NonRecordingSpan(place))
    failed = record.error_type == "model_error"
    event = LogRecord(
        timestamp=record.at_ns,
        observed_timestamp=record.at_ns + record.latency_ns,
        context=context,
        severity_text="ERROR" if failed else "INFO",
        severity_number=SeverityNumber.ERROR if failed else SeverityNumber.INFO,
        attributes=expected_attributes(record),
        event_name="tiltyard.prediction",
    )
    scope = InstrumentationScope("tiltyard")
    (encoded,) = log_records(encode_logs([ReadableLogRecord(event, Resource({}), scope)]))
    return encoded


def test_events_equal_those_of_the_sdk() -> None:
    """For 1,000 random records every field is what the SDK's own encoder makes of the same."""
    random = Random(20_240_229)
    records = [random_record(random) for _ in range(1_000)]
    for ours, told in zip(logs(*records), records, strict=True):
        theirs = by_the_sdk(told)
        by_key = sorted(theirs.attributes, key=lambda pair: pair.key)
        assert sorted(ours.attributes, key=lambda pair: pair.key) == by_key
        assert ours.body.WhichOneof("value") is None
        del ours.attributes[:], theirs.attributes[:]
        theirs.ClearField("body")
        assert ours == theirs


def test_events_equal_those_of_the_official_messages() -> None:
    """For 1,000 random records, shadows and first exposures included, every field is the same."""
    random = Random(17)
    records = [
        random_record(random, shadow=random.random() < 0.3, first_exposure=random.random() < 0.3)
        for _ in range(1_000)
    ]
    message = ExportLogsServiceRequest.FromString(ReferenceEncoder().logs(records))
    assert logs(*records) == log_records(message)


def test_spans_equal_those_of_the_official_messages() -> None:
    """For 1,000 random records, shadows included, every field is the same."""
    random = Random(18)
    records = [random_record(random, shadow=random.random() < 0.3) for _ in range(1_000)]
    encoded = ReferenceEncoder().spans(records)
    assert encoded is not None
    message = ExportTraceServiceRequest.FromString(encoded[0])
    assert spans(*records) == list(message.resource_spans[0].scope_spans[0].spans)


HOSTILE = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(
    ["\0", "\ud800", "x" * 1_000_000, "é" * 5_000, "a\0b\udfff漢"]
)


@given(text=HOSTILE, other=HOSTILE)
def test_hostile_text_is_told_as_the_official_messages_tell_it(text: str, other: str) -> None:
    """NUL, halves of surrogate pairs and a megabyte of text spoil nothing."""
    hostile = record(
        prediction_id=text, request_id=other, inputs=text, outputs=other, variant=text, rule=other
    )
    message = ExportLogsServiceRequest.FromString(ReferenceEncoder().logs([hostile]))
    assert logs(hostile) == log_records(message)


def test_one_encoder_keeps_records_apart() -> None:
    """What records have in common is shared, and nothing else."""
    shared = RecordEncoder()
    records = [record(), record(variant="champion"), record(error_type="model_error"), record()]
    entries = decoded(shared.logs(records))
    assert [plain(entry.attributes)["feature_flag.result.variant"] for entry in entries] == [
        "challenger",
        "champion",
        "challenger",
        "challenger",
    ]
    assert [entry.severity_text for entry in entries] == ["INFO", "INFO", "ERROR", "INFO"]
    assert "error.type" not in plain(entries[3].attributes)


def test_a_first_exposure_is_an_evaluation_too() -> None:
    """The standard's event comes with the first exposure of a unit, and only then."""
    prediction, evaluation = logs(record(first_exposure=True, unit_hash=b"\x01" * 16, trace=TRACE))
    assert is_prediction(prediction)
    assert evaluation.event_name == "feature_flag.evaluation"
    assert plain(evaluation.attributes) == {
        "feature_flag.key": "digits",
        "feature_flag.result.variant": "challenger",
        "feature_flag.result.reason": "split",
        "feature_flag.version": "7",
        "feature_flag.context.id": "01" * 16,
        "feature_flag.provider.name": "tiltyard",
    }
    assert evaluation.time_unix_nano == AT
    assert evaluation.trace_id == TRACE.trace_id
    assert len(logs(record())) == 1


def test_what_is_unknown_is_left_out() -> None:
    """An empty id or digest is no attribute."""
    (entry,) = logs(record(prediction_id="", digest=""))
    told = plain(entry.attributes)
    assert "tiltyard.prediction.id" not in told
    assert "tiltyard.model.digest" not in told


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        pytest.param("plain", "plain", id="plain"),
        pytest.param("a\0b", "a\ufffdb", id="NUL"),
        pytest.param("a\ud800b", "a?b", id="half a surrogate pair"),
        pytest.param("é😀", "é😀", id="Unicode"),
        pytest.param("x" * 1_000_000, "x" * 4_096, id="a megabyte"),
    ],
)
def test_text_is_made_fit_for_the_wire(text: str, cleaned: str) -> None:
    """No text that a caller sends can spoil a batch, wherever it stands."""
    (entry,) = logs(record(request_id=text, variant=text, endpoint=text))
    told = plain(entry.attributes)
    assert told["tiltyard.request.id"] == cleaned
    assert told["feature_flag.result.variant"] == cleaned


def test_payloads_may_be_longer() -> None:
    """Inputs and outputs have a limit of their own."""
    (entry,) = logs(record(inputs="i" * 100_000, outputs="o" * 5_000))
    told = plain(entry.attributes)
    assert len(told["tiltyard.inputs"]) == 65_536
    assert told["tiltyard.outputs"] == "o" * 5_000


def test_numbers_stay_in_the_wires_range() -> None:
    """A number beyond 64 bits is the greatest that there is, not an error."""
    (entry,) = logs(record(version=1 << 70))
    assert plain(entry.attributes)["tiltyard.model.version"] == (1 << 63) - 1


def test_spans_are_made_for_sampled_records_only() -> None:
    """Neither a record without a trace nor one that is not sampled has spans."""
    unsampled = Trace(b"t" * 16, b"s" * 8, None, sampled=False)
    assert encode_spans([record(), record(trace=unsampled)]) == (b"", 0)


def test_a_request_is_a_server_span_with_two_children() -> None:
    """The wait ends where the run begins, and the run ends with the answer."""
    root, queue, inference = spans(record(), record(trace=TRACE))
    assert root.name == "POST /v2/models/{model_name}/infer"
    assert root.kind == Span.SPAN_KIND_SERVER
    assert (root.trace_id, root.span_id, root.parent_span_id) == (b"t" * 16, b"s" * 8, b"p" * 8)
    assert root.trace_state == "vendor=1"
    assert root.flags == 0x301
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (AT, AT + 2_000_000)
    assert plain(root.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model_name}/infer",
        "feature_flag.key": "digits",
        "feature_flag.result.variant": "challenger",
        "feature_flag.result.reason": "split",
        "feature_flag.version": "7",
        "feature_flag.provider.name": "tiltyard",
        "tiltyard.model.name": "digits-model",
        "tiltyard.model.version": 3,
        "tiltyard.prediction.id": "p1",
    }
    assert (queue.name, inference.name) == ("tiltyard.queue", "tiltyard.inference")
    assert (queue.start_time_unix_nano - AT, queue.end_time_unix_nano - AT) == (
        1_500_000,
        1_700_000,
    )
    assert inference.start_time_unix_nano == queue.end_time_unix_nano
    assert inference.end_time_unix_nano == root.end_time_unix_nano
    for child in (queue, inference):
        assert (child.trace_id, child.parent_span_id) == (b"t" * 16, b"s" * 8)
        assert len(child.span_id) == 8
    assert len({root.span_id, queue.span_id, inference.span_id}) == 3


def test_a_trace_that_begins_here_has_no_parent() -> None:
    """Without a caller's span there is neither a parent nor a remote one."""
    (root, *_) = spans(record(trace=Trace(b"t" * 16, b"s" * 8, None, sampled=True)))
    assert (root.parent_span_id, root.flags) == (b"", 0x101)


def test_a_failure_is_an_error_of_its_span() -> None:
    """A request that never ran has no children, and says what went wrong."""
    (root,) = spans(record(trace=TRACE, error_type="overloaded", batch_rows=0))
    assert root.status.code == 2
    assert plain(root.attributes)["error.type"] == "overloaded"


@pytest.mark.parametrize(
    ("error_type", "severity"),
    [
        pytest.param("invalid_request", "INFO", id="bad-request"),
        pytest.param("body_too_large", "INFO", id="too-large"),
        pytest.param("unsupported_media", "INFO", id="media"),
        pytest.param("unsupported", "INFO", id="not-offered"),
        pytest.param("not_found", "INFO", id="not-found"),
        pytest.param("forbidden", "INFO", id="forbidden"),
        pytest.param("overloaded", "ERROR", id="overloaded"),
        pytest.param("model_not_ready", "ERROR", id="not-ready"),
        pytest.param("deadline_exceeded", "ERROR", id="deadline"),
        pytest.param("model_error", "ERROR", id="model"),
        pytest.param("internal", "ERROR", id="internal"),
    ],
)
def test_only_our_own_failures_are_errors(error_type: str, severity: str) -> None:
    """What a caller did wrong says so in `error.type` and raises no alarm."""
    failed = record(trace=TRACE, error_type=error_type, batch_rows=0)
    (entry,) = logs(failed)
    (root,) = spans(failed)
    assert plain(entry.attributes)["error.type"] == error_type
    assert entry.severity_text == severity
    assert entry.severity_number == (17 if severity == "ERROR" else 9)
    assert root.status.code == (2 if severity == "ERROR" else 0)


def test_children_stay_within_their_parent() -> None:
    """Clocks that disagree do not make a span begin before its parent."""
    (_, queue, inference) = spans(record(trace=TRACE, run_ns=5_000_000, queue_ns=9))
    assert queue.start_time_unix_nano == inference.start_time_unix_nano == AT


def test_a_shadow_is_a_trace_of_its_own() -> None:
    """It links to the request that it copies, and its event stands in its own trace."""
    shadow = record(trace=TRACE, shadow=True, primary_id="p0", variant="dark")
    own = shadow_trace(shadow, TRACE)
    assert own.trace_id != TRACE.trace_id
    assert own == shadow_trace(record(variant="dark"), TRACE)
    assert own != shadow_trace(record(variant="darker"), TRACE)
    root, queue, inference = spans(shadow)
    assert (root.name, root.kind) == ("tiltyard.shadow", Span.SPAN_KIND_INTERNAL)
    assert (root.trace_id, root.span_id, root.parent_span_id) == (own.trace_id, own.span_id, b"")
    (link,) = root.links
    assert (link.trace_id, link.span_id) == (TRACE.trace_id, TRACE.span_id)
    assert plain(root.attributes)["tiltyard.shadow"] is True
    assert {queue.trace_id, inference.trace_id} == {own.trace_id}
    (entry,) = logs(shadow)
    assert (entry.trace_id, entry.span_id) == (own.trace_id, own.span_id)
