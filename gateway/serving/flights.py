"""Flights: requests between their assignment and their reply."""

from collections.abc import Callable
from typing import TypeAlias

from gateway.core.plans import Assignment
from gateway.serving.calls import Call, Reply
from gateway.serving.jobs import Job, Result
from gateway.serving.live import Served
from gateway.serving.pool import Loaded

Land: TypeAlias = Callable[["Flight", Result], None]


class Flight:
    """One request that was assigned: how it was decided and, as far as it got, what runs it.

    Called with a result it lands: a job's `done`, without another object for it.
    """

    __slots__ = ("assignment", "call", "job", "land", "loaded", "nonce", "reply", "served")

    def __init__(  # noqa: PLR0913, PLR0917 - built in one place, often
        self,
        served: Served,
        call: Call,
        assignment: Assignment,
        nonce: bytes,
        reply: Reply,
        land: Land,
    ) -> None:
        """`nonce` is the request's fresh bytes; `land` takes the flight and its result."""
        self.land = land
        self.served = served
        self.call = call
        self.assignment = assignment
        self.nonce = nonce
        self.reply: Reply | None = reply
        self.loaded: Loaded | None = None
        self.job: Job | None = None

    def __call__(self, result: Result) -> None:
        """The run is over, or never was."""
        self.land(self, result)

    def cancel(self) -> None:
        """Nobody waits for the answer any more: it is not given, and what is queued not run."""
        self.reply = None
        if self.job is not None:
            self.job.cancel()

    def let_go(self) -> None:
        """Give the lease back, and forget the job, which holds this flight in turn."""
        self.job = None
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            loaded.release()
