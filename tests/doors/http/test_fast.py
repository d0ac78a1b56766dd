"""The fast door against the ASGI door: the same bytes, the same bounds, and less work."""

import asyncio
import gc
import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.endpoints import Caching, Split, Weighted
from gateway.core.errors import EngineFailed
from gateway.core.tensors import Array, Signature, TensorSpec
from gateway.doors.http.exchange import LARGE_BYTES, Exchange
from gateway.doors.http.turns import BETWEEN, MAX_DRAINED_BYTES
from gateway.serving.admission import MIB
from gateway.settings import AdmissionSettings, HttpSettings
from gateway.telemetry import ADMISSION_REJECTED, REQUEST_DURATION
from tests.doors.http.two_doors import (
    DATE,
    HEALTH,
    INFER,
    ONE,
    Caller,
    Door,
    Kind,
    NanEngine,
    asking,
    chunked,
    data_of,
    door,
    post,
    status_of,
)
from tests.fakes import FailingEngine, FakeEngine, SlowEngine, signature_of
from tests.planes import (
    FORCE_TOKEN,
    READ_TOKEN,
    THREADED,
    endpoint_of,
    model_of,
    rows_of,
    snapshot_of,
    split_rule,
    until,
)

SMALL = HttpSettings(max_body_bytes=400_000, max_json_bytes=300_000)
SHORT = HttpSettings(header_s=0.3, body_idle_s=0.3, write_stall_s=0.3)
HALVES = Split(
    exposure=10_000,
    variants=(Weighted("old", 5_000, version=1), Weighted("new", 5_000, version=2)),
)
PREDICT = b"/v1/models/m:predict"
BEFORE = (post(asking(1.0), b"X-Unit: a"), post(asking(2.0), b"X-Unit: bc"))
HELD_BYTES = AdmissionSettings().max_held_mb * MIB
each_door = pytest.mark.parametrize("kind", ["asgi", "fast"])


@dataclass(repr=False)
class Both:
    """Two equal houses, one behind each door."""

    runner: asyncio.Runner
    asgi: Door
    fast: Door

    def compare(self, *pieces: bytes, answers: int = 1) -> tuple[list[bytes], bool]:
        """What both doors tell, which must not differ; and whether the connection lives on."""
        told = self.runner.run(self.asgi.tells(*pieces, answers=answers))
        assert self.runner.run(self.fast.tells(*pieces, answers=answers)) == told
        assert all(told[0])
        return told

    def talk(self, *requests: bytes) -> list[bytes]:
        """What both doors answer to requests in turn on one connection."""
        told = self.runner.run(self.asgi.talks(*requests))
        assert self.runner.run(self.fast.talks(*requests)) == told
        return told

    def counts(self) -> list[Counter[Any]]:
        """How many requests of each kind either door counted."""
        return [
            Counter(
                {
                    series.attributes: sum(series.counts)
                    for series in one.plane.cells.collect()
                    if series.instrument is REQUEST_DURATION
                }
            )
            for one in (self.asgi, self.fast)
        ]


@pytest.fixture(
    scope="module",
    params=[asyncio.new_event_loop, uvloop.new_event_loop],
    ids=["asyncio", "uvloop"],
)
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    """Both doors on one loop that runs when something is asked."""
    snapshot = snapshot_of(
        7,
        models={
            "m": model_of(1, 2, 3, aliases={"next": 2, "gone": 3}, loaded=(2,)),
            "nan": model_of(1),
            "bad": model_of(1),
        },
        endpoints={
            "e": endpoint_of(split_rule(HALVES)),
            "kept": endpoint_of(cache=Caching(max_mb=1)),
        },
    )

    async def enter(kind: Kind) -> Door:
        engines = {
            ONE: FakeEngine(bias=100),
            ("m", 2): FakeEngine(bias=200),
            ("nan", 1): NanEngine(),
            ("bad", 1): FailingEngine(EngineFailed("The model failed to run on this input.")),
        }
        return await stack.enter_async_context(door(kind, engines, snapshot=snapshot, http=SMALL))

    with asyncio.Runner(loop_factory=request.param) as runner:
        stack = AsyncExitStack()
        yield Both(runner, runner.run(enter("asgi")), runner.run(enter("fast")))
        runner.run(stack.aclose())


def binary(*values: float, size: int | None = None, **fields: Any) -> bytes:
    """An inference whose tensor is binary."""
    tail = rows_of(*values).tobytes()
    document = asking(*values, **fields)
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": size or len(tail)}
    head = orjson.dumps(document)
    return post(head + tail, b"Inference-Header-Content-Length: %d" % len(head))


def shaped(*shape: int, datatype: str = "FP32", data: Any = (1, 0, 0, 0)) -> dict[str, Any]:
    """An inference that need not fit."""
    return {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]}


def output(**parameters: Any) -> dict[str, Any]:
    """An inference that lists its output."""
    return asking(3.0, 1.0, outputs=[{"name": "y", "parameters": parameters}])


def bearer(token: str) -> bytes:
    """The header that shows a token."""
    return b"Authorization: Bearer " + token.encode()


GOOD = orjson.dumps(asking(1.0))
PACKED = gzip.compress(GOOD)
MANY = asking(*(float(value) for value in range(2_000)))
TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORCE = b"X-Force-Variant: new"
GZIPPED = b"Content-Encoding: gzip"
HALVED = b"/v2/models/e/infer"
TOO_LARGE = b"POST " + INFER + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 400001\r\n\r\n"

