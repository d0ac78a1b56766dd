"""Principals and tokens over the admin API: written, issued once, expired, rotated, revoked."""

import logging
from typing import Any

import pytest

from gateway.core.credentials import MAX_TOKENS
from gateway.core.errors import NotReady, Unauthenticated
from gateway.governance_ports import Identity
from tests.doors.http.admin_world import MODEL, READER, World

PATH = "/admin/v1/principals/ci"
DEPLOYER: dict[str, Any] = {"schema": 1, "grants": [{"role": "deployer", "models": ["fl*"]}]}
READING = "/admin/v1/status"


async def employed(**fields: Any) -> World:
    """A world with one principal."""
    world = await World().seed()
    assert (await world.ask("PUT", PATH, {**DEPLOYER, **fields})).status_code == 200
    return world


async def issued(world: World, **wish: Any) -> dict[str, Any]:
    """A token for that principal."""
    response = await world.ask("POST", f"{PATH}/tokens", wish)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


async def status_of(world: World, token: str, path: str = READING) -> int:
    """What the bearer of a token hears."""
    return (await world.ask("GET", path, token=token)).status_code


async def test_a_principal_is_written_read_and_dropped() -> None:
    """A principal is a document like the others: with an ETag, conditions and audit entries."""
    world = await employed()
    shown = await world.ask("GET", PATH)
    assert shown.json()["document"] == DEPLOYER
    etag = shown.headers["etag"]
    stale = {"if-match": '"00"'}
    assert (await world.ask("PUT", PATH, DEPLOYER, headers=stale)).status_code == 409
    assert (await world.ask("PUT", PATH, DEPLOYER, headers={"if-match": etag})).json()[
        "changed"
    ] is False
    (listed,) = (await world.ask("GET", "/admin/v1/principals")).json()["principals"]
    assert (listed["name"], listed["tokens"]) == ("ci", 0)
    assert (await world.ask("DELETE", f"{PATH}?reason=left")).status_code == 200
    assert (await world.ask("GET", PATH)).status_code == 404
    acts = [(entry.action, entry.actor, entry.reason) for entry in world.memory.entries[3:]]
    assert acts == [("principal.put", "wim", ""), ("principal.delete", "wim", "left")]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        pytest.param("admin", DEPLOYER, id="built-in"),
        pytest.param("steward", DEPLOYER, id="machine"),
        pytest.param("gateway", DEPLOYER, id="denials"),
        pytest.param("a b", DEPLOYER, id="name"),
        pytest.param("x" * 129, DEPLOYER, id="long-name"),
        pytest.param("ci", {"schema": 2}, id="schema"),
        pytest.param("ci", {"schema": 1, "grants": [{"role": "king"}]}, id="role"),
        pytest.param("ci", {"schema": 1, "grants": [{"role": "viewer", "models": []}]}, id="none"),
        pytest.param(
            "ci", {"schema": 1, "grants": [{"role": "viewer", "models": ["a/b"]}]}, id="pattern"
        ),
        pytest.param("ci", {"schema": 1, "grants": [{"role": "viewer"}] * 65}, id="many"),
        pytest.param(
            "ci", {"schema": 1, "inference": [{"right": "outcomes", "models": ["m"]}]}, id="scoped"
        ),
        pytest.param("ci", {"schema": 1, "inference": [{"right": "all"}]}, id="right"),
    ],
)
async def test_a_principal_that_means_nothing_is_refused(name: str, document: object) -> None:
    """What is wrong is 400, and nothing is written."""
    world = await World().seed()
    response = await world.ask("PUT", f"/admin/v1/principals/{name}", document)
    assert response.status_code == 400
    assert world.registry.snapshot.revision == 3


async def test_a_token_is_shown_once_and_stored_as_a_digest() -> None:
    """The answer has it; the store, the audit log and every list have not."""
    world = await employed()
    told = await issued(world, reason="nightly build")
    secret = told["token"]
    assert secret.split("_")[:2] == ["tilt", told["id"]]
    assert await status_of(world, secret) == 200
    promote = f"/admin/v1/models/{MODEL}/promote"
    assert (await world.ask("POST", promote, {"version": 2}, token=secret)).status_code == 200
    assert world.memory.entries[-1].actor == "ci"
    listed = (await world.ask("GET", "/admin/v1/tokens?principal=ci")).json()["tokens"]
    assert [row["id"] for row in listed] == [told["id"]]
    assert listed[0]["created_by"] == "wim"
    kept = (world.memory.document or b"").decode()
    for path in ("tokens", "principals", "audit", "principals/ci", "status"):
        kept += (await world.ask("GET", f"/admin/v1/{path}")).text
    assert secret.rpartition("_")[2] not in kept


