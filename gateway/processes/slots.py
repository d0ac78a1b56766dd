"""Slots: where a process has its place, life after life; pure, time is an argument.

A slot is empty until its time has come, then holds a process until that ends. The pause before the
next life doubles with each life that ended early, and is short again after one that lasted.
"""

from dataclasses import dataclass
from typing import Final

FIRST_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 30.0
SETTLED_S: Final = 30.0
"""A life that lasted this long was no failed start."""
WORKERS_SHARE: Final = 0.7
"""Of the time to stop in, after the delay for balancers: what workers may take."""


@dataclass(slots=True)
class Slot:
    """One place. `number` is its slot in the roster; times are monotonic seconds."""

    name: str
    number: int
    pid: int | None = None
    life: int = 0
    due_at: float = 0.0
    born_at: float = 0.0
    early_ends: int = 0
    ending: bool = False
    kill_at: float | None = None

    def is_due(self, now: float) -> bool:
        """Whether a process should be started now."""
        return self.pid is None and now >= self.due_at

    def begin(self, pid: int, now: float) -> None:
        """A process was started."""
        self.pid = pid
        self.born_at = now

    def end(self, now: float) -> float:
        """The process ended; the pause in seconds until the next life.

        One that was asked to end is replaced at once.
        """
        if self.ending or now - self.born_at >= SETTLED_S:
            self.early_ends = 0
        pause = 0.0 if self.ending else min(FIRST_PAUSE_S * 2**self.early_ends, MAX_PAUSE_S)
        if not self.ending:
            self.early_ends = min(self.early_ends + 1, 16)
        self.pid = None
        self.ending = False
        self.kill_at = None
        self.due_at = now + pause
        return pause


def workers_stop_s(stop_s: float, delay_s: float) -> float:
    """What workers may take of the whole time to stop in; the rest is for control."""
    return delay_s + WORKERS_SHARE * (stop_s - delay_s)
