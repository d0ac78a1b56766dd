"""Measure Tiltyard beside the bare endpoint and its peers; see README.md here.

python loadtests/run.py [--scenarios peak,single] [--models logistic] [--rounds 5] ...
"""

import argparse
import datetime as dt
import json
import math
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from loadtests import chart, machine, models, table, targets
from loadtests.arena import Arena, OutOfTime
from loadtests.contestants import (
    ENVIRONMENTS,
    PEERS,
    VARIANTS,
    World,
    install,
)
from loadtests.open_loop import limit
from loadtests.scenarios import (
    closed_loop,
    idle,
    overload,
    peers,
    rates,
    shadows,
    swaps,
    tensors,
)
from loadtests.servers import NotReady, adopt_orphans, sink, store

SCENARIOS: Final[dict[str, Callable[[Arena], None]]] = {
    "peak": closed_loop.peak,
    "single": closed_loop.single,
    "telemetry": closed_loop.telemetry,
    "tensors": tensors.tensors,
    "rates": rates.rates,
    "swaps": swaps.swaps,
    "shadows": shadows.shadows,
    "overload": overload.overload,
    "idle": idle.idle,
    "peers": peers.peers,
}
FIGURES: Final = (closed_loop, tensors, rates, peers, swaps, shadows, overload, idle)
DEFAULT_MODELS: Final = "logistic,boosted,perceptron,digits,image,convnet"
STARTED_BY_SCENARIO: Final = {"swap", "heavy"}
GRACE_S: Final = 120


def main() -> int:
    """Run, write the results, print the tables; 1 when a target was missed and `--strict` is on."""
    arguments = parse(sys.argv[1:])
    if arguments.setup:
        return set_up({PEERS[name].environment for name in listed(arguments.peers)})
    adopt_orphans()
    for signum in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(signum, _stop)
    signal.alarm(int(arguments.budget_s) + GRACE_S)
    with tempfile.TemporaryDirectory(prefix="tiltyard-loads-") as folder:
        arena, before = measure(arguments, Path(folder))
    result = {
        "name": arguments.name,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "loadtests/run.py", *sys.argv[1:]]),
        "machine": before,
        "versions": machine.versions(
            ENVIRONMENTS, sorted({PEERS[name].environment for name in listed(arguments.peers)})
        ),
        "generator_rps": arena.generator_rps,
        "notes": arena.notes,
        "figures": figures(arena.slices),
        "slices": arena.slices,
    }
    verdicts = targets.judge(result["figures"])
    result["targets"] = [
        {"measure": one.target.measure, "value": one.value, "holds": one.passed} for one in verdicts
    ]
    page = table.report(result, verdicts)
    print(f"\n{page}")
    write(result, page, arguments.results)
    missed = any(one.passed is False for one in verdicts)
    return int(arguments.strict and missed)


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[Arena, dict[str, object]]:
    """Start what all share, run the scenarios, stop everything."""
    deadline = time.monotonic() + arguments.budget_s
    before = machine.machine()
    chosen = [name for name in listed(arguments.models) if name not in STARTED_BY_SCENARIO]
    models_folder = folder / "models"
    notes = make_models(models_folder, chosen)
    chosen = [name for name in chosen if (models_folder / name / "1" / "model.onnx").exists()]
    reached = limit()
    print(f"The open-loop generator keeps {reached['rate']:.0f} requests/s: {reached}", flush=True)
    sink_server, sink_port = sink(folder)
    try:
        store_server, redis_url = store(folder)
    except NotReady:
        sink_server.stop()
        raise
    env = {} if arguments.workers is None else {"TILTYARD_WORKERS": arguments.workers}
    env.update(pair.split("=", 1) for pair in arguments.env)
    arena = Arena(
        world=World(folder, models_folder, redis_url, sink_port, env),
        models=chosen,
        variants=listed(arguments.contestants),
        peers=listed(arguments.peers),
        rounds=arguments.rounds,
        slice_s=arguments.slice_s,
        idle_s=arguments.idle_s,
        generator_rps=reached["rate"] or math.inf,
        deadline=deadline,
        notes=notes,
    )
    try:
        run_scenarios(arena, listed(arguments.scenarios))
    finally:
        arena.close()
        sink_server.stop()
        store_server.stop()
    return arena, before


def run_scenarios(arena: Arena, names: Iterable[str]) -> None:
    """One after the other; one that fails is noted and the others go on."""
    for name in names:
        print(f"{name}:", flush=True)
        try:
            SCENARIOS[name](arena)
        except OutOfTime:
            arena.note(f"The time was over during '{name}'; what follows was not measured.")
            return
        except (NotReady, RuntimeError, OSError, IndexError) as error:
            arena.note(f"'{name}' failed: {type(error).__name__}: {error}")


def make_models(folder: Path, names: Iterable[str]) -> list[str]:
    """Make the files; what cannot be made is left out, and the notes say so."""
    notes = []
    for name in names:
        try:
            models.make(folder, [name])
        except (RuntimeError, OSError) as error:
            notes.append(f"Model '{name}' could not be made: {error}")
    return notes


def figures(slices: list[dict[str, Any]]) -> dict[str, float]:
    """All figures that the slices allow."""
    found: dict[str, float] = {}
    for page in FIGURES:
        found.update(page.figures(slices))
    return {name: value for name, value in found.items() if not math.isnan(value)}


def write(result: dict[str, Any], page: str, folder: Path) -> None:
    """The raw results, the page and the chart, under the day and the run's name."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['date'][:10]}-{result['name']}"
    title = f"Tiltyard, everything on, beside others on one core ({result['date'][:10]})"
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    (folder / f"{stem}.md").write_text(page)
    (folder / f"{stem}.svg").write_text(chart.throughput(title, result["slices"]))
    print(f"Written to {folder}/{stem}.json, .md and .svg")


def set_up(names: Iterable[str]) -> int:
    """Make every peer's environment; the exit code says whether all could be had."""
    failed = 0
    for name in names:
        try:
            install(name)
        except NotReady as error:
            failed = 1
            print(error)
    return failed


def listed(text: str) -> list[str]:
    """Names between commas."""
    return [name for name in text.split(",") if name]


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Load tests: everybody in one alternating run.")
    add = parser.add_argument
    add("--scenarios", type=_names(SCENARIOS), default=",".join(SCENARIOS))
    add("--models", type=_names(models.MODELS), default=DEFAULT_MODELS)
    add("--contestants", type=_names(VARIANTS), default="tiltyard", help="beside bare")
    add("--peers", type=_names(PEERS), default=",".join(PEERS), help="'' for none")
    add("--rounds", type=int, default=3, help="slices of each contestant in each comparison")
    add("--slice-s", type=int, default=2, help="whole seconds of one slice")
    add("--idle-s", type=float, default=10.0)
    add("--budget-s", type=float, default=600.0, help="no new slice starts after this time")
    add("--workers", help="TILTYARD_WORKERS of every gateway; not set unless given")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="for every gateway")
    add("--name", default="bench", help="of the result files")
    add("--results", type=Path, default=HERE / "results")
    add("--strict", action="store_true", help="exit with 1 when a target is missed")
    add("--setup", action="store_true", help="only make the peers' environments")
    return parser.parse_args(words)


def _names(known: Iterable[str]) -> Callable[[str], str]:
    known = list(known)

    def check(text: str) -> str:
        for name in listed(text):
            if name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(known)}")
        return text

    return check


def _stop(signum: int, _: FrameType | None) -> None:
    raise SystemExit(f"Ended by signal {signum}.")


if __name__ == "__main__":
    sys.exit(main())
