from typing import Any

import pytest

from gateway.core.compare import ComparisonTally
from gateway.ports import EndpointReport, VersionReport, WorkerReport
from gateway.processes.merging import (
    added_shadows,
    added_statistics,
    folded,
    merged_report,
)
from gateway.serving.statistics import Statistics
from gateway.telemetry import ACTIVE_REQUESTS, ASSIGNMENT_COUNT, Series


def report(
    revision: int, *states: str, lagging: str | None = None, ready: bool = True
) -> WorkerReport:
    """A worker that serves endpoint `m`, and has its versions in these states."""
    return WorkerReport(
        revision=revision,
        ready=ready,
        endpoints={"m": EndpointReport(revision=revision, lagging=lagging)},
        versions=tuple(VersionReport("m", n, state) for n, state in enumerate(states, start=1)),
    )


def test_the_slowest_worker_says_what_is_served() -> None:
    """The host serves a revision when every worker does, and is whole when none lags."""
    merged = merged_report({"worker 1": report(4), "worker 2": report(3, lagging="loading")})

    assert (merged.revision, merged.ready) == (3, True)
    assert merged.endpoints == {"m": EndpointReport(revision=3, lagging="worker 2: loading")}


def test_one_worker_is_told_as_it_is() -> None:
    """Without others there is nobody to tell it apart from."""
    alone = report(4, "ready", lagging="version 2 is loading")

    assert merged_report({"worker 1": alone}) == alone


def test_an_endpoint_that_one_worker_does_not_know_is_not_complete() -> None:
    """An endpoint must be served by all."""
    other = WorkerReport(revision=4, ready=True, endpoints={}, versions=())

    merged = merged_report({"worker 1": report(4), "worker 2": other})

    assert merged.endpoints["m"].lagging == "worker 2: it does not know the endpoint yet"
    assert merged.endpoints["m"].revision == 0


def test_no_worker_is_no_report() -> None:
    """Before any worker came, nothing is served."""
    assert merged_report({}) == WorkerReport(revision=0, ready=False, endpoints={}, versions=())


@pytest.mark.parametrize(
    ("one", "other", "state"),
    [
        pytest.param(("ready",), ("ready",), "ready", id="everywhere"),
        pytest.param(("ready",), ("warming",), "warming", id="not-yet-everywhere"),
        pytest.param(("ready",), (), "loading", id="absent"),
        pytest.param(("draining",), (), "draining", id="going"),
        pytest.param(("ready",), ("failed",), "failed", id="failed-somewhere"),
    ],
)
def test_a_version_is_ready_when_it_is_everywhere(
    one: tuple[str, ...], other: tuple[str, ...], state: str
) -> None:
    """What holds in one worker only is not told of the host."""
    merged = merged_report({"worker 1": report(1, *one), "worker 2": report(1, *other)})

    assert [version.state for version in merged.versions] == [state]


def rows(success: int, rows_of_run: int, last_ms: int) -> list[dict[str, Any]]:
    """Statistics of version 1 after so many requests of one run each."""
    statistics = Statistics()
    for _ in range(success):
        statistics.success.add(1_000)
        statistics.ran(rows_of_run, 1, 500)
    statistics.last_ms = last_ms
    return [statistics.as_dict("m", 1)]


def test_statistics_add_up() -> None:
    """Counts, times and sizes of runs are sums; the latest inference is the latest of all."""
    (row,) = added_statistics([rows(2, 1, 70), rows(3, 4, 50), []])

    assert (row["name"], row["version"], row["last_inference"]) == ("m", "1", 70)
    assert (row["inference_count"], row["execution_count"]) == (14, 5)
    assert row["inference_stats"]["success"] == {"count": 5, "ns": 5_000}
    assert {s["batch_size"]: s["compute_infer"]["count"] for s in row["batch_stats"]} == {
        1: 2,
        4: 3,
    }


def shadow(compared: int, *differences: float) -> list[dict[str, Any]]:
    """A shadow's report with samples that differ by so much."""
    return [
        {
            "shadow": "s",
            "version": 2,
            "tally": {**_TALLY, "compared": compared},
            "skipped": {"overload": 1},
            "worst": [
                {"comparison": {"mismatch": None, "max_absolute": difference}}
                for difference in differences
            ],
        }
    ]


_TALLY = dict.fromkeys(ComparisonTally.__struct_fields__, 0)


def test_shadow_reports_add_up_and_keep_the_worst() -> None:
    """Tallies and skips are sums; of the samples of all workers the worst are kept."""
    (row,) = added_shadows([shadow(2, 5.0, 1.0), shadow(3, 9.0)], samples=2)

    assert row["tally"]["compared"] == 5
    assert row["skipped"] == {"overload": 2}
    assert [s["comparison"]["max_absolute"] for s in row["worst"]] == [9.0, 5.0]


def test_what_the_dead_counted_stays_and_what_they_held_goes() -> None:
    """Counters of a process that is gone are kept for ever, its gauges are not."""
    dead = [Series(ASSIGNMENT_COUNT, (), value=5), Series(ACTIVE_REQUESTS, (), value=3)]

    base = folded(folded([], dead), dead)

    assert base == [Series(ASSIGNMENT_COUNT, (), value=10)]
