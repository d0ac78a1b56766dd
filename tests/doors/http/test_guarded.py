import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway.doors.http.guarded import MAX_CHUNKS, MAX_OFFERS, GuardedProtocol
from gateway.doors.http.heads import MAX_HEAD_BYTES, check_head
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.listening import Listener, bind, configure
from gateway.doors.http.messages import Message, Receive, Send
from gateway.doors.http.turns import MAX_WAITING
from gateway.doors.http.watch import Bounds, Watch
from gateway.settings import HttpSettings, Settings

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SHORT = HttpSettings(header_s=0.3, body_idle_s=0.3, write_stall_s=0.3, keep_alive_s=1)
PATIENT = HttpSettings()
mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="")


@dataclass
class App:
    """Reads the body, then answers with it; or does what `acts` says."""

    acts: Callable[[Message, Receive, Send], Awaitable[None]] | None = None
    scopes: list[Message] = field(default_factory=list)
    left: int = 0
    marks: list[str] = field(default_factory=list)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        self.marks.append(mark.get())
        mark.set("seen")
        if self.acts is not None:
            await self.acts(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                self.left += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await answer(send, body)


async def answer(send: Send, body: bytes = b"", status: int = 200) -> None:
    """Send a whole answer."""
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class World:
    """A listener with an application behind it."""

    app: App
    port: int
    server: Listener
    serving: asyncio.Task[None]

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, *pieces: bytes) -> bytes:
        """Send the pieces; all that comes back until the listener closes."""
        reader, writer = await self.dial()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        try:
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()


@asynccontextmanager
async def world(app: App | None = None, http: HttpSettings = PATIENT) -> AsyncIterator[World]:
    """Listen for the time of a test."""
    app = app or App()
    listening = bind("127.0.0.1", 0)
    server = Listener(configure(app, Settings(http=http), (None, None), lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    yield World(app, listening.getsockname()[1], server, serving)
    server.should_exit = True
    await serving


def statuses(answers: bytes) -> list[int]:
    """The status of every answer."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - looks at another thread's or task's state
            await asyncio.sleep(0.005)


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.aborted = self.closing = self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = self.closing = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Fast(GuardedProtocol):
    """Answers every request itself, at once or when it is told to."""

    taken: list[tuple[bytes, bytes]]
    at_once = True

    def begin(self) -> None:
        if self.busy():
            super().begin()
            return
        self.taken.append((self.url, b""))

    def on_body(self, body: bytes) -> None:
        if self.chunked:
            self.count(len(body))
        url, before = self.taken[-1]
        self.taken[-1] = (url, before + body)

    def end(self) -> None:
        self.owed = 1
        if self.at_once:
            self.finish()

    def finish(self) -> None:
        self.owed = 0
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        self.answered()


def fast(loop: asyncio.AbstractEventLoop, bounds: Bounds | None = None) -> tuple[Fast, Wire]:
    """A protocol on a wire, with a watch that only the test moves."""

    async def nobody(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError

    config = uvicorn.Config(nobody, ws="none", log_config=None, reset_contextvars=True)
    watch = Watch(bounds or Bounds())
    protocol, wire = Fast(config, ServerState(), {}, loop, watch=watch), Wire()
    protocol.taken = []
    protocol.connection_made(wire)
    return protocol, wire


@pytest.fixture
def quiet_loop() -> Any:
    """A loop that does not run, so no sweep comes unasked."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


HEAD_VALUES = st.sampled_from([b"a", b"chunked", b"2", b"0", b"100-continue", b"close", b"a b"])
HEADS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"Host", b"Connection", b"Expect", b"Transfer-Encoding", b"X", b"Upgrade"]
        ),
        HEAD_VALUES,
    ),
    max_size=5,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"/x", b"/y", b"*"]), HEADS), max_size=4))
