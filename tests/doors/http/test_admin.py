"""What the admin API does once it lets someone in."""

import gzip
from typing import Any

import msgspec
import pytest

from gateway.adapters.redis import RedisStore
from gateway.core.audit import first_break
from gateway.core.endpoints import MAX_DOCUMENT_BYTES
from gateway.core.errors import StoreUnavailable
from gateway.doors.http.admin_calls import MAX_BODY_BYTES
from gateway.settings import AdminSettings
from tests.doors.http.admin_world import MODEL, SPLIT, WRITER, World

PATH = f"/admin/v1/endpoints/{MODEL}"
MODEL_PATH = f"/admin/v1/models/{MODEL}"
SMALL = {"schema": 1, "model": MODEL}


def split_with(*weights: int, **more: Any) -> dict[str, Any]:
    """The split with other weights."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(SPLIT))
    split = document["rules"][1]["split"]
    for variant, weight in zip(split["variants"], weights, strict=False):
        variant["weight"] = weight
    split.update(more)
    return document


async def test_endpoints_are_listed_with_those_that_models_imply() -> None:
    """The list holds what clients may call; a model without a document follows its champion."""
    world = await World().seed()
    await world.ask("PUT", "/admin/v1/endpoints/other", SPLIT)
    response = await world.ask("GET", "/admin/v1/endpoints")
    assert response.headers["x-revision"] == "4"
    implied, other = response.json()["endpoints"]
    assert implied == {
        "name": MODEL,
        "model": MODEL,
        "implicit": True,
        "etag": None,
        "default_version": 1,
        "rules": 0,
        "shadows": 0,
    }
    assert (other["name"], other["implicit"], other["rules"]) == ("other", False, 2)


async def test_an_implicit_endpoint_can_be_read() -> None:
    """The endpoint that a model implies has a document to start from, and no ETag."""
    world = await World().seed()
    response = await world.ask("GET", PATH)
    assert response.json()["implicit"] is True
    assert response.json()["document"] == SMALL
    assert "etag" not in response.headers
    planned = (await world.ask("GET", f"{PATH}?plan")).json()["plan"]
    assert (planned["default_version"], planned["changes"], planned["etag"]) == (1, False, None)


async def test_an_endpoint_is_read_as_it_was_put() -> None:
    """A document comes back as it went in, with the ETag that its write answered."""
    world = await World().seed()
    put = await world.ask("PUT", PATH, SPLIT)
    got = await world.ask("GET", PATH)
    assert put.status_code == 200
    assert put.json()["changed"] is True
    assert put.headers["etag"] == got.headers["etag"] == f'"{got.json()["etag"]}"'
    assert put.headers["x-revision"] == "4"
    assert got.json()["document"] == SPLIT
    assert list(got.json()["splits"]) == ["half"]
    assert "plan" not in got.json()


async def test_a_plan_shows_shares_and_versions() -> None:
    """The compiled plan names the version and the share of each variant."""
    world = await World().seed()
    await world.ask("PUT", PATH, split_with(9_000, 1_000, exposure=5_000))
    plan = (await world.ask("GET", PATH, params={"plan": "true"})).json()["plan"]
    gold, half = plan["rules"]
    assert [(v["name"], v["version"], v["share"]) for v in gold["variants"]] == [("gold", 2, 1.0)]
    assert [(v["name"], v["version"], v["share"]) for v in half["variants"]] == [
        ("control", 1, 0.45),
        ("treatment", 2, 0.05),
    ]
    assert half["left_out"] == 0.5
    assert half["moved_share"] == 0


async def test_a_dry_run_changes_nothing() -> None:
    """A dry run answers the plan, the shares and how many units would move, and writes nothing."""
    world = await World().seed()
    stands = (await world.ask("PUT", PATH, SPLIT)).headers["etag"]
    preview = await world.ask("PUT", f"{PATH}?dry_run", split_with(8_000, 2_000))
    assert preview.status_code == 200
    assert preview.headers["etag"] == stands
    assert preview.headers["x-revision"] == "4"
    rule = preview.json()["rules"][1]
    assert [variant["share"] for variant in rule["variants"]] == [0.8, 0.2]
    assert rule["moved_share"] == pytest.approx(0.3)
    assert (await world.ask("GET", PATH)).headers["etag"] == stands
    assert world.registry.snapshot.revision == 4


async def test_of_two_writers_one_hears_of_the_other() -> None:
    """A write over a document that moved is 409 with the ETag that stands (A6)."""
    world = await World().seed()
    first = (await world.ask("PUT", PATH, SPLIT)).headers["etag"]
    second = await world.ask("PUT", PATH, SMALL, headers={"if-match": first})
    late = await world.ask("PUT", PATH, split_with(1_000, 9_000), headers={"if-match": first})
    assert second.status_code == 200
    assert late.status_code == 409
    assert late.headers["etag"] == second.headers["etag"]
    assert second.json()["etag"] in late.json()["error"]
    assert world.registry.snapshot.revision == 5


async def test_writes_race_on_a_real_store(redis_store: RedisStore) -> None:
    """On a real store too exactly one of two writes over one ETag stands, with its entry (A6)."""
    world = await World(redis_store).seed()
    etag = (await world.ask("PUT", PATH, SPLIT)).headers["etag"]
    answers = [
        await world.ask("PUT", PATH, document, headers={"if-match": etag})
        for document in (split_with(4_000, 6_000), split_with(3_000, 7_000))
    ]
    assert [answer.status_code for answer in answers] == [200, 409]
    snapshot = world.registry.snapshot
    assert (await world.ask("GET", PATH)).json()["document"] == split_with(4_000, 6_000)
    entries = await redis_store.audit()
    assert [entry.revision for entry in entries] == [1, 2, 3, 4, 5]
    assert first_break(entries, snapshot.audit_head) is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"if-match": "*"}, 200, id="any"),
        pytest.param({"if-none-match": "*"}, 409, id="none-yet"),
        pytest.param({"if-match": '"0000"'}, 409, id="another"),
        pytest.param({"if-match": "0000"}, 409, id="without-quotes"),
        pytest.param({"if-match": 'W/"0000"'}, 400, id="weak"),
        pytest.param({"if-match": '"a", "b"'}, 400, id="list"),
        pytest.param({"if-match": ""}, 400, id="empty"),
        pytest.param({"if-match": "*", "if-none-match": "*"}, 400, id="both"),
        pytest.param({"if-none-match": '"a"'}, 400, id="none-match-etag"),
    ],
)
async def test_conditions_are_honoured_or_refused(headers: dict[str, str], status: int) -> None:
    """A condition on a write holds, or the write is refused; none is passed over (A6)."""
    world = await World().seed()
    await world.ask("PUT", PATH, SPLIT)
    response = await world.ask("PUT", PATH, SMALL, headers=headers)
    assert response.status_code == status
    assert world.registry.snapshot.revision == (5 if status == 200 else 4)


async def test_a_document_is_begun_once() -> None:
    """`If-None-Match: *` writes only where no document is, `If-Match: *` only where one is."""
    world = await World().seed()
    begun = {"if-none-match": "*"}
    assert (await world.ask("PUT", PATH, SPLIT, headers={"if-match": "*"})).status_code == 409
    assert (await world.ask("PUT", PATH, SPLIT, headers=begun)).status_code == 200
    assert (await world.ask("PUT", PATH, SMALL, headers=begun)).status_code == 409


async def test_the_same_document_changes_nothing() -> None:
    """Putting what stands is no commit."""
    world = await World().seed()
    await world.ask("PUT", PATH, SPLIT)
    again = await world.ask("PUT", PATH, SPLIT)
    assert again.json()["changed"] is False
    assert again.json()["revision"] == 4


async def test_an_endpoint_is_deleted_once() -> None:
    """A deleted document leaves what its model implies; there is nothing to delete then."""
    world = await World().seed()
    etag = (await world.ask("PUT", PATH, SPLIT)).headers["etag"]
    wrong = await world.ask("DELETE", PATH, headers={"if-match": '"00"'})
    assert wrong.status_code == 409
    gone = await world.ask("DELETE", f"{PATH}?reason=over", headers={"if-match": etag})
    assert gone.json() == {"revision": 5, "etag": None, "changed": True}
    assert (await world.ask("DELETE", PATH)).status_code == 404
    assert (await world.ask("GET", PATH)).json()["implicit"] is True
    assert world.memory.entries[-1].reason == "over"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"{", "not JSON", id="cut"),
        pytest.param(b"\xff{}", "not JSON", id="not-utf-8"),
        pytest.param(b"\xef\xbb\xbf{}", "not JSON", id="byte-order-mark"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
        pytest.param(b"[]", "object", id="array"),
        pytest.param(b'{"schema":1,"schema":1,"model":"m"}', "twice", id="duplicate-key"),
        pytest.param(
            b'{"schema":1,"model":"m","default":{"version":1,"version":2}}',
            "twice",
            id="duplicate-within",
        ),
        pytest.param(b'{"schema":1,"model":"m","rulez":[]}', "rulez", id="unknown-field"),
        pytest.param(b'{"schema":"1","model":"m"}', "int", id="number-as-text"),
        pytest.param(b'{"schema":1.0,"model":"m"}', "int", id="float"),
        pytest.param(b'{"schema":true,"model":"m"}', "int", id="boolean"),
        pytest.param(b'{"schema":NaN,"model":"m"}', "not JSON", id="nan"),
        pytest.param(b'{"schema":1}', "model", id="missing"),
        pytest.param(b'{"schema":1,"model":"../etc"}', "model", id="path-as-name"),
        pytest.param(b'{"schema":1,"model":"nobody"}', "not registered", id="unknown-model"),
    ],
)
async def test_a_wrong_document_is_refused_with_a_sentence(content: bytes, told: str) -> None:
    """A document that is not exactly one of ours is 400, and nothing changes (A9)."""
    world = await World().seed()
    response = await world.ask("PUT", PATH, content=content)
    assert response.status_code == 400
    assert told in response.json()["error"]
    assert world.registry.snapshot.revision == 3


async def test_ten_thousand_variants_are_too_many() -> None:
    """A document beyond the caps is refused by its size or its count (A9)."""
    world = await World().seed()
    many = [{"name": f"v{number}", "weight": 1, "version": 1} for number in range(4_000)]
    document = {**SMALL, "rules": [{"name": "r", "split": {"exposure": 1, "variants": many}}]}
    response = await world.ask("PUT", PATH, document)
    assert response.status_code == 400
    assert "100 are allowed" in response.json()["error"]
    big = await world.ask("PUT", PATH, content=b" " * (MAX_BODY_BYTES + 1))
    assert big.status_code == 413
    assert MAX_BODY_BYTES == MAX_DOCUMENT_BYTES


async def test_a_bomb_is_too_large() -> None:
    """A compressed body counts as what it becomes (A9)."""
    world = await World().seed()
    headers = {"content-encoding": "gzip"}
    packed = gzip.compress(b" " * 10_000_000)
    response = await world.ask("PUT", PATH, content=packed, headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("dryrun", id="slip"),
        pytest.param("dry_run=yes", id="no-flag"),
        pytest.param("dry_run&dry_run", id="twice"),
        pytest.param("reason=%ff", id="not-utf-8"),
        pytest.param("&".join(f"a{number}" for number in range(100)), id="many"),
    ],
)
async def test_a_slip_in_the_query_is_no_write(query: str) -> None:
    """A query that is not understood whole is refused, so a mistyped dry run never writes."""
    world = await World().seed()
    response = await world.ask("PUT", f"{PATH}?{query}", SPLIT)
    assert response.status_code == 400
    assert world.registry.snapshot.revision == 3


async def test_promotion_and_rollback_move_the_champion() -> None:
    """A promotion moves an alias, a rollback moves it back, and both stand in the audit log."""
    world = await World().seed()
    asked = {"version": 2, "reason": "better\nadmin: forged"}
    promoted = await world.ask("POST", f"{MODEL_PATH}/promote", asked)
    assert promoted.status_code == 200
    assert promoted.json()["revision"] == 4
    assert (await world.ask("GET", MODEL_PATH)).json()["aliases"] == {"champion": 2}
    back = await world.ask("POST", f"{MODEL_PATH}/rollback", {})
    assert back.json()["revision"] == 5
    assert (await world.ask("GET", MODEL_PATH)).json()["aliases"] == {"champion": 1}
    raw = await world.ask("GET", "/admin/v1/audit?after=3")
    first, second = (item["entry"] for item in raw.json()["entries"])
    assert (first["actor"], first["action"], first["reason"]) == (
        "wim",
        "model.promote",
        "better\nadmin: forged",
    )
    assert b"\nadmin" not in raw.content
    assert second["action"] == "model.rollback"


@pytest.mark.parametrize("media", [None, "application/json", "application/x-www-form-urlencoded"])
async def test_what_is_optional_needs_no_body(media: str | None) -> None:
    """A rollback without a body takes the champion back; a promotion must name its version."""
    world = await World().seed()
    headers = {} if media is None else {"content-type": media}
    await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 2})
    async with world.client() as client:
        back = await client.post(f"{MODEL_PATH}/rollback", headers=headers)
        refused = await client.post(f"{MODEL_PATH}/promote", headers=headers)
        coded = {"content-type": "application/json", "content-encoding": "br"}
        unread = await client.post(f"{MODEL_PATH}/rollback", content=b"{}", headers=coded)
    assert (back.status_code, refused.status_code) == (200, 400)
    assert "version" in refused.json()["error"]
    assert world.registry.snapshot.models[MODEL].aliases == {"champion": 1}
    assert unread.status_code == 415
    assert unread.headers["accept-encoding"] == "gzip, deflate"


async def test_another_alias_can_be_moved() -> None:
    """The alias is the caller's to name."""
    world = await World().seed()
    asked = {"version": 3, "alias": "challenger"}
    await world.ask("POST", f"{MODEL_PATH}/promote", asked)
    model = (await world.ask("GET", MODEL_PATH)).json()
    assert model["aliases"] == {"champion": 1, "challenger": 3}


