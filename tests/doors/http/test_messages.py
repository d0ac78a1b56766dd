import gzip
import zlib
from typing import Any

import pytest

from gateway.core.errors import GatewayError, InvalidRequest, TooLarge, UnsupportedMedia
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import (
    COMPRESS_FROM_BYTES,
    Disconnected,
    Message,
    Response,
    coding_for,
    compress,
    error_response,
    read_body,
    send_response,
)

LIMIT = 10_000


class Caller:
    """Sends a body in pieces, then leaves."""

    def __init__(self, *pieces: bytes, leaves: bool = False) -> None:
        self.messages: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": leaves or place < len(pieces) - 1}
            for place, piece in enumerate(pieces)
        ]
        self.received = 0

    async def receive(self) -> Message:
        self.received += 1
        return self.messages.pop(0) if self.messages else {"type": "http.disconnect"}


async def read(*pieces: bytes, headers: Headers | None = None, limit: int = LIMIT) -> bytes:
    """Read a body that comes in these pieces."""
    return await read_body(Caller(*pieces).receive, headers or [], limit)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"abc"], id="whole"),
        pytest.param([b"a", b"b", b"c"], id="pieces"),
        pytest.param([b"abc", b""], id="empty-last"),
    ],
)
async def test_a_body_is_read_whole(pieces: list[bytes]) -> None:
    """However a body is cut, it comes out in one piece."""
    assert await read(*pieces) == b"abc"


async def test_a_body_may_be_empty() -> None:
    """No body is an empty one."""
    assert await read(b"") == b""


async def test_a_stated_length_beyond_the_limit_is_refused_unread() -> None:
    """Who announces too much is told before sending it."""
    caller = Caller(b"x")
    with pytest.raises(TooLarge):
        await read_body(caller.receive, [(b"content-length", b"10001")], LIMIT)
    assert caller.received == 0


@pytest.mark.parametrize("value", [b"9" * 30, b"9" * 5_000])
async def test_a_length_of_any_number_of_digits_is_refused(value: bytes) -> None:
    """A number that no machine can hold is simply too large."""
    with pytest.raises(TooLarge):
        await read(b"x", headers=[(b"content-length", value)])


@pytest.mark.parametrize("value", [b"+2", b"-1", b"1e3", b"", b"0x10", b"2, 2"])
async def test_a_length_that_is_no_number_is_refused(value: bytes) -> None:
    """Only digits are a length."""
    with pytest.raises(InvalidRequest):
        await read(b"xx", headers=[(b"content-length", value)])


async def test_a_body_without_a_length_is_cut_off_at_the_limit() -> None:
    """A chunked body is read no further than it may be long."""
    caller = Caller(*[b"x" * 4_000] * 10)
    with pytest.raises(TooLarge):
        await read_body(caller.receive, [], LIMIT)
    assert caller.received == 3
    with pytest.raises(TooLarge):
        await read(b"x" * (LIMIT + 1))
    assert len(await read(b"x" * LIMIT)) == LIMIT


@pytest.mark.parametrize(
    "caller",
    [
        pytest.param(Caller(), id="at-once"),
        pytest.param(Caller(b"abc", b"d", leaves=True), id="half-way"),
    ],
)
async def test_a_caller_who_leaves_is_noticed(caller: Caller) -> None:
    """Half a body is never taken for a whole one."""
    with pytest.raises(Disconnected):
        await read_body(caller.receive, [], LIMIT)


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        pytest.param(b"gzip", gzip.compress(b"hello"), id="gzip"),
        pytest.param(b"x-gzip", gzip.compress(b"hello"), id="x-gzip"),
        pytest.param(b"GZip", gzip.compress(b"hello"), id="upper-case"),
        pytest.param(b"deflate", zlib.compress(b"hello"), id="deflate"),
        pytest.param(b"identity", b"hello", id="identity"),
        pytest.param(b"Identity", b"hello", id="identity-upper-case"),
    ],
)
async def test_a_compressed_body_is_unpacked(coding: bytes, packed: bytes) -> None:
    """Both gzip and deflate are read, however they are spelled."""
    assert await read(packed, headers=[(b"content-encoding", coding)]) == b"hello"


@pytest.mark.parametrize(
    "codings",
    [
        pytest.param([b"br"], id="brotli"),
        pytest.param([b"zstd"], id="zstd"),
        pytest.param([b"gzip, gzip"], id="two-in-one"),
        pytest.param([b"gzip", b"gzip"], id="two-headers"),
        pytest.param([b"gzip", b"identity"], id="gzip-and-identity"),
        pytest.param([b"\xff\x00" * 100], id="garbage"),
    ],
)
async def test_any_other_coding_is_refused_with_those_that_are_read(codings: list[bytes]) -> None:
    """Exactly one layer of a known coding is unpacked."""
    headers = [(b"content-encoding", coding) for coding in codings]
    with pytest.raises(UnsupportedMedia) as caught:
        await read(gzip.compress(b"hello"), headers=headers)
    response = error_response(caught.value)
    assert response.status == 415
    assert (b"accept-encoding", b"gzip, deflate") in response.headers
    assert str(caught.value).isprintable()


