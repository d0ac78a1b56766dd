"""TOML as we write it: what `version.toml` of a version from elsewhere says."""

import json
from collections.abc import Mapping
from typing import Any, Final

_DELETE: Final = "\x7f"


def toml_of(document: Mapping[str, Any]) -> str:
    """A document of texts, numbers, truths, tables of these and lists of such tables.

    What is not finite becomes a text, since not every reader of lineage knows it.
    """
    lines = [f"{_text(key)} = {_value(value)}" for key, value in document.items() if _plain(value)]
    for key, value in document.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{_text(key)}]", *_table(value)]
        elif not _plain(value):
            for table in value:
                lines += ["", f"[[{_text(key)}]]", *_table(table)]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> bool:
    return not isinstance(value, Mapping | list)


def _table(table: Mapping[str, Any]) -> list[str]:
    return [f"{_text(key)} = {_value(value)}" for key, value in table.items()]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value - value == 0.0:
        return repr(value)
    return _text(str(value))


def _text(text: str) -> str:
    """JSON's escapes are TOML's, but for the one control character that JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace(_DELETE, "\\u007f")
