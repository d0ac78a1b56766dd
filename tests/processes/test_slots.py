import pytest

from gateway.processes.slots import MAX_PAUSE_S, SETTLED_S, Slot, workers_stop_s


def lived(slot: Slot, start: float, seconds: float) -> float:
    """Let a slot live a life; the pause until the next."""
    slot.begin(pid=1, now=start)
    return slot.end(start + seconds)


def test_pauses_double_and_are_bounded() -> None:
    """A process that ends early again and again is started ever more rarely."""
    slot = Slot("worker 1", 1)

    pauses = [lived(slot, start=100.0, seconds=1.0) for _ in range(12)]

    assert pauses[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert pauses[-1] == MAX_PAUSE_S


def test_a_life_that_lasted_is_no_failed_start() -> None:
    """After a stable run the first pause is short again."""
    slot = Slot("worker 1", 1)
    for _ in range(8):
        lived(slot, start=100.0, seconds=1.0)

    assert lived(slot, start=100.0, seconds=SETTLED_S) == pytest.approx(0.1)


def test_who_was_asked_to_end_is_replaced_at_once() -> None:
    """A recycled process has no pause, and does not count as failed."""
    slot = Slot("worker 1", 1)
    slot.begin(pid=1, now=5.0)
    slot.ending, slot.kill_at = True, 9.0

    assert slot.end(6.0) == 0.0
    assert slot.is_due(6.0)
    assert slot.early_ends == 0
    assert [slot.pid, slot.kill_at] == [None, None]


def test_a_slot_is_due_when_its_pause_is_over() -> None:
    """Nothing is started before its time, nor beside a process that lives."""
    slot = Slot("worker 1", 1)
    pause = lived(slot, start=10.0, seconds=1.0)

    assert not slot.is_due(11.0 + pause / 2)
    assert slot.is_due(11.0 + pause)
    slot.begin(pid=2, now=12.0)
    assert not slot.is_due(99.0)


def test_control_has_time_left_when_workers_had_theirs() -> None:
    """Of the time to stop in, what follows the delay is shared."""
    assert workers_stop_s(stop_s=15.0, delay_s=5.0) == pytest.approx(12.0)
