"""The pipeline: the life of one request, from decoded call to reply.

It reads as a sentence: find what is served, assign a variant, check the tensors, hold the version,
look it up or run it, conclude, reply. It is callback-shaped and synchronous up to the batch queue:
no task, no future, no await. Doors wrap `submit` as they like.
"""

import logging
from collections.abc import Collection
from typing import Final

from gateway.core.assignment import Reason
from gateway.core.errors import (
    EngineFailed,
    GatewayError,
    InvalidRequest,
    NotFound,
    NotReady,
    TooLarge,
    UpstreamFailed,
)
from gateway.core.oip.render import check_outputs
from gateway.core.plans import Assignment, Variant, assign, fall_back, force
from gateway.core.tensors import Array, invalid_rows
from gateway.serving.calls import Answer, Call, Ran, Reply
from gateway.serving.concluding import NONCE_BYTES, Concluder
from gateway.serving.flights import Flight
from gateway.serving.jobs import Job, Result
from gateway.serving.live import Served
from gateway.serving.worker import Worker

SMALL_ROW_BYTES: Final = 2 * 1024
"""Rows of outputs up to this size are told together; a larger one is a door's work by itself."""
_PINNED: Final = Reason.PINNED  # to ask an enum for a member takes a tenth of a microsecond

log: Final = logging.getLogger(__name__)


