import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.core.lineage import (
    DataSource,
    Parent,
    Wanted,
    ancestors,
    check_lineage,
    children,
    is_wanted,
    joined,
    lineage_of,
)

TOLD: dict[str, Any] = {
    "trainer": "scikit-learn",
    "commit": "c0ffee00",
    "metrics": {"auc": 0.7},
    "tags": {"team": "delays"},
    "data": [{"location": "s3://rows", "sha256": "abcd", "rows": 3}],
    "lineage": {"parent": 2, "data_package": "flights", "data_sha256": "ef01", "data_version": "3"},
}


def test_the_parts_that_can_be_asked_for_are_found() -> None:
    """At the top or in the table `lineage`; data in either of two forms."""
    lineage = lineage_of(check_lineage(TOLD), "m")
    assert lineage.parent == Parent("m", 2)
    assert (lineage.trainer, lineage.metrics, lineage.tags) == (
        "scikit-learn",
        {"auc": 0.7},
        {"team": "delays"},
    )
    assert lineage.data == (
        DataSource("s3://rows", "abcd", {"rows": 3}),
        DataSource("flights", "ef01", {"version": "3"}),
    )


@pytest.mark.parametrize(
    ("stated", "parent"),
    [
        (3, Parent("m", 3)),
        ("3", Parent("m", 3)),
        ("other/7", Parent("other", 7)),
    ],
)
def test_a_parent_may_be_of_another_model(stated: object, parent: Parent) -> None:
    """A number, or `model/number`."""
    assert lineage_of(check_lineage({"parent": stated}), "m").parent == parent


@pytest.mark.parametrize(
    "told",
    [
        {"parent": "007"},
        {"parent": 0},
        {"parent": True},
        {"parent": "../x/1"},
        {"parent": "/1"},
        {"parent": 10**12},
        {"commit": 3},
        {"trainer": ["a"]},
        {"description": "d" * 5000},
        {"metrics": [1]},
        {"lineage": {"parameters": 3}},
        {"tags": {"a b": "c"}},
        {"tags": {"a": "v" * 300}},
        {"tags": {f"t{number}": "" for number in range(65)}},
        {"data": {"location": "x"}},
        {"data": [3]},
        {"data": [{"location": 3}]},
        {"data": [{}] * 65},
        {"note": "n" * 70_000},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}},
    ],
)
def test_what_is_of_another_kind_is_refused(told: dict[str, Any]) -> None:
    """Wrong kinds, odd names, and more than is kept."""
    with pytest.raises(InvalidRequest):
        check_lineage(told)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), True),
        (Wanted(tags=("team",), parent=2, commit="c0ff", data="abc"), True),
        (Wanted(tags=("team=delays",)), True),
        (Wanted(tags=("team=else",)), False),
        (Wanted(tags=("team", "tier")), False),
        (Wanted(parent=3), False),
        (Wanted(commit="ffff"), False),
        (Wanted(data="s3://rows"), True),
        (Wanted(data="s3://"), False),
        (Wanted(data=""), False),
    ],
)
def test_all_that_is_asked_must_hold(wanted: Wanted, found: bool) -> None:
    """Prefixes for digests and commits, whole words for the rest."""
    assert is_wanted(lineage_of(TOLD, "m"), wanted, "m") is found


def test_what_is_given_by_hand_wins() -> None:
    """Tables are joined, values replaced."""
    both = joined(TOLD, {"commit": "beef", "tags": {"tier": "gold"}})
    assert both["commit"] == "beef"
    assert both["tags"] == {"team": "delays", "tier": "gold"}
    assert TOLD["commit"] == "c0ffee00"


def test_a_line_of_parents_ends() -> None:
    """At a version without one, and where a circle closes."""
    assert ancestors(4, {4: 3, 3: 1, 1: None}) == (3, 1)
    assert ancestors(1, {1: 2, 2: 3, 3: 2}) == (2, 3)
    assert ancestors(1, {1: 1}) == ()
    assert children(1, {2: 1, 3: 1, 4: 3}) == (2, 3)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
        max_leaves=12,
    ).filter(lambda told: isinstance(told, dict))
)
def test_whatever_is_told_can_be_read_or_is_refused(told: Any) -> None:
    """No document makes anything else of it; what passes the check reads back."""
    with contextlib.suppress(InvalidRequest):
        check_lineage(told)
    assert lineage_of(told, "m").description is not None
