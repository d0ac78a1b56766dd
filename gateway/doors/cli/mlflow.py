"""Commands on following an MLflow registry."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from gateway.core.errors import DeadlineExceeded
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, TokenFile
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="The MLflow registry that is followed.")

POLL_S: Final = 0.2
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")]


@app.command("status")
def status(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show the last look at the registry, what waits and what was not taken."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("mlflow")
    if as_json:
        show_json(document)
    else:
        _show(document)


@app.command("sync")
def sync(
    ctx: typer.Context,
    *,
    timeout_s: Timeout = 30.0,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Have the registry looked at now, and show what came of it."""
    deadline = time.monotonic() + timeout_s
    with AdminClient(ctx, admin, token_file) as client:
        asked = client.post("mlflow", "sync", document={})["asked"]
        document = client.get("mlflow")
        while document["served"] < asked:
            if time.monotonic() > deadline:
                message = "The registry was not looked at in time; is there a leader?"
                raise DeadlineExceeded(message)
            time.sleep(POLL_S)
            document = client.get("mlflow")
    if as_json:
        show_json(document)
    else:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    say(f"MLflow answered last {_moment(document['answered_at'])}.")
    if document["error"]:
        say(f"The last look failed: {document['error']}")
    show_table(
        "Aliases as they were seen there",
        ("model", "alias", "version", "here"),
        [
            (row["model"], row["alias"], row["version"], row.get("refused") or "")
            for row in document["aliases"]
        ],
        empty="None was seen.",
    )
    rows = [
        *(
            (
                f"{row['model']}@{row['alias']}",
                "pending",
                f"version {row['version']} waits for its gates",
            )
            for row in document["pending"]
        ),
        *((name, "waits", why) for name, why in document["waiting"].items()),
        *((name, "refused", why) for name, why in document["refused"].items()),
        *((name, "skipped", why) for name, why in document["skipped"].items()),
    ]
    show_table("What is not here", ("what", "state", "why"), rows, empty="Nothing waits.")


def _moment(at: float | None) -> str:
    return "never" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
