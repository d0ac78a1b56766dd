"""Lineage: where a version comes from, as it was told, and the parts of it that can be asked for.

`version.toml` may say what it likes, within bounds. What is known here by name is looked for at its
top level and in its table `lineage`: `parent`, `commit`, `trainer`, `created`, `description`,
`data` (a list of tables with `location`, `sha256` and more), `data_sha256`, `data_package`, and the
tables `parameters`, `metrics` and `tags`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

import msgspec
from msgspec import Struct

from gateway.core.errors import InvalidRequest, TooLarge, excerpt
from gateway.core.models import MAX_VERSION, is_name, parse_version

MAX_LINEAGE_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 8
MAX_TAGS: Final = 64
MAX_TEXT: Final = 4096
MAX_TAG: Final = 256
MAX_DATA: Final = 64
_TEXTS: Final = ("commit", "trainer", "created", "description")
_TABLES: Final = ("parameters", "metrics")


class Parent(Struct, frozen=True):
    """The version that another was made from."""

    model: str
    number: int


class DataSource(Struct, frozen=True, omit_defaults=True):
    """Data that a version was trained on: where they lay and the SHA-256 that they had."""

    location: str = ""
    sha256: str = ""
    about: dict[str, Any] = {}


class Lineage(Struct, frozen=True, omit_defaults=True):
    """The parts of a lineage that can be asked for; empty where it says nothing."""

    description: str = ""
    created: str = ""
    trainer: str = ""
    commit: str = ""
    parent: Parent | None = None
    data: tuple[DataSource, ...] = ()
    parameters: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    tags: dict[str, str] = {}


class Wanted(Struct, frozen=True):
    """What a query asks of a lineage. All of it must hold; `tags` are `key` or `key=value`.

    `commit` may be a prefix; `data` is a digest's prefix or a location.
    """

    tags: tuple[str, ...] = ()
    parent: int | None = None
    commit: str | None = None
    data: str | None = None


def check_lineage(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was told, or refuse it.

    Raises:
        InvalidRequest: a part that has a meaning here is of another kind, or it is nested deeply.
        TooLarge: it is longer than is kept.
    """
    if _depth(told) > MAX_DEPTH:
        message = f"A lineage is nested at most {MAX_DEPTH} levels deep."
        raise InvalidRequest(message)
    if len(msgspec.json.encode(told)) > MAX_LINEAGE_BYTES:
        message = f"A lineage holds at most {MAX_LINEAGE_BYTES} bytes."
        raise TooLarge(message)
    for name in _TEXTS:
        stated = _stated(told, name)
        if stated is not None and (not isinstance(stated, str) or len(stated) > MAX_TEXT):
            _refuse(name, f"a text of at most {MAX_TEXT} characters")
    for name in _TABLES:
        if not isinstance(_stated(told, name, {}), Mapping):
            _refuse(name, "a table")
    _check_tags(_stated(told, "tags", {}))
    _check_data(_stated(told, "data", []))
    stated = _stated(told, "parent")
    if stated is not None and _parent(stated, "") is None:
        _refuse("parent", "a version's number, or 'model/number'")
    return told


