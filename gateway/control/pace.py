"""Pace: how fast a backlog may leave, so that catching up is no burst for the collector."""

from collections.abc import Callable
from typing import Final

_WINDOW_S: Final = 1.0
_LEAST_PAUSE_S: Final = 0.01


class Pace:
    """Bytes per second: a floor, or twice what comes in if that is more."""

    __slots__ = ("_came", "_clock", "_due", "_floor", "_rate", "_since")

    def __init__(self, floor: float, clock: Callable[[], float]) -> None:
        """`floor` in bytes per second; `clock` in monotonic seconds."""
        self._floor = floor
        self._rate = floor
        self._clock = clock
        self._since = self._due = clock()
        self._came = 0

    def came(self, size: int) -> None:
        """Note so many bytes that came in."""
        self._came += size
        elapsed = self._clock() - self._since
        if elapsed >= _WINDOW_S:
            self._rate = max(self._floor, 2 * self._came / elapsed)
            self._since += elapsed
            self._came = 0

    def sent(self, size: int) -> float:
        """Note so many bytes that left; seconds to wait before the next, 0 for a short while."""
        now = self._clock()
        self._due = max(self._due, now) + size / self._rate
        wait = self._due - now
        return wait if wait >= _LEAST_PAUSE_S else 0.0
