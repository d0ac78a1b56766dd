"""Bad HTTP from outside, byte by byte: each costs its own connection, and the gateway lives on.

The ids are those of the list of threats that the gateway is built against, H1 to H29. `answered`
says how many requests the application answered: whoever is refused before is not among them.
"""

import re
import resource
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path

import httpx
import orjson
import pytest

from tests.e2e.gateways import ROOT, Gateway, eventually, resident_mib
from tests.onnx_models import identity, save

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

MIB = 2**20
DEADLINE_S = 0.8
MAX_BODY_BYTES = 16 * MIB
PATH = b"/v2/models/same/infer"
GOOD = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1]}]}'
HOST = b"Host: here\r\n"
LINE = b"POST " + PATH + b" HTTP/1.1\r\n"
HEAD = LINE + HOST
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
END = b"\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
ESTABLISHED = "01"
RESET = -1
"""Stands for a connection that was reset instead of closed."""


@dataclass(frozen=True)
class Bad:
    """What is sent, in pieces, and what comes of it."""

    sent: Callable[[], Iterable[bytes]]
    statuses: tuple[int, ...] = (400,)
    closed: bool = True
    answered: int = 0
    reset: bool = False
    """Whether the sender may be cut off before it reads the answer: it sends too much."""
    pause_s: float = field(default=0.0, kw_only=True)


def bad(*pieces: bytes, status: int = 400, **more: bool) -> Bad:
    """A request that is refused unseen."""
    return Bad(lambda: pieces, (status,), **more)


def seen(*pieces: bytes, status: int) -> Bad:
    """A request that the application answers."""
    return Bad(lambda: pieces, (status,), closed=False, answered=1)


def aimed(target: bytes, method: bytes = b"POST") -> bytes:
    """A good request for something else."""
    return method + b" " + target + b" HTTP/1.1\r\n" + HOST + LENGTH + END + GOOD


