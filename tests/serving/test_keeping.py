from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.endpoints import Caching
from gateway.core.tensors import Array
from gateway.serving.cells import Cells
from gateway.serving.keeping import (
    ANSWER_BYTES,
    ARRAY_BYTES,
    CLEARED_AT_ONCE,
    ELEMENT_BYTES,
    MIB,
    Shelf,
    Storage,
)
from gateway.telemetry import CACHE_EVICTED, CACHE_SIZE, Instrument

ONE = Caching(max_mb=1)


class Bench:
    """A storage, and what it put off until later."""

    def __init__(self, max_bytes: int = 8 * MIB, **policies: Caching) -> None:
        self.cells = Cells()
        self.later: list[Callable[[], None]] = []
        self.storage = Storage(self.later.append, self.cells, max_bytes)
        self.storage.adapt(policies or {"e": ONE}, {"d1", "d2"})

    def shelf(self, endpoint: str = "e", digest: str = "d1") -> Shelf:
        return self.storage.spaces[endpoint].shelf(digest)

    def keep(self, name: str, size: int = 0, endpoint: str = "e", digest: str = "d1") -> None:
        """Keep an answer that takes `size` bytes in all."""
        room = max(0, size - ANSWER_BYTES - ARRAY_BYTES)
        shelf = self.shelf(endpoint, digest)
        self.storage.keep(shelf, name.encode(), [np.zeros(room, "u1")], 0)

    def names(self, endpoint: str = "e", digest: str = "d1") -> list[str]:
        """What is kept, the least recently used first."""
        return [key.decode() for key in self.shelf(endpoint, digest).answers]

    def idle(self) -> int:
        """Do all that was put off; how many turns it took."""
        turns = 0
        while self.later:
            self.later.pop(0)()
            turns += 1
        return turns

    def value(self, instrument: Instrument, endpoint: str = "e") -> float:
        return next(
            series.value
            for series in self.cells.collect()
            if series.instrument is instrument
            and ("feature_flag.key", endpoint) in series.attributes
        )


def found(bench: Bench, name: str, now_ns: int = 0) -> tuple[Array, ...] | None:
    """The outputs that are kept under a name."""
    kept = bench.storage.find(bench.shelf(), name.encode(), now_ns)
    return None if kept is None else kept.outputs


def test_what_is_found_is_what_was_kept_and_nobody_may_write_to_it() -> None:
    """All outputs, their shapes and types; later writes to the originals change nothing."""
    bench = Bench()
    outputs = [np.array([[1.0, -0.0]], "<f4"), np.array([b"a", b""], object), np.array(7, "<i8")]
    bench.storage.keep(bench.shelf(), b"k", outputs, 0)
    outputs[0][0, 0] = 9.0
    got = found(bench, "k")
    assert got is not None
    assert [(one.dtype, one.shape, one.tolist()) for one in got] == [
        (np.dtype("<f4"), (1, 2), [[1.0, -0.0]]),
        (np.dtype(object), (2,), [b"a", b""]),
        (np.dtype("<i8"), (), 7),
    ]
    with pytest.raises(ValueError, match="read-only"):
        got[0][0, 0] = 3.0


def test_a_part_of_a_shared_run_does_not_hold_the_rest() -> None:
    """What is kept owns its memory, so the bytes that are counted are the bytes that are held."""
    bench = Bench()
    whole = np.zeros((1_000, 100), "<f4")
    bench.storage.keep(bench.shelf(), b"k", [whole[3:4]], 0)
    got = found(bench, "k")
    assert got is not None
    assert got[0].base is None


def test_sizes_count_elements_and_what_holds_them() -> None:
    """Arrays, elements of BYTES, and the place of each."""
    bench = Bench()
    outputs = [np.zeros((2, 3), "<f8"), np.array([b"abc", b""], object)]
    bench.storage.keep(bench.shelf(), b"k", outputs, 0)
    elements = 2 * 3 * 8 + 2 * 8 + 2 * ELEMENT_BYTES + 3
    assert bench.storage.size == ANSWER_BYTES + 2 * ARRAY_BYTES + elements
    assert bench.value(CACHE_SIZE) == bench.storage.size


