"""JSON Schemas of the documents that people write, for editors and for checks before a commit."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.core.bundles import SCHEMA, Bundle, HoldOutDocument, LayerDocument
from gateway.core.endpoints import Endpoint
from gateway.core.experiments import Experiment
from gateway.core.gates import Gate
from gateway.core.principals import PrincipalDocument

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
KINDS: Final[Mapping[str, type]] = {
    "bundle": Bundle,
    "endpoint": Endpoint,
    "experiment": Experiment,
    "gate": Gate,
    "holdout": HoldOutDocument,
    "layer": LayerDocument,
    "principal": PrincipalDocument,
}
"""Every kind that has a schema, by its name."""


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of one of `KINDS`.

    It says which fields there are and of which types. What goes with what (weights that add up,
    names that exist) is told when the document is put.
    """
    found = msgspec.json.schema(KINDS[kind])
    definitions = {
        name: _plain(definition) for name, definition in sorted(found.get("$defs", {}).items())
    }
    root = definitions.pop(KINDS[kind].__name__)
    if kind == "bundle":
        # How JSON files tell editors where their schema is; the reader of files passes over it.
        root["properties"] = {"$schema": {"type": "string"}, **root["properties"]}
    return {
        "$schema": DIALECT,
        "$id": f"urn:tiltyard:schema:{kind}:{SCHEMA}",
        **root,
        "$defs": definitions,
    }


def _plain(definition: dict[str, Any]) -> dict[str, Any]:
    """A definition with its description on one line for each paragraph, without our own markup."""
    described = definition.get("description")
    if described is None:
        return definition
    paragraphs = (" ".join(part.split()) for part in described.split("\n\n"))
    return {**definition, "description": "\n\n".join(paragraphs)}


def schema_text(kind: str) -> str:
    """The same, as the text of a file."""
    encoded = msgspec.json.encode(schema_of(kind))
    return msgspec.json.format(encoded, indent=2).decode() + "\n"