@pytest.mark.parametrize(
    ("verb", "document", "status"),
    [
        pytest.param("promote", {"version": 9}, 404, id="unknown-version"),
        pytest.param("promote", {"version": 1}, 409, id="same-version"),
        pytest.param("promote", {}, 400, id="no-version"),
        pytest.param("promote", {"version": "2"}, 400, id="text-version"),
        pytest.param("promote", {"version": 2, "force": True}, 400, id="unknown-field"),
        pytest.param("promote", {"version": 2, "alias": "a/b"}, 400, id="no-alias"),
        pytest.param("promote", {"version": 2, "reason": "x" * 1_001}, 400, id="long-reason"),
        pytest.param("rollback", {}, 409, id="nothing-to-go-back-to"),
        pytest.param("rollback", {"alias": "nobody"}, 404, id="unknown-alias"),
        pytest.param("load", {"version": 9}, 404, id="load-unknown"),
        pytest.param("unload", {"version": 1}, 409, id="unload-in-use"),
        pytest.param("unload", {"version": 9}, 404, id="unload-unknown"),
    ],
)
async def test_an_illegal_change_changes_nothing(
    verb: str, document: dict[str, Any], status: int
) -> None:
    """What may not be done is refused with a sentence, and nothing moves (A8)."""
    world = await World().seed()
    response = await world.ask("POST", f"{MODEL_PATH}/{verb}", document)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert world.registry.snapshot.revision == 3


