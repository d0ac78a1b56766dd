import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from gateway.core.errors import InvalidRequest
from gateway.core.otlp.requests import count, pieces, request, resource_field, scope_field
from gateway.core.otlp.wire import bytes_field

EVENT = b"told"
SCOPE = scope_field("tiltyard", "1.0")


def row(name: bytes, size: int = 0) -> bytes:
    """A log record of an event, with some more in it."""
    return bytes_field(2, bytes_field(3, b"x" * size) + bytes_field(12, name))


def names_of(body: bytes) -> list[tuple[str, str]]:
    """Who said which event."""
    return [
        (one.resource.attributes[0].value.string_value, entry.event_name)
        for one in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in one.scope_logs
        for entry in scope.log_records
    ]


def resource(name: str) -> bytes:
    """A process."""
    return resource_field((("service.instance.id", name),))


@given(size=st.integers(1, 40_000))
def test_a_request_is_framed_at_any_size(size: int) -> None:
    """Lengths of one, two and three bytes fit what they stand before."""
    body = request(resource("a"), SCOPE, row(EVENT, size))
    assert names_of(body) == [("a", "told")]
    message = ExportLogsServiceRequest.FromString(body)
    assert message.resource_logs[0].scope_logs[0].scope.name == "tiltyard"
    assert message.SerializeToString() == body


def test_requests_may_be_joined() -> None:
    """Two requests in a row are one, each record with its own resource."""
    body = request(resource("a"), SCOPE, row(EVENT)) + request(resource("b"), SCOPE, row(EVENT))
    assert names_of(body) == [("a", "told"), ("b", "told")]
    assert count(body, EVENT) == 2


@given(told=st.lists(st.lists(st.booleans(), max_size=6), max_size=5), most=st.integers(1, 4))
def test_pieces_hold_everything_once(told: list[list[bool]], most: int) -> None:
    """All rows are there in their order, with their resources, and no piece has too many."""
    body = b"".join(
        request(resource(str(n)), SCOPE, b"".join(row(EVENT if one else b"other") for one in rows))
        for n, rows in enumerate(told)
    )
    cut = pieces(body, EVENT, most)
    assert [name for piece, _ in cut for name in names_of(piece)] == names_of(body)
    for piece, records in cut:
        assert count(piece, EVENT) == records <= most


def test_another_event_stays_with_its_prediction() -> None:
    """What comes behind a record and is no record of its own is not parted from it."""
    body = request(resource("a"), SCOPE, row(EVENT) + row(b"more") + row(EVENT))
    first, second = pieces(body, EVENT, 1)
    assert [name for _, name in names_of(first[0])] == ["told", "more"]
    assert [name for _, name in names_of(second[0])] == ["told"]


def test_what_is_no_request_is_refused() -> None:
    """A damaged body is an error."""
    with pytest.raises(InvalidRequest):
        count(b"\x0a\x7f", EVENT)
