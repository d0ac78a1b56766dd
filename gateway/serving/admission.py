"""Admission: who may come in, decided from a request's headers, before its body is read.

Each endpoint has a limit of requests in flight. The limit is a ceiling that falls when the queue
behind it refuses a request and climbs again with every answer, so that under overload requests are
turned away here, where that costs least. While an endpoint is contended no caller holds more than
their share of it, and some room is kept for those who hold nothing yet.

Health, metrics and the admin listener never come here.
"""

from collections.abc import Callable
from typing import Final

from gateway.core.errors import Overloaded, ShareExceeded
from gateway.settings import AdmissionSettings

CONTENDED: Final = 0.5
"""Of its limit in flight, and an endpoint's callers are held to their shares."""
RESERVED: Final = 0.1
"""Of a limit is kept for callers who hold nothing."""
CUT: Final = 0.9
CLIMB: Final = 0.1
"""What each answer adds to a limit that was cut."""
CUT_GAP_NS: Final = 100_000_000
"""One overload is heard once: refusals this close together cut a limit once."""
UNEASY_NS: Final = 1_000_000_000
"""After a cut the process is not calm for so long."""
MIB: Final = 1024 * 1024
MAX_IDLE_GATES: Final = 1024
"""Endpoints that are remembered while nothing of them is in flight."""


class Gate:
    """One endpoint: how much is in flight, of whom, and how much may be."""

    __slots__ = ("callers", "contended", "cut_ns", "in_flight", "limit")

    def __init__(self, limit: int) -> None:
        """Start empty."""
        self.in_flight = 0
        self.callers: dict[str, int] = {}
        self.cut_ns = -CUT_GAP_NS
        self.move(float(limit))

    def move(self, limit: float) -> None:
        """Set the limit, and what follows from it."""
        self.limit = limit
        self.contended = int(limit * CONTENDED)


class Admission:
    """All gates of one process; used on the event loop only. `in_flight` is the sum of them."""

    __slots__ = (
        "_cut_ns",
        "_gates",
        "_max_held",
        "_now_ns",
        "_settings",
        "held_bytes",
        "in_flight",
    )

    def __init__(self, settings: AdmissionSettings, now_ns: Callable[[], int]) -> None:
        """Start with nothing in flight; `now_ns` is a monotonic clock."""
        self.in_flight = 0
        self.held_bytes = 0
        self._max_held = settings.max_held_mb * MIB
        self._settings = settings
        self._now_ns = now_ns
        self._gates: dict[str, Gate] = {}
        self._cut_ns = now_ns() - UNEASY_NS

    @property
    def calm(self) -> bool:
        """Whether there is room for work that nobody waits for, such as shadows."""
        if self.in_flight >= self._settings.max_in_flight * CONTENDED:
            return False
        return self._now_ns() - self._cut_ns >= UNEASY_NS

    def limit(self, endpoint: str) -> int:
        """Requests of an endpoint that may be in flight now."""
        gate = self._gates.get(endpoint)
        return self._settings.max_in_flight if gate is None else int(gate.limit)

    def hold(self, size: int) -> None:
        """Make room for a large body of so many bytes; `let_go` must follow.

        Raises:
            Overloaded: the bodies that are here, or on their way, are as many bytes as may be.
        """
        if self.held_bytes and self.held_bytes + size > self._max_held:
            message = "Too many bytes of requests are on their way; retry later."
            raise Overloaded(message)
        self.held_bytes += size

    def let_go(self, size: int) -> None:
        """The body is gone."""
        self.held_bytes -= size

    def enter(self, endpoint: str, caller: str) -> None:
        """Let a request in; `leave` must follow, whatever becomes of it.

        Args:
            endpoint: as the request names it; it need not exist.
            caller: who is held to a share: the name of a token, or the peer's address.

        Raises:
            Overloaded: the endpoint's limit is reached. Nothing is to be left.
            ShareExceeded: this caller's is; others may enter. Nothing is to be left.
        """
        gate = self._gates.get(endpoint)
        if gate is None:
            gate = self._gates[endpoint] = Gate(self._settings.max_in_flight)
        callers = gate.callers
        held = callers.get(caller, 0)
        if gate.in_flight >= gate.contended:
            _check(gate, held)
        gate.in_flight += 1
        callers[caller] = held + 1
        self.in_flight += 1

    def leave(self, endpoint: str, caller: str, *, refused: bool = False) -> None:
        """Count a request off. `refused`: the queue behind had no room for it."""
        gate = self._gates[endpoint]
        self.in_flight -= 1
        gate.in_flight -= 1
        callers = gate.callers
        held = callers[caller]
        if held > 1:
            callers[caller] = held - 1
        else:
            del callers[caller]
        if refused:
            self._cut(gate)
        elif gate.limit < self._settings.max_in_flight:
            gate.move(min(gate.limit + CLIMB, self._settings.max_in_flight))
        if not gate.in_flight and len(self._gates) > MAX_IDLE_GATES:
            del self._gates[endpoint]

    def _cut(self, gate: Gate) -> None:
        now = self._now_ns()
        if now - gate.cut_ns >= CUT_GAP_NS:
            gate.cut_ns = self._cut_ns = now
            # What was in flight when one was refused is about what the queue takes.
            reached = min(gate.limit, gate.in_flight + 1.0)
            least = min(self._settings.min_in_flight, self._settings.max_in_flight)
            gate.move(max(reached * CUT, least))


def _check(gate: Gate, held: int) -> None:
    """Refuse who would go beyond the limit, or a caller who would go beyond their share.

    The shares of all who hold something add up to the limit, less what is kept for those who hold
    nothing: the first request of a caller is always in their share.
    """
    if gate.in_flight >= int(gate.limit):
        message = "Too many requests are in flight for this endpoint; retry later."
        raise Overloaded(message)
    if held and held >= gate.limit * (1 - RESERVED) / len(gate.callers):
        message = "You have too many requests in flight for this endpoint; retry later."
        raise ShareExceeded(message)
