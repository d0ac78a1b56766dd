import asyncio
import gc
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
)
from gateway.core.tensors import Array, Signature, TensorSpec
from gateway.ports import Engine, Stop
from gateway.serving.batching import Batcher
from gateway.serving.jobs import Job, Result, settled
from gateway.serving.statistics import MAX_SIZES, Statistics
from gateway.serving.threads import ThreadLimits, Threads
from gateway.serving.warming import Timing
from gateway.settings import BatchSettings
from tests.fakes import FailingEngine, FakeEngine, NanoClock, SlowEngine
from tests.planes import rows_of, until

TESTS = Path(__file__).parents[1]
TRAPS = {
    "waiting though idle": (
        "serving/test_batching.py",
        "test_an_idle_batcher_does_not_wait_for_company",
    ),
    "rows for the wrong caller": (
        "serving/test_batching.py",
        "test_every_caller_gets_exactly_their_rows",
    ),
    "timer arithmetic": (
        "serving/test_batching.py",
        "test_the_earliest_deadline_is_answered_first",
    ),
    "cancellation that poisons": (
        "serving/test_batching.py",
        "test_a_cancelled_request_is_not_run_and_harms_nobody",
    ),
    "sizes beyond the cap": (
        "serving/test_batching.py",
        "test_a_shared_run_holds_at_most_max_rows",
    ),
    "one bad request fails all": (
        "serving/test_batching.py",
        "test_only_the_guilty_request_of_a_failed_run_fails",
    ),
    "shapes that mix or block": (
        "serving/test_batching.py",
        "test_no_shape_keeps_another_waiting",
    ),
    "a queue without end": (
        "serving/test_batching.py",
        "test_a_wait_that_is_foreseen_to_be_long_is_refused",
    ),
    "polling": (
        "serving/test_batching.py",
        "test_an_idle_batcher_does_nothing",
    ),
    "versions that mix": (
        "serving/test_pipeline.py",
        "test_versions_never_share_a_run",
    ),
    "rows that depend on each other": (
        "serving/test_warming.py",
        "test_a_model_whose_rows_depend_on_each_other_never_shares_runs",
    ),
    "last bits that differ": (
        "core/test_compare.py",
        "test_tolerance_is_absolute_plus_relative_to_the_primary",
    ),
    "padding": (
        "serving/test_batching.py",
        "test_a_run_holds_the_rows_of_its_requests_and_no_more",
    ),
    "statistics": (
        "serving/test_batching.py",
        "test_statistics_count_rows_and_runs",
    ),
}
"""What goes wrong with batching elsewhere, and the test that it does not go wrong here."""
WIDE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    batched=True,
)


