"""The process's log: lines on a stream, one for each event, and no flood of the same.

A caller who can make the gateway log something can make it do so a thousand times a second, so
what repeats is let through a few times in each span and then only counted.
"""

import logging
from collections.abc import Callable
from typing import Final, TextIO

BURST: Final = 5
"""Lines of one kind in each span."""
SPAN_S: Final = 10.0
MAX_KINDS: Final = 1_000
QUIET: Final = ("httpx", "httpcore", "uvicorn.error", "uvicorn.access", "asyncio")
"""Libraries that have something to say only when something is wrong."""


def configure(stream: TextIO, now: Callable[[], float], process: str = "") -> None:
    """Send all logging of this process to a stream.

    Args:
        stream: where the lines go.
        now: monotonic seconds.
        process: which of several processes this is; each line says so.
    """
    handler = logging.StreamHandler(stream)
    who = f"[{process}] " if process else ""
    handler.setFormatter(OneLine(f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s"))
    handler.addFilter(NoFlood(now))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class OneLine(logging.Formatter):
    """Control characters in a message are written as escapes; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the parent's name
        """One line for one event, whatever a caller put into it."""
        line = super().formatMessage(record)
        if line.isprintable():
            return line
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class NoFlood(logging.Filter):
    """Lets through `BURST` events of a kind in each span of `SPAN_S`; counts the rest.

    A kind is a logger, a level and an unformatted message. The first event of the next span says
    how many were left out.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """Nothing was seen yet. `now` is in monotonic seconds."""
        super().__init__()
        self._now = now
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write this event."""
        kind = (record.name, record.levelno, str(record.msg))
        now = self._now()
        since, count = self._seen.get(kind, (now, 0))
        if now - since >= SPAN_S:
            if count > BURST:
                record.msg = f"{record.getMessage()} ({count - BURST} more like it were left out)"
                record.args = None
            since, count = now, 0
        if len(self._seen) >= MAX_KINDS:
            self._seen.clear()
        self._seen[kind] = (since, count + 1)
        return count < BURST
