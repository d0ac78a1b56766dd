"""Experiments on two hosts: one tally, one leader, and each step once whoever is killed."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, free_port
from tests.e2e.loads import BODY, PATH
from tests.e2e.test_two_hosts import leads
from tests.e2e.trials import (
    Books,
    Callers,
    alias_moves,
    begin,
    champion,
    document,
    reaches,
    record,
    steps_of,
)
from tests.e2e.valkeys import ValkeyProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

VARIANTS = ("control", "candidate")
HALF = {"kind": "ramp", "steps": [5_000], "dwell_s": 0, "min_units": 100}

WATCHED = {"name": "delay", "outcome": "arrival", "role": "watch"}


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store that both hosts use."""
    server = ValkeyProcess(tmp_path / "valkey", free_port())
    server.start()
    yield server
    server.kill()


def test_two_hosts_share_tallies_and_the_survivor_takes_the_step_once(
    make_gateway: MakeGateway, valkey: ValkeyProcess
) -> None:
    """Units of both are counted; the leader is killed before there is enough to promote."""
    env = {"TILTYARD_REDIS_URL": valkey.url}
    hosts = [make_gateway(env=env, start=False).start(wait=False) for _ in range(2)]
    eventually(lambda: all(host.is_ready() for host in hosts), 60)
    begin(hosts[0], "new", document(strategy=HALF, metrics=[WATCHED]))
    eventually(lambda: all(serves(host, "new") for host in hosts))
    assert eventually(lambda: sum(leads(host) for host in hosts) == 1)
    leader, other = sorted(hosts, key=leads, reverse=True)
    books, found = Books(valkey), record(other, "new")

    with Callers(*hosts, callers=2, units=60) as both:
        eventually(lambda: len(both.diary.values) == 60)
    expected = Counter(one.variant for one in both.diary.told)
    eventually(lambda: books.received(found["id"]) == 60)
    counted: Counter[str] = Counter()
    for (_, variant), cell in books.cells(found["id"]).items():
        counted[VARIANTS[variant]] += cell.assigned
    assert counted == expected
    assert record(other, "new")["state"] == "running"

    leader.kill()
    with Callers(other, name="v") as load:
        reaches(other, "new", "promoted")
        other.settle()
        load.go_on(20)
    assert leads(other)
    leader.start()
    eventually(lambda: serves_version(leader) == "2")
    states = [one["document"]["state"] for one in steps_of(other, "new")]
    assert states.count("promoted") == 1
    assert states[-1] == "promoted"
    assert alias_moves(other) == [2]
    assert champion(leader) == champion(other) == 2
    assert steps_of(leader, "new") == steps_of(other, "new")


def serves(gateway: Gateway, name: str) -> bool:
    """Whether this host knows an experiment and serves the newest revision."""
    shown = gateway.ask("GET", f"/admin/v1/experiments/{name}")
    return shown.is_success and bool(gateway.told("GET", "/admin/v1/status")["complete"])


def serves_version(gateway: Gateway) -> str:
    """The version that answers somebody who names no unit."""
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        return str(client.post(PATH, content=BODY).headers["x-model-version"])
