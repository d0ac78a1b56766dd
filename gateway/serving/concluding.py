"""Concluding: what happens once when a request is over, whatever its end.

The prediction id is signed, the record kept, the copy offered to the shadows. None of it waits.
"""

import logging
from collections.abc import Callable, Collection
from typing import Final

from gateway.core.assignment import SCALE, Reason
from gateway.core.errors import DeadlineExceeded, GatewayError, NotReady, Overloaded
from gateway.core.predictions import (
    NO_UNIT,
    PredictionFacts,
    Scalars,
    Signer,
    scalars_of,
    stub,
)
from gateway.core.tensors import Array, Tensors, has_nonfinite
from gateway.serving.caching import HIT
from gateway.serving.calls import Answer, Clock, Ran
from gateway.serving.findings import Copy
from gateway.serving.flights import Flight
from gateway.serving.jobs import Result
from gateway.serving.payloads import payload_text
from gateway.serving.recording import Recorder
from gateway.serving.worker import Worker
from gateway.telemetry import ADMISSION_REJECTED, ENDPOINT, ERROR_TYPE, Kind, Record

NONCE_BYTES: Final = 8

log: Final = logging.getLogger(__name__)


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
        self.draw = randbytes

    def conclude(self, flight: Flight, result: Result, in_flight: int) -> Answer:
        """Make the answer of a request that was assigned, and leave its traces."""
        loaded, error = flight.loaded, None
        outputs: dict[str, Array] = {}
        if isinstance(result, GatewayError):
            error = result
        elif loaded is not None:
            outputs = dict(zip(loaded.output_names, result))  # noqa: B905 - the batcher checked it
        record = self._full_record(flight, error, outputs)
        try:
            self._leave_traces(flight, record, error)
            if not flight.served.is_plain and error is None:
                self._offer(flight, outputs, record, in_flight)
        except Exception:
            log.exception("an answer left incomplete traces")
        wanted = flight.call.request.outputs
        if wanted and error is None:
            outputs = {output.name: outputs[output.name] for output in wanted}
        answer = _answer_of(flight, record, error)
        answer.outputs = outputs
        if flight.served.plan.cache is not None and flight.job is not None:
            answer.cache = flight.job.cache
        return answer

    def conclude_together(
        self, flights: list[Flight], ran: Ran, invalid: Collection[int] = ()
    ) -> None:
        """Conclude plain requests of one row each that one run answered: fill in its records.

        `invalid` names those of them that are not finite, as far as they were looked at.
        """
        ran.records = records = self._records(flights)
        for row in invalid:
            records[row].invalid = True
        loaded = flights[0].loaded
        try:
            if loaded is not None:
                loaded.statistics.answered_all(records)
            self.recorder.record_all(records)
        except Exception:
            log.exception("answers left incomplete traces")

    def fell_back(self, flight: Flight, error: Result) -> None:
        """Note that a version failed, though its caller is going to be answered by another."""
        log.warning(
            "version %d of '%s' failed and the default answers: %s",
            flight.assignment.variant.version,
            flight.served.plan.model,
            error,
            exc_info=error.__cause__ if isinstance(error, GatewayError) else None,
        )
        if flight.loaded is not None:
            elapsed_ns = self.clock.monotonic_ns() - flight.call.arrived_ns
            flight.loaded.statistics.fail.add(elapsed_ns)

    def _signer(self) -> Signer:
        signer = self.worker.signer
        if signer is None:
            message = "The gateway is starting."
            raise NotReady(message)
        return signer

    def _records(
        self, flights: list[Flight], scalars: Scalars = (), *, is_answered: bool = True
    ) -> list[Record]:
        """What all endpoints tell of requests that end now; signs their ids."""
        signer, kind_of, exposed = self._signer(), _kind_of, self.recorder.exposed
        now_ns = self.clock.monotonic_ns()
        began_ns = self.clock.unix_ns() - now_ns
        records = []
        for flight in flights:
            call, job, assignment = flight.call, flight.job, flight.assignment
            kind, of_kind = kind_of(flight)
            arrived_ns = call.arrived_ns
            at_ns = began_ns + arrived_ns
            salt, unit = assignment.salt, assignment.unit
            unit_hash, is_first = None, False
            if salt is not None and unit is not None:
                unit_hash = signer.unit_hash(salt, unit)
                if assignment.sticky and is_answered and assignment.reason is _SPLIT:
                    is_first = exposed(salt, unit_hash)
            prediction_id = signer.issue(
                at_ns // 1_000_000, flight.nonce, unit_hash or NO_UNIT, of_kind, scalars
            )
            record = Record(
                kind,
                at_ns,
                prediction_id,
                now_ns - arrived_ns,
                0 if job is None else job.queue_ns,
                0 if job is None else job.run_ns,
                0 if job is None else job.rows,
                0 if job is None else job.batch_rows,
                unit_hash,
                call.request.id,
                None,
                call.trace,
                None,
                is_first,
            )
            if assignment.segment and unit_hash is not None:
                record.segment = assignment.segment
            records.append(record)
        return records

    def _full_record(self, flight: Flight, error: GatewayError | None, outputs: Tensors) -> Record:
        """What this endpoint wants to be told of a request, however it ended."""
        plan = flight.served.plan
        scalars = scalars_of(plan.token_scalars, outputs) if plan.token_scalars and outputs else ()
        (record,) = self._records([flight], scalars, is_answered=error is None)
        if error is not None:
            record.error_type = error.kind
        if plan.watches_outputs:
            record.invalid = any(map(has_nonfinite, outputs.values()))
        if plan.recording.inputs:
            record.inputs = _text(flight, flight.call.tensors)
        if plan.recording.outputs and outputs:
            record.outputs = _text(flight, outputs)
        if plan.cache is not None and flight.job is not None:
            record.cached = flight.job.cache == HIT
        return record

    def rejected(self, endpoint: str, error: GatewayError) -> None:
        """Count a request that overload or its deadline left without an answer."""
        labels = ((ENDPOINT, endpoint), (ERROR_TYPE, error.kind))
        self.recorder.cells.counter(ADMISSION_REJECTED, labels).add()

    def _leave_traces(self, flight: Flight, record: Record, error: GatewayError | None) -> None:
        loaded = flight.loaded
        if error is None:
            if loaded is not None:
                loaded.statistics.answered(record)
        else:
            if isinstance(error, (Overloaded, DeadlineExceeded)):
                self.rejected(record.kind.endpoint, error)
            if loaded is not None:
                loaded.statistics.failed(record)
        self.recorder.record(record)

    def _offer(self, flight: Flight, outputs: Tensors, record: Record, in_flight: int) -> None:
        recording = flight.served.plan.recording
        if recording.reservoir:
            drawn = int.from_bytes(flight.nonce, "little")
            self.worker.reservoirs.offer(record, flight.call.tensors, recording.redact, drawn)
        if not flight.served.plan.shadows:
            return
        draw = (int.from_bytes(flight.nonce, "big") * SCALE) >> (8 * NONCE_BYTES)
        copy = Copy(
            origin=record,
            tensors=flight.call.tensors,
            outputs=outputs,
            draw=draw,
            recording=recording,
        )
        for shadow in flight.served.plan.shadows:
            loaded = flight.served.loaded.get(shadow.variant.version)
            self.worker.shadows.offer(shadow, loaded, copy, in_flight)


