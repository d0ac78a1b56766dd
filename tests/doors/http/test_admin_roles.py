"""Every operation of the admin API, asked for by every role, for its model and for another."""

import asyncio
import re
from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace

from gateway.control.registry import Request
from gateway.core.principals import ALLOWED, Action, Grant, PrincipalDocument, Role
from gateway.core.snapshot import ModelRecord
from gateway.core.subjects import About
from gateway.doors.http.admin_calls import Operation
from gateway.doors.http.admin_routes import OPERATIONS
from gateway.settings import AdminSettings
from tests.doors.http.admin_world import MODEL, World
from tests.fakes import manifest_of
from tests.rollouts import document_of

OTHER = "trains"
CLOSED = [row for row in OPERATIONS if not row.is_open]
EXPERIMENTS = "/admin/v1/experiments"
SEED = Request(actor="seed")


def path_of(row: Operation, name: str) -> str:
    """The path with one name in all of its places."""
    return re.sub(r"\{\w+\}", name, row.path)


def is_about_a_model(row: Operation) -> bool:
    """Whether an operation is about one model, told from its path unless it says so itself."""
    if row.about is not None:
        return row.about is not About.NOTHING
    return "{model}" in row.path or re.search(r"/(endpoints|experiments)/\{", row.path) is not None


class Town:
    """A world of two models with everything that may be named, and somebody of each kind."""

    def __init__(self) -> None:
        self.world = World(settings=AdminSettings(open_metrics=False))
        self.tokens: dict[str, str] = {}

    async def build(self) -> "Town":
        """Register, and issue a token to everybody."""
        await self.world.seed(1, 2)
        for number in (1, 2):
            manifest = manifest_of(OTHER, number)
            await self.world.store.put_manifest(manifest)
            first = ModelRecord(versions={}, aliases={"champion": number})
            await self.world.registry.register(manifest, SEED, seed=first)
        for model in (MODEL, OTHER):
            draft = replace(document_of(), endpoint=model)
            await self.world.experiments.put(model, draft, SEED)
        for role in Role:
            await self.add(f"{role}-all", Grant(role))
            await self.add(f"{role}-some", Grant(role, ("fl*",)))
        await self.add("nothing")
        admin = Grant(Role.ADMIN)
        await self.add("expired", admin, life_s=1.0)
        self.world.clock.at += 2
        await self.add("revoked", admin)
        revoked = self.tokens["revoked"].split("_")[1]
        await self.world.principals.revoke(revoked, SEED)
        await self.add("gone", admin)
        await self.world.principals.delete("gone", SEED)
        await self.add("disabled", admin)
        off = PrincipalDocument(schema=1, grants=(admin,), disabled=True)
        await self.world.principals.put("disabled", off, SEED)
        return self

    async def add(self, name: str, *grants: Grant, life_s: float | None = None) -> None:
        """Write a principal and give it a token."""
        await self.world.principals.put(name, PrincipalDocument(schema=1, grants=grants), SEED)
        self.tokens[name] = (await self.world.principals.issue(name, life_s, SEED)).token

    async def ask(self, row: Operation, model: str, who: str | None) -> int:
        """Ask for an operation on one of the models; the status."""
        token = None if who is None else self.tokens[who]
        content = None if row.body is None else b"{}"
        path = path_of(row, model)
        response = await self.world.ask(row.method, path, token=token, content=content)
        return response.status_code


@pytest.fixture(scope="module")
def town_once() -> Town:
    """A town that nobody changes."""
    return asyncio.run(Town().build())


async def rebuilt(town: Town) -> Town:
    """Another like it, as quickly as may be."""
    new = Town()
    new.tokens = town.tokens
    new.world.memory.document = town.world.memory.document
    new.world.memory.entries = list(town.world.memory.entries)
    new.world.memory.manifests = dict(town.world.memory.manifests)
    new.world.clock.at = town.world.clock.at
    await new.world.registry.fresh()
    return new


