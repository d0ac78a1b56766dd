"""Bad inference bodies from outside: each costs itself only, and is told in one clean sentence."""

import asyncio
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from onnx import ModelProto

from tests.e2e.gateways import ROOT, Gateway, eventually, resident_mib
from tests.onnx_models import failing, identity, linear, root, save, swelling, two_inputs
from tests.otlp_receiver import Receiver, plain

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

LENGTH = "Inference-Header-Content-Length"
INTERNALS = re.compile(
    r"/|\\|\.py\b|Traceback|0x[0-9a-f]{6}|Error\b|onnx|msgspec|numpy|orjson|uvicorn|starlette|NoneType",
    re.IGNORECASE,
)
MODELS: dict[str, ModelProto] = {
    **{f"same-{name.lower()}": identity(name, ("N", "M")) for name in ("FP16", "FP32", "FP64")},
    **{f"same-{name.lower()}": identity(name, ("N", "M")) for name in ("INT64", "UINT8", "BOOL")},
    "same-bytes": identity("BYTES", ("N", "M")),
    "square": identity("FP32", ("N", "N")),
    "four": linear(),
    "pair": two_inputs(),
    "lenient": identity("FP32", ("N", "M")),
    "root": root(),
    "swelling": swelling(),
    "failing": failing(),
}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bad:
    """What is sent, and the status that must come back."""

    body: Callable[[], bytes]
    model: str = "same-fp32"
    status: int = 400
    headers: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A collector."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module", params=["fast", "asgi"])
def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    receiver: Receiver,
) -> Iterator[Gateway]:
    """One gateway of each door for all that is sent here."""
    folder = tmp_path_factory.mktemp("bad-input")
    for name, model in MODELS.items():
        version = folder / "models" / name / "1"
        version.mkdir(parents=True)
        save(model, version)
    (folder / "models" / "lenient" / "model.toml").write_text("allow_nonfinite = true")
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "TILTYARD_HTTP_DOOR": request.param,
    }
    running = Gateway(folder / "state", folder / "models", env)
    yield running.start()
    running.close()


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    """Connections to the inference port."""
    with httpx.Client(base_url=gateway.url, timeout=60) as speaking:
        yield speaking


def tensor(data: Any, shape: Any, datatype: Any = "FP32", **more: Any) -> dict[str, Any]:
    """One input."""
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}


def json_of(*inputs: dict[str, Any], **more: Any) -> Callable[[], bytes]:
    """A JSON request."""
    return lambda: orjson.dumps({"inputs": inputs, **more}, option=orjson.OPT_NON_STR_KEYS)


def literal(data: str, datatype: str = "FP32", shape: str = "[1,1]", more: str = "") -> Bad:
    """A request whose data is the text given, to the model of its datatype."""
    text = (
        f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]{more}}}'
    )
    return Bad(text.encode, f"same-{datatype.lower()}")


def binary(
    payload: bytes,
    shape: Any,
    datatype: str = "FP32",
    *,
    size: Any = None,
    length: list[str] | None = None,
    model: str | None = None,
) -> Bad:
    """A request with one binary tensor; `length` replaces the header's values."""
    stated = len(payload) if size is None else size
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": datatype,
                    "shape": shape,
                    "parameters": {"binary_data_size": stated},
                }
            ]
        }
    )
    values = [str(len(head))] if length is None else length
    headers = [(LENGTH, value) for value in values]
    return Bad(lambda: head + payload, model or f"same-{datatype.lower()}", headers=headers)


def with_status(bad: Bad, status: int) -> Bad:
    """The same, expecting another status."""
    return Bad(bad.body, bad.model, status, bad.headers)


ONE = np.float32(1.5).tobytes()
GOOD = orjson.dumps({"inputs": [tensor([1], [1, 1])]})
FIRST = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":'
MIB = 1024 * 1024

