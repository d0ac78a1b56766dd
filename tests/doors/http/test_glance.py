"""Glances: heads like the last one are told without the parser, and no others."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doors.http.glance import Glance, learn
from gateway.doors.http.inference_head import Head, Headers
from gateway.doors.http.routes import Route

INFER = Route("infer", "m")
PATH = b"/v2/models/m/infer"
DIGITS = 7
LINES = [b"Host: a", b"X-Unit: u1", b"Content-Type: application/json"]


def whole(*lines: bytes, body: bytes = b"{}", length: bytes | None = None) -> bytes:
    """A request as it comes, its length last."""
    stated = b"Content-Length: %b" % (length or b"%d" % len(body))
    return b"\r\n".join([b"POST %b HTTP/1.1" % PATH, *lines, stated, b"", body])


def parsed(data: bytes) -> list[tuple[Headers, bytes]]:
    """Every whole request in these bytes, as the parser sees them."""
    seen: list[tuple[Headers, bytes]] = []

    class Taker:
        headers: Headers
        body: bytes

        def on_message_begin(self) -> None:
            self.headers, self.body = [], b""

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers.append((name.lower(), value))

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            seen.append((self.headers, self.body))

    try:
        httptools.HttpRequestParser(Taker()).feed_data(data)
    except httptools.HttpParserError:
        return []
    return seen


def taught(*requests: bytes) -> Glance | None:
    """What is learned of requests that come one after the other."""
    heads = [parsed(request)[-1][0] for request in requests]
    differ = {name for head in heads[1:] for name, _ in set(heads[0]) ^ set(head)}
    return learn(requests[-1], (PATH, INFER), heads[-1], differ, DIGITS)


def test_a_head_that_differs_in_the_length_only_is_told() -> None:
    """Its length is that of its body."""
    glance = taught(whole(*LINES))
    assert glance is not None
    seen = glance.read(whole(*LINES, body=b"longer"))
    assert seen is not None
    head, body = seen
    assert body == b"longer"
    assert head.size == len(body)
    assert head.is_plain
    assert head.headers == dict(parsed(whole(*LINES, body=b"longer"))[0][0])


def test_a_value_that_differed_once_is_free() -> None:
    """Not before."""
    other = [b"Host: a", b"X-Unit: u2", b"Content-Type: application/json"]
    third = [b"Host: a", b"X-Unit: somebody", b"Content-Type: application/json"]
    strict, free = taught(whole(*LINES)), taught(whole(*LINES), whole(*other))
    assert strict is not None
    assert free is not None
    assert strict.read(whole(*third)) is None
    seen = free.read(whole(*third))
    assert seen is not None
    assert seen[0].headers[b"x-unit"] == b"somebody"


@pytest.mark.parametrize("name", [b"Host", b"Content-Type", b"Connection"])
def test_what_says_how_a_request_is_read_is_never_free(name: bytes) -> None:
    """However often it differs."""
    first, second, third = (whole(b"%b: %b" % (name, value), *LINES[1:2]) for value in (
        b"one", b"two", b"three",
    ))  # fmt: skip
    glance = taught(first, second)
    assert glance is not None
    assert glance.read(second) is not None
    assert glance.read(third) is None


@pytest.mark.parametrize(
    "data",
    [
        whole(*LINES, body=b"{}{}", length=b"2"),
        whole(*LINES, length=b"+2"),
        whole(*LINES, length=b"2 "),
        whole(*LINES, length=b"3"),
        whole(*LINES, length=b"00000002"),
        whole(b"Host: a", b"X-Unit: ", *LINES[2:]),
        whole(b"Host: a", b"X-Unit: a b", *LINES[2:]),
        whole(b"Host: a", b"X-Unit: a\nX: b", *LINES[2:]),
        whole(b"Host: a", b"X-Unit: a\x00", *LINES[2:]),
        whole(b"Host: a", b"X-Unit: a\xe9", *LINES[2:]),
        whole(b"Host: a", b"X-Unit: a\r\nExpect: 100-continue", *LINES[2:]),
        whole(*LINES, b"Transfer-Encoding: chunked"),
        whole(b"Host: b", *LINES[1:]),
        whole(*LINES)[:-1],
        whole(*LINES) * 2,
        b"\r\n" + whole(*LINES),
        b"",
    ],
)
def test_what_is_not_the_same_goes_to_the_parser(data: bytes) -> None:
    """Nor does what the parser would refuse."""
    glance = taught(whole(*LINES), whole(LINES[0], b"X-Unit: u2", LINES[2]))
    assert glance is not None
    assert glance.read(data) is None


@pytest.mark.parametrize(
    "data",
    [
        whole(b"Host:a"),
        whole(b"Host:  a"),
        whole(b"Host: a "),
        whole(b"Host: a", b"X-Unit: "),
        whole(*LINES, body=b""),
        whole(*LINES) * 2,
        b"\r\n" + whole(*LINES),
        b"GET" + whole(*LINES)[4:],
    ],
)
def test_nothing_is_learned_of_a_head_that_is_not_as_usual(data: bytes) -> None:
    """Or it is what the parser sees."""
    seen = parsed(data)
    glance = learn(data, (PATH, INFER), seen[-1][0] if seen else [], set(), DIGITS)
    assert glance is None or glance.read(data) is not None


VALUES = st.one_of(st.binary(max_size=6), st.text("ab1 \t-", max_size=5).map(str.encode))
NAMES = st.sampled_from([b"X-Unit", b"x-unit", b"Accept", b"Host", b"Content-Length", b"X"])
HEADS = st.lists(
    st.builds(lambda name, value: b"%b: %b" % (name, value), NAMES, VALUES), max_size=4
)


@given(lines=HEADS, body=st.binary(max_size=20), then=st.binary(max_size=3))
def test_a_glance_says_what_the_parser_says(lines: list[bytes], body: bytes, then: bytes) -> None:
    """Or nothing; and if the parser refuses, then nothing."""
    first = [b"Host: a", b"X-Unit: 1", b"Accept: x"]
    second = [b"Host: a", b"X-Unit: 22", b"Accept: y"]
    glance = taught(whole(*first), whole(*second))
    assert glance is not None
    for data in (whole(*lines, body=body) + then, whole(*first[:1], *lines, body=body)):
        seen = glance.read(data)
        if seen is not None:
            headers, expected = parsed(data)[0]
            assert len(parsed(data)) == 1
            assert (seen[0].headers, seen[1]) == (dict(headers), expected)
            assert (seen[0].size, Head.of(headers).is_plain) == (len(expected), True)


@given(unit=VALUES, accept=VALUES, body=st.binary(max_size=20))
def test_free_values_are_those_that_the_parser_sees(
    unit: bytes, accept: bytes, body: bytes
) -> None:
    """Whatever stands there."""
    glance = taught(
        whole(b"Host: a", b"X-Unit: 1", b"Accept: x"), whole(b"Host: a", b"X-Unit: 2", b"Accept: y")
    )
    assert glance is not None
    data = whole(b"Host: a", b"X-Unit: %b" % unit, b"Accept: %b" % accept, body=body)
    seen = glance.read(data)
    if seen is not None:
        assert [(list(seen[0].headers.items()), seen[1])] == parsed(data)
