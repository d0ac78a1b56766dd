"""Commands on tokens: who may ask the admin API for what, kept on this host as digests."""

from typing import Annotated

import typer

from gateway.core.access import READ, SCOPES, Token, digest_of
from gateway.core.errors import Conflict, InvalidRequest, NotFound, excerpt
from gateway.core.models import check_name
from gateway.doors.cli.front import AsJson, Config, TokenFolder, front_of
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Bearer tokens of this host's state folder.")

ADMIN: str = "admin"
Name = Annotated[str, typer.Argument(help="Who holds it; the audit log says so.")]


@app.command("add")
def add(
    ctx: typer.Context,
    name: Name,
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="read, write, force or outcomes; may be repeated."),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it once; only its digest is kept."""
    scopes = tuple(sorted(set(scope or [READ])))
    unknown = sorted(set(scopes) - SCOPES)
    if unknown:
        message = f"There is no scope '{excerpt(unknown[0])}'; use {', '.join(sorted(SCOPES))}."
        raise InvalidRequest(message)
    check_name("a token's holder", name)
    folder = _folder(ctx, config)
    tokens = folder.read()
    if name == ADMIN or any(token.name == name for token in tokens):
        message = f"'{name}' holds a token already; remove it first."
        raise Conflict(message)
    secret = folder.fresh()
    folder.write((*tokens, Token(name=name, sha256=digest_of(secret.encode()), scopes=scopes)))
    if as_json:
        show_json({"name": name, "scopes": scopes, "token": secret})
    else:
        typer.echo(secret)


@app.command("list")
def list_tokens(ctx: typer.Context, *, config: Config = None, as_json: AsJson = False) -> None:
    """List who holds a token; the tokens themselves are not known any more."""
    tokens = _folder(ctx, config).read()
    if as_json:
        show_json([{"name": token.name, "scopes": token.scopes} for token in tokens])
        return
    show_table(
        "Tokens",
        ("name", "scopes"),
        [(token.name, token.scopes) for token in tokens],
        empty=f"There is none but the one of '{ADMIN}'.",
    )


@app.command("remove")
def remove(ctx: typer.Context, name: Name, *, config: Config = None) -> None:
    """Take a token back."""
    folder = _folder(ctx, config)
    tokens = folder.read()
    kept = tuple(token for token in tokens if token.name != name)
    if len(kept) == len(tokens):
        message = f"'{excerpt(name)}' holds no token here."
        raise NotFound(message)
    folder.write(kept)
    say(f"The token of '{name}' is no longer good.")


def _folder(ctx: typer.Context, config: Config) -> TokenFolder:
    front = front_of(ctx)
    return front.token_folder(front.settings(config))
