"""The roster: the vitals of every process of this host, in one piece of shared memory.

Slot 0 is control's, slots 1 to N are the workers'. Each slot has two regions that its lives take
in turn, so that what a dead process left can be read while the next one is starting. The
supervisor opens and ends lives; each process writes its own region; everybody reads.
"""

import mmap
import os
from typing import Final

from gateway.serving.vitals import HEARTBEAT, READY, SIZE_BYTES, STARTING, STATE, vitals

LIFE: Final = 5
"""Which life of its slot this is, from 1; 0 while there was none."""
RELIEVED: Final = 6
"""1 once the supervisor has asked this life to end and is going to start the next."""
EXIT_CODE: Final = 7
"""How this life ended, negative for a signal."""
GONE: Final = 3
"""State: the process has ended; the supervisor says so."""
CONTROL: Final = 0
FRESH_NS: Final = 1_000_000_000
"""A loop whose last beat is older has something in its way, or is stopped."""
_TURNS: Final = 2


class Roster:
    """All regions; `lives` of a slot are numbered from 1."""

    __slots__ = ("_memory", "_regions", "slots")

    def __init__(self, memory: mmap.mmap | bytearray, slots: int) -> None:
        """See memory of `size_of(slots)` bytes."""
        self._memory = memory
        whole = memoryview(memory)
        self._regions = [
            vitals(whole[start : start + SIZE_BYTES])
            for start in range(0, size_of(slots), SIZE_BYTES)
        ]
        self.slots = slots

    def region(self, slot: int, life: int) -> memoryview:
        """What a life of a slot writes to; it stands until the life after the next begins."""
        return self._regions[slot * _TURNS + life % _TURNS]

    def life(self, slot: int) -> int:
        """The newest life of a slot, 0 if there was none."""
        turns = self._regions[slot * _TURNS : (slot + 1) * _TURNS]
        return max(int(region[LIFE]) for region in turns)

    def newest(self, slot: int) -> memoryview:
        """The region of the newest life."""
        return self.region(slot, self.life(slot))

    def open(self, slot: int, life: int, now_ns: int) -> None:
        """A life begins: its region is cleared."""
        region = self.region(slot, life)
        for field in range(1, len(region)):
            region[field] = 0
        region[HEARTBEAT] = now_ns
        region[STATE] = STARTING
        region[LIFE] = life

    def end(self, slot: int, life: int, code: int = 0) -> None:
        """A life is over, with that exit code."""
        region = self.region(slot, life)
        region[EXIT_CODE] = code
        region[STATE] = GONE

    def relieve(self, slot: int, life: int) -> None:
        """A life is asked to end, and another will follow."""
        self.region(slot, life)[RELIEVED] = 1

    def is_relieved(self, slot: int, life: int) -> bool:
        """Whether another life or a deputy takes over what this one lets go."""
        return bool(self.region(slot, life)[RELIEVED])

    def is_gone(self, slot: int, life: int) -> bool:
        """Whether that life is over, or so long past that another took its place."""
        region = self.region(slot, life)
        return region[LIFE] != life or region[STATE] == GONE

    def age_ns(self, slot: int, now_ns: int) -> int:
        """Since the newest life's last heartbeat."""
        return now_ns - int(self.newest(slot)[HEARTBEAT])

    def is_serving(self, slot: int, now_ns: int) -> bool:
        """Whether a worker is ready and its loop beats."""
        region = self.newest(slot)
        return region[STATE] == READY and now_ns - int(region[HEARTBEAT]) < FRESH_NS

    def is_first_start(self, slot: int) -> bool:
        """Whether a worker is at the start of its first life, or not even there."""
        life = self.life(slot)
        return life == 0 or (life == 1 and self.newest(slot)[STATE] == STARTING)

    def deputy(self, slot: int, now_ns: int) -> int | None:
        """Which other worker accepts for this one: the next that serves; None if it needs none."""
        if self.is_serving(slot, now_ns):
            return None
        workers = self.slots - 1
        others = ((slot - 1 + step) % workers + 1 for step in range(1, workers))
        return next((other for other in others if self.is_serving(other, now_ns)), None)


def size_of(slots: int) -> int:
    """Bytes of memory that so many slots take."""
    return slots * _TURNS * SIZE_BYTES


def make_memory(slots: int) -> int:
    """A descriptor of fresh shared memory for so many slots."""
    descriptor = os.memfd_create("tiltyard-vitals", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size_of(slots))
    return descriptor


def share(descriptor: int, slots: int) -> Roster:
    """The roster in that memory."""
    return Roster(mmap.mmap(descriptor, size_of(slots)), slots)