REQUESTS: dict[str, tuple[bytes, int]] = {
    "json": (post(), 200),
    "several rows": (post(asking(1.0, 2.0, 3.0)), 200),
    "no rows": (post(shaped(0, 4, data=[])), 200),
    "an id": (post(asking(1.0, id='r"1')), 200),
    "parameters": (post(asking(1.0, parameters={"a": 1, "b": "c", "d": True})), 200),
    "nested data": (post(shaped(1, 4, data=[[1, 2, 3, 4]])), 200),
    "spaces": (post(json.dumps(asking(1.0), indent=2).encode()), 200),
    "a query": (post(path=INFER + b"?a=b"), 200),
    "an encoded name": (post(path=b"/v2/models/%6d/infer"), 200),
    "binary": (binary(1.0, 2.0), 200),
    "binary both ways": (binary(1.0, parameters={"binary_data_output": True}), 200),
    "binary, too short": (binary(1.0, size=17), 400),
    "a broken header length": (post(GOOD, b"Inference-Header-Content-Length: x"), 400),
    "two header lengths": (post(GOOD, *[b"Inference-Header-Content-Length: 9"] * 2), 400),
    "a listed output": (post(output()), 200),
    "a binary output": (post(output(binary_data=True)), 200),
    "classes": (post(output(classification=2)), 200),
    "an unknown output": (post(asking(1.0, outputs=[{"name": "z"}])), 400),
    "predict rows": (post({"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]}, path=PREDICT), 200),
    "predict named rows": (post({"instances": [{"x": [1, 2, 3, 4]}]}, path=PREDICT), 200),
    "predict columns": (post({"inputs": {"x": [[1, 2, 3, 4]]}}, path=PREDICT), 200),
    "predict both": (post({"inputs": [], "instances": []}, path=PREDICT), 400),
    "predict a version": (
        post({"instances": [[1, 2, 3, 4]]}, path=b"/v1/models/m/versions/2:predict"),
        200,
    ),
    "predict an alias": (
        post({"instances": [[1, 2, 3, 4]]}, path=b"/v1/models/m/labels/next:predict"),
        200,
    ),
    "predict an alias that is not ready": (
        post({"instances": [[1, 2, 3, 4]]}, path=b"/v1/models/m/labels/gone:predict"),
        503,
    ),
    "predict an unknown alias": (
        post({"instances": [[1, 2, 3, 4]]}, path=b"/v1/models/m/labels/nope:predict"),
        404,
    ),
    "predict with a v2 body": (post(GOOD, path=PREDICT), 400),
    "a version": (post(path=b"/v2/models/m/versions/2/infer"), 200),
    "a version that is not ready": (post(path=b"/v2/models/m/versions/3/infer"), 503),
    "an unknown version": (post(path=b"/v2/models/m/versions/9/infer"), 404),
    "no version": (post(path=b"/v2/models/m/versions/x/infer"), 404),
    "an unknown name": (post(path=b"/v2/models/nope/infer"), 404),
    "no name": (post(path=b"/v2/models/%2e%2e/infer"), 404),
    "no such path": (post(path=b"/v2/models/m/inferno"), 404),
    "a split": (post(path=HALVED), 200),
    "a split by unit": (post(GOOD, b"X-Unit-Id: u1", path=HALVED), 200),
    "kept, a miss": (post(path=b"/v2/models/kept/infer"), 200),
    "kept, a hit": (post(path=b"/v2/models/kept/infer"), 200),
    "kept, predict": (post({"instances": [[1, 2, 3, 4]]}, path=b"/v1/models/kept:predict"), 200),
    "forced": (post(GOOD, FORCE, bearer(FORCE_TOKEN), path=HALVED), 200),
    "forced by nobody": (post(GOOD, FORCE, path=HALVED), 401),
    "forced by an unknown": (post(GOOD, FORCE, bearer("x"), path=HALVED), 401),
    "forced without the scope": (post(GOOD, FORCE, bearer(READ_TOKEN), path=HALVED), 403),
    "forced to nothing": (
        post(GOOD, b"X-Force-Variant: nope", bearer(FORCE_TOKEN), path=HALVED),
        400,
    ),
    "a needless token": (post(GOOD, bearer(READ_TOKEN)), 200),
    "an unknown token": (post(GOOD, bearer("x")), 200),
    "GET": (post(method=b"GET"), 405),
    "HEAD": (b"HEAD " + INFER + b" HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    "PUT": (post(method=b"PUT"), 405),
    "OPTIONS": (post(method=b"OPTIONS"), 405),
    "TRACE": (post(method=b"TRACE"), 405),
    "health": (HEALTH, 200),
    "an index": (post(b"{}", path=b"/v2/repository/index"), 200),
    "nothing": (post(b""), 400),
    "no length": (b"POST " + INFER + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "broken JSON": (post(b"{"), 400),
    "a list": (post(b"[]"), 400),
    "no UTF-8": (post(b"\xff\xfe"), 400),
    "too deep": (post(b"[" * 100_000), 400),
    "no inputs": (post({"inputs": []}), 400),
    "another input": (post(shaped(1, 4) | {"outputs": [{}]}), 400),
    "a wrong shape": (post(shaped(1, 3, data=[1, 2, 3])), 400),
    "a shape that does not fit": (post(shaped(2, 4)), 400),
    "a wrong type": (post(shaped(1, 4, datatype="FP64")), 400),
    "an unknown type": (post(shaped(1, 4, datatype="FP31")), 400),
    "too many rows": (post(MANY), 413),
    "NaN": (post(GOOD.replace(b"1.0", b"NaN")), 400),
    "NaN by name": (post(GOOD.replace(b"1.0", b'"NaN"')), 400),
    "an answer that is NaN": (post(path=b"/v2/models/nan/infer"), 200),
    "a run that fails": (post(asking(666.0), path=b"/v2/models/bad/infer"), 500),
    "a predict that fails": (
        post({"instances": [[666, 0, 0, 0]]}, path=b"/v1/models/bad:predict"),
        500,
    ),
    "too large": (TOO_LARGE, 413),
    "too large when unpacked": (post(gzip.compress(bytes(500_000)), GZIPPED), 413),
    "JSON that is too large": (post(b" " * 300_000 + GOOD), 413),
    "aside": (post(b" " * LARGE_BYTES + GOOD), 200),
    "aside and broken": (post(b" " * LARGE_BYTES + b"{"), 400),
    "gzip": (post(PACKED, GZIPPED), 200),
    "broken gzip": (post(PACKED[:-4], GZIPPED), 400),
    "no gzip": (post(GOOD, GZIPPED), 400),
    "an unknown coding": (post(GOOD, b"Content-Encoding: br"), 415),
    "identity": (post(GOOD, b"Content-Encoding: identity"), 200),
    "a form": (post(GOOD, b"Content-Type: multipart/form-data; boundary=x"), 415),
    "text": (post(GOOD, b"Content-Type: text/plain"), 200),
    "a small answer that may be packed": (post(GOOD, b"Accept-Encoding: gzip"), 200),
    "a large answer": (post(asking(*[1.0] * 1_000)), 200),
    "a packed answer": (post(asking(*[1.0] * 1_000), b"Accept-Encoding: gzip, deflate"), 200),
    "a deflated answer": (post(asking(*[1.0] * 1_000), b"Accept-Encoding: deflate"), 200),
    "an id that is too long": (post(asking(1.0, id="i" * 129)), 400),
    "a timeout": (post(asking(1.0, parameters={"timeout": 1_000_000})), 200),
    "a broken timeout": (post(asking(1.0, parameters={"timeout": "x"})), 400),
    "a timeout in the head": (post(GOOD, b"X-Request-Timeout-Ms: 1000"), 200),
    "a timeout of nothing": (post(GOOD, b"X-Request-Timeout-Ms: 0"), 400),
    "a broken timeout in the head": (post(GOOD, b"X-Request-Timeout-Ms: 1s"), 400),
    "a trace": (post(GOOD, TRACE), 200),
    "two traces": (post(GOOD, TRACE, TRACE), 200),
    "HTTP/1.0": (post(version=b"1.0"), 200),
    "HTTP/1.0, kept alive": (post(GOOD, b"Connection: keep-alive", version=b"1.0"), 200),
    "HTTP/1.0 without a host": (post(version=b"1.0").replace(b"Host: a\r\n", b""), 200),
    "HTTP/1.2": (post(version=b"1.2"), 400),
    "HTTP/2.0": (post(version=b"2.0"), 505),
    "close": (post(GOOD, b"Connection: close"), 200),
    "Close": (post(GOOD, b"Connection: Close"), 200),
    "close among others": (post(GOOD, b"Connection: x, close"), 200),
    "keep-alive": (post(GOOD, b"Connection: keep-alive"), 200),
    "close, and refused": (post(b"{", b"Connection: close"), 400),
    "close, and unknown": (post(GOOD, b"Connection: close", path=b"/v2/models/n/infer"), 404),
    "another protocol": (post(GOOD, b"Connection: Upgrade", b"Upgrade: h2c"), 200),
    "chunked": (chunked(GOOD[:5], GOOD[5:]), 200),
    "chunked, nothing": (chunked(), 400),
    "chunked, too large": (chunked(*[b" " * 50_000] * 9), 413),
    "no host": (post().replace(b"Host: a\r\n", b""), 400),
    "two lengths": (post(GOOD, b"Content-Length: 3"), 400),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_both_doors_answer_with_the_same_bytes(both: Both, name: str) -> None:
    """Whatever is asked; the connection lives on or ends alike."""
    request, status = REQUESTS[name]
    (answer,), _ = both.compare(request)
    assert status_of(answer) == status


@pytest.mark.parametrize("name", REQUESTS)
def test_what_came_before_changes_no_answer(both: Both, name: str) -> None:
    """Whatever was learned of the connection's other heads."""
    request, status = REQUESTS[name]
    *told, answer = both.talk(*BEFORE, request)
    assert [status_of(one) for one in told] == [200] * len(BEFORE)
    assert status_of(answer) == status


def test_both_doors_tell_to_go_on_alike(both: Both) -> None:
    """`100 Continue` comes before the answer, and a refusal in its place."""
    expect = b"Expect: 100-continue"
    (answer,), is_open = both.compare(post(GOOD, expect))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert is_open
    head = post(GOOD, expect, path=b"/v2/models/nope/infer")[: -len(GOOD)]
    (answer,), is_open = both.compare(head)
    assert (status_of(answer), is_open) == (404, False)


def test_both_doors_say_that_they_stop_alike(both: Both) -> None:
    """While the process drains each answer is the last of its connection."""
    both.asgi.plane.worker.stopping = both.fast.plane.worker.stopping = True
    try:
        for request in (post(), post(b"{"), post(GOOD, b"Connection: close"), TOO_LARGE, HEALTH):
            (answer,), is_open = both.compare(request)
            assert answer.lower().count(b"\r\nconnection: close\r\n") == 1
            assert not is_open
    finally:
        both.asgi.plane.worker.stopping = both.fast.plane.worker.stopping = False


def test_both_doors_answer_a_row_of_requests_alike(both: Both) -> None:
    """Sent in one piece: each kind by itself, and a refusal behind some answers."""
    kept = ("json", "health", "a version", "broken JSON", "chunked", "classes", "an unknown name")
    row = b"".join(REQUESTS[name][0] for name in kept)
    answers, is_open = both.compare(row, answers=len(kept))
    assert [status_of(answer) for answer in answers] == [REQUESTS[name][1] for name in kept]
    assert is_open
    answers, is_open = both.compare(post() * 2 + post(GOOD, b"Content-Length: 3"), answers=3)
    assert [status_of(answer) for answer in answers] == [200, 200, 400]
    assert not is_open


def test_the_last_request_of_a_segment_does_not_end_those_before_it_early(both: Both) -> None:
    """Who says behind a request that the next is the last gets both answers."""
    answers, is_open = both.compare(post() + post(GOOD, b"Connection: close"), answers=2)
    assert [status_of(answer) for answer in answers] == [200, 200]
    assert [b"\r\nconnection: close\r\n" in answer for answer in answers] == [False, True]
    assert not is_open


def test_both_doors_count_alike(both: Both) -> None:
    """By method, route, status and scheme."""
    before = both.counts()
    for name in ("json", "predict rows", "broken JSON", "an unknown name", "GET", "health"):
        both.compare(REQUESTS[name][0])
    by_asgi, by_fast = (after - was for after, was in zip(both.counts(), before, strict=True))
    assert by_asgi == by_fast
    assert sum(by_fast.values()) == 12


NAMES = st.sampled_from(["m", "e", "nan", "bad", "kept", "nope", "%2e"])
PATHS = st.one_of(
    st.builds("/v2/models/{}/infer".format, NAMES),
    st.builds("/v2/models/{}/versions/{}/infer".format, NAMES, st.sampled_from("0123x")),
    st.builds("/v1/models/{}:predict".format, NAMES),
    st.builds("/v1/models/{}/labels/{}:predict".format, NAMES, st.sampled_from(["next", "gone"])),
    st.sampled_from(["/v2/health/live", "/v2/models", "/v2/models/m", "/nope"]),
)
LINES = st.lists(
    st.sampled_from(
        [
            b"Content-Type: application/json",
            b"Content-Type: text/plain",
            b"Content-Encoding: gzip",
            b"Content-Encoding: identity",
            b"Accept-Encoding: gzip",
            b"Accept-Encoding: deflate;q=1, gzip;q=0.5",
            b"Connection: close",
            b"Connection: keep-alive",
            b"Inference-Header-Content-Length: %d" % len(GOOD),
            b"X-Request-Timeout-Ms: 50",
            b"X-Request-Timeout-Ms: -1",
            b"X-Force-Variant: new",
            b"X-Unit-Id: u",
            bearer(FORCE_TOKEN),
            bearer("unknown"),
            TRACE,
            b"X: " + b"y" * 200,
        ]
    ),
    max_size=4,
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "x", "data", "shape"]), inner, max_size=3)
    ),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "x", "x", "z"]),
        "shape": st.sampled_from([[1, 4], [1, 4], [2, 4], [4], [-1, 4], [0, 4]]),
        "datatype": st.sampled_from(["FP32", "FP32", "FP64", "BYTES", "nope"]),
        "data": st.lists(st.integers(-9, 9) | st.floats(width=32), min_size=3, max_size=8) | VALUES,
    },
    optional={"parameters": VALUES},
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSORS, max_size=2) | VALUES,
        "instances": st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), max_size=3)
        | VALUES,
        "id": st.text(max_size=5) | SCALARS,
        "outputs": st.just([{"name": "y"}]) | VALUES,
        "parameters": st.just({"binary_data_output": True})
        | st.just({"timeout": 10})
        | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
    },
)
BODIES = st.one_of(
    st.just(GOOD),
    st.just(GOOD),
    st.just(PACKED),
    st.just(b'{"instances":[[1,2,3,4],[5,6,7,8]]}'),
    DOCUMENTS.map(lambda document: json.dumps(document).encode()),
    st.binary(max_size=30),
)
METHODS = st.sampled_from([b"POST"] * 6 + [b"GET", b"HEAD", b"PUT"])
VERSIONS = st.sampled_from([b"1.1"] * 6 + [b"1.0", b"2.0"])


