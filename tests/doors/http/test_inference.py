import asyncio
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from gateway.core.assignment import Reason
from gateway.core.endpoints import Split, Weighted
from gateway.core.errors import Conflict, EngineFailed, StoreUnavailable
from gateway.core.models import Key
from gateway.core.oip.answers import Nonfinite
from gateway.core.oip.messages import Limits
from gateway.core.tensors import Array, Signature, TensorSpec
from gateway.doors.http.answers import Answers
from gateway.doors.http.aside import Aside
from gateway.doors.http.desk import Desk
from gateway.doors.http.inference import DoorParts, InferenceDoor
from gateway.doors.http.messages import Message
from gateway.doors.http.outcomes import OutcomeDesk
from gateway.doors.http.readers import Readers
from gateway.doors.http.requests import Requests
from gateway.ports import Engine
from gateway.serving.admission import Admission
from gateway.settings import AdmissionSettings, OutcomeSettings
from gateway.telemetry import REQUEST_DURATION
from tests.fakes import (
    CountingEntropy,
    FailingEngine,
    FakeEngine,
    FakeRepository,
    FakeSink,
    SlowEngine,
)
from tests.planes import (
    FORCE_TOKEN,
    READ_TOKEN,
    THREADED,
    WRITE_TOKEN,
    Plane,
    endpoint_of,
    model_of,
    rows_of,
    serve_rule,
    snapshot_of,
    split_rule,
    until,
)

ONE, TWO = ("m", 1), ("m", 2)
INFER = "/v2/models/m/infer"
HALVES = Split(
    exposure=10_000,
    variants=(Weighted("old", 5_000, version=1), Weighted("new", 5_000, version=2)),
)


@dataclass
class House:
    """A plane with the door before it."""

    plane: Plane
    repository: FakeRepository
    door: InferenceDoor
    limits: Limits = field(default_factory=Limits)

    def client(self) -> httpx.AsyncClient:
        """A client of the door."""
        transport = httpx.ASGITransport(app=self.door)
        return httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def get(self, path: str) -> httpx.Response:
        """Get a path once."""
        async with self.client() as client:
            return await client.get(path)

    async def post(self, path: str = INFER, **given: Any) -> httpx.Response:
        """Post once."""
        async with self.client() as client:
            return await client.post(path, **given)


@contextmanager
def house(
    engines: Mapping[Key, Engine | Exception] | None = None,
    *,
    limits: Limits | None = None,
    nonfinite: Nonfinite = "literal",
    needs_token: bool = False,
    **plane: Any,
) -> Iterator[House]:
    """Build a house; by default model `m` has a version 1 that adds 100."""
    with Plane(engines or {ONE: FakeEngine(bias=100)}, **plane) as built:
        repository = FakeRepository()
        repository.loaded = built.worker.statistics
        aside = Aside(asyncio.get_running_loop())
        desk = Desk(
            pipeline=built.pipeline,
            admission=Admission(AdmissionSettings(), built.clock.monotonic_ns),
            aside=aside,
            clock=built.clock,
            randbytes=CountingEntropy(),
            limits=limits or Limits(),
            readers=Readers(limits or Limits()),
            answers=Answers(nonfinite),
            trace_ratio=0.0,
            plain_bytes=-1 if needs_token else (limits or Limits()).body_bytes,
        )
        outcomes = OutcomeDesk(desk, FakeSink(), OutcomeSettings(), built.cells)
        requests = Requests(built.cells)
        parts = DoorParts(desk, repository, outcomes, requests, max_batch_rows=64)
        yield House(built, repository, InferenceDoor(parts), desk.limits)
        aside.close()


def asking(*values: float, **fields: Any) -> dict[str, Any]:
    """The JSON of a request with one row for each value."""
    tensor = {
        "name": "x",
        "shape": [len(values), 4],
        "datatype": "FP32",
        "data": rows_of(*values).ravel().tolist(),
    }
    return {"inputs": [tensor], **fields}


def bearer(token: str) -> dict[str, str]:
    """The header that shows a token."""
    return {"authorization": f"Bearer {token}"}


def error_of(response: httpx.Response) -> str:
    """The sentence of an error, which is all that its body holds."""
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    sentence: str = document["error"]
    assert sentence
    return sentence


