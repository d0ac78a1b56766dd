"""Both doors of inferences, each a real listener before a house of its own, and a raw caller."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
import uvicorn
from uvicorn.server import ServerState

from gateway.core.errors import EngineFailed
from gateway.core.models import Key
from gateway.core.oip.messages import Limits
from gateway.core.snapshot import Snapshot
from gateway.core.tensors import Array
from gateway.doors.http.answers import Answers
from gateway.doors.http.aside import Aside
from gateway.doors.http.desk import Desk
from gateway.doors.http.fast import FastProtocol
from gateway.doors.http.guarded import GuardedProtocol
from gateway.doors.http.inference import DoorParts, InferenceDoor
from gateway.doors.http.listening import Listener, bind, configure
from gateway.doors.http.outcomes import OutcomeDesk
from gateway.doors.http.readers import Readers
from gateway.doors.http.requests import Requests
from gateway.doors.http.watch import Watch
from gateway.ports import Engine
from gateway.serving.admission import Admission
from gateway.settings import AdmissionSettings, HttpSettings, OutcomeSettings, Settings
from tests.fakes import CountingEntropy, FakeEngine, FakeRepository, FakeSink
from tests.planes import Plane, rows_of, snapshot_of, until

Kind: TypeAlias = Literal["asgi", "fast"]
ONE: Key = ("m", 1)
INFER = b"/v2/models/m/infer"
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
WAIT_S = 15
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
DATE = re.compile(rb"\r\ndate: [^\r]*\r\n")


class NanEngine(FakeEngine):
    """Answers NaN."""

    def run(self, tensors: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        return [np.full((len(tensors["x"]), 1), np.nan, np.float32)]


def asking(*values: float, **fields: Any) -> dict[str, Any]:
    """The JSON of a request with one row for each value."""
    data = rows_of(*values).ravel().tolist()
    tensor = {"name": "x", "shape": [len(values), 4], "datatype": "FP32", "data": data}
    return {"inputs": [tensor], **fields}


def post(
    body: bytes | dict[str, Any] | None = None,
    *lines: bytes,
    path: bytes = INFER,
    method: bytes = b"POST",
    version: bytes = b"1.1",
) -> bytes:
    """A request as it stands on the wire; by default a small inference."""
    whole = body if isinstance(body, bytes) else orjson.dumps(body or asking(1.0))
    head = [b"%b %b HTTP/%b" % (method, path, version), b"Host: a", *lines]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(whole), b"", whole])


def chunked(*parts: bytes) -> bytes:
    """An inference whose body comes in these chunks."""
    head = b"POST " + INFER + b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def status_of(answer: bytes) -> int:
    """The status of a whole answer."""
    return int(answer[9:12])


def data_of(answer: bytes) -> Any:
    """The data of an answer's only output."""
    return orjson.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"]