BAD = {
    "J1 100,000 brackets": Bad(lambda: b"[" * 100_000),
    "J1 in data": Bad(lambda: FIRST + b"[" * 100_000),
    "J1 closed": Bad(lambda: FIRST + b"[" * 50_000 + b"]" * 50_000 + b"}]}"),
    "J2 NaN": literal("[NaN]"),
    "J2 Infinity": literal("[-Infinity]"),
    "J2 1e999": literal("[1e999]", "FP64"),
    "J3 5000 digits": literal(f"[{'1' * 5000}]"),
    "J3 5000 digits in INT64": literal(f"[{'1' * 5000}]", "INT64"),
    "J4 4000 digits": literal(f"[{'1' * 4000}]"),
    "J4 10^40 in INT64": literal(f"[1{'0' * 40}]", "INT64"),
    "J5 300 in UINT8": literal("[300]", "UINT8"),
    "J5 -1 in UINT8": literal("[-1]", "UINT8"),
    "J6 1e300 in FP32": literal("[1e300]"),
    "J7 null": literal("[null]"),
    "J8 text": literal('["3.5"]'),
    "J8 1.9 in INT64": literal("[1.9]", "INT64"),
    "J8 true in FP32": literal("[true]"),
    "J9 ragged": literal("[[1,2],[3]]", shape="[2,2]"),
    "J9 object": literal('[{"a":1}]'),
    "J10 BYTES": literal('["\\ud800"]', "BYTES"),
    "J10 id": literal("[1]", more=',"id":"\\ud800"'),
    "J10 name": Bad(lambda: GOOD.replace(b'"x"', b'"\\ud800"')),
    "J12 UTF-16": Bad(lambda: GOOD.decode().encode("utf-16")),
    "J12 UTF-32": Bad(lambda: GOOD.decode().encode("utf-32")),
    "J12 byte order mark": Bad(lambda: b"\xef\xbb\xbf" + GOOD),
    "J14 100,000 inputs": Bad(
        lambda: b'{"inputs":[' + b",".join([orjson.dumps(tensor([1], [1]))] * 100_000) + b"]}"
    ),
    "J14 10^6 inputs": Bad(
        lambda: b'{"inputs":[' + b",".join([orjson.dumps(tensor([1], [1]))] * 1_000_000) + b"]}",
        status=413,
    ),
    "J14 10^6 outputs": Bad(
        lambda: GOOD[:-1] + b',"outputs":[' + b",".join([b'{"name":"y"}'] * 1_000_000) + b"]}"
    ),
    "J14 output twice": Bad(json_of(tensor([1], [1, 1]), outputs=[{"name": "y"}, {"name": "y"}])),
    "J14 input twice": Bad(json_of(tensor([1] * 4, [1, 4]), tensor([1] * 4, [1, 4])), "pair"),
    "J15 too few": literal("[1]", shape="[2,2]"),
    "J15 too many": literal("[1,2,3]", shape="[1,1]"),
    "J15 one in an empty tensor": literal("[1]", shape="[0,1]"),
    "J15 shape of a scalar": literal("[1]", shape="[]"),
    "J16 JSON one byte above its cap": Bad(
        lambda: GOOD + b" " * (16 * MIB + 1 - len(GOOD)), status=413
    ),
    "J16 body one byte above its cap": Bad(lambda: b" " * (64 * MIB + 1), status=413),
    "J17 reserved": Bad(json_of(tensor([1], [1, 1]), parameters={"sequence_id": 1})),
    "J17 of the server": Bad(json_of(tensor([1], [1, 1]), parameters={"triton_x": 1})),
    "J17 10,000 keys": Bad(
        json_of(tensor([1], [1, 1]), parameters={f"k{n}": n for n in range(10_000)})
    ),
    "J17 nested": Bad(json_of(tensor([1], [1, 1]), parameters={"a": {"b": 1}})),
    "J18 1 MB": Bad(json_of(tensor([1], [1, 1]), id="i" * 1_000_000)),
    "J18 CRLF": Bad(json_of(tensor([1], [1, 1]), id="a\r\nX-Admin: 1")),
    "J18 escape": Bad(json_of(tensor([1], [1, 1]), id="\x1b[31m")),
    "J18 lookup": Bad(json_of(tensor([1], [1, 1]), id="${jndi:ldap://x} ")),
    **{
        f"B1 {value or 'empty'}": binary(ONE, [1, 1], length=[value])
        for value in ("-1", "99999999999", "0x10", "1e3", "+1", "1 2", "999", "")
    },
    "B1 missing": binary(ONE, [1, 1], length=[]),
    "B1 twice": binary(ONE, [1, 1], length=["95", "95"]),
    "B2 negative": binary(ONE, [1, 1], size=-4),
    "B2 float": binary(ONE, [1, 1], size=4.0),
    "B2 more than is left": binary(ONE, [1, 2], size=8),
    "B2 bytes behind": binary(ONE + b"x", [1, 1], size=4),
    "B3 elements overflow": binary(ONE, [2**4, 2**60 + 2]),
    "B3 bytes overflow": binary(ONE, [2**2, 2**60 + 2]),
    "B3 product of 2^66": binary(b"", [2**33, 2**33], size=0),
    "B4 negative": binary(ONE, [-1, 1]),
    "B4 bool": binary(ONE, [True, 1]),
    "B4 float": binary(ONE, [1.0, 1]),
    "B4 text": binary(ONE, ["1", 1]),
    "B4 65 dimensions": binary(ONE, [1] * 65),
    "B4 2^63": binary(ONE, [2**63, 1]),
    "B5 fixed extent": binary(ONE * 5, [1, 5], model="four"),
    "B5 one symbol, two extents": binary(ONE * 6, [2, 3], model="square"),
    "B5 rows of two inputs": Bad(
        json_of(tensor([1] * 4, [1, 4]), {**tensor([1] * 8, [2, 4]), "name": "z"}), "pair"
    ),
    "B6 FP64 for FP32": binary(ONE * 2, [1, 1], "FP64", model="same-fp32"),
    "B6 FP8": binary(b"x", [1, 1], "FP8", model="same-fp32"),
    "B6 BF16": binary(b"xx", [1, 1], "BF16", model="same-fp32"),
    "B6 lower case": binary(ONE, [1, 1], "fp32", model="same-fp32"),
    "B7 length of 2^32-1": binary(b"\xff\xff\xff\xffx", [1, 1], "BYTES"),
    "B7 cut length": binary(b"\x01\x00", [1, 1], "BYTES"),
    "B7 10^7 empty elements for one": binary(bytes(40_000_000), [1, 1], "BYTES"),
    "B7 fewer than the shape": binary(bytes(4), [1, 2], "BYTES"),
    "B8 a BOOL of 5": binary(b"\x05", [1, 1], "BOOL"),
    "B9 odd length": binary(b"abc", [1, 1]),
    "B10 NaN": binary(np.float32(np.nan).tobytes(), [1, 1]),
    "B10 infinity": binary(np.float16(np.inf).tobytes(), [1, 1], "FP16"),
    "B13 200 MB declared": with_status(Bad(lambda: bytes(200 * 1000 * 1000), "same-fp16"), 413),
    "B13 256 MB asked of the model": Bad(
        json_of(tensor([2**12, 2**14], [2], "INT64")), "swelling", 413
    ),
    "B13 4 TB asked of the model": Bad(
        json_of(tensor([2**20, 2**20], [2], "INT64")), "swelling", 413
    ),
    "B16 10^6 rows": with_status(binary(bytes(4_000_000), [1_000_000, 1]), 413),
}


