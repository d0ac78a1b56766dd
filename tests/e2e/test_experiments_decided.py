"""Experiments on real traffic: one is promoted, one does harm and is rolled back."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.gateways import Gateway, eventually, free_port
from tests.e2e.test_flights import PATH
from tests.e2e.trials import (
    BODIES,
    ENDPOINT,
    Books,
    Callers,
    alias_moves,
    begin,
    champion,
    close_to,
    document,
    reaches,
    record,
    reference,
    report,
    steps_of,
)
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

DRILL = "flight-delay-drill"
DRILL_PATH = f"/v2/models/{DRILL}/infer"
VARIANTS = ("control", "candidate")
NOTICED_S = 2.0
"""Between evidence of harm and the last answer by the candidate, of any worker."""

RAMP = document(
    strategy={"kind": "ramp", "steps": [2_000, 5_000], "dwell_s": 2, "min_units": 20},
    shadow={
        "min_compared": 40,
        "dwell_s": 0,
        "max_disagreed": 0.9,
        "tolerance": {"absolute": 1.0, "relative": 1.0},
    },
    metrics=[
        {
            "name": "delay",
            "outcome": "arrival",
            "direction": "decrease",
            "margin": 2.5,
            "window_s": 1,
            "maturity_s": 2,
            "planned_units": 200,
        },
        {
            "name": "loss",
            "outcome": "late",
            "role": "watch",
            "score": "log_loss",
            "scalar": "probabilities:1",
            "direction": "decrease",
            "window_s": 1,
            "maturity_s": 2,
        },
    ],
)
DRILLED = document(
    endpoint=DRILL,
    strategy={"kind": "ramp", "steps": [2_000], "control": "remaining", "dwell_s": 600},
    guards=[
        {"name": "invalid", "event": "invalid_output"},
        {"name": "slow", "event": "slow", "over_ms": 15},
    ],
)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A store that the tests may look into."""
    server = ValkeyProcess(tmp_path_factory.mktemp("store") / "valkey", free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Control and two workers."""
    place: Path = tmp_path_factory.mktemp("gateway")
    made = Gateway(place, env={"TILTYARD_REDIS_URL": valkey.url}, workers=2).start()
    yield made
    made.close()


def set_apart(gateway: Gateway) -> None:
    """Ask with a forced variant and with a pinned version, and report on what was answered."""
    token = {"Authorization": f"Bearer {gateway.token}"}
    pinned = PATH.replace("/infer", "/versions/2/infer")
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        for number in range(5):
            unit = {"X-Unit-Id": f"apart{number}"}
            forced = {"X-Force-Variant": "candidate", **token, **unit}
            for path, headers in ((PATH, forced), (pinned, unit)):
                answer = client.post(path, content=BODIES[number], headers=headers)
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-model-version"] == "2"
                about = answer.headers["x-prediction-id"]
                item = {"prediction_id": about, "metric": "arrival", "value": 1e6}
                told = client.post("/v1/outcomes", json=item, headers=token)
                assert told.status_code == 202, told.text


def test_a_ramp_climbs_on_evidence_and_is_promoted(gateway: Gateway, valkey: ValkeyProcess) -> None:
    """From the shadow stage to the alias; who was enrolled never moved; all of it is replayed."""
    gateway.told("PUT", "/admin/v1/endpoints/flight-delay", ENDPOINT)
    begin(gateway, "new", RAMP)
    with (
        Callers(gateway) as once,
        Callers(gateway, name="r", callers=1, returning=60, metric=None) as regulars,
    ):
        assert record(gateway, "new")["state"] == "shadow"
        reaches(gateway, "new", "running")
        gateway.settle()
        set_apart(gateway)
        ended = reaches(gateway, "new", "promoted")
        gateway.settle()
        regulars.go_on(120)

    _check_steps(gateway)
    _check_units(ended, once, regulars)
    _check_tallies(gateway, Books(valkey), once, regulars)
    assert "The chain holds" in gateway.run_cli("ledger", "verify")
    assert "bit for bit, 0 on other versions" in gateway.run_cli("ledger", "replay")


def _check_steps(gateway: Gateway) -> None:
    steps = [
        (one["document"]["state"], one["document"]["step"]) for one in steps_of(gateway, "new")
    ]
    climbed = list(dict.fromkeys(steps))
    assert climbed == [("running", 0), ("running", 1), ("promoted", 1)]
    assert steps.count(("promoted", 1)) == 1
    assert champion(gateway) == 2
    assert alias_moves(gateway) == [2]
    seen = report(gateway, "new")
    assert seen["reason"] == "certified"
    assert {one["name"] for one in seen["readings"]} == {"errors", "delay", "loss"}
    assert seen["funnel"]["assigned"]["units"] > 0
    points = gateway.told("GET", "/admin/v1/experiments/new/history")["points"]
    assert points
    assert points == sorted(points, key=lambda point: point["at"])
    assert "candidate" in gateway.run_cli("experiment", "show", "new")


def _check_units(ended: dict[str, Any], once: Callers, regulars: Callers) -> None:
    """A unit is not enrolled at first, then it is and stays, and when all is over it is not."""
    assert [phase["exposure"] for phase in ended["phases"]] == [0, 4_000, 10_000]
    for callers in (once, regulars):
        met = [seen & set(VARIANTS) for seen in callers.diary.by_unit().values()]
        assert max(map(len, met)) == 1
        assert {"control"} in met
        assert {"candidate"} in met
    after = regulars.diary.told[-1]
    assert (after.variant, after.version) == ("default", "2")


def _check_tallies(gateway: Gateway, books: Books, once: Callers, regulars: Callers) -> None:
    """They are what callers know, and of nobody who forced a variant or named a version."""
    found = record(gateway, "new")
    expected = reference(once.diary, found["phases"], VARIANTS)
    total = sum(one.units for one in expected.values())
    eventually(lambda: books.counted(found["id"], "delay") == total)
    sums = books.sums(found["id"], "delay")
    assert all(close_to(sums[key], expected[key]) for key in expected)
    units = Counter(
        variant
        for callers in (once, regulars)
        for seen in callers.diary.by_unit().values()
        for variant in seen & set(VARIANTS)
    )
    assigned: Counter[str] = Counter()
    for (_, variant), cell in books.cells(found["id"]).items():
        assigned[VARIANTS[variant]] += cell.assigned
    assert assigned == units
    assert books.results(found["id"])["accepted"] == total


def test_a_broken_version_is_taken_away_within_two_seconds(gateway: Gateway) -> None:
    """Once harm is shown every worker answers with the control; the audit log says why."""
    begin(gateway, "drill", DRILLED)

    def harm() -> bool:
        readings = report(gateway, "drill")["readings"]
        return any(one.get("verdict") == "worse" for one in readings)

    with Callers(gateway, name="d", callers=8, path=DRILL_PATH, metric=None) as load:
        assert eventually(harm)
        shown_at = time.time()
        reaches(gateway, "drill", "rolled_back")
        gateway.settle()
        load.go_on(40)  # those that were under way are answered
        ended = len(load.diary.told)
        load.go_on(100)

    spoiled = [told.at for told in load.diary.told if told.variant == "candidate"]
    assert spoiled
    assert max(spoiled) - shown_at < NOTICED_S
    assert "candidate" not in {told.variant for told in load.diary.told[ended:]}
    assert champion(gateway, DRILL) == 1
    last = steps_of(gateway, "drill")[-1]
    assert (last["actor"], last["document"]["reason"]) == ("steward", "harm")
    assert "'candidate' does harm by 'slow'" in last["reason"]
    assert last["evidence"]["decision"]["readings"]
