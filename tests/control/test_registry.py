import asyncio

import msgspec
import pytest

from gateway.adapters.redis import RedisStore
from gateway.control.registry import Edit, Registry, Request
from gateway.core.audit import first_break
from gateway.core.endpoints import Endpoint, Rule, Split, Target, Weighted
from gateway.core.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, decode, document_digest, encode
from tests.control.building import ASKED, register
from tests.fakes import CountingEntropy, ManualClock, MemoryStore, manifest_of, signature_of


def splitting(one: int, *, salt: str | None = None, exposure: int = 10_000) -> Endpoint:
    """An endpoint that splits between versions 1 and 2."""
    split = Split(
        exposure=exposure,
        salt=salt,
        variants=(
            Weighted(name="one", weight=one, version=1),
            Weighted(name="two", weight=10_000 - one, version=2),
        ),
    )
    return Endpoint(schema=1, model="m", rules=(Rule(name="ab", split=split),))


async def test_a_promotion_is_one_commit_with_its_entry(
    registry: Registry, store: MemoryStore, clock: ManualClock
) -> None:
    """Moving the champion writes revision, alias, history and an entry that says who and why."""
    await register(registry, store, 1, 2)
    clock.at = 77.0
    change = await registry.promote("m", 2, ASKED)
    assert change.revision == 3
    record = decode(store.document or b"").models["m"]
    assert (record.aliases, record.previous) == ({"champion": 2}, {"champion": (1,)})
    entry = store.entries[-1]
    assert entry == change.entry
    assert (entry.actor, entry.action, entry.target) == ("ana", "model.promote", "models/m")
    assert (entry.reason, entry.at, entry.revision) == ("because", 77.0, 3)
    assert change.etag == document_digest(record) == registry.etag("models/m")
    assert first_break(store.entries, registry.snapshot.audit_head) is None


async def test_a_rollback_goes_back(registry: Registry, store: MemoryStore) -> None:
    """The version before serves again, and there is none before the first."""
    await register(registry, store, 1, 2)
    await registry.promote("m", 2, ASKED)
    await registry.rollback("m", ASKED)
    assert registry.snapshot.models["m"].aliases == {"champion": 1}
    with pytest.raises(Conflict):
        await registry.rollback("m", ASKED)
    assert registry.snapshot.revision == 4


async def test_what_does_not_exist_is_not_promoted(registry: Registry, store: MemoryStore) -> None:
    """An unknown model or version, and the version that serves already, change nothing."""
    await register(registry, store, 1)
    with pytest.raises(NotFound):
        await registry.promote("m", 9, ASKED)
    with pytest.raises(NotFound):
        await registry.promote("x", 1, ASKED)
    with pytest.raises(Conflict):
        await registry.promote("m", 1, ASKED)
    assert registry.snapshot.revision == 1


async def test_racing_promotions_are_put_in_a_row(redis_store: RedisStore) -> None:
    """Of two promotions that both expect the document they saw, one wins and one is told."""
    registries = [
        Registry(redis_store, now=lambda: 1.0, entropy=CountingEntropy()) for _ in range(2)
    ]
    for number in (1, 2, 3):
        manifest = await redis_store.put_manifest(manifest_of(number=number))
        seed = ModelRecord(versions={}, aliases={"champion": 1})
        await registries[0].register(manifest, ASKED, seed=seed)
    seen = Request(actor="ana", if_match=registries[0].etag("models/m"))
    results = await asyncio.gather(
        registries[0].promote("m", 2, seen),
        registries[1].promote("m", 3, seen),
        return_exceptions=True,
    )
    (refused,) = [result for result in results if isinstance(result, BaseException)]
    assert isinstance(refused, Conflict)
    entries = await redis_store.audit()
    assert [entry.action for entry in entries] == ["model.register"] * 3 + ["model.promote"]
    assert entries[-1].after in str(refused)


