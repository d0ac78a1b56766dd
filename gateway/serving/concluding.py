"""Concluding: what happens once when a request is over, whatever its end.

The prediction id is signed, the record kept, the copy offered to the shadows. None of it waits.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.core.assignment import SCALE, Reason
from gateway.core.errors import DeadlineExceeded, GatewayError, NotReady, Overloaded
from gateway.core.plans import Assignment
from gateway.core.predictions import NO_UNIT, PredictionFacts, Signer, scalars_of
from gateway.core.tensors import Tensors
from gateway.serving.batching import Job, Result
from gateway.serving.calls import Answer, Call, Clock
from gateway.serving.live import Served
from gateway.serving.payloads import payload_text
from gateway.serving.pool import Loaded
from gateway.serving.recording import Recorder
from gateway.serving.shadowing import Copy
from gateway.serving.worker import Worker
from gateway.telemetry import ADMISSION_REJECTED, ENDPOINT, ERROR_TYPE, Kind, Record

NONCE_BYTES: Final = 8

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """A request at its end: how it was decided and, as far as it got, what ran it."""

    served: Served
    call: Call
    assignment: Assignment
    nonce: bytes
    loaded: Loaded | None
    job: Job | None


class Concluder:
    """Signs, records and offers; one for each process."""

    def __init__(
        self,
        worker: Worker,
        recorder: Recorder,
        clock: Clock,
        randbytes: Callable[[int], bytes],
    ) -> None:
        """`randbytes` gives fresh random bytes, unpredictable enough to be unique."""
        self.worker = worker
        self.recorder = recorder
        self.clock = clock
        self._randbytes = randbytes

    def nonce(self) -> bytes:
        """The fresh bytes of one request: nonce of its id, unit if it names none, shadow draw."""
        return self._randbytes(NONCE_BYTES)

    def conclude(self, run: Run, result: Result, in_flight: int) -> Answer:
        """Make the answer of a request that was assigned, and leave its traces."""
        plan = run.served.plan
        error = result if isinstance(result, GatewayError) else None
        outputs: Tensors = {}
        if not isinstance(result, GatewayError) and run.loaded is not None:
            specs = run.loaded.artifact.manifest.signature.outputs
            outputs = {spec.name: tensor for spec, tensor in zip(specs, result, strict=True)}
        record = self._record(run, outputs, error)
        try:
            self._count(run, record, error)
            self.recorder.record(record)
            if error is None and plan.shadows:
                self._offer(run, outputs, record, in_flight)
        except Exception:
            log.exception("an answer left incomplete traces")
        wanted = [output.name for output in run.call.request.outputs] or list(outputs)
        return Answer(
            revision=plan.revision,
            error=error,
            variant=run.assignment.variant,
            reason=run.assignment.reason,
            prediction_id=record.prediction_id,
            outputs={} if error is not None else {name: outputs[name] for name in wanted},
        )

    def fell_back(self, run: Run, error: GatewayError) -> None:
        """Note that a version failed, though its caller is going to be answered by another."""
        log.warning(
            "version %d of '%s' failed and the default answers: %s",
            run.assignment.variant.version,
            run.served.plan.model,
            error,
            exc_info=error.__cause__,
        )
        if run.loaded is not None:
            elapsed_ns = self.clock.monotonic_ns() - run.call.arrived_ns
            run.loaded.statistics.fail.add(elapsed_ns)

    def _record(self, run: Run, outputs: Tensors, error: GatewayError | None) -> Record:
        plan, assignment, call, job = run.served.plan, run.assignment, run.call, run.job
        signer = self.worker.signer
        if signer is None:
            message = "The gateway is starting."
            raise NotReady(message)
        ended_ns = self.clock.monotonic_ns()
        latency_ns = ended_ns - call.arrived_ns
        at_ns = self.clock.unix_ns() - latency_ns
        unit_hash = _unit_hash(signer, assignment)
        recording = plan.recording
        kind = Kind(
            endpoint=plan.endpoint,
            model=plan.model,
            version=assignment.variant.version,
            digest="" if run.loaded is None else run.loaded.digest,
            variant=assignment.variant.name,
            reason=assignment.reason,
            revision=plan.revision,
            rule=assignment.rule,
            intended=assignment.intended,
            propensity=assignment.propensity,
            salt=assignment.salt,
            sticky=assignment.sticky,
        )
        return Record(
            kind=kind,
            at_ns=at_ns,
            prediction_id=_sign(signer, run, outputs, unit_hash, at_ns),
            latency_ns=latency_ns,
            queue_ns=0 if job is None else job.queue_ns,
            run_ns=0 if job is None else job.run_ns,
            rows=0 if job is None else job.rows,
            batch_rows=0 if job is None else job.batch_rows,
            unit_hash=unit_hash,
            request_id=call.request.id,
            error_type=None if error is None else error.kind,
            trace=call.trace,
            first_exposure=error is None and self._first_exposure(assignment, unit_hash),
            inputs=_text(run, call.tensors) if recording.inputs else None,
            outputs=_text(run, outputs) if recording.outputs and outputs else None,
        )

    def _first_exposure(self, assignment: Assignment, unit_hash: bytes | None) -> bool:
        """Whether a unit is served by its split for the first time, as this process knows."""
        if assignment.reason is not Reason.SPLIT or not assignment.sticky:
            return False
        if assignment.salt is None or unit_hash is None:
            return False
        return self.recorder.exposed(assignment.salt, unit_hash)

    def _count(self, run: Run, record: Record, error: GatewayError | None) -> None:
        if isinstance(error, (Overloaded, DeadlineExceeded)):
            labels = ((ENDPOINT, record.kind.endpoint), (ERROR_TYPE, error.kind))
            self.recorder.cells.counter(ADMISSION_REJECTED, labels).add()
        if run.loaded is None:
            return
        statistics = run.loaded.statistics
        statistics.last_ms = record.at_ns // 1_000_000
        if error is None:
            statistics.success.add(record.latency_ns)
            statistics.queue.add(record.queue_ns)
        else:
            statistics.fail.add(record.latency_ns)

    def _offer(self, run: Run, outputs: Tensors, record: Record, in_flight: int) -> None:
        draw = (int.from_bytes(run.nonce, "big") * SCALE) >> (8 * NONCE_BYTES)
        copy = Copy(
            origin=record,
            tensors=run.call.tensors,
            outputs=outputs,
            draw=draw,
            recording=run.served.plan.recording,
        )
        for shadow in run.served.plan.shadows:
            loaded = run.served.loaded.get(shadow.variant.version)
            self.worker.shadows.offer(shadow, loaded, copy, in_flight)


def _unit_hash(signer: Signer, assignment: Assignment) -> bytes | None:
    if assignment.salt is None or assignment.unit is None:
        return None
    return signer.unit_hash(assignment.salt, assignment.unit)


def _sign(signer: Signer, run: Run, outputs: Tensors, unit_hash: bytes | None, at_ns: int) -> str:
    plan, assignment = run.served.plan, run.assignment
    declared = plan.token_scalars
    return signer.sign(
        PredictionFacts(
            at_ms=at_ns // 1_000_000,
            nonce=run.nonce,
            revision=plan.revision,
            endpoint=plan.endpoint,
            rule=assignment.rule or "",
            intended=assignment.intended or "",
            variant=assignment.variant.name,
            version=assignment.variant.version,
            reason=assignment.reason,
            propensity=assignment.propensity,
            unit_hash=unit_hash if unit_hash is not None else NO_UNIT,
            scalars=scalars_of(declared, outputs) if declared and outputs else (),
        )
    )


def _text(run: Run, tensors: Tensors) -> str:
    recording = run.served.plan.recording
    return payload_text(tensors, recording.redact, recording.max_bytes)
