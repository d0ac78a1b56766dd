"""Commands on models: list, show, promote, roll back."""

from typing import Annotated, Any, Final

import typer

from gateway.core.errors import Forbidden, InvalidRequest, NotReady
from gateway.core.models import CHAMPION
from gateway.core.reviews import Outcome
from gateway.doors.cli import versions
from gateway.doors.cli.cards import card
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import (
    AdminUrl,
    AsJson,
    FrontStep,
    Reason,
    TokenFile,
    Version,
    front_of,
)
from gateway.doors.cli.gates import say_wished
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(invoke_without_command=True, help="Models and their versions.")
app.command("card")(card)
app.command("version")(versions.show_version)
app.command("lineage")(versions.show_lineage)
app.command("diff")(versions.show_diff)
app.command("inspect")(versions.inspect)

LOOK_S: Final = 0.2
Model = Annotated[str, typer.Argument(help="The model's name.")]
Alias = Annotated[str, typer.Option("--alias", help="The alias that moves.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every process serves it.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")]


@app.callback()
def models(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List every registered model."""
    if ctx.invoked_subcommand is None:
        list_models(ctx, as_json=as_json, admin=admin, token_file=token_file)


def say_refused(document: dict[str, Any]) -> None:
    """Say which versions of the model store were not taken, and why."""
    for entry in document.get("refused", ()):
        say(f"Refused: {entry['model']}/{entry['version']}: {entry['reason']}")


@app.command("list")
def list_models(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List every registered model."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("models")
    if as_json:
        show_json(document)
        return
    show_table(
        f"Models at revision {document['revision']}",
        ("model", "versions", "aliases", "warm"),
        [(row["name"], row["versions"], row["aliases"], row["warm"]) for row in document["models"]],
        empty="No model is registered yet.",
    )
    say_refused(document)


@app.command("show")
def show_model(
    ctx: typer.Context,
    model: Model,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show a model, its aliases and its versions."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("models", model)
    if as_json:
        show_json(document)
        return
    named = {number: alias for alias, number in document["aliases"].items()}
    show_table(
        f"{model} at revision {document['revision']}",
        ("version", "alias", "state", "digest", "checks", "approved by", "trouble"),
        [
            (
                row["number"],
                named.get(row["number"]),
                row["state"] or "not loaded",
                row["digest"][:12],
                _in_short(row["checks"]),
                row["approved_by"],
                row["reason"],
            )
            for row in document["versions"]
        ],
        empty="No version is registered.",
    )
    say_refused(document)


def _in_short(checks: dict[str, str]) -> str | None:
    """What did not pass, by name; how many passed."""
    if not checks:
        return None
    passed = sum(outcome == Outcome.PASSED for outcome in checks.values())
    failed = [name for name, outcome in checks.items() if outcome == Outcome.FAILED]
    return f"{passed} passed" + (f"; failed: {', '.join(failed)}" if failed else "")


def promote(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    version: Version,
    *,
    alias: Alias = CHAMPION,
    reason: Reason = "",
    allow_signature_change: Annotated[
        bool, typer.Option(help="Promote though its tensors differ.")
    ] = False,
    override: Annotated[
        bool, typer.Option("--override", help="Pass closed gates by force; give a reason.")
    ] = False,
    request: Annotated[
        bool, typer.Option("--request", help="If a gate is closed, promote once it opens.")
    ] = False,
    wait: Wait = True,
    timeout_s: Timeout = 60.0,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Move an alias to another version, and wait until every process serves it."""
    if override and request:
        message = "Either ask for it or force it: '--request' and '--override' exclude each other."
        raise InvalidRequest(message)
    document: dict[str, Any] = {
        "version": version,
        "alias": alias,
        "reason": reason,
        "allow_signature_change": allow_signature_change,
    }
    with AdminClient(ctx, admin, token_file) as client:
        if override:
            document["override"] = True
        answer = client.post("models", model, "wishes" if request else "promote", document=document)
        if request and not answer["granted"]:
            if as_json:
                show_json(answer)
            else:
                say_wished(answer, model, version, alias)
            return
        _conclude(front_of(ctx), client, answer, timeout_s if wait else None, as_json=as_json)


def rollback(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    *,
    alias: Alias = CHAMPION,
    reason: Reason = "",
    wait: Wait = True,
    timeout_s: Timeout = 60.0,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Move an alias back to the version it named before."""
    document = {"alias": alias, "reason": reason}
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.post("models", model, "rollback", document=document)
        answer["version"] = _version_of(client, model, alias)
        _conclude(front_of(ctx), client, answer, timeout_s if wait else None, as_json=as_json)


def _version_of(client: AdminClient, model: str, alias: str) -> int | None:
    """The version that an alias names now, None for who may write but not read."""
    try:
        version: int = client.get("models", model)["aliases"][alias]
    except Forbidden:
        return None
    return version


def lagging(status: dict[str, Any]) -> list[str]:
    """What keeps the newest revision from being served everywhere, a sentence each."""
    reasons = []
    for process in status["processes"]:
        who = process["name"]
        reasons += [f"{who}: {name}: {why}" for name, why in process["lagging"].items()]
        if not process["lagging"] and process["revision"] < status["newest"]:
            reasons.append(f"{who}: serves revision {process['revision']}")
    return reasons


def _conclude(
    front: FrontStep,
    client: AdminClient,
    answer: dict[str, Any],
    timeout_s: float | None,
    *,
    as_json: bool,
) -> None:
    """Say what a change came to, after waiting for it if that is asked for."""
    if timeout_s is None:
        text = f"Revision {answer['revision']} is committed{_back_to(answer)}."
        _tell(answer, text, as_json=as_json)
        return
    status = _await_complete(front, client, answer["revision"], timeout_s)
    promotion = status["promotion"]
    text = f"Revision {answer['revision']}{_back_to(answer)}: {promotion['text']}."
    if not status["complete"]:
        reasons = "; ".join(lagging(status)) or "the reason is not known yet"
        message = f"{text} It lags: {reasons}."
        raise NotReady(message)
    _tell({**answer, "promotion": promotion}, text, as_json=as_json)


def _back_to(answer: dict[str, Any]) -> str:
    version = answer.get("version")
    return "" if version is None else f", back to version {version}"


def _await_complete(
    front: FrontStep, client: AdminClient, revision: int, timeout_s: float
) -> dict[str, Any]:
    """The status once it is complete, or the last one before time ran out."""
    deadline = front.now() + timeout_s
    while True:
        status: dict[str, Any] = client.get("status")
        done = status["complete"] and status["promotion"]["revision"] >= revision
        if done or front.now() >= deadline:
            return {**status, "complete": done}
        front.sleep(LOOK_S)


def _tell(document: dict[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        show_json(document)
    else:
        say(text)
