"""The OpenAPI document, made from the table of operations and the types that they speak."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from gateway import __version__
from gateway.doors.errors import HTTP_STATUS
from gateway.doors.http.admin_calls import Call, Operation, Query, answer
from gateway.doors.http.admin_documents import Failure
from gateway.doors.http.messages import Response

OPENAPI: Final = "3.1.0"
_PLACE: Final = re.compile(r"\{(\w+)\}")
_REF: Final = "#/components/schemas/{name}"
_KINDS: Final = {"text": "string", "integer": "integer", "flag": "boolean"}
_ETAG: Final = {"description": "the document's ETag", "schema": {"type": "string"}}
_REVISION: Final = {
    "description": "the revision that the answer speaks of",
    "schema": {"type": "integer"},
}


def describe_openapi(
    operations: Callable[[], Sequence[Operation]],
) -> Callable[[Call], Awaitable[Response]]:
    """The operation that answers the document; the table is asked for when it is needed."""

    async def handle(_: Call) -> Response:
        return answer(openapi(operations()))

    return handle


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document."""
    types: list[Any] = [Failure]
    spoken = [kind for row in operations for kind in (row.body, row.answer, row.preview)]
    types += [kind for kind in spoken if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    shapes = dict(zip(map(str, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in operations:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, shapes)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Tiltyard admin API",
            "version": __version__,
            "description": "What is served, and every change of it.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Error": {
                    "description": "Refused or failed, with a sentence that says why.",
                    "content": {"application/json": {"schema": shapes[str(Failure)]}},
                }
            },
        },
    }


def _operation(row: Operation, shapes: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": row.name,
        "summary": row.summary,
        "x-tiltyard-action": None if row.is_open else row.action,
        "x-tiltyard-about": row.subject[0],
        "security": [] if row.is_open else [{"bearer": []}],
        "parameters": [*map(_place, _PLACE.findall(row.path)), *map(_query, row.query)],
        "responses": {"200": _answer(row, shapes), **_failures(row)},
    }
    if not row.is_open and row.method != "GET":
        described["parameters"] += [_condition(name) for name in ("If-Match", "If-None-Match")]
    if row.method == "POST":
        described["parameters"].append(_condition("Idempotency-Key"))
    if row.streams:
        raw = {"schema": {"type": "string", "format": "binary"}}
        body = {"required": True, "content": {"application/octet-stream": raw}}
        described["requestBody"] = body
    if row.body is not None:
        content = {"application/json": {"schema": shapes[str(row.body)]}}
        needed = any(field.required for field in msgspec.structs.fields(row.body))
        described["requestBody"] = {"required": needed, "content": content}
    return described


def _answer(row: Operation, shapes: dict[str, Any]) -> dict[str, Any]:
    if row.answer is None:
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        kinds = [kind for kind in (row.answer, row.preview) if kind is not None]
        shape = shapes[str(kinds[0])]
        if len(kinds) > 1:
            shape = {"anyOf": [shapes[str(kind)] for kind in kinds]}
        content = {"application/json": {"schema": shape}}
    return {
        "description": row.summary,
        "headers": {"ETag": _ETAG, "X-Revision": _REVISION},
        "content": content,
    }


def _failures(row: Operation) -> dict[str, Any]:
    """Every status that an error may bring to this operation."""
    statuses = {str(status) for status in HTTP_STATUS.values()}
    if row.is_open:
        statuses &= {"400", "403", "500"}
    return {status: {"$ref": "#/components/responses/Error"} for status in sorted(statuses)}


def _place(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query(query: Query) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _KINDS[query.kind]}
    if query.many:
        schema = {"type": "array", "items": schema}
    return {
        "name": query.name,
        "in": "query",
        "required": query.required,
        "description": query.summary,
        "schema": schema,
    }


def _condition(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
