"""Experiments, records and tallies made by hand."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from gateway.core.experiments import (
    Experiment,
    ExperimentRecord,
    ExperimentVariant,
    Fixed,
    Guard,
    Metric,
    Phase,
    Strategy,
)
from gateway.core.simulation import started
from gateway.core.stats.moments import Moments
from gateway.core.tallies import Cell, Evidence, MetricTally

ERRORS = Guard("errors", "error")
SALES = Metric("sales", "sale", kind="binary", margin=0.03)
EVEN = Fixed({"a": 5_000, "b": 5_000})


def experiment(
    strategy: Strategy = EVEN,
    *,
    guards: Sequence[Guard] = (ERRORS,),
    metrics: Sequence[Metric] = (),
    names: str = "ab",
    **fields: Any,
) -> Experiment:
    """A document with a variant for each letter, the first of which is the control."""
    variants = tuple(ExperimentVariant(name, version=i + 1) for i, name in enumerate(names))
    return Experiment(
        schema=1,
        endpoint="fraud",
        variants=variants,
        strategy=strategy,
        guards=tuple(guards),
        metrics=tuple(metrics),
        **fields,
    )


def running(document: Experiment, *later: Phase, **fields: Any) -> ExperimentRecord:
    """A record in its first phase, which began at zero, or in the last of those that follow."""
    record = replace(started(document), approved=False)
    phases = (*record.phases, *later)
    return replace(record, phases=phases, exposure=phases[-1].exposure, **fields)


def cell(
    variant: int,
    assigned: int,
    *,
    events: Sequence[int] = (0,),
    phase: int = 1,
    served: int | None = None,
    received: int | None = None,
    contaminated: int = 0,
    segment: int = 0,
    **metrics: MetricTally,
) -> Cell:
    """A cell; all units are served and told of unless said otherwise."""
    return Cell(
        phase,
        variant,
        segment,
        assigned,
        assigned if served is None else served,
        assigned if received is None else received,
        contaminated,
        tuple(events),
        metrics,
    )


def hits(units: int, count: int) -> MetricTally:
    """A binary metric."""
    return MetricTally(units, moments=Moments.of_counts(units, count) if units else None)


def seen(*cells: Cell) -> Evidence:
    """Evidence of these cells."""
    return Evidence(cells)