async def test_a_version_is_kept_warm_and_let_go() -> None:
    """A version that nothing names is warm between load and unload."""
    world = await World().seed()
    await world.ask("POST", f"{MODEL_PATH}/load", {"version": 3})
    listed = (await world.ask("GET", "/admin/v1/models")).json()["models"]
    assert listed == [
        {"name": MODEL, "versions": [1, 2, 3], "aliases": {"champion": 1}, "warm": [1, 3]}
    ]
    assert (await world.ask("POST", f"{MODEL_PATH}/unload", {"version": 3})).status_code == 200
    assert (await world.ask("GET", "/admin/v1/models")).json()["models"][0]["warm"] == [1]


async def test_a_model_shows_its_versions() -> None:
    """A model's document holds what is registered, what the manifest says, and what runs here."""
    world = await World().seed(1, 2)
    response = await world.ask("GET", MODEL_PATH)
    first, second = response.json()["versions"]
    assert (first["number"], first["state"], first["warm"]) == (1, "ready", True)
    assert (second["number"], second["state"], second["warm"]) == (2, None, False)
    assert first["lineage"] == {"trainer": "test"}
    assert first["signature"]["inputs"][0]["name"] == "x"
    assert response.headers["etag"] == f'"{response.json()["etag"]}"'
    assert (await world.ask("GET", "/admin/v1/models/nobody")).status_code == 404