async def direct(
    door: InferenceDoor,
    path: bytes,
    *messages: Message,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> list[Message]:
    """Call the door as a server does; what it sent."""
    sent: list[Message] = []
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "raw_path": path,
        "headers": list(headers),
        "scheme": "http",
    }
    await door(scope, receive, send)
    return sent


# Inference


async def test_an_inference_is_answered() -> None:
    """The answer is the protocol's, and says who gave it in body and headers."""
    with house() as home:
        await home.plane.serve(snapshot_of(5))
        response = await home.post(json=asking(1.0, 2.0, id="r1"))
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {
            "id": "r1",
            "model_name": "m",
            "model_version": "1",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [101.0, 102.0]}],
        }
        assert response.headers["x-model-version"] == "1"
        assert response.headers["x-variant"] == "default"
        assert response.headers["x-revision"] == "5"
        assert home.plane.worker.signer is not None
        facts = home.plane.worker.signer.read(response.headers["x-prediction-id"])
        assert (facts.version, facts.reason) == (1, Reason.STATIC)


async def test_binary_tensors_go_both_ways() -> None:
    """JSON part and tensors are told apart by the header, in the request and in the answer."""
    document = asking(1.0, 2.0, parameters={"binary_data_output": True})
    tail = rows_of(1.0, 2.0).tobytes()
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": len(tail)}
    head = orjson.dumps(document)
    with house() as home:
        await home.plane.serve(snapshot_of())
        headers = {"inference-header-content-length": str(len(head))}
        response = await home.post(content=head + tail, headers=headers)
        assert response.headers["content-type"] == "application/octet-stream"
        split = int(response.headers["inference-header-content-length"])
        assert json.loads(response.content[:split])["model_version"] == "1"
        assert np.frombuffer(response.content[split:], "<f4").tolist() == [101.0, 102.0]
        assert "x-prediction-id" in response.headers


@pytest.mark.parametrize("kind", [None, "application/octet-stream", "text/plain"])
async def test_the_stated_type_of_a_request_decides_nothing(kind: str | None) -> None:
    """Clients state any type for JSON, or none."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        headers = {} if kind is None else {"content-type": kind}
        response = await home.post(content=orjson.dumps(asking(1.0)), headers=headers)
        assert response.status_code == 200


async def test_many_callers_at_once_each_get_their_own() -> None:
    """Requests that share runs are answered with their own rows."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        async with home.client() as client:
            asked = (client.post(INFER, json=asking(float(i))) for i in range(50))
            responses = await asyncio.gather(*asked)
        got = [response.json()["outputs"][0]["data"] for response in responses]
        assert got == [[100.0 + i] for i in range(50)]
        assert len({response.headers["x-prediction-id"] for response in responses}) == 50


async def test_a_versioned_path_pins() -> None:
    """The version in the path answers, and an unnamed one is not found."""
    with house({ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}) as home:
        await home.plane.serve(snapshot_of(models={"m": model_of(1, 2, 3, loaded=(2,))}))
        response = await home.post("/v2/models/m/versions/2/infer", json=asking(1.0))
        assert response.json()["model_version"] == "2"
        assert response.json()["outputs"][0]["data"] == [201.0]
        for version in (3, 9):
            refused = await home.post(f"/v2/models/m/versions/{version}/infer", json=asking(1.0))
            assert refused.status_code == 404
            error_of(refused)


async def test_a_version_that_is_named_and_not_ready_is_503() -> None:
    """The caller may try again."""
    with house({ONE: FakeEngine(), TWO: EngineFailed("It is broken.")}) as home:
        await home.plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        response = await home.post("/v2/models/m/versions/2/infer", json=asking(1.0))
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        error_of(response)


