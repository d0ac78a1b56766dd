"""The command simulate: what a document would conclude, over thousands of made-up rollouts."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.experiments import Experiment
from gateway.doors.cli.endpoints import read_file
from gateway.doors.cli.front import AsJson
from gateway.doors.cli.output import say, show_json, show_table

if TYPE_CHECKING:
    from gateway.core.scenarios import Base, Name
    from gateway.core.simulation import Rate, Rollout, Summary

AT_ONCE: Final = 50
"""Rollouts that a process makes between two reports."""
BARS: Final = " ▁▂▃▄▅▆▇█"
BINS: Final = 40
MAX_ROLLOUTS: Final = 1_000_000


def simulate(  # noqa: PLR0913 - an argument for each option
    file: Annotated[Path, typer.Argument(help="The experiment's document in JSON.")],
    *,
    rollouts: Annotated[
        int, typer.Option(min=1, max=MAX_ROLLOUTS, help="Rollouts of each scenario.")
    ] = 1_000,
    scenario: Annotated[
        list[str] | None, typer.Option(help="same, margin, better or harm; all if not given.")
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="GUARD=RATE: the control's share of units with it.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="METRIC=MEAN:SD: the control's values.")
    ] = None,
    units: Annotated[float, typer.Option(min=1, help="Units that come between two looks.")] = 1_000,
    looks: Annotated[int, typer.Option(min=1, help="Looks at most.")] = 60,
    every: Annotated[float, typer.Option(min=0.001, help="Seconds between two looks.")] = 60.0,
    delay: Annotated[int, typer.Option(min=0, help="Looks until an outcome is final.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same rollouts.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Try a document on rollouts with a known truth, with the code that decides in production.

    Four worlds: nothing differs; everything is worse by exactly its margin; the goals are better;
    guarded events are five times as frequent. Outcomes are taken as normal around their means.
    """
    from gateway.core.scenarios import NAMES, Base, scenario_of  # noqa: PLC0415 - imports scipy
    from gateway.core.simulation import summary  # noqa: PLC0415

    document = _document(file)
    base = Base(
        rates={name: number for name, (number, *_) in _pairs(rate, 1).items()},
        values={name: (mean, sd) for name, (mean, sd) in _pairs(value, 2).items()},
        units=units,
        ticks=looks,
        tick_s=every,
        delay=delay,
    )
    wanted = tuple(name for name in NAMES if scenario is None or name in scenario)
    if scenario is not None and len(wanted) < len(set(scenario)):
        message = f"Scenarios are {', '.join(NAMES)}."
        raise InvalidRequest(message)
    for name in wanted:
        scenario_of(name, document, base)  # whatever is wrong is told before anything is counted
    ended: dict[Name, list[Rollout]] = {}
    with _processes() as pool, _progress(Console(quiet=as_json)) as progress:
        for name in wanted:
            bar = progress.add_task(name, total=rollouts)
            ended[name] = []
            for some in _rollouts(pool, document, (name, base), rollouts, seed):
                ended[name] += some
                progress.advance(bar, len(some))
    told = {name: summary(some) for name, some in ended.items()}
    if as_json:
        show_json(told)
        return
    _show(document, told, ended)


def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"))


def _rollouts(
    pool: ProcessPoolExecutor,
    document: Experiment,
    world: "tuple[Name, Base]",
    count: int,
    seed: int,
) -> "Iterator[list[Rollout]]":
    """Rollouts as they come, from all processors; what they are depends on the seed alone."""
    encoded = msgspec.json.encode(document)
    pieces = [min(AT_ONCE, count - start) for start in range(0, count, AT_ONCE)]
    waiting = [
        pool.submit(piece_of, encoded, *world, size, (seed, index))
        for index, size in enumerate(pieces)
    ]
    for done in as_completed(waiting):
        yield done.result()


