"""The generator's loop: non-blocking sockets, one epoll, requests that are ready bytes.

It spins instead of sleeping: it has a core for itself, and a timer's grain would show in the p50.
"""

import gc
import select
import socket
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

RECEIVE_BYTES: Final = 256 * 1024
PROBE_EVERY_S: Final = 0.05
MIN_DRAIN_S: Final = 1.0
GOOD, REFUSED, WRONG, BROKEN, LATE, UNSENT = 1, 2, 3, 4, 5, 6
"""What became of a request; 0 while nothing has, which at the end is late."""


class Judge(Protocol):
    """Says whether an answer is right."""

    def right(self, request: int, head: bytes, body: bytes) -> bool:
        """Whether this may be the answer to the plan's request of this number."""


@dataclass(frozen=True)
class Load:
    """What to send: `rate` requests a second, or with 0 as fast as answers come back."""

    port: int
    seconds: float
    connections: int = 64
    rate: float = 0.0
    deadline_s: float = 10.0
    probe: str = ""


class Connection:
    """One socket with at most one request under way; `number` tells which, or -1."""

    __slots__ = ("due", "held", "number", "socket", "unsent", "wanted")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)  # noqa: FBT003 - the socket's own interface
        self.number = -1
        self.due = 0.0
        self.held = b""
        self.wanted = 0
        self.unsent = memoryview(b"")