def cut(request: bytes, places: list[int]) -> list[bytes]:
    """The request in pieces."""
    ends = sorted({place % (len(request) + 1) for place in places} | {0, len(request)})
    return [request[begin:end] for begin, end in pairwise(ends)]


REQUEST = st.builds(
    lambda body, lines, path, method, version: post(
        body, *lines, path=path.encode(), method=method, version=version
    ),
    BODIES,
    LINES,
    PATHS,
    METHODS,
    VERSIONS,
)


@settings(deadline=None, max_examples=60)
@given(sent=REQUEST, places=st.lists(st.integers(0, 2_000), max_size=3))
def test_no_request_tells_the_doors_apart(both: Both, sent: bytes, places: list[int]) -> None:
    """However odd it is, and in whatever pieces it comes."""
    both.compare(*cut(sent, places))
    assert both.asgi.held() == both.fast.held() == (0, 0, 0)


@settings(deadline=None, max_examples=60)
@given(sent=REQUEST)
def test_no_request_behind_others_tells_the_doors_apart(both: Both, sent: bytes) -> None:
    """However odd it is; a connection that ends answers nothing more."""
    both.talk(*BEFORE, sent, BEFORE[1])
    assert both.asgi.held() == both.fast.held() == (0, 0, 0)


# Turns and pieces


