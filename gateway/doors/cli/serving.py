"""Commands on this host: serve, check."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import typer

from gateway.core.endpoints import Endpoint, check_endpoint, targets_of
from gateway.core.errors import GatewayError, InvalidRequest
from gateway.core.models import CHAMPION
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import (
    FAILED,
    AsJson,
    Config,
    ModelStore,
    complain,
    front_of,
    nearby_url_of,
    url_of,
)
from gateway.doors.cli.output import say, show_json
from gateway.doors.cli.story import TRAFFIC
from gateway.doors.documents import read_strictly
from gateway.settings import Settings, shown

Stocked: TypeAlias = Callable[[str, int | None], bool]
"""Whether there is a model, or with a number a version of it."""
ADMIN_TOKEN: Final = "admin.token"  # noqa: S105 - a file's name
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
    workers: Annotated[
        str | None,
        typer.Option(
            help="Processes that serve: a number, or auto for one each processor; 0 is one process."
        ),
    ] = None,
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
        workers=workers,
    )
    raise typer.Exit(front.serve(settings, banner_of(settings)))


def banner_of(settings: Settings) -> str:
    """Where the gateway answers, and what to try next."""
    lines = [f"Ready: inference on {url_of(settings.http)}, admin on {url_of(settings.admin)}."]
    say = lines.append
    url = nearby_url_of(settings.http)
    curl = "curl -sk" if settings.http.tls_cert else "curl -s"
    for request in sorted(Path(settings.model_store).glob("*/request.json")):
        body = shlex.quote(f"@{request}")
        say(f"  {curl} {url}/v2/models/{request.parent.name}/infer -d {body}")
    kept = str(Path(settings.state_dir) / ADMIN_TOKEN)
    place = "TILTYARD_ADMIN_TOKEN" if settings.admin.token else kept
    say(f"  {_command('status', settings)}  # the admin token is in {place}")
    if (Path(settings.model_store) / TRAFFIC).is_file():
        words = _command("demo", settings, url, settings.model_store)
        say(f"  {words}  # real flights, and three experiments that decide themselves")
    say("Ctrl-C stops it.")
    return "".join(f"{line}\n" for line in lines)


def _command(
    name: str, settings: Settings, url: str | None = None, model_store: str | None = None
) -> str:
    """A command that finds this gateway from this folder: what is no default stands in it."""
    usual = Settings()
    kept = None if settings.admin.token else f"{settings.state_dir}/{ADMIN_TOKEN}"
    options = {
        "--admin": (nearby_url_of(settings.admin), nearby_url_of(usual.admin)),
        "--token-file": (kept, f"{usual.state_dir}/{ADMIN_TOKEN}"),
        "--url": (url, nearby_url_of(usual.http)),
        "--model-store": (model_store, usual.model_store),
    }
    words = [_program(), name]
    for option, (value, default) in options.items():
        if value is not None and value != default:
            words += [option, value]
    certificate = settings.admin.tls_cert or (url and settings.http.tls_cert)
    trust = f"SSL_CERT_FILE={shlex.quote(certificate)} " if certificate else ""
    return trust + shlex.join(words)


def _program() -> str:
    """This program as it was started, where that works from this folder."""
    started = sys.argv[0]
    nearby = "/" in started and not started.startswith("/")
    return started if nearby and os.access(started, os.X_OK) else "tiltyard"


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
    """Print the effective settings; check them, the models and, if given, the rules.

    What `serve` would refuse at its start is found here, without a port or a connection.
    """
    front = front_of(ctx)
    settings = front.settings(config, model_store=model_store)
    loaded, problems = front.check(settings)
    if rules is not None:
        problems += check_rules(read_file(rules), stocked(settings.model_store, loaded))
    document = {"settings": shown(settings), "loaded": loaded, "problems": problems}
    if as_json:
        show_json(document)
    else:
        show_json(document["settings"])
        for version in loaded:
            say(f"{version} loads.")
        for problem in problems:
            complain(problem)
        if not problems:
            say("The settings and the models are good.")
    raise typer.Exit(FAILED if problems else 0)


def stocked(store: str, loaded: Sequence[str]) -> Stocked:
    """Whether a model store has a version; of an address, whether it was among those loaded."""
    if "://" in store:
        models = {version.rpartition("/")[0] for version in loaded}
        return lambda model, number: f"{model}/{number}" in loaded if number else model in models
    return lambda model, number: (Path(store) / model / (str(number) if number else "")).is_dir()


def check_rules(text: bytes, has: Stocked) -> list[str]:
    """What is wrong with endpoint documents, a sentence each.

    What they name is looked for in the model store; what a running gateway has beyond it, an alias
    for one, is for that gateway to say (`endpoints set --dry-run`).
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
            problems += [f"Rules of '{name}': {lack}" for lack in _lacks(endpoint, has)]
        except InvalidRequest as error:
            problems.append(f"Rules of '{name}': {error}")
    return problems


def _lacks(endpoint: Endpoint, has: Stocked) -> Iterator[str]:
    """What an endpoint names and the model store does not have, a sentence each."""
    model = endpoint.model
    if not has(model, None):
        yield f"the model store has no model '{model}'."
        return
    for target in dict.fromkeys(targets_of(endpoint)):
        if target.version is not None and not has(model, target.version):
            yield f"the model store has no version {target.version} of '{model}'."
        if target.alias not in (None, CHAMPION):
            yield (
                f"the model store gives '{model}' no alias '{target.alias}'; "
                "whether a gateway has it, `endpoints set --dry-run` says."
            )
