"""Patterns of names: letters as they are, and `*` for any of them; no other sign has a meaning."""

from typing import Final

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.models import MAX_NAME, is_name

ANY: Final = "*"


def is_pattern(text: str) -> bool:
    """Whether this may stand where names are chosen by pattern."""
    bare = text.replace(ANY, "a")
    return len(text) <= MAX_NAME and is_name(bare)


def check_pattern(what: str, text: str) -> str:
    """Return the pattern, or refuse it with a sentence that says what one may hold."""
    if not is_pattern(text):
        message = (
            f"'{excerpt(text)}' is no pattern for {what}: use a name, in which '*' may stand for "
            "any letters."
        )
        raise InvalidRequest(message)
    return text


def matches(pattern: str, name: str) -> bool:
    """Whether a name is one that the pattern means; takes time in proportion to both lengths."""
    if pattern in (ANY, name):
        return True
    first, *rest = pattern.split(ANY)
    if not rest:
        return name == pattern
    if not name.startswith(first):
        return False
    place = len(first)
    for part in rest[:-1]:
        found = name.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return len(name) - place >= len(rest[-1]) and name.endswith(rest[-1])


def matches_any(patterns: tuple[str, ...], name: str) -> bool:
    """Whether one of the patterns means this name."""
    return any(matches(pattern, name) for pattern in patterns)
