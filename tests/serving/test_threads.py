import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.serving.threads import Run, ThreadLimits, Threads, give_way
from tests.fakes import NanoClock
from tests.planes import until


class Work(Run):
    """Runs a function."""

    def __init__(self, source: "Worker", work: Callable[[], object]) -> None:
        super().__init__(source)
        self.work = work

    def execute(self) -> object:
        return self.work()


class Worker:
    """A source with a queue of functions."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.waiting: deque[Callable[[], object]] = deque()
        self.results: list[object] = []
        self.is_asking = False
        self.stuck = 0
        self.given_up = 0

    def put(self, *works: Callable[[], object]) -> None:
        self.waiting.extend(works)
        self.threads.ask(self)

    def next_run(self) -> Work | None:
        return Work(self, self.waiting.popleft()) if self.waiting else None

    def has_more(self) -> bool:
        return bool(self.waiting)

    def landed(self, run: Any, result: Any, run_ns: int) -> None:
        self.results.append(result)

    def gave_up(self) -> None:
        self.given_up += 1


class Gate:
    """Work that waits until it is let through."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.open.wait(20), "nobody opened the gate"
        return "through"


def threads_of(**limits: float) -> tuple[Threads, NanoClock]:
    """Threads on a clock that moves when told to."""
    clock = NanoClock()
    made = ThreadLimits(**{"stuck_s": 0.01, **limits})  # type: ignore[arg-type]
    return Threads(asyncio.get_running_loop(), clock.monotonic_ns, made), clock


async def test_as_many_run_at_once_as_there_are_slots() -> None:
    """A free slot is filled before `ask` returns, and no more than there are."""
    threads, _ = threads_of(slots=2)
    gates = [Gate() for _ in range(3)]
    source = Worker(threads)
    source.put(*gates)
    assert threads.busy == 2
    await until(lambda: gates[0].entered.is_set() and gates[1].entered.is_set())
    assert not gates[2].entered.is_set()
    for gate in gates:
        gate.open.set()
    await until(lambda: len(source.results) == 3)
    threads.close()


async def test_sources_take_turns() -> None:
    """One with much to do keeps another waiting for one run, not for all of them."""
    threads, _ = threads_of(slots=1)
    order: list[str] = []
    gate, greedy, modest = Gate(), Worker(threads), Worker(threads)
    greedy.put(gate, *[lambda: order.append("greedy")] * 3)
    modest.put(*[lambda: order.append("modest")] * 2)
    gate.open.set()
    await until(lambda: len(order) == 5)
    assert order == ["greedy", "modest", "greedy", "modest", "greedy"]
    threads.close()


async def test_a_stuck_run_is_counted_and_its_slot_filled_again() -> None:
    """A thread that does not come back is replaced, and counted until it does."""
    threads, clock = threads_of(slots=1)
    gate, hanging, other = Gate(), Worker(threads), Worker(threads)
    hanging.put(gate)
    other.put(lambda: "done")
    await until(gate.entered.is_set)
    clock.advance(1.0)
    await until(lambda: other.results == ["done"])
    assert (threads.stuck, hanging.stuck) == (1, 1)
    gate.open.set()
    await until(lambda: hanging.results == ["through"])
    assert (threads.stuck, hanging.stuck, threads.busy) == (0, 0, 0)
    threads.close()


async def test_a_run_that_is_expected_to_take_long_is_not_stuck() -> None:
    """A model that always takes seconds does not hang."""
    threads, clock = threads_of(slots=1)
    gate, source = Gate(), Worker(threads)

    def long_run() -> Work:
        run = Work(source, gate)
        run.expected_ns = 1e9
        source.waiting.clear()
        return run

    source.next_run = long_run  # type: ignore[method-assign]
    source.put(gate)
    await until(gate.entered.is_set)
    clock.advance(7.0)
    await asyncio.sleep(0.03)
    assert threads.stuck == 0
    clock.advance(2.0)
    await until(lambda: threads.stuck == 1)
    gate.open.set()
    await until(lambda: bool(source.results))
    threads.close()