class Generator:
    """Runs one load; read the results when `run` is back."""

    def __init__(self, load: Load, plan: Sequence[bytes], judge: Judge | None = None) -> None:
        """Get ready; nothing is connected yet."""
        self._load = load
        self._plan = plan
        self._judge = judge
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._free: list[Connection] = []
        self._next = 0
        self._start = 0.0
        self._end = 0.0
        self._total = int(load.rate * load.seconds)
        self._fates = bytearray(self._total)
        self._latencies = array("d", bytes(8 * self._total))
        self._dues = array("d")
        self._probe: Connection | None = None
        self.probe_latencies: list[float] = []

    def run(self) -> None:
        """Send everything, and wait for the last answers."""
        self._free = [self._connect() for _ in range(self._load.connections)]
        if self._load.probe:
            self._probe = self._connect()
        gc.collect()
        gc.disable()
        try:
            self._start = time.perf_counter() + 0.01
            self._end = self._start + self._load.seconds
            self._turn()
        finally:
            gc.enable()
            for connection in self._open.values():
                connection.socket.close()
            self._epoll.close()

    def told(self) -> dict[str, Any]:
        """Counts of fates, and the seconds that the rate is reckoned by."""
        count = self._fates.count
        return {
            "requests": len(self._fates),
            "seconds": self._load.seconds,
            "good": count(GOOD),
            "refused": count(REFUSED),
            "wrong": count(WRONG),
            "errors": count(BROKEN),
            "late": count(LATE) + count(UNSENT) + count(0),
        }

    def good_latencies(self) -> list[float]:
        """Seconds from the intended sending to the whole answer, of good answers."""
        return [
            latency
            for latency, fate in zip(self._latencies, self._fates, strict=True)
            if fate == GOOD
        ]

    def save_times(self, path: Path) -> None:
        """Write an array of rows (intended sending on the monotonic clock, latency, fate)."""
        dues = self._dues or [self._start + i / self._load.rate for i in range(self._total)]
        np.save(path, np.column_stack([dues, self._latencies, list(self._fates)]))

    def _turn(self) -> None:
        drain_s = max(MIN_DRAIN_S, self._load.deadline_s)
        poll, clock, open_ = self._epoll.poll, time.perf_counter, self._open
        while True:
            now = clock()
            if now >= self._start:
                self._send_due(now)
            for descriptor, _ in poll(0):
                connection = open_.get(descriptor)
                if connection is not None:
                    self._ready(connection)
            if now > self._end and (not self._unanswered() or now > self._end + drain_s):
                return

    def _unanswered(self) -> bool:
        waiting = self._next < self._total
        return waiting or len(self._free) + bool(self._probe) < len(self._open)

    def _send_due(self, now: float) -> None:
        """Send what is due, as long as a connection is free."""
        free, load = self._free, self._load
        if self._probe is not None and self._probe.number < 0:
            self._send_probe(now)
        if not load.rate:
            while free and now < self._end:
                self._fates.append(0)
                self._latencies.append(0.0)
                self._dues.append(now)
                self._send(free.pop(), now)
            return
        due = min(int((now - self._start) * load.rate) + 1, self._total)
        while self._next < due and free:
            intended = self._start + self._next / load.rate
            if now - intended > load.deadline_s:
                self._fates[self._next] = UNSENT
                self._next += 1
                continue
            self._send(free.pop(), intended)

    def _send(self, connection: Connection, intended: float) -> None:
        request = self._plan[self._next % len(self._plan)]
        connection.number = self._next
        connection.due = intended
        self._next += 1
        self._push(connection, request)

    def _push(self, connection: Connection, request: bytes | memoryview) -> None:
        try:
            sent = connection.socket.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._broken(connection)
            return
        if sent < len(request):
            first = not connection.unsent
            connection.unsent = memoryview(request)[sent:]
            if first:
                self._epoll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
        elif connection.unsent:
            connection.unsent = memoryview(b"")
            self._epoll.modify(connection.socket, select.EPOLLIN)

    def _ready(self, connection: Connection) -> None:
        if connection.unsent:
            self._push(connection, connection.unsent)
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(connection)
            return
        held = connection.held + data if connection.held else data
        if len(held) < connection.wanted:
            connection.held = held
            return
        end = held.find(b"\r\n\r\n") + 4
        length = -1 if end < 4 else answer_length(held, end)
        if length < 0 or len(held) < length:
            connection.held = held
            connection.wanted = max(length, 0)
            return
        connection.held = b""
        connection.wanted = 0
        self._answered(connection, held, end)

    def _answered(self, connection: Connection, answer: bytes, end: int) -> None:
        number, now = connection.number, time.perf_counter()
        latency = now - connection.due
        connection.number = -1
        if connection is self._probe:
            self.probe_latencies.append(latency)
            return
        self._latencies[number] = latency
        if not answer.startswith(b"HTTP/1.1 200"):
            fate = REFUSED
        elif self._judge is not None and not self._judge.right(
            number % len(self._plan), answer[:end], answer[end:]
        ):
            fate = WRONG
        else:
            fate = GOOD if latency <= self._load.deadline_s else LATE
        self._fates[number] = fate
        if b"onnection: close" in answer[:end]:
            self._replace(connection)
        else:
            self._free.append(connection)

    def _broken(self, connection: Connection) -> None:
        if connection.number >= 0 and connection is not self._probe:
            self._fates[connection.number] = BROKEN
        self._replace(connection)

    def _replace(self, connection: Connection) -> None:
        idle = connection in self._free
        if idle:
            self._free.remove(connection)
        self._open.pop(connection.socket.fileno(), None)
        self._epoll.unregister(connection.socket)
        connection.socket.close()
        try:
            fresh = self._connect()
        except OSError:
            return
        if connection is self._probe:
            self._probe = fresh
        else:
            self._free.append(fresh)

    def _send_probe(self, now: float) -> None:
        assert self._probe is not None
        due = self._start + len(self.probe_latencies) * PROBE_EVERY_S
        if due > now or now > self._end:
            return
        self._probe.number = 0
        self._probe.due = due
        ask = f"GET {self._load.probe} HTTP/1.1\r\nHost: 127.0.0.1:{self._load.port}\r\n\r\n"
        self._push(self._probe, ask.encode())

    def _connect(self) -> Connection:
        connection = Connection(self._load.port)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)
        return connection


def answer_length(held: bytes, end: int) -> int:
    """Bytes of the whole answer whose head ends at `end`; -1 while that is not known."""
    head = held[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return end + int(head[at + 17 : head.index(b"\r\n", at + 2)])
    if b"\r\ntransfer-encoding: chunked" not in head:
        return end
    for after in _chunk_ends(held, end):
        if after < 0:
            return -after
    return -1


def _chunk_ends(held: bytes, start: int) -> Iterator[int]:
    """Where each chunk ends; the last one, which is empty, with its sign turned."""
    while (line := held.find(b"\r\n", start)) >= 0:
        size = int(held[start:line].split(b";")[0], 16)
        start = line + 2 + size + 2
        if start > len(held):
            return
        yield start if size else -start
        if not size:
            return
