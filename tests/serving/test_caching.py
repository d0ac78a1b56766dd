import asyncio
import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from gateway.core.assignment import Reason
from gateway.core.endpoints import Caching, Rule, Split, Weighted
from gateway.core.errors import DeadlineExceeded, EngineFailed, GatewayError, Overloaded
from gateway.core.models import Key
from gateway.core.snapshot import Snapshot
from gateway.core.tensors import Array, Signature, Tensors, TensorSpec
from gateway.serving.calls import Answer
from gateway.settings import BatchSettings
from gateway.telemetry import CACHE_COALESCED, CACHE_HITS, CACHE_MISSES, CACHE_SIZE, Record
from tests.fakes import FailingEngine, FakeEngine, SlowEngine
from tests.planes import (
    THREADED,
    Plane,
    endpoint_of,
    model_of,
    serve_rule,
    snapshot_of,
    split_rule,
    until,
)

ONE, TWO = ("m", 1), ("m", 2)
HALVES = Split(
    exposure=10_000,
    variants=(Weighted("old", 5_000, version=1), Weighted("new", 5_000, version=2)),
)


def caching(
    revision: int = 1,
    *rules: Rule,
    champion: int = 1,
    ttl_s: float | None = None,
    versions: Sequence[int] = (1, 2),
) -> Snapshot:
    """A Snapshot whose endpoint `e` keeps answers, and whose endpoint `m` does not."""
    policy = Caching(max_mb=1, ttl_s=ttl_s)
    models = {"m": model_of(*versions, champion=champion, loaded=tuple(versions))}
    return snapshot_of(revision, models=models, endpoints={"e": endpoint_of(*rules, cache=policy)})


def both() -> dict[Key, FakeEngine]:
    """Two versions that answer differently."""
    return {ONE: FakeEngine(bias=100), TWO: FakeEngine(bias=200)}


def value_of(answer: Answer) -> float:
    """The one number of an answer."""
    assert answer.error is None, answer.error
    return float(answer.outputs["y"][0, 0])


def told(answers: Sequence[list[Answer]]) -> list[tuple[float, str]]:
    """Number and mark of each answer."""
    return [(value_of(answer), answer.cache) for (answer,) in answers]


def last_record(plane: Plane) -> Record:
    """The newest record."""
    return plane.recorder.drain()[-1]


def nothing_is_held(plane: Plane) -> bool:
    """Whether every lease was given back and nobody waits."""
    return {*plane.leases().values(), plane.pipeline.in_flight} == {0}


class TwoHeads(FakeEngine):
    """Answers the sum of each row, and its double."""

    def __init__(self) -> None:
        super().__init__(
            signature=Signature(
                inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
                outputs=(
                    TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),
                    TensorSpec(name="z", datatype="FP32", shape=(-1, 1)),
                ),
                batched=True,
            )
        )

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        (sums,) = super().run(tensors, outputs)
        return [sums, sums * np.float32(2)]


async def test_an_equal_request_is_answered_without_a_run() -> None:
    """The second answer is the first one's, marked, with an id and a record of its own."""
    engine = FakeEngine(bias=100)
    with Plane({ONE: engine}) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.runs.clear()
        first = await plane.ask(plane.call(5.0), "e")
        assert not last_record(plane).cached
        (second,) = plane.submit(plane.call(5.0), "e")  # at once, within the call
        record = last_record(plane)
        other = await plane.ask(plane.call(6.0), "e")
        assert told([[first], [second], [other]]) == [
            (105.0, "miss"),
            (105.0, "hit"),
            (106.0, "miss"),
        ]
        assert first.prediction_id != second.prediction_id
        assert (record.cached, record.batch_rows, record.run_ns, record.rows) == (True, 0, 0, 1)
        assert len(engine.runs) == 2
        assert nothing_is_held(plane)


async def test_where_nobody_asked_for_it_nothing_is_kept_or_marked() -> None:
    """An endpoint without a cache runs every request."""
    engine = FakeEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.runs.clear()
        answers = [await plane.ask(plane.call(5.0)) for _ in range(2)]
        assert [answer.cache for answer in answers] == ["", ""]
        assert len(engine.runs) == 2
        assert plane.worker.cache.storage.size == 0


