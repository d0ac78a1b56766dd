"""Guarded tasks: a loop that should never end is named, watched and started again.

A loop that ends or raises is a bug; it is logged as one, and after a pause the loop goes on, so
that one fault does not silence a part of the gateway for ever. Cancelling is the one clean way out.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

log: Final = logging.getLogger(__name__)

Loop: TypeAlias = Callable[[], Awaitable[None]]

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 10.0
SETTLED_S: Final = 60.0
"""A loop that ran this long starts again after the first pause."""


async def forever(name: str, loop: Loop, *, first_pause_s: float = FIRST_PAUSE_S) -> None:
    """Run a loop again whenever it ends or raises, with back-off; only cancelling ends this."""
    clock = asyncio.get_running_loop().time
    pause_s = first_pause_s
    while True:
        started = clock()
        try:
            await loop()
        except Exception:
            log.exception("The loop '%s' failed; it starts again.", name)
        else:
            log.error("The loop '%s' ended by itself; it starts again.", name)
        if clock() - started >= SETTLED_S:
            pause_s = first_pause_s
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


class Tasks:
    """The eternal tasks of one room; `close` ends them all, latest first."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        """No task runs yet."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, loop: Loop) -> asyncio.Task[None]:
        """Run a loop for ever under this name."""
        task = asyncio.create_task(forever(name, loop), name=name)
        self._tasks.append(task)
        return task

    async def close(self) -> None:
        """Cancel every task and wait until each is gone."""
        while self._tasks:
            task = self._tasks.pop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
