"""The watch: one clock and one sweep for all connections of a listener.

Two timers for each request would cost more than reading it. So a connection only notes when it
began to wait for what, by a clock that the sweep moves; the sweep looks at every connection a few
times within the shortest deadline, and only while there are any.
"""

import asyncio
import logging
from collections import Counter
from typing import Final, Protocol

from msgspec import Struct

log: Final = logging.getLogger(__name__)

MAX_INTERVAL_S: Final = 0.5
LOOKS: Final = 4
"""Sweeps within the shortest deadline, at least."""
REPORT_S: Final = 10.0
"""Refusals are told in the log at most this often."""


class Bounds(Struct, frozen=True):
    """What one listener allows its callers."""

    header_s: float = 5.0
    """For a head, from its first byte or from a new connection on."""
    body_idle_s: float = 10.0
    """Between two parts of a body; after it a request must come at the least rate, too."""
    write_stall_s: float = 10.0
    """For a caller to read something of an answer."""
    keep_alive_s: float = 75.0
    """Between an answer and the next request."""
    max_body_bytes: int = 64 * 1024 * 1024


class Watched(Protocol):
    """A connection as the watch sees it."""

    def look(self, now: float, elapsed: float) -> None:
        """Compare the deadlines with the clock; `elapsed` is its last step, in seconds."""
        ...


class Watch:
    """Moves the clock and looks at every connection.

    The clock only counts time in which the loop ran: a loop that was held up for a minute has not
    read what came in that minute, and must not blame the callers.

    Attributes:
        bounds: of the listener.
        now: the clock, in seconds.
        short_length: a Content-Length of so few digits is never too large.
        refused: how many requests were refused, by status.
    """

    def __init__(self, bounds: Bounds) -> None:
        """Nothing is connected, and no timer runs."""
        self.bounds = bounds
        self.short_length = len(str(bounds.max_body_bytes)) - 1
        self.now = 0.0
        self.refused: Counter[int] = Counter()
        shortest = min(bounds.header_s, bounds.body_idle_s, bounds.write_stall_s)
        self._interval = min(MAX_INTERVAL_S, shortest / LOOKS, bounds.keep_alive_s)
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._reported: Counter[int] = Counter()
        self._report_from = 0.0

    def add(self, connection: Watched, loop: asyncio.AbstractEventLoop) -> None:
        """Look at a connection from now on."""
        self._watched.add(connection)
        if self._timer is None:
            self._looked = loop.time()
            self._timer = loop.call_later(self._interval, self._sweep, loop)

    def discard(self, connection: Watched) -> None:
        """Forget a connection; the sweep after the last one is the last."""
        self._watched.discard(connection)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        looked = loop.time()
        elapsed = min(looked - self._looked, 2 * self._interval)
        self._looked = looked
        self.now = now = self.now + elapsed
        self._timer = loop.call_later(self._interval, self._sweep, loop) if self._watched else None
        if now >= self._report_from and self.refused != self._reported:
            self._report(now)
        for connection in tuple(self._watched):
            connection.look(now, elapsed)

    def _report(self, now: float) -> None:
        fresh = self.refused - self._reported
        self._reported = self.refused.copy()
        self._report_from = now + REPORT_S
        kinds = ", ".join(f"{count} with {status}" for status, count in sorted(fresh.items()))
        log.warning("refused requests that no application saw: %s", kinds)
