"""Aside: a thread for what would hold up the event loop, such as a large body."""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class Aside:
    """One thread of a process; work waits its turn, which admission keeps short."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        """Callbacks come back on `loop`."""
        self._loop = loop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tiltyard-aside")

    def start(self, work: Callable[[], _T], done: Callable[[_T], None]) -> None:
        """Do `work`, which must not raise, and call `done` with its result on the loop."""
        self._thread.submit(lambda: self._loop.call_soon_threadsafe(done, work()))

    def close(self) -> None:
        """Finish what was begun; start nothing more."""
        self._thread.shutdown(wait=True, cancel_futures=True)
