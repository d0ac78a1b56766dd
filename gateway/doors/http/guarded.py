"""The guarded protocol: uvicorn's HTTP/1.1 over httptools, with every bound that it lacks.

A connection holds at any time: one head or body that arrives, one answer that is made, and a few
whole requests that wait for their turn. Each of these has a size, a deadline or a count that ends
it. What is refused here is answered here, after all answers owed before, and nothing behind it is
read: the application never hears of it.
"""

import asyncio
import logging
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from gateway.doors.http.cycles import without_offer
from gateway.doors.http.heads import (
    HEAD_TOO_LARGE,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    SPECIAL,
    Refusal,
    body_too_large,
    check_size,
    read_head,
)
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.turns import BETWEEN, BODY, HEAD, LEAVING, MAX_DRAINED_BYTES, Turns
from gateway.doors.http.watch import Watch

log: Final = logging.getLogger(__name__)

MAX_CHUNKS: Final = 65_536
MAX_CHUNK_OVERHEAD: Final = 48 * 1024
"""Bytes of a chunked request beside its body and its plain chunk lines: the head, chunk
extensions and trailers."""
CHUNK_LINE_BYTES: Final = 24
"""What one chunk may cost beside its data: digits, zeros before them and two line ends."""
MAX_OFFERS: Final = 16
"""Heads of one segment that offer another protocol, and are therefore read again."""
LINGER_S: Final = 2.0
"""How long a sender may take to notice that it was refused."""
MIN_BYTES_PER_S: Final = 1024
"""The least rate of a request, once the time for its first part is over, and of an answer."""

_TWICE: Final = b""
"""Stands among special headers for one that came again."""
INVALID: Final = "The request is not valid HTTP/1.1."


