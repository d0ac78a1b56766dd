"""OTLP log records read back as plain data, for tools on this host. Slow: tens of microseconds."""

from collections.abc import Iterator
from struct import unpack_from
from typing import Any, Final

from gateway.core.errors import InvalidRequest
from gateway.core.otlp.requests import rows_of
from gateway.core.otlp.wire import BYTES, Value, fields, read_varint

_SIGN: Final = 1 << 63
_WRAP: Final = 1 << 64

# Fields of a `LogRecord`, and of an `AnyValue`.
_TIME, _SEVERITY, _ATTRIBUTES, _TRACE, _SPAN, _EVENT = 1, 3, 6, 9, 10, 12
_STRING, _BOOL, _INT, _DOUBLE = 1, 2, 3, 4


def records_in(body: bytes) -> Iterator[dict[str, Any]]:
    """The log records of a request, each with time, event, severity, trace and attributes.

    `resource` holds the attributes of who speaks; `time_unix_nano` is when it happened.

    Raises:
        InvalidRequest: it is no request.
    """
    resources: dict[bytes, dict[str, Value]] = {}
    for row in rows_of(body):
        resource = resources.get(row.resource)
        if resource is None:
            resource = resources[row.resource] = _resource(row.resource)
        yield {**_record(body, row.start, row.end), "resource": resource}


def time_of(body: bytes) -> int | None:
    """When the first record of a request happened, in Unix nanoseconds; None without records."""
    for row in rows_of(body):
        for number, _, start, end in fields(body, row.start, row.end):
            if number == _TIME:
                return _fixed64(body, start, end)
    return None


def _record(body: bytes, start: int, end: int) -> dict[str, Any]:
    told: dict[str, Any] = {"time_unix_nano": 0, "event": "", "severity": ""}
    attributes: dict[str, Value] = {}
    for number, kind, first, last in fields(body, start, end):
        if number == _TIME:
            told["time_unix_nano"] = _fixed64(body, first, last)
        elif number == _ATTRIBUTES and kind == BYTES:
            name, value = _pair(body, first, last)
            attributes[name] = value
        elif number in (_TRACE, _SPAN):
            told["trace_id" if number == _TRACE else "span_id"] = body[first:last].hex()
        elif number in (_EVENT, _SEVERITY):
            told["event" if number == _EVENT else "severity"] = _text(body, first, last)
    told["attributes"] = attributes
    return told


def _resource(resource: bytes) -> dict[str, Value]:
    pairs: dict[str, Value] = {}
    for _, _, first, last in fields(resource):
        for number, _, start, end in fields(resource, first, last):
            if number == 1:
                name, value = _pair(resource, start, end)
                pairs[name] = value
    return pairs


def _pair(body: bytes, start: int, end: int) -> tuple[str, Value]:
    name = ""
    value: Value = ""
    for number, _, first, last in fields(body, start, end):
        if number == 1:
            name = _text(body, first, last)
        else:
            value = _value(body, first, last)
    return name, value


def _value(body: bytes, start: int, end: int) -> Value:
    for number, _, first, last in fields(body, start, end):
        if number == _STRING:
            return _text(body, first, last)
        if number == _DOUBLE and last - first == 8:  # noqa: PLR2004 - the width of a double
            (double,) = unpack_from("<d", body, first)
            return float(double)
        if number in (_BOOL, _INT):
            whole, _ = read_varint(body, first, last)
            if number == _BOOL:
                return bool(whole)
            return whole - _WRAP if whole >= _SIGN else whole
    return ""


def _text(body: bytes, start: int, end: int) -> str:
    return body[start:end].decode("utf-8", "replace")


def _fixed64(body: bytes, start: int, end: int) -> int:
    if end - start != 8:  # noqa: PLR2004 - the width of the field
        message = "A time in these bytes is no time."
        raise InvalidRequest(message)
    return int.from_bytes(body[start:end], "little")
