"""Evidence: what is seen of the units of experiments, on its way from workers to tallies.

Workers tell `Sightings` (who was assigned, served, or hit by a guarded event) and `Outcome`s
(what clients report later). Both go through the journal of their host and one stream, in the form
of an `Entry`, and are folded once.
"""

import struct
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

FORMAT: Final = 1
"""Of entries in journals and streams."""
SIGHTING: Final = struct.Struct(">I16sBBHQ")
"""Phase, unit hash, variant and segment by index, event bits, Unix milliseconds."""
SERVED: Final = 1
"""The event bit of a unit that was answered; guard `i` of the document has bit `i + 1`."""
MAX_GUARDS: Final = 15


class Counts(Struct, frozen=True, array_like=True):
    """Units that need no state of their own, because each is one request, since the last parcel.

    `events[i]` counts those with the event of guard `i`.
    """

    phase: int
    variant: int
    segment: int
    assigned: int
    served: int
    events: tuple[int, ...]


class Compared(Struct, frozen=True, array_like=True):
    """What the shadow of an experiment did since the last parcel."""

    phase: int
    variant: int
    compared: int
    disagreed: int
    failed: int


class Sightings(Struct, frozen=True, array_like=True, tag="s"):
    """What one worker saw since its last parcel.

    `units` holds rows of `SIGHTING`: each when a unit is seen for the first time in its phase, and
    again whenever a bit is new. A repeated row changes nothing.
    """

    units: bytes = b""
    counts: tuple[Counts, ...] = ()
    compared: tuple[Compared, ...] = ()


def encode_sightings(sightings: Sightings) -> bytes:
    """What a worker saw, as its parcels hold it."""
    return msgspec.msgpack.encode(sightings)


def decode_sightings(data: bytes) -> Sightings:
    """Read back what a worker saw.

    Raises:
        msgspec.DecodeError: it is nothing of the kind.
    """
    return msgspec.msgpack.decode(data, type=Sightings)


class Outcome(Struct, frozen=True, array_like=True, tag="o"):
    """A later fact about a prediction, with what its signed id says.

    `nonce` and `at_ms` make the prediction unique; `sequence` orders revisions of one fact, the
    highest counts. `observed_ms` is when it happened, as far as the caller said. `scalars` are
    those of the row.
    """

    phase: int
    variant: str
    version: int
    endpoint: str
    unit: bytes
    nonce: bytes
    at_ms: int
    propensity: float
    name: str
    value: float
    row: int = 0
    sequence: int = 0
    observed_ms: int | None = None
    scalars: tuple[float, ...] = ()


class Entry(Struct, frozen=True, array_like=True):
    """What one append to the journal holds; accepted at one moment, in Unix milliseconds."""

    accepted_ms: int
    events: tuple[Sightings | Outcome, ...]
    format: int = FORMAT


def encode_entry(entry: Entry) -> bytes:
    """An entry as journals and streams hold it."""
    return _ENCODER.encode(entry)


def encode_events(events: Sequence[Sightings | Outcome]) -> bytes:
    """Events alone, as they travel to whoever makes an entry of them."""
    return _ENCODER.encode(events)


def enter(accepted_ms: int, events: bytes) -> bytes:
    """The entry of what `encode_events` made, as `encode_entry` would have it."""
    return _ENCODER.encode((accepted_ms, msgspec.Raw(events), FORMAT))


def accepted_of(data: bytes) -> int:
    """When an entry was accepted, in Unix milliseconds; its events are not looked at.

    Raises:
        msgspec.DecodeError: it is no entry.
    """
    return _MOMENTS.decode(data).accepted_ms


def decode_entry(data: bytes) -> Entry:
    """Read an entry back.

    Raises:
        msgspec.DecodeError: it is none, or of another format.
    """
    entry = _DECODER.decode(data)
    if entry.format != FORMAT:
        raise msgspec.DecodeError(f"Entries of format {entry.format} are not read here.")
    return entry


class _Moment(Struct, frozen=True, array_like=True):
    accepted_ms: int


_MOMENTS: Final = msgspec.msgpack.Decoder(_Moment)
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Entry)