def test_a_head_that_is_not_checked_again_would_have_passed(
    heads: list[tuple[bytes, Headers]],
) -> None:
    """On one connection, whatever came before: each request is begun only if its head passes."""
    loop = asyncio.new_event_loop()
    protocol, _ = fast(loop)
    for url, headers in heads:
        begun = len(protocol.taken)
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        protocol.data_received(b"GET " + url + b" HTTP/1.1\r\n" + lines + b"\r\n")
        lowered = [(name.lower(), value) for name, value in headers]
        if len(protocol.taken) > begun:
            assert check_head(b"GET", "1.1", lowered, url, 10**6) is None
        if protocol.deaf or any(value == b"chunked" for _, value in headers):
            break
    loop.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((b"Connection: keep-alive",) * 2, (b"Connection: keep-alive",), id="twice"),
        pytest.param((b"Upgrade: x",) * 2, (b"Upgrade: x",), id="another protocol"),
        pytest.param((b"Host: a",), (), id="host"),
        pytest.param((b"Expect: 100-continue",) * 2, (b"Expect: 100-continue",), id="expect"),
    ],
)
def test_a_head_that_says_something_twice_vouches_for_no_other(
    quiet_loop: asyncio.AbstractEventLoop, first: tuple[bytes, ...], second: tuple[bytes, ...]
) -> None:
    """The next head has as many lines, and one of them says that its body is chunked."""
    protocol, wire = fast(quiet_loop, Bounds(max_body_bytes=10))
    head = POST.removesuffix(b"\r\n")
    protocol.data_received(b"\r\n".join((head, *first, b"", b"")))
    assert statuses(wire.written) in ([200], [400])
    protocol.data_received(b"\r\n".join((head, *second, b"Transfer-Encoding: chunked", b"", b"")))
    protocol.data_received(b"a\r\n0123456789\r\n1\r\n0\r\n0\r\n\r\n")
    assert statuses(wire.written)[-1] in {400, 413}
    assert protocol.deaf


async def test_a_request_reaches_the_application_as_it_came() -> None:
    """Path, query and headers are the caller's; the connection lives on."""
    async with world() as w:
        reader, writer = await w.dial()
        for _ in range(3):
            writer.write(b"POST /a%2fb?c=%20 HTTP/1.1\r\nHost: a\r\nX-Y: z\r\n")
            writer.write(b"Content-Length: 5\r\n\r\nhello")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        writer.close()
    scope = w.app.scopes[-1]
    assert (scope["path"], scope["raw_path"]) == ("/a/b", b"/a%2fb")
    assert scope["query_string"] == b"c=%20"
    assert scope["headers"][1] == (b"x-y", b"z")
    assert len(w.app.scopes) == 3


