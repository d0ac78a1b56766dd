"""Commands on the ledger: list, show, verify and replay what the steward decided."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from gateway.core.audit import AuditEntry
from gateway.core.errors import InvalidRequest, NotFound
from gateway.doors.cli.audit import DIFFERS, tell_chain, verified
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, TokenFile, front_of
from gateway.doors.cli.output import say, show_json, show_table

if TYPE_CHECKING:
    from gateway.core.ledger import Replayed

app = typer.Typer(no_args_is_help=True, help="What the steward decided, and from what.")

Only = Annotated[
    str | None, typer.Option("--experiment", help="Decisions on this experiment only.")
]


@app.command("list")
def list_decisions(
    ctx: typer.Context,
    *,
    experiment: Only = None,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List decisions, oldest first."""
    with AdminClient(ctx, admin, token_file) as client:
        entries = [item["entry"] for item in _decisions(client, experiment)]
    rows = [_row(entry) for entry in entries]
    if as_json:
        show_json(rows)
        return
    show_table(
        "Decisions",
        ("revision", "at", "experiment", "state", "reason", "step", "exposure", "words"),
        [tuple(row.values()) for row in rows],
        empty="Nothing was decided yet.",
    )


@app.command("show")
def show_decision(
    ctx: typer.Context,
    revision: Annotated[int, typer.Argument(min=1, help="The revision that it made.")],
    *,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show one decision whole: record, tallies, readings, versions; always in JSON."""
    with AdminClient(ctx, admin, token_file) as client:
        page = client.get("ledger", query={"after": revision - 1, "limit": 1})
    if not page["entries"] or page["entries"][0]["entry"]["revision"] != revision:
        message = f"Revision {revision} is no decision of the steward."
        raise NotFound(message)
    show_json(page["entries"][0])


@app.command("verify")
def verify(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Check the chain of the whole audit log, from its first entry to the Snapshot's head."""
    with AdminClient(ctx, admin, token_file) as client:
        chain = verified(client)
    tell_chain(chain, as_json=as_json)


@app.command("replay")
def replay_decisions(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    *,
    experiment: Only = None,
    revision: Annotated[
        int | None, typer.Option("--revision", help="Only the decision that made this one.")
    ] = None,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Decide each again from what its entry holds, here, and compare.

    Bit for bit where code, libraries and CPU are those that decided; elsewhere the same decision,
    with numbers to 1e-9.
    """
    from gateway.core.ledger import replay  # noqa: PLC0415 - it imports scipy

    front = front_of(ctx)
    with AdminClient(ctx, admin, token_file) as client:
        entries = [
            entry
            for item in _decisions(client, experiment)
            if (entry := _entry(item["entry"])).revision == revision or revision is None
        ]
    if revision is not None and not entries:
        message = f"Revision {revision} is no decision of the steward."
        raise NotFound(message)
    here = front.circumstances()
    done = [replay(entry, front.decide, here) for entry in entries]
    differing = [one for one in done if one.difference is not None]
    if as_json:
        show_json(done)
    else:
        _say_replayed(done, differing)
    if differing:
        raise typer.Exit(DIFFERS)


def _say_replayed(done: "list[Replayed]", differing: "list[Replayed]") -> None:
    exact = sum(one.exact for one in done)
    say(
        f"{len(done)} decisions were made again: {exact} bit for bit, "
        f"{len(done) - exact} on other versions or another CPU, to 1e-9."
    )
    for one in differing:
        say(f"Revision {one.revision}, {one.target}: {one.difference}")
    if not differing:
        say("All of them came out as they are recorded.")


def _decisions(client: AdminClient, experiment: str | None) -> Iterator[dict[str, Any]]:
    after: int | None = 0
    while after is not None:
        page = client.get("ledger", query={"after": after, "experiment": experiment})
        yield from page["entries"]
        after = page["next"]


def _entry(document: dict[str, Any]) -> AuditEntry:
    """An entry as it was written: what is hashed is worked out here, not taken on trust."""
    try:
        return msgspec.convert(document, AuditEntry)
    except msgspec.ValidationError as error:
        message = "The audit log holds an entry that this version cannot read."
        raise InvalidRequest(message) from error


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    after = entry["document"] or {}
    return {
        "revision": entry["revision"],
        "at": f"{datetime.fromtimestamp(entry['at'], UTC):%Y-%m-%d %H:%M:%S}",
        "experiment": entry["target"].removeprefix("experiments/"),
        "state": after.get("state"),
        "reason": after.get("reason") or None,
        "step": after.get("step"),
        "exposure": after.get("exposure"),
        "words": entry["reason"] or None,
    }
