"""Two gateways on one Redis: what one commits both serve, and messages are answered once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, free_port
from tests.e2e.test_flights import PATH, TRAFFIC, put_rules, split_document
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PROMOTIONS = "{tiltyard}:promotions"
RESULTS = "{tiltyard}:promotion-results"


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store that both hosts use."""
    server = ValkeyProcess(tmp_path / "valkey", free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture
def hosts(make_gateway: MakeGateway, valkey: ValkeyProcess) -> list[Gateway]:
    """Two gateways, each with a state folder of its own."""
    return [make_gateway(env={"TILTYARD_REDIS_URL": valkey.url}) for _ in range(2)]


def served_version(gateway: Gateway) -> str:
    """The version that answers on a host now."""
    body = infer_body(next(iter(read_flights(TRAFFIC, 1))))
    answer = httpx.post(gateway.url + PATH, content=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model-version"]


def test_a_commit_on_one_host_is_served_by_both(hosts: list[Gateway]) -> None:
    """Rules put through one host give a unit the same variant on the other."""
    first, second = hosts
    revision = put_rules(first, split_document())
    eventually(lambda: second.told("GET", "/admin/v1/status")["revision"] >= revision)

    status = second.told("GET", "/admin/v1/status")
    assert status["promotion"]["of"] == 2
    for flight in read_flights(TRAFFIC, 50):
        headers = {"X-Unit-Id": flight.tail_number}
        variants = {
            httpx.post(host.url + PATH, content=infer_body(flight), headers=headers).headers[
                "x-variant"
            ]
            for host in hosts
        }
        assert len(variants) == 1


def test_units_are_blinded_alike_and_ids_read_alike_on_both_hosts(hosts: list[Gateway]) -> None:
    """Both hosts sign with the shared keys: the key ids at the head of their tokens are equal."""
    body = infer_body(next(iter(read_flights(TRAFFIC, 1))))
    eventually(lambda: all(host.is_ready() for host in hosts))

    def heads() -> set[str]:
        return {
            httpx.post(host.url + PATH, content=body).headers["x-prediction-id"][:4]
            for host in hosts
        }

    assert eventually(lambda: len(heads()) == 1)


def test_a_message_promotes_once_and_is_answered(
    hosts: list[Gateway], valkey: ValkeyProcess
) -> None:
    """An entry on the promotions stream becomes one commit, though two hosts listen."""
    client: Any = redis.Redis.from_url(valkey.url, decode_responses=True)
    # Tokens are each host's own, so the message carries the one that the leader knows.
    eventually(lambda: any(leads(host) for host in hosts))
    leading = next(host for host in hosts if leads(host))
    asked = {"token": leading.token, "model": "flight-delay", "version": "2", "reason": "ci"}
    client.xadd(PROMOTIONS, asked)

    results = eventually(lambda: client.xrange(RESULTS))

    assert [result["status"] for _, result in results] == ["accepted"]
    assert eventually(lambda: {served_version(host) for host in hosts} == {"2"})
    assert client.xlen(PROMOTIONS) == 0
    promotions = [entry for entry in hosts[0].audit() if entry["action"] == "model.promote"]
    assert len(promotions) == 1
    assert leading.token not in json.dumps(results) + json.dumps(hosts[0].audit())


def test_a_message_without_a_token_is_refused(hosts: list[Gateway], valkey: ValkeyProcess) -> None:
    """Who cannot show a token changes nothing, and finds out from the results stream."""
    client: Any = redis.Redis.from_url(valkey.url, decode_responses=True)
    client.xadd(PROMOTIONS, {"model": "flight-delay", "version": "2"})

    results = eventually(lambda: client.xrange(RESULTS))

    assert [result["status"] for _, result in results] == ["refused"]
    assert {served_version(host) for host in hosts} == {"1"}


def leads(gateway: Gateway) -> bool:
    """Whether this host is the leader, as its own status says."""
    status = gateway.told("GET", "/admin/v1/status")
    return bool(status["leader"] == status["process"])