def bodies_of(*values: float) -> bytes:
    """Inferences in one piece, a row each."""
    return b"".join(post(asking(value)) for value in values)


async def read_all(caller: Caller, count: int) -> list[bytes]:
    """So many answers."""
    return [await caller.read() for _ in range(count)]


@each_door
async def test_requests_of_one_segment_are_answered_in_order(kind: Kind) -> None:
    """Each from the body of its own request."""
    async with door(kind) as one:
        caller = await one.dial()
        caller.send(bodies_of(*range(8)))
        assert [data_of(answer) for answer in await read_all(caller, 8)] == [
            [100.0 + value] for value in range(8)
        ]


@each_door
async def test_whoever_is_behind_a_held_inference_waits_their_turn(kind: Kind) -> None:
    """Health, and an inference of another model that is done already, come after it."""
    engine = SlowEngine()
    models = {"m": model_of(1), "n": model_of(1)}
    engines = {ONE: engine, ("n", 1): FakeEngine()}
    async with door(kind, engines, snapshot=snapshot_of(models=models), pool=THREADED) as one:
        engine.hold()
        caller = await one.dial()
        caller.send(bodies_of(1.0), HEALTH, post(asking(2.0), path=b"/v2/models/n/infer"), HEALTH)
        await until(engine.entered.is_set)
        assert status_of(await one.ask(HEALTH)) == 200
        assert sum(b"x-variant" in written for written in one.writes) == 0
        engine.release()
        answers = await read_all(caller, 4)
        assert data_of(answers[0]) == [1.0]
        assert b'"live":true' in answers[1]
        assert data_of(answers[2]) == [2.0]
        assert b'"live":true' in answers[3]


