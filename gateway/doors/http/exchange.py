"""Exchanges: one inference over HTTP, from its head to its response, whichever door it came by.

`open` judges the head, so that who is refused sends no body; `take` gets the whole body; then the
response is handed over exactly once, perhaps at once. Nothing here waits: what is too large to be
decoded, encoded or compressed between two ticks of the event loop is done in a thread.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from gateway.core.access import FORCE, Principal, Token, principal_of, require
from gateway.core.errors import InvalidRequest, NotFound, TooLarge
from gateway.core.oip.answers import Nonfinite
from gateway.core.oip.messages import InferRequest, Limits
from gateway.core.oip.parse import parse_header_length, parse_infer
from gateway.core.oip.v1 import parse_predict
from gateway.doors.http.answers import HEADER_LENGTH, infer_response, predict_response
from gateway.doors.http.aside import Aside
from gateway.doors.http.head import Head, too_large
from gateway.doors.http.messages import (
    Response,
    coding_for,
    compress,
    error_response,
    inflate,
)
from gateway.doors.http.routes import Route
from gateway.doors.tracing import DRAW_BYTES, parse_traceparent
from gateway.serving.calls import Answer, Call, Clock
from gateway.serving.flights import Flight
from gateway.serving.live import Served
from gateway.serving.pipeline import Pipeline
from gateway.telemetry import Trace

LARGE_BYTES: Final = 128 * 1024
"""A body from this size on is decoded, and a response encoded or compressed, in a thread."""
MAX_TIMEOUT_MS: Final = 24 * 3_600 * 1_000
TIMEOUT: Final = b"x-request-timeout-ms"

Respond: TypeAlias = Callable[[Response], None]


@dataclass(frozen=True, slots=True)
class Desk:
    """What exchanges need of their process."""

    pipeline: Pipeline
    aside: Aside
    clock: Clock
    randbytes: Callable[[int], bytes]
    limits: Limits
    nonfinite: Nonfinite
    trace_ratio: float

    def find(self, route: Route) -> tuple[Served, int | None]:
        """What serves a route, and the version that it pins by number or by alias."""
        if route.alias is None:
            return self.pipeline.find(route.name, route.version), route.version
        served = self.pipeline.find(route.name)
        version = served.aliases.get(route.alias)
        if version is None:
            message = f"Model '{served.plan.model}' has no alias of that name."
            raise NotFound(message)
        return self.pipeline.find(route.name, version), version

    def principal(self, head: Head) -> Principal:
        """Who asks."""
        secrets = self.pipeline.worker.secrets
        tokens: Iterable[Token] = () if secrets is None else secrets.tokens
        return principal_of(head.authorization, tokens)


class Exchange:
    """One inference over HTTP."""

    __slots__ = (
        "_asked",
        "_columnar",
        "_desk",
        "_flight",
        "_head",
        "_respond",
        "_route",
        "_served",
        "_version",
        "arrived_ns",
    )

    def __init__(self, desk: Desk, route: Route, head: Head, respond: Respond) -> None:
        """Begin; time counts from now on.

        Args:
            desk: what exchanges need of their process.
            route: of action `infer` or `predict`.
            head: of the request.
            respond: called once with the response, unless `cancel` or an error of `open` came
                before.
        """
        self._desk = desk
        self._route = route
        self._head = head
        self._respond: Respond | None = respond
        self.arrived_ns = desk.clock.monotonic_ns()
        self._flight: Flight | None = None
        self._asked: InferRequest | None = None
        self._columnar = False
        self._served: Served | None = None
        self._version: int | None = None

    def open(self) -> None:
        """Judge the head.

        Raises:
            GatewayError: the request is refused, whatever its body; nothing more is to be done.
        """
        desk, head = self._desk, self._head
        desk.find(self._route)
        head.check_body(desk.limits.body_bytes)
        if head.force is not None:
            require(desk.principal(head), FORCE)

    def take(self, body: bytes) -> None:
        """Go on with the whole body; never raises."""
        if len(body) < LARGE_BYTES and self._head.coding is None:
            try:
                self._decode(body)
            except Exception as error:  # noqa: BLE001 - every failure is answered
                self._end(error_response(error))
            else:
                self._submit()
        else:
            self._desk.aside.start(lambda: _outcome(self._decode, body), self._decoded)

    def cancel(self) -> None:
        """The caller left: respond to nobody, and run nothing that is only queued."""
        self._respond = None
        if self._flight is not None:
            self._flight.cancel()

    def _decode(self, body: bytes) -> None:
        """Make a request of the body; may run in a thread."""
        desk, head, limits = self._desk, self._head, self._desk.limits
        if head.coding is not None:
            body = inflate(head.coding, body, limits.body_bytes)
        elif len(body) > limits.body_bytes:
            raise TooLarge(too_large(limits.body_bytes))
        served, self._version = desk.find(self._route)  # it may have moved since the head came
        signature = served.signature_of(self._version)
        if self._route.action == "predict":
            self._asked, self._columnar = parse_predict(body, signature, limits)
        else:
            lengths = head.all(HEADER_LENGTH)
            json_bytes = parse_header_length(lengths, len(body)) if lengths else None
            self._asked = parse_infer(body, json_bytes, signature, limits)
        self._served = served

    def _decoded(self, error: Exception | None) -> None:
        if error is not None:
            self._end(error_response(error))
        elif self._respond is not None:
            self._submit()

    def _submit(self) -> None:
        desk, served, asked = self._desk, self._served, self._asked
        if served is None or asked is None:
            return
        try:
            call = Call(
                asked,
                self.arrived_ns,
                self._head.headers,
                self._version,
                self._head.force,
                self._trace(),
                self._deadline_ns(asked),
            )
        except Exception as error:  # noqa: BLE001 - every failure is answered
            self._end(error_response(error))
            return
        self._flight = desk.pipeline.submit(served, call, self._answered)

    def _answered(self, answer: Answer) -> None:
        self._flight = None
        size = sum([output.nbytes for output in answer.outputs.values()])
        if size >= LARGE_BYTES:
            self._desk.aside.start(lambda: self._packed(self._encode(answer)), self._end)
            return
        response = self._encode(answer)
        if coding_for(response, self._head.accept_encoding) is None:
            self._end(response)
        else:
            self._desk.aside.start(lambda: self._packed(response), self._end)

    def _encode(self, answer: Answer) -> Response:
        """Make the response of an answer; may run in a thread, and never raises."""
        asked, served, desk = self._asked, self._served, self._desk
        if asked is None or served is None:
            return error_response(InvalidRequest("There was no request."))
        name = self._route.name
        if self._route.action == "predict":
            return predict_response(name, asked, answer, desk.nonfinite, columnar=self._columnar)
        return infer_response(name, asked, answer, served.labels, desk.nonfinite)

    def _packed(self, response: Response) -> Response:
        """The response as the caller likes it best; may run in a thread, and never raises."""
        coding = coding_for(response, self._head.accept_encoding)
        return response if coding is None else compress(response, coding)

    def _end(self, response: Response) -> None:
        respond, self._respond = self._respond, None
        if respond is not None:
            respond(response)

    def _trace(self) -> Trace | None:
        stated = self._head.traceparent
        ratio = self._desk.trace_ratio
        if stated is None and ratio <= 0:
            return None
        return parse_traceparent(
            stated, self._head.tracestate, self._desk.randbytes(DRAW_BYTES), ratio
        )

    def _deadline_ns(self, asked: InferRequest) -> int:
        """The earlier of the two deadlines that a request may state; 0 for none."""
        limit_ns = asked.timeout_us * 1_000
        stated = self._head.headers.get(TIMEOUT)
        if stated is not None:
            if not stated.isdigit() or not 0 < (limit_ms := int(stated[:12])) <= MAX_TIMEOUT_MS:
                message = "The header X-Request-Timeout-Ms must be a count of milliseconds."
                raise InvalidRequest(message)
            limit_ns = min(limit_ns or limit_ms * 1_000_000, limit_ms * 1_000_000)
        return self.arrived_ns + limit_ns if limit_ns else 0


def _outcome(step: Callable[[bytes], None], body: bytes) -> Exception | None:
    """Run a step of which only its failure matters."""
    try:
        step(body)
    except Exception as error:  # noqa: BLE001 - every failure is answered
        return error
    return None
