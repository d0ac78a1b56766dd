"""Commands on principals: who may ask the admin API for what."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.patterns import ANY
from gateway.core.principals import Grant, InferenceGrant, PrincipalDocument, Right, Role
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import AdminUrl, AsJson, IfMatch, Reason, TokenFile
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Who may ask, and for what.")

Name = Annotated[str, typer.Argument(help="The principal's name; the audit log says it.")]


@app.command("put")
def put(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    role: Annotated[
        list[str] | None,
        typer.Option(help="ROLE, or ROLE:PATTERN for some models; may be repeated."),
    ] = None,
    right: Annotated[
        list[str] | None,
        typer.Option(help="infer, force or outcomes, or RIGHT:PATTERN; may be repeated."),
    ] = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="It may do nothing.")] = False,
    file: Annotated[Path | None, typer.Option(help="The document in JSON instead.")] = None,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write or replace a principal."""
    if file is None:
        body = msgspec.json.encode(_document(role or [], right or [], disabled=disabled))
    elif role or right or disabled:
        message = "Give --file, or --role, --right and --disabled."
        raise InvalidRequest(message)
    else:
        body = read_file(file)
    with AdminClient(ctx, admin, token_file) as client:
        told = client.put(
            "principals", name, body=body, query={"reason": reason}, if_match=if_match
        )
    if as_json:
        show_json(told)
        return
    done = "is written" if told["changed"] else "was like that already"
    say(f"Principal '{name}' {done}: revision {told['revision']}, ETag {told['etag']}.")


@app.command("list")
def list_principals(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List every principal."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("principals")
    if as_json:
        show_json(document)
        return
    show_table(
        "Principals",
        ("name", "roles", "inference", "tokens", ""),
        [
            (
                row["name"],
                _told(row["document"].get("grants", ()), "role"),
                _told(row["document"].get("inference", ()), "right"),
                row["tokens"],
                "disabled" if row["document"].get("disabled") else "",
            )
            for row in document["principals"]
        ],
        empty="There is none but the built-in admin.",
    )


@app.command("show")
def show(
    ctx: typer.Context,
    name: Name,
    *,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show a principal's document, fit for `principal put --file`."""
    with AdminClient(ctx, admin, token_file) as client:
        show_json(client.get("principals", name)["document"])


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
    """Drop a principal, and revoke every token that it holds."""
    with AdminClient(ctx, admin, token_file) as client:
        told = client.delete("principals", name, query={"reason": reason}, if_match=if_match)
    if as_json:
        show_json(told)
    else:
        say(f"Principal '{name}' and its tokens are gone: revision {told['revision']}.")


def _document(roles: list[str], rights: list[str], *, disabled: bool) -> PrincipalDocument:
    """The document that options describe; one grant for each role, with all of its patterns."""
    grants = {Role(key): tuple(some) for key, some in _by_word(roles, Role).items()}
    inference = {Right(key): tuple(some) for key, some in _by_word(rights, Right).items()}
    return PrincipalDocument(
        schema=1,
        grants=tuple(Grant(role, models) for role, models in grants.items()),
        inference=tuple(InferenceGrant(right, models) for right, models in inference.items()),
        disabled=disabled,
    )


def _by_word(stated: list[str], words: type[Role] | type[Right]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    known = [str(word) for word in words]
    for text in stated:
        word, _, pattern = text.partition(":")
        if word not in known:
            message = f"'{excerpt(word)}' is none of {', '.join(known)}."
            raise InvalidRequest(message)
        found.setdefault(word, []).append(pattern or ANY)
    return found


def _told(grants: list[dict[str, Any]], what: str) -> str:
    """Grants in the words of the options."""
    return " ".join(
        grant[what] if pattern == ANY else f"{grant[what]}:{pattern}"
        for grant in grants
        for pattern in grant.get("models", (ANY,))
    )
