"""Two gateways on one Redis: what one commits both serve, and messages are answered once."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.gateways import Gateway, eventually, free_port
from tests.e2e.test_flights import PATH, TRAFFIC, put_rules, split_document
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PROMOTIONS = "{tiltyard}:promotions"
RESULTS = "{tiltyard}:promotion-results"


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A store that both hosts use."""
    server = ValkeyProcess(tmp_path_factory.mktemp("store") / "valkey", free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def hosts(
    tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyProcess
) -> Iterator[list[Gateway]]:
    """Two gateways, each with a state folder of its own."""
    folder, env = tmp_path_factory.mktemp("hosts"), {"TILTYARD_REDIS_URL": valkey.url}
    made = [Gateway(folder / name, env=env) for name in ("first", "second")]
    for host in made:
        host.start()
    yield made
    for host in made:
        host.close()


def served_version(gateway: Gateway) -> str:
    """The version that answers on a host now."""
    body = infer_body(next(iter(read_flights(TRAFFIC, 1))))
    answer = httpx.post(gateway.url + PATH, content=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model-version"]


def test_a_commit_on_one_host_is_served_by_both(hosts: list[Gateway]) -> None:
    """Rules put through one host give a unit the same variant on the other."""
    first, second = hosts
    revision = put_rules(first, split_document(), "both")
    eventually(lambda: second.told("GET", "/admin/v1/status")["revision"] >= revision)

    status = second.told("GET", "/admin/v1/status")
    assert status["promotion"]["of"] == 2
    for flight in read_flights(TRAFFIC, 50):
        headers = {"X-Unit-Id": flight.tail_number}
        variants = {
            httpx.post(
                f"{host.url}/v2/models/both/infer", content=infer_body(flight), headers=headers
            ).headers["x-variant"]
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
    before, answered = promotions(hosts[0]), client.xlen(RESULTS)
    asked = {"token": leading.token, "model": "flight-delay", "version": "2", "reason": "ci"}
    client.xadd(PROMOTIONS, asked)

    results = eventually(lambda: client.xrange(RESULTS)[answered:])

    assert [result["status"] for _, result in results] == ["accepted"]
    assert eventually(lambda: {served_version(host) for host in hosts} == {"2"})
    assert client.xlen(PROMOTIONS) == 0
    assert promotions(hosts[0]) == before + 1
    assert leading.token not in json.dumps(results) + json.dumps(hosts[0].audit())


def test_a_message_without_a_token_is_refused(hosts: list[Gateway], valkey: ValkeyProcess) -> None:
    """Who cannot show a token changes nothing, and finds out from the results stream."""
    client: Any = redis.Redis.from_url(valkey.url, decode_responses=True)
    (served,) = eventually(lambda: only({served_version(host) for host in hosts}))
    answered = client.xlen(RESULTS)
    client.xadd(PROMOTIONS, {"model": "flight-delay", "version": str(3 - int(served))})

    results = eventually(lambda: client.xrange(RESULTS)[answered:])

    assert [result["status"] for _, result in results] == ["refused"]
    assert {served_version(host) for host in hosts} == {served}


def only(versions: set[str]) -> set[str]:
    """The versions that hosts serve once they agree."""
    return versions if len(versions) == 1 else set()


def promotions(gateway: Gateway) -> int:
    """Promotions that the audit log tells of."""
    return sum(entry["action"] == "model.promote" for entry in gateway.audit())


def leads(gateway: Gateway) -> bool:
    """Whether this host is the leader, as its own status says."""
    status = gateway.told("GET", "/admin/v1/status")
    return bool(status["leader"] == status["process"])
