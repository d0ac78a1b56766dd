"""Vitals: the few numbers that must outlive a killed process.

They lie in memory that the supervisor may share with a process, as 64-bit signed integers in a
fixed layout, so that whoever is left can read what the dead one had begun. One process writes, with
plain stores; readers see each number whole.

    0  layout version (1)
    1  heartbeat: monotonic nanoseconds of the event loop's last beat
    2  state: 0 starting, 1 ready, 2 draining
    3  records made since the process started
    4  serial of the last record that was handed over
    5  to 7: the supervisor's notes on the process
    8  and on: requests in flight, one lane for each loaded version
"""

from typing import Final

LAYOUT: Final = 1
LANES: Final = 120
"""Versions of a process whose requests in flight are counted; further ones are not."""
SIZE_BYTES: Final = 1024
HEARTBEAT: Final = 1
STATE: Final = 2
RECORDS: Final = 3
HANDED_OVER: Final = 4
FIRST_LANE: Final = 8

STARTING: Final = 0
READY: Final = 1
DRAINING: Final = 2


def vitals(memory: bytearray | memoryview | None = None) -> memoryview:
    """A view of `SIZE_BYTES` as integers, by the layout above; of private memory if none is given.

    A view of fresh memory is marked with the layout's version.
    """
    view = memoryview(bytearray(SIZE_BYTES) if memory is None else memory)[:SIZE_BYTES].cast("q")
    view[0] = LAYOUT
    return view
