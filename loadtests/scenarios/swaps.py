"""100 promotions under half load: nothing fails, no answer is another version's, nothing leaks."""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from loadtests import checking, cpu
from loadtests.arena import Arena
from loadtests.contestants import Tiltyard, split_of
from loadtests.scenarios.rates import offered
from loadtests.stats import Slice, chosen, middle_ratio

MODEL = "swap"
PROMOTIONS = 100
EVERY_S = 0.1


def swaps(arena: Arena) -> None:
    """Each round: a slice of steady load, then one of the same load with promotions in it."""
    from loadtests.models import make  # noqa: PLC0415 - it imports onnx

    make(arena.world.store, [MODEL])
    gateway = arena.contestant("tiltyard")
    assert isinstance(gateway, Tiltyard)
    _await_model(arena, gateway)
    gateway.put(MODEL, split_of({"alias": "champion"}, {"version": 2}))
    check = checking.write(arena.world.folder / "swap.json", arena.world.store, MODEL)
    rate = offered(arena, "tiltyard", arena.peak(gateway, MODEL), 50)
    rounds = max(1, arena.rounds)
    shares = [PROMOTIONS // rounds + (i < PROMOTIONS % rounds) for i in range(rounds)]
    champion = 2
    _promote(gateway, 1, 0.0)
    _promote(gateway, 2, 0.0)
    for turn, promotions in enumerate(shares):
        arena.check_time()
        fields: dict[str, Any] = {
            "options": ["--check", str(check)],
            "seconds": max(arena.slice_s, promotions * EVERY_S + 0.5),
            "round": turn,
        }
        arena.open(gateway, MODEL, rate, scenario="swaps", part="steady", **fields)
        before, done = _resident(gateway), 0

        def promote(promotions: int = promotions) -> None:
            nonlocal champion, done
            time.sleep(0.25)
            for _ in range(promotions):
                champion = 3 - champion
                done += _promote(gateway, champion, EVERY_S)

        one = arena.open(
            gateway, MODEL, rate, scenario="swaps", part="swaps", beside=promote, **fields
        )
        one["promotions"] = done
        one["resident_mib"] = [before, _resident(gateway)]


def _promote(gateway: Tiltyard, version: int, every_s: float) -> int:
    """Promote, and wait out the interval; 1 when it was taken."""
    start = time.monotonic()
    gateway.admin("POST", f"models/{MODEL}/promote", {"version": version, "reason": "load test"})
    time.sleep(max(0.0, every_s - (time.monotonic() - start)))
    return 1


def _resident(gateway: Tiltyard) -> float:
    return sum(cpu.resident_mib(pid) for pid in gateway.server.pids())


def _await_model(arena: Arena, gateway: Tiltyard) -> None:
    """Until the gateway has seen the model's versions in its store."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        arena.check_time()
        with suppress(RuntimeError):
            if len(gateway.admin("GET", f"models/{MODEL}").get("versions", ())) == 2:
                return
        time.sleep(0.1)
    raise RuntimeError("The model that is swapped was not registered.")


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`swaps/done`, `failed`, `wrong`, `p99_over_steady` and `resident_mib`."""
    of = chosen(slices, scenario="swaps")
    during = [one for one in chosen(of, part="swaps") if "promotions" in one]
    if not during:
        return {}
    return {
        "swaps/done": sum(one["promotions"] for one in during),
        "swaps/failed": sum(one["refused"] + one["errors"] + one["late"] for one in during),
        "swaps/wrong": sum(one["wrong"] for one in during),
        "swaps/p99_over_steady": middle_ratio(during, chosen(of, part="steady"), "p99_us"),
        "swaps/resident_mib": during[-1]["resident_mib"][1] - during[0]["resident_mib"][0],
    }
