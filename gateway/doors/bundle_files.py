"""Bundles in files: read, held against their types document by document, and merged into one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from gateway.core.bundles import SCHEMA, TABLES, Bundle, HoldOutDocument
from gateway.core.errors import GatewayError, InvalidRequest, excerpt
from gateway.doors.bundle_texts import Format, read_documents

FORMATS: Final[dict[str, Format]] = {
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".json": "json",
}
"""The format of a file, by the end of its name."""
MAX_FAULT: Final = 300
_PASSED_OVER: Final = "$schema"
_KINDS: Final = ("aliases", *TABLES, "intervals")
"""Tables by name; `holdout` is one document."""


class Source(Struct, frozen=True):
    """Where documents come from: a name for people, the text and its format."""

    name: str
    text: bytes
    form: Format


def find_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder whose names end like a bundle's, sorted by name.

    Raises:
        InvalidRequest: there is no such file, or the folder holds none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(
        entry
        for entry in path.iterdir()
        if entry.suffix in FORMATS and entry.is_file() and not entry.name.startswith(".")
    )
    if not found:
        message = f"The folder '{path.name}' holds no file that ends in {', '.join(FORMATS)}."
        raise InvalidRequest(message)
    return found


def merged(sources: Iterable[Source]) -> Bundle:
    """One Bundle of all that the sources hold.

    Raises:
        InvalidRequest: one cannot be read, a document is wrong, or one stands twice; the sentence
            names the file, the document and the field.
    """
    merging = _Merging()
    for source in sources:
        try:
            documents = read_documents(source.text, source.form)
        except GatewayError as error:
            message = f"{source.name}: {error}"
            raise type(error)(message) from error
        for index, document in enumerate(documents, 1):
            many = f" (document {index})" if len(documents) > 1 else ""
            merging.add(source.name + many, document)
    return merging.bundle()


class _Merging:
    """Tables that grow, and where each of their documents came from."""

    def __init__(self) -> None:
        self._tables: dict[str, Any] = {}
        self._places: dict[str, str] = {}

    def add(self, place: str, document: dict[str, Any]) -> None:
        """Take the documents of one source.

        Raises:
            InvalidRequest: one is wrong or stands already.
        """
        _check_schema(place, document)
        for kind, value in document.items():
            if kind in ("schema", _PASSED_OVER):
                continue
            if kind == "holdout":
                self._tables[kind] = _read(place, kind, value, HoldOutDocument)
                self._note(kind, place)
            elif kind in _KINDS:
                self._add_table(place, kind, value)
            else:
                known = ", ".join((*_KINDS, "holdout"))
                message = f"{place}: there is no kind '{excerpt(kind)}'; there are: {known}."
                raise InvalidRequest(message)

    def bundle(self) -> Bundle:
        """All that was taken."""
        bundle: Bundle = _read("The bundle", "", {"schema": SCHEMA, **self._tables}, Bundle)
        return bundle

    def _add_table(self, place: str, kind: str, value: object) -> None:
        table = self._tables.setdefault(kind, {})
        for name, document in _read(place, kind, value, dict[str, Any]).items():
            target = f"{kind}.{name}"
            if kind == "aliases":
                for alias, number in _read(place, target, document, dict[str, Any]).items():
                    self._note(f"{target}.{alias}", place)
                    read = _read(place, f"{target}.{alias}", number, int)
                    table.setdefault(name, {})[alias] = read
                continue
            self._note(target, place)
            table[name] = _read(place, target, document, TABLES.get(kind, dict[str, Any]))

    def _note(self, target: str, place: str) -> None:
        first = self._places.setdefault(target, place)
        if first is not place:
            message = f"{place}: {target} stands in {first} already."
            raise InvalidRequest(message)


def _check_schema(place: str, document: dict[str, Any]) -> None:
    stated = document.get("schema")
    if stated != SCHEMA or isinstance(stated, bool):
        given = "no schema" if stated is None else f"schema {excerpt(stated)}"
        message = f"{place}: it has {given}; write 'schema: {SCHEMA}'."
        raise InvalidRequest(message)


def _read(place: str, target: str, value: object, kind: Any) -> Any:  # noqa: ANN401 - any type
    """A value as a type of ours; the sentence names the file, the document and the field."""
    try:
        return msgspec.convert(msgspec.to_builtins(value), kind)
    except msgspec.ValidationError as error:
        fault, _, field = str(error).partition(" - at `$")
        where = target + field.rstrip("`")
        message = f"{place}: {where}: {excerpt(fault, MAX_FAULT)}."
        raise InvalidRequest(message) from error