def piece_of(
    encoded: bytes, name: "Name", base: "Base", count: int, seed: tuple[int, int]
) -> "list[Rollout]":
    """Some rollouts, made in a process of their own."""
    import numpy as np  # noqa: PLC0415 - only here, and scipy with it

    from gateway.core.scenarios import NAMES, scenario_of  # noqa: PLC0415
    from gateway.core.simulation import rollouts  # noqa: PLC0415

    document = msgspec.json.decode(encoded, type=Experiment)
    generator = np.random.default_rng([*seed, NAMES.index(name)])
    return list(rollouts(document, scenario_of(name, document, base), count, generator))


def _document(file: Path) -> Experiment:
    try:
        return msgspec.json.decode(read_file(file), type=Experiment)
    except msgspec.ValidationError as error:
        message = f"That is no experiment's document: {excerpt(str(error), 200)}."
        raise InvalidRequest(message) from error


def _pairs(given: list[str] | None, numbers: int) -> dict[str, tuple[float, ...]]:
    """`NAME=1:2` as a name and so many numbers."""
    pairs: dict[str, tuple[float, ...]] = {}
    for text in given or ():
        name, _, rest = text.partition("=")
        try:
            found = tuple(float(part) for part in rest.split(":"))
        except ValueError:
            found = ()
        if not name or len(found) != numbers:
            form = "NAME=RATE" if numbers == 1 else "NAME=MEAN:SD"
            message = f"'{excerpt(text)}' is not of the form {form}."
            raise InvalidRequest(message)
        pairs[name] = found
    return pairs


def _show(
    document: Experiment, told: "dict[Name, Summary]", ended: "dict[Name, list[Rollout]]"
) -> None:
    from gateway.core.scenarios import WORDS  # noqa: PLC0415 - it imports scipy

    show_table(
        f"{next(iter(told.values())).rollouts} rollouts of each, a look at every tick",
        ("scenario", "promoted", "rolled back", "undecided", "claimed", "a z-test would"),
        [
            (
                name,
                _rate(one.promoted),
                _rate(one.rolled_back),
                _rate(one.undecided),
                _rate(one.claimed),
                _rate(one.naive),
            )
            for name, one in told.items()
        ],
        empty="",
    )
    show_table(
        "Until the decision",
        ("scenario", "seconds: p10, median, p90", "units of the variants under study"),
        [(name, _spread(one.seconds), _spread(one.treated)) for name, one in told.items()],
        empty="",
    )
    for name, one in told.items():
        say(f"{name}: {WORDS[name]}. {_meaning(name, document, one)}")
        plot = _plot([r.seconds for r in ended[name] if r.state.value in _DECIDED])
        if plot:
            say(plot)


def _meaning(name: "Name", document: Experiment, one: "Summary") -> str:
    """What the rates of this world say of the document."""
    alpha, beta = document.alpha, document.beta
    if name == "same":
        return (
            f"False rollbacks {_rate(one.harmed)} and false claims {_rate(one.claimed)}, "
            f"each to stay within {alpha:.1%}; {_rate(one.promoted)} promoted, rightly."
        )
    if name == "margin":
        return f"False promotions {_rate(one.promoted)}, to stay within {beta:.1%}."
    if name == "better":
        return f"Power: {_rate(one.promoted)} promoted."
    return f"Power: {_rate(one.rolled_back)} rolled back."


def _rate(rate: "Rate") -> str:
    return f"{rate.rate:.2%} [{rate.lower:.2%}, {rate.upper:.2%}]"


def _spread(spread: Any) -> str:  # noqa: ANN401 - a Spread, or None where nothing was decided
    if spread is None:
        return "-"
    return f"{spread.p10:,.0f}, {spread.p50:,.0f}, {spread.p90:,.0f}"


def _plot(seconds: list[float]) -> str:
    """How long decisions took, as a row of bars from the first to the last."""
    if not seconds:
        return ""
    low, high = min(seconds), max(seconds)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for one in seconds:
        counts[min(int((one - low) / width), BINS - 1)] += 1
    top = max(counts)
    bars = "".join(BARS[-(-count * (len(BARS) - 1) // top)] for count in counts)
    return f"  {low:,.0f} s {bars} {high:,.0f} s"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


_DECIDED: Final = frozenset({"promoted", "holding_out", "rolled_back"})
