"""Experiments for tests: documents, and records as the Snapshot holds them while they run."""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from gateway.core.assignment import SplitState
from gateway.core.experiments import (
    Experiment,
    ExperimentRecord,
    ExperimentVariant,
    Fixed,
    Guard,
    Phase,
    State,
)
from gateway.core.snapshot import ModelRecord, Snapshot
from tests.planes import snapshot_of

EVEN = {"control": 5_000, "candidate": 5_000}
ERRORS = Guard(name="errors", event="error")


def experiment_of(**fields: Any) -> Experiment:
    """An A/B test of versions 1 and 2 on endpoint `m`, guarded against errors."""
    known: dict[str, Any] = {
        "schema": 1,
        "endpoint": "m",
        "variants": (
            ExperimentVariant(name="control", version=1),
            ExperimentVariant(name="candidate", version=2),
        ),
        "strategy": Fixed(weights=EVEN),
        "guards": (ERRORS,),
    }
    return Experiment(**{**known, **fields})


def record_of(
    document: Experiment | None = None,
    *,
    weights: Mapping[str, int] | None = None,
    exposure: int = 10_000,
    salt: str = "study",
    number: int = 7,
    **fields: Any,
) -> ExperimentRecord:
    """The record of an experiment that runs in its first phase."""
    document = document or experiment_of()
    shares = dict(weights or EVEN)
    known: dict[str, Any] = {
        "document": document,
        "id": "id1",
        "split": SplitState.fresh(salt=salt, hash_version=1, weights=shares),
        "state": State.RUNNING,
        "exposure": exposure,
        "phases": (Phase(number=number, at=100.0, exposure=exposure, weights=shares),),
        "versions": {variant.name: variant.version or 0 for variant in document.variants},
    }
    return ExperimentRecord(**{**known, **fields})


def with_study(
    *records: ExperimentRecord, snapshot: Snapshot | None = None, **fields: Any
) -> Snapshot:
    """A Snapshot of model `m` with versions 1 to 3 in which experiments `x0`, `x1`, ... stand."""
    base = snapshot or snapshot_of(
        9, models={"m": ModelRecord({n: f"{n:064x}" for n in (1, 2, 3)}, {"champion": 1})}
    )
    return replace(
        base, experiments={f"x{index}": record for index, record in enumerate(records)}, **fields
    )
