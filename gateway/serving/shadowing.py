"""Shadows: a copy of a request for a variant that never answers.

All that an answer waits for is an append to a bounded queue, which drops and counts; one thread of
low priority runs the copy and compares. While the process is busy nothing is queued at all, so
shadows are the first to go.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappush, heapreplace
from typing import Any, Final

import msgspec

from gateway.core.assignment import SCALE
from gateway.core.compare import Comparison, ComparisonTally, compare, tally_of
from gateway.core.endpoints import Recording
from gateway.core.errors import EngineFailed, GatewayError
from gateway.core.plans import ShadowPlan
from gateway.core.tensors import Array, Tensors
from gateway.serving.payloads import payload_text
from gateway.serving.pool import Loaded, PoolParts
from gateway.serving.recording import Recorder
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
    Kind,
    Record,
)

NICENESS: Final = 10
MAX_AT_ONCE: Final = 16

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Copy:
    """What a shadow needs of an answered request.

    `origin` is the record of the primary answer. `draw` is a number out of 0..9,999, fresh for
    each request. `recording` says what of it a sample may keep.
    """

    origin: Record
    tensors: Tensors
    outputs: Tensors
    draw: int
    recording: Recording


@dataclass(frozen=True, slots=True)
class Work:
    """A copy on its way through one shadow, which holds a lease on the version."""

    copy: Copy
    plan: ShadowPlan
    loaded: Loaded


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one copy."""

    work: Work
    comparison: Comparison | None
    outputs: Tensors
    run_ns: int


@dataclass(slots=True)
class _Watch:
    """What is known of one shadow of one endpoint, for one version."""

    tally: ComparisonTally = field(default_factory=ComparisonTally)
    skipped: dict[str, int] = field(default_factory=dict)
    worst: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)


class Shadows:
    """All shadows of this process."""

    def __init__(
        self,
        parts: PoolParts,
        settings: ShadowSettings,
        recorder: Recorder,
    ) -> None:
        """Start with one idle thread.

        Args:
            parts: the process's loop, clock and cells.
            settings: bounds.
            recorder: keeps a record of each finding.
        """
        self._parts = parts
        self._settings = settings
        self._cells = parts.cells
        self._recorder = recorder
        self._queue: deque[Work] = deque()
        self._running = False
        self._closed = False
        self._watches: dict[tuple[str, str, int], _Watch] = {}
        self._serial = 0
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="tiltyard-shadow", initializer=_yield_to_others
        )

    def offer(self, plan: ShadowPlan, loaded: Loaded | None, copy: Copy, in_flight: int) -> None:
        """Queue a copy if its draw falls in the share, there is room, and the process is calm."""
        if copy.draw >= plan.share:
            return
        reason = self._reason_to_skip(plan, loaded, copy, in_flight)
        if reason is not None or loaded is None:
            self._skip(plan, copy.origin.kind.endpoint, reason or "not_ready")
            return
        loaded.acquire()
        self._queue.append(Work(copy, plan, loaded))
        if not self._running:
            self._start()

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
        """Drop what waits and stop the thread, after the run that it is at."""
        self._closed = True
        while self._queue:
            self._queue.popleft().loaded.release()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _reason_to_skip(
        self, plan: ShadowPlan, loaded: Loaded | None, copy: Copy, in_flight: int
    ) -> str | None:
        if self._closed:
            return "shutdown"
        if plan.variant.version == copy.origin.kind.version:
            return "same_version"
        if loaded is None or loaded.batcher is None:
            return "not_ready"
        if in_flight >= self._settings.max_busy:
            return "overload"
        return "queue_full" if len(self._queue) >= self._settings.max_queued else None

    def _skip(self, plan: ShadowPlan, endpoint: str, reason: str) -> None:
        watch = self._watch(endpoint, plan)
        watch.skipped[reason] = watch.skipped.get(reason, 0) + 1
        labels = (*_labels(endpoint, plan), (DROP_REASON, reason))
        self._cells.counter(SHADOW_SKIPPED, labels).add()

    def _start(self) -> None:
        if not self._queue or self._closed:
            self._running = False
            return
        self._running = True
        works = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_AT_ONCE))]
        self._thread.submit(self._work, works)

    def _work(self, works: list[Work]) -> None:
        """Runs in the shadow thread."""
        findings = [_run(work, self._parts.now_ns) for work in works if not self._closed]
        self._parts.loop.call_soon_threadsafe(self._landed, works, findings)

    def _landed(self, works: list[Work], findings: list[Finding]) -> None:
        for work in works:
            work.loaded.release()
        for finding in findings:
            try:
                self._tally(finding)
                self._recorder.record(_record_of(finding))
            except Exception:
                log.exception("what a shadow found could not be kept")
        self._start()

    def _tally(self, finding: Finding) -> None:
        plan, copy = finding.work.plan, finding.work.copy
        watch = self._watch(copy.origin.kind.endpoint, plan)
        watch.tally += _tally_of(finding)
        if finding.comparison is None:
            return
        labels = _labels(copy.origin.kind.endpoint, plan)
        self._cells.counter(SHADOW_COMPARED, labels).add()
        if not finding.comparison.agrees:
            self._cells.counter(SHADOW_DISAGREED, labels).add()
            self._keep(watch, finding, finding.comparison)

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
        return self._watches.setdefault(key, _Watch())


