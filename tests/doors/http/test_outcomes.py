import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from gateway.core.assignment import Reason
from gateway.core.errors import GatewayError, NotReady, Overloaded
from gateway.core.evidence import Outcome
from gateway.core.outcomes import MAX_BODY_BYTES
from gateway.core.predictions import PredictionFacts, Signer
from gateway.settings import OutcomeSettings
from gateway.telemetry import ERROR_TYPE, OUTCOME_REFUSED
from tests.doors.http.two_doors import Door, asking, door, post, status_of
from tests.planes import FORCE_TOKEN, KEYS, OUTCOMES_TOKEN, READ_TOKEN, WRITE_TOKEN

PATH = b"/v1/outcomes"
OWN = b"Authorization: Bearer " + OUTCOMES_TOKEN.encode()


@pytest.fixture(params=["asgi", "fast"])
async def home(request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    """Each door before a sink."""
    async with door(request.param) as one:
        yield one


def issued(home: Door, nonce: int = 1, age_ms: int = 0) -> str:
    """The id of a prediction, as the door's clock has it."""
    facts = PredictionFacts(
        at_ms=home.desk.clock.unix_ns() // 1_000_000 - age_ms,
        nonce=nonce.to_bytes(8, "big"),
        revision=1,
        endpoint="m",
        rule="r",
        variant="v",
        version=1,
        reason=Reason.SPLIT,
        propensity=0.5,
        unit_hash=b"u" * 16,
        phase=3,
    )
    return Signer(KEYS).sign(facts)


def item(home: Door, nonce: int = 1, **fields: Any) -> dict[str, Any]:
    """An outcome."""
    return {"prediction_id": issued(home, nonce), "metric": "arrival", "value": 1, **fields}


async def tell(home: Door, body: object, *lines: bytes, token: bytes = OWN) -> tuple[int, Any]:
    """Report a body; status and answer."""
    whole = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = await home.ask(post(whole, token, *lines, path=PATH))
    return status_of(answer), orjson.loads(answer.partition(b"\r\n\r\n")[2])


def refused(home: Door, cause: str) -> float:
    """How many outcomes were refused for a cause."""
    return home.plane.cells.counter(OUTCOME_REFUSED, ((ERROR_TYPE, cause),)).value


async def test_an_outcome_of_an_answer_is_accepted(home: Door) -> None:
    """With the id that came with it."""
    answer = await home.ask(post(asking(1.0)))
    head = answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    line = next(line for line in answer.split(b"\r\n") if b"x-prediction-id" in line.lower())
    assert len(head) > 1
    body = {"prediction_id": line.split(b" ")[1].decode(), "metric": "late", "value": True}
    assert await tell(home, body) == (202, {"accepted": 1, "refused": []})
    (kept,) = home.sink.kept
    assert isinstance(kept, Outcome)
    assert (kept.name, kept.value, kept.endpoint, kept.version) == ("late", 1.0, "m", 1)


@pytest.mark.parametrize("media", [b"application/x-ndjson", b"application/jsonl; charset=utf-8"])
async def test_lines_are_told_by_their_type(home: Door, media: bytes) -> None:
    """Newline-delimited JSON is one outcome a line."""
    body = b"\n".join(orjson.dumps(item(home, n)) for n in range(3))
    assert await tell(home, body, b"Content-Type: " + media) == (
        202,
        {"accepted": 3, "refused": []},
    )
    status, answer = await tell(home, body)
    assert (status, "cannot be read" in answer["error"]) == (400, True)


async def test_the_good_of_a_list_are_accepted(home: Door) -> None:
    """The others are named by their place, and counted by their cause."""
    forged = item(home)
    forged["prediction_id"] = forged["prediction_id"][:-2] + "AA"
    old = {**item(home), "prediction_id": issued(home, age_ms=91 * 86_400_000)}
    body = [item(home, 1), forged, item(home, 2), 5, old]
    status, answer = await tell(home, body)
    assert (status, answer["accepted"]) == (202, 2)
    assert [one["index"] for one in answer["refused"]] == [1, 3, 4]
    assert answer["refused"][2]["error"] == "The prediction is older than 90 days."
    assert len(home.sink.kept) == 2
    causes = ("forged", "malformed", "expired")
    assert [refused(home, cause) for cause in causes] == [1, 1, 1]


async def test_a_body_without_anything_good_is_a_bad_request(home: Door) -> None:
    """The first sentence stands where errors stand, and every one in its place."""
    status, answer = await tell(home, [{}, item(home, value="x")])
    assert status == 400
    assert answer["error"] == answer["refused"][0]["error"]
    assert "missing required field" in answer["error"]
    assert [one["index"] for one in answer["refused"]] == [0, 1]
    assert home.sink.kept == []


BIG = 600


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        pytest.param(b"gzip", gzip.compress, id="gzip"),
        pytest.param(b"deflate", zlib.compress, id="deflate"),
        pytest.param(b"identity", bytes, id="plain"),
    ],
)
async def test_a_large_body_is_read_aside(
    home: Door, coding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """Compressed or not, nothing is left held."""
    body = pack(orjson.dumps([item(home, n) for n in range(BIG)]))
    status, answer = await tell(home, body, b"Content-Encoding: " + coding)
    assert (status, answer["accepted"], len(home.sink.kept)) == (202, BIG, BIG)
    assert home.desk.admission.held_bytes == 0


@pytest.mark.parametrize(
    ("body", "lines", "status"),
    [
        pytest.param(b"", (), 400, id="empty"),
        pytest.param(b"[]", (), 400, id="none"),
        pytest.param(b"[" * 50_000, (), 400, id="nested"),
        pytest.param(b"\xff\xfe", (), 400, id="no-text"),
        pytest.param(b"[1" + b",1" * 10_000 + b"]", (), 413, id="many"),
        pytest.param(b"x", (b"Content-Encoding: gzip",), 400, id="no-gzip"),
        pytest.param(b"x", (b"Content-Encoding: br",), 415, id="coding"),
        pytest.param(b"x", (b"Content-Type: multipart/form-data; boundary=x",), 415, id="form"),
        pytest.param(
            gzip.compress(b" " * (MAX_BODY_BYTES + 1)),
            (b"Content-Encoding: gzip",),
            413,
            id="bomb",
        ),
    ],
)
async def test_a_bad_body_is_refused(
    home: Door, body: bytes, lines: tuple[bytes, ...], status: int
) -> None:
    """With a sentence; nothing reaches the sink, and nothing is left held."""
    found, answer = await tell(home, body, *lines)
    assert (found, answer["error"][-1]) == (status, ".")
    assert home.sink.kept == []
    assert home.desk.admission.held_bytes == 0


async def test_a_body_that_says_it_is_too_long_is_not_read(home: Door) -> None:
    """It is refused by its head."""
    head = [b"POST /v1/outcomes HTTP/1.1", b"Host: a", OWN]
    length = b"Content-Length: %d" % (MAX_BODY_BYTES + 1)
    answer = await home.ask(b"\r\n".join([*head, length, b"", b""]))
    assert status_of(answer) == 413


@pytest.mark.parametrize(
    ("token", "status"),
    [
        pytest.param(None, 401, id="none"),
        pytest.param("unknown", 401, id="unknown"),
        pytest.param(READ_TOKEN, 403, id="read"),
        pytest.param(FORCE_TOKEN, 403, id="force"),
        pytest.param(OUTCOMES_TOKEN, 202, id="outcomes"),
        pytest.param(WRITE_TOKEN, 403, id="write"),
    ],
)
async def test_who_may_report(home: Door, token: str | None, status: int) -> None:
    """Who holds the right `outcomes`; a token of nobody is asked for."""
    line = b"Authorization: Bearer %b" % token.encode() if token else b"X-None: 1"
    assert (await tell(home, item(home), token=line))[0] == status


async def test_an_open_door_asks_for_nothing() -> None:
    """For networks that are closed themselves."""
    settings = OutcomeSettings(auth="open")
    async with door("fast", outcomes=settings) as home:
        assert (await tell(home, item(home), token=b"X-None: 1"))[0] == 202


async def test_only_post_is_answered(home: Door) -> None:
    """Anything else is told so."""
    answer = await home.ask(b"GET /v1/outcomes HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status_of(answer) == 405
    assert b"allow: POST" in answer


@pytest.mark.parametrize(
    "error", [NotReady("Control is away."), Overloaded("Too many.")], ids=lambda error: error.kind
)
async def test_what_cannot_be_kept_is_not_accepted(home: Door, error: GatewayError) -> None:
    """The caller is told when to come back, and the outcomes are counted as refused."""
    home.sink.error = error
    answer = await home.ask(post(orjson.dumps([item(home), {}]), OWN, path=PATH))
    assert status_of(answer) == 503
    assert b"retry-after: 1" in answer
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2]) == {"error": str(error)}
    assert refused(home, error.kind) == 1


async def test_without_keys_nothing_can_be_verified(home: Door) -> None:
    """Then nobody is told that an id is forged."""
    home.plane.worker.signer = None
    assert (await tell(home, item(home)))[0] == 503
