"""Freezes: whether one holds at a moment, and until when.

Calendars are kept out of it: a week is 10,080 minutes at an offset that stays, so a freeze begins
and ends at the same moment wherever it is read.
"""

from datetime import UTC, datetime
from typing import Final

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.gates import Freeze

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
HOUR: Final = 60
DAY: Final = 24 * HOUR
WEEK: Final = 7 * DAY
EPOCH_MINUTE: Final = 3 * DAY
"""1 January 1970 was a Thursday; minutes of the week count from Monday."""
MAX_OFFSET: Final = 14 * HOUR
_CLOCK: Final = 2
"""Hours and minutes, of two digits each."""


def check_freeze(where: str, freeze: Freeze) -> None:
    """Refuse a freeze that says no time, or two.

    Raises:
        InvalidRequest: with a sentence that begins with `where`.
    """
    once = (freeze.starts, freeze.ends)
    weekly = (freeze.weekly_from, freeze.weekly_until)
    if (None in once) == (None in weekly) or (once + weekly).count(None) != len(once):
        message = (
            f"{where}: give 'starts' and 'ends', or 'weekly_from' and 'weekly_until', "
            "and not something of both."
        )
        raise InvalidRequest(message)
    if None not in once and _moment(where, freeze.ends) <= _moment(where, freeze.starts):
        message = f"{where}: it ends before it starts."
        raise InvalidRequest(message)
    _offset(where, freeze.utc_offset)
    if None in weekly:
        return
    if _minute(where, freeze.weekly_from) == _minute(where, freeze.weekly_until):
        message = f"{where}: 'weekly_from' and 'weekly_until' are the same moment."
        raise InvalidRequest(message)


def held_until(freeze: Freeze, now: float) -> str | None:
    """Until when a freeze holds, in words; None if it does not hold now (UTC seconds).

    Requires: `check_freeze` has passed it.
    """
    where = freeze.name
    if freeze.starts is not None:
        starts, ends = _moment(where, freeze.starts), _moment(where, freeze.ends)
        holds = starts <= now < ends
        return datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d %H:%M UTC") if holds else None
    begin, end = _minute(where, freeze.weekly_from), _minute(where, freeze.weekly_until)
    local = int(now // HOUR) + EPOCH_MINUTE + _offset(where, freeze.utc_offset)
    passed, lasts = (local - begin) % WEEK, (end - begin) % WEEK
    return f"{freeze.weekly_until} ({freeze.utc_offset})" if passed < lasts else None


def _moment(where: str, text: str | None) -> float:
    """UTC seconds of a moment in RFC 3339."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        message = (
            f"{where}: '{excerpt(text)}' is no moment; write it with its offset from UTC, such as "
            "2026-12-24T12:00:00+01:00."
        )
        raise InvalidRequest(message)
    return moment.timestamp()


def _minute(where: str, text: str | None) -> int:
    """The minute of the week, from 0, that `fri 16:00` names."""
    day, _, clock = (text or "").partition(" ")
    minutes = _of_day(clock)
    if day not in DAYS or minutes is None or minutes >= DAY:
        message = f"{where}: '{excerpt(text)}' is no time of a week; write it like 'fri 16:00'."
        raise InvalidRequest(message)
    return DAYS.index(day) * DAY + minutes


def _offset(where: str, text: str) -> int:
    """Minutes ahead of UTC."""
    minutes = _of_day(text[1:])
    if text[:1] not in ("+", "-") or minutes is None or minutes > MAX_OFFSET:
        message = f"{where}: '{excerpt(text)}' is no offset; write it like '+01:00'."
        raise InvalidRequest(message)
    return minutes if text[0] == "+" else -minutes


def _of_day(text: str) -> int | None:
    parts = text.split(":")
    proper = len(parts) == _CLOCK and all(
        len(part) == _CLOCK and part.isascii() and part.isdigit() for part in parts
    )
    if not proper or int(parts[1]) >= HOUR:
        return None
    return int(parts[0]) * HOUR + int(parts[1])
