"""Kept answers: found again, told as such, and never those of another version."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.gateways import Gateway
from tests.e2e.test_flights import TRAFFIC

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

KEEPING = {"schema": 1, "model": "flight-delay", "cache": {"max_mb": 4, "ttl_s": 600}}
OWN = ("x-cache", "x-prediction-id", "x-revision", "x-model-version", "date")
"""Headers that answers with one body may differ in."""
BODIES = [infer_body(flight) for flight in read_flights(TRAFFIC, 3)]


def post(gateway: Gateway, body: bytes, path: str = "keeping") -> httpx.Response:
    """Ask once."""
    response = httpx.post(f"{gateway.url}/v2/models/{path}/infer", content=body, timeout=30)
    assert response.status_code == 200, response.text
    return response


def marks(gateway: Gateway, path: str = "keeping") -> list[str | None]:
    """What the header says for each body in turn."""
    return [post(gateway, body, path).headers.get("x-cache") for body in BODIES]


def counted(gateway: Gateway, name: str) -> float:
    """The value of a metric of the endpoint, as a scrape shows it."""
    shown = httpx.get(f"{gateway.admin_url}/metrics", timeout=30).text.splitlines()
    lines = [line for line in shown if line.startswith(name) and '"keeping"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def cache_stats(gateway: Gateway, version: int) -> tuple[int, int]:
    """Hits and misses of a version in its statistics."""
    url = f"{gateway.url}/v2/models/flight-delay/versions/{version}/stats"
    stats: dict[str, Any] = httpx.get(url, timeout=30).json()["model_stats"][0]["inference_stats"]
    return stats["cache_hit"]["count"], stats["cache_miss"]["count"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for both stories."""
    running = Gateway(tmp_path_factory.mktemp("kept")).start()
    yield running
    running.close()


def test_a_kept_answer_is_the_one_that_was_given(gateway: Gateway) -> None:
    """Byte for byte but for ids; the header, the metrics and the statistics say that it was kept.

    After a promotion the other version is asked anew, and after the rollback nobody is.
    """
    assert marks(gateway, "flight-delay") == [None] * 3
    gateway.told("PUT", "/admin/v1/endpoints/keeping", KEEPING)
    gateway.settle()
    shown = gateway.told("GET", "/admin/v1/endpoints/keeping")["document"]
    assert shown["cache"] == {"max_mb": 4, "ttl_s": 600.0}

    missed = [post(gateway, body) for body in BODIES]
    hits = [post(gateway, body) for body in BODIES]
    assert [one.headers["x-cache"] for one in missed + hits] == ["miss"] * 3 + ["hit"] * 3
    for miss, hit in zip(missed, hits, strict=True):
        assert hit.content == miss.content
        assert hit.headers["x-prediction-id"] != miss.headers["x-prediction-id"]
        left, right = (
            {name: value for name, value in one.headers.items() if name not in OWN}
            for one in (miss, hit)
        )
        assert left == right

    version = int(missed[0].headers["x-model-version"])
    assert cache_stats(gateway, version) == (3, 3)
    assert counted(gateway, "tiltyard_cache_hit_total") == 3
    assert counted(gateway, "tiltyard_cache_size_bytes") > 0

    promote(gateway, 3 - version)
    promoted = [post(gateway, body) for body in BODIES]
    assert [one.headers["x-cache"] for one in promoted] == ["miss"] * 3
    for one, before in zip(promoted, missed, strict=True):
        assert json.loads(one.content)["model_version"] == str(3 - version)
        assert one.content != before.content
    promote(gateway, version)
    rolled_back = [post(gateway, body) for body in BODIES]
    assert [one.headers["x-cache"] for one in rolled_back] == ["hit"] * 3
    assert [one.content for one in rolled_back] == [one.content for one in missed]


def promote(gateway: Gateway, version: int) -> None:
    """Move the champion, and wait until it is served."""
    gateway.told("POST", "/admin/v1/models/flight-delay/promote", {"version": version})
    gateway.settle()


def test_a_cache_that_makes_no_sense_is_refused_with_a_sentence(gateway: Gateway) -> None:
    """The answer says what may be asked for, and nothing is changed."""
    response = gateway.ask(
        "PUT", "/admin/v1/endpoints/senseless", {**KEEPING, "cache": {"max_mb": 0}}
    )
    assert response.status_code == 400
    assert response.json()["error"] == (
        "Endpoint 'senseless': cache.max_mb is 0; it must be 1 to 1048576, "
        "or leave 'cache' out to keep nothing."
    )
    assert gateway.ask("GET", "/admin/v1/endpoints/senseless").status_code == 404
