"""Batching: requests of one version share a run when that costs nobody any waiting.

The rule is work-conserving: what is queued runs as soon as a slot is free, and while slots are
busy the queue itself forms the next batch. A fast version runs on the event loop, at the end of the
tick in which its requests came; a slower one in threads, and so does a request that is too large
for the loop. How long runs take is learned from them (`fitting`), and decides where they happen,
how much shares one, and how much may wait.

A batch holds requests of one loaded version whose trailing dimensions are equal; requests of other
shapes wait in lanes of their own, in turn. When a shared run fails, each of its requests is run
alone once, so only the guilty one fails.

Batches are not padded to known sizes: onnxruntime runs mixed sizes as fast as equal ones when it
plans no memory by shape (`adapters.onnx`), and the surplus rows of padding cost up to a third.
"""

import logging
from asyncio import TimerHandle
from collections.abc import Sequence
from typing import Final

from gateway.core.errors import DeadlineExceeded, GatewayError, NotReady, Overloaded
from gateway.ports import Engine
from gateway.serving.fitting import STALL_NS, Pace, Targets
from gateway.serving.jobs import Job, Result, answer, settled, tell_together
from gateway.serving.queueing import MIB, Lane, Queue, bounds
from gateway.serving.runs import BatchRun, Shared, cut
from gateway.serving.statistics import Statistics
from gateway.serving.threads import Threads
from gateway.serving.warming import Timing
from gateway.settings import BatchSettings

GRAIN_S: Final = 0.002
"""Deadlines are looked at so long after they passed, so that a timer serves several."""
WAITING: Final = "The request's time ran out while it waited."
RUNNING: Final = "The request's time ran out while the model ran."
HANGS: Final = "The version does not answer: runs of it hang."

log: Final = logging.getLogger(__name__)


