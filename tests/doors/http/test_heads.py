from string import ascii_letters

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.doors.http.heads import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    Refusal,
    check_head,
    check_size,
)
from gateway.doors.http.inference_head import Headers

HOST = (b"host", b"here:8080")
LIMIT = 1000
CHUNKED = (b"transfer-encoding", b"chunked")


def status(
    headers: Headers, *, method: bytes = b"POST", version: str = "1.1", url: bytes = b"/v2"
) -> int | None:
    """The status of a refusal; None if there is none."""
    refusal = check_head(method, version, headers, url, LIMIT)
    return None if refusal is None else refusal.status


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([HOST], id="no body"),
        pytest.param([HOST, (b"content-length", b"1000")], id="largest body"),
        pytest.param([HOST, CHUNKED], id="chunked"),
        pytest.param([HOST, (b"transfer-encoding", b"Chunked")], id="chunked in capitals"),
        pytest.param([(b"host", b"[::1]:80")], id="IPv6"),
        pytest.param([(b"host", b"")], id="empty host"),
        pytest.param([HOST, (b"expect", b"100-Continue")], id="expect"),
        pytest.param([HOST, *[(b"connection", b"x")] * 2], id="two lists"),
        pytest.param([HOST, *[(b"x", b"")] * (MAX_HEADERS - 1)], id="most headers"),
    ],
)
def test_an_honest_head_passes(headers: Headers) -> None:
    """Nothing is refused that a client may send."""
    assert status(headers) is None


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        pytest.param([], 400, id="no host"),
        pytest.param([HOST, HOST], 400, id="two hosts"),
        pytest.param([(b"host", b"a/b")], 400, id="host is a path"),
        pytest.param([(b"host", b"a, b")], 400, id="host is a list"),
        pytest.param([HOST, (b"content-length", b"1001")], 413, id="too long"),
        pytest.param([HOST, (b"content-length", b"1" * 24)], 413, id="far too long"),
        pytest.param([HOST, (b"content-length", b"+2")], 400, id="plus"),
        pytest.param([HOST, (b"content-length", b"-1")], 400, id="minus"),
        pytest.param([HOST, (b"content-length", b"")], 400, id="empty length"),
        pytest.param([HOST, *[(b"content-length", b"2")] * 2], 400, id="two lengths"),
        pytest.param([HOST, CHUNKED, (b"content-length", b"2")], 400, id="both framings"),
        pytest.param([HOST, CHUNKED, CHUNKED], 400, id="chunked twice"),
        pytest.param([HOST, (b"transfer-encoding", b"gzip, chunked")], 400, id="gzip"),
        pytest.param([HOST, (b"transfer-encoding", b"xchunked")], 400, id="xchunked"),
        pytest.param([HOST, (b"transfer-encoding", b"chunked, identity")], 400, id="identity"),
        pytest.param([HOST, (b"expect", b"200-maybe")], 417, id="foreign expectation"),
        pytest.param([HOST, *[(b"x", b"")] * MAX_HEADERS], 431, id="too many headers"),
    ],
)
def test_a_head_that_two_readers_may_read_differently_is_refused(
    headers: Headers, wanted: int
) -> None:
    """So is one that is larger than any honest one."""
    assert status(headers) == wanted


@pytest.mark.parametrize("url", [b"http://evil/v2", b"*", b"evil:80", b"/a#b", b"/\xff", b""])
def test_an_address_is_a_path(url: bytes) -> None:
    """Other forms are for proxies."""
    assert status([HOST], url=url) == 400


def test_bounds_of_size_are_exact() -> None:
    """The largest address and head pass; a byte more does not."""
    largest = b"/" + b"a" * (MAX_URL_BYTES - 1)
    assert status([HOST], url=largest) is None
    assert status([HOST], url=largest + b"a") == 414
    room = MAX_HEAD_BYTES - len(b"/v2") - len(b"x: \r\n")
    check_size([(b"x", b"a" * room)], b"/v2")
    with pytest.raises(Refusal) as refused:
        check_size([(b"x", b"a" * (room + 1))], b"/v2")
    assert refused.value.status == 431


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE"])
def test_methods_for_proxies_are_refused(method: bytes) -> None:
    """Nobody tunnels or mirrors here."""
    assert status([HOST], method=method) == 405


@pytest.mark.parametrize(
    ("version", "headers", "wanted"),
    [
        ("1.0", [], None),
        ("1.0", [HOST, HOST], 400),
        ("1.0", [CHUNKED], 400),
        ("0.9", [HOST], 505),
        ("2.0", [HOST], 505),
    ],
)
def test_older_and_newer_versions(version: str, headers: Headers, wanted: int | None) -> None:
    """HTTP/1.0 needs no Host and knows no chunks; others are not spoken."""
    assert status(headers, version=version) == wanted


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"host", b"content-length", b"transfer-encoding", b"expect", b"x"]),
            st.text(ascii_letters + "0123456789,:+- ", max_size=12).map(str.encode),
        ),
        max_size=6,
    )
)
def test_what_passes_has_one_host_and_one_framing(headers: Headers) -> None:
    """Whatever passes is read in one way only."""
    if status(headers) is not None:
        return
    names = [name for name, _ in headers]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert dict(headers).get(b"transfer-encoding", b"chunked").lower() == b"chunked"
