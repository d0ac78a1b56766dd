"""Commands on webhooks: who hears of what, how far each is, and what was not taken."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.core.errors import InvalidRequest
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, Reason, TokenFile
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Webhooks: events that others are told of.")

Name = Annotated[str, typer.Argument(help="The webhook's name.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")]
_REFUSED = 1


@app.command("put")
def put(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    url: Annotated[str, typer.Argument(help="Where events are posted.")],
    *,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="A pattern of event types; may be repeated. All without it."),
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option("--secret-file", help="A file with the secret; one is made else.")
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new secret; the old one signs on for a day.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write a webhook; a secret that is made is shown once."""
    document: dict[str, Any] = {"url": url, "types": types or ["*"], "rotate": rotate}
    if secret_file is not None:
        document["secret"] = _read(secret_file)
    with AdminClient(ctx, admin, token_file) as client:
        body = msgspec.json.encode(document)
        answer = client.put("webhooks", name, body=body, query={"reason": reason}, if_match=None)
    if as_json:
        show_json(answer)
        return
    say(f"Webhook '{name}' is written.")
    if answer["secret"] is not None:
        say(f"Its secret, which is not shown again: {answer['secret']}")


@app.command("list")
def list_webhooks(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List webhooks and how far each is."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("webhooks")
    if as_json:
        show_json(document)
        return
    columns = ("webhook", "types", "waiting", "delivered", "failed", "dead letters", "state")
    show_table(
        "Webhooks",
        columns,
        [
            (
                row["name"],
                row["types"],
                row["waiting"],
                row["delivered"],
                row["failed"],
                row["dead_letters"],
                row["disabled"] or row["problem"] or "well",
            )
            for row in document["webhooks"]
        ],
        empty="There is no webhook yet.",
    )


@app.command("show")
def show(
    ctx: typer.Context,
    name: Name,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show a webhook, without its secret."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("webhooks", name)
    if as_json:
        show_json(document)
        return
    moments = ("made_at", "old_secret_until", "next_at", "problem_at")
    rows = [(key, _moment(value) if key in moments else value) for key, value in document.items()]
    show_table(f"Webhook {name}", ("what", "value"), rows, empty="")


@app.command("delete")
def delete(
    ctx: typer.Context,
    name: Name,
    *,
    reason: Reason = "",
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Forget a webhook and what it did not take."""
    with AdminClient(ctx, admin, token_file) as client:
        client.delete("webhooks", name, query={"reason": reason}, if_match=None)
    say(f"Webhook '{name}' is gone.")


@app.command("test")
def try_out(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    timeout_s: Timeout = 90.0,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Send an event that says nothing; exit code 1 if it was not taken."""
    with AdminClient(ctx, admin, token_file, timeout_s=timeout_s) as client:
        answer = client.post("webhooks", name, "test", document={})
    if as_json:
        show_json(answer)
    elif answer["taken"]:
        say(f"The receiver of '{name}' took it: {answer['status']}.")
    else:
        say(answer["problem"])
    if not answer["taken"]:
        raise typer.Exit(_REFUSED)


@app.command("dead-letters")
def dead_letters(
    ctx: typer.Context,
    name: Name,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List events that a webhook did not take, the oldest first."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("webhooks", name, "dead-letters")
    if as_json:
        show_json(document)
        return
    show_table(
        f"What '{name}' did not take",
        ("event", "type", "subject", "given up", "tries", "problem"),
        [
            (
                row["event"]["id"],
                row["event"]["type"],
                row["event"]["subject"],
                _moment(row["at"]),
                row["tries"],
                row["problem"],
            )
            for row in document["dead_letters"]
        ],
        empty="It took everything.",
    )


@app.command("redeliver")
def redeliver(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    timeout_s: Timeout = 300.0,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Send dead letters again; exit code 1 if some are left."""
    with AdminClient(ctx, admin, token_file, timeout_s=timeout_s) as client:
        answer = client.post("webhooks", name, "redeliver", document={})
    if as_json:
        show_json(answer)
    else:
        say(f"{answer['delivered']} taken, {answer['left']} left. {answer['problem']}".rstrip())
    if answer["left"]:
        raise typer.Exit(_REFUSED)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"The secret's file '{file.name}' cannot be read."
        raise InvalidRequest(message) from error


def _moment(at: float | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
