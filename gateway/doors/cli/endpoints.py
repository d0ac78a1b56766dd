"""Commands on endpoints: list, show, set, delete, explain, shadows."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.core.errors import InvalidRequest
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import (
    AdminUrl,
    AsJson,
    IfMatch,
    Reason,
    TokenFile,
)
from gateway.doors.cli.output import say, share, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="What clients call, and the rules behind it.")

Name = Annotated[str, typer.Argument(help="The endpoint's name.")]


@app.command("list")
def list_endpoints(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List every name that clients may call."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("endpoints")
    if as_json:
        show_json(document)
        return
    show_table(
        f"Endpoints at revision {document['revision']}",
        ("endpoint", "model", "default", "rules", "shadows", "document"),
        [
            (
                row["name"],
                row["model"],
                f"version {row['default_version']}",
                row["rules"],
                row["shadows"],
                "follows its champion" if row["implicit"] else row["etag"][:12],
            )
            for row in document["endpoints"]
        ],
        empty="There is no endpoint yet.",
    )


@app.command("show")
def show_endpoint(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    document_only: Annotated[
        bool, typer.Option("--document", help="The document alone, fit for `endpoints set`.")
    ] = False,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show an endpoint's document and its compiled plan."""
    with AdminClient(ctx, admin, token_file) as client:
        found = client.get("endpoints", name, query={"plan": "true"})
    if document_only:
        show_json(found["document"])
    elif as_json:
        show_json(found)
    else:
        say(f"{name} at revision {found['revision']}, ETag {found['etag'] or 'none: implicit'}")
        _show_plan(found["plan"])


@app.command("set")
def set_endpoint(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(help="The document in JSON.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would change.")
    ] = False,
    if_match: IfMatch = None,
    allow_signature_change: Annotated[
        bool, typer.Option(help="Serve versions that differ in their tensors.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Replace an endpoint's document."""
    body = read_file(file)
    flags = {"dry_run": dry_run, "allow_signature_change": allow_signature_change}
    query = {"reason": reason, **{flag: "true" for flag, given in flags.items() if given}}
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.put("endpoints", name, body=body, query=query, if_match=if_match)
    if as_json:
        show_json(answer)
    elif dry_run:
        _show_plan(answer)
    else:
        _say_changed(f"Endpoint '{name}'", answer)


@app.command("delete")
def delete_endpoint(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Drop an endpoint's document; a model of that name is then followed by its champion."""
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.delete("endpoints", name, query={"reason": reason}, if_match=if_match)
    if as_json:
        show_json(answer)
    else:
        _say_changed(f"Endpoint '{name}'", answer)


@app.command("explain")
def explain(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    unit: Annotated[str, typer.Option("--unit", help="Who is randomised.")],
    revision: Annotated[int | None, typer.Option("--revision", help="An earlier one.")] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, for rules.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, for rules.")] = None,
    parameter: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, for rules.")] = None,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Say which variant a unit gets and why, now or at an earlier revision."""
    query = {
        "unit": unit,
        "revision": revision,
        "attribute": attribute,
        "header": header,
        "parameter": parameter,
    }
    with AdminClient(ctx, admin, token_file) as client:
        found = client.get("endpoints", name, "assignment", query=query)
    if as_json:
        show_json(found)
        return
    say(
        f"At revision {found['revision']}, unit '{found['unit']}' gets variant "
        f"'{found['variant']}' (version {found['version']}): {found['reason']}, "
        f"rule {found['rule'] or '-'}, probability {found['propensity']:.4g}."
    )
    show_table(
        "Rules",
        ("rule", "conditions hold", "decides", "enrolment", "exposure", "variant at", "salt"),
        [_explained(rule) for rule in found["rules"]],
        empty="The endpoint has no rules.",
    )


@app.command("shadows")
def show_shadows(
    ctx: typer.Context,
    name: Name,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show what an endpoint's shadows found."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("endpoints", name, "shadows")
    if as_json:
        show_json(document)
        return
    show_table(
        f"Shadows of {name}",
        ("shadow", "version", "compared", "agreed", "errors", "largest difference", "skipped"),
        [
            (
                row["shadow"],
                row["version"],
                row["tally"]["compared"],
                row["tally"]["agreed"],
                row["tally"]["errors"],
                row["tally"]["max_absolute"],
                row["skipped"],
            )
            for row in document["shadows"]
        ],
        empty="No shadow has run yet.",
    )


def read_file(path: Path) -> bytes:
    """A file's content.

    Raises:
        InvalidRequest: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"The file '{path.name}' cannot be read: {error.strerror}."
        raise InvalidRequest(message) from error


def _say_changed(what: str, answer: dict[str, Any]) -> None:
    done = "is changed" if answer["changed"] else "was like that already"
    etag = "" if answer["etag"] is None else f", ETag {answer['etag']}"
    say(f"{what} {done}: revision {answer['revision']}{etag}.")


def _explained(rule: dict[str, Any]) -> tuple[object, ...]:
    place = rule["position"] or {}
    numbers = (place.get("enrolment"), place.get("exposure"), place.get("variant"))
    return (rule["rule"], rule["holds"], rule["decides"], *numbers, place.get("salt"))


def _show_plan(plan: dict[str, Any]) -> None:
    if plan["refusal"] is not None:
        say(f"This would be refused: {plan['refusal']}")
    rows: list[tuple[object, ...]] = []
    for rule in plan["rules"]:
        where, moved = (rule["name"], rule["conditions"]), share(rule["moved_share"])
        rows += [
            (*where, variant["name"], variant["version"], share(variant["share"]), moved)
            for variant in rule["variants"]
        ]
        if rule["left_out"] > 0:
            rows.append(
                (*where, "default", plan["default_version"], share(rule["left_out"]), moved)
            )
    show_table(
        f"{plan['endpoint']} serves {plan['model']}; default version {plan['default_version']}",
        ("rule", "conditions", "variant", "version", "share", "units that move"),
        rows,
        empty=f"No rules: every request goes to version {plan['default_version']}.",
    )
    if plan["shadows"]:
        show_table(
            "Shadows",
            ("shadow", "version", "share"),
            [(row["name"], row["version"], share(row["share"])) for row in plan["shadows"]],
            empty="",
        )
