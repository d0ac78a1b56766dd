"""Findings: what a shadow makes of the copy of one request."""

import logging
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from gateway.core.assignment import SCALE
from gateway.core.compare import Comparison, ComparisonTally, compare, tally_of
from gateway.core.endpoints import Recording
from gateway.core.errors import EngineFailed, GatewayError
from gateway.core.plans import ShadowPlan
from gateway.core.tensors import Array, Tensors
from gateway.ports import Stop
from gateway.serving.pool import Loaded
from gateway.telemetry import Kind, Record

log: Final = logging.getLogger(__name__)


class Copy(Struct, frozen=True):
    """What a shadow needs of an answered request.

    `origin` is the record of the primary answer. `draw` is a number out of 0..9,999, fresh for
    each request. `recording` says what of it a sample may keep.
    """

    origin: Record
    tensors: Tensors
    outputs: Tensors
    draw: int
    recording: Recording


class Work(Struct, frozen=True):
    """A copy on its way through one shadow, which holds a lease on the version."""

    copy: Copy
    plan: ShadowPlan
    loaded: Loaded
    queued_ns: int


class Finding(Struct, frozen=True):
    """What came of one copy."""

    work: Work
    comparison: Comparison | None
    outputs: Tensors
    run_ns: int


def run_copy(work: Work, now_ns: Callable[[], int], stop: Stop) -> Finding:
    """Run and compare one copy, until `stop`; never raises, whatever the version does."""
    start = now_ns()
    try:
        results, run_ns = _results(work, stop), now_ns() - start
        comparison = compare(work.copy.outputs, results, work.plan.tolerance)
    except GatewayError:
        return Finding(work, None, {}, now_ns() - start)
    except Exception:
        log.exception("a shadow failed in a way that nobody foresaw")
        return Finding(work, None, {}, now_ns() - start)
    return Finding(work, comparison, results, run_ns)


def _results(work: Work, stop: Stop) -> dict[str, Array]:
    batcher = work.loaded.batcher
    if batcher is None:
        message = "The version was let go."
        raise EngineFailed(message)
    names = [spec.name for spec in batcher.engine.signature.outputs]
    results = batcher.engine.run_until(work.copy.tensors, names, stop)
    return dict(zip(names, results, strict=True))


def tally_finding(finding: Finding) -> ComparisonTally:
    """What a finding adds to the tally of its shadow."""
    if finding.comparison is None:
        return ComparisonTally(errors=1)
    return tally_of(finding.comparison, finding.work.copy.origin.latency_ns, finding.run_ns)


def record_of(finding: Finding) -> Record:
    """What a shadow did, as a record that points to the primary one."""
    work, origin, study = finding.work, finding.work.copy.origin, finding.work.plan.study
    kind = Kind(
        endpoint=origin.kind.endpoint,
        model=work.loaded.key[0],
        version=work.loaded.key[1],
        digest=work.loaded.digest,
        variant=work.plan.variant.name,
        reason=origin.kind.reason,
        propensity=work.plan.share / SCALE,
        revision=origin.kind.revision,
        shadow=True,
        experiment=None if study is None else study.experiment,
        phase=0 if study is None else study.phase,
    )
    return Record(
        kind=kind,
        at_ns=origin.at_ns,
        prediction_id="",
        latency_ns=finding.run_ns,
        queue_ns=0,
        run_ns=finding.run_ns,
        rows=origin.rows,
        batch_rows=origin.rows,
        unit_hash=origin.unit_hash,
        request_id=origin.request_id,
        error_type=None if finding.comparison is not None else EngineFailed.kind,
        trace=origin.trace,
        primary_id=origin.prediction_id,
    )
