"""Ten thousand real flights through a 90:10 split by aircraft, held against the record."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import aiohttp
import httpx
import pytest

from gateway.core.assignment import positions
from gateway.doors.cli.traffic import Flight, infer_body, read_flights
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import ROOT, Gateway, eventually
from tests.otlp_receiver import Receiver, plain

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FLIGHTS = 10_000
PATH = "/v2/models/flight-delay/infer"
TRAFFIC = ROOT / "models" / "flight-delay" / "traffic.csv.gz"


@dataclass(frozen=True)
class Answered:
    """What an answer's headers said, and whom it was for."""

    unit: str
    variant: str
    revision: int
    prediction_id: str


def split_document(exposure: int = 10_000) -> dict[str, Any]:
    """90:10 by tail number, champion against version 2."""
    return {
        "schema": 1,
        "model": "flight-delay",
        "rules": [
            {
                "name": "ab",
                "split": {
                    "exposure": exposure,
                    "unit": {"header": "X-Unit-Id"},
                    "variants": [
                        {"name": "control", "alias": "champion", "weight": 9_000},
                        {"name": "treatment", "version": 2, "weight": 1_000},
                    ],
                },
            }
        ],
    }


async def replay(
    url: str, flights: list[Flight], *, units: bool = True, path: str = PATH
) -> list[Answered]:
    """Send flights, sixteen at a time; every answer, each of which must be a 200."""
    answered: list[Answered] = []
    queue = iter(flights)

    async def sender(client: aiohttp.ClientSession) -> None:
        for flight in queue:
            headers = {"X-Unit-Id": flight.tail_number} if units else {}
            async with client.post(path, data=infer_body(flight), headers=headers) as response:
                assert response.status == 200, await response.text()
                await response.read()
                answered.append(
                    Answered(
                        unit=flight.tail_number,
                        variant=response.headers["X-Variant"],
                        revision=int(response.headers["X-Revision"]),
                        prediction_id=response.headers["X-Prediction-Id"],
                    )
                )

    async with aiohttp.ClientSession(url) as client:
        await asyncio.gather(*(sender(client) for _ in range(16)))
    return answered


def put_rules(gateway: Gateway, document: dict[str, Any], name: str = "flight-delay") -> int:
    """Put the document of an endpoint and wait until it is served; its revision."""
    response = gateway.ask("PUT", f"/admin/v1/endpoints/{name}", document)
    assert response.is_success, response.text
    revision = int(response.headers["x-revision"])
    eventually(lambda: gateway.told("GET", "/admin/v1/status")["revision"] >= revision)
    gateway.settle()
    return revision


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A collector."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for the stories that have endpoints of their own."""
    gateway = Gateway(tmp_path_factory.mktemp("flights")).start()
    yield gateway
    gateway.close()


def test_a_split_by_aircraft_is_sticky_fair_and_recomputable(
    make_gateway: MakeGateway, receiver: Receiver
) -> None:
    """Units get 90:10 within binomial bounds, keep their variant, and the record shows why."""
    flights = list(read_flights(TRAFFIC, FLIGHTS))
    gateway = make_gateway(
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
    )
    revision = put_rules(gateway, split_document())

    answers = asyncio.run(replay(gateway.url, flights))

    variants: dict[str, set[str]] = {}
    for answer in answers:
        variants.setdefault(answer.unit, set()).add(answer.variant)
    assert all(len(seen) == 1 for seen in variants.values())
    treated = sum(seen == {"treatment"} for seen in variants.values())
    units = len(variants)
    assert abs(treated - 0.1 * units) <= 4 * sqrt(units * 0.1 * 0.9)
    assert {answer.revision for answer in answers} == {revision}

    entries = gateway.audit()
    gateway.stop()
    records = [plain(record.attributes) for record in receiver.predictions]
    # A request that a slow collector did not answer in time is sent again, with the same ids.
    assert len({record["tiltyard.prediction.id"] for record in records}) == FLIGHTS
    units_by_id = {answer.prediction_id: answer.unit for answer in answers}
    for record in records:
        unit = units_by_id[record["tiltyard.prediction.id"]]
        variant = record["feature_flag.result.variant"]
        assert recorded_owner(entries, record, unit) == variant
        assert variants[unit] == {variant}


def recorded_owner(entries: list[dict[str, Any]], record: dict[str, Any], unit: str) -> str:
    """The variant that follows from a record, the audit entry of its revision and the unit."""
    revision = record["feature_flag.version"]
    entry = [
        entry
        for entry in entries
        if entry["target"] == "endpoints/flight-delay" and entry["revision"] <= int(revision)
    ][-1]
    split = entry["document"]["splits"][record["tiltyard.assignment.rule"]]
    assert split["salt"] == record["tiltyard.assignment.salt"]
    place = positions(split["salt"], unit.encode()).variant
    owners = [
        name
        for name, pieces in split["intervals"].items()
        for start, end in pieces
        if start <= place < end
    ]
    assert len(owners) == 1
    return str(owners[0])


def test_requests_without_a_unit_are_drawn_one_by_one(shared: Gateway) -> None:
    """Without a unit each request is a draw of its own, 90:10 within binomial bounds."""
    flights = list(read_flights(TRAFFIC, 3_000))
    put_rules(shared, split_document(), "drawn")

    answers = asyncio.run(replay(shared.url, flights, units=False, path="/v2/models/drawn/infer"))

    treated = sum(answer.variant == "treatment" for answer in answers)
    assert abs(treated - 300) <= 4 * sqrt(3_000 * 0.1 * 0.9)


def test_v1_rows_of_a_real_model_are_answered(shared: Gateway) -> None:
    """V1 clients ask the sample model row by row and get a label and probabilities for each."""
    flights = list(read_flights(TRAFFIC, 5))
    rows = [
        {
            "carrier": [flight.carrier],
            "origin": [flight.origin],
            "dest": [flight.dest],
            "features": [0.0 if value != value else value for value in flight.features],  # noqa: PLR0124 - NaN
        }
        for flight in flights
    ]

    for path in ("flight-delay:predict", "flight-delay/labels/champion:predict"):
        answer = httpx.post(f"{shared.url}/v1/models/{path}", json={"instances": rows})
        assert answer.status_code == 200, answer.text
        predictions = answer.json()["predictions"]
        assert {type(row["label"]) for row in predictions} == {int}
        assert [len(row["probabilities"]) for row in predictions] == [2] * 5


def test_a_ramp_moves_no_enrolled_unit(shared: Gateway) -> None:
    """From 10 to 50 per cent exposure, who was enrolled keeps the variant, and more join."""
    flights = list(read_flights(TRAFFIC, 3_000))

    def served() -> dict[str, str]:
        answers = asyncio.run(replay(shared.url, flights, path="/v2/models/ramped/infer"))
        return {answer.unit: answer.variant for answer in answers}

    put_rules(shared, split_document(exposure=1_000), "ramped")
    before = served()
    put_rules(shared, split_document(exposure=5_000), "ramped")
    after = served()

    enrolled = {unit: variant for unit, variant in before.items() if variant != "default"}
    assert 0 < len(enrolled) < sum(variant != "default" for variant in after.values())
    assert {unit: after[unit] for unit in enrolled} == enrolled