class Bench:
    """A batcher with what it needs, and the results of each of its jobs."""

    def __init__(
        self,
        engine: Engine,
        *,
        inline: bool = True,
        shares: bool = True,
        timings: tuple[Timing, ...] = (Timing(1, 4, 0), Timing(62, 248, 0)),
        limits: ThreadLimits | None = None,
        **settings: float,
    ) -> None:
        self.clock = NanoClock()
        self.statistics = Statistics()
        self.flushes = 0
        self.threads = Threads(
            asyncio.get_running_loop(),
            self.clock.monotonic_ns,
            limits or ThreadLimits(slots=1),
            after_flush=self._flushed,
        )
        self.batcher = Batcher(
            engine,
            self.threads,
            self.statistics,
            BatchSettings(**settings),  # type: ignore[arg-type]
            shares_runs=shares,
            inline_ms=0.5 if inline else -1.0,
            timings=timings,
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

    def _flushed(self) -> None:
        self.flushes += 1


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


def test_each_trap_has_its_test() -> None:
    """The table names tests that are there."""
    for file, test in TRAPS.values():
        assert f"def {test}(" in (TESTS / file).read_text(), test
    assert len(TRAPS) == 14


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


async def test_a_run_that_is_not_shared_is_told_to_its_caller_as_a_whole(inline: bool) -> None:
    """Whoever would be told together with others; what has no rows is not cut into them."""
    engine = FakeEngine()
    together: list[list[Any]] = []
    bench = Bench(engine, inline=inline, shares=False)
    _, results = bench.submit(1.0, together=lambda dones, _: together.append(dones))
    await until(lambda: bool(results or together))
    assert together == []
    assert values_of(results) == [1.0]
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


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    cap=st.integers(1, 8),
    inline=st.booleans(),
    wide=st.booleans(),
)
def test_every_caller_gets_exactly_their_rows(
    sizes: list[int], cap: int, inline: bool, wide: bool
) -> None:
    """Whatever the sizes, and however they are put together, nobody gets a row of another."""

    async def run() -> None:
        engine = FakeEngine(signature=WIDE if wide else None)
        bench = Bench(engine, inline=inline, max_rows=cap)
        wanted = [[float(100 * i + row) for row in range(rows)] for i, rows in enumerate(sizes)]
        answers = [bench.submit(*values)[1] for values in wanted]
        await until(lambda: all(answers))
        assert [values_of(results) for results in answers] == wanted
        assert all(len(rows) <= max(cap, *sizes) for rows in engine.runs)
        bench.close()

    asyncio.run(run())


async def test_a_version_with_several_outputs_gives_each_caller_a_part_of_each() -> None:
    """All outputs are cut, and stay in the signature's order."""
    x = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    outputs = tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, 4)) for name in "yz")

    class Twice(FakeEngine):
        def run(self, tensors: Any, outputs: Any) -> list[Array]:
            return [tensors["x"] * 2, tensors["x"] * 3]

    bench = Bench(Twice(signature=Signature(inputs=(x,), outputs=outputs, batched=True)))
    answers = [bench.submit(value)[1] for value in (1.0, 2.0)]
    _, pair = bench.submit(3.0, 4.0)
    await until(lambda: bool(pair))
    parts: Any = [got[0] for got in (*answers, pair)]
    assert [[part[:, 0].tolist() for part in own] for own in parts] == [
        [[2.0], [3.0]],
        [[4.0], [6.0]],
        [[6.0, 8.0], [9.0, 12.0]],
    ]
    bench.close()


async def test_parts_whose_elements_lie_apart_are_put_together_all_the_same() -> None:
    """A view with gaps, and rows of texts, are joined like any other."""
    bench = Bench(FakeEngine())
    apart = np.zeros((1, 8), dtype=np.float32)[:, ::2]
    answers = [bench.put(apart)[1], bench.submit(2.0)[1]]
    await until(lambda: all(answers))
    assert [values_of(results) for results in answers] == [[0.0], [2.0]]
    bench.close()


async def test_rows_of_texts_share_a_run() -> None:
    """BYTES are joined as the objects that they are."""
    x, y = (TensorSpec(name=name, datatype="BYTES", shape=(-1, 1)) for name in "xy")

    class Echo(FakeEngine):
        def run(self, tensors: Any, outputs: Any) -> list[Array]:
            self.runs.append(tensors["x"])
            return [tensors["x"]]

    engine = Echo(signature=Signature(inputs=(x,), outputs=(y,), batched=True))
    bench = Bench(engine)
    texts = [b"one", b"two"]
    answers = [bench.put(np.array([[text]], dtype=object))[1] for text in texts]
    await until(lambda: all(answers))
    assert [got[0][0][0, 0] for got in answers] == texts  # type: ignore[index]
    assert [len(rows) for rows in engine.runs] == [2]
    bench.close()