class GuardedProtocol(Turns):
    """One connection of a listener.

    A subclass may answer some requests itself. It overrides `begin`, which is called once a head
    has passed every check, and whichever of `on_body` and `end` follow; it calls the parent's for
    every request that it does not take. While it owes an answer it keeps `owed` above 0, takes no
    request when `busy()`, and calls `answered()` when the answer is written. Any callback of the
    parser may raise `Refusal`.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: Watch,
    ) -> None:
        """A connection that is not made yet, under the listener's watch."""
        super().__init__(config, server_state, app_state, _loop, watch=watch)
        self._into: Headers = []  # where headers go, or trailers
        self._special: dict[bytes, bytes] = {}  # those of them that a check needs
        self._plain: object = None  # what a plain head said that passed every check
        self._received = 0  # bytes of what is read, and of what came before it in its segment
        self._late = False  # whether another request ended in this segment
        self._seen = 0  # of them, at the last look that saw more
        self._moved = watch.now  # when that was
        self._unsent = 0  # the most that waited to be written since `_unsent_since`
        self._unsent_since = 0.0
        self._offered = False  # whether the head offered to go on in another protocol
        self._offers = 0  # heads of one segment that are read again
        self._before = 0  # bytes of its segment that came before a chunked request, at most
        self._chunks = self._body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is here."""
        super().connection_made(transport)
        self.watch.add(self, self.loop)
        self._since = self._moved = self.watch.now

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        self.watch.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self.deaf:
            self._drain(len(data))
            return
        self._received = len(data) + (0 if self._reading == BETWEEN else self._received)
        self._late = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            self._give_up(error.__context__)
        except httptools.HttpParserError:
            self.refuse(400, INVALID)
        else:
            if self._received > MAX_HEAD_BYTES:
                self._check_received()
            return
        if self._offered and not self.deaf:
            self._read_on(rest)

    def on_message_begin(self) -> None:
        """The first byte of a request came."""
        self._reading = HEAD
        self._since = self.watch.now
        self.url = b""
        self.headers = self._into = []
        self._special = {}
        self.cycle = None  # type: ignore[assignment]

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer; those are dropped with the list they are in."""
        name = name.lower()
        self._into.append((name, value))
        if name in SPECIAL:
            special = self._special
            special[_TWICE if name in special else name] = value

    def on_headers_complete(self) -> None:
        """A head is whole: check it, then begin.

        Most callers send the same head again and again. Where it differs from one that passed only
        in what no check reads, it is not checked again.
        """
        if self.deaf:
            raise Refusal(0, "")
        self.method = method = self.parser.get_method()
        self.keep_alive = keep_alive = self.parser.should_keep_alive()
        find = self._special.get
        self.stated = stated = find(b"content-length")
        count = len(self._special)
        plain = (self.url, method, find(b"host"), find(b"connection"), count, stated is None)
        if not (
            plain == self._plain
            and keep_alive
            and self._received <= MAX_URL_BYTES
            and len(self.headers) <= MAX_HEADERS
            and (stated is None or len(stated) <= self.watch.short_length)
        ):
            is_plain = self._check_head() and _TWICE not in self._special
            self._plain = plain if is_plain else None
            if self._offered:
                return  # it is read again without the offer
        self._reading = BODY
        self.begin()

    def _check_head(self) -> bool:
        """Check a whole head; whether it is as plain as most."""
        parser = self.parser
        if self._received > MAX_HEAD_BYTES:
            check_size(self.headers, self.url)
        self.version, self.chunked, self.expect_100_continue, offered = read_head(
            (self.method, self.url),
            self.headers,
            parser.get_http_version,
            self.watch.bounds.max_body_bytes,
            keep_alive=self.keep_alive,
        )
        self.keep_alive = self.keep_alive and self.version != "1.0"  # nobody promises it there
        self._offered = offered and parser.should_upgrade()
        if self.chunked:
            self._into, self._special = [], {}
            self._chunks = self._body_bytes = 0
            self._before = self._received if self._late else 0
        return self.version == "1.1" and not (self.chunked or self.expect_100_continue or offered)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            raise Refusal(400, f"The body comes in more than the {MAX_CHUNKS} chunks allowed.")

    def on_body(self, body: bytes) -> None:
        """A part of a body came. A subclass that takes it calls `count` if it is chunked."""
        if self.chunked:
            self.count(len(body))
        cycle = self.cycle
        if cycle.response_complete:
            self._drained += len(body)
            if self._drained > MAX_DRAINED_BYTES:
                self._abort()
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def count(self, size: int) -> None:
        """Count a part of a chunked body, in bytes.

        Raises:
            Refusal: the body is too large.
        """
        self._body_bytes += size
        if self._body_bytes > self.watch.bounds.max_body_bytes:
            raise body_too_large(self.watch.bounds.max_body_bytes)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._reading == HEAD:
            return  # it offered another protocol
        self._reading = BETWEEN
        self._late = True
        self.end()

    def end(self) -> None:
        """A request that `begin` took is whole. Tells the application."""
        cycle = self.cycle
        cycle.more_body = False
        cycle.message_event.set()

    def look(self, now: float, elapsed: float) -> None:
        """Compare every deadline with the clock. Called by the watch."""
        if self.transport.is_closing() and not self.transport.get_write_buffer_size():
            return
        if self._is_stuck(now):
            self._cut_off()
        elif self.flow.read_paused:  # we are the slow ones
            self._since += elapsed
            self._moved = now
        elif not self._unsent:
            self._look_at_reading(now)

    def _is_stuck(self, now: float) -> bool:
        """Whether the caller reads its answer too slowly, or not at all."""
        unsent = self.transport.get_write_buffer_size()
        wanted = MIN_BYTES_PER_S * self.watch.bounds.write_stall_s
        if not unsent or not self._unsent or self._unsent - unsent >= wanted:
            self._unsent_since = now
            self._unsent = unsent
        elif unsent > self._unsent:
            self._unsent = unsent
        return now - self._unsent_since > self.watch.bounds.write_stall_s

    def _look_at_reading(self, now: float) -> None:
        waited = now - self._since
        if self._reading == HEAD:
            if waited > self.watch.bounds.header_s:
                self.refuse(408, "The head of the request did not come in time.")
        elif self._reading == BODY:
            self._look_at_body(now, waited)
        elif self._reading == LEAVING:
            if waited > LINGER_S:
                self._abort()
        elif self.busy():
            self._moved = now
        elif now - max(self._since, self._moved) > self._patience():
            self.transport.close()

    def _look_at_body(self, now: float, waited: float) -> None:
        idle_s = self.watch.bounds.body_idle_s
        if self._received != self._seen:
            self._seen, self._moved = self._received, now
        slow = self._received < MIN_BYTES_PER_S * (waited - idle_s)
        if slow or now - max(self._moved, self._since) > idle_s:
            self.refuse(408, "The body of the request did not come in time.")

    def _patience(self) -> float:
        """How long to wait for a request, in seconds; a new connection is not idle yet."""
        bounds = self.watch.bounds
        return bounds.keep_alive_s if self.url else min(bounds.header_s, bounds.keep_alive_s)

    def _give_up(self, cause: BaseException | None) -> None:
        if isinstance(cause, Refusal):
            self.refuse(cause.status, cause.sentence)
        else:
            log.error("an unforeseen error while reading a request", exc_info=cause)
            self.refuse(500, "The gateway failed; its log says more.")

    def _check_received(self) -> None:
        """Bound what is neither a whole head nor a body, however small the pieces it comes in."""
        if self._reading == HEAD and self._late:
            self._received = MAX_HEAD_BYTES  # of this head, that is not known; the next part tells
        elif self._reading < BODY and not self._late:
            self.refuse(431, HEAD_TOO_LARGE)
        elif self._reading == BODY and self.chunked:
            allowed = MAX_CHUNK_OVERHEAD + CHUNK_LINE_BYTES * self._chunks + self._before
            if self._received - self._body_bytes > allowed:
                self.refuse(400, "The chunks of the body hold more than their data.")

    def _read_on(self, rest: bytes) -> None:
        """Go on as if no other protocol had been offered.

        The parser takes all that follows such a head for the other protocol. So it gets the head
        again without the offer, and then the rest.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._reading = BETWEEN
        self._offered = False
        head = without_offer((self.method, self.url, self.version.encode()), self.headers)
        if self._offers >= MAX_OFFERS:
            self.refuse(503, "Too many requests in a row offer another protocol.")
            return
        self._offers += 1
        self.data_received(head + rest)
        self._offers -= 1
