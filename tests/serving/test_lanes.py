from gateway.serving.lanes import Lanes
from gateway.serving.vitals import FIRST_LANE, LANES, vitals
from tests.fakes import FakeEngine
from tests.planes import Plane, snapshot_of


def test_each_version_has_a_lane_of_its_own() -> None:
    """Lanes differ, are named, and lie in the shared memory."""
    shared = vitals()
    lanes = Lanes(shared)

    first, second = lanes.take(("m", 1)), lanes.take(("m", 2))

    assert first[0] is second[0] is shared
    assert lanes.names == {first[1]: ("m", 1), second[1]: ("m", 2)}


def test_a_lane_is_used_again_once_nothing_is_in_flight() -> None:
    """A version that was closed in spite of a request keeps its lane from others."""
    lanes = Lanes()
    memory, lane = lanes.take(("m", 1))
    memory[lane] = 1
    lanes.give_back(memory, lane)
    other_memory, other = lanes.take(("m", 2))
    lanes.give_back(other_memory, other)

    assert other != lane
    assert lanes.take(("m", 3))[1] == other
    assert lanes.names == {other: ("m", 3)}


def test_more_versions_than_lanes_count_for_themselves() -> None:
    """Who finds no lane left disturbs nobody's count."""
    shared = vitals()
    lanes = Lanes(shared)
    taken = [lanes.take(("m", number)) for number in range(LANES)]
    assert {lane for _, lane in taken} == set(range(FIRST_LANE, FIRST_LANE + LANES))

    memory, lane = lanes.take(("m", LANES))
    memory[lane] = 5
    lanes.give_back(memory, lane)

    assert memory is not shared
    assert list(shared[FIRST_LANE:]) == [0] * LANES


async def test_leases_are_counted_in_the_lane() -> None:
    """The lane holds what is in flight, and nothing once it is answered."""
    with Plane({("m", 1): FakeEngine()}) as plane:
        await plane.serve(snapshot_of())
        loaded = plane.worker.pool.get(("m", 1))
        assert loaded is not None

        loaded.acquire()
        assert loaded.in_flight[loaded.lane] == loaded.leases == 1
        loaded.release()

        assert loaded.in_flight[loaded.lane] == loaded.leases == 0
        assert plane.worker.lanes == {loaded.lane: ("m", 1)}