def send(client: httpx.Client, bad: Bad) -> tuple[bytes, httpx.Response]:
    """Send it; the body and what came back."""
    body = bad.body()
    path = f"/v2/models/{bad.model}/infer"
    return body, client.post(path, content=body, headers=bad.headers)


def answers_well(client: httpx.Client) -> None:
    """A good request gets exactly its own numbers back."""
    number = next(_numbers)
    body = json_of(tensor([number, -number], [1, 2]))()
    answer = client.post("/v2/models/same-fp32/infer", content=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [number, -number]


def check_sentence(response: httpx.Response, sent: bytes) -> None:
    """The body is one short sentence, of nothing inside and of little that was sent."""
    document = response.json()
    assert list(document) == ["error"], document
    sentence = document["error"]
    assert sentence.endswith("."), sentence
    assert sentence.isprintable(), sentence
    assert len(sentence) <= 300, sentence
    assert not INTERNALS.search(sentence), sentence
    assert str(ROOT) not in response.text
    came = sent.decode("latin-1")
    echoed = [sentence[at : at + 65] for at in range(max(len(sentence) - 64, 0))]
    assert not any(part in came for part in echoed), sentence


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_request_costs_itself_only(gateway: Gateway, client: httpx.Client, bad: Bad) -> None:
    """It is refused in a clean sentence, while others are answered and the process lives."""
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send, client, bad)
        answers_well(client)
        while not sent.done():
            answers_well(client)
        body, response = sent.result()
    assert response.status_code == bad.status, response.text
    check_sentence(response, body)
    assert client.get("/v2/health/live").status_code == 200
    assert gateway.process is not None
    assert gateway.process.poll() is None


