import re
from pathlib import Path

import pytest

from gateway import governance_telemetry, telemetry
from gateway.core.assignment import Reason
from gateway.governance_telemetry import (
    GOVERNANCE_ATTRIBUTES,
    GOVERNANCE_EVENTS,
    GOVERNANCE_INSTRUMENTS,
)
from gateway.telemetry import (
    ATTRIBUTES,
    DROP_REASONS,
    EVENTS,
    INSTRUMENTS,
    SPANS,
    STANDARD_REASONS,
    Instrument,
)

ALL_INSTRUMENTS = INSTRUMENTS + GOVERNANCE_INSTRUMENTS
ALL_EVENTS = EVENTS | GOVERNANCE_EVENTS
ALL_ATTRIBUTES = ATTRIBUTES | GOVERNANCE_ATTRIBUTES
NAMES = {**vars(telemetry), **vars(governance_telemetry)}
PAGE = Path(__file__).parents[1] / "docs" / "telemetry.md"


def documented(section: str) -> list[str]:
    """Names in the first column of the table under a heading."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    return re.findall(r"(?m)^\| `([^`]+)` \|", rest.partition("\n## ")[0])


@pytest.mark.parametrize(
    ("section", "names"),
    [
        pytest.param("Instruments", [one.name for one in ALL_INSTRUMENTS], id="instruments"),
        pytest.param("Events", ALL_EVENTS, id="events"),
        pytest.param("Spans", SPANS, id="spans"),
        pytest.param("Attributes", ALL_ATTRIBUTES, id="attributes"),
        pytest.param("No record is lost without being counted", DROP_REASONS, id="reasons"),
    ],
)
def test_the_page_tells_what_there_is(section: str, names: list[str]) -> None:
    """The documentation has each name once, and no name that is gone."""
    assert sorted(documented(section)) == sorted(names)


def test_every_instrument_is_listed() -> None:
    """No instrument is defined on the page and left out of its list."""
    defined = [one for one in NAMES.values() if isinstance(one, Instrument)]
    assert {one.name for one in defined} == {one.name for one in ALL_INSTRUMENTS}
    assert len({one.name for one in ALL_INSTRUMENTS}) == len(ALL_INSTRUMENTS)


def test_every_name_is_listed() -> None:
    """Each dotted name on the page is an attribute, an event or a span."""
    defined = {
        value
        for name, value in NAMES.items()
        if name.isupper() and isinstance(value, str) and "." in value
    }
    assert defined <= ALL_ATTRIBUTES | ALL_EVENTS | SPANS


def test_histograms_have_rising_bounds() -> None:
    """Histograms, and nothing else, have bounds, and they rise."""
    for instrument in ALL_INSTRUMENTS:
        assert bool(instrument.bounds) == (instrument.kind == "histogram")
        assert list(instrument.bounds) == sorted(set(instrument.bounds))


def test_every_reason_has_a_standard_word() -> None:
    """Each of our reasons is told in the standard's words."""
    assert set(STANDARD_REASONS) == set(Reason)
    assert set(STANDARD_REASONS.values()) <= {
        "static",
        "split",
        "targeting_match",
        "default",
        "error",
    }