async def test_a_refusal_is_one_sentence_and_the_application_never_hears_of_it() -> None:
    """H8 The answer is JSON, says that the connection ends, and it does."""
    async with world() as w:
        told = await w.ask(b"GET /x HTTP/1.1\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nconnection: close\r\n" in told
    assert told.endswith(b'\r\n\r\n{"error":"A request names its Host."}')
    assert w.app.scopes == []


async def test_answers_owed_come_before_a_refusal() -> None:
    """H14 A bad request behind a good one is refused after the good one is answered."""
    go = asyncio.Event()

    async def wait(_scope: Message, _receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(send, b"first")

    async with world(App(wait)) as w:
        asking = asyncio.create_task(w.ask(GET + b"\r\n" + b"GET /x HTTP/1.1\r\n\r\n"))
        await until(lambda: w.app.scopes)
        go.set()
        told = await asking
    assert statuses(told) == [200, 400]
    assert len(w.app.scopes) == 1


async def test_a_few_requests_wait_and_the_next_is_refused() -> None:
    """H14 Of 300 in one segment each that waits is answered, none with another's context."""
    async with world() as w:
        told = await w.ask((GET + b"\r\n") * 300)
    assert statuses(told) == [200] * (1 + MAX_WAITING) + [503]
    assert w.app.marks == [""] * (1 + MAX_WAITING)


async def test_trailers_are_dropped() -> None:
    """H17 They never become headers."""
    async with world() as w:
        told = await w.ask(
            POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n0\r\nX-Admin: 1\r\nHost: b\r\n\r\n"
        )
    assert told.endswith(b"\r\n\r\nhi")
    assert all(name != b"x-admin" for name, _ in w.app.scopes[0]["headers"])


async def test_a_body_that_breaks_off_in_nonsense_is_refused() -> None:
    """H16 H17 The application hears that its caller left, and nothing else."""
    async with world() as w:
        told = await w.ask(CHUNKED + b"2\r\nhi\r\nFFFFFFFFFFFFFFFFF\r\n")
    assert statuses(told) == [400]
    assert (len(w.app.scopes), w.app.left) == (1, 1)


async def test_a_body_that_goes_on_for_ever_is_cut_off() -> None:
    """H18 After the 413 a little more is read, then the connection is reset."""
    sent = 0
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 100_000_000:
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)

    async with world(http=HttpSettings(max_body_bytes=100_000)) as w:
        _, writer = await w.dial()
        writer.write(CHUNKED)
        with pytest.raises(ConnectionError):
            await pour(writer)
        writer.close()
    assert sent < 50_000_000
    assert (len(w.app.scopes), w.app.left) == (1, 1)


async def test_an_expected_body_that_is_too_large_is_refused_first() -> None:
    """H19 No `100 Continue` comes before the 413."""
    async with world() as w:
        told = await w.ask(POST + b"Expect: 100-continue\r\nContent-Length: 10000000000\r\n\r\n")
    assert statuses(told) == [413]
    assert w.app.scopes == []


async def test_an_expected_body_is_asked_for() -> None:
    """`100 Continue` comes when the application reads."""
    async with world() as w:
        reader, writer = await w.dial()
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert (await reader.readuntil(b"\r\n\r\nhi")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_an_early_answer_to_a_large_body_is_read_by_its_sender() -> None:
    """It says that the connection ends, and a sender in full swing still gets it whole."""

    async def refuse(_scope: Message, _receive: Receive, send: Send) -> None:
        await answer(send, b"nothing here", 404)

    async with world(App(refuse)) as w:
        told = await w.ask(POST + b"Content-Length: 100000\r\n\r\n", bytes(50_000))
    assert statuses(told) == [404]
    assert b"connection: close" in told
    assert told.endswith(b"nothing here")


async def test_an_early_answer_to_a_small_body_keeps_the_connection() -> None:
    """What is left of a small body is read and dropped."""

    async def refuse(_scope: Message, _receive: Receive, send: Send) -> None:
        await answer(send, b"no", 404)

    async with world(App(refuse)) as w:
        reader, writer = await w.dial()
        for _ in range(2):
            writer.write(POST + b"Content-Length: 1000\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nno")
            writer.write(bytes(1000))
        writer.close()
    assert len(w.app.scopes) == 2


async def test_another_protocol_is_offered_in_vain() -> None:
    """H22 A body behind the offer is read as a body, and the next request as a request."""
    upgrade = b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n"
    async with world() as w:
        told = await w.ask(
            POST + upgrade + b"Content-Length: 29\r\n\r\nGET /inside HTTP/1.1",
            b"\r\nHost: a" + GET + b"Connection: close\r\n\r\n",
        )
    assert statuses(told) == [200, 200]
    assert [scope["raw_path"] for scope in w.app.scopes] == [b"/x", b"/x"]


async def test_what_is_refused_behind_an_offer_is_refused_as_such() -> None:
    """H22 Requests with an offer wait, and are refused, like all others."""
    offer = GET + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    async with world() as w:
        told = await w.ask(offer * 20)
    assert statuses(told) == [200] * (1 + MAX_WAITING) + [503]


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"\r\n\r\n", [], id="empty lines"),
        pytest.param(b"GET /x HT", [408], id="half a head"),
        pytest.param(POST + b"Content-Length: 9\r\n\r\nhal", [408], id="half a body"),
        pytest.param(CHUNKED + b"5\r\nhe", [408], id="half a chunk"),
    ],
)
async def test_who_stops_in_the_middle_is_told_and_left(sent: bytes, wanted: list[int]) -> None:
    """H12 Each part of a request has its deadline."""
    async with world(http=SHORT) as w:
        assert statuses(await w.ask(sent)) == wanted