class Pair(FakeEngine):
    """Takes two inputs and adds them."""

    def __init__(self) -> None:
        specs = tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, 4)) for name in ("x", "z"))
        outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)
        super().__init__(signature=Signature(inputs=specs, outputs=outputs, batched=True))

    def run(self, tensors: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        return [tensors["x"] + tensors["z"]]


async def test_a_pinned_request_is_read_by_the_signature_of_its_version() -> None:
    """A version with more inputs than the default can be called by its number."""
    with house({ONE: FakeEngine(), TWO: Pair()}) as home:
        await home.plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        document = asking(1.0)
        document["inputs"].append({**document["inputs"][0], "name": "z"})
        response = await home.post("/v2/models/m/versions/2/infer", json=document)
        assert response.json()["outputs"][0]["data"] == [2.0, 0.0, 0.0, 0.0]
        rows = {"instances": [{"x": [1, 0, 0, 0], "z": [2, 0, 0, 0]}]}
        predicted = await home.post("/v1/models/m/versions/2:predict", json=rows)
        assert predicted.json() == {"predictions": [[3.0, 0.0, 0.0, 0.0]]}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="broken"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"\xff\xfe", id="no-utf-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(orjson.dumps({"inputs": []}), id="no-inputs"),
        pytest.param(orjson.dumps(asking(1.0, outputs=[{"name": "nope"}])), id="output"),
        pytest.param(
            orjson.dumps({"inputs": [{**asking(1.0)["inputs"][0], "shape": [1, 3]}]}), id="shape"
        ),
    ],
)
async def test_a_bad_request_is_400_with_a_sentence(body: bytes) -> None:
    """Whatever is wrong with a body, the caller is told in one short sentence."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        response = await home.post(content=body)
        assert response.status_code == 400
        assert len(error_of(response)) < 300


async def test_what_the_pipeline_refuses_says_for_whom() -> None:
    """A request that was assigned and refused carries the identity headers."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        document = asking(1.0)
        document["inputs"][0]["datatype"] = "FP64"
        response = await home.post(json=document)
        assert response.status_code == 400
        assert "must be FP32" in error_of(response)
        assert response.headers["x-model-version"] == "1"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(EngineFailed("The model failed to run on this input."), id="engine"),
        pytest.param(RuntimeError("/onnxruntime_src/core.cc:42"), id="unforeseen"),
    ],
)
async def test_a_failed_run_is_500_and_says_which_version(error: Exception) -> None:
    """The identity headers stand on failures too, and nothing of the inside is told."""
    engine = FailingEngine(error)
    with house({ONE: engine}) as home:
        await home.plane.serve(snapshot_of())
        response = await home.post(json=asking(engine.poison))
        assert response.status_code == 500
        assert error_of(response) == "The model failed to run on this input."
        assert response.headers["x-model-version"] == "1"
        assert response.headers["x-variant"] == "default"
        assert "x-prediction-id" in response.headers


class NanEngine(FakeEngine):
    """Answers NaN."""

    def run(self, tensors: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        return [np.full((len(tensors["x"]), 1), np.nan, np.float32)]


@pytest.mark.parametrize(
    ("nonfinite", "path", "body", "text"),
    [
        pytest.param("literal", INFER, asking(1.0), b"[NaN]", id="v2-literal"),
        pytest.param("null", INFER, asking(1.0), b"[null]", id="v2-null"),
        pytest.param(
            "literal",
            "/v1/models/m:predict",
            {"instances": [[0] * 4]},
            b"[[NaN]]",
            id="v1-literal",
        ),
    ],
)
async def test_not_a_number_is_written_as_the_settings_say(
    nonfinite: Nonfinite, path: str, body: dict[str, Any], text: bytes
) -> None:
    """JSON has no NaN; the setting decides how it is spelled."""
    with house({ONE: NanEngine()}, nonfinite=nonfinite) as home:
        await home.plane.serve(snapshot_of())
        response = await home.post(path, json=body)
        assert response.status_code == 200
        assert text in response.content


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(INFER, asking(1.0), id="v2"),
        pytest.param("/v1/models/m:predict", {"instances": [[0] * 4]}, id="v1"),
    ],
)
async def test_an_answer_that_cannot_be_written_still_says_who_gave_it(
    path: str, body: dict[str, Any]
) -> None:
    """A failure after the run is told with the identity headers of the version that ran."""
    with house({ONE: NanEngine()}, nonfinite="error") as home:
        await home.plane.serve(snapshot_of())
        response = await home.post(path, json=body)
        assert response.status_code == 500
        assert "not finite" in error_of(response)
        assert response.headers["x-model-version"] == "1"
        assert "x-prediction-id" in response.headers


