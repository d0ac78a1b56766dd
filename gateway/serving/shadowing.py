"""Shadows: a copy of a request for a variant that never answers.

All that an answer waits for is an append to a bounded queue, which drops and counts; one thread of
low priority runs the copy and compares. Each shadow has a queue of its own and they take turns; one
that hangs is given up, and another thread takes over for the rest. Nothing is tried twice. While
the process is busy nothing is queued at all, so shadows are the first to go.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from heapq import heappush, heapreplace
from typing import Any, Final

import msgspec

from gateway.core.compare import Comparison, ComparisonTally
from gateway.core.endpoints import Recording
from gateway.core.plans import ShadowPlan
from gateway.core.tensors import Tensors
from gateway.ports import Stop
from gateway.serving.findings import Copy, Finding, Work, record_of, run_copy, tally_finding
from gateway.serving.payloads import payload_text
from gateway.serving.pool import Loaded, PoolParts
from gateway.serving.recording import Recorder
from gateway.serving.threads import Run, ThreadLimits, Threads, give_way
from gateway.settings import ShadowSettings
from gateway.telemetry import (
    DROP_REASON,
    ENDPOINT,
    MODEL_VERSION,
    SHADOW_COMPARED,
    SHADOW_DISAGREED,
    SHADOW_SKIPPED,
    VARIANT,
    Attributes,
)

NICENESS: Final = 10
MAX_AT_ONCE: Final = 16
SLICE_NS: Final = 5_000_000
"""After this long a shadow gives way to others, with what it did not get to."""

log: Final = logging.getLogger(__name__)


class _Watch:
    """One shadow of one endpoint, for one version: what waits for it, and what is known of it.

    Asks `Threads` for its turns.
    """

    __slots__ = (
        "hangs", "is_asking", "queue", "run", "shadows", "skipped", "stuck", "tally", "worst"
    )  # fmt: skip

    def __init__(self, shadows: "Shadows") -> None:
        self.shadows = shadows
        self.queue: deque[Work] = deque()
        self.tally = ComparisonTally()
        self.skipped: dict[str, int] = {}
        self.worst: list[tuple[float, int, dict[str, Any]]] = []
        self.is_asking = False
        self.hangs = False
        self.stuck = 0
        self.run: _ShadowRun | None = None

    def next_run(self) -> "_ShadowRun | None":
        """A few copies, without those that waited for too long."""
        works: deque[Work] = deque()
        while self.queue and len(works) < MAX_AT_ONCE:
            work = self.queue.popleft()
            if self.shadows.is_late(work):
                self.shadows.drop(work, "late")
            else:
                works.append(work)
        self.run = _ShadowRun(self, works) if works else None
        return self.run

    def has_more(self) -> bool:
        """Whether copies wait and may be run."""
        return bool(self.queue) and not self.hangs

    def landed(self, run: "_ShadowRun", findings: list[Finding], _: int) -> None:
        """Keep what was found; what there was no time for waits again."""
        self.run = None
        self.hangs = False
        if self.shadows.closed:
            for work in run.works:
                work.loaded.release()
        else:
            self.queue.extendleft(reversed(run.works))
        self.shadows.landed(findings, is_late=run.is_stuck)

    def gave_up(self) -> None:
        """The version hangs: end its run, if its engine can, and drop what waits."""
        self.hangs = True
        if self.run is not None:
            self.run.stop.stop()
        for works in (self.queue, self.run.works if self.run is not None else deque()):
            with suppress(IndexError):
                while True:  # not by its length: the thread that hangs may go on and take one
                    self.shadows.drop(works.popleft(), "hangs")


class _ShadowRun(Run):
    """A few copies in the shadow thread; `works` holds those that it did not come to yet."""

    __slots__ = ("_watch", "stop", "works")

    def __init__(self, watch: _Watch, works: deque[Work]) -> None:
        super().__init__(watch)
        self._watch = watch
        self.works = works
        self.stop = Stop()

    def execute(self) -> list[Finding]:
        """Runs in a thread; never raises."""
        shadows = self._watch.shadows
        now_ns = shadows.now_ns
        findings: list[Finding] = []
        until = now_ns() + SLICE_NS
        while not shadows.closed and (not findings or now_ns() < until):
            try:
                work = self.works.popleft()
            except IndexError:
                break
            findings.append(run_copy(work, now_ns, self.stop))
        return findings


class Shadows:
    """All shadows of this process."""

    def __init__(
        self,
        parts: PoolParts,
        settings: ShadowSettings,
        recorder: Recorder,
        calm: Callable[[], bool] = lambda: True,
    ) -> None:
        """Start idle.

        Args:
            parts: the process's loop, clock and cells.
            settings: bounds.
            recorder: keeps a record of each finding.
            calm: whether the process has room for work that nobody waits for.
        """
        self._settings = settings
        self._cells = parts.cells
        self._recorder = recorder
        self._calm = calm
        self._watches: dict[tuple[str, str, int], _Watch] = {}
        self._serial = 0
        self.closed = False
        self.now_ns = parts.now_ns
        self._threads = Threads(
            parts.loop,
            parts.now_ns,
            ThreadLimits(
                slots=1, spare=settings.spare_threads, stuck_each=1, stuck_s=settings.max_wait_s
            ),
            name="tiltyard-shadow",
            prepare=partial(give_way, NICENESS),
        )

    def offer(self, plan: ShadowPlan, loaded: Loaded | None, copy: Copy, in_flight: int) -> None:
        """Queue a copy if its draw falls in the share, there is room, and the process is calm."""
        if copy.draw >= plan.share:
            return
        watch = self._watch(copy.origin.kind.endpoint, plan)
        reason = self._reason_to_skip(watch, plan, loaded, copy)
        if reason is None and (in_flight >= self._settings.max_busy or not self._calm()):
            reason = "overload"
        if reason is not None or loaded is None:
            self._skip(plan, copy.origin.kind.endpoint, reason or "not_ready")
            return
        loaded.acquire()
        watch.queue.append(Work(copy, plan, loaded, self.now_ns()))
        self._threads.ask(watch)

    def report(self, endpoint: str) -> list[dict[str, Any]]:
        """Tallies, skips and worst samples of an endpoint's shadows."""
        return [
            {
                "shadow": shadow,
                "version": version,
                "tally": msgspec.to_builtins(watch.tally),
                "skipped": dict(watch.skipped),
                "worst": [sample for _, _, sample in sorted(watch.worst, reverse=True)],
            }
            for (name, shadow, version), watch in sorted(self._watches.items())
            if name == endpoint
        ]

    def close(self) -> None:
        """Drop what waits and stop the threads, after the runs that they are at."""
        self.closed = True
        for watch in self._watches.values():
            while watch.queue:
                watch.queue.popleft().loaded.release()
        self._threads.close()

    def is_late(self, work: Work) -> bool:
        """Whether a copy waited for too long."""
        return self.now_ns() - work.queued_ns > self._settings.max_wait_s * 1e9

    def drop(self, work: Work, reason: str) -> None:
        """Count a copy that is not run, and let go of its version."""
        work.loaded.release()
        self._skip(work.plan, work.copy.origin.kind.endpoint, reason)

    def landed(self, findings: list[Finding], *, is_late: bool) -> None:
        """Keep what came back from a thread; of a run that was given up only that it was."""
        for finding in findings:
            if is_late:
                self._tell(finding.work.plan, None)
                self.drop(finding.work, "late")
                continue
            finding.work.loaded.release()
            try:
                self._tally(finding)
                self._recorder.record(record_of(finding))
            except Exception:
                log.exception("what a shadow found could not be kept")

    def _reason_to_skip(
        self, watch: _Watch, plan: ShadowPlan, loaded: Loaded | None, copy: Copy
    ) -> str | None:
        if self.closed:
            return "shutdown"
        if plan.variant.version == copy.origin.kind.version:
            return "same_version"
        if loaded is None or loaded.batcher is None:
            return "not_ready"
        if watch.hangs:
            return "hangs"
        return "queue_full" if len(watch.queue) >= self._settings.max_queued else None

    def _skip(self, plan: ShadowPlan, endpoint: str, reason: str) -> None:
        watch = self._watch(endpoint, plan)
        watch.skipped[reason] = watch.skipped.get(reason, 0) + 1
        labels = (*_labels(endpoint, plan), (DROP_REASON, reason))
        self._cells.counter(SHADOW_SKIPPED, labels).add()

    def _tally(self, finding: Finding) -> None:
        plan, copy = finding.work.plan, finding.work.copy
        watch = self._watch(copy.origin.kind.endpoint, plan)
        watch.tally += tally_finding(finding)
        self._tell(plan, None if finding.comparison is None else finding.comparison.agrees)
        if finding.comparison is None:
            return
        labels = _labels(copy.origin.kind.endpoint, plan)
        self._cells.counter(SHADOW_COMPARED, labels).add()
        if not finding.comparison.agrees:
            self._cells.counter(SHADOW_DISAGREED, labels).add()
            self._keep(watch, finding, finding.comparison)

    def _tell(self, plan: ShadowPlan, agrees: bool | None) -> None:  # noqa: FBT001 - a finding
        """Note for the experiment that asked for this shadow what it found; None: it failed."""
        if plan.study is not None:
            self._recorder.watchman.compared(plan.study, plan.variant.name, agrees=agrees)

    def _keep(self, watch: _Watch, finding: Finding, comparison: Comparison) -> None:
        """Keep the sample if it is among the worst."""
        badness = comparison.max_absolute or 0.0
        if comparison.mismatch is not None:
            badness = float("inf")
        full = len(watch.worst) >= self._settings.samples
        if self._settings.samples == 0 or (full and badness <= watch.worst[0][0]):
            return
        copy = finding.work.copy
        recording = copy.recording
        sample = {
            "prediction_id": copy.origin.prediction_id,
            "comparison": msgspec.to_builtins(comparison),
            "inputs": _text(copy.tensors, recording) if recording.inputs else None,
            "primary": _text(copy.outputs, recording) if recording.outputs else None,
            "shadow": _text(finding.outputs, recording) if recording.outputs else None,
        }
        self._serial += 1
        entry = (badness, self._serial, sample)
        if full:
            heapreplace(watch.worst, entry)
        else:
            heappush(watch.worst, entry)

    def _watch(self, endpoint: str, plan: ShadowPlan) -> _Watch:
        key = (endpoint, plan.variant.name, plan.variant.version)
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(self)
        return watch


def _text(tensors: Tensors, recording: Recording) -> str:
    return payload_text(tensors, recording.redact, recording.max_bytes)


def _labels(endpoint: str, plan: ShadowPlan) -> Attributes:
    return (
        (ENDPOINT, endpoint),
        (VARIANT, plan.variant.name),
        (MODEL_VERSION, plan.variant.version),
    )
