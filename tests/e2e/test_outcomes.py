"""Outcomes: what a caller was told is kept is in the stream once, whoever was killed meanwhile."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from gateway.core.evidence import Outcome, decode_entry
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, free_port, processes
from tests.e2e.loads import BODY, PATH
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store that outlives the gateway."""
    server = ValkeyProcess(tmp_path / "valkey", free_port())
    server.start()
    yield server
    server.kill()


class Reporter:
    """A caller who reports numbered outcomes of one prediction, and notes what was accepted."""

    def __init__(self, gateway: Gateway) -> None:
        self._client = httpx.Client(base_url=gateway.url, timeout=30)
        answer = self._client.post(PATH, content=BODY)
        self.id = answer.headers["x-prediction-id"]
        self._token = gateway.token
        self.asked = 0
        self.accepted: list[int] = []

    def report(self, count: int = 1) -> int:
        """Report so many at once; the status, 0 for a connection that was lost."""
        numbers = range(self.asked, self.asked + count)
        self.asked += count
        items = [
            {"prediction_id": self.id, "metric": "arrival", "value": number, "sequence": number}
            for number in numbers
        ]
        try:
            answer = self._client.post(
                "/v1/outcomes", json=items, headers={"Authorization": f"Bearer {self._token}"}
            )
        except httpx.TransportError:
            return 0
        if answer.status_code == 202:
            assert answer.json() == {"accepted": count, "refused": []}
            self.accepted += numbers
        return answer.status_code

    def close(self) -> None:
        """Hang up."""
        self._client.close()


@pytest.fixture(params=[0, 2], ids=["one-process", "workers"])
def gateway(
    request: pytest.FixtureRequest, make_gateway: MakeGateway, valkey: ValkeyProcess
) -> Gateway:
    """A gateway of each form on that store."""
    return make_gateway(env={"TILTYARD_REDIS_URL": valkey.url}, workers=request.param)


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[Reporter]:
    """Somebody who was given a prediction."""
    made = Reporter(gateway)
    yield made
    made.close()


def shipped(valkey: ValkeyProcess) -> Counter[int]:
    """How often each outcome is in the stream; none while the store is away."""
    client: Any = redis.Redis.from_url(valkey.url)
    try:
        entries = [fields[b"e"] for _, fields in client.xrange("{tiltyard}:evidence")]
    except redis.RedisError:
        return Counter()
    finally:
        client.close()
    events = [event for entry in entries for event in decode_entry(entry).events]
    return Counter(event.sequence for event in events if isinstance(event, Outcome))


def is_complete(valkey: ValkeyProcess, caller: Reporter) -> bool:
    """Whether all that was accepted is there."""
    return set(caller.accepted) <= shipped(valkey).keys()


def test_an_accepted_outcome_comes_to_the_stream(
    gateway: Gateway, caller: Reporter, valkey: ValkeyProcess
) -> None:
    """By whichever process it was taken in; metrics tell of it."""
    assert [caller.report(count) for count in (1, 700)] == [202, 202]
    eventually(lambda: is_complete(valkey, caller))
    assert set(shipped(valkey).values()) == {1}
    page = httpx.get(f"{gateway.admin_url}/metrics").text
    assert "tiltyard_outcome_accepted_total" in page


def test_with_the_store_away_outcomes_wait_on_disk(
    gateway: Gateway, caller: Reporter, valkey: ValkeyProcess
) -> None:
    """They are accepted, outlive the gateway's own end, and come to the stream once each."""
    assert caller.report() == 202
    eventually(lambda: is_complete(valkey, caller))
    valkey.kill()
    assert [caller.report(20) for _ in range(5)] == [202] * 5
    if gateway.workers:
        gateway.stop()
    else:
        gateway.kill()
    gateway.start(wait=False)
    valkey.start()
    eventually(lambda: is_complete(valkey, caller), 60)
    assert set(shipped(valkey).values()) == {1}


def test_kill_9_of_control_loses_nothing_and_doubles_nothing(
    make_gateway: MakeGateway, valkey: ValkeyProcess
) -> None:
    """While it is away callers hear 503; what was accepted before, between and after is there."""
    gateway = make_gateway(env={"TILTYARD_REDIS_URL": valkey.url}, workers=1)
    caller = Reporter(gateway)
    for _ in range(3):
        assert eventually(lambda: caller.report(50) == 202, 60)
        control = processes(gateway)["control"][0]
        os.kill(control, signal.SIGKILL)
        assert eventually(lambda: caller.report(50) == 503)
    assert eventually(lambda: caller.report() == 202, 60)
    eventually(lambda: is_complete(valkey, caller), 60)
    assert set(shipped(valkey).values()) == {1}
    caller.close()