async def test_a_spent_deadline_is_503() -> None:
    """`timeout` counts from the arrival, in microseconds; the run never happens."""
    engine = SlowEngine()
    with house({ONE: engine}, pool=THREADED) as home:
        await home.plane.serve(snapshot_of())
        engine.hold()
        async with home.client() as client:
            first = asyncio.create_task(client.post(INFER, json=asking(1.0)))
            await until(engine.entered.is_set)
            late = asyncio.create_task(
                client.post(INFER, json=asking(2.0, parameters={"timeout": 1_000}))
            )
            await until(lambda: home.plane.pipeline.in_flight == 2)
            home.plane.clock.advance(1.0)
            engine.release()
            response = await late
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert "time ran out" in error_of(response)
            assert (await first).status_code == 200


async def test_a_model_that_moves_while_a_body_is_read_is_met_as_it_is_then() -> None:
    """A version that is let go during a slow upload costs that request nothing."""
    with house({ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}) as home:
        models = {"m": model_of(1, 2)}
        endpoints = {"e": endpoint_of(serve_rule(2))}
        await home.plane.serve(snapshot_of(1, models=models, endpoints=endpoints))
        body = asyncio.Event()
        sent: list[Message] = []

        async def receive() -> Message:
            await body.wait()
            return {"type": "http.request", "body": orjson.dumps(asking(1.0))}

        async def send(message: Message) -> None:
            sent.append(message)

        path = b"/v2/models/e/infer"
        scope = {"type": "http", "method": "POST", "raw_path": path, "headers": []}
        request = asyncio.create_task(home.door(scope, receive, send))
        await asyncio.sleep(0)
        await home.plane.serve(snapshot_of(2, models=models, endpoints={"e": endpoint_of()}))
        assert home.plane.states() == {ONE: "ready"}
        body.set()
        await request
        assert sent[0]["status"] == 200
        assert json.loads(sent[1]["body"])["outputs"][0]["data"] == [101.0]


# Variants


async def test_a_unit_in_the_header_keeps_its_variant() -> None:
    """The header that the split names decides, and the answer says which variant."""
    with house({ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}) as home:
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        await home.plane.serve(snapshot_of(models={"m": model_of(1, 2)}, endpoints=endpoints))
        variants: dict[str, str] = {}
        for unit in [f"u{i}" for i in range(30)] * 2:
            headers = {"X-Unit-Id": unit}
            response = await home.post("/v2/models/e/infer", json=asking(0.0), headers=headers)
            variant = response.headers["x-variant"]
            assert variants.setdefault(unit, variant) == variant
            version = {"old": "1", "new": "2"}[variant]
            assert response.headers["x-model-version"] == version
            assert response.json()["model_name"] == "e"
        assert set(variants.values()) == {"old", "new"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 401, id="nobody"),
        pytest.param(bearer("unknown"), 401, id="unknown"),
        pytest.param({"authorization": f"Basic {FORCE_TOKEN}"}, 401, id="scheme"),
        pytest.param(bearer(READ_TOKEN), 403, id="read"),
        pytest.param(bearer(WRITE_TOKEN), 403, id="write"),
        pytest.param(bearer(FORCE_TOKEN), 200, id="force"),
    ],
)
async def test_a_variant_is_forced_only_by_who_may(headers: dict[str, str], status: int) -> None:
    """The forced variant needs a token with the right `force`."""
    with house({ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}) as home:
        endpoints = {"e": endpoint_of(split_rule(HALVES))}
        await home.plane.serve(snapshot_of(models={"m": model_of(1, 2)}, endpoints=endpoints))
        forced = {**headers, "x-force-variant": "new"}
        response = await home.post("/v2/models/e/infer", json=asking(1.0), headers=forced)
        assert response.status_code == status
        if status == 200:
            assert response.headers["x-variant"] == "new"
            assert response.json()["outputs"][0]["data"] == [201.0]
        else:
            error_of(response)
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"


async def test_two_authorizations_are_none() -> None:
    """A request that shows two tokens shows none."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        value = f"Bearer {FORCE_TOKEN}".encode()
        headers = [
            (b"x-force-variant", b"default"),
            (b"authorization", value),
            (b"authorization", value),
        ]
        body = {"type": "http.request", "body": orjson.dumps(asking(1.0))}
        sent = await direct(home.door, INFER.encode(), body, headers=headers)
        assert sent[0]["status"] == 401


# V1


async def test_predict_answers_in_the_form_of_its_request() -> None:
    """Rows get predictions, columns get outputs."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        rows = await home.post("/v1/models/m:predict", json={"instances": [[1, 0, 0, 0]]})
        columns = await home.post("/v1/models/m:predict", json={"inputs": [[2, 0, 0, 0]]})
        assert rows.json() == {"predictions": [[101.0]]}
        assert columns.json() == {"outputs": [[102.0]]}
        assert rows.headers["x-model-version"] == "1"