@each_door
async def test_one_connection_serves_many_requests(kind: Kind) -> None:
    """Inferences and others by turns."""
    async with door(kind) as one:
        caller = await one.dial()
        for value in range(20):
            assert data_of(await caller.ask(bodies_of(value))) == [100.0 + value]
            assert status_of(await caller.ask(HEALTH)) == 200
        assert len(one.connections) == 1
        assert one.server.server_state.total_requests == 40


@each_door
@pytest.mark.parametrize(
    "request_",
    [post(), chunked(GOOD[:7], GOOD[7:]), post(PACKED, GZIPPED)],
    ids=["", "chunks", "gz"],
)
async def test_a_request_may_come_byte_by_byte(kind: Kind, request_: bytes) -> None:
    """Head and body in segments of one byte are what they are in one."""
    async with door(kind) as one:
        caller = await one.dial()
        await until(lambda: bool(one.connections))
        for byte in request_ * 2:
            one.connections[0].data_received(bytes([byte]))
        assert [data_of(answer) for answer in await read_all(caller, 2)] == [[101.0]] * 2


# Callers who do not play along


class WideEngine(FakeEngine):
    """Answers each row with many numbers, of which the first is the row's own."""

    def __init__(self) -> None:
        (spec,) = signature_of().outputs
        wide = TensorSpec(name=spec.name, datatype="FP32", shape=(-1, 4_000))
        super().__init__(
            signature=Signature(inputs=signature_of().inputs, outputs=(wide,), batched=True)
        )

    def run(self, tensors: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        (sums,) = super().run(tensors, outputs)
        rest = np.full((len(sums), 3_999), np.pi, np.float32)
        return [np.concatenate([sums, rest], axis=1)]


async def fill(one: Door, caller: Caller, engine: FakeEngine) -> int:
    """Send one by one until nothing more goes in either direction; how many."""
    await until(lambda: bool(one.connections))
    flow, state, sent = one.connections[0].flow, one.server.server_state, 0
    while not (flow.write_paused and flow.read_paused):
        caller.send(bodies_of(sent))
        sent += 1
        ran, told = len(engine.runs), state.total_requests

        def goes_on(ran: int = ran, told: int = told) -> bool:
            stands = flow.write_paused and len(engine.runs) > ran
            return stands or flow.read_paused or state.total_requests > told

        await until(goes_on)
    return sent


@each_door
async def test_who_does_not_read_is_not_read(kind: Kind) -> None:
    """Reading pauses while answers wait to be taken; then nothing is lost."""
    engine = WideEngine()
    async with door(kind, {ONE: engine}) as one:
        caller = await one.dial(room=4_096)
        sent = await fill(one, caller, engine)
        assert status_of(await one.ask(HEALTH)) == 200
        answers = await read_all(caller, sent)
        assert [data_of(answer)[0] for answer in answers] == [*range(sent)]
        assert data_of(await caller.ask(bodies_of(9.0)))[0] == 9.0


@each_door
async def test_who_never_reads_is_left(kind: Kind) -> None:
    """The connection is cut, and nothing of it stays in flight."""
    engine = WideEngine()
    async with door(kind, {ONE: engine}, http=SHORT) as one:
        await fill(one, await one.dial(room=4_096), engine)
        await until(lambda: not one.server.server_state.connections)
        assert one.held() == (0, 0, 0)


@each_door
async def test_who_leaves_while_queued_is_not_run(kind: Kind) -> None:
    """Their place is free at once."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED) as one:
        engine.hold()
        first, second = await one.dial(), await one.dial()
        first.send(bodies_of(1.0))
        await until(engine.entered.is_set)
        engine.runs.clear()
        second.send(bodies_of(2.0))
        await until(lambda: one.held() == (2, 2, 2))
        second.close()
        await until(lambda: one.held() == (1, 1, 1))
        engine.release()
        assert data_of(await first.read()) == [1.0]
        assert data_of(await first.ask(bodies_of(3.0))) == [3.0]
        assert [rows[:, 0].tolist() for rows in engine.runs] == [[1.0], [3.0]]
        assert one.held() == (0, 0, 0)


@each_door
async def test_who_leaves_with_more_behind_is_not_run(kind: Kind) -> None:
    """That reading pauses behind an inference does not hide that its caller left."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED) as one:
        engine.hold()
        first, second = await one.dial(), await one.dial()
        first.send(bodies_of(1.0))
        await until(engine.entered.is_set)
        engine.runs.clear()
        second.send(bodies_of(2.0, 3.0))
        await until(lambda: one.held() == (2, 2, 2))
        second.close()
        await until(lambda: one.held() == (1, 1, 1))
        engine.release()
        assert data_of(await first.read()) == [1.0]
        assert [rows[:, 0].tolist() for rows in engine.runs] == [[1.0]]
        assert one.held() == (0, 0, 0)


@each_door
async def test_who_leaves_while_running_is_forgotten(kind: Kind) -> None:
    """The run goes on and its answer is dropped."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED) as one:
        engine.hold()
        caller = await one.dial()
        caller.send(bodies_of(1.0))
        await until(engine.entered.is_set)
        caller.close()
        await until(lambda: one.held() == (0, 0, 0))
        engine.release()
        assert data_of(await one.ask(bodies_of(2.0))) == [2.0]
        assert len([written for written in one.writes if b"x-variant" in written]) == 1
        assert one.held() == (0, 0, 0)


@each_door
async def test_who_leaves_in_a_body_holds_no_place(kind: Kind) -> None:
    """They were admitted by their head."""
    async with door(kind) as one:
        caller = await one.dial()
        caller.send(post()[:-5])
        await until(lambda: one.held() == (1, 0, 0))
        caller.close()
        await until(lambda: one.held() == (0, 0, 0))


@each_door
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(post()[:-5], 408, id="too slow"),
        pytest.param(chunked(GOOD)[:-7] + b"nonsense", 400, id="nonsense"),
        pytest.param(chunked(*[b" " * 50_000] * 9), 413, id="too large"),
    ],
)
async def test_who_is_refused_in_a_body_holds_no_place(
    kind: Kind, sent: bytes, status: int
) -> None:
    """The refusal is the connection's last word."""
    bounds = HttpSettings(body_idle_s=0.3, max_body_bytes=400_000)
    async with door(kind, http=bounds) as one:
        caller = await one.dial()
        assert status_of(await caller.ask(sent)) == status
        assert await caller.read() == b""
        assert one.held() == (0, 0, 0)


# Deadlines and bounds


@each_door
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(asking(2.0, parameters={"timeout": 20_000})), id="parameter"),
        pytest.param(post(asking(2.0), b"X-Request-Timeout-Ms: 20"), id="header"),
        pytest.param(
            post(asking(2.0, parameters={"timeout": 9_000_000}), b"X-Request-Timeout-Ms: 20"),
            id="the earlier one",
        ),
    ],
)
async def test_who_states_a_deadline_is_answered_when_it_passes(
    kind: Kind, request_: bytes
) -> None:
    """While the model is still held, whether the request is queued or runs."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED) as one:
        engine.hold()
        running, queued = await one.dial(), await one.dial()
        running.send(request_)
        await until(engine.entered.is_set)
        queued.send(request_)
        await until(lambda: one.held() == (2, 2, 2))
        one.plane.clock.advance(1.0)
        for caller in (running, queued):
            answer = await caller.read()
            assert status_of(answer) == 503
            assert b"\r\nretry-after: 1\r\n" in answer
            assert b"time ran out" in answer
        assert one.held() == (0, 0, 0)
        engine.release()
        assert status_of(await queued.ask(post())) == 200


@each_door
async def test_who_finds_no_room_is_told_so(kind: Kind) -> None:
    """With 503 and when to come again, before a large body is sent; health is no inference."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED, max_in_flight=1) as one:
        engine.hold()
        first, second = await one.dial(), await one.dial()
        first.send(bodies_of(1.0))
        await until(engine.entered.is_set)
        large = post(bytes(MAX_DRAINED_BYTES + 1))[: -MAX_DRAINED_BYTES - 1]
        for request, is_open in ((post(), True), (chunked(GOOD), True), (large, False)):
            answer = await second.ask(request)
            assert status_of(answer) == 503
            assert b"\r\nretry-after: 1\r\n" in answer
            assert (b"\r\nconnection: close\r\n" not in answer) is is_open
        assert status_of(await one.ask(HEALTH)) == 200
        engine.release()
        assert status_of(await first.read()) == 200
        assert status_of(await one.ask(post())) == 200
        assert one.held() == (0, 0, 0)


