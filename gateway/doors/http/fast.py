"""The fast door: inferences answered by the connection itself.

An inference whose head passed the guard is not handed to the ASGI application: when its body is
whole it goes to the same `Exchange` in the same tick, and its response leaves in one write. There
is no task, no message and no timer. Everything else, and every inference that is out of the
ordinary (one that is refused by its head, waits its turn, or asks to be told to go on), takes the
ASGI door, which gives the same bytes.
"""

import asyncio
from functools import lru_cache
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from gateway.core.errors import GatewayError, Overloaded, Throttled
from gateway.doors.http.desk import Desk
from gateway.doors.http.exchange import LARGE_BYTES, Exchange
from gateway.doors.http.glance import Glance, learn
from gateway.doors.http.guarded import GuardedProtocol
from gateway.doors.http.heads import Refusal
from gateway.doors.http.inference import LEFT_LOOK_S
from gateway.doors.http.inference_head import Head, Headers
from gateway.doors.http.messages import CLOSE, Response, error_response
from gateway.doors.http.requests import Requests
from gateway.doors.http.routes import Route, route_of
from gateway.doors.http.together import answer_together
from gateway.doors.http.turns import BETWEEN, MAX_DRAINED_BYTES
from gateway.doors.http.watch import Watch

EXCHANGES: Final = frozenset({"infer", "predict"})
MAX_LESSONS: Final = 4
"""Heads of one connection that a glance is learned from; who sends ever new ones is parsed."""


