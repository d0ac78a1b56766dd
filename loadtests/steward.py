"""What a tick of the steward costs: a hundred running experiments with ten metrics each.

    python loadtests/steward.py [EXPERIMENTS] [METRICS]

Real tallies in a real store, read in one round trip, judged by the real rules. Each experiment has
three phases, a guard and units whose means are close, so that nothing is decided and everything has
to be looked at. Prints the fastest and the median tick of some: all of it, and the CPU of this
process alone; then the same for ticks at which each experiment keeps a point of its history.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gateway.adapters.circumstances import circumstances
from gateway.adapters.redis import RedisFolds, RedisHistory, RedisStore
from gateway.control.experiments import Experiments
from gateway.control.registry import Registry
from gateway.control.status import Standing
from gateway.control.steward import Steward, StewardParts
from gateway.core.assignment import SplitState
from gateway.core.experiments import (
    Experiment,
    ExperimentRecord,
    ExperimentVariant,
    Fixed,
    Guard,
    Metric,
    Phase,
    State,
    names_of,
)
from gateway.core.judging import decide
from gateway.core.models import CHAMPION
from gateway.core.snapshot import EMPTY, ModelRecord
from gateway.core.stats.moments import Moments
from gateway.core.tallies import Cell, MetricTally, encode_cell
from loadtests.servers import free_port
from tests.e2e.valkeys import ValkeyProcess

TICKS: Final = 30
NAMES: Final = ("control", "candidate")
EVEN: Final = dict.fromkeys(NAMES, 5000)
PHASES: Final = (11, 12, 13)
UNITS: Final = 1_000
EVENTS: Final = 10
FAR_S: Final = 3600.0
NAMESPACE: Final = "load"
TIMEOUT_S: Final = 5.0


def record_of(number: int, metrics: int) -> ExperimentRecord:
    """One that runs, and can neither be promoted nor be rolled back yet."""
    document = Experiment(
        schema=1,
        endpoint="m",
        variants=tuple(ExperimentVariant(name, 1 + place) for place, name in enumerate(NAMES)),
        strategy=Fixed(EVEN),
        guards=(Guard("errors", "error"),),
        metrics=tuple(Metric(f"m{place}", f"o{place}", margin=0.001) for place in range(metrics)),
    )
    return ExperimentRecord(
        document=document,
        id=f"x{number}",
        split=SplitState.fresh(salt=f"s{number}", hash_version=1, weights=EVEN),
        state=State.RUNNING,
        exposure=10_000,
        phases=tuple(Phase(phase, time.time() - FAR_S, 10_000, EVEN) for phase in PHASES),
        versions={name: 1 + place for place, name in enumerate(NAMES)},
        verdicts={f"{name}/{NAMES[1]}": "inconclusive" for name in names_of(document)},
    )


def cells_of(number: int, metrics: int, more: int) -> dict[Any, Any]:
    """Tallies in which both variants are alike; `more` units on, so that numbers move."""
    tally = {}
    for phase in PHASES:
        for variant in range(len(NAMES)):
            units = UNITS + more
            values = {
                f"m{place}": MetricTally(
                    units, moments=Moments.of_sums(units, 5.0 * units, 29.0 * units + number)
                )
                for place in range(metrics)
            }
            cell = Cell(phase, variant, 0, units, units, units, 0, (EVENTS,), values)
            tally[f"{phase}:{variant}:0"] = encode_cell(cell)
    return tally


def fill(url: str, experiments: int, metrics: int, more: int) -> None:
    """Write the tallies as folding would have."""
    client = redis.Redis.from_url(url)
    with client.pipeline() as pipe:
        for number in range(experiments):
            pipe.hset(f"{{load}}:tally:x{number}", mapping=cells_of(number, metrics, more))
        pipe.hset("{load}:fold", "through_ms", int(time.time() * 1000))
        pipe.execute()
    client.close()


async def measure(url: str, experiments: int, metrics: int) -> None:
    """Tick."""
    store = RedisStore(url, namespace=NAMESPACE, timeout_s=TIMEOUT_S, name=NAMESPACE)
    folds = RedisFolds(url, namespace=NAMESPACE, timeout_s=TIMEOUT_S, name=NAMESPACE)
    history = RedisHistory(url, namespace=NAMESPACE, timeout_s=TIMEOUT_S, name=NAMESPACE)
    records = {f"x{number}": record_of(number, metrics) for number in range(experiments)}
    model = ModelRecord({1: "1" * 64, 2: "2" * 64}, {CHAMPION: 1})
    snapshot = replace(EMPTY, revision=PHASES[-1], models={"m": model}, experiments=records)
    registry = Registry(store, now=time.time, entropy=os.urandom)
    registry.learn(snapshot)
    offset = 0.0

    def now() -> float:
        return time.time() + offset

    steward = Steward(
        StewardParts(
            registry=registry,
            experiments=Experiments(registry, now=now, entropy=os.urandom),
            standing=Standing(process="load", leads=True),
            evidence_of=folds.evidence,
            keep_points=history.keep_points,
            decide=decide,
            decide_exactly=partial(decide, display=True),
            now=now,
            circumstances=circumstances(),
        )
    )
    for keeps in (False, True):
        walls, cpus = [], []
        for tick in range(TICKS):
            if keeps:
                offset += 10.0
                fill(url, experiments, metrics, tick + 1)
            wall, cpu = time.perf_counter(), time.process_time()
            assert await steward.tick() == 0
            walls.append(1e3 * (time.perf_counter() - wall))
            cpus.append(1e3 * (time.process_time() - cpu))
        what = "with points of history" if keeps else "with nothing new"
        print(
            f"{experiments} experiments x {metrics} metrics, {what}: tick {min(walls):.1f} ms "
            f"(median {statistics.median(walls):.1f}), CPU {min(cpus):.1f} ms "
            f"(median {statistics.median(cpus):.1f})"
        )
    for one in (store, folds, history):
        await one.close()


if __name__ == "__main__":
    counts = [int(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="tiltyard-steward-") as folder:
        server = ValkeyProcess(Path(folder) / "valkey", free_port())
        server.start()
        try:
            wanted = (counts + [100, 10][len(counts) :])[:2]
            fill(server.url, wanted[0], wanted[1], 0)
            asyncio.run(measure(server.url, wanted[0], wanted[1]))
        finally:
            server.kill()
