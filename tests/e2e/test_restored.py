"""FLUSHALL under a gateway that serves: nobody notices, and one command puts everything back."""

import asyncio
import threading
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from redis import Redis

from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, free_port
from tests.e2e.test_flights import PATH, TRAFFIC, put_rules, split_document
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


class Traffic:
    """Asks about flights without a pause, from a thread, until it is told to stop."""

    def __init__(self, gateway: Gateway) -> None:
        self.statuses: list[int] = []
        self._gateway = gateway
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _ask(self) -> None:
        bodies = [infer_body(flight) for flight in read_flights(TRAFFIC, 50)]
        async with httpx.AsyncClient(base_url=self._gateway.url, timeout=10) as client:
            while not self._ended.is_set():
                body = bodies[len(self.statuses) % len(bodies)]
                self.statuses.append((await client.post(PATH, content=body)).status_code)
                await asyncio.sleep(0.005)


def test_an_emptied_redis_is_restored_under_traffic(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    """The alarm, the refused write, the restore, writes again; no inference failed meanwhile."""
    valkey = ValkeyProcess(tmp_path / "valkey", free_port())
    valkey.start()
    gateway = make_gateway(env={"TILTYARD_REDIS_URL": valkey.url})
    other = make_gateway(env={"TILTYARD_REDIS_URL": valkey.url})
    revision = put_rules(gateway, split_document())
    other.settle()
    keys = gateway.told("GET", "/admin/v1/keys")
    with Traffic(gateway) as traffic:
        Redis.from_url(valkey.url).flushall()
        status = eventually(lambda: alarmed(gateway))
        eventually(lambda: alarmed(other))
        promotion = ("POST", "/admin/v1/models/flight-delay/promote", {"version": 2})
        refused = gateway.ask(*promotion)
        unverified = gateway.ask("GET", "/admin/v1/audit/head")
        wish = {"reason": "somebody flushed it", "dry_run": True}
        would = gateway.told("POST", "/admin/v1/restore", wish)
        done = gateway.cli_json("restore", "--reason", "somebody flushed it")
        gateway.settle()
        eventually(lambda: not alarmed(other))
        promoted = gateway.ask(*promotion)
        other.settle()
        asked = len(traffic.statuses)
        eventually(lambda: len(traffic.statuses) > asked + 50)

    assert status["revision"] == revision
    assert (refused.status_code, unverified.status_code) == (503, 503)
    assert {**would, "done": True} == done
    assert (done["epoch"], done["revision"], done["store"]) == (2, revision + 1, "empty")
    assert done["lost_revisions"] == [1, revision]
    assert done["without_manifest"] == []
    assert promoted.status_code == 200
    assert promoted.json()["revision"] == revision + 2
    assert set(traffic.statuses) == {200}
    assert gateway.told("GET", "/admin/v1/keys") == keys
    told = gateway.cli_json("audit", "verify")
    assert (told["faults"], told["entries"]) == ([], 2)
    assert told["gaps"] == [{"first": 1, "last": revision, "restored_at": revision + 1}]
    first = gateway.audit()[0]
    assert (first["action"], first["actor"], first["epoch"]) == ("store.restore", "admin", 2)
    assert (first["evidence"]["revision"], first["evidence"]["epoch"]) == (revision, 1)
    assert gateway.ask("POST", "/admin/v1/restore", {"reason": "again"}).status_code == 409
    valkey.kill()


def alarmed(gateway: Gateway) -> dict[str, Any]:
    """The status of a gateway whose store lost data; empty if it did not."""
    status = gateway.told("GET", "/admin/v1/status")
    return status if "data_loss" in status["alarms"] else {}