async def test_no_shape_keeps_another_waiting() -> None:
    """Shapes take turns: one with a long queue does not come first until it is empty."""
    engine = FakeEngine(signature=WIDE)
    bench = Bench(engine, inline=False, max_rows=2)
    for width in [2] * 6 + [3]:
        _, last = bench.put(np.ones((1, width), dtype=np.float32))
    await until(lambda: bool(last) and len(engine.runs) == 4)
    assert [rows.shape for rows in engine.runs] == [(2, 2), (1, 3), (2, 2), (2, 2)]
    assert bench.batcher._queue._lanes == {}, "shapes are forgotten when nothing has them"
    bench.close()


async def test_a_run_holds_the_rows_of_its_requests_and_no_more() -> None:
    """Batches are not padded: odd sizes cost an engine nothing, and surplus rows do."""
    engine = FakeEngine()
    bench = Bench(engine)
    for value in range(5):
        _, last = bench.submit(float(value))
    await until(lambda: bool(last))
    assert [len(rows) for rows in engine.runs] == [5]
    bench.close()


async def test_an_idle_batcher_does_nothing(inline: bool) -> None:
    """Between requests there is no timer and nothing to do on the loop."""
    bench = Bench(FakeEngine(), inline=inline, limits=ThreadLimits(slots=1, stuck_s=0.01))
    _, results = bench.submit(1.0, deadline_ns=bench.clock.at_ns + 10**6)
    await until(lambda: bool(results))
    await until(lambda: bench.threads._watch is None and bench.batcher._alarm is None)
    loop: Any = asyncio.get_running_loop()
    await asyncio.sleep(0)
    assert not loop._ready
    bench.close()


async def test_a_wait_that_is_foreseen_to_be_long_is_refused() -> None:
    """Rows that wait are weighed by what each takes, one after the other in one slot."""
    engine = SlowEngine()
    slow = (Timing(1, 4, 10_000_000), Timing(2, 8, 20_000_000))  # 10 ms for each row
    bench = Bench(engine, inline=False, timings=slow, max_wait_ms=50)
    engine.hold()
    bench.submit(0.0)
    await until(engine.entered.is_set)
    answers = [bench.submit(float(i))[1] for i in range(5)]
    with pytest.raises(Overloaded, match="5 rows wait"):
        bench.submit(9.0)
    engine.release()
    await until(lambda: all(answers))
    bench.close()


async def test_a_crowd_waits_for_less_long_than_a_few() -> None:
    """As many as share a run may wait for long; where more do, the bound is a shorter one."""
    engine = SlowEngine()
    slow = (Timing(1, 4, 10_000_000), Timing(2, 8, 20_000_000))  # 10 ms for each row
    bench = Bench(engine, inline=False, timings=slow, max_rows=8, crowd_wait_ms=50)
    engine.hold()
    bench.submit(0.0)
    await until(engine.entered.is_set)
    answers = [bench.submit(float(i))[1] for i in range(8)]
    with pytest.raises(Overloaded, match="8 rows wait"):
        bench.submit(9.0)
    engine.release()
    await until(lambda: all(answers))
    bench.close()


async def test_a_request_whose_time_would_run_out_in_the_queue_is_refused_at_once() -> None:
    """Nobody waits for an answer that cannot be there in time; the more patient do."""
    engine = SlowEngine()
    slow = (Timing(1, 4, 10_000_000), Timing(2, 8, 20_000_000))
    bench = Bench(engine, inline=False, timings=slow)
    engine.hold()
    bench.submit(0.0)
    await until(engine.entered.is_set)
    bench.submit(1.0, 2.0)
    with pytest.raises(DeadlineExceeded, match="would run out"):
        bench.submit(3.0, deadline_ns=bench.clock.at_ns + 10_000_000)
    _, patient = bench.submit(4.0, deadline_ns=bench.clock.at_ns + 60_000_000_000)
    engine.release()
    await until(lambda: bool(patient))
    assert values_of(patient) == [4.0]
    bench.close()


