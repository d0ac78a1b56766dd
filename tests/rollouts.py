"""Experiments for tests: documents, Snapshots that hold them, and decisions made by hand."""

from typing import Any

from msgspec.structs import replace

from gateway.core.deciding import Circumstances
from gateway.core.endpoints import Endpoint
from gateway.core.experimenting import Drawn, put_experiment, start_experiment
from gateway.core.experiments import (
    Experiment,
    ExperimentRecord,
    ExperimentVariant,
    Guard,
    Metric,
    Ramp,
    State,
)
from gateway.core.readings import Decision, Evidential, Reading, Verdict
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot
from gateway.core.tallies import Cell, Evidence, MetricTally

HERE = Circumstances(code="1", python="3.11", numpy="2", scipy="1", cpu="one")
CERTIFIED = "all that gates is certified"


def document_of(**changes: Any) -> Experiment:
    """A ramp of version 2 against the champion of model m, over an endpoint of that name."""
    document = Experiment(
        schema=1,
        endpoint="m",
        variants=(
            ExperimentVariant(name="control", alias="champion"),
            ExperimentVariant(name="candidate", version=2),
        ),
        strategy=Ramp(steps=(500, 2_500, 5_000)),
        metrics=(Metric(name="loss", outcome="arrival", direction="decrease", margin=0.01),),
        guards=(Guard(name="errors", event="error"),),
    )
    return replace(document, **changes)


def snapshot_of(*, versions: int = 3, champion: int = 1) -> Snapshot:
    """Model m with versions, one of them its champion."""
    model = ModelRecord(
        versions={number: f"{number:064x}" for number in range(1, versions + 1)},
        aliases={"champion": champion},
    )
    return replace(EMPTY, revision=10, models={"m": model})


def drafted(document: Experiment | None = None, name: str = "exp", **of: Any) -> Snapshot:
    """A Snapshot with one draft."""
    drawn = Drawn(id=f"id{name}", salt=f"salt.{name}")
    return put_experiment(snapshot_of(**of), name, document or document_of(), drawn)


def started(document: Experiment | None = None, name: str = "exp", **of: Any) -> Snapshot:
    """A Snapshot with one experiment that was just started."""
    return committed(start_experiment(drafted(document, name, **of), name, 100.0))


def committed(snapshot: Snapshot) -> Snapshot:
    """The same, one revision on."""
    return replace(snapshot, revision=snapshot.revision + 1)


def record_of(snapshot: Snapshot, name: str = "exp") -> ExperimentRecord:
    """The record of an experiment."""
    return snapshot.experiments[name]


def with_endpoint(snapshot: Snapshot, document: Endpoint, name: str = "m") -> Snapshot:
    """The same, with an endpoint's document."""
    from gateway.core.transitions import put_endpoint

    salts = {rule.name: f"salt.{rule.name}" for rule in document.rules}
    return put_endpoint(snapshot, name, document, salts)


def decision_of(record: ExperimentRecord, **changes: Any) -> Decision:
    """The decision to leave a record as it is, but for some changes."""
    phase = record.phase
    decision = Decision(
        state=record.state,
        step=record.step,
        exposure=record.exposure,
        weights={} if phase is None else phase.weights,
        reason=record.reason,
        readings=readings_of(record.verdicts),
    )
    return replace(decision, **changes)


def readings_of(verdicts: dict[str, str]) -> tuple[Reading, ...]:
    """A reading for each verdict."""
    return tuple(
        Reading(
            name=key.partition("/")[0],
            variant=key.partition("/")[2],
            role="goal",
            verdict=Verdict(verdict),
            estimate=-0.25,
            interval=(-0.5, 0.125),
            safe=Evidential(e=2.5, threshold=20.0),
            units=(40, 40),
            left=1_200,
        )
        for key, verdict in verdicts.items()
    )


def evidence_of(record: ExperimentRecord, units: int = 40, through_ms: int = 90_000) -> Evidence:
    """As many units of each variant, in the running phase."""
    phase = record.phase
    assert phase is not None
    cells = tuple(
        Cell(
            phase=phase.number,
            variant=place,
            assigned=units,
            served=units,
            received=units // 2,
            events=(0,) * len(record.document.guards),
            metrics={
                metric.name: MetricTally(units=units // 2, waiting=units - units // 2)
                for metric in record.document.metrics
            },
        )
        for place in range(len(record.document.variants))
    )
    return Evidence(cells=cells, through_ms=through_ms)


def judge_by_units(record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
    """A stand-in for real judging, pure as that is: it follows how many units were assigned.

    1,000 units take the next step, 2,000 promote, 26 are harm; the goal's verdict is told from 100.
    """
    units = sum(cell.assigned for cell in evidence.cells)
    verdicts = {"loss/candidate": "equivalent" if units >= 100 else "inconclusive"}
    base = decision_of(record, readings=readings_of(verdicts), detail=f"{units} units")
    if record.state is State.HOLDING_OUT:
        over = now - record.since >= record.document.hold_out_s
        return replace(base, state=State.PROMOTED, reason="matured") if over else base
    if units == 26:
        return replace(base, state=State.ROLLED_BACK, reason="harm")
    if units >= 2_000:
        return _promotes(record, base)
    if units >= 1_000 and record.step == 0:
        weights = {"control": 5_000, "candidate": 5_000}
        return replace(
            base, state=State.RUNNING, step=1, exposure=5_000, weights=weights, reason=""
        )
    return replace(base, state=State.HELD, reason="inconclusive")


def _promotes(record: ExperimentRecord, base: Decision) -> Decision:
    document = record.document
    done = replace(base, winner="candidate", reason="certified", detail=CERTIFIED)
    if not document.hold_out:
        return replace(done, state=State.PROMOTED)
    weights = {"control": document.hold_out, "candidate": 10_000 - document.hold_out}
    return replace(done, state=State.HOLDING_OUT, exposure=10_000, weights=weights)
