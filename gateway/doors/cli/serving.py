"""Commands on this host: serve, check."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.core.endpoints import Endpoint, check_endpoint
from gateway.core.errors import GatewayError, InvalidRequest
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import FAILED, AsJson, Config, complain, front_of
from gateway.doors.cli.output import say, show_json
from gateway.doors.documents import read_strictly
from gateway.settings import Settings, shown

ModelStore = Annotated[
    Path | None, typer.Option("--model-store", help="Where the models are, a folder each.")
]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", help="What this host remembers by itself.")
]


def serve(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    *,
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Where inference listens.")] = None,
    port: Annotated[int | None, typer.Option(help="The port of inference.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="The port of the admin API.")] = None,
    model_store: ModelStore = None,
    state_dir: StateDir = None,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    front = front_of(ctx)
    settings = front.settings(
        config,
        http_host=host,
        http_port=port,
        admin_port=admin_port,
        model_store=model_store,
        state_dir=state_dir,
    )
    raise typer.Exit(front.serve(settings, announce))


def announce(settings: Settings) -> None:
    """Say where the gateway answers, and what to try next."""
    http, admin = settings.http, settings.admin
    url = f"{'https' if http.tls_cert else 'http'}://{http.host}:{http.port}"
    admin_url = f"{'https' if admin.tls_cert else 'http'}://{admin.host}:{admin.port}"
    say(f"Ready: inference on {url}, admin on {admin_url}.")
    for request in sorted(Path(settings.model_store).glob("*/request.json")):
        say(f"  curl -s {url}/v2/models/{request.parent.name}/infer -d @{request}")
    place = "TILTYARD_ADMIN_TOKEN" if admin.token else str(Path(settings.state_dir) / "admin.token")
    say(f"  tiltyard status      the admin token is in {place}")
    say("  tiltyard demo        ten thousand real flights through this gateway")
    say("Ctrl-C stops it.")


def check(
    ctx: typer.Context,
    *,
    config: Config = None,
    model_store: ModelStore = None,
    rules: Annotated[
        Path | None,
        typer.Option("--rules", help="Endpoint documents: one, or an object of them by name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the effective settings, and check the models and, if given, the rules."""
    front = front_of(ctx)
    settings = front.settings(config, model_store=model_store)
    problems = front.check(settings)
    if rules is not None:
        problems += check_rules(read_file(rules))
    document: dict[str, Any] = {"settings": shown(settings), "problems": problems}
    if as_json:
        show_json(document)
    else:
        show_json(document["settings"])
        for problem in problems:
            complain(problem)
        if not problems:
            say("The settings and the models are good.")
    raise typer.Exit(FAILED if problems else 0)


def check_rules(text: bytes) -> list[str]:
    """What is wrong with endpoint documents, a sentence each.

    Whether the versions and aliases that they name exist is for the gateway to say
    (`endpoints set --dry-run`).
    """
    try:
        tree = read_strictly(text, dict[str, Any])
        documents = {str(tree["model"]): tree} if {"schema", "model"} <= tree.keys() else tree
    except GatewayError as error:
        return [str(error)]
    problems = []
    for name, document in documents.items():
        try:
            endpoint = read_strictly(msgspec.json.encode(document), Endpoint)
            check_endpoint(name, endpoint)
        except InvalidRequest as error:
            problems.append(f"Rules of '{name}': {error}")
    return problems
