"""Statistics: what a version did in this process, in the terms of the OIP statistics extension.

Counts and nanoseconds only ever grow, so processes add up. Updated on the event loop.
"""

from typing import Any, Final

from gateway.telemetry import Record

MAX_SIZES: Final = 1024
"""Sizes of runs that are told apart: callers choose them, so they are bounded."""


class Duration:
    """How often, and how long altogether in nanoseconds."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        """Start at nothing."""
        self.count = 0
        self.ns = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Add `count` events that took `ns` altogether."""
        self.count += count
        self.ns += ns

    def as_dict(self) -> dict[str, int]:
        """In the extension's words."""
        return {"count": self.count, "ns": self.ns}


class Statistics:
    """Totals of one version."""

    __slots__ = (
        "batches", "cache_hit", "cache_miss", "executions", "fail", "infer", "last_ms", "queue",
        "rows", "success",
    )  # fmt: skip

    def __init__(self) -> None:
        """Start at nothing."""
        self.success = Duration()
        self.fail = Duration()
        self.queue = Duration()
        self.infer = Duration()
        self.cache_hit = Duration()
        self.cache_miss = Duration()
        self.batches: dict[int, Duration] = {}
        self.executions = 0
        self.rows = 0
        self.last_ms = 0

    def answered(self, record: Record) -> None:
        """Count a request that was answered."""
        self.last_ms = record.at_ns // 1_000_000
        success, queue = self.success, self.queue
        success.count += 1
        success.ns += record.latency_ns
        if not record.cached:
            queue.count += 1
            queue.ns += record.queue_ns

    def answered_all(self, records: list[Record]) -> None:
        """Count requests that one run answered."""
        self.last_ms = records[-1].at_ns // 1_000_000
        self.success.add(sum([record.latency_ns for record in records]), len(records))
        self.queue.add(sum([record.queue_ns for record in records]), len(records))

    def failed(self, record: Record) -> None:
        """Count a request that this version could not answer."""
        self.last_ms = record.at_ns // 1_000_000
        self.fail.add(record.latency_ns)

    def ran(self, rows: int, requests: int, run_ns: int) -> None:
        """Count one run that served `requests` requests with `rows` rows altogether."""
        self.executions += 1
        self.rows += rows
        self.infer.add(run_ns * requests, requests)
        size = self.batches.get(rows)
        if size is None and len(self.batches) < MAX_SIZES:
            size = self.batches[rows] = Duration()
        if size is not None:
            size.add(run_ns)

    def as_dict(self, name: str, version: int) -> dict[str, Any]:
        """One element of `model_stats`."""
        unmeasured = {"count": self.infer.count, "ns": 0}
        return {
            "name": name,
            "version": str(version),
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.as_dict(),
                "fail": self.fail.as_dict(),
                "queue": self.queue.as_dict(),
                "compute_input": unmeasured,
                "compute_infer": self.infer.as_dict(),
                "compute_output": unmeasured,
                "cache_hit": self.cache_hit.as_dict(),
                "cache_miss": self.cache_miss.as_dict(),
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": {"count": ran.count, "ns": 0},
                    "compute_infer": ran.as_dict(),
                    "compute_output": {"count": ran.count, "ns": 0},
                }
                for rows, ran in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }
