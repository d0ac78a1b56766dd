"""Who is compared: Tiltyard in its variants, the bare endpoint, and the peers."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from loadtests.requests import UNIT_HEADER, Dialect, Target
from loadtests.servers import (
    LOOK_S,
    READY_S,
    ROOT,
    SERVER_CORE,
    NotReady,
    Server,
    ask,
    await_answer,
    free_port,
)

HERE: Final = Path(__file__).resolve().parent
ENVIRONMENTS: Final = HERE / ".envs"


@dataclass(frozen=True)
class Peer:
    """How a peer is spoken to, whose environment it runs in, and what its page is told."""

    path: str
    dialect: Dialect
    environment: str
    env: Mapping[str, str] = field(default_factory=dict)


PEERS: Final[Mapping[str, Peer]] = {
    "mosec": Peer("/inference", "plain", "mosec"),
    "mosec-default": Peer("/inference", "plain", "mosec", {"DEFAULTS": "1"}),
    "mlserver": Peer("/v2/models/{model}/infer", "oip", "mlserver"),
    "kserve": Peer("/v2/models/{model}/infer", "oip", "kserve"),
    "litserve": Peer("/predict", "plain", "litserve"),
    "bentoml": Peer("/infer", "plain", "bentoml"),
    "ray": Peer("/", "plain", "ray", {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}),
}
LEFT_OUT: Final[Mapping[str, str]] = {
    "torchserve": "wants Java and PyTorch beside it, and has had no release since 2024",
    "triton": "its package holds the client only; the server comes as a container image",
    "pytriton": "0.7.0 installs, but its embedded interpreter fails on Python 3.11.7's own library",
}
"""Peers that are not measured, and why."""


@dataclass(frozen=True)
class Variant:
    """How a Tiltyard is started: everything on, unless said otherwise.

    `door` is TILTYARD_HTTP_DOOR, which is set only where it is given; `uvicorn` runs the
    application under a stock uvicorn instead.
    """

    telemetry: bool = True
    split: bool = True
    door: str | None = None
    core: str = SERVER_CORE


VARIANTS: Final[Mapping[str, Variant]] = {
    "tiltyard": Variant(),
    "tiltyard-off": Variant(telemetry=False, split=False),
    "tiltyard-asgi": Variant(door="asgi"),
    "tiltyard-fast": Variant(door="fast"),
    "tiltyard-uvicorn": Variant(door="uvicorn"),
}


@dataclass
class Contestant:
    """A server that is up, and how to speak to it."""

    name: str
    server: Server
    port: int
    path: str = "/v2/models/{model}/infer"
    dialect: Dialect = "oip"

    def target(self, model: str) -> Target:
        """Where this model's inferences go."""
        return Target(self.port, self.path.format(model=model), self.dialect)

    def stop(self) -> None:
        """End it."""
        self.server.stop()


@dataclass(frozen=True)
class World:
    """What servers find when they start."""

    folder: Path
    store: Path
    redis_url: str
    sink_port: int
    env: Mapping[str, str] = field(default_factory=dict)
    """Further settings for every Tiltyard."""


@dataclass
class Tiltyard(Contestant):
    """The gateway, with the admin API at hand."""

    admin_port: int = 0
    token: str = ""

    def admin(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        """Speak to the admin API.

        Raises:
            RuntimeError: it refused.
        """
        content = None if document is None else json.dumps(document).encode()
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
        }
        where = f"/admin/v1/{path}"
        status, _, answer = ask(self.admin_port, method, where, content, headers)
        if not 200 <= status < 300:
            raise RuntimeError(f"{method} {where}: {status} {answer[:300]!r}")
        found: dict[str, Any] = json.loads(answer) if answer else {}
        return found

    def put(self, model: str, document: Mapping[str, Any]) -> None:
        """Replace an endpoint's document and wait until it is served everywhere."""
        self.admin("PUT", f"endpoints/{model}", {"schema": 1, "model": model, **document})
        deadline = time.monotonic() + READY_S
        while not self.admin("GET", "status").get("complete"):
            if time.monotonic() > deadline:
                raise NotReady(f"{self.name} does not serve the rules: {self.server.last_words()}")
            time.sleep(LOOK_S)


