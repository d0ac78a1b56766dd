import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gateway.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    Overloaded,
)
from gateway.core.tensors import Array, Signature, TensorSpec
from gateway.ports import Engine
from gateway.serving.batching import Batcher
from gateway.serving.jobs import Job, Result
from gateway.serving.statistics import MAX_SIZES, Statistics
from gateway.serving.threads import ThreadLimits, Threads
from gateway.serving.warming import Timing
from gateway.settings import BatchSettings
from tests.fakes import FailingEngine, FakeEngine, NanoClock, SlowEngine
from tests.planes import rows_of, until

WIDE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    batched=True,
)


class Bench:
    """A batcher with what it needs, and the results of each of its jobs."""

    def __init__(
        self, engine: Engine, *, inline: bool = True, shares: bool = True, **settings: int
    ) -> None:
        self.clock = NanoClock()
        self.statistics = Statistics()
        self.threads = Threads(
            asyncio.get_running_loop(), self.clock.monotonic_ns, ThreadLimits(slots=1)
        )
        self.batcher = Batcher(
            engine,
            self.threads,
            self.statistics,
            BatchSettings(**settings),
            shares_runs=shares,
            inline_ms=0.5 if inline else -1.0,
            timings=(Timing(1, 4, 0), Timing(62, 248, 0)),
        )

    def submit(self, *values: float, **fields: Any) -> tuple[Job, list[Result]]:
        """Queue a job with one row for each value."""
        return self.put(rows_of(*values), **fields)

    def put(self, rows: Array, **fields: Any) -> tuple[Job, list[Result]]:
        """Queue a job with these rows."""
        results: list[Result] = []
        fields.setdefault("done", results.append)
        job = Job({"x": rows}, len(rows), queued_ns=self.clock.at_ns, **fields)
        self.batcher.submit(job)
        return job, results

    def close(self) -> None:
        self.threads.close()