GOOD_ONES = {
    "J2 NaN where the model allows it": (
        Bad(literal("[NaN,1]", shape="[1,2]").body, "lenient"),
        '"data":[NaN,1.0]',
    ),
    "J11 of two keys the last": (
        Bad(lambda: GOOD.replace(b'"shape":[1,1]', b'"shape":[9,9],"shape":[1,1]')),
        '"data":[1.0]',
    ),
    "J15 no rows": (literal("[]", shape="[0,2]"), '"shape":[0,2],"data":[]'),
    "J17 a scalar of one's own": (
        Bad(json_of(tensor([1], [1, 1]), parameters={"mine": "x"})),
        '"data":[1.0]',
    ),
    "B8 BOOL": (binary(b"\x01\x00", [1, 2], "BOOL"), '"data":[true,false]'),
    "B9 unaligned": (binary(np.float64(1.5).tobytes(), [1, 1], "FP64"), '"data":[1.5]'),
    "B10 NaN where the model allows it": (
        binary(np.float32(np.nan).tobytes(), [1, 1], model="lenient"),
        '"data":[NaN]',
    ),
    "B14 NaN from the model": (
        Bad(json_of(tensor([-1, 4, 9, 16], [1, 4])), "root"),
        '"data":[NaN,2.0,3.0,4.0]',
    ),
}


@pytest.mark.parametrize(("good", "holds"), GOOD_ONES.values(), ids=GOOD_ONES.keys())
def test_what_looks_odd_and_is_allowed_is_answered(
    client: httpx.Client, good: Bad, holds: str
) -> None:
    """The lenient side of each rule: it answers 200 with these very numbers."""
    _, response = send(client, good)
    assert response.status_code == 200, response.text
    assert holds in response.text


def test_a_claim_of_big_endian_changes_nothing(client: httpx.Client) -> None:
    """B11 Binary tensors are little-endian, whatever a parameter or header says."""
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "INT64",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": 8, "byte_order": "big"},
                }
            ]
        }
    )
    response = client.post(
        "/v2/models/same-int64/infer",
        content=head + (258).to_bytes(8, "little"),
        headers={LENGTH: str(len(head)), "X-Byte-Order": "big"},
    )
    assert response.json()["outputs"][0]["data"] == [258]


def test_text_is_bytes_and_nothing_to_unpack(client: httpx.Client) -> None:
    """B15 A pickle or an archive sent as BYTES comes back as the same bytes, not run."""
    for payload in (b"cos\nsystem\n(S'true'\ntR.", b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        framed = len(payload).to_bytes(4, "little") + payload
        if payload.isascii():
            sent = binary(framed, [1, 1], "BYTES")
            _, response = send(client, sent)
            assert response.json()["outputs"][0]["data"] == [payload.decode()]
        else:
            _, response = send(client, binary(framed, [1, 1], "BYTES"))
            assert response.status_code == 400
            check_sentence(response, framed)


def test_large_and_allowed_is_answered_and_others_wait_little(client: httpx.Client) -> None:
    """J16 Just under 16 MiB of JSON is answered; meanwhile health answers within two seconds."""
    rows = 90_000
    body = b"%b[%b]}]}" % (
        FIRST.replace(b"[1,1]", b"[%d,20]" % rows),
        b",".join([b"[" + b",".join([b"1.23456"] * 20) + b"]"] * rows),
    )
    assert 13 * MIB < len(body) < 16 * MIB
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.post, "/v2/models/same-fp32/infer", content=body)
        while not sent.done():
            started = time.monotonic()
            assert client.get("/v2/health/live").status_code == 200
            waits.append(time.monotonic() - started)
        response = sent.result()
    assert response.status_code == 200, response.text[:300]
    assert len(response.json()["outputs"][0]["data"]) == rows * 20
    assert max(waits) < 2


MEMORY = {
    "J13 2000 strings, one of 20 KB": literal(
        orjson.dumps(["s"] * 1_999 + ["s" * 20_000]).decode(), "BYTES", "[2000,1]"
    ),
    "B13 an answer of 256 MB": BAD["B13 256 MB asked of the model"],
    "B16 10^6 rows": BAD["B16 10^6 rows"],
}


@pytest.mark.parametrize("bad", MEMORY.values(), ids=MEMORY.keys())
def test_memory_comes_back(gateway: Gateway, client: httpx.Client, bad: Bad) -> None:
    """After repeats the process is within 32 MiB of where it was."""
    assert gateway.process is not None
    pid = gateway.process.pid
    send(client, bad)
    before = resident_mib(pid)
    for _ in range(5):
        send(client, bad)
    eventually(lambda: resident_mib(pid) < before + 32)
    answers_well(client)