WHOLE = gzip.compress(b"hello" * 100)


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        pytest.param(b"gzip", WHOLE[:-5], id="truncated"),
        pytest.param(b"gzip", b"", id="empty"),
        pytest.param(b"gzip", WHOLE + b"garbage", id="trailing"),
        pytest.param(b"gzip", WHOLE + WHOLE, id="two-members"),
        pytest.param(b"gzip", WHOLE[:-8] + bytes(8), id="wrong-checksum"),
        pytest.param(b"gzip", b"hello", id="plain"),
        pytest.param(b"gzip", zlib.compress(b"hello"), id="zlib-as-gzip"),
        pytest.param(b"deflate", WHOLE, id="gzip-as-deflate"),
        pytest.param(b"deflate", zlib.compress(b"hello", wbits=-15), id="raw-deflate"),
    ],
)
async def test_a_broken_stream_is_refused(coding: bytes, packed: bytes) -> None:
    """What is cut short, followed by something or of another form is the caller's fault."""
    with pytest.raises(InvalidRequest) as caught:
        await read(packed, headers=[(b"content-encoding", coding)])
    assert type(caught.value) is InvalidRequest


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
async def test_a_bomb_is_unpacked_no_further_than_the_limit(coding: bytes) -> None:
    """The limit holds for what comes out: at the limit it is read, one byte more is refused."""

    def pack(size: int) -> bytes:
        return gzip.compress(bytes(size)) if coding == b"gzip" else zlib.compress(bytes(size))

    headers = [(b"content-encoding", coding)]
    assert len(await read(pack(LIMIT), headers=headers)) == LIMIT
    for size in (LIMIT + 1, 50 * 1024 * 1024):
        with pytest.raises(TooLarge):
            await read(pack(size), headers=headers, limit=LIMIT)


@pytest.mark.parametrize(
    "value", [b"multipart/form-data; boundary=x", b" Multipart/Mixed", b"multipart/form-data"]
)
async def test_a_form_is_refused(value: bytes) -> None:
    """No form parser can be reached."""
    with pytest.raises(UnsupportedMedia):
        await read(b"--x", headers=[(b"content-type", value)])


@pytest.mark.parametrize(
    "value", [b"application/json", b"application/x-www-form-urlencoded", b"text/plain", b""]
)
async def test_any_other_stated_type_is_taken_for_what_it_is(value: bytes) -> None:
    """Clients of the protocol state all sorts of types for JSON."""
    assert await read(b"{}", headers=[(b"content-type", value)]) == b"{}"


LARGE = Response(200, b"x" * COMPRESS_FROM_BYTES, [(b"content-type", b"text/plain")])


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        pytest.param(b"gzip, deflate", b"gzip", id="both"),
        pytest.param(b"deflate", b"deflate", id="deflate"),
        pytest.param(b"GZIP", b"gzip", id="upper-case"),
        pytest.param(b"gzip;q=0.2, deflate;q=0.8", b"deflate", id="quality"),
        pytest.param(b"gzip;q=0.5", b"gzip", id="identity-unsaid"),
        pytest.param(b"identity, gzip;q=0.5", None, id="identity-preferred"),
        pytest.param(b"gzip;q=0", None, id="none"),
        pytest.param(b"br, zstd", None, id="unknown"),
        pytest.param(b"gzip;q=x", None, id="broken"),
        pytest.param(b"gzip;q=nan", None, id="nan"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b",;,;q=,\xff", None, id="junk"),
    ],
)
def test_an_answer_is_packed_as_its_caller_likes_it(accept: bytes, coding: bytes | None) -> None:
    """Quality decides between gzip, deflate and plain; junk is as good as nothing."""
    found = coding_for(LARGE, accept)
    response = LARGE if found is None else compress(LARGE, found)
    assert dict(response.headers).get(b"content-encoding") == coding
    unpack: dict[bytes | None, Any] = {b"gzip": gzip.decompress, b"deflate": zlib.decompress}
    assert unpack.get(coding, bytes)(response.body) == LARGE.body


def test_a_small_answer_is_not_packed() -> None:
    """Below a size nothing is gained, and nothing is packed for who does not ask for it."""
    small = Response(200, b"x" * (COMPRESS_FROM_BYTES - 1))
    assert coding_for(small, b"gzip") is None
    assert coding_for(LARGE, None) is None


async def test_a_response_states_its_length() -> None:
    """Also for HEAD, whose body stays away."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await send_response(send, Response(200, b"hello"))
    await send_response(send, Response(200, b"hello"), with_body=False)
    assert [(b"content-length", b"5") in sent[place]["headers"] for place in (0, 2)] == [True] * 2
    assert (sent[1]["body"], sent[3]["body"]) == (b"hello", b"")


@pytest.mark.parametrize(
    ("error", "closes"),
    [
        pytest.param(TooLarge("No."), True, id="413"),
        pytest.param(InvalidRequest("No."), False, id="400"),
    ],
)
def test_who_sends_too_much_is_cut_off(error: GatewayError, closes: bool) -> None:
    """After a 413 the connection is closed, because the rest of the body is not read."""
    response = error_response(error)
    assert ((b"connection", b"close") in response.headers) is closes
    assert (b"content-type", b"application/json") in response.headers
    assert response.body == b'{"error":"No."}'