@pytest.fixture(params=[pytest.param(True, id="inline"), pytest.param(False, id="threaded")])
def inline(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Each test that takes this runs in both modes."""
    return request.param  # type: ignore[no-any-return]


def values_of(results: list[Result]) -> list[float]:
    """The rows of the one result that a job got."""
    assert len(results) == 1
    assert not isinstance(results[0], Exception), results[0]
    (output,) = results[0]
    return [float(value) for value in output[:, 0]]


def error_of(results: list[Result]) -> Exception:
    """The error of the one result that a job got."""
    assert len(results) == 1
    assert isinstance(results[0], Exception)
    return results[0]


async def test_jobs_of_one_tick_share_a_run_and_each_gets_its_rows(inline: bool) -> None:
    """What was queued together runs once, and every caller gets exactly its own rows."""
    engine = FakeEngine()
    bench = Bench(engine, inline=inline)
    _, first = bench.submit(1.0)
    _, second = bench.submit(2.0, 3.0)
    _, third = bench.submit(4.0)
    await until(lambda: bool(third))
    assert [values_of(first), values_of(second), values_of(third)] == [[1.0], [2.0, 3.0], [4.0]]
    assert [len(rows) for rows in engine.runs] == [4]
    bench.close()


async def test_an_idle_batcher_does_not_wait_for_company() -> None:
    """A lone job runs at the end of the tick in which it came."""
    bench = Bench(FakeEngine())
    _, results = bench.submit(7.0)
    assert results == []
    await asyncio.sleep(0)
    assert values_of(results) == [7.0]
    bench.close()


async def test_a_busy_thread_lets_the_queue_form_the_next_batch() -> None:
    """Jobs that come while a run is under way share the next run."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False)
    engine.hold()
    _, first = bench.submit(1.0)
    await until(engine.entered.is_set)
    _, second = bench.submit(2.0)
    _, third = bench.submit(3.0)
    await asyncio.sleep(0)
    assert (second, third) == ([], [])
    engine.release()
    await until(lambda: bool(third))
    assert [values_of(first), values_of(second), values_of(third)] == [[1.0], [2.0], [3.0]]
    assert [len(rows) for rows in engine.runs] == [1, 2]
    bench.close()


async def test_a_shared_run_holds_at_most_max_rows(inline: bool) -> None:
    """A batch is closed before it would hold more rows than allowed, in the order of arrival."""
    engine = FakeEngine()
    bench = Bench(engine, inline=inline, max_rows=4)
    answers = [bench.submit(float(i), float(i))[1] for i in range(5)]
    await until(lambda: all(answers))
    assert [len(rows) for rows in engine.runs] == [4, 4, 2]
    assert [values_of(results) for results in answers] == [[float(i)] * 2 for i in range(5)]
    bench.close()


async def test_an_oversize_request_runs_alone() -> None:
    """A request with more rows than a shared run may hold is run by itself, whole."""
    engine = FakeEngine()
    bench = Bench(engine, max_rows=4)
    _, small = bench.submit(1.0)
    _, large = bench.submit(*[2.0] * 9)
    _, other = bench.submit(3.0)
    await until(lambda: bool(other))
    assert [len(rows) for rows in engine.runs] == [1, 9, 1]
    assert (values_of(small), values_of(large)) == ([1.0], [2.0] * 9)
    bench.close()


async def test_a_run_that_warming_did_not_time_leaves_the_event_loop() -> None:
    """A run over more elements than were timed happens in a thread, so that the loop stays free."""
    engine = SlowEngine()
    bench = Bench(engine)
    engine.hold()
    _, results = bench.submit(*[1.0] * 251)
    await until(engine.entered.is_set)
    assert results == []
    engine.release()
    await until(lambda: bool(results))
    assert values_of(results) == [1.0] * 251
    bench.close()


async def test_shapes_are_never_mixed(inline: bool) -> None:
    """Requests whose trailing dimensions differ do not share a run."""
    engine = FakeEngine(signature=WIDE)
    bench = Bench(engine, inline=inline)
    widths = [2, 2, 3, 2]
    answers = [bench.put(np.ones((1, width), dtype=np.float32))[1] for width in widths]
    await until(lambda: all(answers))
    assert [rows.shape for rows in engine.runs] == [(3, 2), (1, 3)]
    assert [values_of(results) for results in answers] == [[2.0], [2.0], [3.0], [2.0]]
    bench.close()


async def test_a_version_whose_rows_depend_on_each_other_never_shares_a_run(inline: bool) -> None:
    """Without independent rows every request has a run of its own."""
    engine = FakeEngine()
    bench = Bench(engine, inline=inline, shares=False)
    answers = [bench.submit(float(i))[1] for i in range(3)]
    await until(lambda: all(answers))
    assert [len(rows) for rows in engine.runs] == [1, 1, 1]
    assert [values_of(results) for results in answers] == [[0.0], [1.0], [2.0]]
    bench.close()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(EngineFailed("It failed."), id="engine"),
        pytest.param(InvalidRequest("Bytes are not UTF-8."), id="input"),
        pytest.param(RuntimeError("boom"), id="unforeseen"),
    ],
)
async def test_only_the_guilty_request_of_a_failed_run_fails(
    inline: bool, error: Exception
) -> None:
    """When a shared run fails, each request is run alone once: batch-mates are answered."""
    engine = FailingEngine(error)
    bench = Bench(engine, inline=inline)
    _, first = bench.submit(1.0)
    _, guilty = bench.submit(engine.poison)
    _, last = bench.submit(3.0)
    await until(lambda: bool(last))
    assert (values_of(first), values_of(last)) == ([1.0], [3.0])
    expected = EngineFailed if isinstance(error, RuntimeError) else type(error)
    assert type(error_of(guilty)) is expected
    assert [len(rows) for rows in engine.runs] == [3, 1, 1, 1]
    bench.close()


async def test_a_request_that_fails_alone_is_not_tried_again(inline: bool) -> None:
    """One run, one failure, one answer; and the batcher goes on."""
    engine = FailingEngine()
    bench = Bench(engine, inline=inline)
    _, guilty = bench.submit(engine.poison)
    await until(lambda: bool(guilty))
    _, other = bench.submit(2.0)
    await until(lambda: bool(other))
    assert isinstance(error_of(guilty), EngineFailed)
    assert values_of(other) == [2.0]
    assert len(engine.runs) == 2
    bench.close()


