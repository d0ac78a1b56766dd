"""The command demo: against the gateway that runs here, or against one of its own."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import httpx
import typer
from rich.console import Console

from gateway.core.errors import NotFound, NotReady
from gateway.doors.cli.client import find_token
from gateway.doors.cli.front import FAILED, AdminUrl, FrontStep, TokenFile, complain, front_of
from gateway.doors.cli.output import say
from gateway.doors.cli.story import MODEL, DemoOptions, run_demo
from gateway.settings import PREFIX, Settings

START_S: Final = 60.0
LOOK_S: Final = 0.1
PROBE_S: Final = 2.0


def demo(
    ctx: typer.Context,
    *,
    admin: AdminUrl,
    url: Annotated[str | None, typer.Option("--url", help="Where inference is.")] = None,
    token_file: TokenFile = None,
    requests: Annotated[
        int, typer.Option(help="Flights to send, 39,985 at most.", min=100)
    ] = 10_000,
) -> None:
    """Replay real flights through a split, a shadow, a promotion and a rollback.

    Uses the gateway that runs here; without one, it starts one of its own and stops it again.
    """
    front = front_of(ctx)
    settings = front.settings()
    traffic = Path(settings.model_store) / MODEL / "traffic.csv.gz"
    if not traffic.is_file():
        message = "The demo needs the sample models: run it in a checkout, or set the model store."
        raise NotFound(message)
    if _answers(f"{admin}/health"):
        places = (url or _inference_url(settings), admin, find_token(front, token_file))
        _tell(front, places, traffic, requests)
        return
    say("No gateway runs here; starting one of the demo's own.")
    with _own_gateway(front, settings) as places:
        _tell(front, places, traffic, requests)


def _tell(front: FrontStep, places: tuple[str, str, str], traffic: Path, requests: int) -> None:
    story = run_demo(DemoOptions(*places, traffic, requests, front.now), Console())
    if story.errors:
        complain("Some requests failed.")
        raise typer.Exit(FAILED)


@contextmanager
def _own_gateway(front: FrontStep, settings: Settings) -> Iterator[tuple[str, str, str]]:
    """A gateway with a state folder of its own; its inference and admin URLs, and its token."""
    port, admin_port = _free_port(), _free_port()
    kept = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    with TemporaryDirectory(prefix="tiltyard-demo-") as state:
        environ = {
            **kept,
            "TILTYARD_STATE_DIR": state,
            "TILTYARD_MODEL_STORE": settings.model_store,
            "TILTYARD_HTTP_PORT": str(port),
            "TILTYARD_ADMIN_PORT": str(admin_port),
        }
        words = [sys.executable, "-m", "gateway", "serve"]
        process = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            url = f"http://127.0.0.1:{port}"
            _await(front, process, f"{url}/v2/health/ready")
            token = (Path(state) / "admin.token").read_text(encoding="ascii").strip()
            yield url, f"http://127.0.0.1:{admin_port}", token
        finally:
            process.terminate()
            process.wait()


def _await(front: FrontStep, process: subprocess.Popen[bytes], url: str) -> None:
    deadline = front.now() + START_S
    while not _answers(url):
        if process.poll() is not None or front.now() > deadline:
            message = "The demo's own gateway did not start."
            raise NotReady(message)
        front.sleep(LOOK_S)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PROBE_S, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _inference_url(settings: Settings) -> str:
    scheme = "https" if settings.http.tls_cert else "http"
    return f"{scheme}://{settings.http.host}:{settings.http.port}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
