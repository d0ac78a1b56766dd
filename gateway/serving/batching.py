"""Batching: requests of one version share a run when that costs nobody any waiting.

The rule is work-conserving: what is queued runs as soon as a slot is free, and while slots are
busy the queue itself forms the next batch. A fast model runs on the event loop, at the end of the
tick in which its requests came; a slower one runs in a thread, and so does a run that is larger
than what warming timed.

A batch holds requests of one loaded version whose trailing dimensions are equal. When a shared run
fails, each of its requests is run alone once, so only the guilty one fails.
"""

import logging
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from gateway.core.errors import DeadlineExceeded, EngineFailed, GatewayError, Overloaded
from gateway.core.tensors import Array, Tensors
from gateway.ports import Engine
from gateway.serving.statistics import Statistics
from gateway.settings import BatchSettings

Result: TypeAlias = list[Array] | GatewayError
"""All outputs in the signature's order, or why there are none."""
Shape: TypeAlias = tuple[tuple[int, ...], ...]

log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """One request's part of a run.

    `rows` is its first dimension. `done` is called once, on the event loop. `deadline_ns` is
    monotonic, 0 for none; a job that is cancelled or late before it runs is not run. `alone` is set
    on the jobs of a shared run that failed.
    `queue_ns`, `run_ns` and `batch_rows` are filled in before `done`. `cache` says what
    `gateway.serving.caching` made of it; it is empty where the endpoint keeps no answers.
    """

    tensors: Tensors
    rows: int
    done: Callable[[Result], None]
    queued_ns: int
    deadline_ns: int = 0
    cancelled: bool = False
    alone: bool = False
    queue_ns: int = 0
    run_ns: int = 0
    batch_rows: int = 0
    cache: str = ""


