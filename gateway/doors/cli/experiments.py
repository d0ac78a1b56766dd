"""Commands on experiments: list, show, put, start, pause, resume, approve, stop, roll back."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import AdminUrl, AsJson, IfMatch, Reason, TokenFile
from gateway.doors.cli.output import nearest_safe, say, share, show_json, show_table
from gateway.doors.cli.readouts import report

app = typer.Typer(no_args_is_help=True, help="Splits under study: drafts, what runs, what ended.")

Name = Annotated[str, typer.Argument(help="The experiment's name.")]
SCALE = 10_000


@app.command("list")
def list_experiments(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """List every experiment."""
    with AdminClient(ctx, admin, token_file) as client:
        document = client.get("experiments")
    if as_json:
        show_json(document)
        return
    show_table(
        f"Experiments at revision {document['revision']}",
        ("experiment", "endpoint", "strategy", "state", "reason", "exposure", "verdicts"),
        [
            (
                row["name"],
                row["endpoint"],
                row["strategy"],
                row["state"],
                row["reason"] or None,
                share(row["exposure"] / SCALE),
                row["verdicts"],
            )
            for row in document["experiments"]
        ],
        empty="There is no experiment yet.",
    )


@app.command("show")
def show_experiment(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    document_only: Annotated[
        bool, typer.Option("--document", help="The document alone, fit for `experiment put`.")
    ] = False,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show what is known of an experiment: its state, its readings and what is still needed."""
    with AdminClient(ctx, admin, token_file) as client:
        if document_only:
            show_json(client.get("experiments", name)["record"]["document"])
            return
        report = client.get("experiments", name, "report")
    if as_json:
        show_json(report)
    else:
        _show_report(report)


