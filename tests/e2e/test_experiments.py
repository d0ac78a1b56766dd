"""Experiments from the draft to the promotion, while control is killed on the way."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import ROOT, Gateway, eventually, processes

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(150)]

EXPERIMENT = "/admin/v1/experiments/exp"
DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "endpoint": "flight-delay",
    "variants": [
        {"name": "control", "alias": "champion"},
        {"name": "candidate", "version": 2},
    ],
    "strategy": {"kind": "ramp", "steps": [2_500, 5_000], "min_units": 50, "dwell_s": 1},
    "guards": [{"name": "errors", "event": "error", "negligible": 0.05}],
    "hold_out": 500,
    "hold_out_s": 2,
}


@contextmanager
def units(gateway: Gateway) -> Iterator[None]:
    """Ever new units that ask for a flight, until the block ends."""
    body = (ROOT / "models/flight-delay/request.json").read_bytes()
    url = f"{gateway.url}/v2/models/flight-delay/infer"
    done = threading.Event()

    def ask() -> None:
        with httpx.Client() as client:
            for number in itertools.count():
                if done.is_set():
                    return
                headers = {"x-unit-id": f"unit{number}", "content-type": "application/json"}
                client.post(url, content=body, headers=headers).raise_for_status()
                time.sleep(0.003)

    asker = threading.Thread(target=ask)
    asker.start()
    yield
    done.set()
    asker.join()


def record(gateway: Gateway) -> dict[str, Any]:
    """The experiment as it stands, empty while control is away."""
    try:
        found: dict[str, Any] = gateway.told("GET", EXPERIMENT)["record"]
    except (httpx.TransportError, AssertionError):
        return {}
    return found


def has_phases(gateway: Gateway, count: int) -> bool:
    """Whether it has come to so many phases."""
    return len(record(gateway).get("phases", ())) >= count


def test_a_ramp_promotes_once_though_control_is_killed_at_every_turn(
    make_gateway: MakeGateway,
) -> None:
    """No step is lost and none is made twice, and all of them come out again at a replay."""
    gateway = make_gateway(workers=1)
    gateway.told("PUT", EXPERIMENT, DOCUMENT)
    gateway.told("POST", f"{EXPERIMENT}/start", {})
    with units(gateway):
        for phases in (2, 3):
            eventually(partial(has_phases, gateway, phases), 60)
            os.kill(processes(gateway)["control"][0], signal.SIGKILL)
        eventually(lambda: record(gateway).get("state") == "promoted", 60)

    found = record(gateway)
    assert len(found["phases"]) == 3
    assert [phase["exposure"] for phase in found["phases"]] == [5_000, 10_000, 10_000]
    model = gateway.told("GET", "/admin/v1/models/flight-delay")
    assert (model["aliases"], model["previous"]) == ({"champion": 2}, {"champion": [1]})
    assert gateway.cli_json("ledger", "verify")["broken_at"] is None
    replayed = gateway.cli_json("ledger", "replay")
    assert len(replayed) >= 3
    assert all(one["exact"] and one["difference"] is None for one in replayed)