@dataclass
class Caller:
    """A connection of a raw caller."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *pieces: bytes) -> None:
        """Send without waiting for anybody."""
        self.writer.writelines(pieces)

    async def read(self, *, with_body: bool = True) -> bytes:
        """The next answer, whole, behind whatever 100 Continue comes first; empty at the end."""
        async with asyncio.timeout(WAIT_S):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"HTTP/1.1 100"):
                    return head + await self.read(with_body=with_body)
                length = _LENGTH.search(head)
                size = int(length[1]) if length is not None and with_body else 0
                return head + await self.reader.readexactly(size)
            except asyncio.IncompleteReadError as cut:
                return cut.partial
            except ConnectionError:
                return b""

    async def ask(self, request: bytes) -> bytes:
        """Send a request; its answer."""
        self.send(request)
        return await self.read(with_body=not request.startswith(b"HEAD"))

    async def is_open(self) -> bool:
        """Whether the connection still answers."""
        try:
            return bool(await self.ask(HEALTH))
        except ConnectionError:
            return False

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


class Counted:
    """A transport that notes what is written."""

    def __init__(self, transport: Any, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._writes.append(bytes(data))
        self._transport.write(data)


class Shown:
    """What a test sees of a connection."""

    writes: list[bytes]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Counted(transport, self.writes))  # type: ignore[misc]


class ShownFast(Shown, FastProtocol):
    """A connection of the fast door."""


class ShownAsgi(Shown, GuardedProtocol):
    """A connection of the ASGI door."""


@dataclass(repr=False)
class Door:
    """A listener with a house behind it."""

    plane: Plane
    desk: Desk
    app: InferenceDoor
    kind: Kind
    sink: FakeSink
    port: int = 0
    server: Any = None
    connections: list[GuardedProtocol] = field(default_factory=list)
    writes: list[bytes] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)

    async def dial(self, *, room: int | None = None) -> Caller:
        """A connection; `room` is how many bytes the caller's kernel takes for it."""
        line = socket.socket()
        line.setblocking(False)
        if room is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", self.port))
        caller = Caller(*await asyncio.open_connection(sock=line))
        self.callers.append(caller)
        return caller

    async def ask(self, request: bytes) -> bytes:
        """Send a request on a connection of its own; the answer."""
        caller = await self.dial()
        try:
            return await caller.ask(request)
        finally:
            caller.close()

    async def tells(self, *pieces: bytes, answers: int = 1) -> tuple[list[bytes], bool]:
        """Answers but for their date, and whether the connection outlives them."""
        caller = await self.dial()
        with_body = not b"".join(pieces).startswith(b"HEAD")
        try:
            caller.send(*pieces)
            told = [await caller.read(with_body=with_body) for _ in range(answers)]
            is_open = await caller.is_open()
        finally:
            caller.close()
        return [DATE.sub(b"\r\ndate: -\r\n", answer) for answer in told], is_open

    async def talks(self, *requests: bytes) -> list[bytes]:
        """Answers but for their date, each read before the next request is sent."""
        caller = await self.dial()
        try:
            told = [await caller.ask(request) for request in requests]
        finally:
            caller.close()
        return [DATE.sub(b"\r\ndate: -\r\n", answer) for answer in told]

    def held(self) -> tuple[int, int, int]:
        """Requests admitted, in flight, and versions leased."""
        leases = sum(self.plane.leases().values())
        return self.desk.admission.in_flight, self.plane.pipeline.in_flight, leases

    def connect(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: Watch,
    ) -> GuardedProtocol:
        """A connection of the listener."""
        made: ShownFast | ShownAsgi
        if self.kind == "asgi":
            made = ShownAsgi(config, server_state, app_state, _loop, watch=watch)
        else:
            requests = Requests(self.plane.cells)
            made = ShownFast(
                config, server_state, app_state, _loop,
                watch=watch, desk=self.desk, requests=requests,
            )  # fmt: skip
        made.writes = self.writes
        self.connections.append(made)
        return made


@asynccontextmanager
async def door(
    kind: Kind,
    engines: Mapping[Key, Engine | EngineFailed] | None = None,
    *,
    snapshot: Snapshot | None = None,
    http: HttpSettings | None = None,
    max_in_flight: int = 1024,
    outcomes: OutcomeSettings | None = None,
    **plane: Any,
) -> AsyncIterator[Door]:
    """Listen for the time of a test; by default model `m` has a version 1 that adds 100."""
    settings = Settings(http=http or HttpSettings())
    limits = Limits(
        body_bytes=settings.http.max_body_bytes, json_bytes=settings.http.max_json_bytes
    )
    with Plane(engines or {ONE: FakeEngine(bias=100)}, **plane) as built:
        desk = Desk(
            pipeline=built.pipeline,
            admission=Admission(
                AdmissionSettings(max_in_flight=max_in_flight), built.clock.monotonic_ns
            ),
            aside=Aside(asyncio.get_running_loop()),
            clock=built.clock,
            randbytes=CountingEntropy(),
            limits=limits,
            readers=Readers(limits),
            answers=Answers(settings.http.json_nonfinite),
            trace_ratio=0.0,
            plain_bytes=limits.body_bytes if settings.http.auth == "open" else -1,
        )
        await built.serve(snapshot or snapshot_of())
        sink = FakeSink()
        told = OutcomeDesk(desk, sink, outcomes or OutcomeSettings(), built.cells)
        parts = DoorParts(desk, FakeRepository(), told, Requests(built.cells), 64)
        app = InferenceDoor(parts)
        one = Door(built, desk, app, kind, sink)
        listening = bind("127.0.0.1", 0)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does not here
        one.port = listening.getsockname()[1]
        one.server = Listener(
            configure(app, settings, (None, None), lifespan="off", protocol=one.connect)
        )
        serving = asyncio.create_task(one.server.serve(sockets=[listening]))
        await until(lambda: bool(one.server.server_state.default_headers))
        try:
            yield one
        finally:
            one.server.should_exit = True
            for caller in one.callers:
                caller.close()
            await serving
            desk.aside.close()
