"""The demo's story: months of real flights through three experiments that decide for themselves.

Aircraft are the units and their arrivals the outcomes, as late as they were. Version 2 ramps
against version 1; then a version runs against itself, of which nothing may be claimed; then a
version that is broken on purpose is rolled back.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.core.errors import Conflict, UpstreamFailed
from gateway.doors.cli.chapters import (
    ALIAS,
    DRILL,
    DRILL_ENDPOINT,
    ENDPOINT,
    MODEL,
    NAMES,
    Chapter,
    chapters,
    endpoint_document,
)
from gateway.doors.cli.front import FrontStep, is_here
from gateway.doors.cli.replay import Replay
from gateway.doors.cli.traffic import Flight, read_flights

TRAFFIC: Final = f"{MODEL}/traffic.csv.gz"
"""Where the flights are, below the model store."""
ENDPOINTS: Final = {ENDPOINT: MODEL, DRILL_ENDPOINT: DRILL}
TERMINAL: Final = frozenset({"promoted", "rolled_back", "stopped"})
SETTLE_S: Final = 30.0
LOOK_S: Final = 0.25
_NOT_FOUND: Final = 404


class DemoOptions(Struct, frozen=True):
    """Where the gateway is and how much to send."""

    inference_url: str
    admin_url: str
    token: str
    traffic: Path
    requests: int


class Move(Struct, frozen=True):
    """A decision: seconds since the chapter began, and what the experiment was from then on."""

    at: float
    state: str
    reason: str
    exposure: int
    verdicts: dict[str, str]


@dataclass(slots=True)
class Told:
    """What became of a chapter."""

    chapter: Chapter
    report: dict[str, Any]
    history: list[dict[str, Any]]
    moves: list[Move]
    seconds: float
    answers: Counter[str]

    @property
    def is_right(self) -> bool:
        """Whether it ended as it should, and claimed no more than it may."""
        claimed = {verdict for move in self.moves for verdict in move.verdicts.values()}
        silent = self.chapter.claims or not claimed & {"better", "worse"}
        return silent and self.report["state"] in self.chapter.good

    @property
    def took(self) -> int:
        """Requests that the variant under study answered."""
        return self.answers[self.chapter.document["variants"][1]["name"]]


@dataclass(slots=True)
class Story:
    """Everything that happened."""

    chapters: list[Told] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    outcomes: int = 0
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return sum(told.answers.total() for told in self.chapters)

    @property
    def is_right(self) -> bool:
        """Whether every chapter ended as it should, without an error."""
        return not self.errors and all(told.is_right for told in self.chapters)


def run_demo(options: DemoOptions, front: FrontStep, console: Console) -> Story:
    """Tell the story against a running gateway, with a progress bar on the way."""
    flights = read_flights(options.traffic, options.requests)
    return asyncio.run(_tell(options, front, flights, console))


async def _tell(
    options: DemoOptions, front: FrontStep, flights: Iterator[Flight], console: Console
) -> Story:
    story = Story()
    async with (
        _client(front, options.admin_url) as client,
        _client(front, options.inference_url) as inference,
    ):
        client.headers["Authorization"] = f"Bearer {options.token}"
        admin = _Admin(client)
        await _set_the_stage(admin)
        try:
            with _progress(console) as progress:
                bar = progress.add_task("", total=options.requests)
                replay = Replay(inference, flights, lambda: progress.advance(bar), options.token)
                stage = _Stage(admin, replay, front.now, console)
                start = front.now()
                for chapter in chapters(options.requests):
                    progress.update(bar, description=chapter.name)
                    limit = int(options.requests * chapter.share)
                    story.chapters.append(await _play(stage, chapter, limit))
                story.seconds = front.now() - start
            story.errors, story.outcomes = replay.errors, replay.outcomes
        finally:
            await _clear_the_stage(admin)
    return story


class _Admin:
    """The admin API of the gateway that the story is told to."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        """An answer; UpstreamFailed with the gateway's own sentence if it refuses."""
        response = await self._client.request(method, f"/admin/v1/{path}", json=document)
        if response.is_error:
            sentence = response.json().get("error", f"status {response.status_code}")
            raise UpstreamFailed(sentence)
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    async def state_of(self, name: str) -> str | None:
        """The state of an experiment, None where there is none."""
        response = await self._client.get(f"/admin/v1/experiments/{name}")
        if response.status_code == _NOT_FOUND:
            return None
        state: str = response.json()["record"]["state"]
        return state

    async def settle(self) -> None:
        """Wait until every process serves the newest revision."""
        try:
            async with asyncio.timeout(SETTLE_S):
                while not (await self.ask("GET", "status"))["complete"]:  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S / 5)
        except TimeoutError as error:
            message = "The gateway did not settle on the new revision; `tiltyard status` says why."
            raise Conflict(message) from error