def cases(row: Operation) -> Iterator[tuple[str, str, bool]]:
    """Who asks, about which model, and whether the table allows it."""
    about = is_about_a_model(row)
    for role in Role:
        holds = role in ALLOWED[row.action]
        for model in (MODEL, OTHER):
            yield f"{role}-all", model, holds
        everywhere = not about and row.action is Action.READ
        yield f"{role}-some", MODEL, holds and (about or everywhere)
        yield f"{role}-some", OTHER, holds and everywhere
    yield "nothing", MODEL, False


@pytest.mark.parametrize("row", CLOSED, ids=lambda row: f"{row.method} {row.path}")
async def test_the_table_is_what_is_enforced(row: Operation, town_once: Town) -> None:
    """Whom `ALLOWED` lets is let in, everybody else is refused, and nothing changes then (A4)."""
    town = await rebuilt(town_once)
    revision, entries = town.world.registry.snapshot.revision, len(town.world.memory.entries)
    for who in (None, "expired", "revoked", "gone", "disabled"):
        assert await town.ask(row, MODEL, who) == 401, who
    refused = [(who, model) for who, model, holds in cases(row) if not holds]
    for who, model in refused:
        assert await town.ask(row, model, who) == 403, (who, model)
    assert town.world.registry.snapshot.revision == revision
    assert len(town.world.memory.entries) == entries
    told = {(name, action) for name, action, _ in town.world.refusals}
    assert told == {(who, row.action) for who, _ in refused}
    for who, model, holds in cases(row):
        if holds:
            assert await town.ask(row, model, who) not in (401, 403, 405, 500), (who, model)


async def test_a_refusal_names_the_action_and_the_model(town_once: Town) -> None:
    """Who is refused learns what would have been needed; the model's existence is not told."""
    town = await rebuilt(town_once)
    for model in (OTHER, "nobody"):
        response = await town.world.ask(
            "POST",
            f"/admin/v1/models/{model}/promote",
            {"version": 2},
            token=town.tokens["deployer-some"],
        )
        assert response.status_code == 403
        assert response.json()["error"] == (
            "'deployer-some' may not do this: the action 'promote' needs one of the roles "
            f"admin, deployer, for model '{model}'."
        )
    assert town.world.refusals == [
        ("deployer-some", Action.PROMOTE, OTHER),
        ("deployer-some", Action.PROMOTE, "nobody"),
    ]


async def test_a_body_is_not_read_for_who_may_not(town_once: Town) -> None:
    """A refusal comes before the body is looked at, whatever it holds."""
    town = await rebuilt(town_once)
    response = await town.world.ask(
        "PUT",
        f"/admin/v1/endpoints/{OTHER}",
        token=town.tokens["deployer-some"],
        content=b"{" * 1_000_000,
    )
    assert response.status_code == 403


@pytest.mark.parametrize("query", ["", "?dry_run"])
@pytest.mark.parametrize(
    ("name", "model", "status"),
    [
        pytest.param(MODEL, MODEL, 200, id="own"),
        pytest.param("fresh", MODEL, 200, id="new"),
        pytest.param("fresh", OTHER, 403, id="new-of-other"),
        pytest.param(MODEL, OTHER, 403, id="moved-away"),
        pytest.param(OTHER, MODEL, 403, id="taken-over"),
    ],
)
async def test_an_endpoint_is_moved_by_who_may_for_both(
    name: str, model: str, status: int, query: str, town_once: Town
) -> None:
    """What it serves and what it is to serve are both asked about (A4, A14)."""
    town = await rebuilt(town_once)
    document = {"schema": 1, "model": model}
    path = f"/admin/v1/endpoints/{name}{query}"
    token = town.tokens["deployer-some"]
    response = await town.world.ask("PUT", path, document, token=token)
    assert response.status_code == status, response.text
    everywhere = await town.world.ask("PUT", path, document, token=town.tokens["deployer-all"])
    assert everywhere.status_code == 200


