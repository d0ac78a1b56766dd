"""The contract of the Store port, on the real server and on the fake that other tests use."""

import asyncio
import hmac
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.adapters.redis import RedisStore
from gateway.adapters.redis_keys import keys_of
from gateway.core.audit import Commit, commit_of, first_break
from gateway.core.errors import Conflict, NotFound, StoreUnavailable, Unsealed
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, decode, encode
from gateway.core.transitions import promote, register
from gateway.ports import Store
from tests.fakes import MemoryStore, manifest_of

DIGEST = "d" * 64
SEAL_KEY = "sixteen bytes or more"


def registering(base: Snapshot, number: int, actor: str = "tester") -> Commit:
    """A commit that adds a version."""
    seed = ModelRecord(versions={}, aliases={"champion": number})
    changed = register(base, "m", number, DIGEST, seed)
    return commit_of(
        base, changed, at=1.0, actor=actor, action="model.register", target="models/m", reason="t"
    )


def promoting(base: Snapshot, number: int) -> Commit:
    """A commit that moves the champion."""
    changed = promote(base, "m", number)
    return commit_of(
        base, changed, at=2.0, actor="tester", action="model.promote", target="models/m", reason="t"
    )


class Asked:
    """Puts requests on the promotions stream as CI does, and reads the answers."""

    def __init__(self, store: Store, url: str, namespace: str) -> None:
        self.store = store
        self.keys = keys_of(namespace)
        self.url = url

    async def put(self, **fields: str) -> str:
        if isinstance(self.store, MemoryStore):
            request_id = f"{len(self.store.requests) + len(self.store.results) + 1}-0"
            self.store.requests[request_id] = fields
            return request_id
        client: Any = Redis.from_url(self.url)
        added = await client.xadd(self.keys.promotions, dict(fields))
        await client.aclose()
        return bytes(added).decode()

    async def answers(self) -> list[dict[str, str]]:
        if isinstance(self.store, MemoryStore):
            return self.store.results
        client: Any = Redis.from_url(self.url)
        entries = await client.xrange(self.keys.promotion_results)
        await client.aclose()
        return [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in entries]


@pytest.fixture(params=["redis", "sealed", "memory"])
async def store(
    request: pytest.FixtureRequest, valkey_url: str, namespace: str
) -> AsyncIterator[Store]:
    """Each implementation, empty."""
    if request.param == "memory":
        yield MemoryStore()
        return
    seal_key = SEAL_KEY if request.param == "sealed" else None
    real = RedisStore(
        valkey_url, namespace=namespace, timeout_s=2.0, name="test", seal_key=seal_key
    )
    yield real
    await real.close()


@pytest.fixture
def asked(store: Store, valkey_url: str, namespace: str) -> Asked:
    """The promotions stream of the store under test."""
    return Asked(store, valkey_url, namespace)


async def test_an_empty_store_holds_no_snapshot(store: Store) -> None:
    """Nothing is read where nothing was written."""
    assert await store.read() is None
    assert await store.audit() == []


async def test_a_commit_is_read_back_with_its_audit_entry(store: Store) -> None:
    """Document and audit entry are written together."""
    commit = registering(EMPTY, 1)
    await store.commit(commit)
    assert await store.read() == encode(commit.snapshot)
    assert await store.audit() == [commit.entry]


async def test_a_commit_from_an_old_base_is_refused(store: Store) -> None:
    """Of two commits from one base, the second is a Conflict and changes nothing."""
    first, second = registering(EMPTY, 1, "a"), registering(EMPTY, 2, "b")
    await store.commit(first)
    with pytest.raises(Conflict):
        await store.commit(second)
    assert await store.read() == encode(first.snapshot)
    assert await store.audit() == [first.entry]


async def test_the_same_commit_again_is_done_already(store: Store) -> None:
    """A commit that is tried again, because its answer was lost, succeeds without effect."""
    first = registering(EMPTY, 1)
    await store.commit(first)
    await store.commit(first)
    second = registering(first.snapshot, 2)
    await store.commit(second)
    await store.commit(first)
    assert await store.audit() == [first.entry, second.entry]


