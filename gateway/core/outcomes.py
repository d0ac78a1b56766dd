"""Outcomes as callers report them: from a body to evidence, or to a sentence for each that is not.

An outcome names the prediction that it is about by its signed id. The id says all that is needed to
credit it, so nothing is looked up: one that was forged, altered or is too old is refused here, and
what is true but fits no experiment is found out when it is folded.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from math import isfinite
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.core.errors import InvalidRequest, TooLarge, excerpt
from gateway.core.evidence import Outcome, encode_events
from gateway.core.models import MAX_NAME, is_name
from gateway.core.predictions import MAX_ROWS, PredictionFacts, Signer

MAX_ITEMS: Final = 10_000
"""Outcomes of one body."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""Of one body, decompressed."""
MAX_ID: Final = 2_048
"""Characters; the longest id that can be issued has fewer."""
MAX_ROW: Final = 10**6
MAX_SEQUENCE: Final = 2**53 - 1
"""What every reader of JSON keeps exact."""
EVENTS_OF_ENTRY: Final = 500
"""Outcomes that become one entry of the journal; a longer body becomes several."""
AHEAD_MS: Final = 60_000
"""By so much may clocks differ."""
_MAX_BREAKS: Final = 16 * MAX_ITEMS
"""Commas or lines of a body that is read item by item because one of them is wrong."""
_MAX_ENDS: Final = 2 * MAX_ITEMS
"""Closing braces of any body; nothing that can be accepted has more than one."""

Cause: TypeAlias = Literal["malformed", "forged", "expired"]
CAUSES: Final[tuple[Cause, ...]] = ("malformed", "forged", "expired")


class Reported(Struct, gc=False, forbid_unknown_fields=True):
    """One outcome as it was sent. `time` is RFC 3339 with an offset, or Unix seconds."""

    prediction_id: Annotated[str, Meta(max_length=MAX_ID)]
    metric: str
    value: float | bool
    row: Annotated[int, Meta(ge=0, le=MAX_ROW)] = 0
    sequence: Annotated[int, Meta(ge=0, le=MAX_SEQUENCE)] = 0
    time: float | Annotated[datetime, Meta(tz=True)] | None = None


class Refused(Struct, frozen=True):
    """Why the outcome at this place of the body, counted from 0, was not accepted."""

    index: int
    cause: Cause
    error: str


class Checked(Struct, frozen=True):
    """What became of a body, in its order."""

    accepted: list[Outcome]
    refused: list[Refused]


def read_body(body: bytes, *, lines: bool) -> Sequence[Reported | str]:
    """The outcomes of a body; a sentence in the place of one that cannot be read.

    Args:
        body: a JSON object or a list of them; with `lines`, an object on each line, blank ones
            passed over.
        lines: whether the body is newline-delimited JSON.

    Raises:
        TooLarge: there are more than `MAX_ITEMS`.
        InvalidRequest: this is no JSON, or there is nothing in it.
    """
    if not body.strip():
        raise InvalidRequest(_NOTHING)
    if body.count(b"}") > _MAX_ENDS:  # before anything is made of it
        raise TooLarge(_TOO_MANY)
    items: Sequence[Reported | str]
    try:
        items = _read_whole(body, lines=lines)
    except _UNREADABLE:
        pieces = list(_pieces(body, lines=lines))
        if len(pieces) > MAX_ITEMS:  # before so many errors are made into sentences
            raise TooLarge(_TOO_MANY) from None
        items = [_read_one(piece) for piece in pieces]
    if len(items) > MAX_ITEMS:
        raise TooLarge(_TOO_MANY)
    if not items:
        raise InvalidRequest(_NOTHING)
    return items


