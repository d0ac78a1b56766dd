"""Experiments while processes die: what was acknowledged is counted, and counted once."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, free_port, processes
from tests.e2e.trials import (
    PATIENCE_S,
    Books,
    Callers,
    Diary,
    alias_moves,
    begin,
    champion,
    close_to,
    document,
    reaches,
    record,
    reference,
    steps_of,
)
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

VARIANTS = ("control", "candidate")
MANY = [500, 1_000, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000]
FEW = [500, 1_500, 3_000, 5_000]
OUTAGE_S = 15
"""How long an outcome may take to be accepted while processes come back."""
DELAY = {
    "name": "delay",
    "outcome": "arrival",
    "direction": "decrease",
    "margin": 3.0,
    "window_s": 1,
    "maturity_s": OUTAGE_S,
}
MOMENTS = {
    "an outcome was shipped": "xadd {tiltyard}:evidence",
    "a fold begins": "watch {tiltyard}:fold",
    "a fold was written": "hset {tiltyard}:fold mark",
    "a step begins": "watch {tiltyard}:snapshot",
    "a step was written": "set {tiltyard}:snapshot",
}
"""Commands at which control is killed: before, between and behind what it writes."""
PROMOTED = '"state":"promoted"'


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store that outlives the gateway."""
    server = ValkeyProcess(tmp_path / "valkey", free_port())
    server.start()
    yield server
    server.kill()


def climb(steps: list[int]) -> dict[str, Any]:
    """A ramp of many quick steps whose outcomes are watched, so that guards alone decide."""
    strategy = {"kind": "ramp", "steps": steps, "dwell_s": 0, "min_units": 1}
    return document(strategy=strategy, metrics=[{**DELAY, "role": "watch"}])


def kill_control_at(valkey: ValkeyProcess, gateway: Gateway, *words: str) -> None:
    """Kill control when the store has heard a command that begins so and holds all the words."""
    client: Any = redis.Redis.from_url(valkey.url, socket_timeout=PATIENCE_S)
    control = processes(gateway)["control"][0]
    try:
        with client.monitor() as monitor:
            heard = ""
            while not (heard.startswith(words[0]) and all(word in heard for word in words)):
                heard = monitor.next_command()["command"].lower()
            os.kill(control, signal.SIGKILL)
    finally:
        client.close()
    eventually(lambda: is_back(gateway, control), PATIENCE_S)


def is_back(gateway: Gateway, killed: int) -> bool:
    """Whether a new control answers."""
    try:
        return (
            killed not in processes(gateway)["control"]
            and gateway.ask("GET", "/admin/v1/status").status_code == 200
        )
    except httpx.TransportError:
        return False


def check_climb(gateway: Gateway, name: str, steps: list[int]) -> None:
    """Every step was taken, each once and in order, and the alias moved once."""
    taken = [
        (one["document"]["state"], one["document"]["step"], one["document"]["exposure"])
        for one in steps_of(gateway, name)
    ]
    last = len(steps) - 1
    climbed = [("running", step, 2 * share) for step, share in enumerate(steps)]
    moved = [one for one in dict.fromkeys(taken) if one != climbed[0]]  # there may be a verdict
    assert moved == [*climbed[1:], ("promoted", last, 10_000)]
    assert taken.count(("promoted", last, 10_000)) == 1
    phases = [phase["exposure"] for phase in record(gateway, name)["phases"]]
    assert phases == [2 * share for share in steps]
    assert champion(gateway) == 2
    assert alias_moves(gateway) == [2]
    assert "The chain holds" in gateway.run_cli("ledger", "verify")
    assert "bit for bit, 0 on other versions" in gateway.run_cli("ledger", "replay")


def check_tallies(gateway: Gateway, valkey: ValkeyProcess, name: str, diary: Diary) -> None:
    """The tallies are a single pass over what callers were told is accepted."""
    books, found = Books(valkey), record(gateway, name)
    expected = reference(diary, found["phases"], VARIANTS)
    total = sum(one.units for one in expected.values())
    eventually(lambda: books.received(found["id"]) == total, PATIENCE_S)
    eventually(lambda: books.waiting(found["id"], "delay") == 0, OUTAGE_S + PATIENCE_S)
    cells = books.cells(found["id"]).values()
    assert sum(cell.received for cell in cells) == total
    assert sum(cell.metrics["delay"].late for cell in cells) == 0
    sums = books.sums(found["id"], "delay")
    assert sums.keys() == expected.keys()
    assert all(close_to(sums[key], expected[key]) for key in expected), (sums, expected)
    results = Counter(books.results(found["id"]))
    assert results["accepted"] == total
    assert results["contradiction"] == results["damaged"] == 0


@pytest.mark.slow
def test_control_may_be_killed_at_any_moment_of_folding_and_promotion(
    make_gateway: MakeGateway, valkey: ValkeyProcess
) -> None:
    """Kill -9 again and again: each outcome counts once, each step is taken once."""
    chance = random.Random(time.time_ns())
    gateway = make_gateway(env={"TILTYARD_REDIS_URL": valkey.url}, workers=1)
    begin(gateway, "new", climb(MANY))
    with Callers(gateway) as load:
        for moment in chance.sample([*MOMENTS], len(MOMENTS)):
            kill_control_at(valkey, gateway, MOMENTS[moment])
            load.catch_up()
        eventually(lambda: record(gateway, "new")["step"] == len(MANY) - 1, PATIENCE_S)
        kill_control_at(valkey, gateway, MOMENTS["a step begins"])
        load.catch_up()
        kill_control_at(valkey, gateway, MOMENTS["a step was written"], PROMOTED)
        reaches(gateway, "new", "promoted", within_s=PATIENCE_S)
        load.go_on(20)
    check_climb(gateway, "new", MANY)
    check_tallies(gateway, valkey, "new", load.diary)


@pytest.mark.slow
def test_while_the_store_is_away_outcomes_wait_and_nothing_moves(
    make_gateway: MakeGateway, valkey: ValkeyProcess
) -> None:
    """Kill -9 of Valkey: outcomes are accepted, the ramp stands still; both go on once after."""
    gateway = make_gateway(env={"TILTYARD_REDIS_URL": valkey.url}, workers=1)
    begin(gateway, "new", climb(FEW))
    with Callers(gateway) as load:
        eventually(lambda: record(gateway, "new")["step"] > 0, 2 * PATIENCE_S)
        valkey.kill()
        load.go_on(20)
        told, accepted = len(load.diary.told), len(load.diary.values)
        before = gateway.told("GET", "/admin/v1/status")["revision"]
        load.go_on(400)
        assert len(load.diary.values) > accepted + 200
        assert {one.revision for one in load.diary.told[told:]} == {before}
        valkey.start()
        reaches(gateway, "new", "promoted", within_s=PATIENCE_S)
        load.go_on(20)
    check_climb(gateway, "new", FEW)
    check_tallies(gateway, valkey, "new", load.diary)
