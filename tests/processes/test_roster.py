import pytest

from gateway.processes.accepting import sockets_to_hold
from gateway.processes.roster import FRESH_NS, Roster, make_memory, share, size_of
from gateway.serving.vitals import DRAINING, FIRST_LANE, HEARTBEAT, READY, RECORDS, STARTING, STATE

NOW = 100 * FRESH_NS


def roster_of(*states: int) -> Roster:
    """A roster whose workers, on their first lives, are in these states and beat now."""
    roster = Roster(bytearray(size_of(len(states) + 1)), len(states) + 1)
    for slot, state in enumerate(states, start=1):
        roster.open(slot, 1, NOW)
        roster.newest(slot)[STATE] = state
    return roster


def test_processes_see_what_the_others_write() -> None:
    """Two views of the same memory are one roster."""
    memory = make_memory(3)
    mine, theirs = share(memory, 3), share(memory, 3)

    mine.open(2, 1, NOW)
    mine.region(2, 1)[STATE] = READY

    assert theirs.is_serving(2, NOW)
    assert not theirs.is_serving(1, NOW)


def test_what_the_dead_left_stays_readable_while_the_next_starts() -> None:
    """The next life has another region; the one after that takes the first one's."""
    roster = roster_of(READY)
    roster.region(1, 1)[FIRST_LANE] = 3
    roster.region(1, 1)[RECORDS] = 9

    roster.end(1, 1)
    roster.open(1, 2, NOW)

    assert roster.life(1) == 2
    assert roster.is_gone(1, 1)
    assert not roster.is_gone(1, 2)
    assert (roster.region(1, 1)[FIRST_LANE], roster.region(1, 1)[RECORDS]) == (3, 9)
    roster.open(1, 3, NOW)
    assert roster.is_gone(1, 1)
    assert roster.region(1, 3)[FIRST_LANE] == 0


def test_a_stale_heartbeat_is_no_service() -> None:
    """A loop that has not turned for a while does not serve, whatever it said."""
    roster = roster_of(READY)
    roster.newest(1)[HEARTBEAT] = NOW - FRESH_NS

    assert not roster.is_serving(1, NOW)
    assert roster.age_ns(1, NOW) == FRESH_NS


@pytest.mark.parametrize(
    ("states", "deputies"),
    [
        pytest.param((READY, READY, READY), (None, None, None), id="all-serve"),
        pytest.param((READY, STARTING, READY), (None, 3, None), id="next"),
        pytest.param((READY, READY, DRAINING), (None, None, 1), id="around"),
        pytest.param((STARTING, STARTING, READY), (3, 3, None), id="one-for-two"),
        pytest.param((STARTING, STARTING, STARTING), (None, None, None), id="nobody"),
        pytest.param((STARTING,), (None,), id="alone"),
    ],
)
def test_the_next_that_serves_stands_in(
    states: tuple[int, ...], deputies: tuple[int | None, ...]
) -> None:
    """Every worker that cannot serve has the same one deputy in everybody's eyes."""
    roster = roster_of(*states)

    assert tuple(roster.deputy(slot, NOW) for slot in range(1, len(states) + 1)) == deputies


def test_a_first_start_is_over_when_it_was_ready_once() -> None:
    """Later lives do not count as the first, and a slot nobody opened has it before it."""
    roster = Roster(bytearray(size_of(2)), 2)
    assert roster.is_first_start(1)
    roster.open(1, 1, NOW)
    assert roster.is_first_start(1)
    roster.newest(1)[STATE] = READY
    assert not roster.is_first_start(1)
    roster.open(1, 2, NOW)
    assert not roster.is_first_start(1)


def test_a_worker_holds_its_own_socket_and_those_it_stands_in_for() -> None:
    """One that serves takes its own and its neighbour's; one that does not may let callers wait."""
    roster = roster_of(READY, STARTING, READY)

    def held(slot: int, *, is_serving: bool, may_wait: bool = False) -> set[int]:
        return sockets_to_hold(roster, slot, NOW, is_serving=is_serving, may_wait=may_wait)

    assert held(1, is_serving=True) == {1}
    assert held(3, is_serving=True) == {2, 3}
    assert held(2, is_serving=False) == {2}
    assert held(2, is_serving=False, may_wait=True) == set()