def test_the_least_recently_used_answer_goes_first() -> None:
    """A use counts as much as keeping; the counter says how many went."""
    bench = Bench()
    for name in "abcd":
        bench.keep(name, MIB // 4)
    assert found(bench, "a") is not None
    bench.keep("e", MIB // 4)
    assert bench.names() == ["c", "d", "a", "e"]
    bench.keep("f", MIB // 2)
    assert bench.names() == ["a", "e", "f"]
    assert bench.value(CACHE_EVICTED) == 3


def test_an_endpoint_spends_its_bound_over_all_versions() -> None:
    """The oldest goes, whichever version gave it; other endpoints lose nothing."""
    bench = Bench(e=ONE, f=ONE)
    bench.keep("other", MIB, endpoint="f")
    bench.keep("old", MIB // 2, digest="d1")
    bench.keep("new", MIB // 2, digest="d2")
    bench.keep("newer", MIB // 2, digest="d2")
    assert (bench.names(digest="d1"), bench.names(digest="d2")) == ([], ["new", "newer"])
    assert bench.names("f") == ["other"]


def test_the_process_has_one_bound_over_all_endpoints() -> None:
    """The oldest goes, whosever it is."""
    bench = Bench(max_bytes=MIB, e=ONE, f=ONE)
    bench.keep("first", MIB // 2)
    bench.keep("second", MIB // 2, endpoint="f")
    bench.keep("third", MIB // 2, endpoint="f")
    assert (bench.names("e"), bench.names("f")) == ([], ["second", "third"])
    assert (bench.value(CACHE_EVICTED, "e"), bench.value(CACHE_EVICTED, "f")) == (1, 0)


@pytest.mark.parametrize(
    ("max_bytes", "size", "kept"),
    [
        pytest.param(8 * MIB, MIB, ["big"], id="all-of-it"),
        pytest.param(8 * MIB, MIB + 1, ["small"], id="above-the-endpoints"),
        pytest.param(MIB // 2, MIB // 2 + 1, ["small"], id="above-the-processs"),
    ],
)
def test_what_is_larger_than_a_bound_is_not_kept(
    max_bytes: int, size: int, kept: list[str]
) -> None:
    """It would push everything out and not fit all the same."""
    bench = Bench(max_bytes)
    bench.keep("small", 1_000)
    bench.keep("big", size)
    assert bench.names() == kept


def test_an_answer_is_found_until_its_time_is_over() -> None:
    """The time counts from the question, and what is over takes no room."""
    bench = Bench(e=Caching(max_mb=1, ttl_s=1.5))
    bench.storage.keep(bench.shelf(), b"k", [np.zeros(3)], 1_000)
    assert found(bench, "k", 1_500_000_999) is not None
    assert found(bench, "k", 1_500_001_000) is None
    assert (bench.names(), bench.storage.size) == ([], 0)


def test_a_second_answer_to_one_question_takes_the_place_of_the_first() -> None:
    """Nothing is counted twice."""
    bench = Bench()
    bench.keep("k", 5_000)
    bench.keep("k", 3_000)
    assert (bench.names(), bench.storage.size) == (["k"], 3_000)


def test_a_closed_version_loses_its_answers_in_portions() -> None:
    """They are found no more at once, and no turn of the loop frees too many."""
    bench = Bench(e=Caching(max_mb=8))
    for index in range(2 * CLEARED_AT_ONCE + 1):
        bench.keep(str(index), 1_000, digest="d1")
    bench.keep("other", 1_000, digest="d2")
    closed = bench.shelf()
    bench.storage.adapt({"e": Caching(max_mb=8)}, {"d2"})
    assert bench.value(CACHE_SIZE) == 1_000
    bench.storage.keep(closed, b"late", [np.zeros(3)], 0)
    assert b"late" not in closed.answers
    assert bench.idle() == 3
    assert bench.storage.size == 1_000
    assert bench.names(digest="d2") == ["other"]


def test_what_leaves_makes_room_before_anything_else_does() -> None:
    """While a closed version's answers are still being freed, no live one goes for them."""
    bench = Bench(max_bytes=MIB)
    bench.keep("live", MIB // 4, digest="d2")
    bench.keep("gone", MIB // 2, digest="d1")
    bench.storage.adapt({"e": ONE}, {"d2"})
    bench.keep("new", MIB // 2, digest="d2")
    assert bench.names(digest="d2") == ["live", "new"]
    assert bench.value(CACHE_EVICTED) == 0
    bench.idle()
    assert bench.storage.size == MIB // 4 + MIB // 2


@pytest.mark.parametrize(
    "policies",
    [
        pytest.param({}, id="off"),
        pytest.param({"e": Caching(max_mb=1, ttl_s=1.0)}, id="changed"),
        pytest.param({"f": ONE}, id="another"),
    ],
)
def test_an_endpoint_whose_policy_changed_starts_anew(policies: dict[str, Caching]) -> None:
    """What was kept under other terms is let go of, and the same terms keep it."""
    bench = Bench()
    bench.keep("k", 5_000)
    bench.storage.adapt({"e": Caching(max_mb=1)}, {"d1", "d2"})
    assert bench.names() == ["k"]
    bench.storage.adapt(policies, {"d1", "d2"})
    bench.idle()
    assert set(bench.storage.spaces) == set(policies)
    assert (bench.storage.size, bench.value(CACHE_SIZE)) == (0, 0)


Move = tuple[str, str, str, str, int]
MOVES = st.tuples(
    st.sampled_from(["keep", "keep", "keep", "find", "close", "idle"]),
    st.sampled_from("ef"),
    st.sampled_from(["d1", "d2"]),
    st.sampled_from("abcdefgh"),
    st.integers(0, MIB + MIB // 8),
)


@settings(max_examples=60)
@given(st.lists(MOVES, max_size=60), st.integers(MIB // 2, 3 * MIB))
def test_no_bound_is_ever_exceeded(moves: list[Move], max_bytes: int) -> None:
    """Whatever comes in whatever order, the counts are true and within the bounds."""
    policies = {"e": ONE, "f": Caching(max_mb=2)}
    bench = Bench(max_bytes, **policies)
    order: OrderedDict[tuple[str, str, str], None] = OrderedDict()
    for what, endpoint, digest, name, size in moves:
        if what == "keep":
            bench.keep(name, size, endpoint, digest)
        elif what == "find":
            bench.storage.find(bench.shelf(endpoint, digest), name.encode(), 0)
        elif what == "close":
            bench.storage.adapt(policies, {"d1", "d2"} - {digest})
        else:
            bench.idle()
        place = (endpoint, digest, name)
        if what in ("keep", "find") and name.encode() in bench.shelf(endpoint, digest).answers:
            order[place] = None
            order.move_to_end(place)
        sizes = {
            one: [
                kept.size
                for shelf in bench.storage.spaces[one].shelves.values()
                for kept in shelf.answers.values()
            ]
            for one in policies
        }
        for one, space in bench.storage.spaces.items():
            assert space.size == sum(sizes[one]) <= space.max_bytes
        assert sum(map(sum, sizes.values())) <= bench.storage.size <= max_bytes
        for shelf_endpoint, shelf_digest in {(one, two) for one, two, _ in order}:
            names = bench.names(shelf_endpoint, shelf_digest)
            used = [c for a, b, c in order if (a, b) == (shelf_endpoint, shelf_digest)]
            assert names == [one for one in used if one in names]
    bench.idle()
    assert bench.storage.size == sum(space.size for space in bench.storage.spaces.values())
