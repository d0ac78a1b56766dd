"""Texts of JSON data, right and wrong, that these tests send."""

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = [
    *("0", "-0", "1", "-1", "1.0", "-0.0", "1e3", "1E+3", "0.1", "1e-400", "65504", "65520"),
    *("255", "256", "-128", "-129", "2147483648", "3.4028235677973366e38", "3.4028234e38"),
    *("1e39", "1e308", "1e309", "1e999", "-1e999", "9007199254740993", "9223372036854775808"),
    *("18446744073709551615", "18446744073709551616", "123456789012345678901234567890"),
]
ODD = [
    "true",
    "null",
    '"a"',
    '"1"',
    "NaN",
    "-Infinity",
    "[]",
    "[1]",
    "{}",
    "01",
    "+1",
    ".5",
    "1.",
    "",
]
ELEMENTS = st.sampled_from(NUMBERS) | st.sampled_from(ODD) | st.floats().map(json.dumps)
SPACES = st.sampled_from(["", "", "", " ", "\n\t"])


@st.composite
def data_texts(draw: Any, depth: int = 3) -> str:
    """The text of some data: elements in lists in lists, mostly alike and now and then not."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return str(draw(ELEMENTS))
    usual = draw(data_texts(depth=depth - 1))
    count = draw(st.integers(0, 4))
    items = [draw(st.just(usual) | data_texts(depth=depth - 1)) for _ in range(count)]
    space = draw(SPACES)
    return f"[{space}{f'{space},'.join(items)}{space}]"