async def test_predict_takes_a_version_or_a_label() -> None:
    """A label is an alias of the model; one that is not there is not found."""
    with house({ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}) as home:
        models = {"m": model_of(1, 2, aliases={"canary": 2})}
        await home.plane.serve(snapshot_of(models=models))
        body = {"instances": [[1, 0, 0, 0]]}
        for path in ("versions/2", "labels/canary"):
            response = await home.post(f"/v1/models/m/{path}:predict", json=body)
            assert response.json() == {"predictions": [[201.0]]}
        unknown = await home.post("/v1/models/m/labels/nope:predict", json=body)
        assert unknown.status_code == 404
        error_of(unknown)


async def test_predict_refuses_a_bad_body() -> None:
    """Errors of V1 have the same one form."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        response = await home.post("/v1/models/m:predict", json={"instances": [["a"]]})
        assert response.status_code == 400
        error_of(response)


# Health and documents


async def test_health_follows_the_worker() -> None:
    """Live from the start; ready once what is configured is served; not ready when stopping."""
    with house() as home:
        assert (await home.get("/v2/health/live")).json() == {"live": True}
        before = await home.get("/v2/health/ready")
        assert (before.status_code, before.json()) == (503, {"live": True, "ready": False})
        await home.plane.serve(snapshot_of())
        after = await home.get("/v2/health/ready")
        assert (after.status_code, after.json()) == (200, {"live": True, "ready": True})
        home.plane.worker.stopping = True
        stopping = await home.get("/v2/health/ready")
        assert (stopping.status_code, stopping.headers["connection"]) == (503, "close")
        served = await home.post(json=asking(1.0))
        assert (served.status_code, served.headers["connection"]) == (200, "close")


async def test_readiness_of_a_model_and_of_a_version() -> None:
    """Ready is 200, known and not ready is 503, unknown is 404."""
    with house({ONE: FakeEngine(), TWO: EngineFailed("It is broken.")}) as home:
        await home.plane.serve(snapshot_of(models={"m": model_of(1, 2, loaded=(2,))}))
        expected = {
            "/v2/models/m/ready": (200, {"name": "m", "ready": True}),
            "/v2/models/m/versions/1/ready": (200, {"name": "m", "ready": True}),
            "/v2/models/m/versions/2/ready": (503, {"name": "m", "ready": False}),
            "/v1/models/m": (200, {"name": "m", "ready": True}),
        }
        for path, (status, document) in expected.items():
            response = await home.get(path)
            assert (response.status_code, response.json()) == (status, document)
        for path in ("/v2/models/nope/ready", "/v2/models/m/versions/3/ready"):
            assert (await home.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("path", "holds"),
    [
        pytest.param("/", {"status": "alive"}, id="alive"),
        pytest.param("/v2", {"name": "tiltyard"}, id="server"),
        pytest.param("/v2/models", {"models": ["m"]}, id="models"),
        pytest.param("/v1/models", {"models": ["m"]}, id="v1-models"),
        pytest.param("/v2/models/m", {"name": "m", "versions": ["1"]}, id="metadata"),
        pytest.param("/v2/models/m/config", {"max_batch_size": 64}, id="config"),
    ],
)
async def test_documents_are_json(path: str, holds: dict[str, Any]) -> None:
    """Every description is a JSON document of exactly that type, and never compressed."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        response = await home.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert "content-encoding" not in response.headers
        assert response.json().items() >= holds.items()


