import json
from typing import Any

import pytest

from gateway.doors.schemas import KINDS, schema_text
from tests.doors.http.admin_world import MODEL, READER, World

APPLY, EXPORT = "/admin/v1/apply", "/admin/v1/export"
BUNDLE = {
    "schema": 1,
    "aliases": {MODEL: {"next": 2}},
    "endpoints": {"e": {"schema": 1, "model": MODEL, "default": {"alias": "next"}}},
    "gates": {"g": {"schema": 1, "models": ["other"]}},
}


@pytest.fixture
async def world() -> World:
    """Three versions of a model."""
    return await World().seed()


async def applied(world: World, bundle: Any, query: str = "", **fields: Any) -> Any:
    """The answer to a bundle."""
    answer = await world.ask("POST", f"{APPLY}{query}", {"bundle": bundle, **fields})
    return answer.json()


async def test_a_dry_run_says_what_applying_does(world: World) -> None:
    """Then it is done once, with what was seen and a reason, and the second time not at all."""
    plan = await applied(world, BUNDLE, "?dry_run")
    assert [change["target"] for change in plan["changes"]] == [
        f"aliases/{MODEL}/next",
        "endpoints/e",
        "gates/g",
    ]
    done = await applied(world, BUNDLE, expected=plan["expected"], reason="from the repository")
    assert (done["changed"], done["changes"]) == (True, plan["changes"])
    assert (await world.store.audit())[-1].reason == "from the repository"
    again = await applied(world, BUNDLE)
    assert again == {"revision": done["revision"], "changed": False, "changes": []}


async def test_what_is_exported_can_be_applied(world: World) -> None:
    """It is the same bundle, with what else there is."""
    await applied(world, BUNDLE)
    exported = (await world.ask("GET", EXPORT)).json()
    assert exported == {**BUNDLE, "aliases": {MODEL: {"champion": 1, "next": 2}}}
    assert (await applied(world, exported, "?prune"))["changed"] is False


async def test_an_export_tells_roles_to_those_only_who_may_see_them(world: World) -> None:
    """All else it tells to every reader."""
    await applied(world, {**BUNDLE, "principals": {"ana": {"schema": 1}}})
    own = (await world.ask("GET", EXPORT)).json()
    theirs = (await world.ask("GET", EXPORT, token=READER)).json()
    assert own.pop("principals") == {"ana": {"schema": 1}}
    assert theirs == own


async def test_prune_deletes_what_the_bundle_does_not_name(world: World) -> None:
    """Of kinds that it names."""
    await applied(world, BUNDLE)
    done = await applied(world, {"schema": 1, "gates": {}}, "?prune")
    assert done["changes"] == [{"target": "gates/g", "kind": "delete", "differences": []}]


async def test_what_moved_is_a_conflict_that_names_it(world: World) -> None:
    """The caller looks again."""
    plan = await applied(world, BUNDLE, "?dry_run")
    await applied(world, {"schema": 1, "aliases": {MODEL: {"next": 3}}})
    body = {"bundle": BUNDLE, "expected": plan["expected"]}
    refused = await world.ask("POST", APPLY, body)
    assert refused.status_code == 409
    assert f"'aliases/{MODEL}/next'" in refused.json()["error"]


@pytest.mark.parametrize(
    ("bundle", "status", "words"),
    [
        ({"schema": 2}, 400, "schema 2"),
        ({"schema": 1, "endpoint": {}}, 400, "unknown field"),
        ({"schema": 1, "aliases": {"q": {"champion": 1}}}, 404, "no model 'q'"),
        ({"schema": 1, "principals": {"admin": {"schema": 1}}}, 400, "built in"),
        ({"schema": 1, "gates": {"a b": {"schema": 1, "models": ["m"]}}}, 400, "a gate"),
    ],
)
async def test_a_bundle_that_is_wrong_changes_nothing(
    world: World, bundle: Any, status: int, words: str
) -> None:
    """The sentence says what is wrong, dry or not."""
    before = world.registry.snapshot
    for query in ("", "?dry_run"):
        refused = await world.ask("POST", f"{APPLY}{query}", {"bundle": bundle})
        assert refused.status_code == status
        assert words in refused.json()["error"]
    assert world.registry.snapshot == before


async def test_who_may_only_read_applies_nothing(world: World) -> None:
    """And hears why."""
    refused = await world.ask("POST", APPLY, {"bundle": BUNDLE}, token=READER)
    assert refused.status_code == 403


async def test_a_large_bundle_is_read(world: World) -> None:
    """Larger than any single document may be."""
    body = b" " * 1_000_000 + b'{"bundle": {"schema": 1}}'
    headers = {"content-type": "application/json"}
    answer = await world.ask("POST", APPLY, content=body, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("kind", KINDS)
async def test_schemas_are_told(world: World, kind: str) -> None:
    """The same as the published ones."""
    answer = await world.ask("GET", f"/admin/v1/schemas/{kind}.json", token=READER)
    assert answer.json() == json.loads(schema_text(kind))


async def test_a_kind_without_a_schema_is_told_which_there_are(world: World) -> None:
    """With a 404."""
    answer = await world.ask("GET", "/admin/v1/schemas/model.json")
    assert answer.status_code == 404
    assert "bundle, endpoint" in answer.json()["error"]
