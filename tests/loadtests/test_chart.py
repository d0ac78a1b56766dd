import math
from xml.etree import ElementTree as ET

from loadtests.chart import Group, draw, throughput

SVG = "{http://www.w3.org/2000/svg}"


def bars(svg: str) -> list[float]:
    """Widths of the bars, top to bottom."""
    return [float(one.attrib["width"]) for one in ET.fromstring(svg).findall(f"{SVG}rect")][1:]


def test_bars_are_as_long_as_their_values() -> None:
    """Three times the throughput is three times the length."""
    svg = draw("Title", [Group("one", [("tiltyard", 300.0), ("bare", 100.0)])])

    longer, shorter = bars(svg)
    assert longer == 3 * shorter


def test_each_group_fills_the_width() -> None:
    """Groups are read by themselves, so each has a scale of its own."""
    svg = draw("Title", [Group("one", [("a", 9.0)]), Group("two", [("b", 1.0)])])

    assert len(set(bars(svg))) == 1


def test_a_bar_without_a_value_is_left_out() -> None:
    """What was not measured is not drawn as zero."""
    svg = draw("Title", [Group("one", [("a", math.nan), ("b", 1.0)]), Group("two", [])])

    assert len(bars(svg)) == 1


def test_names_cannot_break_the_drawing() -> None:
    """Words are escaped wherever they stand."""
    svg = draw('<"&', [Group("<&>", [("<b>", 1.0)])])

    words = [one.text for one in ET.fromstring(svg).iter(f"{SVG}text")]
    assert {'<"&', "<&>", "<b>"} <= set(words)


def test_throughput_shows_medians_fastest_first() -> None:
    """One bad slice does not move a bar."""
    slices = [
        {"scenario": "peak", "model": "m", "contestant": name, "rps": rps}
        for name, rps in (("bare", 10.0), ("tiltyard", 1.0), ("tiltyard", 30.0), ("tiltyard", 31.0))
    ]

    words = [one.text for one in ET.fromstring(throughput("T", slices)).iter(f"{SVG}text")]
    assert words[2:] == ["tiltyard", "30 requests/s", "bare", "10 requests/s"]
