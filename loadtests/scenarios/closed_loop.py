"""Peak with 32 connections, latency of one connection, and what telemetry and a split cost."""

from collections.abc import Iterable

from loadtests.arena import PEAK_CONNECTIONS, Arena
from loadtests.stats import Slice, chosen, middle_difference, middle_ratio


def peak(arena: Arena) -> None:
    """Every small model, 32 connections, bare against each variant of Tiltyard."""
    _all(arena, "peak", PEAK_CONNECTIONS)


def single(arena: Arena) -> None:
    """The same with one connection: nothing can hide behind a batch."""
    _all(arena, "single", 1)


def telemetry(arena: Arena) -> None:
    """With all telemetry and the split on, against both off."""
    for model in small(arena):
        arena.alternate(
            ("tiltyard", "tiltyard-off"),
            lambda name, turn, model=model: arena.closed(  # type: ignore[misc]
                arena.contestant(name), model, scenario="telemetry", round=turn
            ),
        )


def small(arena: Arena) -> list[str]:
    """The models of this run that are no work to speak of."""
    from loadtests.models import MODELS  # noqa: PLC0415 - it imports onnx

    return [name for name in arena.models if MODELS[name].small and not MODELS[name].differs]


def _all(arena: Arena, scenario: str, connections: int) -> None:
    for model in small(arena):
        arena.alternate(
            ("bare", *arena.variants),
            lambda name, turn, model=model: arena.closed(  # type: ignore[misc]
                arena.contestant(name),
                model,
                connections=connections,
                scenario=scenario,
                round=turn,
            ),
        )


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`peak/<model>/<who>/over_bare`, `single/.../p50_over_bare`, `telemetry/<model>/...`."""
    found, slices = {}, list(slices)
    for scenario, measure, name in (
        ("peak", "rps", "over_bare"),
        ("single", "p50_us", "p50_over_bare"),
    ):
        of = chosen(slices, scenario=scenario)
        for model in sorted({one["model"] for one in of}):
            bare = chosen(of, model=model, contestant="bare")
            for who in sorted({one["contestant"] for one in of} - {"bare"}):
                ours = chosen(of, model=model, contestant=who)
                found[f"{scenario}/{model}/{who}/{name}"] = middle_ratio(ours, bare, measure)
    of = chosen(slices, scenario="telemetry")
    for model in sorted({one["model"] for one in of}):
        on = chosen(of, model=model, contestant="tiltyard")
        off = chosen(of, model=model, contestant="tiltyard-off")
        found[f"telemetry/{model}/cpu_us"] = middle_difference(on, off, "cpu_us")
        sent = sum(one["good"] for one in on)
        found[f"telemetry/{model}/records_per_request"] = (
            sum(one["records"] for one in on) / sent if sent else float("nan")
        )
    return found