async def test_what_the_model_store_holds_in_vain_is_told() -> None:
    """A version that was refused is shown with the reason, and asking for it tells the reason."""
    world = await World().seed()
    why = "The file is no ONNX model."
    bad = {"model": MODEL, "version": 4, "reason": why}
    worse = {"model": "worse", "version": 1, "reason": why}
    world.refused = [bad, worse]
    assert (await world.ask("GET", "/admin/v1/models")).json()["refused"] == [bad, worse]
    assert (await world.ask("GET", MODEL_PATH)).json()["refused"] == [bad]
    for answered in (
        await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 4}),
        await world.ask("POST", f"{MODEL_PATH}/load", {"version": 4}),
        await world.ask("GET", "/admin/v1/models/worse"),
    ):
        assert answered.status_code == 404
        assert why in answered.json()["error"]
    other = await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 5})
    assert other.status_code == 404
    assert why not in other.json()["error"]


async def test_a_replayed_promotion_is_done_once() -> None:
    """The same promotion under one Idempotency-Key is answered alike and made once (A7)."""
    world = await World().seed()
    key = {"idempotency-key": "deploy-7"}
    first = await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 2}, headers=key)
    await world.ask("POST", f"{MODEL_PATH}/rollback", {})
    replay = await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 2}, headers=key)
    assert replay.json() == first.json()
    assert replay.headers["idempotency-replayed"] == "true"
    assert world.registry.snapshot.models[MODEL].aliases == {"champion": 1}
    other = await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 3}, headers=key)
    assert other.status_code == 409


