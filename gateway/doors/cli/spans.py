"""Spans and moments as people type them."""

from datetime import UTC, datetime
from typing import Final

from gateway.core.errors import InvalidRequest, excerpt

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds_of(text: str) -> float:
    """A span such as `15m`, `2h` or `90d`, in seconds.

    Raises:
        InvalidRequest: it is none.
    """
    found = _span(text)
    if found is None:
        message = f"'{excerpt(text)}' is no span; write 15m, 2h or 90d."
        raise InvalidRequest(message)
    return found


def moment_of(text: str, now: float) -> float:
    """A time in UTC seconds: so long ago, or an ISO time, which is UTC if it has no offset.

    Raises:
        InvalidRequest: it is none.
    """
    ago = _span(text)
    if ago is not None:
        return now - ago
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"'{excerpt(text)}' is no time; write 15m, 2h or 2026-01-31T12:00:00Z."
        raise InvalidRequest(message) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _span(text: str) -> float | None:
    number, unit = text[:-1], text[-1:]
    if number.isdecimal() and unit in _UNITS:
        return float(number) * _UNITS[unit]
    return None
