"""A receiver of webhooks for tests: real HTTP, answers as it is told, checks signatures by itself.

Each request takes the next of `script`, or 200 when that is empty. What it knows of signatures is
written from the specification of Standard Webhooks, not from our code.
"""

import base64
import hashlib
import hmac
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Self

import msgspec


@dataclass(frozen=True)
class Reply:
    """What to say to one request; `hangs` says nothing until the receiver stops."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes = b""
    hangs: bool = False
    drips: bool = False


@dataclass(frozen=True)
class Delivered:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int

    @property
    def event(self) -> Any:
        """Its body."""
        return msgspec.json.decode(self.body)


@dataclass
class HookReceiver:
    """A context manager. `stop` and `start` make it go down and come back on the same port."""

    script: deque[Reply] = field(default_factory=deque)
    received: list[Delivered] = field(default_factory=list)
    _port: int = 0
    _released: Event = field(default_factory=Event)
    _server: ThreadingHTTPServer | None = None
    _thread: Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def url(self) -> str:
        """Where events go."""
        return f"http://127.0.0.1:{self._port}/hook"

    @property
    def taken(self) -> list[Any]:
        """The events that were answered with 2xx, in the order in which they came."""
        return [one.event for one in self.received if one.status // 100 == 2]

    def start(self) -> None:
        """Listen."""
        self._released.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._request_class())
        self._server.daemon_threads = False
        self._port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is None or self._thread is None:
            return
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = None

    def _request_class(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Request(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers["content-length"]))
                reply = receiver.script.popleft() if receiver.script else Reply()
                receiver.received.append(Delivered(self.path, headers, body, reply.status))
                if reply.hangs:
                    receiver._released.wait()
                    return
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                if reply.drips:
                    self.end_headers()
                    while not receiver._released.wait(0.02):
                        self.wfile.write(b".")
                        self.wfile.flush()
                    return
                self.send_header("content-length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        return Request


def verifies(secret: str, delivered: Delivered, now: float, tolerance_s: float = 300.0) -> bool:
    """Whether one of the signatures was made with this secret, not long ago."""
    key = base64.b64decode(secret.split("_", 1)[1])
    stamp = delivered.headers["webhook-timestamp"]
    if abs(now - int(stamp)) > tolerance_s:
        return False
    signed = b".".join([delivered.headers["webhook-id"].encode(), stamp.encode(), delivered.body])
    wanted = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    stated = [one.split(",", 1) for one in delivered.headers["webhook-signature"].split(" ")]
    return any(hmac.compare_digest(wanted, value) for version, value in stated if version == "v1")