async def test_a_replay_is_told_by_its_etag_too() -> None:
    """A promotion with the ETag that it was meant for cannot be played again later (A7)."""
    world = await World().seed()
    etag = (await world.ask("GET", MODEL_PATH)).headers["etag"]
    asked: Any = {"document": {"version": 2}, "headers": {"if-match": etag}}
    assert (await world.ask("POST", f"{MODEL_PATH}/promote", **asked)).status_code == 200
    await world.ask("POST", f"{MODEL_PATH}/rollback", {})
    late = await world.ask("POST", f"{MODEL_PATH}/promote", **asked)
    assert late.status_code == 409
    assert late.headers["etag"] == (await world.ask("GET", MODEL_PATH)).headers["etag"]


async def test_a_refused_promotion_may_be_sent_again() -> None:
    """A key remembers what was done, not what was refused; after ten minutes it is forgotten."""
    world = await World().seed()
    key = {"idempotency-key": "deploy-8"}
    asked: Any = {"document": {"version": 2}, "headers": key}
    world.memory.away = True
    assert (await world.ask("POST", f"{MODEL_PATH}/promote", **asked)).status_code == 503
    world.memory.away = False
    assert (await world.ask("POST", f"{MODEL_PATH}/promote", **asked)).status_code == 200
    world.clock.at += 600
    assert (await world.ask("POST", f"{MODEL_PATH}/promote", **asked)).status_code == 409


@pytest.mark.parametrize("key", [b"", b"x" * 129], ids=["empty", "long"])
async def test_a_key_is_bounded(key: bytes) -> None:
    """An Idempotency-Key that is none is refused."""
    world = await World().seed()
    asked = {"idempotency-key": key.decode()}
    response = await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 2}, headers=asked)
    assert response.status_code == 400