@each_door
async def test_who_is_known_by_sight_is_refused_alike(kind: Kind) -> None:
    """However often a caller comes again on its connection: the same bytes, each time counted."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED, max_in_flight=1) as one:
        engine.hold()
        first, second = await one.dial(), await one.dial()
        first.send(bodies_of(1.0))
        await until(engine.entered.is_set)
        answers = {DATE.sub(b"", await second.ask(post())) for _ in range(6)}
        assert [status_of(answer) for answer in answers] == [503]
        assert one.plane.count(ADMISSION_REJECTED) == 6
        engine.release()
        assert status_of(await first.read()) == 200
        assert status_of(await second.ask(post())) == 200
        assert one.held() == (0, 0, 0)


@each_door
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(), id="small"),
        pytest.param(chunked(GOOD), id="chunked"),
        pytest.param(post(bytes(MAX_DRAINED_BYTES)), id="drained"),
        pytest.param(post(bytes(MAX_DRAINED_BYTES + 1)), id="not drained"),
        pytest.param(post(bytes(LARGE_BYTES)), id="aside"),
    ],
)
async def test_who_finds_no_room_is_counted_once(kind: Kind, request_: bytes) -> None:
    """Whatever the size of the body, and whichever door tells it."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED, max_in_flight=1) as one:
        engine.hold()
        first = await one.dial()
        first.send(bodies_of(1.0))
        await until(engine.entered.is_set)
        assert status_of(await one.ask(request_)) == 503
        assert one.plane.count(ADMISSION_REJECTED) == 1
        assert one.plane.count(ADMISSION_REJECTED, key="m", type="overloaded") == 1
        engine.release()
        assert status_of(await first.read()) == 200


@each_door
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(b" " * LARGE_BYTES + GOOD), id="stated"),
        pytest.param(chunked(b" " * LARGE_BYTES, GOOD), id="chunked"),
    ],
)
async def test_a_large_body_that_finds_no_room_is_told_and_counted_once(
    kind: Kind, request_: bytes
) -> None:
    """Its caller hears when to come again; a small one is answered meanwhile."""
    async with door(kind) as one:
        one.desk.admission.hold(HELD_BYTES)
        answer = await one.ask(request_)
        assert status_of(answer) == 503
        assert b"\r\nretry-after: 1\r\n" in answer
        assert one.plane.count(ADMISSION_REJECTED, key="m", type="overloaded") == 1
        assert status_of(await one.ask(post())) == 200
        one.desk.admission.let_go(HELD_BYTES)
        assert status_of(await one.ask(request_)) == 200
        assert (one.held(), one.desk.admission.held_bytes) == ((0, 0, 0), 0)