class FastProtocol(GuardedProtocol):
    """One connection that answers inferences itself."""

    def __init__(  # noqa: PLR0913 - uvicorn's own, and ours
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: Watch,
        desk: Desk,
        requests: Requests,
    ) -> None:
        """A connection that is not made yet.

        Args:
            config, server_state, app_state, _loop: as uvicorn has them.
            watch: of the listener.
            desk: where inferences are answered.
            requests: counts what was answered.
        """
        super().__init__(config, server_state, app_state, _loop, watch=watch)
        self._desk = desk
        self._requests = requests
        self._taking: Exchange | None = None  # the one whose body is read here
        self._exchange: Exchange | None = None  # the one that is answered here
        self._route = _NO_ROUTE
        self._glance: Glance | None = None
        self._lessons = MAX_LESSONS
        self._earlier: Headers = []  # of the last such head
        self._differ: set[bytes] = set()  # names of headers whose values differed
        self._plain_headers: Headers | None = None  # of the last plain head that was taken here
        self._body = b""
        self._parts: list[bytes] = []
        self._denial: Response | None = None
        self._is_last = False  # of the head that is answered here; another may have come since

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone: whatever waits for an answer is given up."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came: a whole request like the last one, or whatever the parser says."""
        glance = self._glance
        if glance is not None and self._reading == BETWEEN and not self.deaf:
            seen = glance.read(data)
            if seen is not None and self._takes(glance.route, *seen):
                return
        super().data_received(data)
        if self._plain_headers is not None:
            self._learn(data)

    def _takes(self, route: Route, head: Head, body: bytes) -> bool:
        """Take a request that is whole, unless it is out of turn or refused by its head.

        One that finds no room is told so here: under overload most are, and each costs the others.
        """
        if self._running or self.owed or self.flow.write_paused:
            return False
        denial: Response | None = None
        exchange = Exchange(self._desk, route, head, self._respond, self)
        try:
            exchange.open(self.client[0] if self.client else "")
        except (Overloaded, Throttled) as error:
            if exchange.size > MAX_DRAINED_BYTES:
                return False
            exchange.rejected(error)
            denial = _denial(type(error), str(error))  # type: ignore[arg-type]  # classes are hashable
        except GatewayError:
            return False
        self.method = b"POST"
        self._route = route
        self._since = self.watch.now
        self._is_last = False
        self._exchange = exchange
        if denial is not None:
            self._respond(denial)
            return True
        self.owed = 1
        exchange.take(body)
        return True

    def _learn(self, data: bytes) -> None:
        """Learn from the head that was just taken, if it came whole and by itself."""
        headers, self._plain_headers = self._plain_headers, None
        before, self._earlier = self._earlier, self.headers
        if headers is self.headers and self._reading == BETWEEN and before and self._lessons:
            self._lessons -= 1
            self._differ |= {name for name, _ in set(before).symmetric_difference(headers)}
            asked, digits = (self.url, self._route), self.watch.short_length
            self._glance = learn(data, asked, headers, self._differ, digits)

    def begin(self) -> None:
        """A head passed every check: take it here if it is an ordinary inference."""
        if self.method != b"POST" or not self._opens():
            super().begin()
            if self.owed and self.flow.read_paused:
                self.loop.call_later(LEFT_LOOK_S, self._listen)

    def on_body(self, body: bytes) -> None:
        """A part of a body came; most come whole."""
        if self._taking is None:
            super().on_body(body)
            return
        if self._denial is not None:
            return
        if self.chunked:
            self.count(len(body))
            try:
                self._taking.hold(self._body_bytes)
            except Overloaded as error:
                self._taking.rejected(error)
                raise Refusal(503, str(error)) from error
        if not self._body:
            self._body = body
        else:
            self._parts.append(body)

    def end(self) -> None:
        """A request is whole."""
        exchange, self._taking = self._taking, None
        if exchange is None:
            super().end()
            return
        self._exchange = exchange
        if self._denial is not None:
            denial, self._denial = self._denial, None
            self._respond(denial)
            return
        body = self._body
        if self._parts:
            body = b"".join((body, *self._parts))
            self._parts.clear()
        self._body = b""
        self.owed = 1
        exchange.take(body)

    def refuse(self, status: int, sentence: str) -> None:
        """Answer what is being read with an error; an exchange in its body is no more."""
        if self._taking is not None:
            self._forget()
        super().refuse(status, sentence)

    def _opens(self) -> bool:
        """Whether an exchange was opened for this head."""
        if self._running or self.owed or self.flow.write_paused or self.expect_100_continue:
            return False
        try:
            route = route_of(self.url.partition(b"?")[0])
            if route.action not in EXCHANGES:
                return False
            head = Head.of(self.headers)
            exchange = Exchange(self._desk, route, head, self._respond, self)
            exchange.open(self.client[0] if self.client else "")
        except (Overloaded, Throttled) as error:
            if self.chunked or exchange.size > MAX_DRAINED_BYTES:
                return False
            exchange.rejected(error)
            # Told once its body was read and dropped.
            self._denial = _denial(type(error), str(error))  # type: ignore[arg-type]  # as above
        except GatewayError:
            return False  # the ASGI door tells it
        self._taking = exchange
        self._route = route
        self._is_last = not self.keep_alive
        if head.is_plain and self._plain is not None and self.keep_alive:
            self._plain_headers = self.headers
        return True

    together = staticmethod(answer_together)

    def start(self) -> bytes:
        """The status line and the headers that stand in every response of status 200."""
        return self._requests.start(_OK, self.server_state.default_headers)

    def lives(self) -> bool:
        """Whether the connection outlives the next response."""
        return not (self._is_last or self.draining or self._desk.pipeline.worker.stopping)

    def tell(self, message: bytes) -> bool:
        """Write a whole response, and go on; whether somebody was there to get it."""
        exchange, self._exchange = self._exchange, None
        self.owed = 0
        transport = self.transport
        if exchange is None or transport.is_closing():
            return False
        transport.write(message)
        self._go_on()
        return True

    def counted(self, arrived_ns: list[int]) -> None:
        """Count inferences that were told now, by when they came."""
        now_ns = self._desk.clock.monotonic_ns()
        took_ns = [now_ns - arrived for arrived in arrived_ns]
        self._requests.answered_all("infer", _OK, took_ns, self.scheme or "http")

    def _respond(self, response: Response) -> None:
        """Write the response, whole, and go on with the connection."""
        exchange, self._exchange = self._exchange, None
        self.owed = 0
        if exchange is None or self.transport.is_closing():
            return
        desk, status = self._desk, response.status
        stopping = desk.pipeline.worker.stopping
        is_last = self.draining or stopping or self._is_last or CLOSE in response.headers
        block = _block(response, is_stopping=stopping, is_last=is_last)
        start = self._requests.start(status, self.server_state.default_headers)
        if len(response.body) < LARGE_BYTES:
            self.transport.write(b"".join((start, block, response.body)))
        else:
            self.transport.writelines((start + block, response.body))
        took_ns = desk.clock.monotonic_ns() - exchange.arrived_ns
        self._requests.answered("POST", self._route.action, status, took_ns, self.scheme or "http")
        if is_last:
            self.hang_up()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """An answer is written, and not the last."""
        if self.pipeline or self._last_word or self.flow.read_paused:
            self.answered()
        else:
            self.server_state.total_requests += 1

    def _listen(self) -> None:
        """Read on behind an inference that takes long: only who reads learns that a caller left."""
        if self.owed and not self.deaf:
            self.flow.resume_reading()

    def _forget(self) -> None:
        for exchange in (self._taking, self._exchange):
            if exchange is not None:
                exchange.cancel()
        self._taking = self._exchange = self._denial = None
        self._body = b""
        self._parts.clear()


@lru_cache(maxsize=16)
def _denial(kind: type[GatewayError], sentence: str) -> Response:
    """The response to who finds no room; there are few, and they are never changed."""
    return error_response(kind(sentence))


def _block(response: Response, *, is_stopping: bool, is_last: bool) -> bytes:
    """The headers of a response, and the empty line, in the order of the ASGI door."""
    headers = [*response.headers]
    if is_stopping and CLOSE not in headers:
        headers.append(CLOSE)
    headers.append((b"content-length", b"%d" % len(response.body)))
    if is_last and CLOSE not in headers:
        headers.append(CLOSE)
    return b"".join([b"%b: %b\r\n" % header for header in headers]) + b"\r\n"


_OK: Final = 200
_NO_ROUTE: Final = Route("unknown")
