import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import trustme
import uvloop

from gateway.adapters.posting import MAX_ANSWER_BYTES, Answered, Poster

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
PATIENCE_S = 20.0


@dataclass
class Server:
    """A server that answers each request with the next of `answers`, then as `after` says."""

    answers: list[bytes] = field(default_factory=list)
    after: str = "keep"
    reads_body: bool = True
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                if self.reads_body:
                    self.bodies.append(await reader.readexactly(length))
                writer.write(self.answers.pop(0))
                if self.after == "close":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def poster(self, place: str = "", *, timeout_s: float = PATIENCE_S) -> Poster:
        url = httpx.URL(f"http://{place}127.0.0.1:{self.port}/v1/logs?a=b%20c")
        return Poster(url, {"x-key": "k"}, timeout_s, None)


@asynccontextmanager
async def serving(
    *answers: bytes,
    after: str = "keep",
    reads_body: bool = True,
    context: ssl.SSLContext | None = None,
    serve: Callable[[StreamReader, StreamWriter], Awaitable[None]] | None = None,
) -> AsyncIterator[Server]:
    """A server on a free port."""
    server = Server(list(answers), after, reads_body)
    listener = await asyncio.start_server(
        serve or server.serve, "127.0.0.1", 0, ssl=context, limit=1 << 22
    )
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()


async def test_a_request_is_http() -> None:
    """Path and query, host, our headers, those of the request, and the whole body."""
    async with serving(OK) as server:
        poster = server.poster()
        body = bytes(range(256)) * 8_192
        assert await poster.post(body, "x-more: m\r\n") == Answered(200, None, b"hi")
        poster.close()
    head = server.heads[0].decode().split("\r\n")
    assert head[0] == "POST /v1/logs?a=b%20c HTTP/1.1"
    assert {f"host: 127.0.0.1:{server.port}", "x-key: k", "x-more: m"} <= set(head)
    assert server.bodies == [body]


async def test_the_connection_is_kept() -> None:
    """One connection serves request after request."""
    async with serving(OK, OK, OK) as server:
        poster = server.poster()
        for _ in range(3):
            assert (await poster.post(b"x")).status == 200
        poster.close()
    assert server.connections == 1


async def test_a_connection_that_was_closed_is_opened_again() -> None:
    """A server that hangs up between two requests costs nothing but a connection."""
    async with serving(OK, OK, after="close") as server:
        poster = server.poster()
        for _ in range(2):
            assert (await poster.post(b"x")).status == 200
            await asyncio.sleep(0)
        poster.close()
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            b"hi",
            id="chunked",
        ),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hi", id="after-a-100"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nhi", b"hi", id="until-it-closes"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi", id="1.0"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="204"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n" + bytes(99_999), b"", id="too-long"
        ),
    ],
)
async def test_every_kind_of_answer_is_read(answer: bytes, content: bytes) -> None:
    """However it ends; what is longer than anybody would read is left out."""
    async with serving(answer, OK, after="close") as server:
        poster = server.poster()
        assert (await poster.post(b"x")).content == content
        assert (await poster.post(b"x")).status == 200
        poster.close()
    assert len(content) <= MAX_ANSWER_BYTES


async def test_an_early_answer_counts() -> None:
    """A collector that refuses a large body without reading it is understood."""
    refusal = b"HTTP/1.1 413 Too Large\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n"
    async with serving(refusal, reads_body=False) as server:
        poster = server.poster()
        assert await poster.post(bytes(1 << 20)) == Answered(413, "7", b"")
        poster.close()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", id="another-protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", id="cut-short"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhi", id="cut"),
    ],
)
async def test_what_is_no_answer_is_a_failure_of_the_network(answer: bytes) -> None:
    """It is told as such, whatever came."""
    async with serving(answer, after="close") as server:
        poster = server.poster()
        with pytest.raises(OSError):  # noqa: PT011 - its kind is all there is
            await poster.post(b"x")
        poster.close()


async def test_a_server_that_does_nothing_times_out() -> None:
    """Neither reading nor answering for so long is the end of the request."""
    released = asyncio.Event()

    async def silent(reader: StreamReader, writer: StreamWriter) -> None:
        await released.wait()
        writer.close()

    async with serving(serve=silent) as server:
        poster = server.poster(timeout_s=0.05)
        with pytest.raises(TimeoutError):
            await poster.post(bytes(1 << 20))
        released.set()
        poster.close()


async def test_a_name_in_the_address_is_basic_authorization() -> None:
    """As browsers and other clients have it."""
    async with serving(OK) as server:
        poster = server.poster("me:se%20cret@")
        await poster.post(b"x")
        poster.close()
    assert b"authorization: Basic bWU6c2UgY3JldA==\r\n" in server.heads[0]
    assert b"se%20cret" not in server.heads[0]


async def test_tls_is_checked() -> None:
    """A certificate of a trusted authority for that host, and no other."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with serving(OK, context=context) as server:
        url = httpx.URL(f"https://127.0.0.1:{server.port}/")
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        poster = Poster(url, {}, PATIENCE_S, trusting)
        assert (await poster.post(b"x")).status == 200
        poster.close()
        stranger = Poster(url, {}, PATIENCE_S, ssl.create_default_context())
        with pytest.raises(ssl.SSLError):
            await stranger.post(b"x")


def test_it_works_on_the_loop_that_serves() -> None:
    """The gateway runs on uvloop, whose transports are of other classes."""

    async def scenario() -> None:
        async with serving(OK, OK) as server:
            poster = server.poster()
            for _ in range(2):
                assert await poster.post(bytes(1 << 20)) == Answered(200, None, b"hi")
            poster.close()
            assert server.connections == 1

    uvloop.run(scenario())
