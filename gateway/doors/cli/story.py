"""The demo's story: real flights through a gateway while its rules and its champion change.

Chapters: a 90:10 split by aircraft with a shadow; version 2 is promoted; it is rolled back. What
was found (the endpoint's document and the champion) is put back at the end.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import httpx
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.core.errors import Conflict, UpstreamFailed
from gateway.doors.cli.traffic import Flight, infer_body, read_flights

MODEL: Final = "flight-delay"
IN_FLIGHT: Final = 4
PROMOTE_AT: Final = 0.4
ROLL_BACK_AT: Final = 0.7
SETTLE_S: Final = 30.0
LOOK_S: Final = 0.05
CHAPTERS: Final = ("90:10", "promoted", "rolled back")
_OK: Final = 200
_NOT_FOUND: Final = 404

RULES: Final[dict[str, Any]] = {
    "schema": 1,
    "model": MODEL,
    "rules": [
        {
            "name": "demo",
            "split": {
                "exposure": 10_000,
                "unit": {"header": "X-Unit-Id"},
                "variants": [
                    {"name": "control", "alias": "champion", "weight": 9_000},
                    {"name": "treatment", "version": 2, "weight": 1_000},
                ],
            },
        }
    ],
    "shadows": [{"name": "shadow-2", "version": 2, "share": 5_000}],
}


class DemoOptions(Struct, frozen=True):
    """Where the gateway is and how much to send. `now` is in monotonic seconds."""

    inference_url: str
    admin_url: str
    token: str
    traffic: Path
    requests: int
    now: Callable[[], float]


@dataclass(slots=True)
class Seen:
    """What clients saw of one variant in one chapter."""

    latencies_ms: list[float] = field(default_factory=list)
    units: set[str] = field(default_factory=set)
    right: int = 0
    log_loss: float = 0.0
    labelled: int = 0

    def add(self, flight: Flight, latency_ms: float, late_probability: float) -> None:
        """Count one answer, and hold it against what the flight did."""
        self.latencies_ms.append(latency_ms)
        self.units.add(flight.tail_number)
        if flight.late is None:
            return
        self.labelled += 1
        self.right += (late_probability >= 0.5) == flight.late  # noqa: PLR2004 - even odds
        chance = late_probability if flight.late else 1 - late_probability
        self.log_loss -= log(max(chance, 1e-12))


@dataclass(slots=True)
class Story:
    """Everything that happened."""

    seen: dict[tuple[str, str, str], Seen] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    chapter: str = CHAPTERS[0]
    seconds: float = 0.0
    shadows: list[dict[str, Any]] = field(default_factory=list)


def run_demo(options: DemoOptions, console: Console) -> Story:
    """Tell the story against a running gateway, with a progress bar and tables at the end."""
    flights = list(read_flights(options.traffic, options.requests))
    story = asyncio.run(_tell(options, flights, console))
    show(story, console)
    return story


def show(story: Story, console: Console) -> None:
    """Print what clients saw per variant, and what the shadow found."""
    table = Table(title="What clients saw")
    for column in ("chapter", "variant", "version"):
        table.add_column(column)
    for column in ("answers", "aircraft", "p50 ms", "p99 ms", "accuracy", "log loss"):
        table.add_column(column, justify="right")
    for (chapter, variant, version), seen in story.seen.items():
        table.add_row(chapter, variant, version, *_numbers(seen))
    console.print(table)
    shadows = Table(title="What the shadow found")
    for column in ("shadow", "compared", "same label", "within tolerance", "mean |Δ|", "max |Δ|"):
        shadows.add_column(column, justify="right")
    for shadow in story.shadows:
        shadows.add_row(*_agreement(shadow))
    console.print(shadows)
    answered = sum(len(seen.latencies_ms) for seen in story.seen.values())
    rate = answered / story.seconds if story.seconds else 0.0
    console.print(f"{answered} answers in {story.seconds:.1f} s ({rate:.0f}/s), errors: ", end="")
    console.print(dict(story.errors) or "none")


async def _tell(options: DemoOptions, flights: list[Flight], console: Console) -> Story:
    story = Story()
    admin_headers = {"Authorization": f"Bearer {options.token}"}
    async with (
        httpx.AsyncClient(base_url=options.admin_url, headers=admin_headers, timeout=30) as admin,
        httpx.AsyncClient(base_url=options.inference_url, timeout=30) as client,
    ):
        before = await _remember(admin)
        try:
            await _change(admin, "PUT", f"/admin/v1/endpoints/{MODEL}", RULES)
            start = options.now()
            with _progress(console) as progress:
                await _replay(_Stage(admin, client, story, progress, options.now), flights)
            story.seconds = options.now() - start
            found = await _ask(admin, "GET", f"/admin/v1/endpoints/{MODEL}/shadows")
            story.shadows = found["shadows"]
        finally:
            await _put_back(admin, before)
    return story


@dataclass(slots=True)
class _Stage:
    admin: httpx.AsyncClient
    client: httpx.AsyncClient
    story: Story
    progress: Progress
    now: Callable[[], float]


async def _replay(stage: _Stage, flights: list[Flight]) -> None:
    """Send the chapters one after the other; within each the requests overlap."""
    total = len(flights)
    cuts = [0, int(total * PROMOTE_AT), int(total * ROLL_BACK_AT), total]
    bar = stage.progress.add_task(CHAPTERS[0], total=total)
    for chapter, (begin, end) in zip(CHAPTERS, pairwise(cuts), strict=True):
        change = _change_before(chapter)
        stage.progress.update(bar, description=chapter)
        queue = iter(flights[begin:end])
        changing = asyncio.create_task(_make(stage, change, chapter))
        senders = [
            asyncio.create_task(_send_all(stage, queue, lambda: stage.progress.advance(bar)))
            for _ in range(IN_FLIGHT)
        ]
        await asyncio.gather(changing, *senders)


def _change_before(chapter: str) -> tuple[str, dict[str, Any]] | None:
    if chapter == "promoted":
        return f"/admin/v1/models/{MODEL}/promote", {"version": 2, "reason": "demo"}
    if chapter == "rolled back":
        return f"/admin/v1/models/{MODEL}/rollback", {"reason": "demo"}
    return None


async def _make(stage: _Stage, change: tuple[str, dict[str, Any]] | None, chapter: str) -> None:
    """Make a change while requests are under way: that is the point of it."""
    if change is not None:
        path, document = change
        await _change(stage.admin, "POST", path, document)
    stage.story.chapter = chapter


async def _send_all(stage: _Stage, queue: Iterable[Flight], advance: Callable[[], None]) -> None:
    path = f"/v2/models/{MODEL}/infer"
    for flight in queue:
        headers = {"X-Unit-Id": flight.tail_number, "Content-Type": "application/json"}
        start = stage.now()
        response = await stage.client.post(path, content=infer_body(flight), headers=headers)
        latency_ms = (stage.now() - start) * 1000
        advance()
        if response.status_code != _OK:
            stage.story.errors[str(response.status_code)] += 1
            continue
        late = response.json()["outputs"][1]["data"][1]
        key = (
            stage.story.chapter,
            response.headers["X-Variant"],
            response.headers["X-Model-Version"],
        )
        stage.story.seen.setdefault(key, Seen()).add(flight, latency_ms, late)


async def _remember(admin: httpx.AsyncClient) -> tuple[dict[str, Any] | None, int]:
    """The endpoint's own document, None if it has none, and the champion."""
    listed = await _ask(admin, "GET", "/admin/v1/endpoints")
    own = {entry["name"]: entry for entry in listed["endpoints"]}
    document = None
    if not own[MODEL]["implicit"]:
        document = (await _ask(admin, "GET", f"/admin/v1/endpoints/{MODEL}"))["document"]
    model = await _ask(admin, "GET", f"/admin/v1/models/{MODEL}")
    return document, int(model["aliases"]["champion"])