async def test_changes_of_different_documents_do_not_meet(redis_store: RedisStore) -> None:
    """Commits that race over other documents are tried again inside, and all stand."""
    registries = [
        Registry(redis_store, now=lambda: 1.0, entropy=CountingEntropy()) for _ in range(12)
    ]

    async def add(registry: Registry, model: str) -> None:
        manifest = await redis_store.put_manifest(manifest_of(model))
        await registry.register(manifest, ASKED)

    await asyncio.gather(*(add(r, f"model{n}") for n, r in enumerate(registries)))
    snapshot = decode(await redis_store.read() or b"")
    assert sorted(snapshot.models) == sorted(f"model{n}" for n in range(12))
    assert first_break(await redis_store.audit(), snapshot.audit_head) is None


async def test_an_endpoint_is_put_read_and_deleted(registry: Registry, store: MemoryStore) -> None:
    """A put gives the split a salt of its own; the same document again is no revision."""
    await register(registry, store, 1, 2)
    put = await registry.put_endpoint("checkout", splitting(5_000), ASKED)
    salt = registry.snapshot.endpoints["checkout"].splits["ab"].salt
    endpoint, rule, drawn = salt.split(".")
    assert (endpoint, rule, len(drawn)) == ("checkout", "ab", 8)
    again = await registry.put_endpoint("checkout", splitting(5_000), ASKED)
    assert (again.revision, again.etag, again.entry) == (put.revision, put.etag, None)
    assert len(store.entries) == 3
    gone = await registry.delete_endpoint("checkout", ASKED)
    assert (gone.etag, registry.snapshot.endpoints) == (None, {})
    with pytest.raises(NotFound):
        await registry.delete_endpoint("checkout", ASKED)


async def test_long_names_leave_room_for_the_salt(registry: Registry, store: MemoryStore) -> None:
    """The longest names still give a salt that the hash can take."""
    await register(registry, store, 1, 2)
    document = splitting(5_000)
    rule = msgspec.structs.replace(document.rules[0], name="r" * 64)
    document = msgspec.structs.replace(document, rules=(rule,))
    await registry.put_endpoint("e" * 64, document, ASKED)
    salt = registry.snapshot.endpoints["e" * 64].splits["r" * 64].salt
    assert len(salt) == 64


async def test_if_match_guards_a_document(registry: Registry, store: MemoryStore) -> None:
    """A change stands only on the document that it was made for; the refusal names the ETag."""
    await register(registry, store, 1, 2)
    with pytest.raises(Conflict):
        await registry.put_endpoint("e", splitting(1), Request(actor="a", if_match="*"))
    made = await registry.put_endpoint("e", splitting(1), Request(actor="a", if_match=""))
    with pytest.raises(Conflict):
        await registry.put_endpoint("e", splitting(2), Request(actor="a", if_match=""))
    await registry.load("m", 2, ASKED)
    moved = await registry.put_endpoint("e", splitting(2), Request(actor="a", if_match=made.etag))
    with pytest.raises(Conflict, match=str(moved.etag)):
        await registry.put_endpoint("e", splitting(3), Request(actor="a", if_match=made.etag))
    await registry.put_endpoint("e", splitting(3), Request(actor="a", if_match="*"))


async def test_another_signature_is_not_promoted_unasked(
    registry: Registry, store: MemoryStore
) -> None:
    """A version that callers would notice is promoted only when the request allows it."""
    store.manifests["m", 2] = manifest_of(number=2, signature=signature_of(5))
    await register(registry, store, 1, 2)
    with pytest.raises(Conflict, match="signature"):
        await registry.promote("m", 2, ASKED)
    with pytest.raises(Conflict, match="signature"):
        await registry.promote("m", 2, ASKED, alias="challenger")
    with pytest.raises(Conflict, match="signature"):
        await registry.put_endpoint("e", splitting(5_000), ASKED)
    assert registry.snapshot.revision == 2
    allowed = Request(actor="ana", allow_signature_change=True)
    await registry.promote("m", 2, allowed)
    await registry.put_endpoint("e", splitting(5_000), allowed)


