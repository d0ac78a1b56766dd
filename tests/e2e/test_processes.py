"""Many processes: whichever of them dies, stops or starts, callers and operators notice little."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import Gateway, eventually, processes, resident_mib
from tests.e2e.loads import BODY, PATH, Load

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

FLIGHT = "/v2/models/flight-delay"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of two workers that the stories which leave it whole share."""
    env = {"TILTYARD_PROCESSES_HEARTBEAT_S": "2"}
    gateway = Gateway(tmp_path_factory.mktemp("processes"), env=env, workers=2).start()
    yield gateway
    gateway.close()


@pytest.fixture
def pair(shared: Gateway) -> Gateway:
    """Two workers and control, all ready."""
    whole(shared)
    return shared


def whole(gateway: Gateway) -> None:
    """Wait until every process is there and every worker serves the newest revision."""

    def is_whole() -> bool:
        found = processes(gateway)
        if len(found["control"]) != 1 or len(found["worker"]) != gateway.workers:
            return False
        try:
            status = gateway.told("GET", "/admin/v1/status")
        except (httpx.TransportError, AssertionError):
            return False
        states = ready_count(gateway)
        return bool(status["complete"] and status["ready"] and states == gateway.workers)

    eventually(is_whole, 30)


def ready_count(gateway: Gateway) -> float:
    """Workers in which the first version of the flights is ready."""
    for line in gateway.ask("GET", "/metrics").text.splitlines():
        if line.startswith("tiltyard_model_state") and all(
            word in line for word in ('"flight-delay"', '"ready"', 'version="1"')
        ):
            return float(line.rpartition(" ")[2])
    return 0


def predictions(gateway: Gateway) -> float:
    """Predictions that the metrics count."""
    text = gateway.ask("GET", "/metrics").text
    lines = re.findall(r"(?m)^tiltyard_prediction_duration_seconds_count\{.*\} (\d+)$", text)
    return sum(float(count) for count in lines)


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    return not Path(f"/proc/{pid}").exists()


def test_a_killed_worker_costs_its_own_requests_only(pair: Gateway) -> None:
    """SIGKILL of a worker under load fails what it had in flight; the others and the port go on."""
    victim = processes(pair)["worker"][0]
    before = predictions(pair)

    with Load(pair, 12) as load:
        os.kill(victim, signal.SIGKILL)
        load.go_on(300)
        whole(pair)
        load.go_on(100)

    assert all(len(asker.failures) <= 1 for asker in load.askers), load.failures
    assert len(load.failures) < len(load.askers)
    assert victim not in processes(pair)["worker"]
    assert predictions(pair) >= before


def test_what_a_killed_worker_had_in_flight_is_counted(pair: Gateway) -> None:
    """Requests that died with a worker are counted, each by the version that ran it.

    One that was answered at that very moment may be among them.
    """

    def lost() -> float:
        text = pair.ask("GET", "/metrics").text
        found = re.findall(r"(?m)^tiltyard_prediction_lost_total\{(.*)\} (\d+)$", text)
        assert all('tiltyard_model_name="flight-delay"' in labels for labels, _ in found)
        return sum(float(count) for _, count in found)

    before = lost()
    for _ in range(20):
        with Load(pair, 32) as load:
            os.kill(processes(pair)["worker"][-1], signal.SIGKILL)
            load.go_on(50)
        whole(pair)
        if lost() > before:
            break

    assert 0 < lost() - before <= 20 * 32


def test_killing_control_fails_no_request(pair: Gateway) -> None:
    """With control gone, workers answer on; the next control finds them as they are."""
    control, workers = processes(pair)["control"][0], processes(pair)["worker"]
    revision = pair.told("GET", "/admin/v1/status")["revision"]

    with Load(pair) as load:
        os.kill(control, signal.SIGKILL)
        load.go_on(300)
        whole(pair)
        load.go_on(100)

    assert load.failures == []
    assert processes(pair)["worker"] == workers
    assert pair.told("GET", "/admin/v1/status")["revision"] == revision


def test_while_control_is_away_the_repository_says_so(pair: Gateway) -> None:
    """What only control knows is answered with 503 and a sentence; health and inference go on."""
    control = processes(pair)["control"][0]
    os.kill(control, signal.SIGSTOP)

    ready = httpx.get(f"{pair.url}/v2/health/ready", timeout=10)
    answer = httpx.post(pair.url + PATH, content=BODY, timeout=10)
    refused = httpx.post(f"{pair.url}/v2/repository/index", timeout=10)
    whole(pair)

    assert (ready.status_code, answer.status_code) == (200, 200)
    assert refused.status_code == 503
    assert refused.json() == {"error": "Control is away; ask again in a moment."}
    assert is_gone(control)


