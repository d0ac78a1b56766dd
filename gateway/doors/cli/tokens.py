"""Commands on tokens: made, listed, rotated and revoked through the admin API."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from gateway.core.errors import InvalidRequest, excerpt
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, Reason, TokenFile
from gateway.doors.cli.output import say, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Bearer tokens of principals.")

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Id = Annotated[str, typer.Argument(help="The token's id: what stands between its underscores.")]
Expires = Annotated[
    str | None, typer.Option("--expires", help="How long it is good, such as 90d, 12h or 300s.")
]


@app.command("issue")
def issue(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The principal who is to hold it.")],
    *,
    expires: Expires = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Make a token and print it, once: nobody can show it again."""
    wish = {"expires_in_s": _seconds(expires), "reason": reason}
    with AdminClient(ctx, admin, token_file) as client:
        told = client.post("principals", name, "tokens", document=wish)
    _show(told, as_json=as_json)


@app.command("list")
def list_tokens(
    ctx: typer.Context,
    *,
    principal: Annotated[str | None, typer.Option(help="Of this principal only.")] = None,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List tokens by their ids; the tokens themselves are not known any more."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("tokens", query={"principal": principal})
    if as_json:
        show_json(document)
        return
    show_table(
        "Tokens",
        ("id", "principal", "made", "by", "good until"),
        [
            (
                row["id"],
                row["principal"],
                _moment(row["created_at"]),
                row["created_by"],
                "expired" if row["expired"] else _moment(row["expires_at"]) or "revocation",
            )
            for row in document["tokens"]
        ],
        empty="There is none but those in state folders.",
    )


@app.command("rotate")
def rotate(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    token_id: Id,
    *,
    overlap: Annotated[
        str, typer.Option("--overlap", help="How long the old one stays good; 0s for not at all.")
    ] = "1h",
    expires: Expires = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Make a token in the place of another, and print it, once."""
    wish = {
        "overlap_s": _seconds(overlap),
        "expires_in_s": _seconds(expires),
        "reason": reason,
    }
    with AdminClient(ctx, admin, token_file) as client:
        told = client.post("tokens", token_id, "rotate", document=wish)
    _show(told, as_json=as_json)


@app.command("revoke")
def revoke(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    token_id: Id,
    *,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Take a token back."""
    with AdminClient(ctx, admin, token_file) as client:
        told = client.delete("tokens", token_id, query={"reason": reason}, if_match=None)
    if as_json:
        show_json(told)
    else:
        say(f"Token '{token_id}' is revoked: revision {told['revision']}.")


def _show(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(told)
    else:
        typer.echo(told["token"])


def _seconds(stated: str | None) -> float | None:
    """A length of time as people write it."""
    if stated is None:
        return None
    number, unit = stated[:-1], UNITS_S.get(stated[-1:])
    if unit is None or not (number.isascii() and number.isdigit()):
        message = f"'{excerpt(stated)}' is no length of time; write 90d, 12h, 30m or 300s."
        raise InvalidRequest(message)
    return float(number) * unit


def _moment(at: float | None) -> str | None:
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