class Threads:
    """The threads that slower models share, and the clock that times every run."""

    __slots__ = ("_executor", "loop", "now_ns")

    def __init__(
        self, loop: AbstractEventLoop, executor: ThreadPoolExecutor, now_ns: Callable[[], int]
    ) -> None:
        """Callbacks of `start` come back on `loop`."""
        self.loop = loop
        self._executor = executor
        self.now_ns = now_ns

    def start(self, work: Callable[[], Result], done: Callable[[Result, int], None]) -> None:
        """Run `work` in a thread; `done` gets its result and nanoseconds on the loop."""

        def run() -> None:
            start = self.now_ns()
            result = work()
            self.loop.call_soon_threadsafe(done, result, self.now_ns() - start)

        self._executor.submit(run)

    def close(self) -> None:
        """Wait for what runs, start nothing more."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class Batcher:
    """The queue of one loaded version."""

    __slots__ = (
        "_busy",
        "_flushing",
        "_inline_elements",
        "_outputs",
        "_queue",
        "_queued_rows",
        "_settings",
        "_shares_runs",
        "_statistics",
        "_threads",
        "engine",
    )

    def __init__(  # noqa: PLR0913 - built in one place, from what warming found
        self,
        engine: Engine,
        threads: Threads,
        statistics: Statistics,
        settings: BatchSettings,
        *,
        shares_runs: bool,
        inline_elements: int,
    ) -> None:
        """Start with an empty queue.

        Args:
            engine: runs the version.
            threads: threads for what is too slow for the event loop.
            statistics: of the version.
            settings: bounds.
            shares_runs: requests may share a run.
            inline_elements: a run whose inputs hold no more elements happens on the event loop;
                -1 for none.
        """
        self.engine = engine
        self._threads = threads
        self._statistics = statistics
        self._settings = settings
        self._shares_runs = shares_runs
        self._inline_elements = inline_elements
        self._outputs = [spec.name for spec in engine.signature.outputs]
        self._queue: deque[Job] = deque()
        self._queued_rows = 0
        self._flushing = False
        self._busy = False

    def submit(self, job: Job) -> None:
        """Queue a job; it runs at the end of this tick if a slot is free.

        Raises:
            Overloaded: too many rows, or requests without any, wait already.
        """
        waiting = max(self._queued_rows + job.rows, len(self._queue) + 1)
        if self._queue and waiting > self._settings.max_queued_rows:
            message = f"{self._queued_rows} rows wait for this version already; retry later."
            raise Overloaded(message)
        self._queue.append(job)
        self._queued_rows += job.rows
        if not self._flushing and not self._busy:
            self._flushing = True
            self._threads.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Run what is queued, until it is empty or a batch went to a thread."""
        self._flushing = False
        while self._queue and not self._busy:
            batch = self._next_batch()
            if not batch:
                continue
            if _elements(batch) <= self._inline_elements:
                start = self._threads.now_ns()
                result = self._run(batch)
                self._finish(batch, result, self._threads.now_ns() - start)
            else:
                self._busy = True
                self._start(batch)

    def _start(self, batch: list[Job]) -> None:
        def landed(result: Result, run_ns: int) -> None:
            self._busy = False
            self._finish(batch, result, run_ns)
            self._flush()

        self._threads.start(lambda: self._run(batch), landed)

    def _next_batch(self) -> list[Job]:
        """Take the oldest jobs that may share a run; answer those that are too late."""
        batch: list[Job] = []
        rows = 0
        now = self._threads.now_ns()
        shape: Shape | None = None
        while self._queue:
            job = self._queue[0]
            if job.cancelled or (job.deadline_ns and now > job.deadline_ns):
                self._take()
                self._expire(job)
                continue
            if batch and not self._joins(job, rows, shape):
                break
            shape = shape or _trailing(job.tensors)
            batch.append(self._take())
            job.queue_ns = now - job.queued_ns
            rows += job.rows
            if job.alone or not self._shares_runs:
                break
        return batch

    def _joins(self, job: Job, rows: int, shape: Shape | None) -> bool:
        fits = rows + job.rows <= self._settings.max_rows
        return fits and not job.alone and _trailing(job.tensors) == shape

    def _take(self) -> Job:
        job = self._queue.popleft()
        self._queued_rows -= job.rows
        return job

    def _expire(self, job: Job) -> None:
        message = "The request's time ran out while it waited."
        _answer(job, DeadlineExceeded(message))

    def _run(self, batch: Sequence[Job]) -> Result:
        """Run a batch; called on the loop or in a thread, and never raises."""
        try:
            if len(batch) == 1:
                results = self.engine.run(batch[0].tensors, self._outputs)
            else:
                results = self.engine.run(_joined(batch), self._outputs)
        except GatewayError as error:
            return error.with_traceback(None)  # it would hold the batch, and the batch its caller
        except Exception as error:  # noqa: BLE001 - whatever an engine does costs this batch only
            failed = EngineFailed("The model failed to run on this input.")
            failed.__cause__ = error
            return failed
        if len(results) != len(self._outputs):
            return EngineFailed("The model returned another number of outputs than it has.")
        if self._shares_runs:
            rows = sum(job.rows for job in batch)
            if any(result.shape[:1] != (rows,) for result in results):
                return EngineFailed("The model returned another number of rows than it was given.")
        return results

    def _finish(self, batch: list[Job], result: Result, run_ns: int) -> None:
        if isinstance(result, GatewayError) and len(batch) > 1:
            self._run_alone(batch)
            return
        rows = sum(job.rows for job in batch)
        if not isinstance(result, GatewayError):
            self._statistics.ran(rows, len(batch), run_ns)
        offset = 0
        for job in batch:
            job.run_ns = run_ns
            job.batch_rows = rows
            end = offset + job.rows
            if isinstance(result, GatewayError) or len(batch) == 1:
                _answer(job, result)
            else:
                _answer(job, [output[offset:end] for output in result])
            offset = end

    def _run_alone(self, batch: list[Job]) -> None:
        """Put the jobs of a failed shared run back in front, each to be run by itself once."""
        for job in reversed(batch):
            job.alone = True
            self._queue.appendleft(job)
            self._queued_rows += job.rows


def _answer(job: Job, result: Result) -> None:
    """Tell one caller; a fault of theirs must not keep their batch-mates from an answer."""
    try:
        job.done(result)
    except Exception:
        log.exception("a caller could not take its result")


def _elements(batch: Sequence[Job]) -> int:
    return sum(tensor.size for job in batch for tensor in job.tensors.values())


def _joined(batch: Sequence[Job]) -> dict[str, Array]:
    names = batch[0].tensors
    return {name: np.concatenate([job.tensors[name] for job in batch]) for name in names}


def _trailing(tensors: Tensors) -> Shape:
    return tuple(tensor.shape[1:] for tensor in tensors.values())
