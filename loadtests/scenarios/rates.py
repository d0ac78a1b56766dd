"""Open loop: latency at fixed shares of each one's own peak, up to 80 per cent."""

from collections.abc import Iterable

from loadtests.arena import Arena
from loadtests.scenarios.closed_loop import small
from loadtests.stats import Slice, chosen, middle

SHARES = (20, 50, 80)


def rates(arena: Arena) -> None:
    """Bare and Tiltyard, the first small model, each at shares of what it reaches itself."""
    model = small(arena)[0]
    names = [name for name in ("bare", "tiltyard") if arena.is_up(name)]
    peaks = {name: arena.peak(arena.contestant(name), model) for name in names}
    for share in SHARES:
        arena.alternate(
            names,
            lambda name, turn, share=share: arena.open(  # type: ignore[misc]
                arena.contestant(name),
                model,
                offered(arena, name, peaks[name], share),
                scenario="rates",
                share=share,
                round=turn,
            ),
        )


def offered(arena: Arena, name: str, peak: float, share: float) -> float:
    """So many per cent of a peak, but no more than the generator keeps, which is then noted."""
    rate = peak * share / 100
    if rate > arena.generator_rps:
        arena.note(
            f"{name}: {share:g} % of peak is {rate:.0f}/s; "
            f"the generator keeps {arena.generator_rps:.0f}/s, which was offered instead."
        )
        return arena.generator_rps
    return rate


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`rates/<who>/<share>/p50_us` and `p99_us` and `p99_over_p50`, medians of the rounds."""
    found, of = {}, chosen(slices, scenario="rates")
    for who in sorted({one["contestant"] for one in of}):
        for share in SHARES:
            mine = chosen(of, contestant=who, share=share)
            ratios = [{"x": one["p99_us"] / one["p50_us"]} for one in mine if one["p50_us"]]
            found[f"rates/{who}/{share}/p50_us"] = middle(mine, "p50_us")
            found[f"rates/{who}/{share}/p99_us"] = middle(mine, "p99_us")
            found[f"rates/{who}/{share}/p99_over_p50"] = middle(ratios, "x")
    return found
