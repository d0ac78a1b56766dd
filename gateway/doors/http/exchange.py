"""Exchanges: one inference over HTTP, from its head to its response, whichever door it came by.

`open` judges the head, so that who is refused sends no body; `take` gets the whole body; then the
response is handed over exactly once, perhaps at once. Nothing here waits: what is too large to be
decoded, encoded or compressed between two ticks of the event loop is done in a thread.
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from gateway.core.errors import (
    GatewayError,
    InvalidRequest,
    NotReady,
    Overloaded,
    Throttled,
    TooLarge,
)
from gateway.core.oip.messages import InferRequest
from gateway.core.oip.parse import parse_header_length
from gateway.core.oip.v1 import parse_predict
from gateway.core.oip.writing import Rows
from gateway.doors.http.answers import Style
from gateway.doors.http.desk import Desk
from gateway.doors.http.inference_head import HEADER_LENGTH, TIMEOUT, Head, too_large
from gateway.doors.http.messages import (
    COMPRESS_FROM_BYTES,
    Response,
    coding_for,
    compress,
    error_response,
    inflate,
)
from gateway.doors.http.routes import Route
from gateway.doors.tracing import DRAW_BYTES, parse_traceparent
from gateway.serving.calls import Answer, Call, Ran, Together
from gateway.serving.flights import Flight
from gateway.serving.live import NOTHING, Live, Served
from gateway.telemetry import Kind

LARGE_BYTES: Final = 128 * 1024
"""A body from this size on is decoded, and a response encoded or compressed, in a thread."""
_TIMEOUT_DIGITS: Final = 9

_UNOPENED: Final = "The request was not opened."

Respond: TypeAlias = Callable[[Response], None]


class Line(Protocol):
    """A connection that takes plain responses as they stand on the wire."""

    @property
    def together(self) -> Together:
        """Responds to all plain inferences of a run."""

    def start(self) -> bytes:
        """The status line and the headers that stand in every response of status 200."""

    def lives(self) -> bool:
        """Whether the connection outlives the next response."""

    def tell(self, message: bytes) -> bool:
        """Write a whole response, and go on; whether somebody was there to get it."""

    def counted(self, arrived_ns: list[int]) -> None:
        """Count inferences that were told now, by when they came."""


class Exchange:
    """One inference over HTTP."""

    __slots__ = (
        "_asked",
        "_caller",
        "_columnar",
        "_desk",
        "_flight",
        "_head",
        "_held",
        "_is_aside",
        "_live",
        "_refused",
        "_respond",
        "_route",
        "_served",
        "_version",
        "arrived_ns",
        "line",
    )

    def __init__(
        self, desk: Desk, route: Route, head: Head, respond: Respond, line: Line | None = None
    ) -> None:
        """Begin; time counts from now on.

        Args:
            desk: what exchanges need of their process.
            route: of action `infer` or `predict`.
            head: of the request.
            respond: called once with the response, unless `cancel` or an error of `open` came
                before.
            line: told of a plain response in place of `respond`, where there is one.
        """
        self._desk = desk
        self.line = line
        self._route = route
        self._head = head
        self._respond: Respond | None = respond
        self.arrived_ns = desk.clock.monotonic_ns()
        self._caller: str | None = None
        self._held = 0
        self._is_aside = False
        self._refused = False
        self._flight: Flight | None = None
        self._asked: InferRequest | None = None
        self._columnar = False
        self._live: Live = NOTHING
        self._served: Served | None = None
        self._version: int | None = None

    def open(self, peer: str) -> None:
        """Judge the head, and let the request in.

        Args:
            peer: the address that the request came from.

        Raises:
            GatewayError: the request is refused, whatever its body; nothing more is to be done.
        """
        desk, head, route = self._desk, self._head, self._route
        worker = desk.pipeline.worker
        self._live = live = worker.live
        self._served = served = live.endpoints.get(route.name)
        if served is None or route.version or route.alias or worker.signer is None:
            if desk.needs_token:
                desk.principal(head)  # who is not known here is told of no names
            self._served, self._version = served, _ = desk.find(route)
        if head.is_plain and head.size <= desk.plain_bytes:
            self._enter(peer)
            return
        caller = desk.caller(head, peer, served.plan.model)
        if not head.is_plain or head.size > desk.limits.body_bytes:
            head.check_body(desk.limits.body_bytes)
            if desk.needs_token:
                head.settle()
        self._enter(caller)

    def _enter(self, caller: str) -> None:
        admission = self._desk.admission
        try:
            admission.enter(self._route.name, caller)
            self._caller = caller
            if self._head.size >= LARGE_BYTES:
                self.hold(self._head.size)
        except (Overloaded, Throttled):
            self._leave()
            raise

    def rejected(self, error: GatewayError) -> None:
        """Count a refusal of `open`; called by the door that tells it."""
        self._desk.pipeline.concluder.rejected(self._route.name, error)

    def hold(self, size: int) -> None:
        """Make room for a body of which so many bytes are here, where that is a large one.

        Raises:
            Overloaded: there is none.
        """
        more = size - self._held
        if size >= LARGE_BYTES and more > 0:
            self._desk.admission.hold(more)
            self._held = size

    @property
    def size(self) -> int:
        """The length of the body in bytes, as far as it is stated."""
        return self._head.size

    def take(self, body: bytes) -> None:
        """Go on with the whole body; never raises."""
        size = len(body)
        if size >= LARGE_BYTES:
            try:
                self.hold(size)
            except Overloaded as error:
                self.rejected(error)
                self._end(error_response(error))
                return
        if self._head.is_plain:
            is_quick = size < LARGE_BYTES
        else:
            is_quick = self._head.coding is None and self._head.json_bytes(body) < LARGE_BYTES
        if is_quick:
            try:
                self._decode(body)
            except Exception as error:  # noqa: BLE001 - every failure is answered
                self._end(error_response(error))
            else:
                self._submit()
        else:
            self._is_aside = True
            self._desk.aside.start(lambda: _outcome(self._decode, body), self._decoded)

    def cancel(self) -> None:
        """The caller left: respond to nobody, and run nothing that is only queued."""
        self._respond = None
        self._leave()
        if self._flight is not None:
            self._flight.cancel()

    def _decode(self, body: bytes) -> None:
        """Make a request of the body; may run in a thread."""
        if self._respond is None:
            return
        desk, head, limits = self._desk, self._head, self._desk.limits
        coding = None if head.is_plain else head.coding
        if coding is not None:
            body = inflate(coding, body, limits.body_bytes)
        elif len(body) > limits.body_bytes:
            raise TooLarge(too_large(limits.body_bytes))
        if self._live is not desk.pipeline.worker.live:  # it moved since the head came
            self._served, self._version = desk.find(self._route)
        served = self._served
        if served is None:
            raise NotReady(_UNOPENED)
        version = self._version
        signature = served.signature if version is None else served.signature_of(version)
        if self._route.action == "predict":
            self._asked, self._columnar = parse_predict(body, signature, limits)
        else:
            lengths = None if head.is_plain else head.all(HEADER_LENGTH)
            json_bytes = parse_header_length(lengths, len(body)) if lengths else None
            self._asked = desk.readers.of(signature).read(body, json_bytes)

    def _decoded(self, error: Exception | None) -> None:
        self._is_aside = False
        if self._respond is None:
            self._leave()
        elif error is not None:
            self._end(error_response(error))
        elif self._moves_on():
            self._submit()

    def _moves_on(self) -> bool:
        """Whether what was decoded suits what is served by now; else that is told."""
        desk = self._desk
        if self._live is not desk.pipeline.worker.live and self._served is not None:
            before = self._served.signature_of(self._version)
            try:
                self._served, self._version = desk.find(self._route)
            except GatewayError as error:
                self._end(error_response(error))
                return False
            if self._served.signature_of(self._version) != before:
                message = "The model changed while the request was read; send it again."
                self._end(error_response(NotReady(message)))
                return False
        return True

    def _submit(self) -> None:
        desk, head, served, asked = self._desk, self._head, self._served, self._asked
        if served is None or asked is None:
            return
        call = Call(asked, self.arrived_ns, head.headers, self._version)
        if asked.timeout_us:
            call.deadline_ns = self.arrived_ns + asked.timeout_us * 1_000
        try:
            if not head.is_plain:
                self._read_head(call)
            if desk.trace_ratio > 0 and call.trace is None:
                draw = desk.randbytes(DRAW_BYTES)
                call.trace = parse_traceparent(None, None, draw, desk.trace_ratio)
        except Exception as error:  # noqa: BLE001 - every failure is answered
            self._end(error_response(error))
            return
        if self.line is not None and self._route.action == "infer":
            call.together = self.line.together
        self._flight = desk.pipeline.submit(served, call, self)

    def _read_head(self, call: Call) -> None:
        """Tell the call what its head asks for beside the usual."""
        desk, head = self._desk, self._head
        call.force = head.force
        if head.traceparent is not None:
            draw = desk.randbytes(DRAW_BYTES)
            call.trace = parse_traceparent(
                head.traceparent, head.tracestate, draw, desk.trace_ratio
            )
        stated = head.headers.get(TIMEOUT)
        if stated is not None:
            limit_ms = int(stated) if stated.isdigit() and len(stated) <= _TIMEOUT_DIGITS else 0
            if limit_ms == 0:
                message = "The header X-Request-Timeout-Ms must be 1 to 9 digits, and above 0."
                raise InvalidRequest(message)
            deadline_ns = self.arrived_ns + limit_ms * 1_000_000
            call.deadline_ns = min(call.deadline_ns or deadline_ns, deadline_ns)

    def __call__(self, answer: Answer) -> None:
        """The pipeline's answer is here."""
        self._flight = None
        if answer.error is not None:
            self._refused = isinstance(answer.error, Overloaded)
        for output in answer.outputs.values():
            if output.nbytes >= LARGE_BYTES:
                self._desk.aside.start(lambda: self._packed(self._encode(answer)), self._end)
                return
        response = self._encode(answer)
        if (
            len(response.body) < COMPRESS_FROM_BYTES
            or coding_for(response, self._head.accept_encoding) is None
        ):
            self._end(response)
        else:
            self._desk.aside.start(lambda: self._packed(response), self._end)

    def style(self, kind: Kind) -> Style:
        """What its answer shares with others of that kind."""
        if self._served is None:
            raise NotReady(_UNOPENED)
        return self._desk.answers.style(self._served, kind)

    def answer_row(self, ran: Ran, index: int, start: bytes, rows: Rows | None) -> bool:
        """The answer is a row of a run; whether it was as plain as most, and is told.

        Args:
            ran: the run.
            index: of the row.
            start: a response up to the prediction id.
            rows: the texts of the run, where there are any.
        """
        asked, line = self._asked, self.line
        text = None if rows is None or asked is None else rows.write(index, asked)
        if text is None or len(text) >= COMPRESS_FROM_BYTES or line is None or not line.lives():
            self(ran.answer(index))
            return False
        self._flight = None
        self._leave()
        if self._respond is None:
            return False
        self._respond = None
        parts = (start, ran.records[index].prediction_id.encode(), len(text), text)
        return line.tell(b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % parts)

    def _encode(self, answer: Answer) -> Response:
        """Make the response of an answer; may run in a thread, and never raises."""
        asked, served, desk = self._asked, self._served, self._desk
        if asked is None or served is None:
            return error_response(NotReady(_UNOPENED))
        if self._route.action == "predict":
            return desk.answers.predict(served, asked, answer, columnar=self._columnar)
        return desk.answers.infer(served, asked, answer)

    def _packed(self, response: Response) -> Response:
        """The response as the caller likes it best; may run in a thread, and never raises."""
        coding = coding_for(response, self._head.accept_encoding)
        try:
            return response if coding is None else compress(response, coding)
        except MemoryError:
            return response

    def _leave(self) -> None:
        if self._is_aside:  # its body is still held, and left when that is over
            return
        caller, self._caller = self._caller, None
        if caller is not None:
            self._desk.admission.leave(self._route.name, caller, refused=self._refused)
        if self._held:
            self._desk.admission.let_go(self._held)
            self._held = 0

    def _end(self, response: Response) -> None:
        self._leave()
        respond, self._respond = self._respond, None
        if respond is not None:
            respond(response)


def _outcome(step: Callable[[bytes], None], body: bytes) -> Exception | None:
    """Run a step of which only its failure matters."""
    try:
        step(body)
    except Exception as error:  # noqa: BLE001 - every failure is answered
        return error
    return None
