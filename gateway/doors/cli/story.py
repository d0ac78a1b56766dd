"""The demo's story: real flights through a gateway while its rules and an alias change.

Chapters: a 90:10 split by aircraft with a shadow; version 2 is promoted; it is rolled back. All of
it happens on an endpoint and an alias of the demo's own, so that nobody's rules, units or champion
move. The endpoint is deleted at the end; the alias stays, at version 1, where nothing follows it.
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
from gateway.doors.cli.front import FrontStep, is_here
from gateway.doors.cli.traffic import Flight, infer_body, read_flights

MODEL: Final = "flight-delay"
ENDPOINT: Final = "flight-delay-demo"
ALIAS: Final = "demo-champion"
TRAFFIC: Final = f"{MODEL}/traffic.csv.gz"
"""Where the flights are, below the model store."""
IN_FLIGHT: Final = 4
PROMOTE_AT: Final = 0.4
ROLL_BACK_AT: Final = 0.7
SETTLE_S: Final = 30.0
LOOK_S: Final = 0.05
CHAPTERS: Final = ("90:10", "promoted", "rolled back")
_OK: Final = 200
_ENDPOINT_PATH: Final = f"/admin/v1/endpoints/{ENDPOINT}"
_MODEL_PATH: Final = f"/admin/v1/models/{MODEL}"

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
                    {"name": "control", "alias": ALIAS, "weight": 9_000},
                    {"name": "treatment", "version": 2, "weight": 1_000},
                ],
            },
        }
    ],
    "default": {"alias": ALIAS},
    "shadows": [{"name": "shadow-2", "version": 2, "share": 5_000}],
}


class DemoOptions(Struct, frozen=True):
    """Where the gateway is and how much to send."""

    inference_url: str
    admin_url: str
    token: str
    traffic: Path
    requests: int


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

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return sum(len(seen.latencies_ms) for seen in self.seen.values())


def run_demo(options: DemoOptions, front: FrontStep, console: Console) -> Story:
    """Tell the story against a running gateway, with a progress bar on the way."""
    flights = list(read_flights(options.traffic, options.requests))
    return asyncio.run(_tell(options, front, flights, console))


def show(story: Story, console: Console) -> None:
    """Print what clients saw per variant, and what the shadow found; 80 columns suffice."""
    seen = _table(
        "What clients saw",
        ("chapter", "variant"),
        ("answers", "aircraft", "p50 ms", "p99 ms", "acc", "logloss"),
    )
    for (chapter, variant, version), what in story.seen.items():
        numbers = _numbers(what)
        times = (f"{numbers['p50_ms']:.2f}", f"{numbers['p99_ms']:.2f}")
        rates = (f"{numbers['accuracy']:.3f}", f"{numbers['log_loss']:.3f}")
        counts = (str(numbers["answers"]), str(numbers["aircraft"]))
        seen.add_row(chapter, f"{variant} v{version}", *counts, *times, *rates)
    console.print(seen)
    shadows = _table(
        "What the shadow found",
        ("shadow",),
        ("compared", "same label", "in tolerance", "mean |Δ|", "max |Δ|"),
    )
    for shadow in story.shadows:
        shadows.add_row(*_agreement(shadow))
    console.print()
    console.print(shadows)
    rate = story.answered / story.seconds if story.seconds else 0.0
    console.print(f"\n{story.answered} answers in {story.seconds:.1f} s ({rate:.0f}/s), ", end="")
    console.print("errors:", dict(story.errors) or "none")


def document_of(story: Story) -> dict[str, Any]:
    """The story for scripts."""
    rows = [
        {"chapter": chapter, "variant": variant, "version": version, **_numbers(seen)}
        for (chapter, variant, version), seen in story.seen.items()
    ]
    return {
        "rows": rows,
        "shadows": story.shadows,
        "answers": story.answered,
        "seconds": story.seconds,
        "errors": dict(story.errors),
    }


async def _tell(
    options: DemoOptions, front: FrontStep, flights: list[Flight], console: Console
) -> Story:
    story = Story()
    async with (
        _client(front, options.admin_url) as admin,
        _client(front, options.inference_url) as client,
    ):
        admin.headers["Authorization"] = f"Bearer {options.token}"
        await _point_at_first(admin)
        await _ask(admin, "PUT", _ENDPOINT_PATH, RULES)
        try:
            await _settle(admin)
            start = front.now()
            with _progress(console) as progress:
                await _replay(_Stage(admin, client, story, progress, front.now), flights)
            story.seconds = front.now() - start
            found = await _ask(admin, "GET", f"{_ENDPOINT_PATH}/shadows")
            story.shadows = found["shadows"]
        finally:
            await _ask(admin, "DELETE", _ENDPOINT_PATH)
    return story


def _client(front: FrontStep, url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url, timeout=30, verify=front.trusted(), trust_env=not is_here(url)
    )


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
    document = {"alias": ALIAS, "reason": "demo"}
    if chapter == "promoted":
        return f"{_MODEL_PATH}/promote", {"version": 2, **document}
    if chapter == "rolled back":
        return f"{_MODEL_PATH}/rollback", document
    return None


async def _make(stage: _Stage, change: tuple[str, dict[str, Any]] | None, chapter: str) -> None:
    """Make a change while requests are under way: that is the point of it."""
    if change is not None:
        path, document = change
        await _ask(stage.admin, "POST", path, document)
        await _settle(stage.admin)
    stage.story.chapter = chapter


async def _send_all(stage: _Stage, queue: Iterable[Flight], advance: Callable[[], None]) -> None:
    path = f"/v2/models/{ENDPOINT}/infer"
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


async def _point_at_first(admin: httpx.AsyncClient) -> None:
    """Let the demo's own alias name version 1, wherever an earlier demo left it."""
    model = await _ask(admin, "GET", _MODEL_PATH)
    if model["aliases"].get(ALIAS) != 1:
        document = {"version": 1, "alias": ALIAS, "reason": "demo"}
        await _ask(admin, "POST", f"{_MODEL_PATH}/promote", document)


async def _settle(admin: httpx.AsyncClient) -> None:
    """Wait until every process serves the newest revision."""
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


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _numbers(seen: Seen) -> dict[str, float]:
    latencies = seen.latencies_ms
    cuts = quantiles(latencies, n=100) if len(latencies) > 1 else [latencies[0]] * 99
    labelled = seen.labelled or 1
    return {
        "answers": len(latencies),
        "aircraft": len(seen.units),
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "accuracy": seen.right / labelled,
        "log_loss": seen.log_loss / labelled,
    }


def _agreement(shadow: dict[str, Any]) -> tuple[str, ...]:
    tally = shadow["tally"]
    compared = tally["compared"] or 1
    labels = tally["label_agreed"] / (tally["label_rows"] or 1)
    mean = tally["sum_absolute"] / (tally["measured"] or 1)
    return (
        f"{shadow['shadow']} v{shadow['version']}",
        str(tally["compared"]),
        f"{labels:.1%}",
        f"{tally['agreed'] / compared:.1%}",
        f"{mean:.4f}",
        f"{tally['max_absolute']:.4f}",
    )