@each_door
async def test_nobody_takes_more_than_their_share(kind: Kind) -> None:
    """Who holds most of an endpoint gets 429, while others get in."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED, max_in_flight=10) as one:
        engine.hold()
        greedy = [await one.dial() for _ in range(9)]
        for caller in greedy:
            caller.send(post())
        await until(lambda: one.held()[0] == 9)
        refused = await one.ask(post())
        assert (status_of(refused), b"\r\nretry-after: 1\r\n" in refused) == (429, True)
        other = await one.dial()
        other.send(post(GOOD, bearer(READ_TOKEN)))
        await until(lambda: one.held()[0] == 10)
        engine.release()
        assert [status_of(await caller.read()) for caller in (*greedy, other)] == [200] * 10
        assert one.held() == (0, 0, 0)


@each_door
async def test_a_stop_finishes_what_was_begun(kind: Kind) -> None:
    """One that runs and one whose body is not whole are answered, and told that it is the last."""
    engine = SlowEngine()
    async with door(kind, {ONE: engine}, pool=THREADED) as one:
        engine.hold()
        running, sending, idle = await one.dial(), await one.dial(), await one.dial()
        running.send(bodies_of(1.0))
        await until(engine.entered.is_set)
        sending.send(bodies_of(2.0)[:-5])
        await until(lambda: one.held()[0] == 2)
        await until(lambda: len(one.connections) == 3)
        one.server.should_exit = True
        await until(lambda: one.connections[0].draining)
        assert await idle.read() == b""
        sending.send(bodies_of(2.0)[-5:])
        engine.release()
        for caller, value in ((running, 1.0), (sending, 2.0)):
            answer = await caller.read()
            assert data_of(answer) == [value]
            assert answer.count(b"\r\nconnection: close\r\n") == 1
            assert await caller.read() == b""
        await until(lambda: not one.server.server_state.connections)


# What it costs


class Tasks:
    """Notes every task that the loop is given."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **given: Any) -> Any:
        self.made += 1
        return asyncio.Task(coro, loop=loop, **given)


@pytest.mark.parametrize(
    ("kind", "tasks_each"), [pytest.param("asgi", 1, id="asgi"), pytest.param("fast", 0, id="fast")]
)
async def test_an_inference_needs_no_task(kind: Kind, tasks_each: int) -> None:
    """Behind the fast door, whether it is answered in the same tick, in a later one or refused."""
    async with door(kind) as one:
        caller = await one.dial()
        await caller.ask(post())
        tasks, loop = Tasks(), asyncio.get_running_loop()
        loop.set_task_factory(tasks)
        asked = [post(), post(b"{"), post(asking(1.0, 2.0)), chunked(GOOD), post(PACKED, GZIPPED)]
        for request in asked:
            await caller.ask(request)
        loop.set_task_factory(None)
        assert tasks.made == tasks_each * len(asked)


async def test_a_connection_that_cannot_write_takes_no_answer_from_others() -> None:
    """They were answered by the same run."""
    async with door("fast") as one:
        callers = [await one.dial() for _ in range(3)]
        for caller in callers:
            await caller.ask(post())

        def fail(_: bytes) -> None:
            raise RuntimeError

        one.connections[0].transport.write = fail  # type: ignore[method-assign, assignment]
        for caller in callers:
            caller.send(post(asking(3.0)))
        told = [await caller.read() for caller in callers[1:]]
        assert [data_of(answer) for answer in told] == [[103.0]] * 2
        assert one.held() == (0, 0, 0)


async def test_a_head_like_those_before_is_not_parsed() -> None:
    """Once two of them have shown what differs."""
    async with door("fast") as one:
        caller = await one.dial()
        for request in BEFORE:
            await caller.ask(request)
        one.connections[-1].parser = None  # type: ignore[assignment]
        assert data_of(await caller.ask(post(asking(5.0), b"X-Unit: d"))) == [105.0]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(), id="json"),
        pytest.param(binary(1.0, parameters={"binary_data_output": True}), id="binary"),
        pytest.param(post({"instances": [[1, 2, 3, 4]]}, path=PREDICT), id="predict"),
        pytest.param(post(b"{"), id="refused"),
        pytest.param(post(asking(*[1.0] * 1_000), b"Accept-Encoding: gzip"), id="packed"),
        pytest.param(post(b" " * LARGE_BYTES + GOOD), id="aside"),
        pytest.param(post(GOOD, b"Connection: close"), id="last"),
    ],
)
async def test_a_response_is_one_write(request_: bytes) -> None:
    """Head and body leave together."""
    async with door("fast") as one:
        answer = await one.ask(request_)
        assert one.writes == [answer]


# Large bodies


class Held:
    """Holds the thread for large bodies until it is let go."""

    def __init__(self, one: Door) -> None:
        self.let_go = threading.Event()
        entered = threading.Event()
        self.is_held: Callable[[], bool] = entered.is_set

        def wait() -> bool:
            entered.set()
            return self.let_go.wait(20)

        one.desk.aside.start(wait, lambda _: None)


@each_door
async def test_a_large_body_is_decoded_aside(kind: Kind) -> None:
    """Health and small inferences are answered before it."""
    async with door(kind) as one:
        held = Held(one)
        await until(held.is_held)
        large = await one.dial()
        large.send(post(b" " * LARGE_BYTES + GOOD))
        await until(lambda: one.held() == (1, 0, 0))
        assert status_of(await one.ask(HEALTH)) == 200
        assert data_of(await one.ask(bodies_of(2.0))) == [102.0]
        assert one.held() == (1, 0, 0)
        held.let_go.set()
        assert data_of(await large.read()) == [101.0]
        assert one.held() == (0, 0, 0)