def deflated(size: int) -> bytes:
    """Zeros, as gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(bytes(size)) + packer.flush()


def coded(coding: bytes, body: bytes, status: int) -> Bad:
    """A body with a content coding."""
    length = b"Content-Length: %d\r\n" % len(body)
    return seen(HEAD + b"Content-Encoding: " + coding + END + length + END + body, status=status)


BOMB = deflated(50 * MIB)
SMALL = deflated(100)
GARBAGE = bytes(range(256)) * 4096

ROWS: dict[str, Bad] = {
    "H1 both framings": bad(HEAD + LENGTH + CHUNKED + END + ONE_CHUNK),
    "H1 both, the other way": bad(HEAD + CHUNKED + LENGTH + END + ONE_CHUNK),
    "H2 equal lengths": bad(HEAD + LENGTH + LENGTH + END + GOOD),
    "H2 a list of lengths": bad(HEAD + b"Content-Length: 68, 68\r\n\r\n" + GOOD),
    "H3 +2": bad(HEAD + b"Content-Length: +2\r\n\r\nhi"),
    "H3 -1": bad(HEAD + b"Content-Length: -1\r\n\r\nhi"),
    "H3 10^23": bad(HEAD + b"Content-Length: 1" + b"0" * 23 + b"\r\n\r\nhi"),
    "H4 gzip, chunked": bad(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + ONE_CHUNK),
    "H4 two headers": bad(HEAD + b"Transfer-Encoding: gzip\r\n" + CHUNKED + END + ONE_CHUNK),
    "H5 chunked in 1.0": bad(LINE.replace(b"1.1", b"1.0") + HOST + CHUNKED + END + ONE_CHUNK),
    "H6 xchunked": bad(HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + ONE_CHUNK),
    "H6 chunked, identity": bad(HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + ONE_CHUNK),
    "H6 tab before chunked": bad(HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + ONE_CHUNK),
    "H7 space before colon": bad(HEAD + b"X : y\r\n" + LENGTH + END + GOOD),
    "H7 folded line": bad(HEAD + b"X: y\r\n z\r\n" + LENGTH + END + GOOD),
    "H7 bare LF": bad((HEAD + LENGTH + END).replace(b"\r\n", b"\n") + GOOD),
    "H7 bare CR": bad(HEAD + b"X: y\rZ: a\r\n" + LENGTH + END + GOOD),
    "H8 no host": bad(LINE + LENGTH + END + GOOD),
    "H8 two hosts": bad(HEAD + HOST + LENGTH + END + GOOD),
    "H9 NUL": bad(HEAD + b"X: a\x00b\r\n" + LENGTH + END + GOOD),
    "H9 control byte": bad(HEAD + b"X: a\x01b\r\n" + LENGTH + END + GOOD),
    "H10 1 MB value": bad(HEAD + b"X: " + b"a" * MIB + END + END, status=431, reset=True),
    "H10 10,000 headers": bad(HEAD + b"X: a\r\n" * 10_000 + END, status=431, reset=True),
    "H10 101 headers": bad(HEAD + b"X: a\r\n" * 100 + END, status=431),
    "H10 6.5 MB in drips": Bad(
        lambda: chain([HEAD + b"X: "], repeat(b"a" * 1000, 6_500)), (431,), reset=True
    ),
    "H11 1 MB address": bad(b"GET /" + b"a" * MIB + b" HTTP/1.1\r\n", status=431, reset=True),
    "H11 20 KB address": bad(aimed(b"/" + b"a" * 20_000), status=414),
    "H12 nothing": Bad(lambda: (), ()),
    "H12 half a head": bad(HEAD + b"X: y", status=408),
    "H12 a head in drips": Bad(lambda: repeat(b"A", 500), (400,), reset=True, pause_s=0.01),
    "H12 headers in drips": Bad(
        lambda: chain([HEAD], repeat(b"A:b\r\n", 500)), (408,), reset=True, pause_s=0.03
    ),
    "H12 half a body": bad(HEAD + LENGTH + END + GOOD[:5], status=408),
    "H12 a body in drips": Bad(
        lambda: chain([HEAD + LENGTH.replace(b"68", b"9999") + END], repeat(b" ", 500)),
        (408,),
        reset=True,
        pause_s=0.03,
    ),
    "H14 300 in one segment": Bad(
        lambda: [(HEAD + LENGTH + END + GOOD) * 300], (*[200] * 9, 503), answered=9
    ),
    "H15 100 KB extension": bad(HEAD + CHUNKED + END + b"1;x=" + b"y" * 100_000),
    "H15 1,000,000 chunks": Bad(
        lambda: chain([HEAD + CHUNKED + END], repeat(b"1\r\n \r\n" * 10_000, 100)), reset=True
    ),
    "H16 no size": bad(HEAD + CHUNKED + END + b"FFFFFFFFFFFFFFFFF\r\n"),
    "H16 bad end": bad(HEAD + CHUNKED + END + b"2\r\nhixx0\r\n\r\n"),
    "H17 a length behind": bad(
        HEAD + CHUNKED + END + ONE_CHUNK[:-2] + b"Content-Length: 99\r\n\r\n"
    ),
    "H17 a header behind": seen(
        HEAD + CHUNKED + END + ONE_CHUNK[:-2] + b"X-Force-Variant: b\r\n\r\n", status=200
    ),
    "H18 larger than allowed": bad(
        HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), status=413
    ),
    "H18 chunked, for ever": Bad(
        lambda: chain([HEAD + CHUNKED + END], repeat(b"10000\r\n" + bytes(65_536) + END, 3_000)),
        (413,),
        reset=True,
    ),
    "H19 10 GB expected": bad(
        HEAD + b"Expect: 100-continue\r\nContent-Length: 10000000000\r\n\r\n", status=413
    ),
    "H20 dots": seen(aimed(b"/v2/models/%2e%2e%2f%2e%2e/infer"), status=404),
    "H20 NUL": seen(aimed(b"/v2/models/%00/infer"), status=404),
    "H20 no UTF-8": seen(aimed(b"/v2/models/%ff/infer"), status=404),
    "H20 encoded twice": seen(aimed(b"/v2/models/%252f/infer"), status=404),
    "H21 absolute": bad(aimed(b"http://evil" + PATH)),
    "H21 CONNECT": bad(b"CONNECT evil:443 HTTP/1.1\r\n" + HOST + END, status=405),
    "H21 TRACE": bad(aimed(PATH, b"TRACE"), status=405),
    "H21 HTTP/2": bad(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "H21 version 2.0": bad(aimed(PATH).replace(b"HTTP/1.1", b"HTTP/2.0"), status=505),
    "H21 lower case": bad(aimed(PATH, b"post")),
    "H21 no method": bad(aimed(PATH, b"INFER")),
    "H22 h2c": seen(
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH + END + GOOD, status=200
    ),
    "H22 websocket": seen(
        HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + LENGTH + END + GOOD, status=200
    ),
    "H23 TLS": bad(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    "H23 1 MB of garbage": bad(GARBAGE, reset=True),
    "H24 another's address": seen(
        HEAD + b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n" + LENGTH + END + GOOD,
        status=200,
    ),
    "H25 gzip bomb": coded(b"gzip", BOMB, 413),
    "H25 gzip twice": coded(b"gzip, gzip", SMALL, 415),
    "H25 br": coded(b"br", SMALL, 415),
    "H25 raw deflate": coded(b"deflate", zlib.compress(GOOD)[2:-4], 400),
    "H25 cut off": coded(b"gzip", SMALL[:-5], 400),
    "H25 more behind": coded(b"gzip", SMALL + b"x", 400),
    "H26 junk": seen(
        HEAD
        + b"Accept-Encoding: ;;q=x,*;q=9\r\nRange: bytes=-1-\r\nIf-Match: \x80\r\nIf-Range: ,\r\n"
        + b"traceparent: 00-x\r\n" * 2
        + b"tracestate: "
        + b"a=b," * 1_000
        + b"\r\nbaggage: "
        + b"k=v," * 1_000
        + END
        + LENGTH
        + END
        + GOOD,
        status=200,
    ),
    "H26 1 MB of baggage": bad(
        HEAD + b"baggage: " + b"k=v," * (MIB // 4) + END + END, status=431, reset=True
    ),
    "H28 a form": seen(
        HEAD + b"Content-Type: multipart/form-data; boundary=x\r\n" + LENGTH + END + GOOD,
        status=415,
    ),
    "H29 ranges": seen(
        HEAD + b"Range: bytes=" + b"0-," * 5_000 + b"0-\r\n" + LENGTH + END + GOOD, status=200
    ),
}


@pytest.fixture(scope="module", params=["fast", "asgi"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """One gateway of each door for all that is sent here, with short deadlines."""
    folder = tmp_path_factory.mktemp("bad-http")
    version = folder / "models" / "same" / "1"
    version.mkdir(parents=True)
    save(identity("FP32", ("N", "M")), version)
    env = {
        f"TILTYARD_HTTP_{name}_S": str(DEADLINE_S)
        for name in ("HEADER", "BODY_IDLE", "WRITE_STALL")
    }
    env["MALLOC_MMAP_THRESHOLD_"] = "262144"  # or the allocator hides what was given back
    env["TILTYARD_HTTP_DOOR"] = request.param
    env["TILTYARD_HTTP_MAX_BODY_BYTES"] = str(MAX_BODY_BYTES)
    running = Gateway(folder / "state", folder / "models", env)
    yield running.start()
    running.close()


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    """Connections to the inference port."""
    with httpx.Client(base_url=gateway.url, timeout=60) as speaking:
        yield speaking


def dial(gateway: Gateway) -> socket.socket:
    """A connection to the inference port."""
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=10)


def pour(line: socket.socket, row: Bad) -> None:
    """Send all pieces, for as long as there is somebody who takes them."""
    for piece in row.sent():
        line.sendall(piece)
        time.sleep(row.pause_s)


def talk(gateway: Gateway, row: Bad) -> tuple[list[int], bool]:
    """Send a row; the status of each answer, and whether the connection ended.

    A sender that was cut off may not see an answer: its statuses are then `[RESET]`.
    """
    got = bytearray()
    with dial(gateway) as line, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(pour, line, row)
        closed = False
        try:
            while not closed:
                if not row.closed and len(STATUS.findall(bytes(got))) >= len(row.statuses):
                    break
                part = line.recv(65_536)
                got += part
                closed = not part
        except ConnectionError:
            closed = True
        try:
            sending.result()
        except ConnectionError:
            closed = True
    statuses = [int(status) for status in STATUS.findall(bytes(got))]
    return (statuses or ([RESET] if closed and row.reset else [])), closed


def stack_in(log: str) -> str:
    """The first stack in a log."""
    return "".join(log.partition("Traceback")[1:])[:3_000]


def inferences(gateway: Gateway) -> int:
    """How many requests with a path of a model the application answered, by its own metrics."""
    page = httpx.get(f"{gateway.admin_url}/metrics", timeout=10).text
    counts = re.findall(r"(?m)^http_server_request_duration_seconds_count\{(.*)\} (\d+)$", page)
    healthy = ("/v2/health/live", "/v2/health/ready")
    return sum(int(count) for labels, count in counts if not any(h in labels for h in healthy))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_bad_http_costs_its_connection_only(
    gateway: Gateway, client: httpx.Client, row: Bad
) -> None:
    """It is answered so and no other way, while others are answered at once."""
    before = inferences(gateway)
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        talking = pool.submit(talk, gateway, row)
        while True:
            started = time.monotonic()
            assert client.get("/v2/health/live").status_code == 200
            waits.append(time.monotonic() - started)
            if talking.done():
                break
        statuses, closed = talking.result()
    assert statuses == list(row.statuses) or (row.reset and statuses == [RESET])
    assert closed is row.closed
    assert inferences(gateway) - before == row.answered
    assert max(waits) < 2
    assert gateway.process is not None
    assert gateway.process.poll() is None


def test_a_refusal_is_a_clean_sentence(gateway: Gateway) -> None:
    """H8 It says that the connection ends, and nothing of the inside."""
    with dial(gateway) as line:
        line.sendall(LINE + LENGTH + END + GOOD)
        told = b"".join(iter(lambda: line.recv(65_536), b""))
    head, _, body = told.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"content-type: application/json" in head
    assert orjson.loads(body) == {"error": "A request names its Host."}
    assert b"server:" not in head.lower()


def read_slowly(line: socket.socket) -> int:
    """Read less than the least rate for two seconds, then the rest; how much there was.

    A reset may be lost where the window is full: who then waits in vain was cut off as well.
    """
    got = 0
    try:
        for pause_s in chain(repeat(0.05, 40), repeat(0.0)):
            part = line.recv(65_536 if pause_s == 0 else 16)
            if not part:
                return got
            got += len(part)
            time.sleep(pause_s)
    except (ConnectionError, TimeoutError):
        return RESET
    return got


def is_held(gateway: Gateway, line: socket.socket) -> bool:
    """Whether the gateway's end of a connection is still open."""
    ends = f":{gateway.port:04X}", f":{line.getsockname()[1]:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    ours = [row for row in rows if row[1].endswith(ends[0]) and row[2].endswith(ends[1])]
    return any(row[3] == ESTABLISHED for row in ours)


