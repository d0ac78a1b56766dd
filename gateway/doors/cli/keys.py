"""Commands on the keys that sign prediction ids; the keys themselves are never shown."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, TokenFile
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Keys that sign prediction ids, shared by all hosts.")

Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")]


@app.command("list")
def list_keys(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List the ids of the keys: which one signs, and which are still read."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("keys")
    if as_json:
        show_json(document)
        return
    show_table(
        "Keys of prediction ids",
        ("key", "use", "signs since", "until"),
        [
            (row["id"], _use_of(row), _moment(row["since"]), _moment(row["until"]))
            for row in document["keys"]
        ],
        empty="There is none.",
    )


@app.command("rotate")
def rotate(
    ctx: typer.Context,
    *,
    timeout_s: Timeout = 120.0,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Let a new key sign on every host; takes a few seconds, so that all can read it first."""
    with AdminClient(ctx, admin, token_file, timeout_s=timeout_s) as client:
        document = client.post("keys", "rotate", document={})
    if as_json:
        show_json(document)
        return
    read = [row["id"] for row in document["keys"] if not row["signs"]]
    told = ", ".join(map(str, read)) or "none"
    say(f"Key {document['current']} signs now; still read: {told}.")


def _use_of(row: dict[str, Any]) -> str:
    if row["signs"]:
        return "signs"
    return "signs next" if row["waiting"] else "is read"


def _moment(at: float | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
