import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.adapters.redis import RedisStore
from gateway.adapters.redis.store import AUDIT_PAGE, FLOOD
from gateway.adapters.redis_keys import Keys, keys_of
from gateway.adapters.valkey import EmbeddedValkey
from gateway.core.audit import Commit, commit_of
from gateway.core.errors import Conflict, InvalidRequest, StoreUnavailable
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import EMPTY, MAX_SNAPSHOT_BYTES, ModelRecord, Snapshot, decode, encode
from gateway.core.transitions import register
from tests.adapters.lines import Line

DIGEST = "d" * 64

pytestmark = pytest.mark.usefixtures("no_server_left")


def registering(base: Snapshot, number: int, actor: str = "tester") -> Commit:
    """A commit that adds a version."""
    seed = ModelRecord(versions={}, aliases={"champion": number})
    changed = register(base, "m", number, DIGEST, seed)
    return commit_of(
        base, changed, at=1.0, actor=actor, action="model.register", target="models/m", reason="t"
    )


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of this test."""
    return keys_of(namespace)


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    """A plain client, to do what others may do to Redis."""
    plain = Redis.from_url(valkey_url)
    yield plain
    await plain.aclose()


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    """A server that this test may spoil."""
    server = EmbeddedValkey(tmp_path)
    await server.start()
    yield server
    await server.stop()


def socket_of(url: str) -> str:
    """The path in a URL of a unix socket."""
    return url.removeprefix("unix://")


async def test_a_document_of_another_type_is_unavailable(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """A list under the Snapshot's key is named by the server's code, for reads and writes."""
    await client.rpush(keys.snapshot, "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await redis_store.read()
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await redis_store.commit(registering(EMPTY, 1))


async def test_an_audit_log_of_another_type_stops_the_commit(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """Without its audit entry no document is written."""
    await client.set(keys.audit, "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await redis_store.commit(registering(EMPTY, 1))
    assert await redis_store.read() is None


async def test_results_of_another_type_stop_the_commit(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """A promotion whose answer cannot be written is not made, and its request stays."""
    await client.set(keys.promotion_results, "x")
    request_id = (await client.xadd(keys.promotions, {"token": "t"})).decode()
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await redis_store.commit(registering(EMPTY, 1), (request_id, {"status": "accepted"}))
    assert await redis_store.read() is None
    assert len(await redis_store.promotion_requests()) == 1


async def test_garbage_is_read_as_it_is_and_never_whole(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """What lies there is handed on to be refused; more than a Snapshot may hold is cut."""
    await client.set(keys.snapshot, b"\xff" * (1024 * 1024))
    assert await redis_store.read() == b"\xff" * (1024 * 1024)
    await client.set(keys.snapshot, b"x" * (MAX_SNAPSHOT_BYTES + 1000))
    document = await redis_store.read()
    assert document is not None
    assert len(document) == MAX_SNAPSHOT_BYTES + 1
    with pytest.raises(Conflict):
        await redis_store.commit(registering(EMPTY, 1))


async def test_a_document_with_spaces_is_still_the_base(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """A Snapshot that a person wrote in another layout may be built upon."""
    first = registering(EMPTY, 1)
    await redis_store.commit(first)
    await client.set(keys.snapshot, encode(first.snapshot).replace(b":", b" : "))
    base = decode(await redis_store.read() or b"")
    second = registering(base, 2)
    await redis_store.commit(second)
    assert await redis_store.read() == encode(second.snapshot)


@pytest.mark.parametrize(
    ("command", "undo", "code"),
    [
        pytest.param("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY", id="readonly"),
        pytest.param("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM", id="oom"),
        pytest.param("ACL SETUSER default -set", "ACL SETUSER default +set", "NOPERM", id="noperm"),
    ],
)
async def test_a_refused_write_names_the_code_and_reading_goes_on(
    own_server: EmbeddedValkey, command: str, undo: str, code: str
) -> None:
    """A server that refuses writes is read from, and written to when it takes them again (A10)."""
    store = RedisStore(own_server.url, namespace="t", timeout_s=1.0, name="test")
    first = registering(EMPTY, 1)
    await store.commit(first)
    client: Any = Redis.from_url(own_server.url)
    await client.execute_command(*command.split())
    with pytest.raises(StoreUnavailable, match=code):
        await store.commit(registering(first.snapshot, 2))
    assert await store.read() == encode(first.snapshot)
    await client.execute_command(*undo.split())
    await store.commit(registering(first.snapshot, 2))
    assert len(await store.audit()) == 2
    await client.aclose()
    await store.close()


async def test_a_missing_password_is_told(own_server: EmbeddedValkey) -> None:
    """A server that asks for a password it was not given is named as such."""
    client: Any = Redis.from_url(own_server.url)
    await client.config_set("requirepass", "hunter2")
    store = RedisStore(own_server.url, namespace="t", timeout_s=1.0, name="test")
    with pytest.raises(StoreUnavailable, match="NOAUTH"):
        await store.read()
    right = RedisStore(f"{own_server.url}?password=hunter2", namespace="t", timeout_s=1, name="x")
    assert await right.read() is None
    wrong = RedisStore(f"{own_server.url}?password=nope", namespace="t", timeout_s=1, name="x")
    with pytest.raises(StoreUnavailable, match="WRONGPASS"):
        await wrong.read()
    # The server must be stopped without the password being in the way of its PING.
    await client.execute_command("CONFIG", "SET", "requirepass", "")
    for opened in (store, right, wrong):
        await opened.close()
    await client.aclose()


async def test_a_password_is_never_shown() -> None:
    """Neither an error nor what caused it holds the URL's password."""
    secret = "".join(reversed("2retnuh"))  # so that no line of source holds it
    store = RedisStore(
        f"redis://me:{secret}@127.0.0.1:1/0", namespace="t", timeout_s=0.5, name="test"
    )
    with pytest.raises(StoreUnavailable) as caught:
        await store.read()
    await store.close()
    with pytest.raises(InvalidRequest) as refused:
        RedisStore(f"redis://me:{secret}@host:port/0", namespace="t", timeout_s=1, name="x")
    for error in (caught.value, refused.value):
        assert secret not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://localhost", id="scheme"),
        pytest.param("localhost:6379", id="none"),
        pytest.param("redis+sentinel://a:26379", id="no-service"),
        pytest.param("redis+sentinel://a:x/main", id="port"),
        pytest.param("redis+sentinel:///main", id="no-host"),
        pytest.param("redis+sentinel://a/main/zero", id="database"),
        pytest.param("redis+cluster://", id="no-node"),
        pytest.param("redis+cluster://a:99999", id="high-port"),
        pytest.param("redis://a:1?x=y", id="option"),
        pytest.param("redis://a:1?socket_timeout=y", id="no-number"),
        pytest.param("redis+sentinel://a:26379/main?x=y", id="sentinel-option"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    """A wrong URL is told at once, not when it is first used."""
    with pytest.raises(InvalidRequest):
        RedisStore(url, namespace="t", timeout_s=1, name="x")


@pytest.mark.parametrize("namespace", ["", "a}:x", "a b", "*", "..", "x" * 65])
def test_a_namespace_is_a_name(namespace: str) -> None:
    """A namespace cannot break out of the hash tag."""
    with pytest.raises(InvalidRequest):
        RedisStore("redis://localhost", namespace=namespace, timeout_s=1, name="x")


async def test_a_black_hole_costs_two_timeouts(valkey_url: str, namespace: str) -> None:
    """A server that accepts and never answers is given up on soon, without piling up."""
    async with Line(socket_of(valkey_url)) as line:
        line.silent = True
        store = RedisStore(line.url, namespace=namespace, timeout_s=0.2, name="test")
        started = time.monotonic()
        for call in (store.read(), store.lead("p", 5), store.commit(registering(EMPTY, 1))):
            with pytest.raises(StoreUnavailable):
                await call
        assert time.monotonic() - started < 3.0
        assert line.connections <= 8
        await store.close()


async def test_a_lost_answer_to_an_applied_commit_is_a_success(
    valkey_url: str, namespace: str
) -> None:
    """A commit whose EXEC was applied and whose reply was lost is found to be done."""
    cuts = 0

    def cut_once(asked: bytes) -> bool:
        nonlocal cuts
        cuts += b"EXEC" in asked
        return b"EXEC" in asked and cuts == 1

    async with Line(socket_of(valkey_url)) as line:
        line.cut_after = cut_once
        store = RedisStore(line.url, namespace=namespace, timeout_s=1.0, name="test")
        commit = registering(EMPTY, 1)
        await store.commit(commit)
        assert cuts == 1
        assert await store.read() == encode(commit.snapshot)
        assert await store.audit() == [commit.entry]
        await store.close()


async def test_a_commit_that_was_cut_off_is_applied_once(valkey_url: str, namespace: str) -> None:
    """A commit whose EXEC never arrived is sent once more."""
    cuts = 0

    def cut_once(asked: bytes) -> bool:
        nonlocal cuts
        cuts += b"EXEC" in asked
        return b"EXEC" in asked and cuts == 1

    async with Line(socket_of(valkey_url)) as line:
        line.cut_before = cut_once
        store = RedisStore(line.url, namespace=namespace, timeout_s=1.0, name="test")
        commit = registering(EMPTY, 1)
        await store.commit(commit)
        assert cuts == 2
        assert await store.audit() == [commit.entry]
        await store.close()


async def test_an_unknown_outcome_is_said_to_be_unknown(valkey_url: str, namespace: str) -> None:
    """When the line stays cut, the caller is told to look before trying again."""
    async with Line(socket_of(valkey_url)) as line:
        line.cut_after = lambda asked: b"EXEC" in asked
        line.cut_before = lambda asked: b"WATCH" in asked and line.connections > 1
        store = RedisStore(line.url, namespace=namespace, timeout_s=1.0, name="test")
        with pytest.raises(StoreUnavailable, match="not known"):
            await store.commit(registering(EMPTY, 1))
        line.cut_after = line.cut_before = lambda _: False
        assert await store.read() == encode(registering(EMPTY, 1).snapshot)
        await store.commit(registering(EMPTY, 1))
        assert len(await store.audit()) == 1
        await store.close()


FIRST = SigningKeys(schema=1, current=1, keys={1: "a" * 64}, unit_key="b" * 64)
SECOND = SigningKeys(1, 2, {**FIRST.keys, 2: "c" * 64}, FIRST.unit_key, {2: 1.0})


@pytest.mark.parametrize("arrives", [True, False])
async def test_keys_whose_replacement_was_cut_off_are_replaced_once(
    valkey_url: str, namespace: str, *, arrives: bool
) -> None:
    """Whether EXEC arrived or its reply was lost, the keys stand and the caller hears so."""
    cuts = 0

    def cut_once(asked: bytes) -> bool:
        nonlocal cuts
        cuts += b"EXEC" in asked
        return b"EXEC" in asked and cuts == 1

    async with Line(socket_of(valkey_url)) as line:
        store = RedisStore(line.url, namespace=namespace, timeout_s=1.0, name="test")
        await store.signing_keys(FIRST)
        if arrives:
            line.cut_after = cut_once
        else:
            line.cut_before = cut_once
        await store.replace_signing_keys(FIRST, SECOND)
        assert await store.signing_keys(FIRST) == SECOND
        assert cuts == (1 if arrives else 2)
        await store.close()


async def test_keys_that_a_person_wrote_are_replaced(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """What counts is what the document says, not how it is laid out."""
    await redis_store.signing_keys(FIRST)
    await client.set(keys.signing_keys, (await client.get(keys.signing_keys)).replace(b":", b" : "))
    await redis_store.replace_signing_keys(FIRST, SECOND)
    assert await redis_store.signing_keys(FIRST) == SECOND


async def test_damaged_keys_are_not_replaced(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """Who rotates hears that the keys cannot be read; they stay for a person to look at."""
    await client.set(keys.signing_keys, b'{"schema": "topsecret"}')
    with pytest.raises(InvalidRequest) as caught:
        await redis_store.replace_signing_keys(FIRST, SECOND)
    assert "topsecret" not in "".join(traceback.format_exception(caught.value))
    assert await client.get(keys.signing_keys) == b'{"schema": "topsecret"}'


async def test_a_long_audit_log_is_read_in_pages(redis_store: RedisStore) -> None:
    """Every entry is read, however many there are; here a little more than two pages."""
    base, count = EMPTY, 2 * AUDIT_PAGE + 20
    for number in range(1, count):
        commit = registering(base, number)
        await redis_store.commit(commit)
        base = commit.snapshot
    assert [entry.revision for entry in await redis_store.audit()] == list(range(1, count))


async def test_a_flood_of_hints_is_left_alone(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """Ten thousand forged messages, some of a megabyte, wake the reader a few times at most."""
    await redis_store.hint(0.01)
    pipe = client.pipeline(transaction=False)
    for _ in range(10_000):
        pipe.publish(keys.events, b"forged")
    for _ in range(5):
        pipe.publish(keys.events, b"x" * (1024 * 1024))
    await pipe.execute()
    woken = 0
    started = time.monotonic()
    while time.monotonic() - started < 0.5:
        before = time.monotonic()
        await redis_store.hint(0.1)
        woken += time.monotonic() - before < 0.09
    assert woken <= 10_000 / FLOOD / 10


async def test_hints_survive_a_broken_line(
    own_server: EmbeddedValkey, redis_store: RedisStore
) -> None:
    """A subscription that was killed is made again, and hints come through."""
    store = RedisStore(own_server.url, namespace="t", timeout_s=1.0, name="test")
    await store.hint(0.01)
    client: Any = Redis.from_url(own_server.url)
    await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await store.hint(0.01)
    await store.hint(0.01)
    waiting = asyncio.create_task(store.hint(5.0))
    while not (await client.pubsub_numsub(keys_of("t").events))[0][1]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await store.commit(registering(EMPTY, 1))
    async with asyncio.timeout(2):
        await waiting
    await client.aclose()
    await store.close()


async def test_hints_never_raise_without_a_server() -> None:
    """With nobody there, a hint is a pause."""
    store = RedisStore("redis://127.0.0.1:1/0", namespace="t", timeout_s=0.5, name="test")
    started = time.monotonic()
    await store.hint(0.05)
    assert time.monotonic() - started >= 0.05
    await store.close()


async def test_a_silent_process_is_forgotten(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """An acknowledgement that ran out is listed no more, and its name is dropped."""
    await redis_store.acknowledge("gone", b"x", 60)
    assert 0 < await client.ttl(keys.process("gone")) <= 60
    await client.delete(keys.process("gone"))
    assert await redis_store.acknowledgements() == {}
    assert await client.smembers(keys.processes) == set()


async def test_damaged_records_are_told_without_their_content(
    redis_store: RedisStore, keys: Keys, client: Any
) -> None:
    """A manifest, key or audit entry that cannot be read is refused; a key is never repeated."""
    await client.hset(keys.manifests, "m:1", b"\xff")
    with pytest.raises(InvalidRequest, match="manifest"):
        await redis_store.manifest("m", 1)
    await client.set(keys.signing_keys, b'{"schema": "topsecret"}')
    fresh = SigningKeys(schema=1, current=1, keys={1: "a" * 64}, unit_key="b" * 64)
    with pytest.raises(InvalidRequest) as caught:
        await redis_store.signing_keys(fresh)
    assert "topsecret" not in "".join(traceback.format_exception(caught.value))
    await client.xadd(keys.audit, {"entry": "x"}, id="1-1")
    with pytest.raises(InvalidRequest, match="audit"):
        await redis_store.audit()


async def test_all_keys_share_one_slot(
    redis_store: RedisStore, client: Any, namespace: str, keys: Keys
) -> None:
    """Whatever is written stands under the namespace's hash tag."""
    await redis_store.commit(registering(EMPTY, 1))
    await redis_store.acknowledge("p", b"x", 5)
    await redis_store.lead("p", 5)
    written = {key.decode() async for key in client.scan_iter(f"{{{namespace}}}:*", count=1000)}
    assert written == {keys.snapshot, keys.audit, keys.processes, keys.process("p"), keys.leader}


async def test_a_cancelled_call_is_cancelled(valkey_url: str, namespace: str) -> None:
    """Wherever a call is when its task is cancelled, the task ends; redis-py swallows some."""
    for turn in range(150):
        store = RedisStore(valkey_url, namespace=namespace, timeout_s=1.0, name="test")

        async def loop(store: RedisStore = store) -> None:
            while True:
                await store.lead("p", 5)
                await store.read()
                await store.hint(0.001)

        running = asyncio.create_task(loop())
        for _ in range(turn):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(2):
                await running
        await store.close()