@each_door
async def test_who_leaves_while_decoded_is_not_run(kind: Kind) -> None:
    """Their body counts until its turn is over; it is decoded for nobody, and goes nowhere."""
    engine = FakeEngine()
    body = b" " * LARGE_BYTES + GOOD
    async with door(kind, {ONE: engine}) as one:
        engine.runs.clear()
        held = Held(one)
        await until(held.is_held)
        caller = await one.dial()
        caller.send(post(body))
        await until(lambda: one.held() == (1, 0, 0))
        caller.close()
        state = one.server.server_state
        await until(lambda: not state.connections and not state.tasks)
        assert (one.held(), one.desk.admission.held_bytes) == ((1, 0, 0), len(body))
        held.let_go.set()
        await until(lambda: one.held() == (0, 0, 0))
        assert one.desk.admission.held_bytes == 0
        assert one.desk.readers._readers == {}
        assert engine.runs == []


async def test_a_large_body_in_chunks_takes_its_room_as_it_comes() -> None:
    """What is here counts before the rest has come, and is let go when its caller leaves."""
    part = b" " * LARGE_BYTES
    half = chunked(part)[: -len(b"0\r\n\r\n")]
    chunk = half[half.index(b"\r\n\r\n") + 4 :]
    async with door("fast") as one:
        admission = one.desk.admission
        caller = await one.dial()
        caller.send(half)
        await until(lambda: admission.held_bytes == LARGE_BYTES)
        caller.send(chunk)
        await until(lambda: admission.held_bytes == 2 * LARGE_BYTES)
        caller.close()
        await until(lambda: one.held() == (0, 0, 0))
        assert admission.held_bytes == 0


async def test_a_large_body_in_chunks_is_refused_before_it_is_whole() -> None:
    """Who finds no room need not send the rest, and holds none."""
    async with door("fast") as one:
        one.desk.admission.hold(HELD_BYTES)
        answer = await one.ask(chunked(b" " * LARGE_BYTES)[: -len(b"0\r\n\r\n")])
        assert status_of(answer) == 503
        assert (one.held(), one.desk.admission.held_bytes) == ((0, 0, 0), HELD_BYTES)


TWO_MODELS = {"m": model_of(1, 2, champion=1, aliases={"next": 1}, loaded=(2,))}
MOVED = snapshot_of(2, models={"m": model_of(1, 2, champion=2, aliases={"next": 2})})


async def decoded_while_moved(one: Door, request: bytes) -> bytes:
    """The answer to a large body that was decoded for version 1 when version 2 took its place."""
    held = Held(one)
    await until(held.is_held)
    caller = await one.dial()
    caller.send(request)
    await until(lambda: one.desk.admission.held_bytes > 0 and one.held() == (1, 0, 0))
    decoded = threading.Event()
    received = one.connections[-1]
    await until(lambda: received._reading == BETWEEN)
    await until(lambda: one.desk.aside._thread._work_queue.qsize() == 1)
    one.desk.aside.start(decoded.set, lambda _: None)
    held.let_go.set()
    assert decoded.wait(20)  # the loop stands still, and hears of neither
    one.plane.apply(MOVED)
    return await caller.read()


@each_door
async def test_what_was_decoded_while_the_endpoint_moved_is_answered_by_what_serves_then(
    kind: Kind,
) -> None:
    """Version 1, for which it was decoded, may be gone."""
    engines = {ONE: FakeEngine(bias=100), ("m", 2): FakeEngine(bias=200)}
    async with door(kind, engines, snapshot=snapshot_of(1, models=TWO_MODELS)) as one:
        answer = await decoded_while_moved(one, post(b" " * LARGE_BYTES + GOOD))
        assert data_of(answer) == [201.0]
        assert one.held() == (0, 0, 0)


@each_door
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(b" " * LARGE_BYTES + GOOD), id="endpoint"),
        pytest.param(
            post(
                b" " * LARGE_BYTES + b'{"instances": [[1, 2, 3, 4]]}',
                path=b"/v1/models/m/labels/next:predict",
            ),
            id="alias",
        ),
    ],
)
async def test_what_was_decoded_for_another_signature_is_to_be_sent_again(
    kind: Kind, request_: bytes
) -> None:
    """It was right when it came, and would be refused as wrong."""
    engines = {ONE: FakeEngine(), ("m", 2): FakeEngine(signature=signature_of(3))}
    async with door(kind, engines, snapshot=snapshot_of(1, models=TWO_MODELS)) as one:
        answer = await decoded_while_moved(one, request_)
        assert status_of(answer) == 503
        assert b"send it again" in answer
        assert one.held() == (0, 0, 0)


# What is left behind


def exchanges() -> int:
    """How many there are."""
    return sum(type(found) is Exchange for found in gc.get_objects())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(post(path=b"/v2/models/kept/infer"), 200, id="kept"),
        pytest.param(post(), 200, id="run"),
        pytest.param(post(b"{"), 400, id="broken"),
        pytest.param(post(asking(1.0, outputs=[{"name": "z"}])), 400, id="refused"),
    ],
)
async def test_an_exchange_is_gone_with_its_answer(request_: bytes, status: int) -> None:
    """Without waiting for the garbage collector."""
    snapshot = snapshot_of(endpoints={"kept": endpoint_of(cache=Caching(max_mb=1))})
    async with door("fast", snapshot=snapshot) as one:
        caller = await one.dial()
        await caller.ask(request_)
        gc.collect()
        gc.disable()
        try:
            before = exchanges()
            for _ in range(5):
                assert status_of(await caller.ask(request_)) == status
            assert exchanges() == before
        finally:
            gc.enable()
