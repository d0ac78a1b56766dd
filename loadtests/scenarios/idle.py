"""A gateway that has nothing to do: memory and CPU of each of its processes."""

import time
from collections.abc import Iterable

from loadtests import cpu
from loadtests.arena import Arena
from loadtests.contestants import start_tiltyard
from loadtests.scenarios.closed_loop import small
from loadtests.stats import Slice, chosen


def idle(arena: Arena) -> None:
    """A fresh one with the run's models, looked at before and after a while."""
    models = tuple(small(arena))
    gateway = arena.adopt(start_tiltyard(arena.world, "tiltyard-idle", models))
    time.sleep(2.0)
    pids = sorted(gateway.server.pids())
    before = {pid: cpu.cpu_seconds([pid]) for pid in pids}
    time.sleep(arena.idle_s)
    for pid in pids:
        one = {
            "scenario": "idle",
            "contestant": "tiltyard",
            "round": 0,
            "command": cpu.command(pid),
            "resident_mib": cpu.resident_mib(pid),
            "cpu_share": (cpu.cpu_seconds([pid]) - before[pid]) / arena.idle_s,
        }
        arena.slices.append(one)
        print(f"  idle {one['resident_mib']:.0f} MiB, CPU {one['cpu_share']:.2%}: {one['command']}")
    arena.dismiss(gateway)


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`idle/resident_mib` of the largest process, `idle/cpu_percent` of all together."""
    of = chosen(slices, scenario="idle")
    if not of:
        return {}
    return {
        "idle/resident_mib": max(one["resident_mib"] for one in of),
        "idle/cpu_percent": 100 * sum(one["cpu_share"] for one in of),
    }