def test_who_was_stopped_as_a_whole_goes_on_as_a_whole(pair: Gateway) -> None:
    """A host that sleeps, or a Ctrl-Z, makes every heartbeat old; nobody is replaced for it."""
    assert pair.process is not None
    found = processes(pair)
    everybody = [pair.process.pid, *found["control"], *found["worker"]]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 3
    eventually(lambda: time.monotonic() > until)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)

    whole(pair)

    assert processes(pair) == found


def test_a_stopped_worker_is_stood_in_for_and_replaced(pair: Gateway) -> None:
    """New connections of a worker that is stopped are another's within seconds; it is replaced."""
    victim = processes(pair)["worker"][0]
    os.kill(victim, signal.SIGSTOP)
    began = time.monotonic()

    answers = [httpx.post(pair.url + PATH, content=BODY, timeout=10) for _ in range(20)]
    took = time.monotonic() - began
    eventually(lambda: is_gone(victim))
    whole(pair)

    assert [answer.status_code for answer in answers] == [200] * 20
    assert took < 15


def test_whichever_process_answers_the_answer_is_the_same(pair: Gateway) -> None:
    """Index and statistics are the host's: every connection, to whatever worker, sees the same."""
    with Load(pair, 8) as load:
        load.go_on(200)

    def ask(path: str, method: str = "GET") -> str:
        return httpx.request(method, pair.url + path, timeout=10).text

    indices = {ask("/v2/repository/index", "POST") for _ in range(8)}
    statistics = {ask(f"{FLIGHT}/stats") for _ in range(8)}
    counted = {predictions(pair) for _ in range(4)}

    assert (len(indices), len(statistics), len(counted)) == (1, 1, 1)


def test_a_promotion_reaches_every_worker(pair: Gateway) -> None:
    """Once the status says complete, no worker answers with the version before."""
    for version in (2, 1):
        pair.told("POST", "/admin/v1/models/flight-delay/promote", {"version": version})
        pair.settle()
        answers = {
            httpx.post(pair.url + PATH, content=BODY, timeout=10).json()["model_version"]
            for _ in range(16)
        }
        assert answers == {str(version)}


def test_a_worker_that_cannot_live_is_tried_ever_more_rarely(pair: Gateway) -> None:
    """A crash loop backs off, and the worker that lives serves on without a failure."""
    seen: set[int] = set()
    survivor = processes(pair)["worker"][-1]

    with Load(pair, 2) as load:
        load.go_on(10)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            for pid in processes(pair)["worker"]:
                if pid != survivor:
                    seen.add(pid)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        load.go_on(10)

    assert 1 < len(seen) <= 7
    assert survivor in processes(pair)["worker"]


def test_a_worker_that_outgrows_its_limit_is_replaced_without_a_failure(
    make_gateway: MakeGateway,
) -> None:
    """Workers beyond the soft limit are drained and replaced in turn; nobody is refused."""
    env = {"TILTYARD_PROCESSES_MEMORY_MIB": "16"}
    gateway = make_gateway(env=env, workers=2)
    seen = set(processes(gateway)["worker"])

    with Load(gateway, 4) as load:

        def replaced() -> bool:
            living = processes(gateway)["worker"]
            seen.update(living)
            assert living
            return len(seen) >= 5

        eventually(replaced, 30)
        load.go_on(20)

    assert load.failures == []
    assert "outgrew its memory limit" in gateway.log


def test_a_killed_supervisor_takes_the_others_with_it(make_gateway: MakeGateway) -> None:
    """Workers and control notice that they are alone, finish and end, the store included."""
    gateway = make_gateway(workers=2)
    started = [pid for pids in processes(gateway).values() for pid in pids]
    store = [
        int(pid)
        for control in processes(gateway)["control"]
        for pid in Path(f"/proc/{control}/task/{control}/children").read_text().split()
    ]
    assert len(started) == 3
    assert store

    gateway.kill()

    eventually(lambda: all(is_gone(pid) for pid in started + store), 15)


def test_sigterm_under_load_fails_no_request(make_gateway: MakeGateway) -> None:
    """Clients that honour `connection: close` are all answered; the tree ends in time, with 0."""
    gateway = make_gateway(env={"TILTYARD_DRAIN_DELAY_S": "1.0"}, workers=2)
    started = [pid for pids in processes(gateway).values() for pid in pids]

    with Load(gateway, until_gone=True) as load:
        began = time.monotonic()
        code = gateway.stop()
        took = time.monotonic() - began
        load.join()

    assert (load.failures, code) == ([], 0)
    assert took < 15
    assert all(is_gone(pid) for pid in started)
    assert "Traceback" not in gateway.log


def test_idle_processes_are_small(pair: Gateway) -> None:
    """An idle worker with the sample models stays within its room, and so does the supervisor."""
    assert pair.process is not None
    assert resident_mib(pair.process.pid) < 40
    assert all(resident_mib(pid) < 120 for pid in processes(pair)["worker"])
