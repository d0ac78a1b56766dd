"""The pipeline: the life of one request, from decoded call to reply.

It reads as a sentence: find what is served, assign a variant, check the tensors, hold the version,
run, conclude, reply. It is callback-shaped and synchronous up to the batch queue: no task, no
future, no await. Doors wrap `submit` as they like.
"""

import logging
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
from gateway.core.tensors import check_inputs, rows_of
from gateway.serving.calls import Answer, Call, Reply
from gateway.serving.concluding import Concluder, Run
from gateway.serving.jobs import Job, Result
from gateway.serving.live import Served
from gateway.serving.pool import Loaded
from gateway.serving.worker import Worker

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

    def submit(self, served: Served, call: Call, reply: Reply) -> None:
        """Carry one request; `reply` is called exactly once, perhaps before this returns."""
        nonce = self.concluder.nonce()
        try:
            assignment = _decide(served, call, nonce)
        except Exception as error:  # noqa: BLE001 - every failure is answered
            reply(Answer(revision=served.plan.revision, error=_told(error)))
            return
        self.in_flight += 1
        _Flight(self, served, call, reply, (assignment, nonce)).take_off()


class _Flight:
    """One request in flight. `land` is called once for each variant that was tried."""

    __slots__ = ("assignment", "call", "job", "loaded", "nonce", "pipeline", "reply", "served")

    def __init__(
        self,
        pipeline: Pipeline,
        served: Served,
        call: Call,
        reply: Reply,
        decided: tuple[Assignment, bytes],
    ) -> None:
        self.pipeline = pipeline
        self.served = served
        self.call = call
        self.reply = reply
        self.assignment, self.nonce = decided
        self.loaded: Loaded | None = None
        self.job: Job | None = None

    def take_off(self) -> None:
        """Queue the request with the version it was assigned, or land at once."""
        try:
            self._queue()
        except Exception as error:  # noqa: BLE001 - every failure is answered
            self.land(_told(error))

    def _queue(self) -> None:
        request = self.call.request
        loaded = _version(self.served, self.assignment)
        signature = loaded.artifact.manifest.signature
        check_inputs(signature, request.tensors)
        check_outputs(request.outputs, signature)
        if request.has_nonfinite and not self.served.allow_nonfinite:
            message = "The inputs hold NaN or an infinity, which this model does not allow."
            raise InvalidRequest(message)
        rows = rows_of(signature, request.tensors)
        if rows > self.pipeline.max_request_rows:
            limit = self.pipeline.max_request_rows
            message = f"The request holds {rows} rows; at most {limit} are allowed."
            raise TooLarge(message)
        timeout_ns = request.timeout_us * 1000
        self.job = Job(
            tensors=request.tensors,
            rows=rows,
            done=self.land,
            queued_ns=self.pipeline.concluder.clock.monotonic_ns(),
            deadline_ns=self.call.arrived_ns + timeout_ns if timeout_ns else 0,
        )
        batcher = loaded.acquire()
        self.loaded = loaded
        batcher.submit(self.job)

    def land(self, result: Result) -> None:
        """The run is over, or never was: fall back, or conclude and reply."""
        if isinstance(result, GatewayError) and self._falls_back(result):
            self._fall_back(result)
            return
        self.pipeline.in_flight -= 1
        try:
            answer = self.pipeline.concluder.conclude(self._run(), result, self.pipeline.in_flight)
        except Exception as error:  # noqa: BLE001 - every failure is answered
            revision, variant = self.served.plan.revision, self.assignment.variant
            answer = Answer(revision=revision, error=_told(error), variant=variant)
        self._let_go()
        self.reply(answer)

    def _run(self) -> Run:
        return Run(self.served, self.call, self.assignment, self.nonce, self.loaded, self.job)

    def _falls_back(self, error: GatewayError) -> bool:
        """Whether the rule asks for the default when its variant cannot answer."""
        assignment = self.assignment
        return (
            assignment.falls_back
            and isinstance(error, (EngineFailed, UpstreamFailed, NotReady))
            and assignment.variant.version != self.served.plan.default.version
        )

    def _fall_back(self, error: GatewayError) -> None:
        self.pipeline.concluder.fell_back(self._run(), error)
        self._let_go()
        self.assignment = fall_back(self.served.plan, self.assignment)
        self.take_off()

    def _let_go(self) -> None:
        self.job = None  # it holds this flight in turn, so neither would go without a collection
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            loaded.release()


def _decide(served: Served, call: Call, draw: bytes) -> Assignment:
    if call.version is not None:
        return Assignment(Variant(f"v{call.version}", call.version), Reason.PINNED)
    if call.force is not None:
        return force(served.plan, call.force)
    return assign(served.plan, call, draw)


def _version(served: Served, assignment: Assignment) -> Loaded:
    held = served.pinnable if assignment.reason is Reason.PINNED else served.loaded
    loaded = held.get(assignment.variant.version)
    if loaded is None:
        message = f"Version {assignment.variant.version} of '{served.plan.endpoint}' is not ready."
        raise NotReady(message)
    return loaded


def _told(error: Exception) -> GatewayError:
    """The error that a caller is told; one that nobody foresaw is logged here."""
    if isinstance(error, GatewayError):
        return error.with_traceback(None)  # it would hold the request, and the request its caller
    log.error("a request failed in a way that nobody foresaw", exc_info=error)
    return GatewayError("The gateway failed; its log says more.")