async def test_racing_commits_are_put_in_a_row(store: Store) -> None:
    """Of many commits from one base at the same time, exactly one stands."""
    commits = [registering(EMPTY, 1, f"actor{n}") for n in range(8)]
    results = await asyncio.gather(*(store.commit(c) for c in commits), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert len(await store.audit()) == 1


async def test_the_audit_chain_reaches_the_head(store: Store) -> None:
    """Entries come oldest first, and may be read from a revision on."""
    base = EMPTY
    for number in range(1, 6):
        commit = registering(base, number)
        await store.commit(commit)
        base = commit.snapshot
    entries = await store.audit()
    assert [entry.revision for entry in entries] == [1, 2, 3, 4, 5]
    assert first_break(entries, base.audit_head) is None
    assert [entry.revision for entry in await store.audit(3)] == [4, 5]


async def test_a_manifest_is_written_once(store: Store) -> None:
    """The first manifest of a version stands, whatever comes later."""
    first, other = manifest_of(content="one"), manifest_of(content="two")
    assert await store.manifest("m", 1) is None
    assert await store.put_manifest(first) == first
    assert await store.put_manifest(other) == first
    assert await store.manifest("m", 1) == first


async def test_signing_keys_are_made_once(store: Store) -> None:
    """The first keys offered are shared by all."""
    first = SigningKeys(schema=1, current=1, keys={1: "a" * 64}, unit_key="b" * 64)
    other = SigningKeys(schema=1, current=2, keys={2: "c" * 64}, unit_key="d" * 64)
    assert await store.signing_keys(first) == first
    assert await store.signing_keys(other) == first


KEYS = SigningKeys(schema=1, current=1, keys={1: "a" * 64}, unit_key="b" * 64)


async def test_signing_keys_are_replaced_by_who_read_them(store: Store) -> None:
    """What was read is replaced whole, and everybody reads what stands."""
    after = SigningKeys(1, 2, {**KEYS.keys, 2: "c" * 64}, KEYS.unit_key, {2: 1_000.5}, 1)
    await store.signing_keys(KEYS)
    await store.replace_signing_keys(KEYS, after)
    assert await store.signing_keys(KEYS) == after


async def test_signing_keys_that_moved_are_left_alone(store: Store) -> None:
    """Who read other keys, or where there are none, gets a Conflict and changes nothing."""
    other = SigningKeys(schema=1, current=2, keys={2: "c" * 64}, unit_key="d" * 64)
    with pytest.raises(Conflict):
        await store.replace_signing_keys(other, KEYS)
    await store.signing_keys(KEYS)
    with pytest.raises(Conflict):
        await store.replace_signing_keys(other, other)
    assert await store.signing_keys(other) == KEYS


async def test_of_racing_replacements_one_stands(store: Store) -> None:
    """Of many that began from the same keys, exactly one wins; the others are told."""
    await store.signing_keys(KEYS)
    offered = [SigningKeys(1, 1, KEYS.keys, KEYS.unit_key, {1: float(n)}) for n in range(1, 9)]
    results = await asyncio.gather(
        *(store.replace_signing_keys(KEYS, one) for one in offered), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 7
    winner = offered[results.index(None)]
    assert await store.signing_keys(KEYS) == winner


async def test_acknowledgements_are_listed_by_process(store: Store) -> None:
    """Each process's newest document is read back."""
    assert await store.acknowledgements() == {}
    await store.acknowledge("host-1", b"old", 5)
    await store.acknowledge("host-1", b"new", 5)
    await store.acknowledge("host two } *", b"x", 5)
    assert await store.acknowledgements() == {"host-1": b"new", "host two } *": b"x"}


async def test_one_process_leads(store: Store) -> None:
    """The lock stays with who has it."""
    assert await store.lead("a", 5)
    assert not await store.lead("b", 5)
    assert await store.lead("a", 5)


async def test_a_hint_comes_with_a_commit(store: Store) -> None:
    """A waiting process hears of a commit at once, and otherwise waits no longer than asked."""
    await store.hint(0.01)
    waiting = asyncio.create_task(store.hint(5.0))
    await asyncio.sleep(0.05)
    await store.commit(registering(EMPTY, 1))
    async with asyncio.timeout(2):
        await waiting


async def test_a_promotion_request_is_answered_with_its_commit(store: Store, asked: Asked) -> None:
    """The request goes and the answer comes with the commit, at once."""
    await store.commit(registering(EMPTY, 1))
    base = decode(await store.read() or b"")
    second = registering(base, 2)
    await store.commit(second)
    request_id = await asked.put(token="t", model="m", version="2")
    (waiting,) = await store.promotion_requests()
    assert (waiting.id, waiting.fields["model"]) == (request_id, "m")
    await store.commit(promoting(second.snapshot, 2), (request_id, {"status": "accepted"}))
    assert await store.promotion_requests() == []
    assert await asked.answers() == [{"request": request_id, "status": "accepted"}]


async def test_a_request_is_answered_once(store: Store, asked: Asked) -> None:
    """A commit for a request that was answered is refused whole; refusing it again does nothing."""
    first = registering(EMPTY, 1)
    await store.commit(first)
    request_id = await asked.put(token="t")
    await store.refuse_promotion(request_id, {"status": "refused"})
    with pytest.raises(NotFound):
        await store.commit(registering(first.snapshot, 2), (request_id, {"status": "accepted"}))
    await store.refuse_promotion(request_id, {"status": "refused"})
    assert await store.read() == encode(first.snapshot)
    assert await asked.answers() == [{"request": request_id, "status": "refused"}]


async def test_an_audit_log_ahead_of_the_snapshot_stops_writing(
    store: Store, valkey_url: str, namespace: str
) -> None:
    """With the document gone and the log there, nothing begins again at revision 1."""
    await store.commit(registering(EMPTY, 1))
    if isinstance(store, MemoryStore):
        store.document = None
    else:
        client = Redis.from_url(valkey_url)
        await client.delete(keys_of(namespace).snapshot)
        await client.aclose()
    with pytest.raises(StoreUnavailable):
        await store.commit(registering(EMPTY, 2))
    assert await store.read() is None


@pytest.fixture
async def sealed(valkey_url: str, namespace: str) -> AsyncIterator[RedisStore]:
    """A store with a seal key."""
    real = RedisStore(
        valkey_url, namespace=namespace, timeout_s=2.0, name="test", seal_key=SEAL_KEY
    )
    yield real
    await real.close()


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    """A plain client, for what others may do."""
    plain: Any = Redis.from_url(valkey_url)
    yield plain
    await plain.aclose()


async def test_a_seal_is_the_hmac_of_the_document(
    sealed: RedisStore, client: Any, namespace: str
) -> None:
    """Who has the key can make the seal by hand, from the bytes that are stored."""
    await sealed.commit(registering(EMPTY, 1))
    keys = keys_of(namespace)
    document = await client.get(keys.snapshot)
    by_hand = hmac.new(SEAL_KEY.encode(), document, "sha256").hexdigest()
    assert (await client.get(keys.seal)).decode() == by_hand


@pytest.mark.parametrize(
    "seal",
    [
        pytest.param(None, id="none"),
        pytest.param(b"", id="empty"),
        pytest.param(b"0" * 64, id="made-up"),
        pytest.param(hmac.digest(b"another key of 16", b"{}", "sha256").hex().encode(), id="key"),
        pytest.param(hmac.digest(SEAL_KEY.encode(), b"{}", "sha256"), id="not-hex"),
        pytest.param(hmac.digest(SEAL_KEY.encode(), b"{}", "sha256").hex().upper(), id="upper"),
        pytest.param(hmac.digest(SEAL_KEY.encode(), b"{}", "sha256").hex() + "0", id="longer"),
        pytest.param(b"\xff" * 100_000, id="large"),
    ],
)
async def test_a_document_without_its_seal_is_refused(
    sealed: RedisStore, client: Any, namespace: str, seal: bytes | str | None
) -> None:
    """Whatever stands where the seal should be, the document is handed over as refused only."""
    keys = keys_of(namespace)
    await client.set(keys.snapshot, b"{}")
    if seal is not None:
        await client.set(keys.seal, seal)
    with pytest.raises(Unsealed) as caught:
        await sealed.read()
    assert caught.value.document == b"{}"
    assert SEAL_KEY not in str(caught.value)


async def test_the_seal_of_another_document_is_none(
    sealed: RedisStore, client: Any, namespace: str
) -> None:
    """A document that was changed under its seal is refused, and so is one put back later."""
    keys = keys_of(namespace)
    first = registering(EMPTY, 1)
    await sealed.commit(first)
    old = await client.get(keys.seal)
    await sealed.commit(registering(first.snapshot, 2))
    await client.set(keys.seal, old)
    with pytest.raises(Unsealed):
        await sealed.read()


async def test_without_a_key_no_seal_is_made_or_asked_for(
    redis_store: RedisStore, client: Any, namespace: str
) -> None:
    """A store without the setting is as it was: no seal is written, any document is read."""
    commit = registering(EMPTY, 1)
    await redis_store.commit(commit)
    assert not await client.exists(keys_of(namespace).seal)
    await client.set(keys_of(namespace).seal, "x")
    assert await redis_store.read() == encode(commit.snapshot)


async def test_document_and_seal_are_of_one_commit(
    sealed: RedisStore, valkey_url: str, namespace: str
) -> None:
    """While another host commits as fast as it can, no read sees one's document with another's."""
    other = RedisStore(
        valkey_url, namespace=namespace, timeout_s=2.0, name="other", seal_key=SEAL_KEY
    )
    base = EMPTY

    async def commit_often() -> None:
        nonlocal base
        for number in range(1, 60):
            commit = registering(base, number)
            await other.commit(commit)
            base = commit.snapshot

    committing = asyncio.create_task(commit_often())
    while not committing.done():
        await sealed.read()
    await committing
    assert await sealed.read() == encode(base)
    await other.close()


async def test_the_audit_log_is_read_in_parts(store: Store) -> None:
    """At most so many entries at once, from wherever the reader stands."""
    base = EMPTY
    for number in range(1, 6):
        commit = registering(base, number)
        await store.commit(commit)
        base = commit.snapshot
    assert [entry.revision for entry in await store.audit(1, 2)] == [2, 3]
    assert [entry.revision for entry in await store.audit(4, 9)] == [5]
    assert await store.audit(5, 1) == []
