"""The history of experiments on a real server."""

from collections.abc import AsyncIterator

import pytest

from gateway.adapters.redis import RedisHistory
from gateway.core.errors import StoreUnavailable


@pytest.fixture
async def history(valkey_url: str, namespace: str) -> AsyncIterator[RedisHistory]:
    """A history on the real server, empty."""
    store = RedisHistory(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


async def test_points_come_back_oldest_first(history: RedisHistory) -> None:
    """Each experiment has its own, and the newest are the ones that are read."""
    for number in range(5):
        points = {"one": b"%d" % number, "two": b"x"}
        await history.keep_points(points)
    assert await history.points_of("one", 3) == [b"2", b"3", b"4"]
    assert await history.points_of("two", 10) == [b"x"] * 5
    assert await history.points_of("three", 10) == []


async def test_a_store_that_is_away_is_told() -> None:
    """And nothing hangs."""
    away = RedisHistory("redis://127.0.0.1:1", namespace="test", timeout_s=0.2, name="test")
    with pytest.raises(StoreUnavailable):
        await away.keep_points({"one": b"p"})
    await away.close()