async def test_statistics_name_the_endpoint_that_was_asked_for() -> None:
    """A load generator finds the rows of the name that it called."""
    with house() as home:
        await home.plane.serve(snapshot_of(endpoints={"e": endpoint_of()}))
        await home.post("/v2/models/e/infer", json=asking(1.0, 2.0))
        every = (await home.get("/v2/models/stats")).json()["model_stats"]
        one = (await home.get("/v2/models/e/versions/1/stats")).json()["model_stats"]
        assert [row["name"] for row in every] == ["m"]
        assert [(row["name"], row["version"], row["inference_count"]) for row in one] == [
            ("e", "1", 2)
        ]


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        b"/v2/models/%2e%2e%2fetc/infer",
        b"/v2/models/m%00/infer",
        b"/v2/models/%ff/infer",
        b"/v2/models/%252f/infer",
        b"/v2/models/m%2Finfer",
        b"/v2/models/nope/infer",
        b"http://evil/v2",
        b"*",
        b"/nope",
    ],
)
async def test_a_path_that_is_none_is_404(path: bytes) -> None:
    """The raw path decides; the answer repeats nothing that could harm a terminal or a page."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        sent = await direct(home.door, path, {"type": "http.request", "body": b"{}"})
        assert sent[0]["status"] == 404
        document = json.loads(sent[1]["body"])
        assert document["error"].isprintable()


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        pytest.param("GET", INFER, "POST", id="get-infer"),
        pytest.param("HEAD", INFER, "POST", id="head-infer"),
        pytest.param("POST", "/v2", "GET, HEAD", id="post-server"),
        pytest.param("DELETE", "/v2/models/m", "GET, HEAD", id="delete-model"),
        pytest.param("TRACE", "/v2", "GET, HEAD", id="trace"),
        pytest.param("OPTIONS", INFER, "POST", id="options"),
        pytest.param("GET", "/v2/repository/index", "POST", id="get-index"),
    ],
)
async def test_a_wrong_method_is_405_with_the_right_ones(
    method: str, path: str, allow: str
) -> None:
    """The answer says what is allowed."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        async with home.client() as client:
            response = await client.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allow)
        if method != "HEAD":
            assert error_of(response) == "Method Not Allowed"


@pytest.mark.parametrize("method", ["get", "CONNECT", "X" * 40])
async def test_any_other_method_is_405(method: str) -> None:
    """Methods are exact, and a made-up one is not a label of its own in any metric."""
    with house() as home:
        sent = await direct(home.door, b"/v2", method=method)
        assert sent[0]["status"] == 405
        methods = {
            dict(series.attributes)["http.request.method"]
            for series in home.plane.cells.collect()
            if series.instrument is REQUEST_DURATION
        }
        assert methods == {"_OTHER"}


async def test_head_is_get_without_a_body() -> None:
    """The headers are those of GET, the length included."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        async with home.client() as client:
            got, head = await client.get("/v2/models/m"), await client.head("/v2/models/m")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == got.headers


# Bodies


async def test_a_body_that_is_too_large_is_413_and_closes() -> None:
    """Told by its length or found while reading, a large body ends the connection."""
    with house(limits=Limits(body_bytes=1_000)) as home:
        await home.plane.serve(snapshot_of())
        stated = await home.post(content=b"x" * 1_001)

        async def pieces() -> Any:
            for _ in range(100):
                yield b"x" * 100

        unstated = await home.post(content=pieces())
        for response in (stated, unstated):
            assert (response.status_code, response.headers["connection"]) == (413, "close")
            assert "1000 bytes" in error_of(response)
        home.plane.worker.stopping = True
        again = await home.post(content=b"x" * 1_001)
        assert again.headers.get_list("connection") == ["close"]


@pytest.mark.parametrize("path", [INFER, "/v1/models/m:predict"])
async def test_a_bomb_is_413(path: str) -> None:
    """What unpacks to more than a body may hold is refused."""
    with house(limits=Limits(body_bytes=100_000)) as home:
        await home.plane.serve(snapshot_of())
        bomb = gzip.compress(bytes(10_000_000))
        response = await home.post(path, content=bomb, headers={"content-encoding": "gzip"})
        assert response.status_code == 413
        error_of(response)


async def test_a_compressed_request_is_read() -> None:
    """A gzip body is as good as a plain one, with its header length counted unpacked."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        body = orjson.dumps(asking(1.0))
        headers = {
            "content-encoding": "gzip",
            "inference-header-content-length": str(len(body)),
        }
        response = await home.post(content=gzip.compress(body), headers=headers)
        assert response.json()["outputs"][0]["data"] == [101.0]


