"""The store goes away: serving goes on, nothing that was acknowledged is lost."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, free_port
from tests.e2e.test_flights import PATH, TRAFFIC, put_rules, split_document
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

AWAY_S = 60.0
PACE_S = 0.04
"""Between two requests of one caller: a minute needs no more than some thousands of answers."""


async def load_while(gateway: Gateway, seconds: float) -> int:
    """Ask about flights for so long; how many answers, every one of which is 200."""
    flights = list(read_flights(TRAFFIC, 200))
    answered = 0
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def ask(client: httpx.AsyncClient, index: int) -> None:
        nonlocal answered
        while loop.time() < end:
            flight = flights[index % len(flights)]
            response = await client.post(PATH, content=infer_body(flight))
            assert response.status_code == 200, response.text
            answered += 1
            index += 4
            await asyncio.sleep(PACE_S)

    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
        await asyncio.gather(*(ask(client, index) for index in range(4)))
    return answered


@pytest.mark.slow
def test_a_minute_without_the_store_fails_no_inference_and_loses_no_commit(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    """Kill -9 of Valkey: inferences go on, writes are refused, and all commits are there after."""
    valkey = ValkeyProcess(tmp_path / "valkey", free_port())
    valkey.start()
    gateway = make_gateway(env={"TILTYARD_REDIS_URL": valkey.url})
    revision = put_rules(gateway, split_document())
    entries = gateway.audit()

    valkey.kill()
    answered = asyncio.run(load_while(gateway, AWAY_S))
    refused = gateway.ask("POST", "/admin/v1/models/flight-delay/promote", {"version": 2})
    status = gateway.told("GET", "/admin/v1/status")

    assert answered > 1_000
    assert refused.status_code == 503
    assert status["store"]["reachable"] is False
    assert status["revision"] == revision

    valkey.start()
    eventually(lambda: gateway.told("GET", "/admin/v1/status")["store"]["reachable"])
    assert gateway.audit() == entries
    assert gateway.told("GET", "/admin/v1/status")["alarms"] == {}
    promoted = gateway.ask("POST", "/admin/v1/models/flight-delay/promote", {"version": 2})
    assert promoted.status_code == 200
    valkey.kill()


def test_a_restart_without_the_store_serves_the_last_good_snapshot(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    """A gateway that starts while Redis is away serves what this host served last."""
    valkey = ValkeyProcess(tmp_path / "valkey", free_port())
    valkey.start()
    gateway = make_gateway(env={"TILTYARD_REDIS_URL": valkey.url})
    revision = put_rules(gateway, split_document())
    gateway.stop()
    valkey.kill()

    gateway.start()

    flight = next(iter(read_flights(TRAFFIC, 1)))
    answer = httpx.post(gateway.url + PATH, content=infer_body(flight))
    status = gateway.told("GET", "/admin/v1/status")
    assert answer.status_code == 200
    assert answer.headers["x-revision"] == str(revision)
    assert status["source"] == "disk"


def test_a_first_start_without_the_store_lives_and_is_not_ready(
    make_gateway: MakeGateway,
) -> None:
    """With Redis away and nothing on disk the process answers, and says that it is not ready."""
    gateway = make_gateway(
        env={"TILTYARD_REDIS_URL": f"redis://127.0.0.1:{free_port()}"}, start=False
    )
    gateway.start(wait=False)

    def live() -> bool:
        try:
            return httpx.get(f"{gateway.url}/v2/health/live").status_code == 200
        except httpx.TransportError:
            return False

    assert eventually(live)
    assert httpx.get(f"{gateway.url}/v2/health/ready").status_code == 503
    assert httpx.post(f"{gateway.url}{PATH}", content=b"{}").status_code == 503


def test_the_embedded_store_is_started_again_when_it_is_killed(
    make_gateway: MakeGateway,
) -> None:
    """Kill -9 of the embedded Valkey loses no commit, and it comes back by itself."""
    gateway = make_gateway()
    revision = put_rules(gateway, split_document())

    os.kill(embedded_pid(gateway), signal.SIGKILL)

    def promoted() -> bool:
        path = "/admin/v1/models/digits/promote"
        return gateway.ask("POST", path, {"version": 2}).status_code in (200, 409)

    assert eventually(promoted)
    status = gateway.told("GET", "/admin/v1/status")
    assert status["revision"] >= revision
    entries = gateway.audit()
    assert [entry["revision"] for entry in entries] == list(range(1, len(entries) + 1))
    assert any(entry["target"] == "endpoints/flight-delay" for entry in entries)


def test_a_killed_gateway_comes_back_with_everything(make_gateway: MakeGateway) -> None:
    """Kill -9 of the gateway: its next start serves the same revision from the same store."""
    gateway = make_gateway()
    revision = put_rules(gateway, split_document())

    gateway.kill()
    gateway.start()

    eventually(lambda: gateway.told("GET", "/admin/v1/status")["source"] == "redis")
    assert gateway.told("GET", "/admin/v1/status")["revision"] == revision


def embedded_pid(gateway: Gateway) -> int:
    """The process of a gateway's embedded store, found by the folder it runs in."""
    folder = (gateway.state / "valkey").resolve()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            if b"valkey-server" in words and (entry / "cwd").resolve() == folder:
                return int(entry.name)
        except OSError:
            continue
    message = "no embedded store runs"
    raise AssertionError(message)
