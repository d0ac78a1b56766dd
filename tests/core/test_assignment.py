import json
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.assignment import (
    Drawer,
    Positions,
    SplitState,
    covers_exactly,
    positions,
    reweigh,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "assignment.json"
UNITS = [f"unit-{number}".encode() for number in range(10_000)]


def state_of(weights: Mapping[str, int], salt: str = "salt") -> SplitState:
    """A split that was never edited."""
    return SplitState.fresh(salt=salt, hash_version=1, weights=weights)


def reference_positions(salt: str, unit: bytes) -> tuple[int, int]:
    """Both positions by exact fractions, from the words of hash version 1."""
    digest = blake2b(
        unit, digest_size=16, key=salt.encode("utf-8"), person=b"tiltyard-split-1"
    ).hexdigest()
    halves = (Fraction(int(half, 16), 2**64) for half in (digest[:16], digest[16:]))
    enrolment, variant = (int(half * 10_000) for half in halves)
    return enrolment, variant


def reference_draw(
    salt: str, unit: bytes, exposure: int, weights: Sequence[tuple[str, int]]
) -> str | None:
    """The variant of a split that was never edited, by walking along the weights."""
    enrolment, place = reference_positions(salt, unit)
    if enrolment >= exposure:
        return None
    for name, weight in weights:
        if place < weight:
            return name
        place -= weight
    raise AssertionError


def owners(state: SplitState) -> list[str | None]:
    """Who owns each of the 10,000 positions."""
    table: list[str | None] = [None] * 10_000
    for name, pieces in state.intervals.items():
        for start, end in pieces:
            for place in range(start, end):
                assert table[place] is None, "two variants own one position"
                table[place] = name
    return table


def vectors() -> list[dict[str, Any]]:
    """The recorded assignments."""
    document = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert document["hash_version"] == 1
    return list(document["vectors"])


@st.composite
def weights(draw: st.DrawFn) -> dict[str, int]:
    """One to six variants whose weights add up to 10,000."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True))
    edges = st.integers(0, 10_000)
    cuts = sorted(draw(st.lists(edges, min_size=len(names) - 1, max_size=len(names) - 1)))
    shares = [end - start for start, end in pairwise([0, *cuts, 10_000])]
    return dict(zip(names, shares, strict=True))


def test_recorded_assignments_never_change() -> None:
    """Every recorded vector of hash version 1 is drawn today as it was drawn then."""
    recorded = vectors()
    assert len(recorded) >= 300
    for vector in recorded:
        split = state_of(dict(vector["weights"]), vector["salt"])
        drawn = Drawer(split, vector["exposure"]).draw(vector["unit"].encode())
        assert drawn == vector["variant"], vector


def test_recorded_assignments_can_be_recomputed_with_hashlib_alone() -> None:
    """The recorded vectors follow from the documented hash, without this gateway's code."""
    for vector in vectors():
        drawn = reference_draw(
            vector["salt"], vector["unit"].encode(), vector["exposure"], vector["weights"]
        )
        assert drawn == vector["variant"], vector


@given(st.text(min_size=1, max_size=16), st.binary(max_size=200))
def test_positions_are_two_scaled_halves_of_one_digest(salt: str, unit: bytes) -> None:
    """Enrolment comes from the first 64 bits and the variant from the last, each out of 10,000."""
    enrolment, variant = reference_positions(salt, unit)
    assert positions(salt, unit) == Positions(enrolment=enrolment, variant=variant)


@settings(deadline=None)
@given(
    salt=st.text(min_size=1, max_size=16),
    unit=st.binary(max_size=64),
    exposure=st.integers(0, 10_000),
    first=weights(),
    second=weights(),
)
def test_a_drawer_finds_what_a_search_of_all_intervals_finds(
    salt: str, unit: bytes, exposure: int, first: dict[str, int], second: dict[str, int]
) -> None:
    """Drawing is looking up the variant position among the stored intervals of enrolled units."""
    split = reweigh(state_of(first, salt), second)
    enrolment, place = reference_positions(salt, unit)
    wanted = owners(split)[place] if enrolment < exposure else None
    assert Drawer(split, exposure).draw(unit) == wanted


def test_one_drawer_may_draw_many_units() -> None:
    """A draw leaves nothing behind that could change the next one."""
    drawer = Drawer(state_of({"a": 5000, "b": 5000}), 5000)
    once = [drawer.draw(unit) for unit in UNITS[:100]]
    assert [drawer.draw(unit) for unit in UNITS[:100]] == once
    assert {*once} == {"a", "b", None}


def chi_square(counts: Sequence[int], cells: int) -> float:
    """Pearson's statistic against equal cells."""
    expected = sum(counts) / cells
    return sum((count - expected) ** 2 / expected for count in counts)


def is_plausible(statistic: float, freedom: int) -> bool:
    """Whether a chi-square is within five standard deviations of its mean, either way."""
    return abs(statistic - freedom) < 5 * sqrt(2 * freedom)


def test_both_positions_are_uniform_and_independent() -> None:
    """A hundred thousand units fill a 20 by 20 table of both positions evenly, and its sides."""
    drawn = [positions("uniformity", f"person-{number}".encode()) for number in range(100_000)]
    joint = Counter((place.enrolment // 500, place.variant // 500) for place in drawn)
    table = [joint[row, column] for row in range(20) for column in range(20)]
    assert is_plausible(chi_square(table, 400), 399)
    for side in ("enrolment", "variant"):
        counts = Counter(getattr(place, side) // 100 for place in drawn)
        assert is_plausible(chi_square([counts[cell] for cell in range(100)], 100), 99)


def test_salts_draw_independently() -> None:
    """Where a unit stands under one salt says nothing of where it stands under another."""
    joint: Counter[tuple[int, int]] = Counter()
    for number in range(50_000):
        unit = f"person-{number}".encode()
        pair = positions("salt-1", unit).variant, positions("salt-2", unit).variant
        joint[pair[0] // 1000, pair[1] // 1000] += 1
    table = [joint[row, column] for row in range(10) for column in range(10)]
    assert is_plausible(chi_square(table, 100), 99)


def test_a_ramp_moves_no_enrolled_unit() -> None:
    """From 10% to 50% exposure everybody enrolled stays enrolled, in the same variant."""
    split = state_of({"a": 5000, "b": 5000})
    small, large = Drawer(split, 1000), Drawer(split, 5000)
    before = {unit: small.draw(unit) for unit in UNITS}
    enrolled = {unit: name for unit, name in before.items() if name is not None}
    assert 901 <= len(enrolled) <= 1099
    assert {unit: large.draw(unit) for unit in enrolled} == enrolled
    assert 4835 <= sum(large.draw(unit) is not None for unit in UNITS) <= 5165


@given(unit=st.binary(max_size=32), shares=weights(), ramp=st.tuples(*[st.integers(0, 10_000)] * 2))
def test_raising_exposure_never_moves_a_unit_back(
    unit: bytes, shares: dict[str, int], ramp: tuple[int, int]
) -> None:
    """At any two exposures, who is enrolled at the smaller has the same variant at the larger."""
    split = state_of(shares)
    small, large = (Drawer(split, exposure).draw(unit) for exposure in sorted(ramp))
    assert small is None or large == small


@pytest.mark.parametrize(
    ("exposure", "enrolled"), [pytest.param(0, 0, id="none"), pytest.param(10_000, 500, id="all")]
)
def test_the_ends_of_exposure_are_exact(exposure: int, enrolled: int) -> None:
    """Exposure 0 enrols nobody and exposure 10,000 enrols everybody."""
    drawer = Drawer(state_of({"a": 10_000}), exposure)
    assert sum(drawer.draw(unit) == "a" for unit in UNITS[:500]) == enrolled


def test_ninety_to_ten_is_met_within_binomial_bounds() -> None:
    """Of 10,000 units a weight of 10% gets 1,000 within the 99.9% band."""
    drawer = Drawer(state_of({"stable": 9000, "canary": 1000}), 10_000)
    counts = Counter(drawer.draw(unit) for unit in UNITS)
    assert 901 <= counts["canary"] <= 1099
    assert counts["stable"] == 10_000 - counts["canary"]


def test_weight_zero_gets_nothing() -> None:
    """A variant of weight 0 owns no interval and is drawn for nobody, wherever it stands."""
    split = state_of({"first": 0, "a": 4000, "middle": 0, "b": 6000, "last": 0})
    assert [split.intervals[name] for name in ("first", "middle", "last")] == [(), (), ()]
    drawer = Drawer(split, 10_000)
    assert {drawer.draw(unit) for unit in UNITS} == {"a", "b"}


def test_fresh_intervals_lie_side_by_side_in_the_given_order() -> None:
    """A split that was never served is cut like a ruler."""
    assert state_of({"b": 2500, "a": 2500, "c": 5000}).intervals == {
        "b": ((0, 2500),),
        "a": ((2500, 5000),),
        "c": ((5000, 10_000),),
    }


def test_an_edit_cuts_tails_and_hands_the_pieces_on() -> None:
    """Four quarters to 10:30:30:30 give 500 positions of the first to each of the others."""
    split = state_of({"a": 2500, "b": 2500, "c": 2500, "d": 2500}, "kept")
    after = reweigh(split, {"a": 1000, "b": 3000, "c": 3000, "d": 3000})
    assert after.intervals == {
        "a": ((0, 1000),),
        "b": ((1000, 1500), (2500, 5000)),
        "c": ((1500, 2000), (5000, 7500)),
        "d": ((2000, 2500), (7500, 10_000)),
    }
    assert (after.salt, after.hash_version) == ("kept", 1)


@settings(deadline=None)
@given(weights(), st.lists(weights(), max_size=6))
def test_any_sequence_of_edits_tiles_and_moves_the_least(
    first: dict[str, int], edits: list[dict[str, int]]
) -> None:
    """After each edit the widths are the weights, and no more than the total variation moved."""
    split, before = state_of(first), first
    for after in edits:
        table = owners(split)
        split = reweigh(split, after)
        edited = owners(split)
        assert None not in edited
        counts = Counter(edited)
        assert {name: counts[name] for name in after} == after
        assert set(split.intervals) == set(after)
        names = before.keys() | after.keys()
        variation = sum(abs(after.get(name, 0) - before.get(name, 0)) for name in names)
        moved = sum(old != new for old, new in zip(table, edited, strict=True))
        assert moved * 2 == variation
        assert covers_exactly(split)
        before = after


@given(weights())
def test_an_edit_to_the_same_weights_changes_nothing(shares: dict[str, int]) -> None:
    """Putting the same weights again leaves every interval where it is."""
    assert reweigh(state_of(shares), shares) == state_of(shares)


@pytest.mark.parametrize(
    "after",
    [
        pytest.param({"a": 4000, "b": 6000, "c": 0}, id="weight-zero"),
        pytest.param({"a": 4000, "b": 6000}, id="removed"),
    ],
)
def test_killing_a_variant_moves_only_its_units(after: dict[str, int]) -> None:
    """Units of the variants that stay keep them when another is killed."""
    split = state_of({"a": 3000, "c": 3000, "b": 4000})
    old, new = Drawer(split, 10_000), Drawer(reweigh(split, after), 10_000)
    for unit in UNITS[:3000]:
        before = old.draw(unit)
        assert new.draw(unit) == before or before == "c"
        assert new.draw(unit) != "c"


@pytest.mark.parametrize(
    ("intervals", "covers"),
    [
        pytest.param({"a": ((0, 10_000),)}, True, id="one"),
        pytest.param({"a": ((5000, 10_000), (0, 10)), "b": ((10, 5000),)}, True, id="interleaved"),
        pytest.param({}, False, id="nothing"),
        pytest.param({"a": ()}, False, id="empty"),
        pytest.param({"a": ((0, 9999),)}, False, id="short"),
        pytest.param({"a": ((0, 10_001),)}, False, id="long"),
        pytest.param({"a": ((1, 10_000),)}, False, id="late"),
        pytest.param({"a": ((0, 5000),), "b": ((5001, 10_000),)}, False, id="gap"),
        pytest.param({"a": ((0, 5000),), "b": ((4999, 10_000),)}, False, id="overlap"),
        pytest.param({"a": ((0, 10_000),), "b": ((0, 10_000),)}, False, id="twice"),
        pytest.param({"a": ((0, 10_000), (10_000, 10_000))}, False, id="empty-piece"),
        pytest.param({"a": ((0, 7000), (7000, 6000), (6000, 10_000))}, False, id="backwards"),
        pytest.param({"a": ((-1, 10_000),)}, False, id="negative"),
    ],
)
def test_torn_intervals_are_seen(
    intervals: dict[str, tuple[tuple[int, int], ...]], covers: bool
) -> None:
    """Only intervals that hold each of 0 to 9,999 exactly once cover the range."""
    assert covers_exactly(SplitState(salt="s", hash_version=1, intervals=intervals)) is covers
