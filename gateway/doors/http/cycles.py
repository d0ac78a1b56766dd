"""Cycles: a request and its answer, as uvicorn plays them with an ASGI application.

And the bytes that a listener says itself, to a caller or to its own parser.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Generator
from http import HTTPStatus
from typing import Any, Final

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.doors.http.inference_head import Headers


class Cycle(RequestResponseCycle):
    """One request and its answer, as uvicorn plays them with an ASGI application.

    A head waits for the first part of its body. An answer whose body is whole then leaves in one
    write; every other one goes uvicorn's way, which costs three times as much.
    """

    small = True
    """Whether what is left of the body is worth reading for the connection's sake."""
    _head: Any = None

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]  # noqa: ANN401
        """Send; an answer that leaves much of the body unread is the connection's last."""
        if not self.response_started:
            if self.more_body:
                waited = self.waiting_for_100_continue
                self.keep_alive = self.keep_alive and self.small and not waited
            if message["type"] == "http.response.start" and not self.disconnected:
                self._head = message
                self.response_started = True
                return _DONE
        head, self._head = self._head, None
        if head is None or self.disconnected:
            return super().send(message)
        return _DONE if self._writes(head, message) else self._send_both(head, message)

    async def _send_both(self, head: Any, message: Any) -> None:  # noqa: ANN401
        self.response_started = False
        await super().send(head)
        await super().send(message)

    def _writes(self, head: Any, message: Any) -> bool:  # noqa: ANN401
        """Whether a whole answer of a usual form was written."""
        body = message.get("body", b"")
        if message.get("more_body") or self.flow.write_paused or self.scope["method"] == "HEAD":
            return False
        headers = [*self.default_headers, *head["headers"]]
        told = dict(headers)
        usual = len(told) == len(headers) and _NAMES.issuperset(told)
        if not usual or told.get(b"content-length") != b"%d" % len(body):
            return False
        rows = b"".join([b"%b: %b\r\n" % header for header in headers])
        is_broken = rows.count(b"\r") != len(headers) or rows.count(b"\n") != len(headers)
        if is_broken or _CONTROL.search(rows) or told.get(b"connection", b"close") != b"close":
            return False
        if b"connection" in told:
            self.keep_alive = False
        elif not self.keep_alive:
            rows += b"connection: close\r\n"
        self.waiting_for_100_continue = False
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[head["status"]], rows, body))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True


class _Done:
    """What is done already."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE: Final = _Done()
_NAMES: Final = frozenset(
    {
        b"date", b"content-type", b"content-length", b"connection", b"x-revision",
        b"x-model-version", b"x-variant", b"x-prediction-id", b"x-cache", b"content-encoding",
        b"inference-header-content-length", b"retry-after", b"allow",
    }
)  # fmt: skip
"""Of the headers of usual answers."""
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


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
