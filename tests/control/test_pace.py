import pytest

from gateway.control.pace import Pace


class Time:
    """Seconds that stand until they are moved."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_backlog_leaves_at_the_floors_rate() -> None:
    """What is sent has to be waited for, once it is more than a moment's worth."""
    time = Time()
    pace = Pace(1_000.0, time)
    assert pace.sent(5) == 0.0
    waits = [pace.sent(100) for _ in range(10)]
    assert waits[-1] == pytest.approx(1.005)
    time.now += 10.0
    assert pace.sent(100) == pytest.approx(0.1)


def test_twice_what_comes_in_may_leave() -> None:
    """A gateway at full load catches up all the same."""
    time = Time()
    pace = Pace(1_000.0, time)
    for _ in range(10):
        time.now += 0.1
        pace.came(1_000)
    time.now += 0.5
    pace.came(0)
    assert pace.sent(10_000) == pytest.approx(0.5)
