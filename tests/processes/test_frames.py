import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import errors
from gateway.ports import Artifact, EndpointReport, Parcel, Update, VersionReport, WorkerReport
from gateway.processes.frames import (
    FORMAT,
    MAX_FRAME_BYTES,
    Apply,
    Ask,
    Entrust,
    ForeignFrame,
    Handed,
    Hello,
    Message,
    Offer,
    Pulse,
    Reply,
    Row,
    Splitter,
    Standing,
    Terms,
    encode,
    error_of,
    refusal_of,
    rows_of,
    series_of,
)
from gateway.telemetry import BATCH_SIZE, REQUEST_DURATION, Series
from tests.fakes import manifest_of
from tests.planes import SECRETS, snapshot_of

REPORT = WorkerReport(
    revision=3,
    ready=True,
    endpoints={"m": EndpointReport(revision=3, lagging="version 2 is loading")},
    versions=(VersionReport("m", 1, "ready"), VersionReport("m", 2, "failed", "It broke.")),
)
UPDATE = Update(
    snapshot=snapshot_of(3),
    artifacts={("m", 1): Artifact(manifest=manifest_of("m", 1), path="cache/m")},
    missing={("m", 2): "It is away."},
    pending=frozenset({("m", 2)}),
)
MESSAGES: list[Message] = [
    Hello(1, 2, 3, "secret"),
    Terms(records=True, spans=False),
    Apply(UPDATE),
    Entrust(SECRETS),
    Ask(4, "load", ("m", None, "admin")),
    Reply(4, result=[{"name": "m", "count": 2}]),
    Reply(5, refused=("not_found", "There is no 'm'.")),
    Standing(REPORT, {8: ("m", 1)}),
    Pulse((Row("tiltyard.batch.size", (("a", 1), ("b", True)), 0.0, (1, 2), 3.5),), [], None),
    Handed(Parcel(first=1, records=2, dropped=0, logs=b"\x0a\x00")),
    Offer(6, (b"\x90", b""), 3),
]

lists = st.lists(st.sampled_from(MESSAGES), max_size=6)


@given(lists, st.lists(st.integers(1, 300), max_size=40))
def test_messages_come_out_as_they_went_in(messages: list[Message], cuts: list[int]) -> None:
    """In whatever pieces the bytes come, the same messages come out in order."""
    stream = b"".join(map(encode, messages))
    splitter, found = Splitter(), []
    for size in [*cuts, len(stream)]:
        found += list(splitter.feed(stream[:size]))
        stream = stream[size:]

    assert found == messages


@given(st.binary(min_size=5, max_size=200))
def test_foreign_bytes_never_pass_for_a_message(data: bytes) -> None:
    """What is no frame of ours is refused, or waited for; nothing else is raised."""
    try:
        messages = list(Splitter().feed(data))
    except ForeignFrame:
        return
    assert messages == [] or b"".join(map(encode, messages)) == data[: len(data)]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(struct.pack(">BI", FORMAT + 1, 2), id="format"),
        pytest.param(struct.pack(">BI", FORMAT, MAX_FRAME_BYTES + 1), id="length"),
        pytest.param(struct.pack(">BI", FORMAT, 1) + b"\xc1", id="body"),
        pytest.param(struct.pack(">BI", FORMAT, 3) + b"\x92\x63\x01", id="tag"),
    ],
)
def test_another_format_is_refused_at_its_head(head: bytes) -> None:
    """A wrong number, a length beyond the bound or a body of nobody's ends the connection."""
    with pytest.raises(ForeignFrame):
        list(Splitter().feed(head))


def test_nothing_too_long_is_sent() -> None:
    """A frame that nobody would read is not made."""
    with pytest.raises(ForeignFrame):
        encode(Handed(Parcel(first=1, records=1, dropped=0, logs=bytes(MAX_FRAME_BYTES))))


def test_series_travel_by_name() -> None:
    """Instruments stay at home; one that is unknown at the other end is left out."""
    sizes = (1,) * (len(BATCH_SIZE.bounds) + 1)
    series = [
        Series(BATCH_SIZE, (("m", "x"),), counts=sizes, total=7.5),
        Series(REQUEST_DURATION, (), value=2.0),
    ]
    unknown = Row("tiltyard.of.tomorrow", (), 1.0, (), 0.0)

    assert series_of((*rows_of(series), unknown)) == series


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound("There is no 'm'."),
        errors.Conflict("It is in use."),
        errors.EngineFailed("It does not load."),
        errors.StoreUnavailable("The store cannot be reached."),
        errors.GatewayError("The gateway failed."),
    ],
    ids=lambda error: error.kind,
)
def test_errors_travel_as_what_they_are(error: errors.GatewayError) -> None:
    """A refusal arrives as the same kind with the same sentence."""
    arrived = error_of(refusal_of(error))

    assert (type(arrived), str(arrived)) == (type(error), str(error))
