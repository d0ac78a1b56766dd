"""An image as JSON and as a binary tensor: 1 x 3 x 224 x 224, 600 KB of floats."""

from collections.abc import Iterable

from loadtests.arena import Arena
from loadtests.stats import Slice, chosen, middle_ratio

CONNECTIONS = 4
MODELS = ("image", "convnet")


def tensors(arena: Arena) -> None:
    """Both wires on both servers, for each model of images."""
    for model in (name for name in MODELS if name in arena.models):
        arena.alternate(
            ("bare/json", "tiltyard/json", "bare/binary", "tiltyard/binary"),
            lambda both, turn, model=model: arena.closed(  # type: ignore[misc]
                arena.contestant(both.split("/")[0]),
                model,
                wire=both.split("/")[1],  # type: ignore[arg-type]
                connections=CONNECTIONS,
                scenario="tensors",
                round=turn,
            ),
        )


def figures(slices: Iterable[Slice]) -> dict[str, float]:
    """`tensors/<model>/<wire>/over_bare`, and `tensors/<model>/binary_over_json` of Tiltyard."""
    found, of = {}, chosen(slices, scenario="tensors")
    for model in sorted({one["model"] for one in of}):
        ours = {
            w: chosen(of, model=model, wire=w, contestant="tiltyard") for w in ("json", "binary")
        }
        for wire, mine in ours.items():
            bare = chosen(of, model=model, wire=wire, contestant="bare")
            found[f"tensors/{model}/{wire}/over_bare"] = middle_ratio(mine, bare, "rps")
        found[f"tensors/{model}/binary_over_json"] = middle_ratio(
            ours["binary"], ours["json"], "rps"
        )
    return found