class Batcher:
    """The queue of one loaded version; used on the event loop only.

    `is_inline` says whether requests run on the event loop now.
    """

    __slots__ = (
        "_alarm",
        "_alarm_ns",
        "_hangs",
        "_is_due",
        "_limit",
        "_max_rows",
        "_most",
        "_most_queued",
        "_pace",
        "_queue",
        "_runs",
        "_settings",
        "_shared",
        "_shares_runs",
        "_statistics",
        "_threads",
        "_uniform",
        "engine",
        "is_asking",
        "is_inline",
        "stuck",
    )

    def __init__(  # noqa: PLR0913 - built in one place, from what warming found
        self,
        engine: Engine,
        threads: Threads,
        statistics: Statistics,
        settings: BatchSettings,
        *,
        shares_runs: bool,
        inline_ms: float,
        timings: Sequence[Timing] = (),
    ) -> None:
        """Start with an empty queue.

        Args:
            engine: runs the version.
            threads: slots for what is too slow for the event loop.
            statistics: of the version.
            settings: bounds.
            shares_runs: requests may share a run.
            inline_ms: what a request may take on the event loop; below 0 none runs there.
            timings: what warming found; without any, runs start in threads.
        """
        self.engine = engine
        self.is_asking = False
        self.stuck = 0
        self._threads = threads
        self._statistics = statistics
        self._settings = settings
        self._shares_runs = shares_runs
        self._max_rows = settings.max_rows if shares_runs else 1
        self._shared = Shared(engine, checks_rows=shares_runs)
        self._uniform = self._shared.uniform
        targets = Targets(
            inline_ns=inline_ms * 1e6,
            inline_run_ns=settings.inline_target_ms * 1e6,
            run_ns=settings.target_ms * 1e6,
            jobs=self._max_rows,
        )
        sizes = [(one.rows if self._uniform else one.elements, one.ns) for one in timings]
        self._pace = Pace(targets, sizes)
        self._queue = Queue(uniform=self._uniform)
        self._runs: list[BatchRun] = []
        self._is_due = False
        self.is_inline = self._pace.inline
        self._hangs = False
        self._alarm: TimerHandle | None = None
        self._alarm_ns = 0
        self._bound()

    # What comes in.

    def submit(self, job: Job) -> None:
        """Queue a job; it runs at the end of this tick if a slot is free.

        Requires: its tensors were checked against the signature.

        Raises:
            Overloaded: too much waits already.
            DeadlineExceeded: its deadline passed, or would before its turn came.
            NotReady: the version hangs.
        """
        queue = self._queue
        is_usual = self._uniform and job.rows == 1 and not job.deadline_ns
        if not is_usual:
            self._measure(job)
        if queue.size + job.size > self._limit and not self._is_few(job.size):
            self._refuse()
        queue.put(job, queue.main if is_usual else self._lane_of(job))
        if not self._is_due:
            self._is_due = True
            self._threads.loop.call_soon(self._flush)

    def _measure(self, job: Job) -> None:
        """Fill in the size of a job that is not of the usual kind, and refuse it if that is due."""
        queue = self._queue
        if self._uniform:
            job.size = job.rows or 1
        else:
            settings = self._settings
            job.size, job.bytes = self._shared.weigh(job.tensors)
            full = queue.rows + (job.rows or 1) > settings.max_queued_rows
            if full or queue.bytes + job.bytes > settings.max_queued_mb * MIB:
                self._refuse()
        left_ns = job.deadline_ns - job.queued_ns
        if not job.deadline_ns:
            return
        if left_ns < 0:
            raise DeadlineExceeded(WAITING)
        if queue.size * self._each_ns() > left_ns:
            message = "So much waits for this version that the request's time would run out."
            raise DeadlineExceeded(message)

    def _lane_of(self, job: Job) -> Lane:
        """Where a job that is not of the usual kind waits."""
        queue = self._queue
        if self.is_inline and not self._pace.fits_loop(job.size):
            lane = queue.large
        elif self._uniform:
            lane = queue.main
            lane.is_plain = False
        else:
            lane = queue.lane_of(self._shared.shape_of(job.tensors))
        if job.deadline_ns and (not self.is_inline or lane is queue.large):
            self._watch(job.deadline_ns)
        return lane

    def _is_few(self, size: int) -> bool:
        """Whether no more wait than share a run, so that only the longest wait is too long."""
        queue = self._queue
        return queue.size + size <= self._most_queued and queue.jobs < self._settings.max_rows

    def _refuse(self) -> None:
        """Raise, unless nothing waits: a request larger than a bound is not refused for ever."""
        if self._hangs:
            raise NotReady(HANGS)
        queue = self._queue
        if queue.size:
            rows = queue.size if self._uniform else queue.rows
            message = f"{rows} rows wait for this version already; retry later."
            raise Overloaded(message)

    # What goes out.

    def _flush(self) -> None:
        """Run what is queued: here until it is empty or the tick is long, or in threads."""
        threads = self._threads
        start = threads.now_ns()
        until = start + self._settings.inline_target_ms * 1e6
        while self._queue and self.is_inline and start <= until:
            late: list[Job] = []
            batch = self._queue.take(self._max_rows, self._most, start, late)
            rows, size = self._queue.board(batch, None, start)
            if late:
                self._expire(late, start)
            if not batch:
                break
            is_timed = self._pace.is_curious
            began = threads.work_ns() if is_timed else 0
            result = self._shared.run(batch, rows)
            end = threads.now_ns()
            worked = threads.work_ns() - began if is_timed else 0
            run_ns = end - start
            self._finish(batch, result, rows, run_ns)
            if run_ns >= STALL_NS:  # waiting for something takes no processor time, and the loop
                worked = run_ns
            self._learn(batch, result, (rows, size, run_ns), (worked, end))
            start = threads.now_ns()
        self._is_due = False
        self._go_on()
        if threads.after_flush is not None:
            threads.after_flush()

    def _go_on(self) -> None:
        """See to it that what still waits gets its turn."""
        if not self.is_inline:
            if self.has_more():
                self._threads.ask(self)
            self._is_due = self.is_asking
            return
        if self._queue.large.jobs:
            self._threads.ask(self)
        if self._queue and not self._is_due:
            self._is_due = True
            self._threads.loop.call_soon(self._flush)

    def _finish(self, batch: list[Job], result: Result, rows: int, run_ns: int) -> None:
        """Give out what came of a run."""
        if isinstance(result, GatewayError):
            self._fail(batch, result, rows, run_ns)
            return
        if self._shares_runs and tell_together(batch, result, rows, run_ns):
            return
        parts = (result,) if len(batch) == 1 else cut(result, batch, rows)
        for job, part in zip(batch, parts):  # noqa: B905 - checked by `Shared`, and quicker
            done = job.done
            job.done = settled
            job.run_ns = run_ns
            job.batch_rows = rows
            answer(done, part)

    def _fail(self, batch: list[Job], error: GatewayError, rows: int, run_ns: int) -> None:
        """Answer who failed alone; queue the others again, each to be run by itself once."""
        for job in batch:
            if job.is_settled:
                continue
            if len(batch) > 1:
                self._queue.put(job, self._queue.again)
                continue
            job.run_ns = run_ns
            job.batch_rows = rows
            done, job.done = job.done, settled
            answer(done, error)

    def _learn(
        self,
        batch: list[Job],
        result: Result,
        ran: tuple[int, int, int],
        worked: tuple[int, int],
    ) -> None:
        """Count a run that did not fail, and draw from how long it worked.

        Args:
            batch: what was run.
            result: what came of it.
            ran: rows, size and nanoseconds.
            worked: nanoseconds to learn from, and the time now.
        """
        if isinstance(result, GatewayError):
            return
        rows, size, run_ns = ran
        try:
            self._statistics.ran(rows, len(batch), run_ns)
            if self._pace.ran(size, len(batch), *worked):
                self._bound()
                if self.is_inline is not self._pace.inline:
                    self._move()
        except Exception:  # what waits must go on, whatever becomes of the numbers
            log.exception("nothing could be learned from a run")

    def _move(self) -> None:
        """Run elsewhere from now on: on the event loop or in threads."""
        self.is_inline = inline = self._pace.inline
        log.info("runs of a version move to %s", "the event loop" if inline else "threads")
        if inline:
            self._is_due = False
            self._go_on()
        else:
            self._look()

    # In threads.

    def next_run(self) -> BatchRun | None:
        """A batch for a slot that is free; asked by `Threads`."""
        now = self._threads.now_ns()
        late: list[Job] = []
        queue = self._queue
        batch = queue.large.take(0, 0, now, late)
        if not self.is_inline:
            self._is_due = False
            batch = batch or queue.take(self._max_rows, self._most, now, late)
        run = None
        if batch:
            run = BatchRun(self, self._shared, batch)
            rows, size = queue.board(batch, run, now)
            run.measure(rows, size, self._pace.fit.predict(size))
            self._runs.append(run)
        if late:
            self._expire(late, now)
        return run

    def has_more(self) -> bool:
        """Whether something waits for a slot."""
        return bool(self._queue.large.jobs or (self._queue and not self.is_inline))

    def landed(self, run: BatchRun, result: Result, run_ns: int) -> None:
        """A batch came back from its thread."""
        self._runs.remove(run)
        if self._hangs and run.is_stuck:
            self._hangs = False
            self._bound()
        batch = run.batch
        self._finish(batch, result, run.rows, run_ns)
        ran = (run.rows, run.size, run_ns)
        self._learn(batch, result, ran, (run_ns, self._threads.now_ns()))
        run.batch = []  # its jobs point to the run, and it to them

    def gave_up(self) -> None:
        """The version hangs: answer who waits for it, and refuse who comes, until it is back."""
        self._hangs = True
        self._bound()
        for job in list(self._queue):
            job.cancel(NotReady(HANGS))

    # Deadlines.

    def _watch(self, deadline_ns: int) -> None:
        """Look at the deadlines when this one passes, or earlier."""
        if self._alarm is not None:
            if self._alarm_ns <= deadline_ns:
                return
            self._alarm.cancel()
        self._alarm_ns = deadline_ns
        left_s = max(deadline_ns - self._threads.now_ns(), 0) / 1e9
        self._alarm = self._threads.loop.call_later(left_s + GRAIN_S, self._look)

    def _look(self) -> None:
        """Answer everybody whose time ran out, and watch for the next."""
        self._alarm = None
        now = self._threads.now_ns()
        waiting = list(self._queue)
        running = [job for run in self._runs for job in run.batch]
        for jobs, message in ((waiting, WAITING), (running, RUNNING)):
            for job in jobs:
                if job.deadline_ns and now > job.deadline_ns and not job.is_settled:
                    job.cancel(DeadlineExceeded(message))
        deadlines = [
            job.deadline_ns
            for job in (*waiting, *running)
            if job.deadline_ns and not job.is_settled
        ]
        if deadlines:
            self._watch(min(deadlines))

    def _expire(self, late: list[Job], now_ns: int) -> None:
        """Answer jobs that were taken out of their lane because their time ran out."""
        for job in late:
            self._queue.forget(job)
            job.place = None
            job.queue_ns = now_ns - job.queued_ns
            job.cancel(DeadlineExceeded(WAITING))

    # Bounds.

    def _bound(self) -> None:
        """Draw from the run times how much may share a run and how much may wait."""
        self._most = self._pace.most if self._shares_runs else 0
        row_bytes = self._shared.row_bytes if self._uniform else 0
        self._limit, self._most_queued = bounds(self._settings, self._each_ns(), row_bytes)
        if self._hangs:
            self._limit = self._most_queued = -1

    def _each_ns(self) -> float:
        """How long each unit of size that waits keeps the next one waiting."""
        slots = 1.0 if self.is_inline else self._threads.share()
        return self._pace.each_ns() / slots
