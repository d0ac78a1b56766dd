"""Operations on gates, approvals and wishes."""

from typing import Any

import pytest
from msgspec.structs import replace

from gateway.control.registry import Edit, Request
from gateway.core.access import Principal, Token, digest_of, id_of
from gateway.core.principals import Grant, PrincipalDocument, Role
from gateway.core.snapshot import Snapshot
from tests.doors.http.admin_world import MODEL, READER, TOKENS, World

GATE = "/admin/v1/gates/flights"
SECOND = f"/admin/v1/models/{MODEL}/versions/2"
PROMOTE = f"/admin/v1/models/{MODEL}/promote"
WISHES = f"/admin/v1/models/{MODEL}/wishes"
APPROVER = "tilt_a_approves"
ROLES = {
    "wim": (Role.DEPLOYER,),
    "ada": (Role.APPROVER,),
    "eva": (Role.DEPLOYER, Role.EMERGENCY),
}
DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "models": ["fl*"],
    "promotion": {"approvals": [{"role": "approver", "count": 1}]},
}


async def governed(document: dict[str, Any] | None = None) -> World:
    """A world with people and a gate."""
    world = await World().seed()
    world.tokens = (
        *TOKENS,
        Token(
            id_of(APPROVER.encode()),
            digest_of(APPROVER.encode()),
            Principal("ada", (Grant(Role.APPROVER),), fixed=True),
        ),
    )
    people = {
        name: PrincipalDocument(schema=1, grants=tuple(Grant(role) for role in held))
        for name, held in ROLES.items()
    }

    async def make(base: Snapshot) -> Snapshot:
        return replace(base, principals=people)

    await world.registry.commit(Edit("principal.put", "principals/x", make), Request("admin"))
    put = await world.ask("PUT", GATE, document or DOCUMENT)
    assert put.status_code == 200, put.text
    return world


async def test_a_gate_is_put_listed_shown_and_deleted() -> None:
    """What was put comes back, with its ETag and the models that it means."""
    world = await governed()
    shown = await world.ask("GET", GATE, token=READER)
    assert shown.json()["models"] == [MODEL]
    assert shown.json()["document"]["promotion"] == DOCUMENT["promotion"]
    etag = shown.headers["etag"]
    listed = (await world.ask("GET", "/admin/v1/gates", token=READER)).json()["gates"]
    assert [(row["name"], f'"{row["etag"]}"') for row in listed] == [("flights", etag)]
    late = await world.ask("PUT", GATE, DOCUMENT, headers={"if-match": '"aa"'})
    assert late.status_code == 409
    gone = await world.ask("DELETE", GATE, headers={"if-match": etag})
    assert gone.status_code == 200
    assert (await world.ask("GET", GATE)).status_code == 404
    actions = [entry.action for entry in world.memory.entries]
    assert actions[-2:] == ["gate.put", "gate.delete"]


async def test_a_dry_run_says_what_a_gate_would_mean() -> None:
    """And leaves the one that stands as it is."""
    world = await governed()
    wanted = {**DOCUMENT, "promotion": {"checks": [{"check": "golden"}]}}
    told = (await world.ask("PUT", f"{GATE}?dry_run", wanted)).json()
    assert told["models"] == [MODEL]
    assert told["changes"]
    assert told["failing"][0]["version"] == 1
    assert (await world.ask("PUT", GATE, DOCUMENT)).json()["changed"] is False


@pytest.mark.parametrize("document", [{**DOCUMENT, "models": []}, {**DOCUMENT, "aprovals": 1}, {}])
async def test_a_gate_that_is_none_is_refused(document: dict[str, Any]) -> None:
    """With a sentence, and nothing stands."""
    world = await World().seed()
    refused = await world.ask("PUT", GATE, document)
    assert refused.status_code == 400
    assert world.registry.snapshot.gates == {}


async def test_a_closed_gate_is_a_conflict_that_lists_what_is_missing() -> None:
    """Beside the one sentence; approved by another, the same request passes."""
    world = await governed()
    refused = await world.ask("POST", PROMOTE, {"version": 2})
    assert refused.status_code == 409
    assert "A gate is closed for version 2 of 'flights'" in refused.json()["error"]
    (one,) = refused.json()["missing"]
    assert (one["gate"], one["requirement"]) == ("flights", "approvals.approver")
    assert "'wim'" in one["sentence"]
    assert "etag" in refused.headers
    approved = await world.ask("POST", f"{SECOND}/approve", {"reason": "fine"}, token=APPROVER)
    assert approved.json()["changed"]
    assert (await world.ask("POST", PROMOTE, {"version": 2})).status_code == 200