async def test_keys_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest keys are remembered."""
    monkeypatch.setattr("gateway.doors.http.admin_repeats.MAX_KEPT", 4)
    world = await World().seed()
    for number in range(5):
        key = {"idempotency-key": f"key {number}"}
        await world.ask("POST", f"{MODEL_PATH}/load", {"version": 1}, headers=key)
    asked: Any = {"document": {"version": 1}, "headers": {"idempotency-key": "key 0"}}
    again = await world.ask("POST", f"{MODEL_PATH}/load", **asked)
    assert "idempotency-replayed" not in again.headers


async def test_without_the_store_reads_go_on() -> None:
    """While the store is away, writes are 503 and what this process knows can still be read."""
    world = await World().seed()
    await world.ask("PUT", PATH, SPLIT)
    world.memory.away = True
    for method, path, document in (
        ("PUT", PATH, SMALL),
        ("PUT", f"{PATH}?dry_run", SMALL),
        ("DELETE", PATH, None),
        ("POST", f"{MODEL_PATH}/promote", {"version": 2}),
        ("GET", "/admin/v1/audit", None),
    ):
        response = await world.ask(method, path, document)
        assert response.status_code == 503, path
        assert response.headers["retry-after"] == "2"
    for path in ("status", "endpoints", f"endpoints/{MODEL}", "models", f"models/{MODEL}"):
        assert (await world.ask("GET", f"/admin/v1/{path}")).status_code == 200, path
    explained = await world.ask("GET", f"{PATH}/assignment?unit=ada")
    assert explained.status_code == 200


async def test_what_a_manifest_says_is_left_out_without_the_store() -> None:
    """A model can be read though a manifest that was never read cannot be fetched now."""
    world = await World().seed()
    stranger = World(world.store)
    stranger.registry.learn(world.registry.snapshot)
    world.memory.away = True
    model = (await stranger.ask("GET", MODEL_PATH)).json()
    assert [version["signature"] for version in model["versions"]] == [None, None, None]


async def test_an_audit_that_cannot_be_written_undoes_the_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Change and audit entry are one transaction: if it fails, neither is there (A10)."""
    world = await World().seed()

    async def full(*_: object) -> None:
        raise StoreUnavailable("The store is full.")

    monkeypatch.setattr(world.memory, "commit", full)
    response = await world.ask("PUT", PATH, SPLIT)
    assert response.status_code == 503
    assert world.registry.snapshot.revision == 3
    assert (await world.ask("GET", PATH)).json()["implicit"] is True


async def test_the_audit_log_is_read_in_pages() -> None:
    """Pages follow each other by revision, and the hashes chain up to the Snapshot's head."""
    world = await World().seed()
    first = (await world.ask("GET", "/admin/v1/audit?limit=2")).json()
    second = (await world.ask("GET", f"/admin/v1/audit?limit=2&after={first['next']}")).json()
    assert (first["next"], second["next"]) == (2, None)
    items = [*first["entries"], *second["entries"]]
    assert [item["entry"]["revision"] for item in items] == [1, 2, 3]
    assert [item["entry"]["previous"] for item in items[1:]] == [item["hash"] for item in items[:2]]
    assert items[-1]["hash"] == world.registry.snapshot.audit_head


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=-1", "after=²"])
async def test_bounds_of_pages_are_checked(query: str) -> None:
    """A page's bounds are whole numbers within limits."""
    assert (await World().ask("GET", f"/admin/v1/audit?{query}")).status_code == 400


async def test_an_assignment_is_explained_at_any_revision() -> None:
    """A unit's variant can be worked out again for the revision that was served then."""
    world = await World().seed()
    await world.ask("PUT", PATH, SPLIT)
    await world.ask("POST", f"{MODEL_PATH}/promote", {"version": 3})
    await world.ask("PUT", PATH, SMALL)
    path = f"{PATH}/assignment"
    now = (await world.ask("GET", path, params={"unit": "ada"})).json()
    assert (now["revision"], now["variant"], now["version"], now["reason"]) == (
        6,
        "default",
        3,
        "static",
    )
    then = (await world.ask("GET", path, params={"unit": "ada", "revision": 4})).json()
    assert then == (await world.ask("GET", path, params={"unit": "ada", "revision": 5})).json() | {
        "revision": 4,
        "version": then["version"],
    }
    assert then["reason"] == "split"
    assert then["variant"] in ("control", "treatment")
    assert then["rules"][1]["position"]["salt"] == "salt-one"
    before = (await world.ask("GET", path, params={"unit": "ada", "revision": 3})).json()
    assert (before["reason"], before["version"]) == ("static", 1)