@app.command("put")
def put_experiment(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(help="The document in JSON.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what starting it would do.")
    ] = False,
    if_match: IfMatch = None,
    allow_signature_change: Annotated[
        bool, typer.Option(help="Let variants differ in their tensors.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Write or replace a draft."""
    body = read_file(file)
    flags = {"dry_run": dry_run, "allow_signature_change": allow_signature_change}
    query = {"reason": reason, **{flag: "true" for flag, given in flags.items() if given}}
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.put("experiments", name, body=body, query=query, if_match=if_match)
    if as_json:
        show_json(answer)
    elif dry_run:
        _show_preview(answer)
    else:
        _say_changed(name, answer, "is a draft")


@app.command("start")
def start(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    supersedes: Annotated[
        str | None, typer.Option("--supersedes", help="Stop this one by the same commit.")
    ] = None,
    if_match: IfMatch = None,
    allow_signature_change: Annotated[
        bool, typer.Option(help="Let variants differ in their tensors.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Start a draft: from now on its document stays as it is."""
    document: dict[str, Any] = {
        "reason": reason,
        "allow_signature_change": allow_signature_change,
    }
    if supersedes is not None:
        document["supersedes"] = supersedes
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.post("experiments", name, "start", document=document, if_match=if_match)
    _tell(name, answer, "is started", as_json=as_json)


@app.command("delete")
def delete_experiment(  # noqa: PLR0913 - an argument for each option
    ctx: typer.Context,
    name: Name,
    *,
    if_match: IfMatch = None,
    reason: Reason = "",
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Drop a draft or an experiment that has ended."""
    with AdminClient(ctx, admin, token_file) as client:
        answer = client.delete("experiments", name, query={"reason": reason}, if_match=if_match)
    _tell(name, answer, "is deleted", as_json=as_json)


def _action(verb: str, done: str, summary: str) -> None:
    """Add a command that moves an experiment and says why."""

    def act(  # noqa: PLR0913 - an argument for each option
        ctx: typer.Context,
        name: Name,
        *,
        if_match: IfMatch = None,
        reason: Reason = "",
        as_json: AsJson = False,
        admin: AdminUrl = None,
        token_file: TokenFile = None,
    ) -> None:
        with AdminClient(ctx, admin, token_file) as client:
            answer = client.post(
                "experiments", name, verb, document={"reason": reason}, if_match=if_match
            )
        _tell(name, answer, done, as_json=as_json)

    app.command(verb, help=summary)(act)


app.command()(report)
_action("pause", "is paused", "Leave traffic as it is and take no step; harm still rolls back.")
_action("resume", "takes steps again", "Take steps again.")
_action("approve", "may promote", "Let it promote once its evidence says so.")
_action("stop", "is stopped", "End it without a verdict: everybody gets the default.")
_action("rollback", "is rolled back", "End it as harmful; a promotion of its own is taken back.")


def _tell(name: str, answer: dict[str, Any], done: str, *, as_json: bool) -> None:
    if as_json:
        show_json(answer)
    else:
        _say_changed(name, answer, done)


def _say_changed(name: str, answer: dict[str, Any], done: str) -> None:
    words = done if answer["changed"] else "was like that already"
    etag = "" if answer["etag"] is None else f", ETag {answer['etag']}"
    say(f"Experiment '{name}' {words}: revision {answer['revision']}{etag}.")


def _show_preview(preview: dict[str, Any]) -> None:
    if preview["refusal"] is not None:
        say(f"Starting it would be refused: {preview['refusal']}")
    if preview["shadowed"]:
        say("It would begin with a shadow stage, which enrols nobody.")
    exposure = preview["exposure"] / SCALE
    show_table(
        f"{preview['name']} would open with {share(exposure)} of all units",
        ("variant", "version", "of the enrolled", "of all"),
        [
            (
                variant,
                preview["versions"].get(variant),
                share(weight / SCALE),
                share(exposure * weight / SCALE),
            )
            for variant, weight in preview["weights"].items()
        ],
        empty="",
    )


def _show_report(report: dict[str, Any]) -> None:
    why = f" ({report['reason']})" if report["reason"] else ""
    enrolled = share(sum(row["share"] for row in report["variants"]))
    say(
        f"{report['name']} on {report['endpoint']} is {report['state']}{why}: "
        f"{report['strategy']}, step {report['step']}, {enrolled} of all units enrolled."
    )
    if report["detail"]:
        say(report["detail"])
    for remark in report["remarks"]:
        say(f"Note: {remark}")
    show_table(
        "Units",
        ("variant", "version", "share", "assigned", "served", "outcome", "moved", "events"),
        [
            (
                row["name"],
                row["version"],
                share(row["share"]),
                row["assigned"],
                row["served"],
                row["received"],
                row["contaminated"],
                row["events"] or None,
            )
            for row in report["variants"]
        ],
        empty="No unit was seen yet.",
    )
    _show_readings("Readings", report["readings"])
    for segment in report["segments"]:
        _show_readings(f"Segment {segment['segment']} (not decided on)", segment["readings"])
    if report["results"]:
        told = ", ".join(f"{count:,} {what}" for what, count in report["results"].items())
        say(f"Outcomes and sightings: {told}.")
    if report["funnel"] is not None:
        _show_funnel(report["funnel"])
    if report["shadows"]:
        _show_shadows(report["shadows"])


def _show_readings(title: str, readings: list[dict[str, Any]]) -> None:
    show_table(
        title,
        ("metric", "variant", "verdict", "estimate", "interval", "units left", "harm", "safe"),
        [
            (
                f"{row['name']} ({row['role']})",
                row["variant"],
                row.get("verdict", "inconclusive"),
                row.get("estimate"),
                _interval(row.get("interval")),
                "-" if row.get("left") is None else f"{row['left']:,}",
                _evidence(row.get("harm", {})),
                _evidence(nearest_safe(row)),
            )
            for row in readings
        ],
        empty="Nothing can be read yet.",
    )


def _show_funnel(funnel: dict[str, Any]) -> None:
    show_table(
        "Funnel",
        ("stage", "units", "seen", "expected", "e", "threshold"),
        [
            (
                stage["name"],
                stage.get("units", 0),
                {name: share(part) for name, part in stage.get("seen", {}).items()},
                {name: share(part) for name, part in stage.get("expected", {}).items()},
                stage.get("test", {}).get("e", 1.0),
                stage.get("test", {}).get("threshold", 20.0),
            )
            for stage in (funnel["assigned"], funnel["served"], funnel["received"])
        ],
        empty="",
    )


def _show_shadows(shadows: list[dict[str, Any]]) -> None:
    show_table(
        "Shadow stage",
        ("variant", "compared", "disagreed", "failed"),
        [
            (row["variant"], row.get("compared", 0), row.get("disagreed", 0), row.get("failed", 0))
            for row in shadows
        ],
        empty="",
    )


def _evidence(test: dict[str, float]) -> str:
    """An e-value and the threshold at which it counts."""
    return f"{test.get('e', 1.0):.3g} of {test.get('threshold', 20.0):.3g}"


def _interval(ends: list[float | None] | None) -> str:
    if ends is None:
        return "-"
    low, high = ("…" if end is None else f"{end:.4g}" for end in ends)
    return f"{low} to {high}"
