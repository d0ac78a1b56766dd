"""The inference door: Open Inference Protocol v2 and V1 predict over raw ASGI.

One callable, no framework: an inference is read, decoded, submitted and answered; the rest are
small documents. It decides nothing: names, versions and rights are someone else's to know.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.core.access import Principal, require
from gateway.core.errors import (
    Forbidden,
    InvalidRequest,
    NotReady,
    Overloaded,
    Throttled,
    Unauthenticated,
    Unsupported,
)
from gateway.core.models import parse_version
from gateway.core.principals import Action
from gateway.doors.http.desk import Desk
from gateway.doors.http.documents import model_config, model_metadata, server_metadata
from gateway.doors.http.exchange import Exchange
from gateway.doors.http.inference_head import Head, Headers
from gateway.doors.http.messages import (
    CLOSE,
    Disconnected,
    Message,
    Receive,
    Response,
    Send,
    collect,
    error_response,
    json_response,
    read_body,
    send_response,
)
from gateway.doors.http.outcomes import OutcomeDesk
from gateway.doors.http.requests import Requests
from gateway.doors.http.routes import METHOD, Route, route_of
from gateway.ports import Repository

OPEN: Final = frozenset({"alive", "live", "ready", "model_ready", "v1_model"})
"""What anybody may ask for, whatever `http.auth` says: health."""
SELF_GUARDED: Final = frozenset({"infer", "predict", "outcomes", "load", "unload"})
"""What says itself who may."""
LEFT_LOOK_S: Final = 0.05
"""Whether the caller of a request left is looked at when its answer takes longer than this."""


@dataclass(frozen=True, slots=True)
class DoorParts:
    """What the door needs of its process."""

    desk: Desk
    repository: Repository
    outcomes: OutcomeDesk
    requests: Requests
    max_batch_rows: int


@dataclass(slots=True)
class _Request:
    """One HTTP request, as far as an answer needs it."""

    headers: Headers
    receive: Receive
    route: Route
    peer: str


class InferenceDoor:
    """The ASGI callable of the inference port."""

    def __init__(self, parts: DoorParts) -> None:
        """Answer for one process."""
        self._parts = parts
        self._desk = parts.desk
        self._worker = parts.desk.pipeline.worker
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
            "infer": self._exchange,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "v1_models": self._models,
            "v1_model": self._model_ready,
            "predict": self._exchange,
            "outcomes": self._outcomes,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        clock = self._desk.clock
        arrived_ns = clock.monotonic_ns()
        method: str = scope["method"]
        route = Route("unknown")
        try:
            route = route_of(scope["raw_path"])
            if self._desk.needs_token and route.action not in OPEN | SELF_GUARDED:
                self._desk.principal(Head.of(scope["headers"]))
            response = _wrong_method(route, method)
            if response is None:
                request = _Request(scope["headers"], receive, route, peer_of(scope))
                response = await self._actions[route.action](request)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001 - every failure has one way out
            response = error_response(error)
        if self._worker.stopping and CLOSE not in response.headers:
            response.headers.append(CLOSE)
        await send_response(send, response, with_body=method != "HEAD")
        took_ns = clock.monotonic_ns() - arrived_ns
        scheme = scope.get("scheme", "http")
        self._parts.requests.answered(method, route.action, response.status, took_ns, scheme)

    async def _alive(self, _: _Request) -> Response:
        return json_response({"status": "alive"})

    async def _server(self, _: _Request) -> Response:
        return json_response(server_metadata())

    async def _live(self, _: _Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: _Request) -> Response:
        ready = self._worker.ready
        return json_response({"live": True, "ready": ready}, 200 if ready else 503)

    async def _models(self, _: _Request) -> Response:
        return json_response({"models": sorted(self._worker.live.endpoints)})

    async def _model(self, request: _Request) -> Response:
        route = request.route
        served = self._desk.pipeline.find(route.name, route.version)
        return json_response(model_metadata(route.name, served, route.version))

    async def _config(self, request: _Request) -> Response:
        route = request.route
        served = self._desk.pipeline.find(route.name, route.version)
        rows = self._parts.max_batch_rows
        return json_response(model_config(route.name, served, route.version, rows))

    async def _model_ready(self, request: _Request) -> Response:
        try:
            self._desk.pipeline.find(request.route.name, request.route.version)
        except NotReady:
            return json_response({"name": request.route.name, "ready": False}, 503)
        return json_response({"name": request.route.name, "ready": True})

    async def _stats(self, _: _Request) -> Response:
        return json_response({"model_stats": await self._parts.repository.statistics(None, None)})

    async def _model_stats(self, request: _Request) -> Response:
        route = request.route
        served = self._desk.pipeline.find(route.name, route.version)
        rows = await self._parts.repository.statistics(served.plan.model, route.version)
        for row in rows:
            row["name"] = route.name
        return json_response({"model_stats": rows})

    async def _exchange(self, request: _Request) -> Response:
        loop = asyncio.get_running_loop()
        landed: asyncio.Future[Response] = loop.create_future()

        def respond(response: Response) -> None:
            if not landed.done():
                landed.set_result(response)

        exchange = Exchange(self._desk, request.route, Head.of(request.headers), respond)
        try:
            exchange.open(request.peer)
        except (Overloaded, Throttled) as error:
            exchange.rejected(error)
            raise
        try:
            body = await collect(request.receive, self._desk.limits.body_bytes)
        except BaseException:
            exchange.cancel()
            raise
        exchange.take(body)
        if landed.done():
            return landed.result()
        leaving: list[asyncio.Task[None]] = []

        def look() -> None:
            leaving.append(loop.create_task(_give_up(landed, exchange, request.receive)))

        timer = loop.call_later(LEFT_LOOK_S, look)
        try:
            return await landed
        finally:
            timer.cancel()
            for task in leaving:
                task.cancel()

    async def _index(self, request: _Request) -> Response:
        body = await read_body(request.receive, request.headers, self._desk.limits.json_bytes)
        ready_only = bool(_parameters_of(body, "ready"))
        entries = await self._parts.repository.index()
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

    async def _outcomes(self, request: _Request) -> Response:
        return await self._parts.outcomes.take(Head.of(request.headers), request.receive)

    async def _version_parameter(self, request: _Request) -> int | None:
        """The version that a load or unload names, as a parameter; None for the model's whole."""
        body = await read_body(request.receive, request.headers, self._desk.limits.json_bytes)
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

    def _writer(self, request: _Request) -> Principal:
        """Who may change the repository; on this port anyone else is simply forbidden."""
        try:
            principal = self._desk.principal(Head.of(request.headers))
        except Unauthenticated as error:
            message = "Loading and unloading need a bearer token that may promote this model."
            raise Forbidden(message) from error
        require(principal, Action.PROMOTE, {request.route.name})
        return principal


def _wrong_method(route: Route, method: str) -> Response | None:
    wanted = METHOD.get(route.action, "GET")
    if method == wanted or (method == "HEAD" and wanted == "GET"):
        return None
    response = json_response({"error": "Method Not Allowed"}, 405)
    response.headers.append((b"allow", b"GET, HEAD" if wanted == "GET" else wanted.encode()))
    return response


def peer_of(scope: Message) -> str:
    """The address that a request came from, empty if the server does not know it."""
    client = scope.get("client")
    return client[0] if client else ""


async def _give_up(landed: asyncio.Future[Response], exchange: Exchange, receive: Receive) -> None:
    """Give an exchange up once its caller has left."""
    await receive()
    exchange.cancel()
    if not landed.done():
        landed.set_exception(Disconnected())


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
