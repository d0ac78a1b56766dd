"""A real MLflow server is followed: versions, lineage, the champion's alias, signed webhooks.

The server runs in an environment of its own (`make test` makes it).
"""

import base64
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.gateways import ROOT, Gateway, eventually, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(120)]

SERVER = ROOT / ".venv-mlflow" / "bin" / "mlflow"
API = "/api/2.0/mlflow"
SECRET = "of-the-webhook"
MODEL = "delays"
HOOK = "/admin/v1/mlflow/webhook"


class Mlflow:
    """A server in a folder of its own, spoken to as any client would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        key = base64.urlsafe_b64encode(os.urandom(32)).decode()
        environ = {
            **os.environ,
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": key,
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_WEBHOOK_CACHE_TTL": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        words = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        words += ["--artifacts-destination", str(folder / "artifacts")]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [SERVER, *words],
                cwd=folder,
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_up(self) -> bool:
        """Whether it answers; fails if it is gone."""
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path: str, **document: Any) -> dict[str, Any]:
        """Ask for something that must not fail."""
        response = httpx.post(f"{self.url}{API}/{path}", json=document, timeout=30)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def log_version(self, source: Path, **metrics: float) -> int:
        """Log a run with a model's file and register it; the version's number."""
        run = self.post("runs/create", experiment_id="0", user_id="tina", start_time=0)["run"]
        run_id = run["info"]["run_id"]
        place = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        self.post(
            "runs/log-batch",
            run_id=run_id,
            params=[{"key": "C", "value": "0.5"}],
            metrics=[
                {"key": key, "value": value, "timestamp": 0} for key, value in metrics.items()
            ],
            tags=[{"key": "mlflow.source.git.commit", "value": "abc123"}],
        )
        dataset = {"name": "f", "digest": "2981c147", "source_type": "s3", "source": "{}"}
        self.post("runs/log-inputs", run_id=run_id, datasets=[{"dataset": dataset}])
        put = httpx.put(
            f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{place}/model/model.onnx",
            content=source.read_bytes(),
            timeout=30,
        )
        assert put.is_success, put.text
        made = self.post(
            "model-versions/create", name=MODEL, source=f"runs:/{run_id}/model", run_id=run_id
        )
        return int(made["model_version"]["version"])

    def close(self) -> None:
        """Leave nothing running."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    """A server with one registered version, its champion."""
    if not SERVER.exists():
        pytest.skip("`make test` makes the environment .venv-mlflow; it is not there")
    server = Mlflow(tmp_path_factory.mktemp("mlflow"))
    try:
        eventually(server.is_up, 90)
        server.post("registered-models/create", name=MODEL)
        first = server.log_version(ROOT / "models/flight-delay/1/model.onnx", auc=0.67)
        server.post("registered-models/alias", name=MODEL, alias="champion", version=str(first))
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def gateway(mlflow: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that follows it; it looks once a minute unless it is told to look sooner."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "models").mkdir()
    started = Gateway(
        folder / "state",
        models=folder / "models",
        env={
            "TILTYARD_MLFLOW_URL": mlflow.url,
            "TILTYARD_MLFLOW_POLL_S": "60",
            "TILTYARD_MLFLOW_WEBHOOK_SECRET": SECRET,
            "TILTYARD_INSPECTION_MODE": "short",
        },
    )
    started.start(wait=False)
    try:
        eventually(lambda: _models(started), 60)
        mlflow.post(
            "webhooks",
            name="tiltyard",
            url=f"{started.admin_url}{HOOK}",
            secret=SECRET,
            events=[
                {"entity": "MODEL_VERSION", "action": "CREATED"},
                {"entity": "MODEL_VERSION_ALIAS", "action": "CREATED"},
            ],
        )
        yield started
    finally:
        started.close()
        shutil.rmtree(folder, ignore_errors=True)


def _models(gateway: Gateway) -> list[str]:
    try:
        return [model["name"] for model in gateway.told("GET", "/admin/v1/models")["models"]]
    except (httpx.TransportError, FileNotFoundError, AssertionError):
        return []


def _champion(gateway: Gateway) -> int:
    number: int = gateway.told("GET", f"/admin/v1/models/{MODEL}")["aliases"]["champion"]
    return number


def test_the_champion_of_there_is_served_with_its_lineage(gateway: Gateway) -> None:
    """What was registered there before is here, with what its run logged."""
    assert _models(gateway) == [MODEL]
    assert _champion(gateway) == 1
    (version,) = gateway.told("GET", f"/admin/v1/models/{MODEL}/versions")["versions"]
    assert (version["lineage"]["commit"], version["lineage"]["trainer"]) == ("abc123", "tina")
    assert version["lineage"]["metrics"] == {"auc": 0.67}
    assert (gateway.models / MODEL / "1" / "model.onnx").exists()
    (registered,) = [entry for entry in gateway.audit() if entry["action"] == "model.register"]
    assert registered["actor"] == "mlflow"


def test_a_webhook_brings_a_move_at_once(gateway: Gateway, mlflow: Mlflow) -> None:
    """The next look of its own would be a minute away."""
    number = mlflow.log_version(ROOT / "models/flight-delay/2/model.onnx", auc=0.7)
    mlflow.post("registered-models/alias", name=MODEL, alias="champion", version=str(number))
    eventually(lambda: _champion(gateway) == number, 30)
    promoted = [entry for entry in gateway.audit() if entry["action"] == "model.promote"]
    assert promoted[-1]["actor"] == "mlflow"


def test_a_gate_keeps_a_move_waiting(gateway: Gateway, mlflow: Mlflow) -> None:
    """It is pending with what is missing, and made once somebody else approved it."""
    before = _champion(gateway)
    approvals = [{"role": "approver", "count": 1}]
    gate = {"schema": 1, "models": [MODEL], "promotion": {"approvals": approvals}}
    gateway.told("PUT", f"/admin/v1/gates/{MODEL}", gate)
    number = mlflow.log_version(ROOT / "models/flight-delay/1/model.onnx", auc=0.68)
    mlflow.post("registered-models/alias", name=MODEL, alias="champion", version=str(number))
    wished = {"model": MODEL, "alias": "champion", "version": number}
    pending = eventually(lambda: gateway.told("GET", "/admin/v1/mlflow")["pending"], 30)
    assert wished.items() <= pending[0].items()
    assert "approval" in gateway.ask("GET", "/admin/v1/wishes").text
    assert _champion(gateway) == before
    gateway.run_cli("principal", "put", "ana", "--role", f"approver:{MODEL}")
    token = gateway.run_cli("token", "issue", "ana").split()[0]
    path = f"/admin/v1/models/{MODEL}/versions/{number}/approve"
    approved = gateway.ask("POST", path, {}, Authorization=f"Bearer {token}")
    assert approved.is_success, approved.text
    eventually(lambda: _champion(gateway) == number, 30)
    promoted = [entry for entry in gateway.audit() if entry["action"] == "model.promote"]
    assert promoted[-1]["actor"] == "mlflow"
    assert promoted[-1]["evidence"]["gates"][0]["approvals"] == ["ana"]
    gateway.run_cli("rollback", MODEL)


def test_a_rollback_here_is_not_fought(gateway: Gateway) -> None:
    """The alias there stands still, however often it is looked at."""
    gateway.run_cli("rollback", MODEL)
    told = gateway.cli_json("mlflow", "sync")
    assert told["error"] is None
    assert _champion(gateway) == 1


def test_a_forged_webhook_is_refused(gateway: Gateway) -> None:
    """And nobody looks because of it."""
    asked = gateway.cli_json("mlflow", "status")["asked"]
    headers = {"x-mlflow-delivery-id": "d", "x-mlflow-timestamp": "1", "x-mlflow-signature": "v1,"}
    response = httpx.post(f"{gateway.admin_url}{HOOK}", content=b"{}", headers=headers)
    assert response.status_code == 401
    assert gateway.cli_json("mlflow", "status")["asked"] == asked