def test_a_large_answer_that_nobody_reads_is_dropped(gateway: Gateway) -> None:
    """H13 Slow readers of 8 MB each are reset, and their memory comes back."""
    assert gateway.process is not None
    pid = gateway.process.pid
    tensor = bytes(8 * MIB)
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, len(tensor) // 4],
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    )
    lengths = (len(head), len(head) + len(tensor))

    def ask(line: socket.socket) -> None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(10)
        line.connect(("127.0.0.1", gateway.port))
        sizes = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n" % lengths
        line.sendall(HEAD + sizes + b"Connection: close\r\n\r\n" + head + tensor)

    def all_at_once() -> None:
        kind = (socket.AF_INET, socket.SOCK_STREAM)
        lines = [socket.socket(*kind) for _ in range(12)]  # a small window from the start
        with ThreadPoolExecutor(len(lines)) as pool:
            list(pool.map(ask, lines))
            ends = list(pool.map(read_slowly, lines))
        assert RESET in ends
        assert max(ends) < 1000, "more than a word that there is too much to do"
        eventually(lambda: not any(is_held(gateway, line) for line in lines))
        for line in lines:
            line.close()

    all_at_once()
    before = resident_mib(pid)
    all_at_once()
    pinned = 12 * len(tensor) / MIB
    eventually(lambda: resident_mib(pid) < before + pinned / 2)


