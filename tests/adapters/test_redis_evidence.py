import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.adapters.redis import RedisEvidence
from gateway.adapters.redis_keys import ENTRY_FIELD, Keys, keys_of, read_shipped
from gateway.core.errors import StoreUnavailable
from tests.adapters.lines import Line

FIRST = [(1, b"one"), (2, b"two")]


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of this test."""
    return keys_of(namespace)


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    """A plain client, to look at what was written."""
    plain = Redis.from_url(valkey_url)
    yield plain
    await plain.aclose()


@pytest.fixture
async def evidence(valkey_url: str, namespace: str) -> AsyncIterator[RedisEvidence]:
    """The stream on the real server, empty."""
    store = RedisEvidence(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


async def stream(client: Any, keys: Keys) -> list[bytes]:
    """The entries of the stream."""
    found = await client.xrange(keys.evidence)
    return [fields[ENTRY_FIELD.encode()] for _, fields in found]


async def test_entries_come_in_order_each_once(
    evidence: RedisEvidence, client: Any, keys: Keys
) -> None:
    """However often a batch is tried, and however batches overlap."""
    assert await evidence.ship("h", FIRST, 10) == 2
    assert await evidence.ship("h", FIRST, 10) == 2
    assert await evidence.ship("h", [*FIRST, (5, b"five")], 30) == 5
    assert await stream(client, keys) == [b"one", b"two", b"five"]
    assert read_shipped(await client.hget(keys.shipped, "h")) == (5, 30)


async def test_nothing_is_written_over_what_was_lost_or_is_another_hosts(
    evidence: RedisEvidence, client: Any, keys: Keys
) -> None:
    """The caller hears what there is, and no time is moved."""
    await evidence.ship("h", FIRST, 10)
    for within in ((3, 5), (0, 1)):
        assert await evidence.ship("h", [(6, b"six")], 99, within) == 2
    assert read_shipped(await client.hget(keys.shipped, "h")) == (2, 10)
    assert await evidence.ship("h", [(6, b"six")], 99, (2, 2)) == 6
    assert await stream(client, keys) == [b"one", b"two", b"six"]


async def test_hosts_are_told_apart(evidence: RedisEvidence, client: Any, keys: Keys) -> None:
    """Each has a journal and sequences of its own."""
    await evidence.ship("a", [(1, b"a")], 1)
    assert await evidence.ship("b", [(1, b"b")], 2) == 1
    assert await stream(client, keys) == [b"a", b"b"]


async def test_a_word_without_entries_moves_the_time_alone(
    evidence: RedisEvidence, client: Any, keys: Keys
) -> None:
    """And never back."""
    assert await evidence.ship("h", (), 0) == 0
    await evidence.ship("h", FIRST, 10)
    assert await evidence.ship("h", (), 99) == 2
    await evidence.ship("h", (), 50)
    assert read_shipped(await client.hget(keys.shipped, "h")) == (2, 99)


@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
async def test_a_batch_whose_reply_was_lost_is_not_written_twice(
    cut: str, valkey_url: str, namespace: str, client: Any, keys: Keys
) -> None:
    """Whether the transaction was made or not, the next try leaves it made once."""
    async with Line(valkey_url.removeprefix("unix://")) as line:
        store = RedisEvidence(line.url, namespace=namespace, timeout_s=2.0, name="test")
        await store.ship("h", FIRST[:1], 1)
        cuts: list[bytes] = []

        def first_exec(asked: bytes) -> bool:
            if b"EXEC" not in asked or cuts:
                return False
            cuts.append(asked)
            return True

        setattr(line, cut, first_exec)
        try:
            await store.ship("h", FIRST, 2)
        except StoreUnavailable:
            await store.ship("h", FIRST, 2)
        await store.close()
    assert len(cuts) == 1
    assert await stream(client, keys) == [b"one", b"two"]


async def test_many_hosts_at_once_lose_nothing(
    evidence: RedisEvidence, client: Any, keys: Keys
) -> None:
    """They share one hash; who is disturbed tries again."""

    async def ship(host: str) -> None:
        for number in range(1, 6):
            await evidence.ship(host, [(number, f"{host}{number}".encode())], number)

    await asyncio.gather(*(ship(host) for host in "abcd"))
    found = await stream(client, keys)
    for host in "abcd":
        own = [entry for entry in found if entry.startswith(host.encode())]
        assert own == [f"{host}{number}".encode() for number in range(1, 6)]


async def test_a_stream_that_nobody_folds_is_bounded(
    evidence: RedisEvidence, client: Any, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More stays in the journal, and the time of what is there does not move past it."""
    monkeypatch.setattr("gateway.adapters.redis.evidence.MAX_UNFOLDED", 2)
    await evidence.ship("h", FIRST, 1)
    with pytest.raises(StoreUnavailable, match="nobody folds"):
        await evidence.ship("h", [(3, b"three")], 2)
    assert read_shipped(await client.hget(keys.shipped, "h")) == (2, 1)
    await client.xtrim(keys.evidence, maxlen=0)
    assert await evidence.ship("h", [(3, b"three")], 2) == 3


@pytest.mark.parametrize("key", ["evidence", "shipped"])
async def test_a_key_of_another_type_is_unavailable(
    key: str, evidence: RedisEvidence, client: Any, keys: Keys
) -> None:
    """Nothing is written beside it."""
    await client.set(getattr(keys, key), "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await evidence.ship("h", FIRST, 1)
    assert await client.exists(keys.evidence, keys.shipped) == 1


async def test_a_word_that_cannot_be_read_stops_shipping(
    evidence: RedisEvidence, client: Any, keys: Keys
) -> None:
    """Nobody guesses what is there already."""
    await client.hset(keys.shipped, "h", "nonsense")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await evidence.ship("h", FIRST, 1)


async def test_a_server_that_is_away_is_unavailable(tmp_path: Any, namespace: str) -> None:
    """In bounded time, without its address."""
    store = RedisEvidence(
        f"unix://{tmp_path}/none", namespace=namespace, timeout_s=0.5, name="test"
    )
    with pytest.raises(StoreUnavailable) as caught:
        await store.ship("h", FIRST, 1)
    assert str(tmp_path) not in str(caught.value)
    await store.close()
