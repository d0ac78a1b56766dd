import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from loadtests.generator import Generator, Load, answer_length

REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (OK, True),
        (OK[:-1], False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", False),
    ],
    ids=["whole", "cut", "chunks", "chunks cut"],
)
def test_the_length_of_an_answer_is_known_once_its_head_or_last_chunk_is(
    answer: bytes, whole: bool
) -> None:
    """Both framings of HTTP/1.1, whole and cut."""
    end = answer.index(b"\r\n\r\n") + 4

    assert (0 < answer_length(answer, end) <= len(answer)) is whole


@asynccontextmanager
async def server(answer: Callable[[int], bytes]) -> AsyncIterator[int]:
    """Answers each read with what is made of its number."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while await reader.read(65536):
            writer.write(answer(count))
            count += 1
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def test_every_request_of_an_open_loop_is_sent_and_answered() -> None:
    """The rate and the time say how many there are."""
    async with server(lambda _: OK) as port:
        generator = Generator(Load(port, seconds=0.2, connections=4, rate=500), [REQUEST])
        await asyncio.to_thread(generator.run)

    told = generator.told()
    assert (told["requests"], told["good"], told["errors"]) == (100, 100, 0)
    assert len(generator.good_latencies()) == 100


async def test_other_answers_than_200_are_counted_as_refused() -> None:
    """They came, so they are no errors, and they are not good."""
    async with server(lambda i: BUSY if i % 2 else OK) as port:
        generator = Generator(Load(port, seconds=0.1, connections=1, rate=200), [REQUEST])
        await asyncio.to_thread(generator.run)

    assert (generator.told()["good"], generator.told()["refused"]) == (10, 10)


async def test_a_server_that_does_not_answer_makes_requests_late() -> None:
    """Those that no connection was free for count as well: nothing is left out."""
    async with server(lambda _: b"") as port:
        load = Load(port, seconds=0.1, connections=1, rate=100, deadline_s=0.2)
        generator = Generator(load, [REQUEST])
        await asyncio.to_thread(generator.run)

    assert generator.told()["late"] == 10


async def test_a_closed_loop_sends_as_answers_come() -> None:
    """Without a rate, answers set the pace."""
    async with server(lambda _: OK) as port:
        generator = Generator(Load(port, seconds=0.1, connections=2), [REQUEST])
        await asyncio.to_thread(generator.run)

    told = generator.told()
    assert told["good"] == told["requests"] > 0


async def test_a_wrong_answer_is_told_from_a_good_one() -> None:
    """Who judges decides; a status of 200 alone is not enough."""

    class Never:
        def right(self, request: int, head: bytes, body: bytes) -> bool:
            return False

    async with server(lambda _: OK) as port:
        load = Load(port, seconds=0.05, connections=1, rate=100)
        generator = Generator(load, [REQUEST], Never())
        await asyncio.to_thread(generator.run)

    assert generator.told()["wrong"] == 5