async def test_an_endpoint_that_hides_a_model_is_dropped_by_who_may_for_both(
    town_once: Town,
) -> None:
    """Without its document the endpoint would serve the model of its name."""
    town = await rebuilt(town_once)
    path = f"/admin/v1/endpoints/{OTHER}"
    document = {"schema": 1, "model": MODEL}
    assert (await town.world.ask("PUT", path, document)).status_code == 200
    refused = await town.world.ask("DELETE", path, token=town.tokens["deployer-some"])
    assert refused.status_code == 403
    assert f"'{OTHER}'" in refused.json()["error"]
    dropped = await town.world.ask("DELETE", path, token=town.tokens["deployer-all"])
    assert dropped.status_code == 200


@pytest.mark.parametrize(("endpoint", "status"), [(MODEL, 200), (OTHER, 403)])
async def test_an_experiment_is_about_its_endpoints_model(
    endpoint: str, status: int, town_once: Town
) -> None:
    """A draft is written by who may experiment on what its endpoint serves."""
    town = await rebuilt(town_once)
    document = msgspec.to_builtins(replace(document_of(), endpoint=endpoint))
    response = await town.world.ask(
        "PUT",
        "/admin/v1/experiments/try?dry_run",
        document,
        token=town.tokens["experimenter-some"],
    )
    assert response.status_code == status, response.text


async def test_an_experiment_is_superseded_by_who_may_for_both(town_once: Town) -> None:
    """A start cannot stop what is about a model that its caller has no rights to."""
    town = await rebuilt(town_once)
    begin = {"supersedes": OTHER}
    assert (await town.world.ask("POST", f"{EXPERIMENTS}/{OTHER}/start", {})).status_code == 200
    path, some = f"{EXPERIMENTS}/{MODEL}/start", town.tokens["experimenter-some"]
    refused = await town.world.ask("POST", path, begin, token=some)
    assert refused.status_code == 403
    assert f"'{OTHER}'" in refused.json()["error"]
    everywhere = town.tokens["experimenter-all"]
    assert (await town.world.ask("POST", path, begin, token=everywhere)).status_code == 200


async def test_an_experiment_that_outlived_its_endpoint_is_nobodys_in_particular(
    town_once: Town,
) -> None:
    """Whose it was cannot be told any more, so dropping it takes a role for all models."""
    town = await rebuilt(town_once)
    document = {"schema": 1, "model": OTHER}
    path = f"{EXPERIMENTS}/late"
    draft = msgspec.to_builtins(replace(document_of(), endpoint="extra"))
    steps: tuple[tuple[str, str, object], ...] = (
        ("PUT", "/admin/v1/endpoints/extra", document),
        ("PUT", path, draft),
        ("POST", f"{path}/start", {}),
        ("POST", f"{path}/stop", {}),
        ("DELETE", "/admin/v1/endpoints/extra", None),
    )
    for method, where, body in steps:
        response = await town.world.ask(method, where, body)
        assert response.status_code == 200, response.text
    refused = await town.world.ask("DELETE", path, token=town.tokens["experimenter-some"])
    assert refused.status_code == 403
    dropped = await town.world.ask("DELETE", path, token=town.tokens["experimenter-all"])
    assert dropped.status_code == 200


async def test_rights_are_asked_for_again_with_the_newest_snapshot(town_once: Town) -> None:
    """Who lost a right by a commit that this host has not heard of is refused by the commit."""
    town = await rebuilt(town_once)
    elsewhere = World(town.world.store)
    await elsewhere.principals.put("deployer-all", PrincipalDocument(schema=1), SEED)
    path = f"/admin/v1/models/{MODEL}/promote"
    response = await town.world.ask("POST", path, {"version": 2}, token=town.tokens["deployer-all"])
    assert response.status_code == 403
    assert town.world.registry.snapshot.models[MODEL].aliases == {"champion": 1}
    for token in list(town.world.registry.snapshot.tokens):
        await elsewhere.principals.revoke(token, SEED)
    response = await town.world.ask("POST", path, {"version": 2}, token=town.tokens["admin-all"])
    assert response.status_code == 401


def test_every_operation_knows_what_it_is_about() -> None:
    """What is derived from a path is what the path says, and its place is in the path."""
    for row in OPERATIONS:
        about, place = row.subject
        assert (about is not About.NOTHING) == is_about_a_model(row), row.path
        assert not place or f"{{{place}}}" in row.path
