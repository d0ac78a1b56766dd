"""Commands on gates: put, show, list, delete, check; and to approve a version."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.core.models import CHAMPION
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import AdminUrl, AsJson, IfMatch, Reason, TokenFile, Version
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="What versions must have before they get traffic.")

Name = Annotated[str, typer.Argument(help="The gate's name.")]
Model = Annotated[str, typer.Argument(help="The model's name.")]


@app.command("list")
def list_gates(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List every gate."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("gates")
    if as_json:
        show_json(document)
        return
    show_table(
        f"Gates at revision {document['revision']}",
        ("gate", "models", "aliases", "trial", "promotion", "freezes"),
        [
            (
                row["name"],
                row["document"]["models"],
                row["document"].get("aliases", [CHAMPION]),
                _wanted(row["document"].get("trial", {})),
                _wanted(row["document"].get("promotion", {})),
                [freeze["name"] for freeze in row["document"].get("freezes", [])],
            )
            for row in document["gates"]
        ],
        empty="There is no gate: versions get traffic as soon as they are promoted.",
    )


@app.command("show")
def show_gate(
    ctx: typer.Context,
    name: Name,
    *,
    document_only: Annotated[
        bool, typer.Option("--document", help="The document alone, fit for `gate put`.")
    ] = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show a gate and the models that it means; always in JSON."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("gates", name)
    show_json(document["document"] if document_only else document)


@app.command("put")
def put_gate(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(help="The document in JSON.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what it would mean.")
    ] = False,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Add a gate, or replace it."""
    body = read_file(file)
    query = {"reason": reason, **({"dry_run": "true"} if dry_run else {})}
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.put("gates", name, body=body, query=query, if_match=if_match)
    if as_json:
        show_json(answer)
    elif dry_run:
        _show_preview(answer)
    else:
        words = "stands" if answer["changed"] else "stood like that already"
        say(f"Gate '{name}' {words}: revision {answer['revision']}, ETag {answer['etag']}.")


@app.command("delete")
def delete_gate(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Drop a gate."""
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.delete("gates", name, query={"reason": reason}, if_match=if_match)
    _tell(answer, f"Gate '{name}' is deleted", as_json=as_json)


@app.command("check")
def check_gates(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    version: Version,
    *,
    alias: Annotated[str, typer.Option("--alias", help="The alias that would move.")] = CHAMPION,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Say what stands between a version and an alias, without trying; 1 if something does."""
    with AdminClient(ctx, admin, token_file) as client:
        query = {"alias": alias}
        document = client.get("models", model, "versions", str(version), "gates", query=query)
    if as_json:
        show_json(document)
    else:
        _show_requirements(document, f"Version {version} of '{model}'", alias)
    if not document["open"]:
        raise typer.Exit(1)


@app.command("wishes")
def list_wishes(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List promotions that were asked for, and what each waits for."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("wishes")
    if as_json:
        show_json(document)
        return
    show_table(
        f"Wishes at revision {document['revision']}",
        ("model", "alias", "version", "asked by", "waits for"),
        [
            (
                row["model"],
                row["alias"],
                row["wish"]["version"],
                row["wish"]["asked_by"],
                [one["sentence"] for one in row["missing"]],
            )
            for row in document["wishes"]
        ],
        empty="Nobody waits for a gate.",
    )


@app.command("withdraw")
def withdraw(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    *,
    alias: Annotated[str, typer.Option("--alias", help="The alias that was to move.")] = CHAMPION,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Let a promotion that was asked for go."""
    with AdminClient(ctx, admin, token_file) as client:
        path = ("models", model, "wishes", alias)
        answer = client.delete(*path, query={"reason": reason}, if_match=None)
    _tell(answer, f"'{alias}' of '{model}' stays where it is", as_json=as_json)


def approve(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    version: Version,
    *,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Stand for a version, so that a gate which asks for approvals may let it through."""
    with AdminClient(ctx, admin, token_file) as client:
        path = ("models", model, "versions", str(version), "approve")
        answer = client.post(*path, document={"reason": reason}, if_match=if_match)
    _tell(answer, f"Version {version} of '{model}' has your approval", as_json=as_json)


def unapprove(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Model,
    version: Version,
    *,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Take your approval of a version back; what serves goes on."""
    with AdminClient(ctx, admin, token_file) as client:
        path = ("models", model, "versions", str(version), "approve")
        answer = client.delete(*path, query={"reason": reason}, if_match=if_match)
    _tell(answer, f"Version {version} of '{model}' has lost your approval", as_json=as_json)


def say_wished(answer: dict[str, Any], model: str, version: int, alias: str) -> None:
    """Say that a promotion is asked for, and what it waits for."""
    say(f"Asked for: '{alias}' of '{model}' moves to version {version} once nothing is missing:")
    for one in answer["missing"]:
        say(f"  - {one['gate']}: {one['sentence']}")


def _wanted(document: dict[str, Any]) -> list[str]:
    """What a stage asks for, in a few words each."""
    told = [rule["check"] for rule in document.get("checks", [])]
    told += document.get("lineage", [])
    told += ["evidence"] if document.get("evidence") else []
    for rule in document.get("approvals", []):
        told.append(f"{rule.get('count', 1)} {rule.get('role', 'approver')}")
    return told


def _show_preview(preview: dict[str, Any]) -> None:
    models = ", ".join(preview["models"]) or "no model yet"
    say(f"Gate '{preview['name']}' would mean: {models}.")
    show_table(
        "What serves and would not pass; it goes on",
        ("model", "alias", "version", "missing"),
        [
            (row["model"], row["alias"], row["version"], one["sentence"])
            for row in preview["failing"]
            for one in row["missing"]
        ],
        empty="All that serves would pass.",
    )


def _show_requirements(document: dict[str, Any], what: str, alias: str) -> None:
    show_table(
        f"{what} and the alias '{alias}'",
        ("gate", "requirement", "met", ""),
        [
            (row["gate"], row["requirement"], row["met"], row["sentence"])
            for row in document["requirements"]
        ],
        empty="No gate means this model.",
    )
    if document["open"]:
        say(f"{what} may be promoted to '{alias}'.")
    else:
        lacking = sum(not row["met"] for row in document["requirements"])
        say(f"{what} may not be promoted to '{alias}' yet: {lacking} missing.")


def _tell(answer: dict[str, Any], done: str, *, as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    words = done if answer["changed"] else "It was like that already"
    say(f"{words}: revision {answer['revision']}.")
