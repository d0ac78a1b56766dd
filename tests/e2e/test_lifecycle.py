"""Start and stop, under the names and servers that people use."""

import asyncio
import json
import signal
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.conftest import MakeGateway
from tests.e2e.gateways import ROOT, Gateway, eventually, free_port
from tests.e2e.test_flights import PATH, TRAFFIC
from tests.e2e.valkeys import ValkeyProcess
from tests.onnx_models import save, slow

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

REQUEST = ROOT / "models" / "flight-delay" / "request.json"
EXAMPLE = ROOT / "docs" / "examples" / "ab.json"


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    return not Path(f"/proc/{pid}").exists()


def children(gateway: Gateway) -> list[int]:
    """The processes that a gateway started."""
    assert gateway.process is not None
    path = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_leaves_nothing(
    make_gateway: MakeGateway, signum: signal.Signals, workers: int
) -> None:
    """Ctrl-C and SIGTERM end the process with code 0, its embedded store with it, in time."""
    gateway = make_gateway(workers=workers)
    started = children(gateway)
    assert len(started) == (1 + workers)

    assert gateway.stop(signum) == 0

    assert all(is_gone(pid) for pid in started)
    assert "Traceback" not in gateway.log


def test_sigterm_under_load_fails_no_request(make_gateway: MakeGateway) -> None:
    """Clients that leave when they are told `connection: close` see every request answered."""
    gateway = make_gateway(env={"TILTYARD_DRAIN_DELAY_S": "1.0"})
    flights = list(read_flights(TRAFFIC, 50))
    process = gateway.process
    assert process is not None

    async def story() -> tuple[int, int, int]:
        answered = 0

        async def ask() -> bool:
            nonlocal answered
            async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
                for index in range(100_000):
                    body = infer_body(flights[index % len(flights)])
                    response = await client.post(PATH, content=body)
                    assert response.status_code == 200, response.text
                    answered += 1
                    if response.headers.get("connection") == "close":
                        return True
            return False

        askers = [asyncio.create_task(ask()) for _ in range(8)]
        while answered < 200:  # noqa: ASYNC110 - other tasks count it up
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        told = sum(await asyncio.gather(*askers))
        return answered, told, await asyncio.to_thread(process.wait, 20)

    answered, told, code = asyncio.run(story())

    assert answered >= 200
    assert (told, code) == (8, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_that_hangs_cannot_keep_the_process(
    make_gateway: MakeGateway, tmp_path: Path, workers: int
) -> None:
    """With a run that does not end, SIGTERM still ends the process within its time to stop in."""
    version = tmp_path / "models" / "endless" / "1"
    version.mkdir(parents=True)
    save(slow(turns=2_000_000_000), version)
    valkey = ValkeyProcess(tmp_path / "valkey", free_port())
    valkey.start()
    env = {"TILTYARD_STOP_S": "1", "TILTYARD_REDIS_URL": valkey.url}
    gateway = make_gateway(models=tmp_path / "models", env=env, start=False, workers=workers)
    gateway.start(wait=False)

    def is_loading() -> bool:
        index = httpx.post(f"{gateway.url}/v2/repository/index", timeout=5)
        return [entry["state"] for entry in index.json()] == ["LOADING"]

    def listens() -> bool:
        try:
            return is_loading()
        except httpx.TransportError:
            return False

    eventually(listens)

    assert gateway.stop(signal.SIGTERM) == 1
    valkey.kill()


def test_uvicorn_runs_the_factory(make_gateway: MakeGateway) -> None:
    """`uvicorn gateway.app:create --factory` serves, with the admin listener on its own port."""
    gateway = make_gateway(start=False)
    words = [sys.executable, "-m", "uvicorn", "gateway.app:create", "--factory"]
    gateway.start(command=[*words, "--port", str(gateway.port)])

    answer = httpx.post(gateway.url + PATH, content=REQUEST.read_bytes())
    on_public_port = httpx.get(f"{gateway.url}/admin/v1/status")

    assert answer.status_code == 200
    assert gateway.told("GET", "/admin/v1/status")["ready"] is True
    assert on_public_port.status_code == 404
    assert gateway.stop(signal.SIGTERM) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("workers", [0, 1])
def test_both_listeners_speak_tls(make_gateway: MakeGateway, tmp_path: Path, workers: int) -> None:
    """With a certificate, inference and admin answer over TLS and not in the clear."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, trusted = (str(tmp_path / name) for name in ("chain.pem", "key.pem", "ca.pem"))
    certificate.private_key_pem.write_to_path(key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    authority.cert_pem.write_to_path(trusted)
    listeners = ("HTTP", "ADMIN")
    env = {f"TILTYARD_{name}_TLS_CERT": chain for name in listeners}
    env |= {f"TILTYARD_{name}_TLS_KEY": key for name in listeners}
    gateway = make_gateway(env=env, start=False, workers=workers)
    gateway.start(wait=False)

    with httpx.Client(verify=ssl.create_default_context(cafile=trusted)) as client:

        def ready() -> bool:
            try:
                url = gateway.url.replace("http:", "https:")
                return client.get(f"{url}/v2/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        assert eventually(ready, 30)
        admin = gateway.admin_url.replace("http:", "https:")
        headers = {"Authorization": f"Bearer {gateway.token}"}
        assert client.get(f"{admin}/admin/v1/status", headers=headers).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{gateway.url}/v2/health/live")


@pytest.fixture(scope="module", params=[0, 1])
def first(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that another one shall not disturb."""
    running = Gateway(tmp_path_factory.mktemp("first"), workers=request.param).start()
    yield running
    running.close()


def test_a_taken_port_is_one_clear_sentence(first: Gateway, make_gateway: MakeGateway) -> None:
    """A second gateway on the same port ends with code 5 and says which port it was."""
    second = make_gateway(start=False, workers=first.workers)
    second.port = first.port
    second.start(wait=False)
    assert second.process is not None

    code = second.process.wait(30)

    assert code == 5
    assert str(first.port) in second.log
    assert "Traceback" not in second.log


def test_a_second_gateway_on_one_state_folder_is_refused(
    first: Gateway, make_gateway: MakeGateway
) -> None:
    """Two embedded stores never share one log: the second gateway ends with a clear sentence."""
    second = make_gateway(state=first.state, start=False, workers=first.workers)
    second.start(wait=False)
    assert second.process is not None

    assert second.process.wait(30) == 5
    assert first.is_ready()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_admin_listener_beyond_loopback_needs_a_token(
    make_gateway: MakeGateway, workers: int
) -> None:
    """Without a token the gateway refuses to open its admin port to others."""
    gateway = make_gateway(env={"TILTYARD_ADMIN_HOST": "0.0.0.0"}, start=False, workers=workers)
    gateway.start(wait=False)
    assert gateway.process is not None

    assert gateway.process.wait(30) == 1
    assert "TILTYARD_ADMIN_TOKEN" in gateway.log


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_phones_home(make_gateway: MakeGateway, tmp_path: Path, workers: int) -> None:
    """Onnxruntime's telemetry is off: it writes no device id into the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    gateway = make_gateway(env={"HOME": str(home)}, workers=workers)
    httpx.post(gateway.url + PATH, content=REQUEST.read_bytes())

    gateway.stop()

    assert list(home.rglob("*onnxruntime*")) == []


def test_the_demo_tells_its_story(make_gateway: MakeGateway) -> None:
    """Real flights go through three experiments that end as they should, and all is put back."""
    gateway = make_gateway()
    endpoint, model = "/admin/v1/endpoints/flight-delay", "/admin/v1/models/flight-delay"
    gateway.told("PUT", endpoint, json.loads(EXAMPLE.read_text()))
    before, champion = gateway.told("GET", endpoint), gateway.told("GET", model)["aliases"]

    told = gateway.cli_json("demo", "--requests", "3000")

    ramp, same, drill = told["chapters"]
    assert told["errors"] == {}
    assert told["outcomes"] > 1_000
    assert ramp["report"]["phases"]
    assert ramp["is_right"]
    assert same["is_right"]
    assert (drill["state"], drill["reason"], drill["is_right"]) == ("rolled_back", "harm", True)
    assert 0 < drill["took"] < 150
    for part in ("document", "splits", "etag"):
        assert gateway.told("GET", endpoint)[part] == before[part]
    aliases = gateway.told("GET", model)["aliases"]
    assert {**champion, "demo-champion": aliases["demo-champion"]} == aliases
    assert gateway.ask("GET", f"{endpoint}-demo").status_code == 404
    assert gateway.told("GET", "/admin/v1/experiments")["experiments"] == []
