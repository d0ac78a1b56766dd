"""Replies as they come with `decode_responses=False`: redis-py types them for every option."""

from typing import Any, TypeAlias

Entries: TypeAlias = list[tuple[bytes, dict[bytes, bytes]]]


def entries_of(reply: Any) -> Entries:  # noqa: ANN401 - the point of this page
    """The entries of a stream range."""
    found: Entries = reply or []
    return found


def bytes_of(reply: Any) -> bytes | None:  # noqa: ANN401 - the point of this page
    """A string's value."""
    found: bytes | None = reply
    return found
