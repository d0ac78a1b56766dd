"""Tables in Markdown of what a run found. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from loadtests.stats import Slice, chosen, middle, middle_ratio
from loadtests.targets import Verdict

SIGNS: Final[Mapping[bool | None, str]] = {True: "yes", False: "**no**", None: "not measured"}
CLOSED: Final = ("peak", "single", "telemetry", "tensors", "peers")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def target_table(verdicts: Iterable[Verdict]) -> str:
    """Each target, the worst figure and whether it holds."""
    rows = []
    for verdict in verdicts:
        value = "" if verdict.value is None else f"{verdict.value:.3g}{verdict.target.unit}"
        where = f"`{verdict.figure}`" if verdict.figure else ""
        rows.append(
            [verdict.target.measure, verdict.target.words(), value, SIGNS[verdict.passed], where]
        )
    return markdown(["measure", "must reach", "reached", "holds", "worst figure"], rows)


def closed_table(slices: Iterable[Slice]) -> str:
    """Medians of every closed-loop measurement, with the ratio to bare of the same rounds."""
    slices = [one for one in slices if one["scenario"] in CLOSED]
    keys = dict.fromkeys(
        (one["scenario"], one.get("bout", ""), one["model"], one["wire"], one["contestant"])
        for one in slices
    )
    rows = []
    for scenario, bout, model, wire, who in keys:
        same = chosen(slices, scenario=scenario, model=model, wire=wire)
        same = [one for one in same if one.get("bout", "") == bout]
        mine, bare = chosen(same, contestant=who), chosen(same, contestant="bare")
        ratio = middle_ratio(mine, bare, "rps")
        rows.append(
            [
                f"{scenario} {model} {wire}",
                who,
                f"{middle(mine, 'rps'):,.0f}",
                "" if math.isnan(ratio) else f"{ratio:.2f}",
                *(f"{middle(mine, name):,.0f}" for name in ("p50_us", "p99_us", "p999_us")),
                f"{middle(mine, 'cpu_us'):.1f}",
                str(sum(one["refused"] + one["errors"] for one in mine)),
            ]
        )
    head = ["closed loop", "server", "requests/s", "× bare", "p50 µs", "p99 µs", "p99.9 µs"]
    return markdown([*head, "CPU µs/request", "failed"], rows)


def open_table(slices: Iterable[Slice]) -> str:
    """Medians of every open-loop measurement."""
    slices = [one for one in slices if "offered_rps" in one]
    keys = dict.fromkeys(
        (one["scenario"], one["model"], one["contestant"], str(one.get("share", one.get("part"))))
        for one in slices
    )
    rows = []
    for scenario, model, who, part in keys:
        mine = [
            one
            for one in chosen(slices, scenario=scenario, model=model, contestant=who)
            if str(one.get("share", one.get("part"))) == part
        ]
        rows.append(
            [
                f"{scenario} {model} {part}",
                who,
                *(f"{middle(mine, name):,.0f}" for name in ("offered_rps", "rps")),
                *(f"{middle(mine, name):,.0f}" for name in ("p50_us", "p99_us", "p999_us")),
                f"{middle(mine, 'cpu_us'):.1f}",
                str(sum(one["refused"] for one in mine)),
                str(sum(one["errors"] + one["late"] + one["wrong"] for one in mine)),
            ]
        )
    head = ["open loop", "server", "offered/s", "good/s", "p50 µs", "p99 µs", "p99.9 µs"]
    return markdown([*head, "CPU µs/request", "refused", "failed"], rows)


def report(result: Mapping[str, Any], verdicts: Iterable[Verdict]) -> str:
    """The whole page of one run."""
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [
        f"# Load test {result['name']}, {result['date']}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}. {packages}.",
        f"`{result['command']}`",
        target_table(verdicts),
        closed_table(result["slices"]),
        open_table(result["slices"]),
        "".join(f"- {note}\n" for note in dict.fromkeys(result["notes"])),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