class Checker:
    """Judges the outcomes of one body."""

    __slots__ = ("_facts", "_max_age_ms", "_names", "_now_ms", "_signer")

    def __init__(self, signer: Signer, now_ms: int, max_age_ms: int) -> None:
        """Judge as of now, in Unix milliseconds; predictions older than the age are expired."""
        self._signer = signer
        self._now_ms = now_ms
        self._max_age_ms = max_age_ms
        # What one body repeats.
        self._facts: dict[str, PredictionFacts] = {}
        self._names: set[str] = set()

    def check(self, items: Sequence[Reported | str]) -> Checked:
        """Make evidence of what `read_body` gave."""
        accepted: list[Outcome] = []
        refused: list[Refused] = []
        for index, item in enumerate(items):
            try:
                accepted.append(self._outcome(item))
            except _Refusal as refusal:
                refused.append(Refused(index, refusal.cause, str(refusal)))
        return Checked(accepted, refused)

    def _outcome(self, item: Reported | str) -> Outcome:
        if isinstance(item, str):
            raise _Refusal("malformed", item)
        facts = self._facts.get(item.prediction_id) or self._read_id(item.prediction_id)
        name, value, row = item.metric, float(item.value), item.row
        if name not in self._names:
            self._admit(name)
        if not isfinite(value):
            raise _Refusal("malformed", "The value is not a finite number.")
        rows = len(facts.scalars)
        if 0 < rows < MAX_ROWS and row >= rows:  # with more rows the id holds the first of them
            raise _Refusal("malformed", f"Row {row} is not there: the prediction has {rows}.")
        return Outcome(
            phase=facts.phase,
            variant=facts.intended or facts.variant,
            version=facts.version,
            endpoint=facts.endpoint,
            unit=facts.unit_hash,
            nonce=facts.nonce,
            at_ms=facts.at_ms,
            propensity=facts.propensity,
            name=name,
            value=value,
            row=row,
            sequence=item.sequence,
            observed_ms=None if item.time is None else self._moment(item.time),
            scalars=facts.scalars[row] if row < rows else (),
        )

    def _read_id(self, prediction_id: str) -> PredictionFacts:
        try:
            facts = self._signer.read(prediction_id)
        except InvalidRequest as error:
            raise _Refusal("forged", str(error)) from None
        if facts.at_ms < self._now_ms - self._max_age_ms:
            days = self._max_age_ms / 86_400_000
            raise _Refusal("expired", f"The prediction is older than {days:g} days.")
        if facts.at_ms > self._now_ms + AHEAD_MS:
            raise _Refusal("expired", "The prediction is from the future; a clock is wrong.")
        self._facts[prediction_id] = facts
        return facts

    def _admit(self, name: str) -> None:
        if not is_name(name):
            message = (
                f"'{excerpt(name)}' cannot name a metric: use 1 to {MAX_NAME} letters, digits, "
                "'.', '_' or '-', starting with a letter or digit, without '..'."
            )
            raise _Refusal("malformed", message)
        self._names.add(name)

    def _moment(self, time: float | datetime) -> int:
        seconds = time if isinstance(time, float) else time.timestamp()
        if not 0 <= seconds <= (self._now_ms + AHEAD_MS) / 1000:
            message = "The time must be between 1970 and now; a number is in seconds."
            raise _Refusal("malformed", message)
        return round(seconds * 1000)


def events_of(outcomes: Sequence[Outcome]) -> tuple[bytes, ...]:
    """Outcomes as they travel to the journal, encoded, so many together as make one entry."""
    starts = range(0, len(outcomes), EVENTS_OF_ENTRY)
    return tuple(encode_events(outcomes[start : start + EVENTS_OF_ENTRY]) for start in starts)


class _Refusal(Exception):
    """Of one outcome."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


def _read_whole(body: bytes, *, lines: bool) -> Sequence[Reported]:
    """Every item at once, which is how most bodies are read."""
    if lines:
        return _ONE.decode_lines(body)
    if body.lstrip()[:1] == b"{":
        return [_ONE.decode(body)]
    return _LIST.decode(body)


def _pieces(body: bytes, *, lines: bool) -> Iterator[bytes | Raw]:
    """The items of a body of which one is wrong, unread."""
    if body.count(b"\n" if lines else b",") > _MAX_BREAKS:
        raise TooLarge(_TOO_MANY)
    if lines:
        yield from (line for line in body.split(b"\n") if line.strip())
    elif body.lstrip()[:1] == b"[":
        try:
            yield from _RAW.decode(body)
        except _UNREADABLE as error:
            message = f"The body is not JSON: {excerpt(str(error), _MAX_REASON)}."
            raise InvalidRequest(message) from error
    else:
        yield body


def _read_one(piece: bytes | Raw) -> Reported | str:
    try:
        return _ONE.decode(piece)
    except _UNREADABLE as error:
        return f"The outcome cannot be read: {excerpt(str(error), _MAX_REASON)}."


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_MAX_REASON: Final = 120
_NOTHING: Final = "There is no outcome in the body."
_TOO_MANY: Final = f"One body holds at most {MAX_ITEMS} outcomes; send several."
_ONE: Final = msgspec.json.Decoder(Reported)
_LIST: Final = msgspec.json.Decoder(list[Reported])
_RAW: Final = msgspec.json.Decoder(list[Raw])