async def test_a_repeat_issues_nothing_and_shows_nothing() -> None:
    """Under one Idempotency-Key one token is made; its second answer holds its id, not itself."""
    world = await employed()
    key = {"idempotency-key": "one"}
    first = await world.ask("POST", f"{PATH}/tokens", {}, headers=key)
    again = await world.ask("POST", f"{PATH}/tokens", {}, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == {**first.json(), "token": None}
    assert first.json()["token"] is not None
    assert len(world.registry.snapshot.tokens) == 1
    stranger = await world.ask("POST", f"{PATH}/tokens", {}, headers=key, token=READER)
    assert stranger.status_code == 403


async def test_a_token_expires_by_the_clock() -> None:
    """Until its time it is good, from then on it is refused, and the refusal says why."""
    world = await employed()
    told = await issued(world, expires_in_s=60)
    assert told["expires_at"] == world.clock.at + 60
    world.clock.at += 59.9
    assert await status_of(world, told["token"]) == 200
    world.clock.at += 0.1
    response = await world.ask("GET", READING, token=told["token"])
    assert response.status_code == 401
    assert "expired" in response.json()["error"]
    (row,) = (await world.ask("GET", "/admin/v1/tokens")).json()["tokens"]
    assert row["expired"] is True


@pytest.mark.parametrize("life", [0, -1, 1e12, float("1e300")])
async def test_a_life_has_bounds(life: float) -> None:
    """A token lives for some time and not for ever by accident; null says that it does."""
    world = await employed()
    response = await world.ask("POST", f"{PATH}/tokens", {"expires_in_s": life})
    assert response.status_code == 400
    assert (await issued(world, expires_in_s=None))["expires_at"] is None


async def test_a_rotation_leaves_the_old_token_for_a_while() -> None:
    """The new one is good at once, the old one until the overlap is over."""
    world = await employed()
    old = await issued(world, expires_in_s=1000)
    path = f"/admin/v1/tokens/{old['id']}/rotate"
    new = (await world.ask("POST", path, {"overlap_s": 30})).json()
    assert new["principal"] == "ci"
    assert new["expires_at"] == world.clock.at + 1000
    assert await status_of(world, old["token"]) == await status_of(world, new["token"]) == 200
    world.clock.at += 30
    assert await status_of(world, old["token"]) == 401
    assert await status_of(world, new["token"]) == 200
    entry = world.memory.entries[-1]
    assert (entry.action, entry.evidence) == ("token.rotate", {"replaces": old["id"]})
    assert (await world.ask("POST", path, {})).status_code == 409
    last = await world.ask("POST", f"/admin/v1/tokens/{new['id']}/rotate", {"overlap_s": 0})
    assert await status_of(world, new["token"]) == 401
    assert await status_of(world, last.json()["token"]) == 200


async def test_a_token_is_revoked_at_once() -> None:
    """The host that commits it refuses the very next request."""
    world = await employed()
    told = await issued(world)
    assert (await world.ask("DELETE", f"/admin/v1/tokens/{told['id']}")).status_code == 200
    assert await status_of(world, told["token"]) == 401
    assert world.memory.entries[-1].action == "token.revoke"
    assert (await world.ask("DELETE", f"/admin/v1/tokens/{told['id']}")).status_code == 404


async def test_who_goes_takes_all_tokens_along() -> None:
    """Deleting a principal revokes its tokens at once; a new one of its name has none."""
    world = await employed()
    told = await issued(world)
    await world.ask("DELETE", PATH)
    entry = world.memory.entries[-1]
    assert [moved.target for moved in entry.also] == [f"tokens/{told['id']}"]
    assert (await world.ask("PUT", PATH, DEPLOYER)).status_code == 200
    assert await status_of(world, told["token"]) == 401


async def test_a_disabled_principal_is_refused_until_it_is_not() -> None:
    """Disabling keeps the tokens, and none of them is good."""
    world = await employed()
    told = await issued(world)
    await world.ask("PUT", PATH, {**DEPLOYER, "disabled": True})
    assert await status_of(world, told["token"]) == 401
    await world.ask("PUT", PATH, DEPLOYER)
    assert await status_of(world, told["token"]) == 200


async def test_tokens_of_a_principal_are_bounded() -> None:
    """Beyond the bound one has to be revoked first, unless some have expired."""
    world = await employed()
    for _ in range(MAX_TOKENS):
        await issued(world, expires_in_s=60)
    assert (await world.ask("POST", f"{PATH}/tokens", {})).status_code == 409
    world.clock.at += 60
    await issued(world)
    assert len(world.registry.snapshot.tokens) == 1


class Issuer:
    """An issuer that knows two tokens."""

    def __init__(self, *groups: str, name: str = "ada") -> None:
        self.identity = Identity(name, groups)
        self.asked: list[bytes] = []

    async def identify(self, token: bytes) -> Identity:
        self.asked.append(token)
        if token == b"no.keys.yet":
            message = "The issuer's keys are not known yet; try again."
            raise NotReady(message)
        if token != b"a.good.one":
            message = "The bearer token is not one that the issuer gave for this gateway."
            raise Unauthenticated(message)
        return self.identity

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("names", "status"),
    [
        pytest.param(("ada",), 200, id="principal"),
        pytest.param(("group:ml",), 200, id="group"),
        pytest.param(("group:other",), 403, id="other-group"),
        pytest.param((), 403, id="none"),
    ],
)
async def test_an_issuers_token_has_the_grants_of_its_names(
    names: tuple[str, ...], status: int
) -> None:
    """Whom the issuer names is a principal here, by the name or by a group."""
    world = await World(issuer=Issuer("ml", "ops")).seed()
    for name in names:
        await world.ask("PUT", f"/admin/v1/principals/{name}", DEPLOYER)
    assert await status_of(world, "a.good.one") == status
    path = f"/admin/v1/models/{MODEL}/promote"
    promoted = await world.ask("POST", path, {"version": 2}, token="a.good.one")
    assert promoted.status_code == status
    if status == 200:
        assert world.memory.entries[-1].actor == "ada"
        await world.ask("PUT", f"/admin/v1/principals/{names[0]}", {**DEPLOYER, "disabled": True})
        assert await status_of(world, "a.good.one") == 403