async def test_an_unknown_coding_is_415() -> None:
    """The answer names the codings that are read."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        response = await home.post(content=b"x", headers={"content-encoding": "br"})
        assert response.status_code == 415
        assert response.headers["accept-encoding"] == "gzip, deflate"
        error_of(response)


@pytest.mark.parametrize("path", [INFER, "/v1/models/m:predict", "/v2/repository/index"])
async def test_a_form_is_415(path: str) -> None:
    """Nobody reads a form here."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        response = await home.post(path, files={"file": b"x"})
        assert response.status_code == 415
        error_of(response)


@pytest.mark.parametrize("value", ["-1", "x", "999999", "1, 1", "+3"])
async def test_a_wrong_header_length_is_400(value: str) -> None:
    """The length of the JSON part must be a count within the body."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        headers = {"inference-header-content-length": value}
        response = await home.post(content=orjson.dumps(asking(1.0)), headers=headers)
        assert response.status_code == 400
        error_of(response)


async def test_only_answers_of_inferences_are_compressed() -> None:
    """Some clients ask for gzip on every call and unpack inferences only."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        headers = {"accept-encoding": "gzip"}
        async with home.client() as client:
            large = await client.post(INFER, json=asking(*[1.0] * 1_000), headers=headers)
            error = await client.post(INFER, json={"inputs": "x" * 5_000}, headers=headers)
            stats = await client.get("/v2/models/stats", headers=headers)
            plain = await client.post(
                INFER, json=asking(*[1.0] * 1_000), headers={"accept-encoding": "identity"}
            )
        assert large.headers["content-encoding"] == "gzip"
        assert large.json()["outputs"] == plain.json()["outputs"]
        for response in (error, stats, plain):
            assert "content-encoding" not in response.headers


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([], id="at-once"),
        pytest.param([{"type": "http.request", "body": b"{", "more_body": True}], id="half-way"),
    ],
)
async def test_a_caller_who_leaves_while_sending_costs_nothing(messages: list[Message]) -> None:
    """Nothing is run, nothing is sent, nothing stays in flight."""
    engine = FakeEngine()
    with house({ONE: engine}) as home:
        await home.plane.serve(snapshot_of())
        engine.runs.clear()
        assert await direct(home.door, INFER.encode(), *messages) == []
        assert (engine.runs, home.plane.pipeline.in_flight) == ([], 0)


async def test_a_caller_who_is_cancelled_while_waiting_harms_nobody() -> None:
    """The run goes on, its answer is dropped, and batch-mates have theirs."""
    engine = SlowEngine()
    with house({ONE: engine}, pool=THREADED) as home:
        await home.plane.serve(snapshot_of())
        engine.hold()
        async with home.client() as client:
            first = asyncio.create_task(client.post(INFER, json=asking(0.0)))
            await until(engine.entered.is_set)
            gone = asyncio.create_task(client.post(INFER, json=asking(1.0)))
            mate = asyncio.create_task(client.post(INFER, json=asking(2.0)))
            await until(lambda: home.plane.pipeline.in_flight == 3)
            gone.cancel()
            engine.release()
            assert (await mate).json()["outputs"][0]["data"] == [2.0]
            assert (await first).status_code == 200
        assert (home.plane.pipeline.in_flight, home.plane.leases()) == (0, {ONE: 0})


# The repository


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 403, id="nobody"),
        pytest.param(bearer("unknown"), 403, id="unknown"),
        pytest.param(bearer(READ_TOKEN), 403, id="read"),
        pytest.param(bearer(FORCE_TOKEN), 403, id="force"),
        pytest.param(bearer(WRITE_TOKEN), 200, id="write"),
    ],
)
async def test_only_who_may_write_loads_and_unloads(
    verb: str, headers: dict[str, str], status: int
) -> None:
    """Changing the repository needs the scope `write`, and is done in the name of its holder."""
    with house() as home:
        response = await home.post(f"/v2/repository/models/m/{verb}", headers=headers)
        assert response.status_code == status
        asked = [(verb, "m", None, "write")] if status == 200 else []
        assert home.repository.asked == asked


