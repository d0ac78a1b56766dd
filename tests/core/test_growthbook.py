import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.assignment import SplitState
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule, Split, Weighted, weights_of
from gateway.core.errors import InvalidRequest
from gateway.core.growthbook import Ranges, choose, fnv1a32, hashed, in_namespace, ranges_of
from gateway.core.plans import Plan, assign
from gateway.core.snapshot import check, plan_of
from gateway.core.transitions import moved_share, put_endpoint
from tests.core.test_plans import DRAW, Request
from tests.planes import model_of, snapshot_of

CASES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "growthbook.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("seed", "value", "version", "expected"), CASES["hash"])
def test_values_are_hashed_as_published(
    seed: str, value: str, version: int, expected: float | None
) -> None:
    """Exactly; under an unknown version there is no place, and the unit is left out."""
    assert hashed(seed, value, version) == expected


@pytest.mark.parametrize(("_name", "given_", "expected"), CASES["getBucketRange"])
def test_ranges_are_those_published(
    _name: str,
    given_: tuple[int, float, list[float] | None],
    expected: list[list[float]],
) -> None:
    """Also where weights or coverage are not sound."""
    ranges = ranges_of(*given_)
    assert [[round(edge, 8) for edge in one] for one in ranges] == expected


@pytest.mark.parametrize(("_name", "place", "ranges", "expected"), CASES["chooseVariation"])
def test_variations_are_chosen_as_published(
    _name: str,
    place: float,
    ranges: list[tuple[float, float]],
    expected: int,
) -> None:
    """A range holds its start and not its end."""
    assert choose(place, ranges) == expected


@pytest.mark.parametrize(("_name", "unit", "space", "expected"), CASES["inNamespace"])
def test_namespaces_hold_the_published_units(
    _name: str,
    unit: str,
    space: tuple[str, float, float],
    *,
    expected: bool,
) -> None:
    """A namespace keeps experiments apart there as layers do here."""
    assert in_namespace(unit, *space) is expected


def test_texts_are_hashed_by_their_utf16_units() -> None:
    """A character beyond the first plane is two of them."""
    by_units = 0x811C9DC5
    for unit in (0xD83D, 0xDE00):
        by_units = ((by_units ^ unit) * 0x01000193) % 2**32
    assert fnv1a32("😀") == by_units


@given(
    weights=st.lists(st.integers(1, 50), min_size=2, max_size=5),
    small=st.floats(0, 1),
    large=st.floats(0, 1),
)
def test_no_start_moves_with_coverage(weights: list[int], small: float, large: float) -> None:
    """So a growing coverage moves no unit that is enrolled."""
    parts = [weight / sum(weights) for weight in weights]
    less, more = (ranges_of(len(parts), part, parts) for part in sorted((small, large)))
    for (start, end), (other, further) in zip(less, more, strict=True):
        assert start == other
        assert end <= further


def split_of(*weights: int, exposure: int = 10_000, version: int = 2, salt: str = "seed") -> Split:
    """A split that draws as GrowthBook does."""
    variants = tuple(
        Weighted(name, weight, version=1) for name, weight in zip("abc", weights, strict=False)
    )
    return Split(exposure, variants, salt=salt, hash=f"growthbook-{version}")  # type: ignore[arg-type]


def put(split: Split, before: EndpointRecord | None = None) -> EndpointRecord:
    """The endpoint as it is kept after its document was put."""
    endpoints = {} if before is None else {"e": before}
    base = snapshot_of(models={"m": model_of(1)}, endpoints=endpoints)
    document = Endpoint(schema=1, model="m", rules=(Rule("ab", split=split),))
    return put_endpoint(base, "e", document, {"ab": "fresh"}).endpoints["e"]


def planned(split: Split) -> Plan:
    """Its plan."""
    return plan_of(snapshot_of(models={"m": model_of(1)}, endpoints={"e": put(split)}), "e")


@pytest.mark.parametrize(("version", "steps"), [(1, 1_000), (2, 10_000)])
def test_a_split_draws_as_growthbook_would(version: int, steps: int) -> None:
    """By its hash and ranges, with the propensity that the steps of the hash make of weights."""
    plan = planned(split_of(3_333, 6_667, exposure=5_001, version=version))
    ranges = ranges_of(2, 0.5001, [0.3333, 0.6667])
    exact = Counter(choose(step / steps, ranges) for step in range(steps))
    for number in range(500):
        unit = f"unit-{number}"
        place = hashed("seed", unit, version)
        assert place is not None
        index = choose(place, ranges)
        got = assign(plan, Request({"x-unit-id": unit}), DRAW)
        assert got.variant.name == ("a", "b", "default")[index]
        assert got.propensity == pytest.approx(exact[index] / steps, abs=1e-12)
        assert (got.rule, got.salt, got.unit) == ("ab", "seed", unit.encode())
    assert plan.hash_version("ab") == 100 + version


def test_a_change_of_weights_moves_units_as_it_does_there() -> None:
    """Ranges stay contiguous; the share that moves is told exactly."""
    before = put(split_of(2_000, 3_000, 5_000))
    after = put(split_of(3_000, 3_000, 4_000), before)
    assert after.splits["ab"].intervals == {
        "a": ((0, 3_000),),
        "b": ((3_000, 6_000),),
        "c": ((6_000, 10_000),),
    }
    assert moved_share(before, after) == {"ab": pytest.approx(0.2)}
    grown = put(split_of(2_000, 3_000, 5_000, exposure=10_000), before)
    assert moved_share(before, grown) == {"ab": 0.0}


def test_another_hash_is_another_split() -> None:
    """Nobody keeps a variant but by chance."""
    before = put(split_of(5_000, 5_000))
    document = Split(10_000, split_of(5_000, 5_000).variants, salt="seed")
    after = put(document, before)
    assert after.splits["ab"].hash_version == 1
    assert moved_share(before, after) == {"ab": pytest.approx(0.5)}


def test_units_that_are_no_text_are_told_apart() -> None:
    """Also the fresh bytes of a request that names no unit."""
    ranges = Ranges("seed", 102, {"a": 5_000, "b": 5_000}, 10_000)
    places = {ranges.place(bytes([255, number])) for number in range(128, 192)}
    assert len(places) > 60


def test_a_stored_version_must_be_the_documents() -> None:
    """What is read back is checked as what people write."""
    split = split_of(5_000, 5_000)
    state = SplitState.fresh(salt="seed", hash_version=1, weights=weights_of(split))
    document = Endpoint(schema=1, model="m", rules=(Rule("ab", split=split),))
    torn = snapshot_of(endpoints={"e": EndpointRecord(document, {"ab": state})})
    with pytest.raises(InvalidRequest, match="hash version 1 is not the document's"):
        check(torn)