async def test_callers_keep_the_signature_that_they_know(
    registry: Registry, store: MemoryStore
) -> None:
    """Another model or default behind an endpoint, a document's or a model's own, is no surprise.

    A preview says so, the put is refused, and goes through when the request allows it.
    """
    store.manifests["m", 2] = manifest_of(number=2, signature=signature_of(5))
    store.manifests["other", 1] = manifest_of("other", signature=signature_of(6))
    await register(registry, store, 1, 2, 3)
    await register(registry, store, 1, model="other")
    await register(registry, store, 1, model="alike")
    await registry.put_endpoint("e", Endpoint(schema=1, model="m"), ASKED)
    revision = registry.snapshot.revision
    other = Endpoint(schema=1, model="other")
    second = Endpoint(schema=1, model="m", default=Target(version=2))
    for name in ("e", "m"):
        for document in (other, second):
            preview = await registry.preview_endpoint(name, document)
            assert "version 1 of 'm'" in (preview.refusal or "")
            with pytest.raises(Conflict, match="signature"):
                await registry.put_endpoint(name, document, ASKED)
    assert registry.snapshot.revision == revision
    for name in ("e", "m"):
        for same in (
            Endpoint(schema=1, model="alike"),
            Endpoint(schema=1, model="m", default=Target(version=3)),
        ):
            assert (await registry.preview_endpoint(name, same)).refusal is None
            await registry.put_endpoint(name, same, ASKED)
    await registry.put_endpoint("e", other, Request(actor="ana", allow_signature_change=True))
    await registry.put_endpoint("e", other, ASKED)
    await registry.put_endpoint("new", other, ASKED)
    with pytest.raises(Conflict, match="version 1 of 'other'"):
        await registry.put_endpoint("e", Endpoint(schema=1, model="alike"), ASKED)


async def test_a_version_without_a_manifest_is_not_promoted(
    registry: Registry, store: MemoryStore
) -> None:
    """What nothing is known of is not served."""
    await register(registry, store, 1, 2)
    store.manifests.clear()
    registry._manifests.clear()
    with pytest.raises(NotFound, match="manifest"):
        await registry.promote("m", 2, ASKED)


async def test_versions_are_loaded_and_let_go_by_hand(
    registry: Registry, store: MemoryStore
) -> None:
    """Loading twice is one revision; what is in use is not let go."""
    await register(registry, store, 1, 2)
    await registry.load("m", None, ASKED)
    assert list(registry.snapshot.models["m"].loaded) == [2]
    assert (await registry.load("m", 2, ASKED)).entry is None
    await registry.unload("m", 2, ASKED)
    assert list(registry.snapshot.models["m"].loaded) == []
    with pytest.raises(Conflict):
        await registry.unload("m", 1, ASKED)


async def test_a_number_never_gets_other_bytes(registry: Registry, store: MemoryStore) -> None:
    """Registering a version twice is one revision; with other bytes it is refused."""
    await register(registry, store, 1)
    assert (await registry.register(manifest_of(), ASKED)).entry is None
    with pytest.raises(Conflict, match="other bytes"):
        await registry.register(manifest_of(content="else"), ASKED)


async def test_a_store_that_is_away_changes_nothing(registry: Registry, store: MemoryStore) -> None:
    """Writes fail while the store is away, and what is known stays known."""
    await register(registry, store, 1, 2)
    store.away = True
    with pytest.raises(StoreUnavailable):
        await registry.promote("m", 2, ASKED)
    assert registry.snapshot.revision == 2


