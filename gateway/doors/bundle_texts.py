"""Bundles as text: YAML, TOML or JSON, read strictly into plain values, and written.

YAML is read without its surprises: a key is the text that stands there, `no` is text and not a
truth value, a date is text, tags are refused, and what references repeat is counted each time.
"""

import datetime as dt
import json
import tomllib
from math import isfinite
from typing import Any, ClassVar, Final, Literal, TypeAlias

import msgspec
import yaml

from gateway.core.errors import InvalidRequest, TooLarge, excerpt

Format: TypeAlias = Literal["yaml", "toml", "json"]

MAX_TEXT_BYTES: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 500_000
MAX_FAULT: Final = 200
_TAG: Final = "tag:yaml.org,2002:"
_WORDS: Final = {"true": True, "false": False, "null": None, "~": None, "": None}


def read_documents(text: bytes, form: Format) -> list[dict[str, Any]]:
    """The documents of a text, one but for YAML, in which `---` stands between several.

    Raises:
        InvalidRequest: with a sentence that says where; its subject is left to the caller.
        TooLarge: more text or more values than are read.
    """
    if len(text) > MAX_TEXT_BYTES:
        message = f"it holds {len(text)} bytes; at most {MAX_TEXT_BYTES} are read."
        raise TooLarge(message)
    try:
        words = text.decode()
        found = _READERS[form](words)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = f"it is no {form.upper()}: {_fault(error)}."
        raise InvalidRequest(message) from error
    for document in found:
        if not isinstance(document, dict):
            message = "a bundle is a table of names and values."
            raise InvalidRequest(message)
    return found


def write_document(document: Any, form: Format) -> str:  # noqa: ANN401 - what JSON has
    """A document as text that `read_documents` reads as the same.

    Raises:
        InvalidRequest: TOML has no null.
    """
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
    if form == "yaml":
        written: str = yaml.dump(
            document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
        )
        return written
    return "\n".join(_toml_table(document, ())).strip("\n") + "\n"


def _fault(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{excerpt(error.problem, MAX_FAULT)} in line {mark.line + 1}"
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {MAX_DEPTH} levels"
    return excerpt(str(error).splitlines()[0].rstrip(".") if str(error) else "", MAX_FAULT)


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # the library states no types
    """Composes nodes; only these words have a meaning of their own, as in JSON."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc] # the library states no types
    """Writes as other YAML readers understand it too: what they would mistake is quoted."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - as the parent asks
        """Nothing is written as a reference."""
        return True


def _written_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """In quotes where we would read something else; where others would, the library sees to it."""
    style = None if _plain(text) == text else "'"
    if not text.isprintable():
        style = '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _written_text)


class _Building:
    """Builds plain values from nodes, counting them."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, node: yaml.Node, depth: int = 0) -> Any:  # noqa: ANN401 - what YAML has
        self.count += 1
        if self.count > MAX_VALUES:
            message = f"it holds more than {MAX_VALUES} values; do references repeat them?"
            raise TooLarge(message)
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(node, yaml.MappingNode):
            _check_tag(node, "map")
            return self._table(node, depth)
        if isinstance(node, yaml.SequenceNode):
            _check_tag(node, "seq")
            return [self.value(child, depth + 1) for child in node.value]
        _check_tag(node, "str")
        return node.value if node.style in ("'", '"', "|", ">") else _plain(node.value)

    def _table(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _marked("a key is text", key)
            _check_tag(key, "str")
            if key.value in table:
                raise _marked(f"the key '{excerpt(key.value)}' stands twice in one table", key)
            table[key.value] = self.value(child, depth + 1)
        return table


def _read_yaml(words: str) -> list[Any]:
    nodes = yaml.compose_all(words, Loader=_Loader)
    building = _Building()
    built = [building.value(node) for node in nodes if node is not None]
    return [document for document in built if document is not None]


def _check_tag(node: yaml.Node, kind: str) -> None:
    if node.tag != _TAG + kind:
        raise _marked(f"tags such as '{excerpt(node.tag)}' are not read", node)


def _marked(fault: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=fault, problem_mark=node.start_mark)


def _plain(words: str) -> str | int | float | bool | None:
    """A scalar without quotes: a number or a word as JSON has it, else text."""
    if words in _WORDS:
        return _WORDS[words]
    try:
        number = _JSON.decode(words) if words[0] in "-0123456789" else words
    except ValueError:
        return words
    return number if isinstance(number, int | float) else words


def _read_toml(words: str) -> list[Any]:
    return [_without_dates(tomllib.loads(words, parse_float=_finite))]


def _without_dates(value: Any) -> Any:  # noqa: ANN401 - what TOML has
    """The same with dates as the text that documents hold."""
    if isinstance(value, dict):
        return {key: _without_dates(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_dates(child) for child in value]
    is_date = isinstance(value, dt.datetime | dt.date | dt.time)
    return value.isoformat() if is_date else value


def _read_json(words: str) -> list[Any]:
    return [_JSON.decode(words)]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        message = f"the key '{excerpt(twice)}' stands twice in one object"
        raise ValueError(message)
    return table


def _finite(word: str) -> float:
    """A number; documents hold none that JSON could not carry."""
    number = float(word)
    if not isfinite(number):
        message = f"'{excerpt(word)}' is no number that documents hold"
        raise ValueError(message)
    return number


_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite
)


def _toml_table(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    """The lines of a table: its values, then the tables in it, each under its own header."""
    lines: list[str] = []
    for key, value in table.items():
        if not isinstance(value, dict) and not _is_table_list(value):
            lines.append(f"{_toml_key(key)} = {_toml_value(value, (*path, key))}")
    for key, value in table.items():
        place = (*path, key)
        header = ".".join(map(_toml_key, place))
        if isinstance(value, dict):
            lines += ["", f"[{header}]", *_toml_table(value, place)]
        elif _is_table_list(value):
            for row in value:
                lines += ["", f"[[{header}]]", *_toml_table(row, place)]
    return lines


def _is_table_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _toml_value(value: Any, place: tuple[str, ...]) -> str:  # noqa: ANN401 - what JSON has
    if value is None:
        message = f"TOML has no null, which stands at {'.'.join(place)}; write YAML or JSON."
        raise InvalidRequest(message)
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(child, place) for child in value)}]"
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {_toml_value(child, place)}" for key, child in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return _toml_text(value) if isinstance(value, str) else json.dumps(value)


def _toml_key(key: str) -> str:
    bare = key.replace("-", "").replace("_", "")
    return key if bare.isascii() and bare.isalnum() else _toml_text(key)


def _toml_text(words: str) -> str:
    """As JSON has it, but for the one sign that TOML wants escaped and JSON does not."""
    return json.dumps(words, ensure_ascii=False).replace("\x7f", "\\u007F")


_READERS: Final = {"yaml": _read_yaml, "toml": _read_toml, "json": _read_json}