class Pipeline:
    """Carries requests; one for each process."""

    def __init__(self, worker: Worker, concluder: Concluder, max_request_rows: int) -> None:
        """Start with nothing in flight.

        Args:
            worker: what is served.
            concluder: signs, records and offers to shadows.
            max_request_rows: rows that one request may hold.
        """
        self.worker = worker
        self.concluder = concluder
        self.max_request_rows = max_request_rows
        self.in_flight = 0
        self._now_ns = concluder.clock.monotonic_ns
        self._land_one = self._land  # one bound method for all flights
        self._land_all = self._land_together
        self._land_looked_at = self._land_and_look

    def find(self, endpoint: str, version: int | None = None) -> Served:
        """The one read of what is live; pass the result to `submit`.

        Raises:
            NotFound: no such endpoint, or a version that the Snapshot does not name.
            NotReady: known, and not served yet.
        """
        if self.worker.signer is None:
            message = "The gateway is starting."
            raise NotReady(message)
        served = self.worker.live.find(endpoint)
        if version is None or version in served.pinnable:
            return served
        if version in served.named:
            message = f"Version {version} of '{endpoint}' is not ready."
            raise NotReady(message)
        message = f"'{endpoint}' serves no version {version}."
        raise NotFound(message)

    def submit(self, served: Served, call: Call, reply: Reply) -> Flight | None:
        """Carry one request; `reply` is called exactly once, perhaps before this returns.

        Returns:
            What a door may `cancel` when its caller leaves; None when it is over already.
        """
        nonce = self.concluder.draw(NONCE_BYTES)
        try:
            if call.version is None and call.force is None:
                assignment = assign(served.plan, call, nonce)
            else:
                assignment = _asked_for(served, call)
        except Exception as error:  # noqa: BLE001 - every failure is answered
            reply(Answer(served.plan.revision, _told(error)))
            return None
        self.in_flight += 1
        flight = Flight(served, call, assignment, nonce, reply, self._land_one)
        try:
            self._queue(flight)
        except Exception as error:  # noqa: BLE001 - every failure is answered
            self._land(flight, _told(error))
        return None if flight.reply is None else flight

    def _queue(self, flight: Flight) -> None:
        """Queue the request with the version it was assigned; raise what refuses it."""
        served, call, assignment = flight.served, flight.call, flight.assignment
        request = call.request
        held = served.pinnable if assignment.reason is _PINNED else served.loaded
        loaded = held.get(assignment.variant.version)
        if loaded is None:
            message = f"Version {assignment.variant.version} is not ready."
            raise NotReady(message)
        rows = loaded.check.rows(request.tensors)
        if request.outputs:
            check_outputs(request.outputs, loaded.artifact.manifest.signature)
        if request.nonfinite is not False and not served.allow_nonfinite and request.has_nonfinite:
            message = "The inputs hold NaN or an infinity, which this model does not allow."
            raise InvalidRequest(message)
        if rows > self.max_request_rows:
            message = f"The request holds {rows} rows; at most {self.max_request_rows} are allowed."
            raise TooLarge(message)
        together = None
        if served.is_plain and not request.outputs:
            together = self._land_looked_at if served.plan.watches_outputs else self._land_all
        job = flight.job = Job(
            request.tensors, rows, flight, self._now_ns(), call.deadline_ns, together
        )
        batcher = loaded.acquire()
        flight.loaded = loaded
        if served.plan.cache is None:
            batcher.submit(job)
        else:
            self.worker.cache.submit(job, batcher, loaded, served.plan.endpoint)

    def _land(self, flight: Flight, result: Result) -> None:
        """The run is over, or never was: fall back, or conclude and reply."""
        if flight.assignment.falls_back and _may_fall_back(flight, result):
            self._fall_back(flight, result)
            return
        self.in_flight -= 1
        try:
            answer = self.concluder.conclude(flight, result, self.in_flight)
        except Exception as error:  # noqa: BLE001 - every failure is answered
            revision, variant = flight.served.plan.revision, flight.assignment.variant
            answer = Answer(revision, _told(error), variant)
        flight.let_go()
        reply, flight.reply = flight.reply, None
        if reply is not None:
            reply(answer)

    def _land_together(
        self, flights: list[Flight], outputs: list[Array], invalid: Collection[int] = ()
    ) -> None:
        """One run answered plain requests of one row each: conclude and reply to all of them.

        `invalid` names rows that are not finite, as far as they were looked at.
        """
        loaded = flights[0].loaded
        if loaded is None:
            return
        ran = Ran(loaded.output_names, outputs)
        if not self._concludes_together(flights, ran, invalid):
            for index, flight in enumerate(flights):
                self._land(flight, list(ran.row(index).values()))
            return
        self.in_flight -= len(flights)
        loaded.release(len(flights))
        together, replies = flights[0].call.together, []
        for flight in flights:
            if flight.reply is None or flight.call.together is not together:
                together = None
            replies.append(flight.reply)
            flight.reply = flight.job = flight.loaded = None
        if together is not None:
            together(replies, ran)
        else:
            _reply_singly(replies, ran)

    def _land_and_look(self, flights: list[Flight], outputs: list[Array]) -> None:
        """The same, where an experiment wants to know of answers that are not finite."""
        self._land_together(flights, outputs, invalid_rows(outputs))

    def _concludes_together(
        self, flights: list[Flight], ran: Ran, invalid: Collection[int]
    ) -> bool:
        """Whether a run's answers were concluded; if not, each must be by itself."""
        size = 0
        for output in ran.outputs:
            size += output.nbytes
        if size > len(flights) * SMALL_ROW_BYTES:
            return False
        try:
            self.concluder.conclude_together(flights, ran, invalid)
        except Exception:
            log.exception("answers that belong together are given one by one")
            return False
        return True

    def _fall_back(self, flight: Flight, result: Result) -> None:
        self.concluder.fell_back(flight, result)
        flight.let_go()
        failed_with = result.kind if isinstance(result, GatewayError) else None
        flight.assignment = fall_back(flight.served.plan, flight.assignment, failed_with)
        try:
            self._queue(flight)
        except Exception as error:  # noqa: BLE001 - every failure is answered
            self._land(flight, _told(error))


def _reply_singly(replies: list[Reply | None], ran: Ran) -> None:
    for index, reply in enumerate(replies):
        if reply is not None:
            try:
                reply(ran.answer(index))
            except Exception:
                log.exception("a caller could not take its answer")


def _may_fall_back(flight: Flight, result: Result) -> bool:
    """Whether the default may answer for a variant that could not."""
    if not isinstance(result, (EngineFailed, UpstreamFailed, NotReady)):
        return False
    return flight.assignment.variant.version != flight.served.plan.default.version


def _asked_for(served: Served, call: Call) -> Assignment:
    """The assignment of a caller who names the version, or the variant."""
    if call.version is not None:
        return Assignment(Variant(f"v{call.version}", call.version), Reason.PINNED)
    return force(served.plan, call.force or "")


def _told(error: Exception) -> GatewayError:
    """The error that a caller is told; one that nobody foresaw is logged here."""
    if isinstance(error, GatewayError):
        return error.with_traceback(None)  # it would hold the request, and the request its caller
    log.error("a request failed in a way that nobody foresaw", exc_info=error)
    return GatewayError("The gateway failed; its log says more.")
