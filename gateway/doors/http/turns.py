"""Turns: the answers of one connection, in the order of its requests, and its last word.

uvicorn plays each request with the application. Here is what it leaves open: how many requests may
wait for their turn, what a request is told that the application never sees, and how a connection
ends without its caller losing the answer.
"""

import asyncio
import contextvars
import socket
import struct
from collections import deque
from typing import Any, Final
from urllib.parse import unquote

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.doors.http.cycles import Cycle, Line, drop, last_word
from gateway.doors.http.heads import Refusal
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.watch import Watch

MAX_WAITING: Final = 8
"""Requests of one connection that wait behind the one that is answered."""
MAX_DRAINED_BYTES: Final = 64 * 1024
"""Of a body that nobody wants any more, read and dropped so that its sender sees the answer."""

_AT_ONCE: Final = struct.pack("ii", 1, 0)
BETWEEN: Final = 0
HEAD: Final = 1
BODY: Final = 2
LEAVING: Final = 3


class Turns(HttpToolsProtocol):
    """One connection, as far as answers go.

    Reading is `BETWEEN` requests, in a `HEAD`, in a `BODY`, or, after the last word, `LEAVING`.

    Attributes:
        method, url, headers, version: of the newest head; names of headers in lower case.
        stated: the Content-Length it states, if it does.
        chunked: whether its body comes in chunks.
        keep_alive: whether the connection outlives its answer.
        deaf: nothing more is read from this connection.
        draining: the server stops, so every answer is the last of its connection.
        owed: answers that a subclass has begun and not finished.
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
        super().__init__(config, server_state, app_state, _loop)
        self.watch = watch
        self.method = self.url = b""
        self.version = "1.1"
        self.headers: Headers = []
        self.stated: bytes | None = None
        self.chunked = False
        self.keep_alive = True
        self.deaf = False
        self.draining = False
        self.owed = 0
        self._running: Cycle | None = None
        self._last_word: bytes | None = None
        self._reading = BETWEEN
        self._since = watch.now  # what is read began, or the last request did
        self._drained = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is here."""
        super().connection_made(transport)
        self._line: Any = Line(transport, self.hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone: all requests it sent are told."""
        self.deaf = True
        running, self._running = self._running, None
        if running is not None and running is not self.cycle:
            drop(running)
        self.pipeline.clear()
        super().connection_lost(exc)

    def begin(self) -> None:
        """A head passed every check. Hands the request to the application, in its turn."""
        busy = self.busy()
        if busy and len(self.pipeline) >= MAX_WAITING:
            raise Refusal(503, f"More than {MAX_WAITING} requests wait on this connection.")
        self._drained = 0
        cycle = self.cycle = self._make_cycle()
        if not busy:
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def busy(self) -> bool:
        """Whether an answer is still owed, so that another one would be out of turn."""
        return self._running is not None or self.owed > 0

    def on_response_complete(self) -> None:
        """The application's answer is written."""
        self._running = None
        self.answered()

    def answered(self) -> None:
        """An answer is written: go on with what waits for its turn."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._reading == LEAVING or self.busy():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, _ = self.pipeline.pop()
            self._start(cycle)  # type: ignore[arg-type]
        elif self._last_word is not None:
            self._say(self._last_word)
        elif self.draining and self._reading == BETWEEN:
            self.transport.close()

    def shutdown(self) -> None:
        """The server stops: what has begun is finished, and each answer is the last."""
        self.draining = True
        if self.cycle is not None:
            self.cycle.keep_alive = False
        if self._reading in (BETWEEN, LEAVING) and not self.busy():
            self.transport.close()

    def refuse(self, status: int, sentence: str) -> None:
        """Answer what is being read, once all answers owed before are out; then hang up.

        Where the application has begun to answer it already, hang up without a word.
        """
        if self.deaf:
            return
        self.deaf = True
        self.watch.refused[status] += 1
        cycle = self.cycle if self._reading == BODY else None
        self._reading = max(self._reading, HEAD)  # something of it came, and more may follow
        if cycle is not None:
            self._take_back(cycle)
            if cycle.response_started:
                self.hang_up()
                return
        word = last_word(
            status, sentence, self.server_state.default_headers, with_body=self.method != b"HEAD"
        )
        if self.busy():
            self._last_word = word
        else:
            self._say(word)

    def hang_up(self) -> None:
        """Close once all is written.

        A caller that is still sending is heard out for a little: a reset would take the answer
        from it before it reads it.
        """
        self.deaf = True
        self.owed, self._running = 0, None
        self.pipeline.clear()
        transport = self.transport
        if transport.is_closing():
            return
        if self._reading == BETWEEN:
            transport.close()
            return
        self._reading = LEAVING
        self._since = self.watch.now
        self.flow.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()

    def _make_cycle(self) -> Cycle:
        path, _, query = self.url.partition(b"?")
        text = path.decode("ascii")
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": self.version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": self.method.decode("ascii"),
            "root_path": "",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        self.scope = scope
        cycle = Cycle(
            scope=scope,
            transport=self._line,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.keep_alive and not self.draining,
            on_response=self.on_response_complete,
        )
        cycle.small = not self.chunked and int(self.stated or 0) <= MAX_DRAINED_BYTES
        return cycle

    def _start(self, cycle: Cycle) -> None:
        """Run the application; nothing that one request sets is seen by the next."""
        self._running = cycle
        task = self.loop.create_task(cycle.run_asgi(self.app), context=contextvars.Context())
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _take_back(self, cycle: RequestResponseCycle) -> None:
        """Let the application know that this request's caller is as good as gone."""
        if cycle is self._running:
            self._running = None
        else:
            self.pipeline = deque(row for row in self.pipeline if row[0] is not cycle)
        drop(cycle)

    def _drain(self, size: int) -> None:
        """Drop what comes after the last request that is answered here."""
        self._drained += size
        if self.busy():
            self.flow.pause_reading()
        elif self._drained > MAX_DRAINED_BYTES:
            self._abort()

    def _abort(self) -> None:
        self.deaf = True
        self.transport.abort()

    def _cut_off(self) -> None:
        """Abort, and have the kernel forget as well what it would still send for us."""
        line = self.transport.get_extra_info("socket")
        if line is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._abort()

    def _say(self, word: bytes) -> None:
        """Write the last answer of this connection."""
        self._last_word = None
        self._drained = 0
        if not self.transport.is_closing():
            self.transport.write(word)
            self.hang_up()
