"""Protobuf's wire format, as far as OTLP needs it.

A message is a row of fields, each a tag (number and kind) and a value; rows may be joined as they
are, which is what lets a record be put together of pieces that were encoded once.

Source: Protocol Buffers documentation, "Encoding"; OpenTelemetry protocol 1.x.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, TypeAlias

from gateway.core.errors import InvalidRequest

Value: TypeAlias = str | int | float | bool

MAX_TEXT: Final = 4_096
"""Characters of one attribute."""
VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

MAX_INT: Final = (1 << 63) - 1
_UINT64: Final = (1 << 64) - 1
_DOUBLE: Final = Struct("<d")
_FIXED64: Final = Struct("<Q")
_FIXED32: Final = Struct("<I")
_SMALL: Final = 0x80
_MAX_VARINT_BITS: Final = 63
_CACHED_LENGTHS: Final = 1_024


def varint(number: int) -> bytes:
    """A number as base-128 digits; a negative one as 64 bits of two's complement."""
    number &= _UINT64
    digits = bytearray()
    while number >= _SMALL:
        digits.append(number & 0x7F | _SMALL)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def varint_field(number: int, value: int) -> bytes:
    """A field of an integer, bool or enum."""
    return varint(number << 3 | VARINT) + varint(value)


def fixed64_field(number: int, value: int) -> bytes:
    """A field of an unsigned 64-bit number of fixed width."""
    return varint(number << 3 | FIXED64) + _FIXED64.pack(value)


def fixed32_field(number: int, value: int) -> bytes:
    """A field of an unsigned 32-bit number of fixed width."""
    return varint(number << 3 | FIXED32) + _FIXED32.pack(value)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field of bytes, of text in UTF-8, or of a message."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def clean(text: str, limit: int = MAX_TEXT) -> bytes:
    """Make text fit for the wire: valid UTF-8 without NUL, of at most `limit` characters."""
    cut = text[:limit]
    if cut.isascii() and "\0" not in cut:
        return cut.encode()
    return cut.replace("\0", "\ufffd").encode("utf-8", "replace")


def any_value(value: Value) -> bytes:
    """An `AnyValue`; a number beyond 64 bits is the greatest that there is."""
    if isinstance(value, bool):
        return varint_field(2, value)
    if isinstance(value, str):
        return bytes_field(1, clean(value))
    if isinstance(value, int):
        return varint_field(3, max(min(value, MAX_INT), -MAX_INT))
    return b"\x21" + _DOUBLE.pack(value)


def key_value(name: str, value: Value) -> bytes:
    """A `KeyValue`."""
    return bytes_field(1, name.encode()) + bytes_field(2, any_value(value))


class TextAttribute:
    """An attribute of ever other texts: what stands before a text of each length is kept."""

    __slots__ = ("_known", "_limit", "_name", "_number")

    def __init__(self, number: int, name: str, limit: int = MAX_TEXT) -> None:
        """`number` is that of the message's field of attributes."""
        self._number = number
        self._name = bytes_field(1, name.encode())
        self._limit = limit
        self._known: dict[int, bytes] = {}

    def prefix(self, length: int) -> bytes:
        """Everything before a text of so many bytes."""
        known = self._known.get(length)
        if known is None:
            text = b"\x0a" + varint(length)
            value = b"\x12" + varint(len(text) + length) + text
            size = varint(len(self._name) + len(value) + length)
            known = varint(self._number << 3 | BYTES) + size + self._name + value
            if length < _CACHED_LENGTHS:
                self._known[length] = known
        return known

    def encode(self, text: str) -> bytes:
        """The whole field."""
        # The common case of `clean`, without a call.
        if len(text) <= self._limit and text.isascii() and "\0" not in text:
            content = text.encode()
        else:
            content = clean(text, self._limit)
        known = self._known.get(len(content))
        return (self.prefix(len(content)) if known is None else known) + content


Field: TypeAlias = tuple[int, int, int, int]
"""Number, kind, and where the value begins and ends."""


def fields(content: bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of a message that lies between `start` and `end`, in their order.

    Raises:
        InvalidRequest: it is not protobuf, or is cut short.
    """
    end = len(content) if end is None else end
    while start < end:
        tag, start = read_varint(content, start, end)
        kind = tag & 7
        first = start
        if kind == BYTES:
            length, first = read_varint(content, start, end)
            start = first + length
        elif kind == VARINT:
            _, start = read_varint(content, start, end)
        elif kind == FIXED64:
            start += 8
        elif kind == FIXED32:
            start += 4
        else:
            raise InvalidRequest(_NOT_PROTOBUF)
        if start > end:
            raise InvalidRequest(_NOT_PROTOBUF)
        yield tag >> 3, kind, first, start


def read_varint(content: bytes, start: int, end: int) -> tuple[int, int]:
    """A number and where it ends.

    Raises:
        InvalidRequest: it does not end in time.
    """
    number = shift = 0
    while start < end and shift <= _MAX_VARINT_BITS:
        byte = content[start]
        start += 1
        number |= (byte & 0x7F) << shift
        if byte < _SMALL:
            return number, start
        shift += 7
    raise InvalidRequest(_NOT_PROTOBUF)


_NOT_PROTOBUF: Final = "These bytes are no protobuf message."
