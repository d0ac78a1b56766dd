"""Living: what control and workers have in common between their birth and their end."""

import asyncio
import os
import signal
import threading
import time
from typing import Final

from gateway.processes.birth import Birth
from gateway.processes.roster import Roster
from gateway.serving.vitals import HEARTBEAT, STATE

BEAT_S: Final = 0.1
STEADY_BEAT_S: Final = 0.25
"""While nothing changes."""
FAILED_TO_STOP: Final = 1


def beat(roster: Roster, birth: Birth, state: int) -> None:
    """Say that the event loop turns, and what this process is at."""
    region = roster.region(birth.slot, birth.life)
    region[HEARTBEAT] = time.monotonic_ns()
    region[STATE] = state


def told_to_stop(birth: Birth) -> asyncio.Event:
    """Set by SIGTERM, or when the supervisor is gone."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()

    def orphaned() -> None:
        loop.remove_reader(birth.lifeline)
        stopping.set()

    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(birth.lifeline, orphaned)
    return stopping


def leave_within(seconds: float) -> None:
    """End this process as it is when it has not ended by itself by then."""
    deadline = threading.Timer(seconds, os._exit, args=(FAILED_TO_STOP,))
    deadline.daemon = True
    deadline.start()