async def test_what_stands_in_the_way_is_told_without_trying() -> None:
    """Each requirement, met or missing, for who asks."""
    world = await governed()
    told = (await world.ask("GET", f"{SECOND}/gates", token=READER)).json()
    assert (told["open"], told["alias"]) == (False, "champion")
    assert [(row["requirement"], row["met"]) for row in told["requirements"]] == [
        ("approvals.approver", False)
    ]
    await world.ask("POST", f"{SECOND}/approve", token=APPROVER, content=b"")
    told = (await world.ask("GET", f"{SECOND}/gates", token=READER)).json()
    assert told["open"]
    assert [one["principal"] for one in told["approvals"]] == ["ada"]
    mine = (await world.ask("GET", f"{SECOND}/gates", token=APPROVER)).json()
    assert not mine["open"]
    blue = (await world.ask("GET", f"{SECOND}/gates?alias=blue", token=READER)).json()
    assert (blue["open"], blue["requirements"]) == (True, [])
    assert (await world.ask("GET", f"{SECOND}9/gates", token=READER)).status_code == 404
    assert (await world.ask("GET", f"{SECOND}x/gates", token=READER)).status_code == 400


async def test_an_approval_is_taken_back() -> None:
    """By who gave it, once."""
    world = await governed()
    await world.ask("POST", f"{SECOND}/approve", {"reason": "fine"}, token=APPROVER)
    taken = await world.ask("DELETE", f"{SECOND}/approve?reason=doubt", token=APPROVER)
    assert taken.json()["changed"]
    assert (await world.ask("DELETE", f"{SECOND}/approve", token=APPROVER)).status_code == 404
    assert (await world.ask("POST", PROMOTE, {"version": 2})).status_code == 409
    last = world.memory.entries[-1]
    assert (last.actor, last.action, last.reason) == ("ada", "model.unapprove", "doubt")


async def test_a_promotion_is_asked_for_and_granted_later() -> None:
    """The answer lists what is missing; the list of wishes does until it is there."""
    world = await governed()
    asked = (await world.ask("POST", WISHES, {"version": 2, "reason": "better"})).json()
    assert (asked["granted"], asked["changed"]) == (False, True)
    assert asked["missing"][0]["requirement"] == "approvals.approver"
    for path in ("/admin/v1/wishes", WISHES):
        (wish,) = (await world.ask("GET", path, token=READER)).json()["wishes"]
        assert (wish["model"], wish["alias"], wish["wish"]["asked_by"]) == (
            MODEL,
            "champion",
            "wim",
        )
        assert wish["missing"] == asked["missing"]
    await world.ask("POST", f"{SECOND}/approve", {"reason": "fine"}, token=APPROVER)
    (wish,) = (await world.ask("GET", WISHES, token=READER)).json()["wishes"]
    assert wish["missing"] == []
    standing = world.registry.snapshot.wishes[f"{MODEL}/champion"]
    await world.wishes.grant(MODEL, "champion", standing)
    assert world.registry.snapshot.models[MODEL].aliases == {"champion": 2}


async def test_a_promotion_that_may_be_is_not_kept_waiting() -> None:
    """Asked for where the gates are open, it is made at once."""
    world = await World().seed()
    asked = (await world.ask("POST", WISHES, {"version": 2})).json()
    assert (asked["granted"], asked["missing"]) == (True, [])
    assert (await world.ask("POST", WISHES, {"version": 2})).status_code == 409


async def test_a_wish_is_withdrawn() -> None:
    """By its alias."""
    world = await governed()
    await world.ask("POST", WISHES, {"version": 2})
    assert (await world.ask("DELETE", f"{WISHES}/champion?reason=no")).status_code == 200
    assert (await world.ask("DELETE", f"{WISHES}/champion")).status_code == 404


async def test_an_override_over_http_takes_its_role() -> None:
    """Who may only promote is refused, and the gate stays closed."""
    world = await governed()
    document = {"version": 2, "override": True, "reason": "the site is down"}
    assert (await world.ask("POST", PROMOTE, document)).status_code == 403
    people = world.registry.snapshot.principals

    async def make(base: Snapshot) -> Snapshot:
        return replace(base, principals={**people, "wim": people["eva"]})

    await world.registry.commit(Edit("principal.put", "principals/wim", make), Request("admin"))
    assert (await world.ask("POST", PROMOTE, {**document, "reason": ""})).status_code == 400
    assert (await world.ask("POST", PROMOTE, document)).status_code == 200
    page = (await world.ask("GET", "/admin/v1/audit?limit=1000", token=READER)).json()
    assert page["entries"][-1]["entry"]["evidence"]["override"] is True
