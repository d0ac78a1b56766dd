"""HTTP messages as the raw doors see them: a request read within bounds, and a response to send.

Nothing here is asynchronous but reading the body, so a door on the socket may use the rest.
"""

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.errors import InvalidRequest, TooLarge, UnsupportedMedia, excerpt
from gateway.doors.errors import headers_of, sentence_of, status_of

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApplication: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
BINARY: Final = (b"content-type", b"application/octet-stream")
CLOSE: Final = (b"connection", b"close")
COMPRESS_FROM_BYTES: Final = 1024
_GZIP: Final = 16 + zlib.MAX_WBITS


class Disconnected(Exception):
    """The caller left before the request was whole."""


@dataclass(slots=True)
class Response:
    """What goes back: a status, headers without the length, and a whole body."""

    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=lambda: [JSON])


def json_response(document: object, status: int = 200) -> Response:
    """A JSON document."""
    return Response(status, orjson.dumps(document))


def error_response(error: Exception) -> Response:
    """The one shape of every error: `{"error": "<sentence>"}`."""
    body = orjson.dumps({"error": sentence_of(error)})
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
    _check_length(headers, limit)
    _refuse_forms(headers)
    decompress = _decompressor(headers)
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
    else:
        body = await _collect(receive, message, limit)
    if len(body) > limit:
        raise TooLarge(_too_large(limit))
    return body if decompress is None else _inflate(decompress, body, limit)


def compressed(response: Response, headers: Headers) -> Response:
    """Compress a response that is worth it, as far as the caller's Accept-Encoding says."""
    accepted = header_values(headers, b"accept-encoding")
    if not accepted or len(response.body) < COMPRESS_FROM_BYTES:
        return response
    coding = _best_coding(accepted[0])
    if coding is None:
        return response
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


async def _collect(receive: Receive, message: Message, limit: int) -> bytes:
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(_too_large(limit))
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def _check_length(headers: Headers, limit: int) -> None:
    for value in header_values(headers, b"content-length"):
        if not value.isdigit():
            message = "Content-Length is not a number."
            raise InvalidRequest(message)
        if len(value) > _LENGTH_DIGITS or int(value) > limit:
            raise TooLarge(_too_large(limit))


def _refuse_forms(headers: Headers) -> None:
    """Nothing here reads a form; a body of any other stated type is taken for what it is."""
    for value in header_values(headers, b"content-type"):
        if value.lstrip().lower().startswith(b"multipart/"):
            message = "A form is not read here; send JSON, or JSON and binary tensors."
            raise UnsupportedMedia(message)


def _too_large(limit: int) -> str:
    return f"The body is larger than the {limit} bytes allowed."


def _decompressor(headers: Headers) -> Any:  # noqa: ANN401 - zlib's type has no public name
    codings = [value.strip().lower() for value in header_values(headers, b"content-encoding")]
    if not codings or codings == [b"identity"]:
        return None
    coding = codings[0]
    if len(codings) > 1 or coding not in (b"gzip", b"x-gzip", b"deflate"):
        message = f"Content-Encoding '{excerpt(coding.decode('latin-1'))}' is not spoken here."
        raise UnsupportedMedia(message)
    return zlib.decompressobj(zlib.MAX_WBITS if coding == b"deflate" else _GZIP)


def _inflate(decompress: Any, packed: bytes, limit: int) -> bytes:  # noqa: ANN401
    try:
        body: bytes = decompress.decompress(packed, limit + 1)
    except zlib.error as error:
        message = "The compressed body cannot be read."
        raise InvalidRequest(message) from error
    if len(body) > limit:
        raise TooLarge(_too_large(limit))
    if not decompress.eof or decompress.unused_data or decompress.unconsumed_tail:
        message = "The compressed body is cut short or followed by something else."
        raise InvalidRequest(message)
    return body


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
_LENGTH_DIGITS: Final = 19