MEMORY = ("H10 1 MB value", "H10 6.5 MB in drips", "H14 300 in one segment", "H15 1,000,000 chunks")


@pytest.mark.parametrize("name", [*MEMORY, "H23 1 MB of garbage", "H25 gzip bomb"])
def test_memory_comes_back(gateway: Gateway, name: str) -> None:
    """After repeats the process is within 32 MiB of where it was."""
    assert gateway.process is not None
    pid = gateway.process.pid
    talk(gateway, ROWS[name])
    before = resident_mib(pid)
    for _ in range(10):
        talk(gateway, ROWS[name])
    eventually(lambda: resident_mib(pid) < before + 32)


def test_silent_connections_give_their_places_back(gateway: Gateway, client: httpx.Client) -> None:
    """H12 A few hundred that send nothing or half a head are gone at the deadline."""
    assert gateway.process is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > 400, (soft, hard)
    lines = [dial(gateway) for _ in range(300)]
    for line in lines[::2]:
        line.sendall(b"GET / HT")
    assert client.get("/v2/health/live").status_code == 200
    for line in lines:
        while line.recv(65_536):
            pass
        line.close()


def test_bad_requests_in_numbers_leave_few_lines(gateway: Gateway) -> None:
    """H22 H23 Neither what is no HTTP nor offers of other protocols fill the log."""
    before = gateway.log.count("\n")
    offer = HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + LENGTH + END + GOOD
    with dial(gateway) as line:
        for _ in range(100):
            line.sendall(offer)
            got = b""
            while not got.endswith(b"}"):
                got += line.recv(65_536)
    for _ in range(300):
        assert talk(gateway, bad(b"\x16\x03\x01" + bytes(100))) == ([400], True)
    assert gateway.log.count("\n") - before <= 5
    assert stack_in(gateway.log) == ""


