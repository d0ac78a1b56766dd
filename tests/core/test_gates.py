"""Documents of gates: what is refused, and when a freeze holds."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.errors import InvalidRequest
from gateway.core.freezes import DAYS, WEEK, check_freeze, held_until
from gateway.core.gate_checks import check_gate
from gateway.core.gates import Freeze, Gate
from gateway.core.snapshot import EMPTY, check

CHRISTMAS = {
    "name": "christmas",
    "starts": "2026-12-24T12:00:00+01:00",
    "ends": "2026-12-27T00:00:00+01:00",
}
WEEKEND = Freeze(
    name="weekend", weekly_from="fri 16:00", weekly_until="mon 08:00", utc_offset="+01:00"
)


def gate_of(**fields: Any) -> Gate:
    """A gate as JSON would have it."""
    return msgspec.convert({"schema": 1, "models": ["flight-*"], **fields}, Gate)


def at(text: str) -> float:
    """UTC seconds of a moment."""
    return datetime.fromisoformat(text).timestamp()


def test_a_whole_gate_is_taken() -> None:
    """Checks with bounds, lineage, evidence, approvals and both kinds of freezes."""
    gate = gate_of(
        aliases=["champion", "stable"],
        trial={"checks": [{"check": "golden"}]},
        promotion={
            "checks": [{"check": "latency", "at_most": 20}],
            "lineage": ["lineage.data_sha256"],
            "evidence": {
                "experiment": True,
                "min_units": 100,
                "min_shadow_compared": 10,
                "max_disagreement": 0.01,
            },
            "approvals": [{"role": "approver", "count": 2}, {"role": "deployer"}],
        },
        freezes=[CHRISTMAS, msgspec.to_builtins(WEEKEND)],
    )
    check_gate("flights", gate)
    check(replace(EMPTY, gates={"flights": gate}))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"schema": 2}, "schema 2"),
        ({"models": []}, "'models' is empty"),
        ({"models": ["a b"]}, "no pattern"),
        ({"models": [""]}, "no pattern"),
        ({"models": ["m", "m"]}, "stands twice"),
        ({"models": [f"m{n}" for n in range(51)]}, "at most 50"),
        ({"aliases": []}, "'aliases' is empty"),
        ({"aliases": ["no name"]}, "cannot name an alias"),
        ({"trial": {"checks": [{"check": "loads", "at_most": 1}]}}, "no number"),
        ({"promotion": {"checks": [{"check": "signature", "at_least": 1}]}}, "no number"),
        (
            {"trial": {"checks": [{"check": "latency", "at_most": 1, "at_least": 2}]}},
            "nothing could pass",
        ),
        ({"trial": {"checks": [{"check": "golden"}, {"check": "golden"}]}}, "stands twice"),
        ({"trial": {"lineage": ["data"]}}, "names no field"),
        ({"trial": {"lineage": ["lineage..x"]}}, "names no field"),
        ({"trial": {"lineage": ["lineage." + "x" * 300]}}, "names no field"),
        ({"trial": {"evidence": {}}}, "asks for nothing"),
        ({"trial": {"evidence": {"min_units": -1}}}, "counts must be"),
        ({"trial": {"evidence": {"min_shadow_compared": 1, "max_disagreement": 2}}}, "a share"),
        ({"trial": {"evidence": {"experiment": True, "max_disagreement": 0}}}, "says nothing"),
        ({"promotion": {"approvals": [{"count": 0}]}}, "ask for 1 to"),
        ({"promotion": {"approvals": [{"count": 21}]}}, "ask for 1 to"),
        ({"promotion": {"approvals": [{}, {"count": 2}]}}, "stands twice"),
        ({"freezes": [CHRISTMAS, CHRISTMAS]}, "stands twice"),
        ({"freezes": [{**CHRISTMAS, "name": ""}]}, "needs a name"),
    ],
)
def test_a_gate_that_contradicts_itself_is_refused(fields: dict[str, Any], told: str) -> None:
    """With a sentence that says where, in the document and in a stored Snapshot alike."""
    with pytest.raises(InvalidRequest, match=told):
        check_gate("flights", gate_of(**fields))
    with pytest.raises(InvalidRequest, match=told):
        check(replace(EMPTY, gates={"flights": gate_of(**fields)}))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give 'starts' and 'ends', or"),
        ({"starts": "2026-12-24T12:00:00+01:00"}, "give 'starts' and 'ends', or"),
        ({**CHRISTMAS, "weekly_from": "fri 16:00"}, "and not something of both"),
        (
            {**CHRISTMAS, "weekly_from": "fri 16:00", "weekly_until": "mon 08:00"},
            "and not something of both",
        ),
        ({**CHRISTMAS, "starts": "2026-12-24T12:00:00"}, "with its offset"),
        ({**CHRISTMAS, "ends": "soon"}, "no moment"),
        ({**CHRISTMAS, "ends": "2026-12-24T11:00:00Z"}, "ends before it starts"),
        ({"weekly_from": "friday 16:00", "weekly_until": "mon 08:00"}, "no time of a week"),
        ({"weekly_from": "fri 24:00", "weekly_until": "mon 08:00"}, "no time of a week"),
        ({"weekly_from": "fri 16:60", "weekly_until": "mon 08:00"}, "no time of a week"),
        ({"weekly_from": "fri 16:00", "weekly_until": "fri 16:00"}, "the same moment"),
        (
            {"weekly_from": "fri 16:00", "weekly_until": "mon 08:00", "utc_offset": "CET"},
            "no offset",
        ),
        (
            {"weekly_from": "fri 16:00", "weekly_until": "mon 08:00", "utc_offset": "+15:00"},
            "no offset",
        ),
    ],
)
def test_a_freeze_without_a_proper_time_is_refused(fields: dict[str, str], told: str) -> None:
    """It says one span, with offsets, that begins before it ends."""
    freeze = msgspec.convert({"name": "f", **fields}, Freeze)
    with pytest.raises(InvalidRequest, match=told):
        check_freeze("Gate 'g'", freeze)


@pytest.mark.parametrize(
    ("moment", "holds"),
    [
        ("2026-11-20T15:59:59+01:00", False),
        ("2026-11-20T16:00:00+01:00", True),
        ("2026-11-22T12:00:00+01:00", True),
        ("2026-11-23T07:59:59+01:00", True),
        ("2026-11-23T08:00:00+01:00", False),
        ("2026-11-25T12:00:00+01:00", False),
    ],
)
def test_a_weekend_is_frozen_by_its_own_clock(moment: str, holds: bool) -> None:
    """From Friday afternoon over the turn of the week, at the offset that it states."""
    assert held_until(WEEKEND, at(moment)) == ("mon 08:00 (+01:00)" if holds else None)


def test_a_freeze_of_one_span_ends() -> None:
    """It holds from its first second to before its last."""
    freeze = msgspec.convert(CHRISTMAS, Freeze)
    begin, end = at(CHRISTMAS["starts"]), at(CHRISTMAS["ends"])
    assert held_until(freeze, begin - 1) is None
    assert held_until(freeze, begin) == "2026-12-26 23:00 UTC"
    assert held_until(freeze, end - 1) == "2026-12-26 23:00 UTC"
    assert held_until(freeze, end) is None


@given(
    st.integers(0, WEEK - 1),
    st.integers(0, WEEK - 1),
    st.integers(0, 2_000_000_000),
    st.integers(-14 * 60, 14 * 60),
)
def test_weekly_freezes_are_what_the_calendar_says(
    begin: int, end: int, now: int, ahead: int
) -> None:
    """Against the calendar of the standard library, at any moment and offset."""

    def named(minute: int) -> str:
        return f"{DAYS[minute // 1440]} {minute % 1440 // 60:02d}:{minute % 60:02d}"

    offset = f"{'-' if ahead < 0 else '+'}{abs(ahead) // 60:02d}:{abs(ahead) % 60:02d}"
    freeze = Freeze("f", weekly_from=named(begin), weekly_until=named(end), utc_offset=offset)
    local = datetime.fromtimestamp(now + 60 * ahead, UTC)
    minute = local.weekday() * 1440 + local.hour * 60 + local.minute
    wraps = begin > end
    expected = (minute >= begin or minute < end) if wraps else begin <= minute < end
    assert (held_until(freeze, now) is not None) == (expected and begin != end)
