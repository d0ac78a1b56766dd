"""The OpenAPI document against the table and against itself."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway import __version__
from gateway.core.endpoints import Endpoint
from gateway.doors.http.admin_routes import OPERATIONS
from gateway.doors.http.openapi import openapi
from tests.doors.http.admin_world import READER, SPLIT, World

DOCUMENT = openapi(OPERATIONS)
METHODS = {"get", "put", "post", "delete"}


def references(node: Any) -> Iterator[str]:
    """Every reference in a document."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and description of each operation."""
    for path, item in DOCUMENT["paths"].items():
        for method, described in item.items():
            yield path, method, described


async def test_the_document_is_served_to_readers() -> None:
    """Whoever may read gets the document that the table makes."""
    response = await World().ask("GET", "/admin/v1/openapi.json", token=READER)
    assert response.status_code == 200
    assert response.json() == msgspec.json.decode(msgspec.json.encode(DOCUMENT))


def test_every_operation_is_described() -> None:
    """The document holds the operations of the table and no others."""
    described = {(path, method) for path, method, _ in operations()}
    assert described == {(row.path, row.method.lower()) for row in OPERATIONS}
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == __version__


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_an_operation_says_its_action(row: Any) -> None:
    """Each operation states its action and what it is about, and asks for a token unless open."""
    described = DOCUMENT["paths"][row.path][row.method.lower()]
    assert described["x-tiltyard-action"] == (None if row.is_open else row.action)
    assert described["x-tiltyard-about"] == row.subject[0]
    assert described["security"] == ([] if row.is_open else [{"bearer": []}])
    assert ("requestBody" in described) == (row.body is not None or row.streams)
    assert "200" in described["responses"]


def test_a_body_is_required_where_a_field_of_it_is() -> None:
    """What is optional in all its fields may be left out."""
    required = {
        described["operationId"]
        for _, _, described in operations()
        if "application/json" in described.get("requestBody", {}).get("content", {})
        and described["requestBody"]["required"]
    }
    bodies = {row.name: row.body for row in OPERATIONS if row.body is not None}
    needing = {
        name
        for name, body in bodies.items()
        if any(field.required for field in msgspec.structs.fields(body))
    }
    assert required == needing
    assert {"putEndpoint", "promote"} <= required


def test_every_reference_leads_somewhere() -> None:
    """No reference is left hanging."""
    for reference in references(DOCUMENT):
        node: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        assert node


def test_the_structure_is_that_of_openapi() -> None:
    """Paths begin with a slash, places in them are declared, and names are unique."""
    names = [described["operationId"] for _, _, described in operations()]
    assert len(set(names)) == len(names)
    for path, method, described in operations():
        assert path.startswith("/")
        assert method in METHODS
        places = {row["name"] for row in described["parameters"] if row["in"] == "path"}
        assert places == set(re.findall(r"\{(\w+)\}", path))
        keys = [(row["in"], row["name"]) for row in described["parameters"]]
        assert len(set(keys)) == len(keys)
        for row in described["parameters"]:
            assert row["in"] in ("path", "query", "header")
            assert row["schema"]["type"] in ("string", "integer", "boolean", "array")
        for status, response in described["responses"].items():
            assert re.fullmatch(r"[2-5]\d\d", status)
            assert "$ref" in response or response["description"]


def test_a_schema_refuses_what_the_gateway_refuses() -> None:
    """The schema of an endpoint names every field and allows no other."""
    schema = DOCUMENT["components"]["schemas"]["Endpoint"]
    assert set(schema["properties"]) == set(Endpoint.__struct_fields__)
    assert schema["additionalProperties"] is False
    assert set(SPLIT) <= set(schema["properties"])
    assert schema["required"] == ["schema", "model"]
