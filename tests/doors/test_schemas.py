from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.doors.bundle_files import FORMATS
from gateway.doors.bundle_texts import read_documents
from gateway.doors.schemas import KINDS, schema_of, schema_text

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted(file for file in (DOCS / "examples").iterdir() if file.suffix in FORMATS)
PLAIN = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "$") -> list[str]:
    """Where a value is not what a schema says, as far as our schemas go."""
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, path)
    if "anyOf" in schema:
        every = [faults(value, choice, root, path) for choice in schema["anyOf"]]
        return [] if [] in every else [fault for found in every for fault in found]
    kind, is_flag = schema.get("type"), isinstance(value, bool)
    if kind and (not isinstance(value, PLAIN[kind]) or (is_flag and kind != "boolean")):
        return [f"{path} is no {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path} is none of {schema['enum']}"]
    return [fault for found in within(value, schema, root, path) for fault in found]


def within(
    value: Any, schema: dict[str, Any], root: dict[str, Any], path: str
) -> Iterator[list[str]]:
    """The faults of what a table or a list holds."""
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield [f"{path}.{key} is missing" for key in schema.get("required", ()) if key not in value]
        for key, child in value.items():
            below = known.get(key, rest)
            if below is False:
                yield [f"{path}.{key} is not known"]
            elif isinstance(below, dict):
                yield faults(child, below, root, f"{path}.{key}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, child in enumerate(value):
            yield faults(child, schema["items"], root, f"{path}[{index}]")


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_schemas_are_current(kind: str) -> None:
    """`tiltyard schema --all --to docs/schemas` writes them again."""
    published = (DOCS / "schemas" / f"{kind}.json").read_text(encoding="utf-8")
    assert published == schema_text(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_says_what_it_is_of_without_a_host(kind: str) -> None:
    """Editors show the description; unknown fields are mistakes."""
    schema = schema_of(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:tiltyard:schema:{kind}:1"
    assert schema["description"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_are_what_their_schemas_say(file: Path) -> None:
    """Bundles in YAML; endpoints and experiments in JSON."""
    for document in read_documents(file.read_bytes(), FORMATS[file.suffix]):
        telling = {"variants": "experiment", "promotion": "gate"}
        of_json = next((kind for key, kind in telling.items() if key in document), "endpoint")
        kind = of_json if file.suffix == ".json" else "bundle"
        schema = schema_of(kind)
        assert faults(document, schema, schema) == []
        msgspec.convert(document, KINDS[kind])


def test_a_schema_finds_what_the_gateway_would_refuse_by_type() -> None:
    """An unknown field, a missing one and a wrong type, deep inside."""
    schema = schema_of("bundle")
    document = {"schema": 1, "endpoints": {"e": {"schema": 1, "rulez": []}}}
    found = " ".join(faults(document, schema, schema))
    assert "$.endpoints.e.rulez is not known" in found
    assert "$.endpoints.e.model is missing" in found
    aliases = {"schema": 1, "aliases": {"m": {"champion": "two"}}}
    assert "$.aliases.m.champion is no integer" in " ".join(faults(aliases, schema, schema))
