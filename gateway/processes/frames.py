"""Frames: what control and a worker say to each other, and how it lies on the socket.

A frame is a head of five bytes (the format's number, then the body's length, big-endian) and a
body in MessagePack: one of the messages below, as an array that begins with the message's tag.
Both ends are of one installation, and a frame of another format ends the connection, so there is
nothing to translate.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from gateway.core.errors import GatewayError
from gateway.core.models import Key
from gateway.ports import Parcel, Secrets, Update, WorkerReport
from gateway.telemetry import INSTRUMENTS, Attributes, Series

FORMAT: Final = 2
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""A Snapshot holds 8 MiB at most; its manifests and statistics are of that order."""
_HEAD: Final = struct.Struct(">BI")

What: TypeAlias = Literal["pulse", "inputs", "index", "statistics", "load", "unload"]


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """A worker's first words: its slot, the life it is on, and what only our own processes know."""

    slot: int
    life: int
    pid: int
    secret: str


class Terms(Struct, frozen=True, array_like=True, tag=2):
    """Control's answer to `Hello`: whether anybody wants prediction records, and their spans."""

    records: bool
    spans: bool


class Apply(Struct, frozen=True, array_like=True, tag=3):
    """Control hands over a Snapshot with its artifacts."""

    update: Update


class Entrust(Struct, frozen=True, array_like=True, tag=4):
    """Control hands over the secrets."""

    secrets: Secrets


class Ask(Struct, frozen=True, array_like=True, tag=5):
    """Either side asks; `serial` comes back with the answer."""

    serial: int
    what: What
    words: tuple[str | int | None, ...] = ()


class Reply(Struct, frozen=True, array_like=True, tag=6):
    """The answer; `refused` is an error's kind and its sentence."""

    serial: int
    result: Any = None
    refused: tuple[str, str] | None = None


class Standing(Struct, frozen=True, array_like=True, tag=7):
    """A worker says what it serves, whenever that changes; `lanes` name its requests in flight."""

    report: WorkerReport
    lanes: Mapping[int, Key]


class Row(Struct, frozen=True, array_like=True):
    """A `Series` without its instrument, which both ends know by name."""

    name: str
    attributes: Attributes
    value: float
    counts: tuple[int, ...]
    total: float


class Pulse(Struct, frozen=True, array_like=True, tag=8):
    """A worker says what it counted since it started: every second, and when it is asked.

    `shadows` are given when asked for only, by endpoint; they hold samples.
    """

    rows: tuple[Row, ...]
    statistics: list[dict[str, Any]]
    shadows: dict[str, list[dict[str, Any]]] | None = None


class Handed(Struct, frozen=True, array_like=True, tag=9):
    """A worker hands encoded records over."""

    parcel: Parcel


class Offer(Struct, frozen=True, array_like=True, tag=10):
    """A worker hands outcomes over; the answer, under `serial`, says that they are on disk."""

    serial: int
    events: tuple[bytes, ...]
    outcomes: int


Message: TypeAlias = (
    Hello | Terms | Apply | Entrust | Ask | Reply | Standing | Pulse | Handed | Offer
)


class ForeignFrame(Exception):
    """What came is no frame of ours; the connection is of no more use."""


def encode(message: Message) -> bytes:
    """One frame.

    Raises:
        ForeignFrame: it would be longer than anybody reads.
    """
    body = _ENCODER.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ForeignFrame(f"A frame of {len(body)} bytes is longer than {MAX_FRAME_BYTES}.")
    return _HEAD.pack(FORMAT, len(body)) + body


class Splitter:
    """Makes messages of the bytes of one connection, in whatever pieces they come."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        """Nothing came yet."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole now.

        Raises:
            ForeignFrame: another format, a length beyond the bound, or a body that is no message.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD.size:
            number, length = _HEAD.unpack_from(buffer)
            if number != FORMAT or length > MAX_FRAME_BYTES:
                raise ForeignFrame(f"Format {number}, {length} bytes.")
            end = _HEAD.size + length
            if len(buffer) < end:
                return
            body = bytes(buffer[_HEAD.size : end])
            del buffer[:end]
            try:
                message: Message = _DECODER.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ForeignFrame(str(error)) from error
            yield message


def rows_of(collection: list[Series]) -> tuple[Row, ...]:
    """Series as they travel."""
    return tuple(
        Row(series.instrument.name, series.attributes, series.value, series.counts, series.total)
        for series in collection
    )


def series_of(rows: tuple[Row, ...]) -> list[Series]:
    """What travelled, with the instruments; those that are unknown here are left out."""
    return [
        Series(instrument, row.attributes, value=row.value, counts=row.counts, total=row.total)
        for row in rows
        if (instrument := _INSTRUMENTS.get(row.name)) is not None
    ]


def refusal_of(error: GatewayError) -> tuple[str, str]:
    """An error as it travels."""
    return error.kind, str(error)


def error_of(refused: tuple[str, str]) -> GatewayError:
    """What travelled, as the error it was."""
    kind, sentence = refused
    return _ERRORS.get(kind, GatewayError)(sentence)


def _kinds(error: type[GatewayError]) -> Iterator[tuple[str, type[GatewayError]]]:
    yield error.kind, error
    for child in error.__subclasses__():
        yield from _kinds(child)


_INSTRUMENTS: Final = {instrument.name: instrument for instrument in INSTRUMENTS}
_ERRORS: Final = dict(reversed(list(_kinds(GatewayError))))
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Message)
