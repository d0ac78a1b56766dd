"""Five times as much as it can do: good answers keep coming, and health answers at once."""

from collections.abc import Iterable

from loadtests.arena import Arena
from loadtests.contestants import start_tiltyard
from loadtests.scenarios.rates import offered
from loadtests.stats import Slice, chosen, middle

MODEL = "heavy"
TIMES = 5
DEADLINE_S = 1.0
OPTIONS = (
    *("--connections", "512"),
    *("--deadline-s", str(DEADLINE_S)),
    *("--probe", "/v2/health/live"),
)


def overload(arena: Arena) -> None:
    """A model heavy enough that one generator can offer five times its peak."""
    from loadtests.models import make  # noqa: PLC0415 - it imports onnx

    make(arena.world.store, [MODEL])
    gateway = arena.adopt(start_tiltyard(arena.world, "tiltyard-overload", (MODEL,)))
    for turn in range(arena.rounds):
        arena.check_time()
        one = arena.closed(gateway, MODEL, scenario="overload", part="peak", round=turn)
        rate = offered(arena, "tiltyard", one["rps"], 100 * TIMES)
        arena.open(
            gateway, MODEL, rate, options=OPTIONS, scenario="overload", part="over", round=turn
        )
    arena.dismiss(gateway)


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`overload/goodput_over_peak`, `health_ms` (the slowest), `times_offered`, `errors`."""
    of = chosen(slices, scenario="overload")
    peak, over = chosen(of, part="peak"), chosen(of, part="over")
    if not over:
        return {}
    rps = middle(peak, "rps")
    return {
        "overload/times_offered": middle(over, "offered_rps") / rps,
        "overload/goodput_over_peak": middle(over, "rps") / rps,
        "overload/health_ms": max(one["probe_max_us"] for one in over) / 1e3,
        "overload/errors": sum(one["errors"] for one in over),
    }