async def test_an_idle_connection_is_closed_and_no_sweep_is_left() -> None:
    """After its time without a request; then no timer runs."""
    async with world(http=SHORT) as w:
        told = await w.ask(GET + b"\r\n")
    assert statuses(told) == [200]


@pytest.mark.parametrize("drop", [b"G", b"X: y\r\n"], ids=["bytes", "headers"])
async def test_a_head_that_drips_is_ended(drop: bytes) -> None:
    """H12 Not the pause between two bytes counts, but the whole head."""
    async with world(http=SHORT) as w:
        reader, writer = await w.dial()
        writer.write(GET)
        reading = asyncio.create_task(reader.read())
        for _ in range(1000):
            if reading.done():
                break
            writer.write(drop)
            await asyncio.sleep(0.01)
        assert statuses(await reading) == [408]
        writer.close()


async def test_a_slow_application_is_not_its_callers_fault() -> None:
    """While the answer is made, no deadline of the caller runs."""

    async def slow(_scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(1.2)
        await answer(send, b"late")

    async with world(App(slow), SHORT) as w:
        told = await w.ask(GET + b"Connection: close\r\n\r\n")
    assert told.endswith(b"late")


async def test_who_does_not_read_is_left() -> None:
    """H13 An answer that nobody reads is dropped with its connection."""

    async def much(_scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send, bytes(8_000_000))

    async with world(App(much), SHORT) as w:
        reader, writer = await w.dial()
        writer.write(GET + b"\r\n")
        await until(lambda: w.app.scopes)
        await until(lambda: not w.server.server_state.connections)
        with pytest.raises((ConnectionError, AssertionError)):
            assert len(await reader.read()) >= 8_000_000
        writer.close()


async def test_stopping_finishes_what_has_begun() -> None:
    """A request in progress is answered, and told that the connection ends; idle ones end."""
    go = asyncio.Event()

    async def wait(_scope: Message, _receive: Receive, send: Send) -> None:
        await go.wait()
        await answer(send, b"done")

    async with world(App(wait)) as w:
        idle, _idle_writer = await w.dial()
        asking = asyncio.create_task(w.ask(GET + b"\r\n"))
        await until(lambda: w.app.scopes)
        w.server.should_exit = True
        assert await idle.read() == b""
        go.set()
        told = await asking
        _idle_writer.close()
    assert b"connection: close" in told
    assert told.endswith(b"done")


def test_a_subclass_answers_itself_in_turn(quiet_loop: asyncio.AbstractEventLoop) -> None:
    """While it owes an answer the next request waits, and a refusal comes last."""
    protocol, wire = fast(quiet_loop)
    protocol.data_received(POST + b"Content-Length: 2\r\n\r\nhi")
    assert protocol.taken == [(b"/x", b"hi")]
    assert statuses(wire.written) == [200]
    protocol.at_once = False
    protocol.data_received(GET + b"\r\n")
    protocol.data_received(b"nonsense\r\n\r\n")
    assert statuses(wire.written) == [200]
    protocol.finish()
    assert statuses(wire.written) == [200, 200, 400]


def test_offers_of_one_segment_are_bounded(quiet_loop: asyncio.AbstractEventLoop) -> None:
    """H22 Each is read again, so there are only so many; one at a time there may be any number."""
    protocol, wire = fast(quiet_loop)
    offer = GET + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    for _ in range(100):
        protocol.data_received(offer)
    assert statuses(wire.written) == [200] * 100
    protocol.data_received(offer * 3_000)
    assert statuses(wire.written)[100:] == [200] * MAX_OFFERS + [503]


def test_a_head_in_many_segments_is_bounded(quiet_loop: asyncio.AbstractEventLoop) -> None:
    """H10 A header without end is refused when the bound is passed, whatever pieces it is in."""
    protocol, wire = fast(quiet_loop)
    protocol.data_received(GET + b"X: ")
    for _ in range(MAX_HEAD_BYTES + 1):
        protocol.data_received(b"a")
    assert statuses(wire.written) == [431]
    assert protocol.taken == []


def test_the_bound_of_heads_does_not_count_bodies_before(
    quiet_loop: asyncio.AbstractEventLoop,
) -> None:
    """A large body and the beginning of the next head may share a segment."""
    protocol, wire = fast(quiet_loop)
    large = POST + b"Content-Length: 100000\r\n\r\n" + bytes(100_000)
    protocol.data_received(large + GET)
    protocol.data_received(b"\r\n")
    assert statuses(wire.written) == [200, 200]
    second = GET + b"X: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"
    protocol.data_received(large + second)
    assert statuses(wire.written)[2:] == [200, 431]


def test_chunks_are_bounded(quiet_loop: asyncio.AbstractEventLoop) -> None:
    """H15 As many as allowed pass, one more does not; neither does a large extension."""
    protocol, wire = fast(quiet_loop)
    protocol.data_received(CHUNKED + b"1\r\na\r\n" * (MAX_CHUNKS - 1) + b"0\r\n\r\n")
    assert statuses(wire.written) == [200]
    assert protocol.taken[-1][1] == b"a" * (MAX_CHUNKS - 1)
    protocol.data_received(CHUNKED + b"1\r\na\r\n" * (MAX_CHUNKS + 1))
    assert statuses(wire.written) == [200, 400]
    protocol, wire = fast(quiet_loop)
    protocol.data_received(CHUNKED + b"1;x=" + b"y" * 100_000)
    assert statuses(wire.written) == [400]


def test_a_chunked_body_is_bounded(quiet_loop: asyncio.AbstractEventLoop) -> None:
    """H18 Also where the application does not count."""
    protocol, wire = fast(quiet_loop, Bounds(max_body_bytes=10))
    protocol.data_received(CHUNKED + b"a\r\n0123456789\r\n1\r\n0\r\n")
    assert statuses(wire.written) == [413]


@pytest.mark.parametrize("held_s", [0.1, 100.0], ids=["a little", "long"])
def test_time_in_which_the_loop_was_held_up_does_not_count(
    quiet_loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, held_s: float
) -> None:
    """A caller is not blamed for a model that held the loop."""
    now = 1000.0
    monkeypatch.setattr(quiet_loop, "time", lambda: now)
    protocol, wire = fast(quiet_loop, Bounds(header_s=5))
    protocol.data_received(b"GET")
    now += held_s
    protocol.watch._sweep(quiet_loop)
    assert wire.written == b""
    assert protocol.watch.now <= 1.0


def test_a_body_must_come_at_the_least_rate(quiet_loop: asyncio.AbstractEventLoop) -> None:
    """H12 A byte a second is no body; while we read nothing, nobody is blamed."""
    protocol, wire = fast(quiet_loop)
    protocol.data_received(POST + b"Content-Length: 100000\r\n\r\n")
    protocol.flow.pause_reading()
    for second in range(60):
        protocol.look(float(second), 1.0)
    assert wire.written == b""
    protocol.flow.resume_reading()
    for second in range(60, 72):
        protocol.data_received(b"a")
        protocol.look(float(second), 1.0)
    assert statuses(wire.written) == [408]


def test_an_answer_must_be_read_at_the_least_rate(quiet_loop: asyncio.AbstractEventLoop) -> None:
    """H13 Steady reading is enough however long it takes; a byte a second is not."""
    protocol, wire = fast(quiet_loop)
    for second in range(100):
        wire.unsent = 1_000_000 - 10_000 * second
        protocol.look(float(second), 1.0)
    assert not wire.aborted
    for second in range(100, 120):
        wire.unsent = 10_000 - second
        protocol.look(float(second), 1.0)
    assert wire.aborted


async def test_refusals_are_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """H23 However many there are."""
    async with world(http=SHORT) as w:
        for _ in range(50):
            assert statuses(await w.ask(b"\x16\x03\x01\x02\x00")) == [400]
        await until(lambda: caplog.records)
    lines = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 1
    assert "with 400" in lines[0].getMessage()
