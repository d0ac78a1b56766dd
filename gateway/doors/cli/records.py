"""Commands on the record log: what this host keeps of its predictions, read without a gateway."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Final

import msgspec
import typer

from gateway.core.errors import InvalidRequest
from gateway.core.otlp.read import records_in, time_of
from gateway.doors.cli.front import AsJson, Config, RecordStore, front_of
from gateway.doors.cli.output import show_json, show_table
from gateway.doors.cli.spans import moment_of
from gateway.telemetry import ENDPOINT, LATENCY, MODEL_VERSION, PREDICTION_EVENT, VARIANT

app = typer.Typer(no_args_is_help=True, help="The record log in this host's state folder.")

_SECOND: Final = 1_000_000_000


@app.command("list")
def list_segments(ctx: typer.Context, *, config: Config = None, as_json: AsJson = False) -> None:
    """List the segments, oldest first, with their size and the time of their first record."""
    store = _store(ctx, config)
    found = [
        {
            "segment": segment.number,
            "bytes": segment.size,
            "first": _time_text(next((time_of(b) for b in store.requests(segment.number)), None)),
        }
        for segment in store.segments()
    ]
    if as_json:
        show_json(found)
        return
    rows = [tuple(one.values()) for one in found]
    show_table("Segments", ("segment", "bytes", "first"), rows, empty="There is no record yet.")


@app.command("show")
def show(  # noqa: PLR0913 - one for each option
    ctx: typer.Context,
    *,
    endpoint: Annotated[str | None, typer.Option(help="Of this endpoint only.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Not older than this: 90s, 15m, 2h, 7d, or an ISO time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 20,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show prediction records, newest first; with --json whole, one JSON object a line."""
    front = front_of(ctx)
    after_ns = int(moment_of(since, front.unix_time()) * _SECOND) if since else 0
    found = _newest_first(_store(ctx, config), endpoint, after_ns)
    if as_json:
        for record in islice(found, limit):
            typer.echo(msgspec.json.encode(record).decode())
        return
    names = (ENDPOINT, VARIANT, MODEL_VERSION, LATENCY, "error.type")
    rows = [
        (_time_text(one["time_unix_nano"]), *(one["attributes"].get(name) for name in names))
        for one in islice(found, limit)
    ]
    columns = ("time", "endpoint", "variant", "version", "latency s", "error")
    show_table("Predictions", columns, rows, empty="There is no such record.")


def _newest_first(
    store: RecordStore, endpoint: str | None, after_ns: int
) -> Iterator[dict[str, Any]]:
    """Matching predictions; a segment is read only if those behind it were not enough."""
    for segment in reversed(store.segments()):
        bodies = list(store.requests(segment.number))
        for body in reversed(bodies):
            for record in reversed(_readable(body)):
                if record["event"] != PREDICTION_EVENT or record["time_unix_nano"] < after_ns:
                    continue
                if endpoint in (None, record["attributes"].get(ENDPOINT)):
                    yield record


def _readable(body: bytes) -> list[dict[str, Any]]:
    try:
        return list(records_in(body))
    except InvalidRequest:
        return []


def _time_text(at_ns: int | None) -> str | None:
    if at_ns is None:
        return None
    return datetime.fromtimestamp(at_ns / _SECOND, UTC).isoformat(timespec="milliseconds")


def _store(ctx: typer.Context, config: Config) -> RecordStore:
    front = front_of(ctx)
    return front.record_store(front.settings(config))
