"""The admin door: the table of operations behind the guard, as one ASGI application.

The guard recognises who asks, Starlette's router finds the path, and the one way from here to an
operation asks whether they may do it to the model that it is about, before its query and body are
read within bounds. Every answer, refusals included, leaves through here.
"""

from collections.abc import Mapping
from typing import Final

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from gateway.core.access import require
from gateway.core.errors import NotFound, UnsupportedMedia
from gateway.doors.documents import read_strictly
from gateway.doors.http.admin_calls import AdminParts, Call, Operation, read_query
from gateway.doors.http.admin_guard import Guard
from gateway.doors.http.admin_mlflow import HOOK_PATH, HookDoor
from gateway.doors.http.admin_repeats import Repeats
from gateway.doors.http.admin_routes import OPERATIONS
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import (
    CLOSE,
    JSON,
    Disconnected,
    Message,
    Receive,
    Response,
    Send,
    error_response,
    header_values,
    json_response,
    nothing_more,
    read_body,
    send_response,
)

PRINCIPAL: Final = "tiltyard.principal"
SHIELDS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


def create_admin(parts: AdminParts) -> ASGIApp:
    """The ASGI application of the admin port."""
    repeats = Repeats(parts.clock)
    paths: dict[str, dict[str, Operation]] = {}
    for row in OPERATIONS:
        paths.setdefault(row.path, {})[row.method] = row
    routes = [Route(path, _Path(parts, rows, repeats)) for path, rows in paths.items()]
    router = Router(routes, redirect_slashes=False, default=_nowhere)
    opened = frozenset(row.path for row in OPERATIONS if row.is_open)
    return _Door(Guard(parts, opened), router, HookDoor(parts.mlflow))


class _Door:
    """Admits a request, then routes it; signed webhooks have a way of their own."""

    def __init__(self, guard: Guard, router: Router, hooks: HookDoor) -> None:
        self._guard = guard
        self._hooks = hooks
        self._router = router

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        try:
            if scope["path"] == HOOK_PATH and scope["method"] == "POST":
                await _send(scope, send, await self._hooks.take(scope, receive))
                return
            scope[PRINCIPAL] = await self._guard.admit(scope)
            await self._router(scope, receive, send)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001 - every failure has one way out
            await _send(scope, send, error_response(error))


class _Path:
    """Every operation on one path."""

    def __init__(self, parts: AdminParts, rows: Mapping[str, Operation], repeats: Repeats) -> None:
        self._parts = parts
        self._rows = rows
        self._repeats = repeats

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        method = scope["method"]
        row = self._rows.get("GET" if method == "HEAD" else method)
        if row is None:
            await _send(scope, send, _wrong_method(self._rows))
            return
        principal, path = scope[PRINCIPAL], scope["path_params"]
        if principal is not None:
            models = row.models(self._parts.registry.snapshot, path)
            require(principal, row.action, models, self._parts.denied)
        headers: Headers = scope["headers"]
        body = b"" if row.body is None else await _read(receive, headers, row.max_body)
        call = Call(
            parts=self._parts,
            operation=row,
            principal=principal,
            path=path,
            query=read_query(scope["query_string"], row.query),
            headers=headers,
            document=None if row.body is None else read_strictly(body or b"{}", row.body),
            receive=receive if row.streams else nothing_more,
        )
        if row.body is not None:
            # It may name a further model, whether or not anything is to be changed.
            call.permit(self._parts.registry.snapshot)
        if row.method == "POST":
            response = await self._repeats.once(call, (_asked(scope), body), row.handle)
        else:
            response = await row.handle(call)
        await _send(scope, send, response)


async def _read(receive: Receive, headers: Headers, most: int) -> bytes:
    """A JSON body; a browser cannot send one to us without asking first.

    No body is as good as an empty object, whatever media type an empty one is said to have.
    """
    body = await read_body(receive, headers, most)
    stated = header_values(headers, b"content-type")
    media = stated[0].lower().replace(b" ", b"") if len(stated) == 1 else b""
    if body and media not in (JSON[1], JSON[1] + b";charset=utf-8"):
        message = "Send JSON with 'Content-Type: application/json'."
        raise UnsupportedMedia(message)
    return body


def _asked(scope: Message) -> str:
    """Path and query: a dry run is another request than the run."""
    query: bytes = scope["query_string"]
    return f"{scope['path']}?{query.decode('latin-1')}"


async def _nowhere(_scope: Message, _receive: Receive, _send: Send) -> None:
    message = "There is nothing at this path; /admin/v1/openapi.json lists what there is."
    raise NotFound(message)


def _wrong_method(rows: Mapping[str, Operation]) -> Response:
    allowed = ", ".join(sorted({*rows, "HEAD"} if "GET" in rows else rows))
    refused = json_response({"error": f"This path takes {allowed}."}, _WRONG_METHOD)
    refused.headers.append((b"allow", allowed.encode()))
    return refused


async def _send(scope: Message, send: Send, response: Response) -> None:
    response = Response(response.status, response.body, [*response.headers, *SHIELDS])
    refused_unread = response.status >= _REFUSED and scope["method"] not in ("GET", "HEAD")
    if refused_unread and CLOSE not in response.headers:
        response.headers.append(CLOSE)
    await send_response(send, response, with_body=scope["method"] != "HEAD")


_REFUSED: Final = 400
_WRONG_METHOD: Final = 405
