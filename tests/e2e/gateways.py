"""Real gateways for the stories: a process each, on free ports, in a state folder of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

ROOT = Path(__file__).parents[2]
START_S = 60.0
STOP_S = 20.0

T = TypeVar("T")


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def eventually(condition: Callable[[], T], within_s: float = 20.0, look_s: float = 0.02) -> T:
    """The condition's first true value; fails the test when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(look_s)


@dataclass
class Gateway:
    """One `tiltyard serve`. `state` survives `stop` and `kill`, so it may be started again.

    With `workers` it is a supervisor, control and so many workers; without, one process.
    """

    state: Path
    models: Path = ROOT / "models"
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    workers: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where inferences go."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """Where the admin API is."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def token(self) -> str:
        """The admin token: the one it was given, or made on its first start."""
        return (
            self.env.get("TILTYARD_ADMIN_TOKEN") or (self.state / "admin.token").read_text().strip()
        )

    @property
    def log(self) -> str:
        """All that the process wrote."""
        return (self.state / "log").read_text(errors="replace")

    def environ(self) -> dict[str, str]:
        """The environment of a start."""
        kept = {name: value for name, value in os.environ.items() if "TILTYARD" not in name}
        return {
            **{name: value for name, value in kept.items() if not name.startswith("OTEL_")},
            "TILTYARD_STATE_DIR": str(self.state),
            "TILTYARD_MODEL_STORE": str(self.models),
            "TILTYARD_HTTP_PORT": str(self.port),
            "TILTYARD_ADMIN_PORT": str(self.admin_port),
            "TILTYARD_ADMIN_URL": self.admin_url,
            "TILTYARD_WORKERS": str(self.workers),
            # Most tests have models that are bad on purpose, or start often.
            "TILTYARD_INSPECTION_MODE": "off",
            **self.env,
        }

    def start(self, *, wait: bool = True, command: list[str] | None = None) -> "Gateway":
        """Start the process; wait until it is ready to serve."""
        self.state.mkdir(parents=True, exist_ok=True)
        words = command or [sys.executable, "-m", "gateway", "serve"]
        with (self.state / "log").open("ab") as log:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=self.environ(), stdout=log, stderr=log
            )
        if wait:
            eventually(self.is_ready, START_S)
        return self

    def is_ready(self) -> bool:
        """Whether it says it is ready; fails if the process is gone."""
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            return httpx.get(f"{self.url}/v2/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Ask the process to stop; its exit code."""
        assert self.process is not None
        self.process.send_signal(signum)
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """Take the process away without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S)

    def close(self) -> None:
        """Leave nothing running."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()

    def ask(
        self, method: str, path: str, document: object = None, **headers: str
    ) -> httpx.Response:
        """Speak to the admin API as the admin."""
        return httpx.request(
            method,
            self.admin_url + path,
            json=document,
            headers={"Authorization": f"Bearer {self.token}", **headers},
            timeout=30,
        )

    def told(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        """The admin API's answer to something it must not refuse."""
        response = self.ask(method, path, document)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    def audit(self) -> list[dict[str, Any]]:
        """Every audit entry, oldest first."""
        page = self.told("GET", "/admin/v1/audit?limit=1000")
        return [item["entry"] for item in page["entries"]]

    def settle(self, within_s: float = 20.0) -> None:
        """Wait until every process serves the newest revision."""
        eventually(lambda: self.told("GET", "/admin/v1/status")["complete"], within_s)

    def run_cli(self, *words: str, code: int = 0) -> str:
        """Run the command line against this gateway; what it printed."""
        ran = subprocess.run(
            [sys.executable, "-m", "gateway", *words],
            cwd=ROOT,
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout

    def cli_json(self, *words: str) -> Any:
        """What the command line prints for scripts."""
        return json.loads(self.run_cli(*words, "--json"))


def processes(gateway: Gateway) -> dict[str, list[int]]:
    """Processes of a gateway by what they are; the oldest first."""
    assert gateway.process is not None
    parent = gateway.process.pid
    if not gateway.workers:
        return {"control": [parent], "worker": [parent]}
    found: dict[str, list[int]] = {"control": [], "worker": []}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue
        for role, pids in found.items():
            if role.encode() in words:
                pids.append(int(pid))
    return found


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def is_complete(status: Mapping[str, Any]) -> bool:
    """Whether every process serves the revision that this host serves whole."""
    promotion = status["promotion"]
    return bool(promotion["complete"] == promotion["of"])
