"""Lanes: where the requests in flight of each version are counted so that the count outlives us.

A lane is a number in this process's vitals. A version has one for as long as it is loaded; those
that find none left count where nobody looks.
"""

from gateway.core.models import Key
from gateway.serving.vitals import FIRST_LANE, LANES, vitals


class Lanes:
    """The lanes of one process. All calls come from the event loop."""

    __slots__ = ("_free", "_vitals", "names")

    def __init__(self, shared: memoryview | None = None) -> None:
        """Every lane is free.

        Args:
            shared: the process's vitals; private ones if None.
        """
        self.names: dict[int, Key] = {}
        self._vitals = vitals() if shared is None else shared
        self._free = list(range(FIRST_LANE + LANES - 1, FIRST_LANE - 1, -1))

    def take(self, key: Key) -> tuple[memoryview, int]:
        """A lane for a version, and the memory that it lies in."""
        if not self._free:
            return vitals(), FIRST_LANE
        lane = self._free.pop()
        self.names[lane] = key
        return self._vitals, lane

    def give_back(self, memory: memoryview, lane: int) -> None:
        """The version is closed; its lane is another's only if nothing is in flight there."""
        if memory is not self._vitals:
            return
        del self.names[lane]
        if memory[lane] == 0:
            self._free.append(lane)
