"""Cohorts: the requests of one slot of time, where each request is a unit of its own.

Such units need no state, because nothing more is seen of them than one count; but their outcomes
may stay away, and how many did is known once their time is over. So counts are kept by slot, and a
slot is closed for each metric when that metric's time is over for the last of its requests.
"""

import struct
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from gateway.core.evidence import Counts
from gateway.core.studies import Study

FORMAT: Final = 1
"""Of cohorts in the store."""
_KEY: Final = struct.Struct(">IIIQ")
_MARK: Final = b"c"
_SIZE: Final = len(_MARK) + _KEY.size


class Cohort(Struct, array_like=True):
    """Requests of one phase, variant and segment that were told of until `ends_ms`.

    `closed` has the indices of the metrics whose time is over.
    """

    counts: Counts
    ends_ms: int
    closed: list[int]
    format: int = FORMAT


def key_of(study: Study, counts: Counts, accepted_ms: int) -> bytes:
    """The key of a cohort; no unit has such a long one."""
    ends_ms = (accepted_ms // study.slot_ms + 1) * study.slot_ms
    return _MARK + _KEY.pack(counts.phase, counts.variant, counts.segment, ends_ms)


def is_cohort(key: bytes) -> bool:
    """Whether this is the key of a cohort."""
    return len(key) == _SIZE


def cohort_of(key: bytes, study: Study) -> Cohort:
    """One with nothing in it."""
    phase, variant, segment, ends_ms = _KEY.unpack_from(key, len(_MARK))
    return Cohort(Counts(phase, variant, segment, 0, 0, (0,) * study.guards), ends_ms, [])


def add_counts(cohort: Cohort, counts: Counts) -> None:
    """Take in what one parcel said."""
    known = cohort.counts
    events = tuple(
        number + (counts.events[place] if place < len(counts.events) else 0)
        for place, number in enumerate(known.events)
    )
    cohort.counts = Counts(
        known.phase,
        known.variant,
        known.segment,
        known.assigned + counts.assigned,
        known.served + counts.served,
        events,
    )


def cohort_due(study: Study, cohort: Cohort) -> int | None:
    """When the next metric is to be closed, in Unix milliseconds; None if all are."""
    waiting = [plan.due_ms for i, plan in enumerate(study.plans) if i not in cohort.closed]
    return cohort.ends_ms + min(waiting) if waiting else None


def close(study: Study, cohort: Cohort, through_ms: int) -> Iterator[int]:
    """Close the metrics whose time was over; the index of each that was closed by this."""
    for index, plan in enumerate(study.plans):
        if index not in cohort.closed and cohort.ends_ms + plan.due_ms <= through_ms:
            cohort.closed.append(index)
            yield index


def decode_cohort(data: bytes) -> Cohort:
    """Read a cohort back.

    Raises:
        msgspec.DecodeError: it is none, or of another format.
    """
    cohort = _DECODER.decode(data)
    if cohort.format != FORMAT:
        raise msgspec.DecodeError(f"Cohorts of format {cohort.format} are not read here.")
    return cohort


def encode_cohort(cohort: Cohort) -> bytes:
    """A cohort as the store holds it."""
    return _ENCODER.encode(cohort)


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Cohort)
