"""The status command: who serves what, and what is wrong."""

from datetime import UTC, datetime
from typing import Any

import typer

from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import AdminUrl, AsJson, TokenFile
from gateway.doors.cli.models import lagging, say_refused
from gateway.doors.cli.output import say, show_json, show_table


def status(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = None,
    token_file: TokenFile = None,
) -> None:
    """Show who serves which revision, what lags and why."""
    with AdminClient(ctx, admin, token_file) as client:
        found = client.get("status")
    if as_json:
        show_json(found)
        return
    store = found["store"]
    state = "reachable" if store["reachable"] else f"away ({store['reason'] or 'no reason'})"
    alarms = _alarms(found)
    say(f"{_headline(found, alarms)} The store is {state}.")
    if found["rejected"] is not None:
        say(_rejected(found["rejected"]))
    show_table(
        "Processes",
        ("process", "revision", "ready", "leads", "from", "failed", "missing"),
        [
            (
                row["name"],
                row["revision"],
                row["ready"],
                row["leads"],
                row["source"],
                [f"{entry['model']}/{entry['number']}" for entry in row["failed"]],
                row["missing"],
            )
            for row in found["processes"]
        ],
        empty="No process is known.",
    )
    for reason in lagging(found):
        say(f"Lagging: {reason}")
    say_refused(found)
    for alarm in alarms:
        say(alarm)


def _headline(found: dict[str, Any], alarms: list[str]) -> str:
    """Where things stand; "complete" is said only of what nothing is wrong with."""
    revision = found["revision"]
    if revision == 0:
        return "No Snapshot yet, so nothing is served."
    if found["rejected"] is not None:
        return f"Revision {revision} serves on; the Snapshot in the store is rejected."
    if alarms:
        return f"Revision {revision} serves, with alarms."
    return f"Revision {found['newest']}: {found['promotion']['text']}."


def _rejected(rejected: dict[str, Any]) -> str:
    since = datetime.fromtimestamp(rejected["at"], UTC)
    digest = rejected["sha256"][:12]
    return f"Rejected: Snapshot {digest}, since {since:%Y-%m-%d %H:%M:%S} UTC: {rejected['reason']}"


def _alarms(found: dict[str, Any]) -> list[str]:
    """The alarms of the process that answered, then those of the others."""
    told = [f"Alarm {kind}: {text}" for kind, text in found["alarms"].items()]
    for process in found["processes"]:
        if process["name"] != found["process"]:
            who = process["name"]
            told += [f"Alarm {kind} of {who}: {text}" for kind, text in process["alarms"].items()]
    return told