async def test_a_kept_answer_serves_any_choice_of_outputs() -> None:
    """All outputs are kept, whichever the first caller asked for, and cut for each one."""
    engine = TwoHeads()
    with Plane({ONE: engine}) as plane:
        await plane.serve(caching(versions=(1,)))
        await plane.ask(plane.call(5.0, outputs=["y"]), "e")
        got = [await plane.ask(plane.call(5.0, outputs=o), "e") for o in (["z"], ["z", "y"], [])]
        assert [answer.cache for answer in got] == ["hit"] * 3
        assert [list(answer.outputs) for answer in got] == [["z"], ["z", "y"], ["y", "z"]]
        assert [float(answer.outputs["z"][0, 0]) for answer in got] == [10.0] * 3


async def test_a_promotion_never_gives_the_older_versions_answer() -> None:
    """The version is part of the question; after a rollback what it said is found again."""
    with Plane(both()) as plane:
        got = []
        for revision, champion in enumerate((1, 2, 1), start=1):
            await plane.serve(caching(revision, champion=champion))
            got += [[await plane.ask(plane.call(5.0), "e")] for _ in range(2)]
        assert told(got) == [
            (105.0, "miss"),
            (105.0, "hit"),
            (205.0, "miss"),
            (205.0, "hit"),
            (105.0, "hit"),
            (105.0, "hit"),
        ]


async def test_variants_of_a_split_keep_their_own_answers() -> None:
    """Equal inputs of many units get the answer of the version that each was assigned."""
    with Plane(both()) as plane:
        await plane.serve(caching(1, split_rule(HALVES)))
        for turn in range(2):
            asked = [plane.submit(plane.call(5.0, unit=f"u{i}"), "e") for i in range(40)]
            await until(lambda asked=asked: all(asked))  # type: ignore[misc]
            for (answer,) in asked:
                assert answer.variant is not None
                assert value_of(answer) == 100.0 * answer.variant.version + 5
                assert answer.reason is Reason.SPLIT
            marks = {answer.cache for (answer,) in asked}
            assert marks == ({"hit"} if turn else {"miss", "coalesced"})


async def test_pinned_and_forced_requests_share_what_is_kept() -> None:
    """What a version says does not depend on how it was chosen."""
    with Plane(both()) as plane:
        await plane.serve(caching(1, serve_rule(2)))
        first = await plane.ask(plane.call(5.0, version=2), "e")
        forced = await plane.ask(plane.call(5.0, force="candidate"), "e")
        assigned = await plane.ask(plane.call(5.0), "e")
        assert told([[first], [forced], [assigned]]) == [
            (205.0, "miss"),
            (205.0, "hit"),
            (205.0, "hit"),
        ]
        reasons = [answer.reason for answer in (first, forced, assigned)]
        assert reasons == [Reason.PINNED, Reason.FORCED, Reason.TARGETING_MATCH]


async def test_a_version_that_closed_left_nothing() -> None:
    """Its answers go when nothing names it any more."""
    with Plane(both()) as plane:
        await plane.serve(caching(1, champion=1, versions=(1, 2)))
        await plane.ask(plane.call(5.0), "e")
        assert plane.count(CACHE_SIZE) > 0
        await plane.serve(caching(2, champion=2, versions=(2,)))
        await until(lambda: ONE not in plane.states())
        assert plane.count(CACHE_SIZE) == 0
        await until(lambda: plane.worker.cache.storage.size == 0)


async def test_an_endpoint_that_stops_keeping_runs_again() -> None:
    """The next Snapshot takes the cache away, and gives an empty one back."""
    engine = FakeEngine()
    with Plane({ONE: engine}) as plane:
        marks = []
        for snapshot in (
            caching(1, versions=(1,)),
            snapshot_of(2, endpoints={"e": endpoint_of()}),
            caching(3, versions=(1,)),
        ):
            await plane.serve(snapshot)
            marks += [(await plane.ask(plane.call(5.0), "e")).cache for _ in range(2)]
        assert marks == ["miss", "hit", "", "", "miss", "hit"]