@pytest.mark.parametrize("wide", [False, True])
async def test_the_memory_of_what_waits_is_bounded(wide: bool) -> None:
    """A queue of large inputs is refused long before it holds many rows."""
    engine = SlowEngine(signature=WIDE if wide else None)
    bench = Bench(engine, inline=False, max_queued_mb=64 / 2**20)  # four rows of 16 bytes
    engine.hold()
    bench.submit(0.0)
    await until(engine.entered.is_set)
    answers = [bench.submit(float(i))[1] for i in range(4)]
    with pytest.raises(Overloaded):
        bench.submit(4.0)
    engine.release()
    await until(lambda: all(answers))
    _, later = bench.submit(5.0)
    await until(lambda: bool(later))
    bench.close()


async def test_what_waits_is_answered_when_its_time_runs_out() -> None:
    """A deadline does not wait for a slot."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False)
    engine.hold()
    _, running = bench.submit(1.0)
    await until(engine.entered.is_set)
    job, expired = bench.submit(2.0, deadline_ns=bench.clock.at_ns + 1_000_000)
    _, patient = bench.submit(3.0)
    bench.clock.advance(0.002)
    await until(lambda: bool(expired))
    assert isinstance(error_of(expired), DeadlineExceeded)
    assert (running, patient, job.tensors) == ([], [], {})
    engine.release()
    await until(lambda: bool(patient))
    assert [len(rows) for rows in engine.runs] == [1, 1]
    bench.close()


async def test_the_earliest_deadline_is_answered_first() -> None:
    """A timer that was set for a later deadline does not keep an earlier one waiting."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False)
    engine.hold()
    bench.submit(0.0)
    await until(engine.entered.is_set)
    hour = bench.clock.at_ns + 3_600 * 10**9
    _, late = bench.submit(1.0, deadline_ns=hour)
    _, soon = bench.submit(2.0, deadline_ns=bench.clock.at_ns + 1_000_000)
    bench.clock.advance(0.002)
    await until(lambda: bool(soon))
    assert late == []
    engine.release()
    await until(lambda: bool(late))
    assert values_of(late) == [1.0]
    assert len(soon) == 1
    bench.close()


async def test_a_deadline_during_a_run_is_met_and_the_run_goes_on_for_the_others() -> None:
    """The caller is answered in time; a result that comes later is dropped."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False)
    engine.hold()
    _, hasty = bench.submit(1.0, deadline_ns=bench.clock.at_ns + 1_000_000)
    _, patient = bench.submit(2.0)
    await until(engine.entered.is_set)
    bench.clock.advance(0.002)
    await until(lambda: bool(hasty))
    assert "while the model ran" in str(error_of(hasty))
    assert patient == []
    engine.release()
    await until(lambda: bool(patient))
    assert values_of(patient) == [2.0]
    assert len(hasty) == 1
    bench.close()


async def test_a_caller_who_leaves_during_a_run_harms_nobody() -> None:
    """Their part of the result is dropped; they are told once, and nothing after that."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False)
    engine.hold()
    gone, left = bench.submit(1.0)
    _, stayed = bench.submit(2.0)
    await until(engine.entered.is_set)
    gone.cancel()
    gone.cancel()
    engine.release()
    await until(lambda: bool(stayed))
    assert values_of(stayed) == [2.0]
    assert isinstance(error_of(left), Cancelled)
    assert gone.cancelled
    bench.close()


async def test_a_request_that_was_answered_cannot_be_cancelled() -> None:
    """The answer came first."""
    bench = Bench(FakeEngine())
    job, results = bench.submit(1.0)
    await until(lambda: bool(results))
    job.cancel()
    assert values_of(results) == [1.0]
    assert not job.cancelled
    bench.close()


async def test_a_reply_may_cancel_its_batch_mates() -> None:
    """Who is cancelled while a flush gives out answers gets the cancellation, and only that."""
    bench = Bench(FakeEngine())
    mates: list[Job] = []
    bench.submit(1.0, done=lambda _: mates[0].cancel())
    mate, results = bench.submit(2.0)
    mates.append(mate)
    _, last = bench.submit(3.0)
    await until(lambda: bool(last))
    assert isinstance(error_of(results), Cancelled)
    assert bench.batcher._queue.size == 0
    bench.close()


