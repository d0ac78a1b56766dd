"""RedisHistory: points of experiments' histories, a bounded stream each."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from redis.exceptions import RedisError

from gateway.adapters.redis.borders import bordered
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.replies import entries_of
from gateway.adapters.redis_keys import MAX_POINTS, Keys, keys_of

TIMEOUTS: Final = 2
"""Of one reply, for a round trip."""
POINT: Final = b"p"


class RedisHistory:
    """The `HistoryStore` port on redis-py."""

    __slots__ = ("_connections", "_keys", "_timeout_s")

    def __init__(self, url: str, *, namespace: str, timeout_s: float, name: str) -> None:
        """Prepare the connections, as `RedisStore` does; nothing is connected yet.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._connections = Connections(url, self._keys.fold, timeout_s=timeout_s, name=name)

    async def keep_points(self, points: Mapping[str, bytes]) -> None:
        """Add a point to the history of each of these experiments, by id."""
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                async with client.pipeline(transaction=False) as pipe:
                    for one, point in points.items():
                        key = self._keys.study(one).history
                        pipe.xadd(key, {POINT: point}, maxlen=MAX_POINTS, approximate=True)
                    await pipe.execute()

    async def points_of(self, experiment_id: str, limit: int) -> list[bytes]:
        """The newest points of an experiment's history, oldest first."""
        key = self._keys.study(experiment_id).history
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                reply = await client.xrevrange(key, count=limit)
        return [fields[POINT] for _, fields in reversed(entries_of(reply)) if POINT in fields]

    async def close(self) -> None:
        """Let go of the connections."""
        with suppress(RedisError, OSError):
            await self._connections.close()
