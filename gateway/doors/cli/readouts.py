"""Commands that read an experiment out: the report as a page, and what another policy would do."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.core.errors import InvalidRequest, excerpt
from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import AdminUrl, AsJson, TokenFile
from gateway.doors.cli.output import say, show_json, show_table

MAX_POINTS = 10_000

Name = Annotated[str, typer.Argument(help="The experiment's name.")]


def report(
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(help="Where to write the page, in HTML.")],
    *,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write the report as one page that needs nothing else: readings, funnel, effect over time."""
    with AdminClient(ctx, admin, token_file) as client:
        found = client.get("experiments", name, "report")
        record = client.get("experiments", name)["record"]
        history = client.get("experiments", name, "history", query={"limit": MAX_POINTS})
    page = page_of(found, record["document"], history["points"])
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        message = f"'{file.name}' cannot be written: {error.strerror}."
        raise InvalidRequest(message) from error
    say(f"The report of '{name}' is in {file}.")


def page_of(found: Any, document: Any, points: Any) -> str:  # noqa: ANN401 - as the admin API says
    """The page, of what the admin API says.

    Raises:
        InvalidRequest: a gateway of another version said it.
    """
    from gateway.core.experiments import Experiment  # noqa: PLC0415 - few commands need them
    from gateway.core.reporting import Point, Report  # noqa: PLC0415
    from gateway.doors.report_page import report_page  # noqa: PLC0415

    try:
        return report_page(
            msgspec.convert(found, Report),
            msgspec.convert(document, Experiment),
            msgspec.convert(points, list[Point]),
        )
    except msgspec.ValidationError as error:
        message = "The gateway is of another version, and its report cannot be read here."
        raise InvalidRequest(message) from error


def whatif(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    metric: Annotated[str, typer.Option(help="By which the policy is judged.")],
    weights: Annotated[
        str | None, typer.Option(help="VARIANT=WEIGHT,..., adding up to 1.", metavar="WEIGHTS")
    ] = None,
    segment: Annotated[
        list[str] | None,
        typer.Option(help="SEGMENT:VARIANT=WEIGHT,... for the units of one segment."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A policy document in JSON, instead of the two above.")
    ] = None,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Say what another policy would have earned, of the units that an experiment has seen."""
    asked = read_file(policy).decode() if policy else _policy(weights, segment or [])
    with AdminClient(ctx, admin, token_file) as client:
        query = {"metric": metric, "policy": asked}
        answer = client.get("experiments", name, "whatif", query=query)
    if as_json:
        show_json(answer)
        return
    show_table(
        f"{metric}, of {answer['units']:,} units",
        ("estimate", "value", "interval", "holds"),
        [
            (one["name"], one["value"], _interval(one), _holds(one))
            for one in (answer["logged"], *answer["values"])
        ],
        empty="",
    )
    support = answer["support"]
    say(
        f"{support['n']:,} units weigh like {support['effective_n']:,.0f}; the largest weight is "
        f"{support['largest']:.3g}, their mean {support['mean_weight']:.3f}."
    )
    for warning in answer["warnings"]:
        say(f"Warning: {warning}")


def _policy(weights: str | None, segments: list[str]) -> str:
    if weights is None:
        message = "Say what the policy is: --weights VARIANT=WEIGHT,... or --policy FILE."
        raise InvalidRequest(message)
    rules = []
    for text in segments:
        segment, colon, rest = text.partition(":")
        if not colon:
            message = f"'{excerpt(text)}' is not of the form SEGMENT:VARIANT=WEIGHT,...."
            raise InvalidRequest(message)
        rules.append({"segments": [segment], "weights": _weights(rest)})
    return msgspec.json.encode({"weights": _weights(weights), "rules": rules}).decode()


def _weights(text: str) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        variant, _, weight = part.partition("=")
        try:
            found[variant.strip()] = float(weight)
        except ValueError as error:
            message = f"'{excerpt(part)}' is not of the form VARIANT=WEIGHT."
            raise InvalidRequest(message) from error
    return found


def _interval(one: dict[str, Any]) -> str:
    if one["lower"] is None or one["upper"] is None:
        return "-"
    return f"{one['lower']:.4g} to {one['upper']:.4g}"


def _holds(one: dict[str, Any]) -> str:
    if one["lower"] is None:
        return "-"
    return "at every look" if one["holds_always"] else "at one look"
