"""Patterns of names mean what people expect, in bounded time."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.core.patterns import check_pattern, is_pattern, matches

NAMES = st.text(alphabet="ab-.", min_size=1, max_size=12)
PATTERNS = st.text(alphabet="ab-.*", min_size=1, max_size=10)


@given(pattern=PATTERNS, name=NAMES)
def test_a_star_stands_for_any_letters_as_in_a_shell(pattern: str, name: str) -> None:
    """The standard library's reading of `*` is the oracle."""
    assert matches(pattern, name) == fnmatch.fnmatchcase(name, pattern)


def test_many_stars_take_no_longer_than_their_number() -> None:
    """A pattern that would send a backtracking matcher round for ever is answered."""
    assert not matches("*a" * 32, "a" * 31 + "b")


@pytest.mark.parametrize("text", ["flight-*", "*", "*-eu", "a*b*c"])
def test_a_name_with_stars_is_a_pattern(text: str) -> None:
    """Stars may stand anywhere in a name."""
    assert check_pattern("models", text) == text


@pytest.mark.parametrize("text", ["", "../*", "a b", "[ab]", "a?", "*" * 65, "a/*"])
def test_other_signs_make_no_pattern(text: str) -> None:
    """What a shell or a regex would read has no meaning here and is refused."""
    assert not is_pattern(text)
    with pytest.raises(InvalidRequest):
        check_pattern("models", text)
