"""OTLP requests put together of encoded rows, counted and halved, without decoding a record.

`ExportLogsServiceRequest` and `ExportTraceServiceRequest` number their fields alike: a request has
resources (1), each with who speaks (1) and scopes (2), each with what speaks (1) and rows (2).
Requests may be joined: what comes out is one request with all resources.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from gateway.core.otlp.wire import BYTES, Value, bytes_field, fields, key_value, varint

_TAG_ONE: Final = bytes([1 << 3 | BYTES])
_TAG_TWO: Final = bytes([2 << 3 | BYTES])
_EVENT_NAME: Final = 12


def resource_field(attributes: Iterable[tuple[str, Value]]) -> bytes:
    """Who speaks, for `request`."""
    told = b"".join(bytes_field(1, key_value(name, value)) for name, value in attributes)
    return bytes_field(1, told)


def scope_field(name: str, version: str) -> bytes:
    """What speaks, for `request`."""
    return bytes_field(1, bytes_field(1, name.encode()) + bytes_field(2, version.encode()))


def request(resource: bytes, scope: bytes, rows: bytes) -> bytes:
    """A request of one resource and one scope; `rows` are repeated fields of number 2."""
    inner = _TAG_TWO + varint(len(scope) + len(rows)) + scope
    size = len(resource) + len(inner) + len(rows)
    return b"".join((_TAG_ONE, varint(size), resource, inner, rows))


class Row(Struct, frozen=True, gc=False):
    """Where a log record lies in a request, and the fields of its resource and its scope."""

    resource: bytes
    scope: bytes
    start: int
    end: int


def rows_of(body: bytes) -> Iterator[Row]:
    """Every row of a request.

    Raises:
        InvalidRequest: it is no request.
    """
    for number, kind, start, end in fields(body):
        if number == 1 and kind == BYTES:
            yield from _rows_of_resource(body, start, end)


def count(body: bytes, event: bytes) -> int:
    """The log records of a request that tell this event.

    Raises:
        InvalidRequest: it is no request.
    """
    return sum(_tells(body, row, event) for row in rows_of(body))


def pieces(body: bytes, event: bytes, most: int) -> list[tuple[bytes, int]]:
    """Requests of at most so many records of this event each, with their numbers.

    Records of other events stay with the one before.

    Raises:
        InvalidRequest: it is no request.
    """
    cut: list[tuple[list[Row], int]] = [([], 0)]
    for row in rows_of(body):
        rows, told = cut[-1]
        is_told = _tells(body, row, event)
        if is_told and told >= most:
            rows, told = [], 0
            cut.append((rows, told))
        rows.append(row)
        cut[-1] = (rows, told + is_told)
    return [(_request_of(body, rows), told) for rows, told in cut]


def _rows_of_resource(body: bytes, start: int, end: int) -> Iterator[Row]:
    parts = [(number, first, last) for number, _, first, last in fields(body, start, end)]
    resource = b"".join(bytes_field(1, body[first:last]) for n, first, last in parts if n == 1)
    for number, first, last in parts:
        if number == 2:  # noqa: PLR2004 - as the module says
            yield from _rows_of_scope(body, resource, first, last)


def _rows_of_scope(body: bytes, resource: bytes, start: int, end: int) -> Iterator[Row]:
    scope = b""
    for number, _, first, last in fields(body, start, end):
        if number == 1:
            scope = bytes_field(1, body[first:last])
        elif number == 2:  # noqa: PLR2004 - as the module says
            yield Row(resource, scope, first, last)


def _tells(body: bytes, row: Row, event: bytes) -> bool:
    for number, _, start, end in fields(body, row.start, row.end):
        if number == _EVENT_NAME:
            return body[start:end] == event
    return False


def _request_of(body: bytes, rows: list[Row]) -> bytes:
    grouped: dict[tuple[bytes, bytes], list[bytes]] = {}
    for row in rows:
        said = bytes_field(2, body[row.start : row.end])
        grouped.setdefault((row.resource, row.scope), []).append(said)
    return b"".join(request(*who, b"".join(told)) for who, told in grouped.items())
