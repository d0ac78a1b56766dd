"""Cycles: a request and its answer, as uvicorn plays them with an ASGI application.

And the bytes that a listener says itself, to a caller or to its own parser.
"""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.doors.http.inference_head import Headers


class Cycle(RequestResponseCycle):
    """One request and its answer, as uvicorn plays them with an ASGI application."""

    small = True
    """Whether what is left of the body is worth reading for the connection's sake."""

    def send(self, message: Any) -> Coroutine[Any, Any, None]:  # noqa: ANN401 - as ASGI has it
        """Send; an answer that leaves much of the body unread is the connection's last."""
        if self.more_body and not self.response_started:
            self.keep_alive = self.keep_alive and self.small and not self.waiting_for_100_continue
        return super().send(message)


class Line:
    """The transport as a cycle sees it: its close is the protocol's."""

    def __init__(self, transport: asyncio.Transport, hang_up: Callable[[], None]) -> None:
        """Write to the transport itself."""
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = hang_up


def drop(cycle: RequestResponseCycle) -> None:
    """A cycle whose caller will read no answer: what waits for its body wakes up."""
    cycle.disconnected = True
    cycle.message_event.set()


def last_word(status: int, sentence: str, headers: Headers, *, with_body: bool) -> bytes:
    """The whole answer that refuses a request and ends its connection.

    Args:
        status: of the answer.
        sentence: its error.
        headers: of every answer of this server.
        with_body: False for HEAD.
    """
    body = orjson.dumps({"error": sentence})
    lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b" % header for header in headers]
    lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:  # there was no room, and soon may be
        lines.append(b"retry-after: 1")
    lines += [b"connection: close", b"", body if with_body else b""]
    return b"\r\n".join(lines)


def without_offer(line: tuple[bytes, bytes, bytes], headers: Headers) -> bytes:
    """A head as sent, but for the offer to go on in another protocol.

    Args:
        line: the method, the target and the version.
        headers: names in lower case.
    """
    lines = [b"%b %b HTTP/%b" % line]
    for name, value in headers:
        if name == b"connection":
            tokens = (token.strip() for token in value.lower().split(b","))
            lines.append(b"connection: " + b", ".join(t for t in tokens if t != b"upgrade"))
        elif name != b"upgrade":
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])
