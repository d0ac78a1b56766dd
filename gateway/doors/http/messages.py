"""HTTP messages as the raw doors see them: a request read within bounds, and a response to send.

Nothing here is asynchronous but reading the body, so a door on the socket may use the rest.
"""

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

import msgspec
import orjson
from msgspec import Struct, field

from gateway.core.errors import GateClosed, InvalidRequest, TooLarge
from gateway.doors.errors import headers_of, sentence_of, status_of
from gateway.doors.http.inference_head import Head, Headers, too_large

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

JSON: Final = (b"content-type", b"application/json")
BINARY: Final = (b"content-type", b"application/octet-stream")
CLOSE: Final = (b"connection", b"close")
COMPRESS_FROM_BYTES: Final = 4 * 1024
"""Below it a response is sent sooner than it is packed."""
_GZIP: Final = 16 + zlib.MAX_WBITS


class Disconnected(Exception):
    """The caller left before the request was whole."""


class Response(Struct):
    """What goes back: a status, headers without the length, and a whole body."""

    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=lambda: [JSON])


def json_response(document: object, status: int = 200) -> Response:
    """A JSON document."""
    return Response(status, orjson.dumps(document))


def error_response(error: Exception) -> Response:
    """The one shape of every error: `{"error": "<sentence>"}`, and what a closed gate misses."""
    document: dict[str, Any] = {"error": sentence_of(error)}
    if isinstance(error, GateClosed):
        document["missing"] = [msgspec.to_builtins(one) for one in error.missing]
    body = orjson.dumps(document)
    error.__traceback__ = None  # it may hold the frame that holds the body and this very error
    response = Response(status_of(error), body, [JSON, *headers_of(error)])
    if response.status == _TOO_LARGE:
        response.headers.append(CLOSE)
    return response


def header_values(headers: Headers, name: bytes) -> list[bytes]:
    """Every value of a header, by its lower-case name."""
    return [value for key, value in headers if key == name]


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """Read a whole body of at most `limit` bytes, decompressed if it says it is compressed.

    Raises:
        TooLarge: more than `limit` bytes, before or after decompression.
        UnsupportedMedia: a form, or a content encoding other than gzip or deflate, or several.
        InvalidRequest: a broken length or compressed stream.
        Disconnected: the caller left.
    """
    head = Head.of(headers)
    head.check_body(limit)
    body = await collect(receive, limit)
    return body if head.coding is None else inflate(head.coding, body, limit)


async def nothing_more() -> Message:
    """What a request that is whole still receives."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def collect(receive: Receive, limit: int) -> bytes:
    """Read a body of at most `limit` bytes as it comes.

    Raises:
        TooLarge: more than `limit` bytes; Disconnected: the caller left.
    """
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        whole: bytes = message.get("body", b"")
        if len(whole) > limit:
            raise TooLarge(too_large(limit))
        return whole
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(too_large(limit))
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def inflate(coding: bytes, packed: bytes, limit: int) -> bytes:
    """Decompress a body of one coding to at most `limit` bytes.

    Raises:
        TooLarge: it becomes more; InvalidRequest: broken, cut short or followed by something.
    """
    unpacker = zlib.decompressobj(zlib.MAX_WBITS if coding == b"deflate" else _GZIP)
    try:
        body = unpacker.decompress(packed, limit + 1)
    except zlib.error as error:
        message = "The compressed body cannot be read."
        raise InvalidRequest(message) from error
    if len(body) > limit:
        raise TooLarge(too_large(limit))
    if not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        message = "The compressed body is cut short or followed by something else."
        raise InvalidRequest(message)
    return body


def coding_for(response: Response, accepted: bytes | None) -> bytes | None:
    """How to compress a response, as far as it is worth it and the Accept-Encoding says."""
    if accepted is None or len(response.body) < COMPRESS_FROM_BYTES:
        return None
    return _best_coding(accepted)


def compress(response: Response, coding: bytes) -> Response:
    """The same response in this coding."""
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP if coding == b"gzip" else zlib.MAX_WBITS)
    body = packer.compress(response.body) + packer.flush()
    return Response(response.status, body, [*response.headers, (b"content-encoding", coding)])


async def send_response(send: Send, response: Response, *, with_body: bool = True) -> None:
    """Send it; `with_body` is False for HEAD."""
    length = (b"content-length", b"%d" % len(response.body))
    headers = [*response.headers, length]
    start = {"type": "http.response.start", "status": response.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": response.body if with_body else b""})


def _best_coding(accept: bytes) -> bytes | None:
    """What the caller likes better, gzip or deflate; None where identity is liked more."""
    qualities: dict[bytes, float] = {}
    for part in accept.lower().split(b","):
        name, _, parameter = part.partition(b";")
        try:
            quality = float(parameter.strip().removeprefix(b"q=")) if parameter else 1.0
        except ValueError:
            quality = 0.0
        qualities[name.strip()] = quality
    best = max((b"gzip", b"deflate"), key=lambda coding: qualities.get(coding, 0.0))
    quality = qualities.get(best, 0.0)
    return best if quality > 0 and quality >= qualities.get(b"identity", 0.0) else None


_TOO_LARGE: Final = 413
