"""The memory of following another registry, on a real server."""

from collections.abc import AsyncIterator

import pytest

from gateway.adapters.redis import RedisFollowing
from gateway.core.errors import StoreUnavailable


@pytest.fixture
async def memory(valkey_url: str, namespace: str) -> AsyncIterator[RedisFollowing]:
    """Empty."""
    store = RedisFollowing(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


async def test_a_document_is_replaced_only_where_it_stands(memory: RedisFollowing) -> None:
    """So of two who believe that they lead, one goes on."""
    assert await memory.read() is None
    assert await memory.swap(None, b"one")
    assert not await memory.swap(None, b"two")
    assert await memory.swap(b"one", b"two")
    assert await memory.read() == b"two"


async def test_what_was_written_by_a_lost_try_stands(memory: RedisFollowing) -> None:
    """Written again, it is no conflict."""
    await memory.swap(None, b"one")
    assert await memory.swap(None, b"one")


async def test_requests_to_look_are_counted(memory: RedisFollowing) -> None:
    """Whoever asks."""
    assert await memory.asked() == 0
    assert await memory.ask() == 1
    assert await memory.asked() == 1


async def test_a_store_that_is_away_is_told() -> None:
    """And nothing hangs."""
    away = RedisFollowing("redis://127.0.0.1:1", namespace="test", timeout_s=0.2, name="test")
    with pytest.raises(StoreUnavailable):
        await away.read()
    await away.close()
