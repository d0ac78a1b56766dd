"""Jobs: what a request hands to the batcher, and what it gets back."""

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

from msgspec import Struct

from gateway.core.errors import Cancelled, GatewayError
from gateway.core.tensors import Array, Tensors

Result: TypeAlias = list[Array] | GatewayError
"""All outputs in the signature's order, or why there are none."""


log: Final = logging.getLogger(__name__)


class Place(Protocol):
    """Where a job is before it is settled: in a lane, or in a run."""

    def leave(self, job: "Job") -> None:
        """Go on without this job, which is settled."""


Together: TypeAlias = Callable[[list[Any], list[Array]], None]
"""Takes the `done`s of several jobs of one row each, and what one run gave to them in order."""


class Job(Struct, gc=False, eq=False):
    """One request's part of a run.

    `tensors` are those of the request, checked against the signature; `rows` is their first
    dimension. `done` is called exactly once, on the event loop: with the outputs, with why there
    are none, or with what `cancel` was given. `deadline_ns` is monotonic, 0 for none.
    `queue_ns`, `run_ns` and `batch_rows` are filled in before `done`. `cache` says what
    `gateway.serving.caching` made of it; it is empty where the endpoint keeps no answers.

    Where all jobs of a run hold one row and the same `together`, that is called once with their
    `done`s and the outputs of the whole run, in place of each `done`.

    The rest is kept by the batcher. `size` is what the run time follows: rows, or elements where
    rows are of different extents; `bytes` is only known of the latter.

    Not tracked by the garbage collector: settling a job breaks the circle with its caller.
    """

    tensors: Tensors
    rows: int
    done: Callable[[Result], None]
    queued_ns: int
    deadline_ns: int = 0
    together: Together | None = None
    cancelled: bool = False
    size: int = 1
    bytes: int = 0
    place: Place | None = None
    queue_ns: int = 0
    run_ns: int = 0
    batch_rows: int = 0
    cache: str = ""

    @property
    def is_settled(self) -> bool:
        """Whether its caller was answered."""
        return self.done is settled

    def cancel(self, error: GatewayError | None = None) -> None:
        """Take this job away, whose caller left or ran out of time; it alone is concerned.

        `done` is called before this returns, unless it was before: then nothing happens. What runs
        already goes on for those who share the run.
        """
        if self.done is settled:
            return
        done, self.done = self.done, settled
        self.cancelled = True
        if self.place is not None:
            self.place.leave(self)
        answer(done, error or Cancelled("The caller left before the answer was there."))


def settled(_: Result) -> None:
    """Stands in the place of a job's `done` once that was called."""


def answer(done: Callable[[Result], None], result: Result) -> None:
    """Tell one caller; a fault of theirs must not keep their batch-mates from an answer."""
    try:
        done(result)
    except Exception:
        log.exception("a caller could not take its result")


def tell_together(batch: list[Job], outputs: list[Array], rows: int, run_ns: int) -> bool:
    """Tell the callers of a run together, where all of them want that and have one row each."""
    together = batch[0].together
    if together is None or rows != len(batch):
        return False
    dones = [
        job.done
        for job in batch
        if job.together is together and job.rows == 1 and job.done is not settled
    ]
    if len(dones) != rows:
        return False
    for job in batch:
        job.done = settled
        job.run_ns = run_ns
        job.batch_rows = rows
    try:
        together(dones, outputs)
    except Exception:
        log.exception("callers could not take their results")
    return True
