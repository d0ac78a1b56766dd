import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doors.tracing import parse_traceparent
from gateway.telemetry import Trace

DRAW = bytes(range(1, 25))
PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_callers_trace_goes_on() -> None:
    """Ids, flag and state are taken over; the span is ours."""
    assert parse_traceparent(PARENT, b"vendor=1", DRAW, 0.0) == Trace(
        trace_id=bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"),
        span_id=bytes(range(17, 25)),
        parent_id=bytes.fromhex("00f067aa0ba902b7"),
        sampled=True,
        state="vendor=1",
    )


@pytest.mark.parametrize(
    ("flags", "sampled"),
    [(b"00", False), (b"01", True), (b"02", False), (b"03", True), (b"ff", True), (b"0a", False)],
)
def test_the_callers_flag_decides(flags: bytes, sampled: bool) -> None:
    """Only the lowest bit of the flags says whether the trace is sampled."""
    trace = parse_traceparent(PARENT[:-2] + flags, None, DRAW, 1.0)
    assert trace is not None
    assert trace.sampled is sampled


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="none"),
        pytest.param(b"", id="empty"),
        pytest.param(PARENT + b"-x", id="longer"),
        pytest.param(PARENT[:-1], id="shorter"),
        pytest.param(b"ff" + PARENT[2:], id="version ff"),
        pytest.param(PARENT.upper(), id="upper case"),
        pytest.param(PARENT.replace(b"-", b"_"), id="no dashes"),
        pytest.param(b"00-" + b"0" * 32 + PARENT[35:], id="no trace id"),
        pytest.param(PARENT[:36] + b"0" * 16 + b"-01", id="no span id"),
        pytest.param(PARENT[:10] + b" " + PARENT[11:], id="a space"),
        pytest.param(PARENT[:10] + b"\xc3" + PARENT[11:], id="not ASCII"),
        pytest.param(b"0-0" + PARENT[3:], id="a dash moved"),
        pytest.param(b"x" * 1_000_000, id="a megabyte"),
    ],
)
def test_any_other_traceparent_is_ignored(value: bytes | None) -> None:
    """What is not the standard's 55 bytes is as good as nothing."""
    assert parse_traceparent(value, b"vendor=1", DRAW, 0.0) is None


@given(value=st.binary(max_size=80), state=st.none() | st.binary(max_size=600))
def test_no_bytes_break_the_parser(value: bytes, state: bytes | None) -> None:
    """Whatever is sent, there is a trace or there is none."""
    assert parse_traceparent(value, state, DRAW, 0.0) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        pytest.param(b"a=" + b"x" * 510, "a=" + "x" * 510, id="512 bytes"),
        pytest.param(b"a=" + b"x" * 511, "", id="513 bytes"),
        pytest.param(b"a=\xff", "", id="not ASCII"),
        pytest.param(b"a=\n", "", id="control character"),
    ],
)
def test_a_tracestate_is_kept_or_dropped_whole(state: bytes, kept: str) -> None:
    """A state of more than 512 bytes, or one that is no text, is dropped."""
    trace = parse_traceparent(PARENT, state, DRAW, 0.0)
    assert trace is not None
    assert trace.state == kept


def test_a_share_of_requests_starts_a_trace() -> None:
    """The low bits of the fresh trace id decide, at exactly the ratio."""
    just_below = bytes(9) + ((1 << 55) - 1).to_bytes(7, "big") + bytes(range(17, 25))
    exactly = bytes(9) + (1 << 55).to_bytes(7, "big") + bytes(range(17, 25))
    trace = parse_traceparent(None, b"vendor=1", just_below, 0.5)
    assert trace == Trace(just_below[:16], bytes(range(17, 25)), None, sampled=True)
    assert parse_traceparent(None, None, exactly, 0.5) is None
    assert parse_traceparent(None, None, b"\xff" * 24, 1.0) is not None