async def test_an_answer_is_given_until_its_time_is_over() -> None:
    """With `ttl_s` an old answer is made anew."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(caching(ttl_s=2.0, versions=(1,)))
        marks = []
        for _ in range(4):
            marks.append((await plane.ask(plane.call(5.0), "e")).cache)
            plane.clock.advance(1.0)
        assert marks == ["miss", "hit", "miss", "hit"]


async def test_large_requests_are_not_looked_up() -> None:
    """Hashing them would cost more than others should wait for."""
    with Plane({ONE: FakeEngine()}, max_request_rows=100_000) as plane:
        await plane.serve(caching(versions=(1,)))
        rows = {"x": np.zeros((70_000, 4), "<f4")}
        marks = [(await plane.ask(plane.call(tensors=rows), "e")).cache for _ in range(2)]
        assert marks == ["bypass", "bypass"]
        assert plane.worker.cache.storage.size == 0


async def test_what_came_of_lookups_is_counted() -> None:
    """Instruments by endpoint, and the version's statistics in Triton's words."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(caching(versions=(1,)))
        asked = [plane.submit(plane.call(5.0), "e") for _ in range(3)]
        await until(lambda: all(asked))
        await plane.ask(plane.call(5.0), "e")
        counts = {
            one.name: plane.count(one, key="e")
            for one in (CACHE_HITS, CACHE_MISSES, CACHE_COALESCED)
        }
        assert list(counts.values()) == [1, 1, 2]
        (row,) = plane.worker.statistics("m", 1)
        stats = row["inference_stats"]
        assert (stats["cache_hit"]["count"], stats["cache_miss"]["count"]) == (1, 3)
        assert (stats["success"]["count"], stats["queue"]["count"]) == (4, 3)


# Equal requests in flight


async def test_equal_requests_in_flight_share_one_run() -> None:
    """They wait for the first, also while it runs, and each gets an answer of its own."""
    engine = SlowEngine(bias=100)
    with Plane({ONE: engine}, pool=THREADED) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.hold()
        engine.runs.clear()
        asked = [plane.submit(plane.call(5.0), "e") for _ in range(2)]
        await until(engine.entered.is_set)
        asked += [plane.submit(plane.call(value), "e") for value in (5.0, 6.0)]
        engine.release()
        await until(lambda: all(asked))
        marks = [(105.0, "miss"), (105.0, "coalesced"), (105.0, "coalesced"), (106.0, "miss")]
        assert told(asked) == marks
        assert len({answer.prediction_id for (answer,) in asked}) == 4
        assert [len(rows) for rows in engine.runs] == [1, 1]
        assert nothing_is_held(plane)