def _kind_of(flight: Flight) -> tuple[Kind, bytes]:
    """The kind of a prediction and the stub of its id, made once for each plan and digest."""
    assignment, kinds = flight.assignment, flight.served.kinds
    key = (
        assignment.variant.name,
        assignment.rule,
        id(assignment.reason),  # an enum member lives for ever, and its hash is slow
        assignment.sticky,
        assignment.intended and (assignment.intended, assignment.failed_with),
        flight.loaded is None,
    )
    known = kinds.get(key)
    if known is None:
        if len(kinds) >= _MAX_KINDS:
            kinds.clear()
        known = kinds[key] = _new_kind(flight)
    return known


def _new_kind(flight: Flight) -> tuple[Kind, bytes]:
    plan, assignment = flight.served.plan, flight.assignment
    studies = (one.study for one in plan.experiments if one.name == assignment.rule)
    study = next(studies, None)
    kind = Kind(
        endpoint=plan.endpoint,
        model=plan.model,
        version=assignment.variant.version,
        digest="" if flight.loaded is None else flight.loaded.digest,
        variant=assignment.variant.name,
        reason=assignment.reason,
        revision=plan.revision,
        rule=assignment.rule,
        intended=assignment.intended,
        propensity=assignment.propensity,
        salt=assignment.salt,
        hash_version=plan.hash_version(assignment.rule),
        sticky=assignment.sticky,
        experiment=None if study is None else study.experiment,
        phase=0 if study is None else study.phase,
        study=study,
        failed_with=assignment.failed_with,
    )
    facts = PredictionFacts(
        at_ms=0,
        nonce=b"",
        unit_hash=b"",
        revision=plan.revision,
        endpoint=plan.endpoint,
        rule=assignment.rule or "",
        intended=assignment.intended or "",
        variant=assignment.variant.name,
        version=assignment.variant.version,
        reason=assignment.reason,
        propensity=assignment.propensity,
        phase=kind.phase,
    )
    return kind, stub(facts)


def _answer_of(flight: Flight, record: Record, error: GatewayError | None) -> Answer:
    """An answer without outputs."""
    assignment, kind = flight.assignment, record.kind
    return Answer(
        kind.revision,
        error,
        assignment.variant,
        assignment.reason,
        record.prediction_id,
        {},
        kind,
    )


def _text(flight: Flight, tensors: Tensors) -> str:
    recording = flight.served.plan.recording
    return payload_text(tensors, recording.redact, recording.max_bytes)


_MAX_KINDS: Final = 1024
_SPLIT: Final = Reason.SPLIT
