"""Queueing: the jobs of one version that wait, in lanes of those that may share a run.

Lanes get their turn one after the other, so that no shape keeps another waiting. Whoever gives up
a job takes only that job away; what it leaves in its lane is skipped, and swept out before it is
the greater part.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from gateway.core.tensors import Tensors
from gateway.serving.jobs import Job, Place, settled
from gateway.settings import BatchSettings

Shape: TypeAlias = tuple[tuple[int, ...], ...]
"""All dimensions but the first of each input."""

MIN_SWEEP: Final = 32
MIB: Final = 1024 * 1024
NO_LIMIT: Final = 1 << 60
_NOTHING: Final[Tensors] = {}


class Lane:
    """Jobs that may share a run, in the order of arrival.

    While `is_plain`, each job is one row without a deadline and none has left, so that a batch is
    taken without a look at any of them. `is_listed` is for the batcher, which lists the lanes that
    hold jobs.
    """

    __slots__ = ("_forget", "_left", "_uniform", "is_listed", "is_plain", "jobs", "shape")

    def __init__(
        self, forget: Callable[[Job], None], *, uniform: bool, shape: Shape | None = None
    ) -> None:
        """Start empty.

        Args:
            forget: told of each job that leaves without a run.
            uniform: the size of a job is its rows, so the lane can be plain.
            shape: what its jobs have in common, where the lane is one of several.
        """
        self.shape = shape
        self.jobs: deque[Job] = deque()
        self.is_plain = uniform
        self.is_listed = False
        self._uniform = uniform
        self._forget = forget
        self._left = 0

    def leave(self, job: Job) -> None:
        """Skip this job, which is settled; let go at once of what it holds."""
        job.tensors = _NOTHING
        self.is_plain = False
        self._left += 1
        self._forget(job)
        if self._left >= MIN_SWEEP and self._left * 2 > len(self.jobs):
            waiting = [job for job in self.jobs if job.done is not settled]
            self.jobs.clear()
            self.jobs.extend(waiting)
            self._left = 0

    def take(self, rows: int, size: int, now_ns: int, late: list[Job]) -> list[Job]:
        """The oldest jobs, at most so many rows and so large; a job that is larger comes alone.

        Jobs whose deadline passed are put into `late` instead.
        """
        jobs = self.jobs
        if self.is_plain:
            most = min(rows, size) or 1
            if len(jobs) > most:
                return [jobs.popleft() for _ in range(most)]
            batch = list(jobs)
            jobs.clear()
            return batch
        batch = []
        while jobs:
            job = jobs[0]
            if job.done is settled:
                self._left -= 1
            elif job.deadline_ns and now_ns > job.deadline_ns:
                late.append(job)
            elif batch and (job.rows > rows or job.size > size):
                break
            else:
                batch.append(job)
                rows -= job.rows
                size -= job.size
            jobs.popleft()
        if not jobs:
            self.is_plain = self._uniform
        return batch


class Queue:
    """All that waits for one version: `size`, `rows` and `bytes` of it.

    Jobs without rows count as one row. Where the queue is `uniform`, size is rows, the two others
    are not kept, and all jobs but those of `again` and `large` wait in `main`.
    `again` holds jobs of a shared run that failed, `large` those that are too large for the event
    loop; both come singly.
    """

    __slots__ = ("_lanes", "_ring", "again", "bytes", "large", "main", "rows", "size", "uniform")

    def __init__(self, *, uniform: bool) -> None:
        """`uniform`: the size of a job is its rows, and any may share a run."""
        self.uniform = uniform
        self.size = self.rows = self.bytes = 0
        self.main = Lane(self.forget, uniform=uniform)
        self.again = Lane(self.forget, uniform=False)
        self.large = Lane(self.forget, uniform=False)
        self.again.is_listed = self.large.is_listed = True  # they are asked without the ring
        self._lanes: dict[Shape, Lane] = {}
        self._ring: deque[Lane] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits but what is too large for the loop."""
        return bool(self._ring or self.again.jobs)

    @property
    def jobs(self) -> int:
        """How many wait, and perhaps some that left."""
        return sum(len(lane.jobs) for lane in (self.again, self.large, *self._ring))

    def __iter__(self) -> Iterator[Job]:
        """All that wait, and perhaps some that left."""
        for lane in (self.again, self.large, *self._ring):
            yield from lane.jobs

    def lane_of(self, shape: Shape) -> Lane:
        """Where jobs of this shape wait; it is forgotten when it is empty."""
        lane = self._lanes.get(shape)
        if lane is None:
            lane = self._lanes[shape] = Lane(self.forget, uniform=False, shape=shape)
        return lane

    def put(self, job: Job, lane: Lane) -> None:
        """Queue a job at the end of a lane."""
        self.size += job.size
        if not self.uniform:
            self.rows += job.rows or 1
            self.bytes += job.bytes
        job.place = lane
        lane.jobs.append(job)
        if not lane.is_listed:
            lane.is_listed = True
            self._ring.append(lane)

    def forget(self, job: Job) -> None:
        """A job waits no more."""
        self.size -= job.size
        if not self.uniform:
            self.rows -= job.rows or 1
            self.bytes -= job.bytes

    def take(self, rows: int, size: int, now_ns: int, late: list[Job]) -> list[Job]:
        """The next batch, as `Lane.take` gives it; empty if nothing waits. `board` must follow."""
        if self.again.jobs and (batch := self.again.take(0, 0, now_ns, late)):
            return batch
        ring = self._ring
        while ring:
            lane = ring.popleft()
            batch = lane.take(rows, size, now_ns, late)
            if lane.jobs:
                ring.append(lane)
            else:
                lane.is_listed = False
                if lane.shape is not None:
                    del self._lanes[lane.shape]
            if batch:
                return batch
        return []

    def board(self, batch: list[Job], place: Place | None, now_ns: int) -> tuple[int, int]:
        """Count jobs off that were taken; their rows and size."""
        rows = size = 0
        for job in batch:
            job.place = place
            job.queue_ns = now_ns - job.queued_ns
            rows += job.rows
            size += job.size
        self.size -= size
        if not self.uniform:
            self.rows -= sum([job.rows or 1 for job in batch])
            self.bytes -= sum([job.bytes for job in batch])
        return rows, size


def bounds(settings: BatchSettings, each_ns: float, row_bytes: int) -> tuple[int, int]:
    """How much may wait, in units of size: where there is a crowd, and in any case.

    Args:
        settings: bounds.
        each_ns: how long each unit that waits keeps the next one waiting, 0 if nobody knows.
        row_bytes: of one row where size is rows, else 0.
    """
    most = crowd = float(NO_LIMIT)
    if each_ns > 0:
        most = settings.max_wait_ms * 1e6 / each_ns
        crowd = settings.crowd_wait_ms * 1e6 / each_ns
    if row_bytes:
        most = min(most, settings.max_queued_rows, settings.max_queued_mb * MIB / row_bytes)
    return int(min(crowd, most, NO_LIMIT)), int(min(most, NO_LIMIT))
