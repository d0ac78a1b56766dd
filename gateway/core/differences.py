"""Differences between two documents, as dotted paths with what stood there and what will."""

from collections.abc import Iterator
from typing import Any, TypeGuard

from msgspec import Struct


class Difference(Struct, frozen=True, omit_defaults=True):
    """One place where documents differ; `before` or `after` is missing where nothing is written.

    `path` names fields and, in lists of named things, names: `rules.canary.split.exposure`.
    """

    path: str
    before: Any = None
    after: Any = None


def differences(before: Any, after: Any, path: str = "") -> Iterator[Difference]:  # noqa: ANN401 - JSON
    """Where two JSON documents differ, in the order of the first, then of the second."""
    if before == after:
        return
    if _is_table(before) and _is_table(after):
        for key in dict.fromkeys((*before, *after)):
            yield from differences(before.get(key), after.get(key), _joined(path, key))
    elif _is_named(before) and _is_named(after):
        yield from _named_differences(before, after, path)
    else:
        yield Difference(path, before, after)


def _named_differences(
    before: list[dict[str, Any]], after: list[dict[str, Any]], path: str
) -> Iterator[Difference]:
    old, new = ({row["name"]: row for row in rows} for rows in (before, after))
    for name in dict.fromkeys((*old, *new)):
        yield from differences(old.get(name), new.get(name), _joined(path, name))
    # The order decides: rules are tried one after the other, the first variant is the control.
    stayed = [name for name in old if name in new]
    if stayed != [name for name in new if name in old]:
        yield Difference(_joined(path, "(order)"), list(old), list(new))


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_named(value: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether this is a list of things that have a name each, no two the same."""
    if not isinstance(value, list | tuple) or not value:
        return False
    names = [row.get("name") if isinstance(row, dict) else None for row in value]
    return None not in names and len(set(names)) == len(names)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
