"""The status command: who serves what, and what is wrong."""

import typer

from gateway.doors.cli.client import AdminClient
from gateway.doors.cli.front import DEFAULT_ADMIN_URL, AdminUrl, AsJson, TokenFile
from gateway.doors.cli.models import lagging
from gateway.doors.cli.output import say, show_json, show_table


def status(
    ctx: typer.Context,
    *,
    as_json: AsJson = False,
    admin: AdminUrl = DEFAULT_ADMIN_URL,
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
    say(f"Revision {found['newest']}: {found['promotion']['text']}. The store is {state}.")
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
    for kind, text in found["alarms"].items():
        say(f"Alarm {kind}: {text}")