async def ask_rows(client: httpx.AsyncClient, model: str, rows: list[list[int]]) -> Any:
    """The status and the flat answer of a request with these rows."""
    datatype = "INT64" if model in ("failing", "same-int64") else "FP32"
    shape = [len(rows)] if model == "failing" else [len(rows), len(rows[0])]
    flat = [value for row in rows for value in row]
    body = json_of(tensor(flat, shape, datatype))()
    response = await client.post(f"/v2/models/{model}/infer", content=body)
    if response.status_code != 200:
        return response.status_code, response.json()
    return 200, response.json()["outputs"][0]["data"]


async def test_rows_of_callers_are_never_mixed(gateway: Gateway) -> None:
    """B17 Of many callers at once each gets what follows from its own rows, and only that."""
    chance = random.Random(17)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def caller(number: int) -> None:
            for turn in range(12):
                rows = [
                    [number, turn, row, chance.randrange(10_000)]
                    for row in range(chance.randrange(1, 6))
                ]
                model = chance.choice(["four", "same-int64"])
                status, data = await ask_rows(client, model, rows)
                flat = [value for row in rows for value in row]
                assert status == 200
                assert data == (flat if model == "same-int64" else [sum(row) for row in rows])

        await asyncio.gather(*(caller(number) for number in range(48)))


async def test_a_poisoned_row_fails_its_own_request_only(gateway: Gateway) -> None:
    """B17 Beside requests that make the model fail, each good one gets its own rows."""
    table = [[0, 1], [2, 3], [4, 5]]
    chance = random.Random(18)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def caller(number: int) -> None:
            for _ in range(8):
                picks = [chance.randrange(3) for _ in range(chance.randrange(1, 5))]
                if number % 4 == 0:
                    picks[-1] = 7
                status, data = await ask_rows(client, "failing", [[pick] for pick in picks])
                if number % 4 == 0:
                    assert (status, list(data)) == (500, ["error"])
                else:
                    assert (status, data) == (200, [cell for pick in picks for cell in table[pick]])

        await asyncio.gather(*(caller(number) for number in range(32)))


async def test_a_record_holds_a_copy_of_its_own_request(
    gateway: Gateway, receiver: Receiver
) -> None:
    """B12 Recorded payloads are the text of the very request that they record, for every one."""
    document = {"schema": 1, "model": "same-fp32", "recording": {"inputs": True, "outputs": True}}
    gateway.told("PUT", "/admin/v1/endpoints/kept", document)
    gateway.settle()
    wanted = {f"r{number}": [number, number + 0.5] for number in range(400)}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def caller(names: list[str]) -> None:
            for name in names:
                payload = np.array(wanted[name], np.float32).tobytes()
                head = orjson.dumps(
                    {
                        "id": name,
                        "inputs": [
                            {
                                "name": "x",
                                "datatype": "FP32",
                                "shape": [1, 2],
                                "parameters": {"binary_data_size": len(payload)},
                            }
                        ],
                    }
                )
                response = await client.post(
                    "/v2/models/kept/infer",
                    content=head + payload,
                    headers={LENGTH: str(len(head))},
                )
                assert response.status_code == 200

        names = list(wanted)
        await asyncio.gather(*(caller(names[start::20]) for start in range(20)))

    def kept() -> dict[str, dict[str, Any]]:
        told = [plain(entry.attributes) for entry in receiver.predictions]
        return {t[REQUEST_ID]: t for t in told if t.get(REQUEST_ID) in wanted}

    eventually(lambda: len(kept()) == len(wanted))
    records = kept()
    for name, values in wanted.items():
        for place in (INPUTS, OUTPUTS):
            (told,) = orjson.loads(records[name][place])["tensors"].values()
            assert told["data"] == values


REQUEST_ID = "tiltyard.request.id"
INPUTS = "tiltyard.inputs"
OUTPUTS = "tiltyard.outputs"


def test_the_log_holds_no_line_that_was_sent(gateway: Gateway, client: httpx.Client) -> None:
    """J18 What callers sent does not reach the log with its control characters, nor a stack."""
    for row in ("J18 CRLF", "J18 escape", "J18 lookup", "J1 in data"):
        send(client, BAD[row])
    assert "X-Admin" not in gateway.log
    assert "\x1b[31m" not in gateway.log
    assert "jndi" not in gateway.log


def test_no_path_of_the_models_is_told(gateway: Gateway, client: httpx.Client) -> None:
    """An engine's own words, with paths of its source, stay in the log."""
    _, response = send(client, Bad(json_of(tensor([7], [1], "INT64")), "failing"))
    assert response.status_code == 500
    check_sentence(response, b"")
    assert Path(gateway.models).name not in response.text
