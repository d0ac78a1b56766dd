"""Posting: one address, one kept connection, large bodies. What a telemetry sender needs of HTTP.

A general client spends milliseconds on each request; at full load that would be the largest part
of what telemetry costs. Redirects are not followed, and proxies of the environment are not used.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Final, cast

import httptools
import httpx
from msgspec import Struct

MAX_ANSWER_BYTES: Final = 65_536
_FIRST_FINAL: Final = 200
_PORTS: Final = {"http": 80, "https": 443}


class Answered(Struct, frozen=True):
    """What came back. `content` is empty if it was longer than anybody would read."""

    status: int
    retry_after: str | None
    content: bytes


class Poster:
    """Posts to one address over one connection, which is kept open between requests.

    One request at a time. Requires an event loop.
    """

    def __init__(
        self,
        url: httpx.URL,
        headers: Mapping[str, str],
        timeout_s: float,
        context: ssl.SSLContext | None,
    ) -> None:
        """Open no connection yet.

        Args:
            url: where to; what stands before an `@` in it becomes basic authorization.
            headers: of every request.
            timeout_s: for connecting, and for each time that nothing moves.
            context: for https; None for http.
        """
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or _PORTS[url.scheme]
        self._timeout_s = timeout_s
        self._context = context
        stated = {"host": url.netloc.decode("ascii"), **headers}
        if url.userinfo and not any(name.lower() == "authorization" for name in stated):
            secret = httpx.BasicAuth(url.username, url.password)
            stated["authorization"] = next(secret.auth_flow(httpx.Request("POST", url))).headers[
                "authorization"
            ]
        lines = "".join(f"{name}: {value}\r\n" for name, value in stated.items())
        self._head = f"POST {url.raw_path.decode('ascii')} HTTP/1.1\r\n{lines}"
        self._line: _Line | None = None

    async def post(self, body: bytes, headers: str = "") -> Answered:
        """Post a body; `headers` are further lines, each with its end.

        Raises:
            OSError: the network failed, or what came back is no HTTP. TimeoutError is one of them.
        """
        head = f"{self._head}{headers}content-length: {len(body)}\r\n\r\n".encode("ascii")
        kept, self._line = self._line, None
        if kept is not None and kept.is_open:
            try:
                return await self._exchange(kept, head, body)
            except _StaleError:
                # It was closed while nobody looked, before this request was read.
                pass
        async with asyncio.timeout(self._timeout_s):
            loop = asyncio.get_running_loop()
            _, line = await loop.create_connection(_Line, self._host, self._port, ssl=self._context)
        return await self._exchange(line, head, body)

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.abort()
            self._line = None

    async def _exchange(self, line: "_Line", head: bytes, body: bytes) -> Answered:
        """One request and its answer; the connection is kept only after both were whole."""
        try:
            answer = await line.exchange(head, body, self._timeout_s)
        except BaseException:
            line.abort()
            raise
        if answer.is_reusable and line.is_open:
            self._line = line
        else:
            line.abort()
        return Answered(answer.status, answer.retry_after, bytes(answer.content))


class _Line(asyncio.Protocol):
    """One connection.

    A collector may answer before it has read everything, and close: the answer counts, so it is
    read while the request is still on its way.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer = _Answer()
        self._waiting: asyncio.Future[_Answer] | None = None
        self._heard = 0

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, head: bytes, body: bytes, timeout_s: float) -> "_Answer":
        """Send a request and wait for its answer, as long as something moves."""
        transport = self._transport
        if transport is None:
            raise _StaleError
        self._answer = _Answer()
        waiting: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        transport.write(head)
        transport.write(body)
        stood = (self._heard, transport.get_write_buffer_size())
        while not waiting.done():
            done, _ = await asyncio.wait((waiting,), timeout=timeout_s)
            stands = (self._heard, transport.get_write_buffer_size())
            if not done and stands == stood:
                raise TimeoutError
            stood = stands
        return waiting.result()

    def abort(self) -> None:
        """Hang up at once."""
        if self._waiting is not None:
            self._waiting.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio: the connection stands."""
        # Of uvloop it is one in deed, not by its class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Of asyncio: something came."""
        self._heard += len(data)
        if self._waiting is None or self._waiting.done():
            # Nobody asked: whatever it is, it is no answer to the next request.
            self.abort()
            return
        self._go_on(lambda: self._answer.feed(data))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio has it
        """Of asyncio: the connection ended."""
        if self._waiting is not None and not self._waiting.done():
            self._go_on(self._answer.finish)

    def _go_on(self, step: Callable[[], None]) -> None:
        waiting = self._waiting
        if waiting is None:
            return
        try:
            step()
        except ConnectionError as error:
            waiting.set_exception(error)
        else:
            if self._answer.is_whole:
                waiting.set_result(self._answer)


class _StaleError(ConnectionError):
    """Nothing came back, not even a first byte."""


class _Answer:
    """What httptools calls while it reads an answer."""

    def __init__(self) -> None:
        self.status = 0
        self.retry_after: str | None = None
        self.content = bytearray()
        self.is_whole = False
        self.is_reusable = False
        self._has_length = False
        self._parser = httptools.HttpResponseParser(self)

    def finish(self) -> None:
        """Note that the connection ended, which ends an answer that did not say its length.

        Raises:
            ConnectionError: it ended too soon.
        """
        if not self.status:
            raise _StaleError
        if self._has_length:
            message = "the answer ended too soon"
            raise ConnectionResetError(message)
        self.is_whole = True

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            ConnectionError: it is no HTTP.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            message = "the answer is no HTTP"
            raise ConnectionAbortedError(message) from error
        if len(self.content) > MAX_ANSWER_BYTES:
            self.content.clear()
            self.is_whole = True
            self.is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"retry-after":
            self.retry_after = value.decode("latin-1")
        elif lowered in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if len(self.content) <= MAX_ANSWER_BYTES:
            self.content += body

    def on_message_complete(self) -> None:
        if self.status < _FIRST_FINAL:
            self.status = 0
            self._has_length = False
            return
        self.is_whole = True
        self.is_reusable = self._parser.should_keep_alive()
