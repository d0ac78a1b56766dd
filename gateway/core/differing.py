"""Differing: what changed from one version of a model to another, as rows that read alike."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from gateway.core.inspections import GoldenAnswer, Inspection
from gateway.core.models import Manifest
from gateway.core.reviews import CheckResult
from gateway.core.tensors import TensorSpec

SECTIONS: Final = (
    "lineage",
    "signature",
    "opsets",
    "operators",
    "size",
    "checks",
    "costs",
    "golden",
)
"""In the order in which differences are told."""
MAX_TEXT: Final = 400


class Difference(Struct, frozen=True):
    """One thing that is not the same; None where a version has none of it."""

    section: str
    name: str
    before: Any
    after: Any


class VersionDiff(Struct, frozen=True):
    """What changed between two versions; `same_bytes` where nothing can have."""

    model: str
    before: int
    after: int
    same_bytes: bool
    differences: tuple[Difference, ...]


class VersionFacts(Struct, frozen=True):
    """All that is known of a version; the report is None where there is none."""

    manifest: Manifest
    inspection: Inspection | None


def diff(before: VersionFacts, after: VersionFacts) -> VersionDiff:
    """What changed, section by section, in each by name."""
    rows = [
        Difference(section, name, old.get(name), new.get(name))
        for section, old, new in _pairs(before, after)
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return VersionDiff(
        model=after.manifest.model,
        before=before.manifest.number,
        after=after.manifest.number,
        same_bytes=before.manifest.digest == after.manifest.digest,
        differences=tuple(sorted(rows, key=lambda row: SECTIONS.index(row.section))),
    )


def flattened(told: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested tables with its dotted name."""
    for key, value in told.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _pairs(
    before: VersionFacts, after: VersionFacts
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    for section, of in (("lineage", _lineage), ("signature", _signature), ("size", _sizes)):
        yield section, of(before), of(after)
    old, new = before.inspection, after.inspection
    # A version that was not inspected differs from no other in what only an inspection tells.
    if old is not None and new is not None:
        yield "opsets", old.opsets, new.opsets
        yield "operators", old.operators, new.operators
        yield "checks", _checks(old), _checks(new)
        yield "costs", _costs(old), _costs(new)
        yield "golden", _golden(old), _golden(new)


def _lineage(facts: VersionFacts) -> dict[str, Any]:
    return dict(flattened(facts.manifest.lineage))


def _signature(facts: VersionFacts) -> dict[str, Any]:
    signature = facts.manifest.signature
    told: dict[str, Any] = {f"input {spec.name}": _spec(spec) for spec in signature.inputs}
    told |= {f"output {spec.name}": _spec(spec) for spec in signature.outputs}
    return {**told, "batched": signature.batched}


def _spec(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"


def _sizes(facts: VersionFacts) -> dict[str, Any]:
    sizes: dict[str, Any] = {f"file {file.path}": file.size for file in facts.manifest.files}
    if facts.inspection is not None:
        sizes["parameters"] = facts.inspection.parameters
        sizes["peak MiB"] = round(facts.inspection.peak_mb, 1)
    return sizes


def _checks(inspection: Inspection) -> dict[str, Any]:
    return {str(name): _check(result) for name, result in inspection.checks.items()}


def _check(result: CheckResult) -> str:
    measured = "" if result.measure is None else f" ({result.measure:.4g})"
    return f"{result.outcome}{measured}"


def _costs(inspection: Inspection) -> dict[str, Any]:
    return {f"{cost.rows} rows, p50 ms": round(cost.p50_ms, 3) for cost in inspection.costs}


def _golden(inspection: Inspection) -> dict[str, Any]:
    """The first values of each golden output; digests tell those apart that begin alike."""
    return {
        f"{answer.name}: {output}": _shown(answer, output)
        for answer in inspection.golden
        for output in sorted(answer.digests)
    }


def _shown(answer: GoldenAnswer, output: str) -> str:
    head = ", ".join(
        f"{value:.6g}" if isinstance(value, float) else str(value)
        for value in answer.head.get(output, ())
    )
    return f"{head[:MAX_TEXT]} ({answer.digests[output][:12]})"
