"""Afterwards: work that waits until the answers of a tick have left, a little at a time."""

from asyncio import AbstractEventLoop
from collections.abc import Callable


class Afterwards:
    """Calls a step soon after it was asked for, and again while the step says that more is left."""

    __slots__ = ("_due", "_is_asked", "_loop", "_step")

    def __init__(
        self, loop: AbstractEventLoop, due: Callable[[], bool], step: Callable[[], int]
    ) -> None:
        """Do nothing yet.

        Args:
            loop: where the work is done.
            due: whether there is enough to do for a turn of the loop.
            step: does some of the work and says how much is left.
        """
        self._loop = loop
        self._due = due
        self._step = step
        self._is_asked = False

    def soon(self) -> None:
        """See to it in the next turn of the loop, which first sends what this one wrote."""
        if not self._is_asked and self._due():
            self._is_asked = True
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        self._is_asked = False
        if self._step():
            self.soon()