@pytest.mark.parametrize("name", ["admin", "steward", "group:ml", "a/b"])
async def test_an_issuer_names_nobody_of_ours(name: str) -> None:
    """A claim cannot make its bearer the built-in admin, a machine or a whole group (A4)."""
    world = await World(issuer=Issuer("ml", name=name)).seed()
    await world.ask("PUT", "/admin/v1/principals/group:ml", DEPLOYER)
    assert await status_of(world, "a.good.one") == 403


async def test_only_what_looks_foreign_is_taken_to_the_issuer() -> None:
    """Our own tokens and noise are never sent anywhere; bad foreign ones are counted as guesses."""
    issuer = Issuer()
    world = await World(issuer=issuer).seed()
    for token in ("x", "tilt_a_b", READER, "tilt_a.b.c", "a.b.c.d"):
        await status_of(world, token)
    assert issuer.asked == []
    assert await status_of(world, "a.bad.one") == 401
    assert await status_of(world, "no.keys.yet") == 503
    for _ in range(30):
        await status_of(world, "a.bad.one")
    assert await status_of(world, "a.bad.one") == 429


async def test_issuing_leaves_no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Neither what is issued nor what is shown is logged, at any level (A12)."""
    caplog.set_level(logging.DEBUG)
    world = await employed()
    told = await issued(world)
    new = (await world.ask("POST", f"/admin/v1/tokens/{told['id']}/rotate", {})).json()
    await world.ask("DELETE", PATH, token=new["token"])
    for secret in (told["token"], new["token"]):
        assert secret not in caplog.text
        assert secret.rpartition("_")[2] not in caplog.text
