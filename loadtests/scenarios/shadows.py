"""A shadow of every request at 40 per cent of peak, with core 1 free for it, against none."""

from collections.abc import Iterable

from loadtests.arena import Arena
from loadtests.contestants import Tiltyard, Variant, start_tiltyard
from loadtests.scenarios.closed_loop import small
from loadtests.scenarios.rates import offered
from loadtests.stats import Slice, chosen, middle_ratio

SHARE = 40


def shadows(arena: Arena) -> None:
    """A gateway that may use both cores; its document changes between slices."""
    model = small(arena)[0]
    gateway = start_tiltyard(arena.world, "tiltyard-shadow", (), Variant(core="0,1"))
    arena.adopt(gateway)
    rate = offered(arena, "tiltyard", arena.peak(arena.contestant("tiltyard"), model), SHARE)
    plain = {"default": {"version": 1}}
    shadow = {"name": "next", "version": 2, "share": 10_000}
    documents = {"without": plain, "with": {**plain, "shadows": [shadow]}}

    def measure(part: str, turn: int) -> None:
        gateway.put(model, documents[part])
        one = arena.open(gateway, model, rate, scenario="shadows", part=part, round=turn)
        if part == "with":
            one["compared"] = _compared(gateway, model)

    arena.alternate(("without", "with"), measure)
    arena.dismiss(gateway)


def _compared(gateway: Tiltyard, model: str) -> object:
    """What the gateway says of its shadow, as it says it."""
    return gateway.admin("GET", f"endpoints/{model}/shadows")


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`shadows/p99_over_without`: the primary's p99 with a shadow over that without."""
    of = chosen(slices, scenario="shadows")
    if not of:
        return {}
    ratio = middle_ratio(chosen(of, part="with"), chosen(of, part="without"), "p99_us")
    return {"shadows/p99_over_without": ratio}