async def test_what_came_after_a_failed_run_waits_for_its_retries() -> None:
    """Requests of a failed run are retried before later ones, and never with them."""
    engine = FailingEngine()
    bench = Bench(engine, max_rows=2)
    answers = [bench.submit(value)[1] for value in (engine.poison, 1.0, 2.0, 3.0)]
    await until(lambda: all(answers))
    assert [len(rows) for rows in engine.runs] == [2, 1, 1, 2]
    assert [values_of(results) for results in answers[1:]] == [[1.0], [2.0], [3.0]]
    bench.close()


async def test_an_unforeseen_error_tells_the_caller_nothing_of_itself() -> None:
    """What an engine raised is kept as the cause, and not in the sentence."""
    engine = FailingEngine(RuntimeError("/secret/path"))
    bench = Bench(engine)
    _, results = bench.submit(engine.poison)
    await until(lambda: bool(results))
    error = error_of(results)
    assert "secret" not in str(error)
    assert isinstance(error.__cause__, RuntimeError)
    bench.close()


async def test_an_expired_request_is_answered_without_a_run() -> None:
    """Work whose deadline passed in the queue is dropped, whoever shares the queue with it."""
    engine = FakeEngine()
    bench = Bench(engine)
    late, expired = bench.submit(1.0, deadline_ns=bench.clock.at_ns + 1_000)
    _, patient = bench.submit(2.0)
    bench.clock.advance(1.0)
    await until(lambda: bool(patient))
    assert isinstance(error_of(expired), DeadlineExceeded)
    assert values_of(patient) == [2.0]
    assert [len(rows) for rows in engine.runs] == [1]
    assert late.batch_rows == 0
    bench.close()


async def test_a_deadline_that_is_now_is_met() -> None:
    """A request is late only after its deadline."""
    bench = Bench(FakeEngine())
    _, results = bench.submit(1.0, deadline_ns=bench.clock.at_ns)
    await until(lambda: bool(results))
    assert values_of(results) == [1.0]
    bench.close()


async def test_a_cancelled_request_is_not_run_and_harms_nobody(inline: bool) -> None:
    """A caller who left costs no run, and batch-mates are answered."""
    engine = SlowEngine()
    bench = Bench(engine, inline=inline)
    gone, left = bench.submit(1.0)
    gone.cancel()
    _, stayed = bench.submit(2.0)
    await until(lambda: bool(stayed))
    assert values_of(stayed) == [2.0]
    assert isinstance(error_of(left), Cancelled)
    assert [len(rows) for rows in engine.runs] == [1]
    bench.close()


async def test_a_full_queue_refuses_and_forgets_nothing() -> None:
    """Beyond the bound a request is refused at once; those that wait are answered."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False, max_queued_rows=3)
    engine.hold()
    _, running = bench.submit(0.0)
    await until(engine.entered.is_set)
    _, waiting = bench.submit(1.0, 2.0)
    with pytest.raises(Overloaded, match="2 rows wait"):
        bench.submit(3.0, 4.0)
    _, fits = bench.submit(5.0)
    engine.release()
    await until(lambda: bool(fits))
    assert [values_of(running), values_of(waiting), values_of(fits)] == [[0.0], [1.0, 2.0], [5.0]]
    _, later = bench.submit(6.0, 7.0, 8.0)
    await until(lambda: bool(later))
    assert values_of(later) == [6.0, 7.0, 8.0]
    bench.close()


async def test_requests_without_rows_take_room_too() -> None:
    """Empty requests cannot fill a queue without end."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False, max_queued_rows=2)
    engine.hold()
    bench.submit(0.0)
    await until(engine.entered.is_set)
    answers = [bench.submit()[1] for _ in range(2)]
    with pytest.raises(Overloaded):
        bench.submit()
    engine.release()
    await until(lambda: all(answers))
    assert [values_of(results) for results in answers] == [[], []]
    bench.close()


async def test_an_empty_queue_takes_a_request_of_any_size() -> None:
    """A request that is larger than the bound is not refused for ever."""
    bench = Bench(FakeEngine(), max_queued_rows=2)
    _, results = bench.submit(1.0, 2.0, 3.0)
    await until(lambda: bool(results))
    assert values_of(results) == [1.0, 2.0, 3.0]
    bench.close()


