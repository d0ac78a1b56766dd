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

from gateway.core.errors import InvalidRequest, NotFound, NotReady
from gateway.doors.cli.client import find_token
from gateway.doors.cli.front import (
    FAILED,
    AdminUrl,
    AsJson,
    FrontStep,
    ModelStore,
    TokenFile,
    check_url,
    complain,
    distrust_of,
    front_of,
    nearby_url_of,
)
from gateway.doors.cli.output import say, show_json
from gateway.doors.cli.readouts import page_of
from gateway.doors.cli.story import TRAFFIC, DemoOptions, Story, run_demo
from gateway.doors.cli.telling import document_of, show
from gateway.settings import PREFIX, Settings

START_S: Final = 60.0
LOOK_S: Final = 0.1
PROBE_S: Final = 2.0


def demo(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    *,
    admin: AdminUrl = None,
    url: Annotated[str | None, typer.Option("--url", help="Where inference is.")] = None,
    token_file: TokenFile = None,
    requests: Annotated[
        int, typer.Option(help="Flights to send, 39,985 at most.", min=1_000)
    ] = 39_000,
    pages: Annotated[
        Path | None, typer.Option(help="A folder for the reports of the experiments, in HTML.")
    ] = None,
    model_store: ModelStore = None,
    as_json: AsJson = False,
) -> None:
    """Replay real flights and their arrivals through three experiments that decide themselves.

    Uses the gateway that runs here; without one, it starts one of its own and stops it again.
    What it changes there is its own: endpoints and experiments, deleted at the end, and an alias.
    """
    front = front_of(ctx)
    settings = front.settings(model_store=model_store)
    traffic = Path(settings.model_store) / TRAFFIC
    if not traffic.is_file():
        message = "The demo needs the sample models: run it in a checkout, or set the model store."
        raise NotFound(message)
    admin_url = front.admin_url(admin)
    if _answers(front, f"{admin_url}/health"):
        inference_url = check_url(url or nearby_url_of(settings.http))
        places = (inference_url, admin_url, find_token(front, token_file))
        _tell(front, DemoOptions(*places, traffic, requests), pages, as_json=as_json)
        return
    if not as_json:
        say("No gateway runs here; starting one of the demo's own.")
    with _own_gateway(front, settings) as places:
        _tell(front, DemoOptions(*places, traffic, requests), pages, as_json=as_json)


def _tell(front: FrontStep, options: DemoOptions, pages: Path | None, *, as_json: bool) -> None:
    console = Console(quiet=as_json)
    story = run_demo(options, front, console)
    show(story, console)
    if pages is not None:
        _write_pages(pages, story)
    if as_json:
        show_json(document_of(story))
    if not story.is_right:
        complain("Not everything ended as it should.")
        raise typer.Exit(FAILED)


def _write_pages(folder: Path, story: Story) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for told in story.chapters:
            page = page_of(told.report, told.chapter.document, told.history)
            (folder / f"{told.chapter.name}.html").write_text(page, encoding="utf-8")
    except OSError as error:
        message = f"'{folder.name}' cannot hold the reports: {error.strerror}."
        raise InvalidRequest(message) from error


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
    while not _answers(front, url):
        if process.poll() is not None or front.now() > deadline:
            message = "The demo's own gateway did not start."
            raise NotReady(message)
        front.sleep(LOOK_S)


def _answers(front: FrontStep, url: str) -> bool:
    """Whether a gateway runs there; one whose certificate is not trusted does, and that is told."""
    try:
        with front.client(url, timeout_s=PROBE_S) as client:
            return client.get(url).is_success
    except httpx.TransportError as error:
        if distrust_of(error) is not None:
            raise
        return False


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