async def _put_back(admin: httpx.AsyncClient, before: tuple[dict[str, Any] | None, int]) -> None:
    document, champion = before
    model = await _ask(admin, "GET", f"/admin/v1/models/{MODEL}")
    if model["aliases"]["champion"] != champion:
        back = {"version": champion, "reason": "put back after the demo"}
        await _ask(admin, "POST", f"/admin/v1/models/{MODEL}/promote", back)
    if document is None:
        await _ask(admin, "DELETE", f"/admin/v1/endpoints/{MODEL}")
    else:
        await _ask(admin, "PUT", f"/admin/v1/endpoints/{MODEL}", document)


async def _change(
    admin: httpx.AsyncClient, method: str, path: str, document: dict[str, Any]
) -> None:
    """Make a change and wait until every process serves it."""
    await _ask(admin, method, path, document)
    try:
        async with asyncio.timeout(SETTLE_S):
            while not (await _ask(admin, "GET", "/admin/v1/status"))["complete"]:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
    except TimeoutError as error:
        message = "The gateway did not settle on the new revision; `tiltyard status` says why."
        raise Conflict(message) from error


async def _ask(
    admin: httpx.AsyncClient, method: str, path: str, document: object = None
) -> dict[str, Any]:
    response = await admin.request(method, path, json=document)
    if response.is_error:
        sentence = response.json().get("error", f"status {response.status_code}")
        raise UpstreamFailed(sentence)
    answer: dict[str, Any] = response.json() if response.content else {}
    return answer


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _numbers(seen: Seen) -> tuple[str, ...]:
    latencies = seen.latencies_ms
    cuts = quantiles(latencies, n=100) if len(latencies) > 1 else [latencies[0]] * 99
    labelled = seen.labelled or 1
    return (
        str(len(latencies)),
        str(len(seen.units)),
        f"{cuts[49]:.2f}",
        f"{cuts[98]:.2f}",
        f"{seen.right / labelled:.3f}",
        f"{seen.log_loss / labelled:.3f}",
    )


def _agreement(shadow: dict[str, Any]) -> tuple[str, ...]:
    tally = shadow["tally"]
    compared = tally["compared"] or 1
    labels = tally["label_agreed"] / (tally["label_rows"] or 1)
    mean = tally["sum_absolute"] / (tally["measured"] or 1)
    return (
        f"{shadow['shadow']} (version {shadow['version']})",
        str(tally["compared"]),
        f"{labels:.1%}",
        f"{tally['agreed'] / compared:.1%}",
        f"{mean:.4f}",
        f"{tally['max_absolute']:.4f}",
    )