@pytest.mark.parametrize(
    ("body", "status", "number"),
    [
        pytest.param(b"", 200, None, id="empty"),
        pytest.param(b"{}", 200, None, id="object"),
        pytest.param(b'{"parameters":{"version":"2"}}', 200, 2, id="version"),
        pytest.param(b'{"parameters":{"version":2}}', 200, 2, id="version-number"),
        pytest.param(b'{"parameters":{"unload_dependents":false}}', 200, None, id="dependents"),
        pytest.param(b'{"parameters":{"version":"latest"}}', 400, None, id="no-version"),
        pytest.param(b'{"parameters":{"config":"{}"}}', 501, None, id="config"),
        pytest.param(b'{"parameters":{"file:1/model.onnx":"AA"}}', 501, None, id="file"),
        pytest.param(b'{"parameters":[1]}', 400, None, id="no-object"),
        pytest.param(b"[]", 400, None, id="list"),
        pytest.param(b"{", 400, None, id="broken"),
    ],
)
async def test_a_load_names_at_most_a_version(body: bytes, status: int, number: int | None) -> None:
    """Models come from the store; nothing of one can be sent along."""
    with house() as home:
        path = "/v2/repository/models/m/load"
        response = await home.post(path, content=body, headers=bearer(WRITE_TOKEN))
        assert response.status_code == status
        asked = [("load", "m", number, "write")] if status == 200 else []
        assert home.repository.asked == asked


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(Conflict("An alias names it."), 409, id="conflict"),
        pytest.param(StoreUnavailable("Redis is away."), 503, id="away"),
        pytest.param(EngineFailed("It is broken."), 500, id="broken"),
        pytest.param(OSError("/secret/path"), 500, id="unforeseen"),
    ],
)
async def test_what_the_repository_refuses_is_told(error: Any, status: int) -> None:
    """Its errors have statuses too, and what nobody foresaw stays inside."""
    with house() as home:
        home.repository.error = error
        path = "/v2/repository/models/m/unload"
        response = await home.post(path, headers=bearer(WRITE_TOKEN))
        assert response.status_code == status
        assert "secret" not in error_of(response)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        pytest.param(b"", 2, id="empty"),
        pytest.param(b"{}", 2, id="object"),
        pytest.param(b'{"ready":false}', 2, id="all"),
        pytest.param(b'{"ready":true}', 1, id="ready"),
    ],
)
async def test_the_index_lists_versions(body: bytes, count: int) -> None:
    """All of them, or those that are ready; clients send an empty body."""
    with house() as home:
        response = await home.post("/v2/repository/index", content=body)
        assert [entry["name"] for entry in response.json()] == ["m"] * count


# Telemetry


async def test_each_request_is_measured_by_its_route() -> None:
    """Names of models, versions and junk are no labels."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        await home.post(json=asking(1.0))
        await home.post("/v2/models/m/versions/1/infer", json=asking(1.0))
        await home.get("/v2/models/nope")
        await home.get("/nope")
        seen = {
            (labels["http.route"], labels["http.response.status_code"], sum(series.counts))
            for series in home.plane.cells.collect()
            if series.instrument is REQUEST_DURATION
            for labels in (dict(series.attributes),)
        }
        assert seen == {
            ("/v2/models/{model_name}/infer", 200, 2),
            ("/v2/models/{model_name}", 404, 1),
            ("_OTHER", 404, 1),
        }


TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "continued"),
    [
        pytest.param([(b"traceparent", TRACE)], True, id="one"),
        pytest.param([(b"traceparent", TRACE)] * 2, False, id="two"),
        pytest.param([(b"traceparent", TRACE + b"0")], False, id="junk"),
        pytest.param([(b"baggage", b"x" * 1_000_000)], False, id="baggage"),
        pytest.param([(b"range", b"bytes=0-,0-"), (b"if-match", b"*")], False, id="others"),
    ],
)
async def test_a_trace_is_continued_if_it_is_one(
    headers: list[tuple[bytes, bytes]], continued: bool
) -> None:
    """Exactly one well-formed traceparent is followed; junk in headers harms nothing."""
    with house() as home:
        await home.plane.serve(snapshot_of())
        body = {"type": "http.request", "body": orjson.dumps(asking(1.0))}
        sent = await direct(home.door, INFER.encode(), body, headers=headers)
        assert sent[0]["status"] == 200
        (record,) = home.plane.recorder.drain()
        assert (record.trace is not None) is continued
