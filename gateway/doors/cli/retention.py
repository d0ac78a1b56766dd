"""Commands on retention: documents, what may go, and letting it go."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import AdminUrl, AsJson, IfMatch, Reason, TokenFile
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="How long versions stay that nothing needs.")

Name = Annotated[str, typer.Argument(help="The document's name.")]


@app.command("look")
def look(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Say which versions may go, and what holds the others; change nothing."""
    with AdminClient(ctx, admin, token_file) as client:
        found = client.get("retention")
    if as_json:
        show_json(found)
    else:
        _show("What may go", found)


@app.command("collect")
def collect(
    ctx: typer.Context,
    *,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Let go of every version that may go, now."""
    with AdminClient(ctx, admin, token_file) as client:
        found = client.post("retention", "collect", document={"reason": reason})
    if as_json:
        show_json(found)
    else:
        _show("What went", found)
        say(f"{len(found['gone'])} versions are retired.")


@app.command("list")
def list_documents(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List the documents."""
    with AdminClient(ctx, admin, token_file) as client:
        found = client.get("retention", "documents")
    if as_json:
        show_json(found)
        return
    rows = [(row["name"], row["document"]) for row in found["retentions"]]
    show_table(
        f"Retention at revision {found['revision']}",
        ("name", "models", "keep", "min. age", "ledger", "deletes files"),
        [
            (
                name,
                document["models"],
                document["keep"],
                f"{document['min_age_days']:g} days",
                f"{document['ledger_days']:g} days",
                "yes" if document["delete_files"] else "no",
            )
            for name, document in rows
        ],
        empty="There is none: every version stays.",
    )


@app.command("put")
def put(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(help="The document in JSON.")],
    *,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write or replace a document."""
    body = read_file(file)
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.put(
            "retention",
            "documents",
            name,
            body=body,
            query={"reason": reason},
            if_match=if_match,
        )
    _conclude(f"Retention '{name}' stands", answer, as_json=as_json)


@app.command("delete")
def delete(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Drop a document; the versions that it meant stay for good."""
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.delete(
            "retention", "documents", name, query={"reason": reason}, if_match=if_match
        )
    _conclude(f"Retention '{name}' is gone", answer, as_json=as_json)


def _conclude(text: str, answer: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(answer)
    else:
        say(f"{text}, at revision {answer['revision']}.")


def _show(title: str, found: dict[str, Any]) -> None:
    show_table(
        f"{title} at revision {found['revision']}",
        ("model", "version", "digest", "held by"),
        [
            (row["model"], row["number"], row["digest"][:12], row["held_by"] or "nothing")
            for row in found["standings"]
        ],
        empty="No retention means any model, so every version stays.",
    )