async def test_a_store_that_lost_data_is_not_written(
    registry: Registry, store: MemoryStore
) -> None:
    """On an emptied, older or unreadable store nothing is begun again."""
    await register(registry, store, 1)
    older = store.document
    await register(registry, store, 1, 2)
    for document in (None, older, b"garbage", encode(EMPTY)):
        store.document = document
        with pytest.raises(StoreUnavailable):
            await registry.promote("m", 2, ASKED)
        assert store.document == document
    fresh = Registry(store, now=lambda: 0.0, entropy=CountingEntropy())
    fresh.hold("There was a Snapshot.")
    store.document = None
    with pytest.raises(StoreUnavailable, match="There was"):
        await fresh.register(manifest_of(), ASKED)


async def test_a_preview_says_what_would_move(registry: Registry, store: MemoryStore) -> None:
    """A preview shows rules, versions, shares and moved units, and changes nothing."""
    await register(registry, store, 1, 2)
    fresh = await registry.preview_endpoint("e", splitting(9_000, exposure=5_000))
    (rule,) = fresh.rules
    assert (fresh.changes, fresh.etag, fresh.default_version, rule.salt) == (True, None, 1, None)
    assert [(v.name, v.version, v.share, v.intervals) for v in rule.variants] == [
        ("one", 1, 0.45, ((0, 9_000),)),
        ("two", 2, 0.05, ((9_000, 10_000),)),
    ]
    assert (rule.kind, rule.left_out, rule.moved_share) == ("split", 0.5, 0.5)
    assert store.document == encode(registry.snapshot)
    await registry.put_endpoint("e", splitting(9_000), ASKED)
    changed = await registry.preview_endpoint("e", splitting(8_000))
    assert changed.rules[0].moved_share == pytest.approx(0.1)
    assert changed.rules[0].salt == registry.snapshot.endpoints["e"].splits["ab"].salt
    assert not (await registry.preview_endpoint("e", splitting(9_000))).changes
    assert registry.snapshot.revision == 3


async def test_a_preview_tells_of_signatures(registry: Registry, store: MemoryStore) -> None:
    """What a put would be refused for, a preview says."""
    store.manifests["m", 2] = manifest_of(number=2, signature=signature_of(5))
    await register(registry, store, 1, 2)
    preview = await registry.preview_endpoint("e", splitting(5_000))
    assert preview.refusal is not None
    assert "signature" in preview.refusal
    serving = Rule(name="vip", serve=Target(version=1))
    document = Endpoint(schema=1, model="m", rules=(serving,))
    served = await registry.preview_endpoint("e", document)
    assert served.refusal is None
    assert [(v.name, v.share) for v in served.rules[0].variants] == [("vip", 1.0)]


async def test_a_wrong_document_changes_nothing(registry: Registry, store: MemoryStore) -> None:
    """Weights that do not add up, versions that are not there and endless reasons are refused."""
    await register(registry, store, 1)
    with pytest.raises(InvalidRequest):
        await registry.put_endpoint("e", splitting(5_000), ASKED)
    with pytest.raises(InvalidRequest):
        await registry.preview_endpoint("..", splitting(5_000))
    with pytest.raises(InvalidRequest, match="reason"):
        await registry.load("m", 1, Request(actor="a", reason="x" * 2_000))
    assert registry.snapshot.revision == 1


async def test_what_is_noted_is_an_entry_though_nothing_changes(
    registry: Registry, store: MemoryStore
) -> None:
    """A refusal can be written down: the chain grows by its entry, and no document moves."""

    async def make(base: Snapshot) -> Snapshot:
        return base

    await register(registry, store, 1)
    before = registry.snapshot
    edit = Edit("model.refuse", "models/m", make, evidence={"number": 2}, noted=True)
    change = await registry.commit(edit, ASKED)
    assert change.entry is not None
    assert change.entry.before == change.entry.after == registry.etag("models/m")
    assert change.entry.evidence == {"number": 2}
    assert registry.snapshot.models == before.models
    assert first_break(store.entries, registry.snapshot.audit_head) is None
