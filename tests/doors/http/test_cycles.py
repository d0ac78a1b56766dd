"""Cycles: an answer in one write is the answer that uvicorn writes."""

import asyncio
import logging
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from gateway.doors.http.cycles import Cycle

DATE = (b"date", b"today")
LOG = logging.getLogger("tests.cycles")


class Line:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def told(
    kind: type[RequestResponseCycle], method: str, messages: list[Any], *, lives: bool
) -> tuple[bytes, bool, bool, int]:
    """What a cycle writes for these messages; whether it is over and hung up; how many writes."""

    async def play() -> tuple[bytes, bool, bool, int]:
        line: Any = Line()
        scope: Any = {"method": method}
        cycle = kind(
            scope=scope,
            transport=line,
            flow=FlowControl(line),
            logger=LOG,
            access_logger=LOG,
            access_log=False,
            default_headers=[DATE],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=lives,
            on_response=lambda: None,
        )
        cycle.more_body = False

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            for message in messages:
                await send(message)

        await cycle.run_asgi(app)
        return b"".join(line.writes), cycle.response_complete, line.closed, len(line.writes)

    return asyncio.run(play())


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    """A head."""
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    """A part of a body."""
    return {"type": "http.response.body", "body": data, "more_body": more}


LENGTH = (b"content-length", b"2")
HEADERS = st.lists(
    st.sampled_from(
        [
            LENGTH,
            LENGTH,
            (b"content-length", b"3"),
            (b"content-type", b"application/json"),
            (b"connection", b"close"),
            (b"connection", b"Keep-Alive, Close"),
            (b"transfer-encoding", b"chunked"),
            (b"x-variant", b"a\r\nx: b"),
            (b"x-variant", b"na\xefve\tx"),
            (b"x-variant", b"\x00"),
            (b"X-Other", b"b"),
            (b"x other", b"b"),
        ]
    ),
    max_size=4,
)
MESSAGES = st.one_of(
    st.builds(
        lambda headers, status, parts: [start(*headers, status=status), *parts],
        HEADERS,
        st.sampled_from([200, 200, 404, 204, 304]),
        st.sampled_from(
            [[body(b"ok")], [body(b"o", more=True), body(b"k")], [body(b"")], [], [body(b"ok")] * 2]
        ),
    ),
    st.just([]),
    st.just([body(b"ok")]),
)


@given(messages=MESSAGES, method=st.sampled_from(["GET", "POST", "HEAD"]), lives=st.booleans())
def test_an_answer_is_the_one_that_uvicorn_gives(
    messages: list[Any], method: str, lives: bool
) -> None:
    """In whatever form the application gives it; but for a head that no body ever follows."""
    *ours, _ = told(Cycle, method, messages, lives=lives)
    *theirs, _ = told(RequestResponseCycle, method, messages, lives=lives)
    if len(messages) == 1 and messages[0]["type"] == "http.response.start":
        assert (ours[1], ours[2]) == (False, True)
        return
    assert ours == theirs


def test_a_usual_answer_is_one_write() -> None:
    """And what is not whole, several."""
    assert told(Cycle, "POST", [start(LENGTH), body(b"ok")], lives=True)[3] == 1
    parts = [start(LENGTH), body(b"o", more=True), body(b"k")]
    assert told(Cycle, "POST", parts, lives=True)[3] > 1