async def test_a_caller_that_raises_costs_nobody_else_an_answer(
    inline: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in one caller's reply is logged; batch-mates and later requests are answered."""

    def broken(_: Result) -> None:
        raise RuntimeError("this caller is broken")

    bench = Bench(FakeEngine(), inline=inline)
    with caplog.at_level(logging.ERROR):
        bench.submit(1.0, done=broken)
        _, mate = bench.submit(2.0)
        await until(lambda: bool(mate))
    _, later = bench.submit(3.0)
    await until(lambda: bool(later))
    assert (values_of(mate), values_of(later)) == ([2.0], [3.0])
    assert "could not take its result" in caplog.text
    bench.close()


async def test_an_expired_caller_that_raises_costs_nobody_else_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same holds for those whose time ran out."""

    def broken(_: Result) -> None:
        raise RuntimeError("this caller is broken")

    bench = Bench(FakeEngine())
    _, first = bench.submit(1.0)
    bench.submit(2.0, done=broken, deadline_ns=bench.clock.at_ns)
    bench.clock.advance(1.0)
    _, last = bench.submit(3.0)
    await until(lambda: bool(last))
    assert (values_of(first), values_of(last)) == ([1.0], [3.0])
    assert "could not take its result" in caplog.text
    bench.close()


async def test_a_reply_may_submit_again() -> None:
    """A caller that sends its next request from its reply is answered in the same tick."""
    bench = Bench(FakeEngine())
    chained: list[list[Result]] = []

    def again(_: Result) -> None:
        chained.append(bench.submit(2.0)[1])

    bench.submit(1.0, done=again)
    await until(lambda: bool(chained) and bool(chained[0]))
    assert values_of(chained[0]) == [2.0]
    bench.close()


class WrongEngine(FakeEngine):
    """Answers with another number of rows or outputs than it should."""

    def __init__(self, rows: int, outputs: int) -> None:
        super().__init__()
        self.rows, self.outputs = rows, outputs

    def run(self, tensors: Any, outputs: Any) -> list[Array]:
        super().run(tensors, outputs)
        return [np.zeros((self.rows, 1), dtype=np.float32)] * self.outputs


@pytest.mark.parametrize(
    ("rows", "outputs"), [pytest.param(1, 1, id="rows"), pytest.param(2, 2, id="outputs")]
)
async def test_an_answer_of_another_form_is_a_failure(rows: int, outputs: int) -> None:
    """An engine that returns too few rows or too many outputs fails; nothing is cut to fit."""
    bench = Bench(WrongEngine(rows, outputs))
    _, results = bench.submit(1.0, 2.0)
    await until(lambda: bool(results))
    assert "another number of" in str(error_of(results))
    bench.close()


async def test_times_and_rows_are_filled_in_before_the_answer() -> None:
    """A job knows how long it waited and how many rows ran with it."""
    bench = Bench(FakeEngine())
    job, results = bench.submit(1.0)
    bench.submit(2.0, 3.0)
    bench.clock.advance(0.25)
    await until(lambda: bool(results))
    assert (job.queue_ns, job.run_ns, job.batch_rows) == (250_000_000, 0, 3)
    bench.close()


async def test_statistics_count_rows_and_runs() -> None:
    """Inferences are rows and executions are runs; a failed run is neither."""
    engine = FailingEngine()
    bench = Bench(engine)
    bench.submit(1.0)
    bench.submit(2.0, 3.0)
    await asyncio.sleep(0)
    _, guilty = bench.submit(engine.poison)
    await until(lambda: bool(guilty))
    told = bench.statistics.as_dict("m", 1)
    assert (told["inference_count"], told["execution_count"]) == (3, 1)
    assert [row["batch_size"] for row in told["batch_stats"]] == [3]
    assert told["inference_stats"]["compute_infer"]["count"] == 2
    bench.close()


def test_sizes_of_runs_are_told_apart_up_to_a_bound() -> None:
    """Callers choose how many rows they send, so what is kept of that is bounded."""
    statistics = Statistics()
    for rows in range(1, MAX_SIZES + 3):
        statistics.ran(rows, 1, 10)
    statistics.ran(1, 1, 10)
    told = statistics.as_dict("m", 1)
    assert len(told["batch_stats"]) == MAX_SIZES
    assert told["batch_stats"][0]["compute_infer"] == {"count": 2, "ns": 20}
    assert told["execution_count"] == MAX_SIZES + 3
