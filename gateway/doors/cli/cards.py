"""The command that writes a model card."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.core.errors import InvalidRequest
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, TokenFile, Version
from gateway.doors.cli.output import say, show_json


def card(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    version: Version,
    file: Annotated[
        Path | None,
        typer.Argument(help="Where to write it: .md, or .html with its charts."),
    ] = None,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write the card of a version: lineage, checks, experiments and decisions."""
    with AdminClient(ctx, admin, token_file) as client:
        found = client.get("models", model, "versions", str(version), "card")
    if as_json:
        show_json(found)
    elif file is None:
        typer.echo(card_text(found, ".md"), nl=False)
    else:
        text = card_text(found, file.suffix)
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            message = f"'{file.name}' cannot be written: {error.strerror}."
            raise InvalidRequest(message) from error
        say(f"The card of '{model}' version {version} is in {file}.")


def card_text(found: Any, suffix: str) -> str:  # noqa: ANN401 - as the admin API says
    """The card in the form that a file's suffix names.

    Raises:
        InvalidRequest: another suffix, or a gateway of another version said it.
    """
    from gateway.core.cards import Card  # noqa: PLC0415 - few commands need them
    from gateway.doors.model_card import card_markdown, card_page  # noqa: PLC0415

    forms = {".md": card_markdown, ".html": card_page}
    if suffix not in forms:
        message = f"A card is written to .md or .html; '{suffix}' is neither."
        raise InvalidRequest(message)
    try:
        return forms[suffix](msgspec.convert(found, Card))
    except msgspec.ValidationError as error:
        message = "The gateway is of another version, and its card cannot be read here."
        raise InvalidRequest(message) from error