def split_of(*targets: Mapping[str, Any]) -> dict[str, Any]:
    """A document that splits traffic evenly by unit."""
    variants = [
        {"name": f"v{i}", "weight": 10_000 // len(targets), **target}
        for i, target in enumerate(targets)
    ]
    unit = {"header": UNIT_HEADER}
    return {
        "rules": [{"name": "ab", "split": {"exposure": 10_000, "unit": unit, "variants": variants}}]
    }


def start_bare(world: World) -> Contestant:
    """The bare endpoint, in this environment."""
    port = free_port()
    words = [sys.executable, str(HERE / "bare.py"), str(world.store), str(port)]
    server = Server("bare", words, world.folder).start()
    await_answer(server, partial(ask, port, "GET", "/ready"))
    return Contestant("bare", server, port)


def start_tiltyard(
    world: World,
    name: str,
    models: Sequence[str],
    variant: Variant = Variant(),
) -> Tiltyard:
    """A gateway of its own: state folder, namespace, ports; `models` get the 50:50 split.

    Raises:
        NotReady: it does not come up.
    """
    port, admin_port, state = free_port(), free_port(), world.folder / name
    env = {
        "PYTHONPATH": str(ROOT),
        "TILTYARD_STATE_DIR": str(state),
        "TILTYARD_MODEL_STORE": str(world.store),
        "TILTYARD_HTTP_PORT": str(port),
        "TILTYARD_ADMIN_PORT": str(admin_port),
        "TILTYARD_REDIS_URL": world.redis_url,
        "TILTYARD_REDIS_NAMESPACE": name.replace("-", ""),
        **world.env,
    }
    words = [sys.executable, "-m", "gateway", "serve"]
    if variant.door == "uvicorn":
        words = [sys.executable, "-m", "uvicorn", "gateway.app:create", "--factory"]
        words += ["--port", str(port), "--no-access-log", "--log-level", "warning"]
        env.pop("TILTYARD_WORKERS", None)
    elif variant.door is not None:
        env["TILTYARD_HTTP_DOOR"] = variant.door
    if variant.telemetry:
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{world.sink_port}"
    else:
        env["OTEL_SDK_DISABLED"] = "true"
    server = Server(name, words, world.folder, env, variant.core).start()
    gateway = Tiltyard(name, server, port, admin_port=admin_port)
    try:
        await_answer(server, partial(ask, port, "GET", "/v2/health/ready"))
        gateway.token = (state / "admin.token").read_text().strip()
        for model in models:
            evenly = split_of({"version": 1}, {"version": 2})
            gateway.put(model, evenly if variant.split else {"default": {"version": 1}})
    except Exception:
        server.stop()
        raise
    return gateway


def start_peer(world: World, name: str, model: str) -> Contestant:
    """A peer with one model, in the environment that is its own; it answers already.

    Raises:
        NotReady: it cannot be installed or does not come up.
    """
    peer = PEERS[name]
    install(peer.environment)
    folder = world.folder / f"peer-{name}"
    folder.mkdir(exist_ok=True)
    port = free_port()
    env = {
        "MODEL_FILE": str(world.store / model / "1" / "model.onnx"),
        "MODEL_NAME": model,
        "PORT": str(port),
        "SECOND_PORT": str(free_port()),
        "FOLDER": str(folder),
        "PYTHONUNBUFFERED": "1",
        **peer.env,
    }
    python = ENVIRONMENTS / peer.environment / "bin" / "python"
    words = [str(python), str(HERE / "peers" / peer.environment / "serve.py")]
    server = Server(name, words, folder, env, stop_s=5.0).start()
    return Contestant(name, server, port, peer.path, peer.dialect)


def install(name: str) -> None:
    """Make a peer's environment from its pinned requirements, if it is not as they say.

    Raises:
        NotReady: the package client failed; with its last words.
    """
    requirements = HERE / "peers" / name / "requirements.txt"
    place = ENVIRONMENTS / name
    stamp, digest = place / ".stamp", sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print(f"Installing {name} ...", flush=True)
    python = str(place / "bin" / "python")
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)],
    ]
    for words in steps:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
            said = lines[0] if lines else done.stderr[-200:]
            raise NotReady(f"{name} cannot be installed: {said}")
    stamp.write_text(digest)
