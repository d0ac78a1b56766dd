"""Lanes: where the requests in flight of each version are counted so that the count outlives us.

A lane is a number in this process's vitals. A version has one for as long as it is loaded; all that
find none left share the last.
"""

from gateway.core.models import Key
from gateway.serving.vitals import FIRST_LANE, LANES, vitals


class Lanes:
    """The lanes of one process. All calls come from the event loop."""

    __slots__ = ("_free", "names", "vitals")

    def __init__(self, shared: memoryview | None = None) -> None:
        """Every lane is free.

        Args:
            shared: the process's vitals; private ones if None.
        """
        self.vitals = vitals() if shared is None else shared
        self.names: dict[int, Key] = {}
        self._free = list(range(FIRST_LANE + LANES - 2, FIRST_LANE - 1, -1))

    def take(self, key: Key) -> int:
        """A lane for a version."""
        if not self._free:
            return FIRST_LANE + LANES - 1
        lane = self._free.pop()
        self.names[lane] = key
        return lane

    def give_back(self, lane: int) -> None:
        """The version is closed; its lane is another's only if nothing is in flight there."""
        if self.names.pop(lane, None) is not None and self.vitals[lane] == 0:
            self._free.append(lane)