async def test_a_request_that_waited_tells_of_the_run_that_answered_it() -> None:
    """Its record holds that run's rows and time, and is no hit."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(caching(versions=(1,)))
        asked = [plane.submit(plane.call(value), "e") for value in (5.0, 6.0, 5.0)]
        await until(lambda: all(asked))
        records = plane.recorder.drain()
        assert [(record.batch_rows, record.cached) for record in records] == [(2, False)] * 3


async def test_where_the_first_fails_each_other_is_tried_by_itself() -> None:
    """A failure is never shared: one that passes spares those that waited."""
    engine = _FailsOnce()
    with Plane({ONE: engine}) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.runs.clear()
        engine.fails = True
        first = plane.submit(plane.call(5.0), "e")
        others = [plane.submit(plane.call(5.0), "e") for _ in range(3)]
        await until(lambda: all([first, *others]))
        assert isinstance(first[0].error, EngineFailed)
        assert told(others) == [(5.0, "miss")] * 3
        assert [len(rows) for rows in engine.runs] == [1, 3]
        assert plane.count(CACHE_MISSES, key="e") == 4
        assert nothing_is_held(plane)


class _FailsOnce(FakeEngine):
    """Fails one run, once it is told to."""

    fails = False

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        results = super().run(tensors, outputs)
        if self.fails:
            self.fails = False
            raise EngineFailed("It failed.")
        return results


async def test_a_failure_is_not_kept() -> None:
    """The next equal request is run."""
    engine = FailingEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(caching(versions=(1,)))
        for _ in range(2):
            answer = await plane.ask(plane.call(engine.poison), "e")
            assert isinstance(answer.error, EngineFailed)
            assert answer.cache == "miss"
        assert plane.worker.cache.storage.size == 0
        assert nothing_is_held(plane)


async def test_all_that_wait_for_a_poisoned_request_are_told_so() -> None:
    """Where every try fails, every caller is answered, once."""
    engine = FailingEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(caching(versions=(1,)))
        asked = [plane.submit(plane.call(engine.poison), "e") for _ in range(4)]
        mate = plane.submit(plane.call(1.0), "e")
        await until(lambda: all([*asked, mate]))
        assert [type(answer.error) for (answer,) in asked] == [EngineFailed] * 4
        assert value_of(mate[0]) == 1.0
        assert nothing_is_held(plane)


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_first_that_is_not_run_takes_nobody_along(how: str) -> None:
    """One of those that waited is the next first; the others wait for it, and one run serves."""
    engine = SlowEngine()
    with Plane({ONE: engine}, pool=THREADED) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.hold()
        busy = plane.submit(plane.call(1.0), "e")
        await until(engine.entered.is_set)
        engine.runs.clear()
        served = plane.pipeline.find("e")
        gone: list[Answer] = []
        call = plane.call(5.0, timeout_us=1_000_000 if how == "late" else 0)
        flight = plane.pipeline.submit(served, call, gone.append)
        assert flight is not None
        others = [plane.submit(plane.call(5.0), "e") for _ in range(3)]
        if how == "cancelled":
            flight.cancel()
        else:
            plane.clock.advance(2.0)
        engine.release()
        await until(lambda: all([busy, *others]))
        assert [type(answer.error) for answer in gone] == (
            [DeadlineExceeded] if how == "late" else []
        )
        assert told(others) == [(5.0, "miss"), (5.0, "coalesced"), (5.0, "coalesced")]
        assert [len(rows) for rows in engine.runs] == [1, 1]
        assert nothing_is_held(plane)


async def test_those_that_wait_keep_their_own_deadlines() -> None:
    """A follower whose time is over, or that nobody waits for, is not answered by the run."""
    engine = SlowEngine()
    with Plane({ONE: engine}, pool=THREADED) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.hold()
        first = plane.submit(plane.call(5.0), "e")
        await until(engine.entered.is_set)
        hasty = plane.submit(plane.call(5.0, timeout_us=1_000_000), "e")
        patient = plane.submit(plane.call(5.0, timeout_us=9_000_000), "e")
        left: list[Answer] = []
        flight = plane.pipeline.submit(plane.pipeline.find("e"), plane.call(5.0), left.append)
        assert flight is not None
        flight.cancel()
        plane.clock.advance(2.0)
        engine.release()
        await until(lambda: all([first, hasty, patient]))
        assert told([first, patient]) == [(5.0, "miss"), (5.0, "coalesced")]
        assert isinstance(hasty[0].error, DeadlineExceeded)
        assert left == []
        await until(lambda: nothing_is_held(plane))


async def test_a_queue_that_is_full_answers_all_that_waited() -> None:
    """Refused when they are tried by themselves, they are told, and nothing is left hanging."""
    engine = _HeldAndFailing()
    settings = BatchSettings(max_queued_rows=1)
    with Plane({ONE: engine}, pool=THREADED, batching=settings) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.hold()
        engine.error = EngineFailed("It failed.")
        first = plane.submit(plane.call(5.0), "e")
        await until(engine.entered.is_set)
        others = [plane.submit(plane.call(5.0), "e") for _ in range(3)]
        engine.release()
        await until(lambda: all([first, *others]))
        kinds = sorted(type(answer.error).__name__ for (answer,) in [first, *others])
        assert kinds == ["EngineFailed", "EngineFailed", "Overloaded", "Overloaded"]
        assert nothing_is_held(plane)


class _HeldAndFailing(SlowEngine):
    """Fails, once it is told to, after it was released."""

    error: GatewayError | None = None

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        results = super().run(tensors, outputs)
        if self.error is not None:
            raise self.error
        return results


async def test_a_first_that_is_refused_leads_nobody() -> None:
    """An equal request after it is not made to wait for what never runs."""
    engine = SlowEngine()
    settings = BatchSettings(max_queued_rows=1)
    with Plane({ONE: engine}, pool=THREADED, batching=settings) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.hold()
        running = plane.submit(plane.call(1.0), "e")
        await until(engine.entered.is_set)
        queued = plane.submit(plane.call(2.0), "e")
        refused = [plane.submit(plane.call(5.0), "e") for _ in range(2)]
        assert [type(answer.error) for (answer,) in refused] == [Overloaded] * 2
        engine.release()
        await until(lambda: all([running, queued]))
        assert value_of(await plane.ask(plane.call(5.0), "e")) == 5.0
        assert nothing_is_held(plane)


async def test_those_that_lead_next_and_find_no_room_are_told_so() -> None:
    """The first leaves while it runs, and others fill the queue: nobody is left without answer."""
    engine = SlowEngine()
    settings = BatchSettings(max_queued_rows=1)
    with Plane({ONE: engine}, pool=THREADED, batching=settings) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.hold()
        gone: list[Answer] = []
        served = plane.pipeline.find("e")
        first = plane.pipeline.submit(served, plane.call(5.0), gone.append)
        assert first is not None
        await until(engine.entered.is_set)
        waiting = [plane.submit(plane.call(5.0), "e") for _ in range(2)]
        queued = plane.submit(plane.call(2.0), "e")
        first.cancel()
        assert [type(answer.error) for one in waiting for answer in one] == [Overloaded] * 2
        engine.release()
        await until(lambda: bool(queued))
        assert value_of(await plane.ask(plane.call(5.0), "e")) == 5.0
        assert gone == []
        assert nothing_is_held(plane)


async def test_a_door_that_breaks_harms_nobody_who_waits() -> None:
    """An error in one reply leaves the others' answers, the leases and the cache alone."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(caching(versions=(1,)))
        served, broken = plane.pipeline.find("e"), []

        def reply(answer: Answer) -> None:
            broken.append(answer)
            raise RuntimeError("this door is broken")

        for _ in range(2):
            plane.pipeline.submit(served, plane.call(5.0), reply)
        mate = plane.submit(plane.call(5.0), "e")
        await until(lambda: bool(mate))
        plane.pipeline.submit(served, plane.call(5.0), reply)
        assert [answer.cache for answer in broken] == ["miss", "coalesced", "hit"]
        assert told([mate]) == [(5.0, "coalesced")]
        assert nothing_is_held(plane)