async def test_a_source_that_hangs_gets_no_further_slot() -> None:
    """It is told so, others go on, and it may run again when one of its runs comes back."""
    threads, clock = threads_of(slots=1, spare=4, stuck_each=2)
    gates, hanging, other = [Gate() for _ in range(3)], Worker(threads), Worker(threads)
    hanging.put(*gates)
    for gate in gates[:2]:
        await until(gate.entered.is_set)
        clock.advance(1.0)
    await until(lambda: hanging.given_up == 1)
    other.put(lambda: "done")
    await until(lambda: other.results == ["done"])
    assert not gates[2].entered.is_set()
    hanging.put()
    assert not hanging.is_asking
    gates[0].open.set()
    await until(gates[2].entered.is_set)
    gates[1].open.set()
    gates[2].open.set()
    await until(lambda: len(hanging.results) == 3)
    threads.close()


async def test_stuck_threads_are_replaced_up_to_a_bound() -> None:
    """Beyond it what hangs takes slots; the process does not fill with threads."""
    threads, clock = threads_of(slots=1, spare=2, stuck_each=1)
    gates = [Gate() for _ in range(3)]
    sources = [Worker(threads) for _ in range(3)]
    for gate, source in zip(gates, sources, strict=True):
        source.put(gate)
        await until(gate.entered.is_set)
        clock.advance(1.0)
        await until(lambda source=source: source.stuck == 1)  # type: ignore[misc]
    late = Worker(threads)
    late.put(lambda: "done")
    assert (threads.stuck, threads.busy) == (3, 3)
    assert late.is_asking
    for gate in gates:
        gate.open.set()
    await until(lambda: late.results == ["done"])
    threads.close()


async def test_closing_does_not_wait_for_what_is_stuck() -> None:
    """A thread that hangs must not keep a process from ending."""
    threads, clock = threads_of(slots=1)
    gate, source = Gate(), Worker(threads)
    source.put(gate)
    await until(gate.entered.is_set)
    clock.advance(1.0)
    await until(lambda: threads.stuck == 1)
    threads.close()
    assert threads.busy == 1
    gate.open.set()
    await until(lambda: source.results == ["through"])


async def test_a_source_that_fails_to_take_a_result_stops_nobody() -> None:
    """The next run lands all the same."""
    threads, _ = threads_of(slots=1)

    class Broken(Worker):
        def landed(self, run: Any, result: Any, run_ns: int) -> None:
            raise RuntimeError("no")

    broken, other = Broken(threads), Worker(threads)
    broken.put(lambda: 1)
    other.put(lambda: 2)
    await until(lambda: other.results == [2])
    threads.close()


async def test_an_idle_thread_holds_nothing_of_its_last_run() -> None:
    """What ran may be collected: an idle thread keeps no version's memory."""
    threads, _ = threads_of(slots=1)
    source = Worker(threads)
    gone = threading.Event()

    class Big:
        def __call__(self) -> None:
            return None

        def __del__(self) -> None:
            gone.set()

    source.put(Big())
    await until(lambda: source.results == [None])
    await until(gone.is_set)
    threads.close()


def own_niceness() -> int:
    """Of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_threads_give_way_to_the_loop_and_the_loop_to_nobody() -> None:
    """The scheduler knows each thread's niceness; that of the event loop stays as it was."""
    before = own_niceness()
    wanted = min(before + 5, 19)
    threads = Threads(
        asyncio.get_running_loop(),
        NanoClock().monotonic_ns,
        prepare=partial(give_way, wanted),
    )
    source = Worker(threads)
    source.put(own_niceness)
    await until(lambda: bool(source.results))
    assert source.results == [wanted]
    assert own_niceness() == before
    threads.close()
