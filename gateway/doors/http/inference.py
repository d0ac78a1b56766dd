"""The inference door: Open Inference Protocol v2 and V1 predict over raw ASGI.

One callable, no framework: an inference is read, decoded, submitted and answered; the rest are
small documents. It decides nothing: names, versions and rights are someone else's to know.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.core.access import FORCE, WRITE, Principal, Token, principal_of, require
from gateway.core.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    NotReady,
    Unauthenticated,
    Unsupported,
)
from gateway.core.models import parse_version
from gateway.core.oip.answers import Nonfinite
from gateway.core.oip.messages import InferRequest, Limits
from gateway.core.oip.parse import parse_header_length, parse_infer
from gateway.core.oip.v1 import parse_predict
from gateway.doors.http.answers import HEADER_LENGTH, infer_response, predict_response
from gateway.doors.http.documents import model_config, model_metadata, server_metadata
from gateway.doors.http.messages import (
    CLOSE,
    Disconnected,
    Headers,
    Message,
    Receive,
    Response,
    Send,
    compressed,
    error_response,
    header_values,
    json_response,
    read_body,
    send_response,
)
from gateway.doors.http.routes import METHOD, TEMPLATES, Route, route_of
from gateway.doors.tracing import DRAW_BYTES, parse_traceparent
from gateway.ports import Repository
from gateway.serving.calls import Answer, Call, Clock
from gateway.serving.cells import Cells, Histogram
from gateway.serving.live import Served
from gateway.serving.pipeline import Pipeline
from gateway.telemetry import (
    HTTP_METHOD,
    HTTP_ROUTE,
    HTTP_STATUS,
    REQUEST_DURATION,
    URL_SCHEME,
)

KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


@dataclass(frozen=True, slots=True)
class DoorParts:
    """What the door needs of its process."""

    pipeline: Pipeline
    repository: Repository
    cells: Cells
    clock: Clock
    randbytes: Callable[[int], bytes]
    limits: Limits
    max_batch_rows: int
    nonfinite: Nonfinite
    trace_ratio: float


@dataclass(slots=True)
class _Request:
    """One HTTP request, as far as an answer needs it."""

    headers: Headers
    receive: Receive
    route: Route
    arrived_ns: int


class InferenceDoor:
    """The ASGI callable of the inference port."""

    def __init__(self, parts: DoorParts) -> None:
        """Answer for one process."""
        self._parts = parts
        self._durations: dict[tuple[str, str, int, str], Histogram] = {}
        self._actions: Mapping[str, Callable[[_Request], Awaitable[Response]]] = {
            "alive": self._alive,
            "server": self._server,
            "live": self._live,
            "ready": self._ready,
            "models": self._models,
            "stats": self._stats,
            "model": self._model,
            "model_ready": self._model_ready,
            "model_stats": self._model_stats,
            "config": self._config,
            "infer": self._infer,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "v1_models": self._models,
            "v1_model": self._model_ready,
            "predict": self._predict,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        arrived_ns = self._parts.clock.monotonic_ns()
        method: str = scope["method"]
        route = Route("unknown")
        try:
            route = route_of(scope["raw_path"])
            response = _wrong_method(route, method)
            if response is None:
                request = _Request(scope["headers"], receive, route, arrived_ns)
                response = await self._actions[route.action](request)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001 - every failure has one way out
            response = error_response(error)
        if self._parts.pipeline.worker.stopping and CLOSE not in response.headers:
            response.headers.append(CLOSE)
        await send_response(send, response, with_body=method != "HEAD")
        duration = self._duration(
            method, route.action, response.status, scope.get("scheme", "http")
        )
        duration.observe((self._parts.clock.monotonic_ns() - arrived_ns) / 1e9)

    def _duration(self, method: str, action: str, status: int, scheme: str) -> Histogram:
        """The cell of requests of this kind; there are few kinds, whatever callers send."""
        kind = (method if method in KNOWN_METHODS else "_OTHER", action, status, scheme)
        cell = self._durations.get(kind)
        if cell is None:
            labels = (
                (HTTP_METHOD, kind[0]),
                (HTTP_ROUTE, TEMPLATES.get(action, action)),
                (HTTP_STATUS, status),
                (URL_SCHEME, scheme),
            )
            cell = self._durations[kind] = self._parts.cells.histogram(REQUEST_DURATION, labels)
        return cell

    async def _alive(self, _: _Request) -> Response:
        return json_response({"status": "alive"})

    async def _server(self, _: _Request) -> Response:
        return json_response(server_metadata())

    async def _live(self, _: _Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: _Request) -> Response:
        ready = self._parts.pipeline.worker.ready
        return json_response({"live": True, "ready": ready}, 200 if ready else 503)

    async def _models(self, _: _Request) -> Response:
        return json_response({"models": sorted(self._parts.pipeline.worker.live.endpoints)})

    async def _model(self, request: _Request) -> Response:
        route = request.route
        served = self._parts.pipeline.find(route.name, route.version)
        return json_response(model_metadata(route.name, served, route.version))

    async def _config(self, request: _Request) -> Response:
        route = request.route
        served = self._parts.pipeline.find(route.name, route.version)
        rows = self._parts.max_batch_rows
        return json_response(model_config(route.name, served, route.version, rows))

    async def _model_ready(self, request: _Request) -> Response:
        try:
            self._parts.pipeline.find(request.route.name, request.route.version)
        except NotReady:
            return json_response({"name": request.route.name, "ready": False}, 503)
        return json_response({"name": request.route.name, "ready": True})

    async def _stats(self, _: _Request) -> Response:
        return json_response({"model_stats": self._parts.pipeline.worker.statistics(None, None)})

    async def _model_stats(self, request: _Request) -> Response:
        route = request.route
        served = self._parts.pipeline.find(route.name, route.version)
        rows = self._parts.pipeline.worker.statistics(served.plan.model, route.version)
        for row in rows:
            row["name"] = route.name
        return json_response({"model_stats": rows})

    async def _infer(self, request: _Request) -> Response:
        parts, route = self._parts, request.route
        parts.pipeline.find(route.name, route.version)  # who is refused sends no body
        body = await read_body(request.receive, request.headers, parts.limits.body_bytes)
        served = parts.pipeline.find(route.name, route.version)  # it may have moved meanwhile
        lengths = header_values(request.headers, HEADER_LENGTH)
        json_bytes = parse_header_length(lengths, len(body)) if lengths else None
        signature = served.signature_of(route.version)
        asked = parse_infer(body, json_bytes, signature, parts.limits)
        answer = await self._submit(served, self._call(request, asked, route.version))
        response = infer_response(route.name, asked, answer, served.labels, parts.nonfinite)
        return compressed(response, request.headers)

    async def _predict(self, request: _Request) -> Response:
        parts, route = self._parts, request.route
        self._find_v1(route)  # who is refused sends no body
        body = await read_body(request.receive, request.headers, parts.limits.body_bytes)
        served, version = self._find_v1(route)  # it may have moved meanwhile
        asked, columnar = parse_predict(body, served.signature_of(version), parts.limits)
        answer = await self._submit(served, self._call(request, asked, version))
        return predict_response(route.name, asked, answer, parts.nonfinite, columnar=columnar)

    def _find_v1(self, route: Route) -> tuple[Served, int | None]:
        """What serves a V1 path, and the version that it pins by number or by alias."""
        find = self._parts.pipeline.find
        if route.alias is None:
            return find(route.name, route.version), route.version
        version = _version_of_alias(find(route.name), route.alias)
        return find(route.name, version), version

    async def _index(self, request: _Request) -> Response:
        body = await read_body(request.receive, request.headers, self._parts.limits.json_bytes)
        ready_only = bool(_parameters_of(body, "ready"))
        entries = self._parts.repository.index()
        return json_response(
            [
                msgspec.to_builtins(entry)
                for entry in entries
                if entry.state == "READY" or not ready_only
            ]
        )

    async def _load(self, request: _Request) -> Response:
        principal = self._writer(request)
        number = await self._version_parameter(request)
        await self._parts.repository.load(request.route.name, number, principal.name)
        return json_response({"name": request.route.name, "load": True})

    async def _unload(self, request: _Request) -> Response:
        principal = self._writer(request)
        number = await self._version_parameter(request)
        await self._parts.repository.unload(request.route.name, number, principal.name)
        return json_response({"name": request.route.name, "unload": True})

    async def _version_parameter(self, request: _Request) -> int | None:
        """The version that a load or unload names, as a parameter; None for the model's whole."""
        body = await read_body(request.receive, request.headers, self._parts.limits.json_bytes)
        parameters = _parameters_of(body, "parameters") or {}
        if not isinstance(parameters, dict):
            message = "'parameters' must be an object."
            raise InvalidRequest(message)
        foreign = sorted(set(parameters) - {"version", "unload_dependents"})
        if foreign:
            message = "A load takes the parameter 'version' only; models come from the model store."
            raise Unsupported(message)
        number = parameters.get("version")
        return None if number is None else parse_version(str(number))

    def _call(self, request: _Request, asked: InferRequest, version: int | None) -> Call:
        headers = request.headers
        force = None
        traceparent = None
        tracestate = None
        for name, value in headers:
            if name == b"x-force-variant":
                force = value.decode("latin-1")
            elif name == b"traceparent":
                traceparent = value if traceparent is None else b""  # two are as good as none
            elif name == b"tracestate":
                tracestate = value
        if force is not None:
            require(self._principal(headers), FORCE)
        trace = None
        if traceparent is not None or self._parts.trace_ratio > 0:
            draw = self._parts.randbytes(DRAW_BYTES)
            trace = parse_traceparent(traceparent, tracestate, draw, self._parts.trace_ratio)
        timeout_ns = asked.timeout_us * 1000
        return Call(
            request=asked,
            arrived_ns=request.arrived_ns,
            headers=dict(reversed(headers)),
            deadline_ns=request.arrived_ns + timeout_ns if timeout_ns else 0,
            version=version,
            force=force,
            trace=trace,
        )

    async def _submit(self, served: Served, call: Call) -> Answer:
        landed: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def reply(answer: Answer) -> None:
            if not landed.done():
                landed.set_result(answer)

        self._parts.pipeline.submit(served, call, reply)
        return await landed

    def _principal(self, headers: Headers) -> Principal:
        secrets = self._parts.pipeline.worker.secrets
        tokens: Iterable[Token] = () if secrets is None else secrets.tokens
        shown = header_values(headers, b"authorization")
        return principal_of(shown[0] if len(shown) == 1 else None, tokens)

    def _writer(self, request: _Request) -> Principal:
        """Who may change the repository; on this port anyone else is simply forbidden."""
        try:
            principal = self._principal(request.headers)
        except Unauthenticated as error:
            message = "Loading and unloading need a bearer token with the scope 'write'."
            raise Forbidden(message) from error
        require(principal, WRITE)
        return principal


def _wrong_method(route: Route, method: str) -> Response | None:
    wanted = METHOD.get(route.action, "GET")
    if method == wanted or (method == "HEAD" and wanted == "GET"):
        return None
    response = json_response({"error": "Method Not Allowed"}, 405)
    response.headers.append((b"allow", b"GET, HEAD" if wanted == "GET" else wanted.encode()))
    return response


def _version_of_alias(served: Served, alias: str) -> int:
    version = served.aliases.get(alias)
    if version is None:
        message = f"Model '{served.plan.model}' has no alias of that name."
        raise NotFound(message)
    return version


def _parameters_of(body: bytes, key: str) -> Any:  # noqa: ANN401 - whatever the caller wrote
    """One member of an optional JSON object."""
    if not body.strip():
        return None
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "The body is not a JSON object."
        raise InvalidRequest(message) from error
    if not isinstance(document, dict):
        message = "The body is not a JSON object."
        raise InvalidRequest(message)
    return document.get(key)
