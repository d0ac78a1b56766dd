"""Merging: what many workers say, as one data plane would say it. Pure.

A worker that has yet to serve for the first time does not hold the others back: nothing old is
served by it. Once it has, an endpoint is complete only when every worker serves it whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.core.compare import ComparisonTally
from gateway.core.models import Key
from gateway.ports import EndpointReport, VersionReport, WorkerReport
from gateway.serving.cells import merge
from gateway.telemetry import Series

Rows = list[dict[str, Any]]

NOTHING: Final = WorkerReport(revision=0, ready=False, endpoints={}, versions=())
_ORDER: Final = ("failed", "loading", "warming", "draining", "ready")
"""Of the states that one version has in several workers, the first is told."""
_ABSENT: Final = "loading"


def merged_report(reports: Mapping[str, WorkerReport]) -> WorkerReport:
    """One report for all workers, which are named.

    The revision is the lowest. A version is ready when it is in every worker.
    """
    if not reports:
        return NOTHING
    names = sorted({name for report in reports.values() for name in report.endpoints})
    keys = sorted({(v.model, v.number) for report in reports.values() for v in report.versions})
    return WorkerReport(
        revision=min(report.revision for report in reports.values()),
        ready=all(report.ready for report in reports.values()),
        endpoints={name: _endpoint(name, reports) for name in names},
        versions=tuple(_version(key, list(reports.values())) for key in keys),
    )


def _endpoint(name: str, reports: Mapping[str, WorkerReport]) -> EndpointReport:
    found = {worker: report.endpoints.get(name) for worker, report in reports.items()}
    lagging = [
        f"{worker}: {why}" if len(reports) > 1 else why
        for worker, report in found.items()
        if (why := "it does not know the endpoint yet" if report is None else report.lagging)
    ]
    return EndpointReport(
        revision=min(0 if report is None else report.revision for report in found.values()),
        lagging=lagging[0] if lagging else None,
    )


def _version(key: Key, reports: Sequence[WorkerReport]) -> VersionReport:
    found = [v for report in reports for v in report.versions if (v.model, v.number) == key]
    states = [version.state for version in found]
    if len(found) < len(reports) and "draining" not in states:
        states.append(_ABSENT)
    state = min(states, key=lambda state: _ORDER.index(state) if state in _ORDER else 0)
    reason = next((v.reason for v in found if v.state == state and v.reason is not None), None)
    return VersionReport(model=key[0], number=key[1], state=state, reason=reason)


def added_statistics(collections: Sequence[Rows]) -> Rows:
    """Statistics of each version, added up; the latest inference is the latest of all."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for rows in collections:
        for row in rows:
            key = (row["name"], row["version"])
            found[key] = row if key not in found else _added(found[key], row)
    return [found[key] for key in sorted(found, key=lambda key: (key[0], int(key[1])))]


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    total = {name: _sum(value, other[name]) for name, value in one.items()}
    total["last_inference"] = max(one["last_inference"], other["last_inference"])
    sizes: dict[int, dict[str, Any]] = {}
    for size in (*one["batch_stats"], *other["batch_stats"]):
        rows = size["batch_size"]
        sizes[rows] = size if rows not in sizes else {**_sum(sizes[rows], size), "batch_size": rows}
    total["batch_stats"] = [sizes[rows] for rows in sorted(sizes)]
    return total


def _sum(one: Any, other: Any) -> Any:  # noqa: ANN401 - numbers at any depth
    if isinstance(one, dict):
        return {name: _sum(value, other[name]) for name, value in one.items()}
    return one + other if isinstance(one, int) else one


def added_shadows(collections: Sequence[Rows], samples: int) -> Rows:
    """Shadow reports of one endpoint: tallies and skips added, the worst samples of all kept."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for rows in collections:
        for row in rows:
            key = (row["shadow"], row["version"])
            found[key] = row if key not in found else _joined(found[key], row, samples)
    return [found[key] for key in sorted(found)]


def _joined(one: Mapping[str, Any], other: Mapping[str, Any], samples: int) -> dict[str, Any]:
    tallies = [msgspec.convert(row["tally"], ComparisonTally) for row in (one, other)]
    skipped = dict(one["skipped"])
    for reason, count in other["skipped"].items():
        skipped[reason] = skipped.get(reason, 0) + count
    worst = sorted([*one["worst"], *other["worst"]], key=_badness, reverse=True)
    return {
        "shadow": one["shadow"],
        "version": one["version"],
        "tally": msgspec.to_builtins(tallies[0] + tallies[1]),
        "skipped": skipped,
        "worst": worst[:samples],
    }


def _badness(sample: Mapping[str, Any]) -> float:
    comparison = sample["comparison"]
    return float("inf") if comparison["mismatch"] is not None else comparison["max_absolute"] or 0.0


def lasting(series: list[Series]) -> list[Series]:
    """What of a process's metrics stays true when it is gone: all that only grows."""
    return [one for one in series if one.instrument.kind in ("counter", "histogram")]


def folded(base: list[Series], last: list[Series]) -> list[Series]:
    """The base of the dead, with one more of them."""
    return merge([base, lasting(last)])