async def test_requests_of_two_endpoints_do_not_wait_for_each_other() -> None:
    """Each endpoint has a space of its own, though the version is one."""
    with Plane({ONE: FakeEngine()}) as plane:
        policy = Caching(max_mb=1)
        ends = {name: endpoint_of(cache=policy) for name in ("e", "f")}
        await plane.serve(snapshot_of(endpoints=ends))
        asked = [plane.submit(plane.call(5.0), name) for name in ("e", "f")]
        await until(lambda: all(asked))
        assert told(asked) == [(5.0, "miss"), (5.0, "miss")]


async def test_a_lead_leaves_no_circle_behind() -> None:
    """What was answered is freed at once, without waiting for the garbage collector."""
    engine = FakeEngine()
    with Plane({ONE: engine}) as plane:
        await plane.serve(caching(versions=(1,)))
        gc.collect()
        gc.disable()
        try:
            calls = [plane.call(5.0) for _ in range(3)]
            tensors = [weakref.ref(call.request.tensors["x"]) for call in calls]
            asked = [plane.submit(call, "e") for call in calls]
            del calls
            await until(lambda: all(asked))
            await asyncio.sleep(0)
            engine.runs.clear()
            assert [ref() is None for ref in tensors] == [True] * 3
        finally:
            gc.enable()


class Asking:
    """A caller who holds what they may cancel, as doors do."""

    def __init__(self, plane: Plane) -> None:
        self.answer: Answer | None = None
        self.flight = plane.pipeline.submit(
            plane.pipeline.find("e"), plane.call(5.0), self.answered
        )

    def answered(self, answer: Answer) -> None:
        self.answer = answer


async def test_a_hit_leaves_no_circle_behind() -> None:
    """It is answered before its caller could hold the flight; both are freed at once."""
    with Plane({ONE: FakeEngine()}) as plane:
        await plane.serve(caching(versions=(1,)))
        await plane.ask(plane.call(5.0), "e")
        gc.collect()
        gc.disable()
        try:
            asking = Asking(plane)
            gone = weakref.ref(asking)
            assert asking.answer is not None
            assert asking.answer.cache == "hit"
            assert asking.flight is None
            del asking
            assert gone() is None
        finally:
            gc.enable()


async def test_a_lead_that_is_refused_leaves_no_circle_behind() -> None:
    """It stood between its job and its caller, and stands there no more."""
    engine = SlowEngine()
    settings = BatchSettings(max_queued_rows=1)
    with Plane({ONE: engine}, pool=THREADED, batching=settings) as plane:
        await plane.serve(caching(versions=(1,)))
        engine.hold()
        others = [plane.submit(plane.call(1.0), "e")]
        await until(engine.entered.is_set)
        others.append(plane.submit(plane.call(2.0), "e"))
        gc.collect()
        gc.disable()
        try:
            asking = Asking(plane)
            gone = weakref.ref(asking)
            assert asking.answer is not None
            assert isinstance(asking.answer.error, Overloaded)
            del asking
            assert gone() is None
        finally:
            gc.enable()
        engine.release()
        await until(lambda: all(others))