@dataclass(slots=True)
class _Stage:
    admin: _Admin
    replay: Replay
    now: Callable[[], float]
    console: Console


async def _set_the_stage(admin: _Admin) -> None:
    """The demo's alias at version 1, its own endpoints, and no experiment of an earlier demo."""
    await _remove_experiments(admin)
    for endpoint, model in ENDPOINTS.items():
        aliases = (await admin.ask("GET", f"models/{model}"))["aliases"]
        if aliases.get(ALIAS) != 1:
            document = {"version": 1, "alias": ALIAS, "reason": "demo"}
            await admin.ask("POST", f"models/{model}/promote", document)
        rules = endpoint_document(model, with_scalars=model == MODEL)
        await admin.ask("PUT", f"endpoints/{endpoint}", rules)
    await admin.settle()


async def _clear_the_stage(admin: _Admin) -> None:
    await _remove_experiments(admin)
    for endpoint in ENDPOINTS:
        await admin.ask("DELETE", f"endpoints/{endpoint}")


async def _remove_experiments(admin: _Admin) -> None:
    for name in NAMES:
        state = await admin.state_of(name)
        if state is None:
            continue
        if state not in {*TERMINAL, "draft"}:
            await admin.ask("POST", f"experiments/{name}/stop", {"reason": "demo"})
        await admin.ask("DELETE", f"experiments/{name}")


async def _play(stage: _Stage, chapter: Chapter, limit: int) -> Told:
    """Start the experiment, send flights until it has ended or they are used up, then look."""
    stage.console.print(f"\n[bold]{chapter.title}[/bold]")
    admin, replay = stage.admin, stage.replay
    place = f"experiments/{chapter.name}"
    await admin.ask("PUT", place, chapter.document)
    await admin.ask("POST", f"{place}/start", {"reason": "demo"})
    await admin.settle()
    replay.answers.clear()
    start = stage.now()
    moves: list[Move] = []
    watching = asyncio.create_task(_watch(stage, chapter, moves))
    try:
        await replay.run(chapter.endpoint, limit)
        seconds = stage.now() - start
        if not watching.done():
            await asyncio.wait([watching], timeout=_patience(chapter))
    finally:
        watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    report = await admin.ask("GET", f"{place}/report")
    history = (await admin.ask("GET", f"{place}/history"))["points"]
    if report["state"] not in TERMINAL:
        await admin.ask("POST", f"{place}/stop", {"reason": "the demo's flights are over"})
    return Told(chapter, report, history, moves, seconds, Counter(replay.answers))


async def _watch(stage: _Stage, chapter: Chapter, moves: list[Move]) -> None:
    """Note each decision as it is made, until the last one; then no more flights are sent."""
    start = stage.now()
    while True:
        document = await stage.admin.ask("GET", f"experiments/{chapter.name}")
        record = document["record"]
        move = Move(
            at=stage.now() - start,
            state=record["state"],
            reason=record.get("reason", ""),
            exposure=record.get("exposure", 0),
            verdicts=dict(record.get("verdicts", {})),
        )
        if not moves or _differs(moves[-1], move):
            told = _words(moves[-1]) if moves else ""
            moves.append(move)
            if _words(move) != told:
                stage.console.print(f"  {move.at:5.1f} s  {_words(move)}", highlight=False)
        if move.state in TERMINAL:
            stage.replay.stop()
            return
        await asyncio.sleep(LOOK_S)


def _differs(before: Move, after: Move) -> bool:
    return (before.state, before.reason, before.exposure, before.verdicts) != (
        after.state,
        after.reason,
        after.exposure,
        after.verdicts,
    )


def _words(move: Move) -> str:
    why = f" ({move.reason})" if move.reason else ""
    told = ", ".join(
        f"{key.split('/', maxsplit=1)[0]} {verdict}"
        for key, verdict in move.verdicts.items()
        if verdict != "inconclusive"
    )
    share = f", {move.exposure / 100:g} % enrolled" if move.exposure else ""
    return f"{move.state}{why}{share}{': ' if told else ''}{told}"


def _patience(chapter: Chapter) -> float:
    """How long units still ripen after the last flight."""
    metrics: list[Mapping[str, float]] = chapter.document.get("metrics", [])
    ripe = max((one["window_s"] + one["maturity_s"] for one in metrics), default=0.0)
    return ripe + 5.0


def _client(front: FrontStep, url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url, timeout=30, verify=front.trusted(), trust_env=not is_here(url)
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