async def test_callers_who_leave_a_long_queue_leave_no_room_taken() -> None:
    """A thousand who came and went while the version was busy are not remembered."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False)
    engine.hold()
    bench.submit(0.0)
    await until(engine.entered.is_set)
    for _ in range(1_000):
        job, _ = bench.submit(1.0)
        job.cancel()
    queue = bench.batcher._queue
    assert queue.size == 0
    assert len(queue.main.jobs) < 100
    _, stayed = bench.submit(2.0)
    engine.release()
    await until(lambda: bool(stayed))
    assert [len(rows) for rows in engine.runs] == [1, 1]
    bench.close()


async def test_a_failed_run_tries_nobody_again_who_left() -> None:
    """Only those who still wait are run alone."""
    engine = SlowEngine()
    failing = FailingEngine()
    engine.run, hold = failing.run, engine.run  # type: ignore[method-assign]

    def held(tensors: Any, outputs: Any) -> list[Array]:
        if len(tensors["x"]) > 1:
            hold(tensors, outputs)
        return failing.run(tensors, outputs)

    engine.run = held  # type: ignore[method-assign]
    bench = Bench(engine, inline=False)
    engine.hold()
    gone, _ = bench.submit(1.0)
    _, guilty = bench.submit(failing.poison)
    _, stayed = bench.submit(3.0)
    await until(engine.entered.is_set)
    gone.cancel()
    engine.release()
    await until(lambda: bool(stayed))
    assert isinstance(error_of(guilty), EngineFailed)
    assert [len(rows) for rows in failing.runs] == [3, 1, 1]
    bench.close()


async def test_a_version_that_hangs_is_refused_and_comes_back() -> None:
    """Who waits is told, who comes is refused, and once a run returns all is as before."""
    engine = SlowEngine()
    limits = ThreadLimits(slots=1, spare=2, stuck_each=1, stuck_s=0.01)
    bench = Bench(engine, inline=False, limits=limits)
    engine.hold()
    _, hanging = bench.submit(1.0)
    await until(engine.entered.is_set)
    _, waiting = bench.submit(2.0)
    bench.clock.advance(1.0)
    await until(lambda: bool(waiting))
    assert isinstance(error_of(waiting), NotReady)
    with pytest.raises(NotReady, match="does not answer"):
        bench.submit(3.0)
    engine.release()
    await until(lambda: bool(hanging))
    _, again = bench.submit(4.0)
    await until(lambda: bool(again))
    assert (values_of(hanging), values_of(again)) == ([1.0], [4.0])
    bench.close()


class Costly(FakeEngine):
    """Moves the clock by what a run costs."""

    def __init__(self, ns: int, each_ns: int = 0) -> None:
        super().__init__()
        self.ns, self.each_ns = ns, each_ns
        self.clock: NanoClock | None = None
        self.names: list[str] = []

    def run(self, tensors: Any, outputs: Any) -> list[Array]:
        self.names.append(threading.current_thread().name)
        if self.clock is not None:
            self.clock.at_ns += self.ns + self.each_ns * len(tensors["x"])
        return super().run(tensors, outputs)


async def test_a_version_that_turns_slow_moves_to_threads_and_back() -> None:
    """What is measured while it runs decides, whatever warming found."""
    engine = Costly(200_000_000)
    bench = Bench(engine)
    engine.clock = bench.clock

    async def ask() -> None:
        _, results = bench.submit(1.0)
        await until(lambda: bool(results))

    await ask()
    places = [bench.batcher.is_inline]
    await ask()
    engine.ns = 10_000
    bench.clock.advance(60.0)
    for _ in range(64):
        await ask()
    places.append(bench.batcher.is_inline)
    await ask()
    assert places == [False, True]
    assert [engine.names[i] for i in (0, 1, -1)] == ["MainThread", "tiltyard-run_0", "MainThread"]
    bench.close()


async def test_a_tick_on_the_loop_is_short() -> None:
    """What does not fit into one tick goes on in the next, so that the loop sees to others."""
    engine = Costly(900_000)
    bench = Bench(engine, max_rows=1, inline_target_ms=2.0)
    engine.clock = bench.clock
    answers = [bench.submit(float(i))[1] for i in range(9)]
    await asyncio.sleep(0)
    assert [len(got) for got in answers] == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    await until(lambda: all(answers))
    assert [values_of(results) for results in answers] == [[float(i)] for i in range(9)]
    bench.close()


async def test_what_is_learned_bounds_what_shares_a_run() -> None:
    """With 0.1 ms for each row, some twenty fit the 2 ms of a run on the loop."""
    engine = Costly(20_000, 100_000)
    timings = tuple(Timing(rows, 4 * rows, 20_000 + 100_000 * rows) for rows in (1, 2, 8, 64))
    bench = Bench(engine, timings=timings)
    engine.clock = bench.clock
    answers = [bench.submit(float(i))[1] for i in range(60)]
    await until(lambda: all(answers))
    assert 15 <= max(len(rows) for rows in engine.runs) <= 20
    bench.close()


async def test_several_runs_go_on_at_once_where_there_are_slots() -> None:
    """With a free slot a request does not wait for a run of its own version."""
    engine = SlowEngine()
    bench = Bench(engine, inline=False, limits=ThreadLimits(slots=2))
    engine.hold()
    answers = [bench.submit(1.0)[1]]
    await until(lambda: bench.threads.busy == 1)
    answers.append(bench.submit(2.0)[1])
    await until(lambda: bench.threads.busy == 2)
    engine.release()
    await until(lambda: all(answers))
    assert [values_of(results) for results in answers] == [[1.0], [2.0]]
    bench.close()


async def test_after_the_answers_of_a_flush_one_call_follows(inline: bool) -> None:
    """What should not hold answers up is called once for each flush, after all of them."""
    bench = Bench(FakeEngine(), inline=inline)
    seen: list[int] = []
    for _ in range(5):
        bench.submit(1.0, done=lambda _: seen.append(bench.flushes))
    await until(lambda: len(seen) == 5)
    assert len(set(seen)) == 1
    before = seen[0]
    await until(lambda: bench.flushes == before + 1)
    bench.close()


async def test_a_settled_job_holds_nothing_of_its_caller() -> None:
    """Jobs are not seen by the garbage collector, so they must let go by themselves."""
    bench = Bench(FakeEngine(), inline=False)
    job, results = bench.submit(1.0)
    await until(lambda: bool(results))
    assert job.is_settled
    assert gc.get_referents(job.done) == gc.get_referents(settled)
    place: Any = job.place
    assert place.batch == []
    bench.close()


async def test_a_run_that_nobody_waits_for_is_stopped() -> None:
    """While one caller waits it goes on; when the last has left, the engine is told to end it."""
    stops: list[Stop] = []

    class Endless(SlowEngine):
        def run_until(self, tensors: Any, outputs: Any, stop: Stop) -> list[Array]:
            stops.append(stop)
            stop.connect(self.release)
            return super().run_until(tensors, outputs, stop)

    engine = Endless()
    bench = Bench(engine, inline=False)
    engine.hold()
    (first, _), (second, _) = bench.submit(1.0), bench.submit(2.0)
    await until(engine.entered.is_set)
    first.cancel()
    assert not stops[0].asked
    second.cancel()
    await until(lambda: bench.threads.busy == 0)
    _, later = bench.submit(3.0)
    await until(lambda: bool(later))
    assert values_of(later) == [3.0]
    bench.close()