async def test_an_assignment_follows_attributes() -> None:
    """What conditions read can be told along."""
    world = await World().seed()
    await world.ask("PUT", PATH, SPLIT)
    path = (
        f"{PATH}/assignment?unit=ada&attribute=plan=gold&header=a=b&parameter=n=1&parameter=t=text"
    )
    found = (await world.ask("GET", path)).json()
    assert (found["variant"], found["rule"], found["reason"]) == ("gold", "gold", "targeting_match")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("", 400, id="no-unit"),
        pytest.param("unit=", 400, id="empty-unit"),
        pytest.param("unit=%20", 400, id="blank-unit"),
        pytest.param("unit=" + "x" * 1_025, 400, id="long-unit"),
        pytest.param("unit=a&unit=b", 400, id="two-units"),
        pytest.param("unit=a&revision=99", 404, id="future"),
        pytest.param("unit=a&revision=0", 400, id="revision-0"),
        pytest.param("unit=a&attribute=plan", 400, id="no-value"),
        pytest.param("unit=a&attribute==gold", 400, id="no-name"),
    ],
)
async def test_what_cannot_be_explained_is_refused(query: str, status: int) -> None:
    """A question without a unit, or about a revision that is not there, is refused."""
    world = await World().seed()
    assert (await world.ask("GET", f"{PATH}/assignment?{query}")).status_code == status


async def test_an_audit_log_with_a_hole_explains_nothing() -> None:
    """Where the log does not lead from the first change to the asked one, nothing is guessed."""
    world = await World().seed()
    await world.ask("PUT", PATH, SPLIT)
    await world.ask("PUT", PATH, SMALL)
    del world.memory.entries[1]
    response = await world.ask("GET", f"{PATH}/assignment?unit=a&revision=4")
    assert response.status_code == 404


async def test_shadows_statistics_and_metrics_are_passed_on() -> None:
    """What the data plane found is told as it found it."""
    world = await World().seed()
    shadows = (await world.ask("GET", f"{PATH}/shadows")).json()
    assert (shadows["endpoint"], shadows["shadows"][0]["shadow"]) == (MODEL, "s")
    assert (await world.ask("GET", "/admin/v1/endpoints/nobody/shadows")).status_code == 404
    inputs = (await world.ask("GET", f"{PATH}/inputs")).json()
    assert (inputs["endpoint"], inputs["inputs"][0]["prediction_id"]) == (MODEL, "p1")
    assert (await world.ask("GET", "/admin/v1/endpoints/nobody/inputs")).status_code == 404
    found = (await world.ask("GET", "/admin/v1/statistics?model=m&version=2")).json()
    assert found == {"model_stats": [{"name": "m", "version": "2"}]}


async def test_status_is_complete_when_everybody_serves_the_newest() -> None:
    """`complete` is said of the newest revision known here, not of an older one."""
    world = await World(settings=AdminSettings()).seed()
    assert (await world.ask("GET", "/admin/v1/status")).json()["complete"] is True
    world.behind = 1
    behind = (await world.ask("GET", "/admin/v1/status")).json()
    assert (behind["complete"], behind["newest"], behind["revision"]) == (False, 3, 2)
    world.behind, world.lagging = 0, {MODEL: "version 2 is loading"}
    assert (await world.ask("GET", "/admin/v1/status")).json()["complete"] is False


async def test_a_name_that_is_none_is_refused() -> None:
    """A path's name is held to what names may be, whatever the encoding."""
    world = await World().seed()
    for name in ("..", "%2e%2e", "a%2fb", "a%00", "%ff", "x" * 65, "a b"):
        response = await world.ask("PUT", f"/admin/v1/endpoints/{name}", SMALL)
        assert response.status_code in (400, 404, 405), name
    assert world.registry.snapshot.revision == 3


async def test_a_caller_who_leaves_changes_nothing() -> None:
    """A body that is cut off by the caller's leaving is answered with nothing and does nothing."""
    world = await World().seed()
    sent: list[object] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "PUT",
        "path": PATH,
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"authorization", b"Bearer " + WRITER.encode()),
        ],
    }
    await world.app(scope, receive, send)
    assert sent == []
    assert world.registry.snapshot.revision == 3