def test_whoever_says_forwarded_is_not_believed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """H24 Not even where uvicorn's own variable tells it to believe everybody."""
    folder = tmp_path_factory.mktemp("forwarded")
    gateway = Gateway(folder / "state", ROOT / "models", {"FORWARDED_ALLOW_IPS": "*"})
    try:
        gateway.start()
        headers = {"X-Forwarded-For": "1.2.3.4", "Authorization": "Bearer nobody"}
        url = f"{gateway.admin_url}/admin/v1/status"
        assert httpx.get(url, headers=headers).status_code == 401
        assert "1.2.3.4" not in gateway.log
        assert "127.0.0.1" in gateway.log
    finally:
        gateway.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 401, id="no token"),
        pytest.param({"Authorization": "token", "Content-Type": "text/plain"}, 415, id="no JSON"),
        pytest.param({"Authorization": "token", "Host": "evil.example"}, 403, id="rebound name"),
    ],
)
def test_a_browser_cannot_be_led_to_the_admin_port(
    gateway: Gateway, headers: dict[str, str], status: int
) -> None:
    """H27 A write needs the token, JSON and one of our names."""
    if "Authorization" in headers:
        headers = {**headers, "Authorization": f"Bearer {gateway.token}"}
    url = f"{gateway.admin_url}/admin/v1/endpoints/same"
    assert httpx.put(url, content=b"{}", headers=headers).status_code == status


@pytest.mark.parametrize("listener", ["inference", "admin"])
def test_both_listeners_are_guarded(gateway: Gateway, listener: str) -> None:
    """H8 H12 The admin port has the same bounds."""
    port = gateway.port if listener == "inference" else gateway.admin_port
    for sent, wanted in ((b"GET / HTTP/1.1\r\n\r\n", b"400"), (b"GET / HT", b"408")):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            line.sendall(sent)
            told = b"".join(iter(lambda: line.recv(65_536), b""))
        assert told.startswith(b"HTTP/1.1 " + wanted)


def test_pipelined_requests_get_their_own_rows(gateway: Gateway) -> None:
    """H14 The answers come in order, each from the body of its own request."""
    bodies = [GOOD.replace(b"[1]}", b"[%d]}" % number) for number in range(1, 9)]
    length = b"Content-Length: %d\r\n" % len(bodies[0])
    got = b""
    with dial(gateway) as line:
        line.sendall(b"".join(HEAD + length + END + body for body in bodies))
        while len(STATUS.findall(got)) < len(bodies) or not got.endswith(b"}"):
            part = line.recv(65_536)
            assert part, got
            got += part
    assert re.findall(rb'"data":\[(\d)', got) == [b"%d" % number for number in range(1, 9)]


def test_a_caller_that_vanishes_is_forgotten(gateway: Gateway, client: httpx.Client) -> None:
    """H12 A reset in the middle of a head, a body or a pipeline is nobody else's trouble."""
    for sent in (HEAD, HEAD + LENGTH + END + GOOD[:9], (HEAD + LENGTH + END + GOOD) * 5):
        with dial(gateway) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.sendall(sent)
        assert client.get("/v2/health/live").status_code == 200
    assert stack_in(gateway.log) == ""