def joined(told: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """Both together; `further` wins, and tables are joined key by key."""
    result = dict(told)
    for key, value in further.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = joined(before, value)
        else:
            result[key] = value
    return result


def lineage_of(told: Mapping[str, Any], model: str) -> Lineage:
    """The parts that can be asked for; what is of another kind is left out.

    `model` is whose version it is: a parent without a name is another of its versions.
    """
    return Lineage(
        description=_text(told, "description"),
        created=_text(told, "created"),
        trainer=_text(told, "trainer"),
        commit=_text(told, "commit"),
        parent=_parent(_stated(told, "parent"), model),
        data=tuple(_sources(told)),
        parameters=_table(told, "parameters"),
        metrics=_table(told, "metrics"),
        tags=_table(told, "tags"),
    )


def is_wanted(lineage: Lineage, wanted: Wanted, model: str) -> bool:
    """Whether a version of a model with this lineage is among those asked for."""
    if wanted.parent is not None and lineage.parent != Parent(model, wanted.parent):
        return False
    if wanted.commit is not None and not (
        lineage.commit and lineage.commit.startswith(wanted.commit)
    ):
        return False
    if wanted.data is not None and not any(
        _is_from(source, wanted.data) for source in lineage.data
    ):
        return False
    return all(_has_tag(lineage.tags, tag) for tag in wanted.tags)


def ancestors(number: int, parents: Mapping[int, int | None]) -> tuple[int, ...]:
    """The versions that one comes from, the nearest first; a circle ends where it closes."""
    line: list[int] = []
    at = parents.get(number)
    while at is not None and at != number and at not in line:
        line.append(at)
        at = parents.get(at)
    return tuple(line)


def children(number: int, parents: Mapping[int, int | None]) -> tuple[int, ...]:
    """The versions that were made from one."""
    return tuple(sorted(child for child, parent in parents.items() if parent == number))


def _stated(told: Mapping[str, Any], name: str, default: object = None) -> Any:  # noqa: ANN401
    inner = told.get("lineage")
    if name in told:
        return told[name]
    return inner.get(name, default) if isinstance(inner, Mapping) else default


def _text(told: Mapping[str, Any], name: str) -> str:
    stated = _stated(told, name)
    return stated if isinstance(stated, str) else ""


def _table(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    stated = _stated(told, name)
    return dict(stated) if isinstance(stated, Mapping) else {}


def _parent(stated: object, model: str) -> Parent | None:
    if isinstance(stated, int) and not isinstance(stated, bool):
        return Parent(model, stated) if 1 <= stated <= MAX_VERSION else None
    if not isinstance(stated, str):
        return None
    named, slash, number = stated.rpartition("/")
    try:
        found = parse_version(number) if number else 0
    except InvalidRequest:
        return None
    if not found or (slash and not is_name(named)):
        return None
    return Parent(named or model, found)


def _sources(told: Mapping[str, Any]) -> Iterable[DataSource]:
    stated = _stated(told, "data", [])
    for one in stated if isinstance(stated, list | tuple) else ():
        if isinstance(one, Mapping):
            about = {key: value for key, value in one.items() if key not in _SOURCE}
            yield DataSource(str(one.get("location", "")), str(one.get("sha256", "")), about)
    digest, package = _stated(told, "data_sha256"), _stated(told, "data_package")
    if isinstance(digest, str) or isinstance(package, str):
        about = {"version": told["lineage"]["data_version"]} if _has_version(told) else {}
        yield DataSource(str(package or ""), str(digest or ""), about)


def _has_version(told: Mapping[str, Any]) -> bool:
    inner = told.get("lineage")
    return isinstance(inner, Mapping) and "data_version" in inner


def _is_from(source: DataSource, wanted: str) -> bool:
    by_digest = bool(source.sha256) and source.sha256.startswith(wanted)
    return bool(wanted) and (by_digest or source.location == wanted)


def _has_tag(tags: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in tags and (not equals or tags[key] == value)


def _check_tags(tags: object) -> None:
    if not isinstance(tags, Mapping) or len(tags) > MAX_TAGS:
        _refuse("tags", f"a table of at most {MAX_TAGS} entries")
    for key, value in tags.items():
        if not is_name(key) or not isinstance(value, str) or len(value) > MAX_TAG:
            _refuse("tags", f"a table of names with texts of at most {MAX_TAG} characters")


def _check_data(data: object) -> None:
    if not isinstance(data, list | tuple) or len(data) > MAX_DATA:
        _refuse("data", f"a list of at most {MAX_DATA} tables")
    for one in data:
        texts = [one.get(name, "") for name in _SOURCE] if isinstance(one, Mapping) else [None]
        if not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts):
            _refuse("data", "a list of tables with texts for 'location' and 'sha256'")


def _depth(value: object, level: int = 0) -> int:
    """How deeply tables and lists are nested; looks no deeper than is allowed."""
    if level > MAX_DEPTH or not isinstance(value, Mapping | list | tuple):
        return level
    inner = value.values() if isinstance(value, Mapping) else value
    return max((_depth(one, level + 1) for one in inner), default=level + 1)


def _refuse(name: str, kind: str) -> NoReturn:
    message = f"'{excerpt(name)}' in a lineage must be {kind}."
    raise InvalidRequest(message)


_SOURCE: Final = ("location", "sha256")