def _run(work: Work, now_ns: Callable[[], int]) -> Finding:
    """Run and compare one copy; never raises, whatever the version does."""
    start = now_ns()
    try:
        results, run_ns = _results(work), now_ns() - start
        comparison = compare(work.copy.outputs, results, work.plan.tolerance)
    except GatewayError:
        return Finding(work, None, {}, now_ns() - start)
    except Exception:
        log.exception("a shadow failed in a way that nobody foresaw")
        return Finding(work, None, {}, now_ns() - start)
    return Finding(work, comparison, results, run_ns)


def _results(work: Work) -> dict[str, Array]:
    batcher = work.loaded.batcher
    if batcher is None:
        message = "The version was let go."
        raise EngineFailed(message)
    names = [spec.name for spec in batcher.engine.signature.outputs]
    results = batcher.engine.run(work.copy.tensors, names)
    return dict(zip(names, results, strict=True))


def _tally_of(finding: Finding) -> ComparisonTally:
    if finding.comparison is None:
        return ComparisonTally(errors=1)
    return tally_of(finding.comparison, finding.work.copy.origin.latency_ns, finding.run_ns)


def _record_of(finding: Finding) -> Record:
    """What a shadow did, as a record that points to the primary one."""
    work, origin = finding.work, finding.work.copy.origin
    kind = Kind(
        endpoint=origin.kind.endpoint,
        model=work.loaded.key[0],
        version=work.loaded.key[1],
        digest=work.loaded.digest,
        variant=work.plan.variant.name,
        reason=origin.kind.reason,
        propensity=work.plan.share / SCALE,
        revision=origin.kind.revision,
        shadow=True,
    )
    return Record(
        kind=kind,
        at_ns=origin.at_ns,
        prediction_id="",
        latency_ns=finding.run_ns,
        queue_ns=0,
        run_ns=finding.run_ns,
        rows=origin.rows,
        batch_rows=origin.rows,
        unit_hash=origin.unit_hash,
        request_id=origin.request_id,
        error_type=None if finding.comparison is not None else EngineFailed.kind,
        trace=origin.trace,
        primary_id=origin.prediction_id,
    )


def _text(tensors: Tensors, recording: Recording) -> str:
    return payload_text(tensors, recording.redact, recording.max_bytes)


def _labels(endpoint: str, plan: ShadowPlan) -> Attributes:
    return (
        (ENDPOINT, endpoint),
        (VARIANT, plan.variant.name),
        (MODEL_VERSION, plan.variant.version),
    )


def _yield_to_others() -> None:
    """Let the scheduler prefer every other thread, where it knows threads apart (Linux)."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
