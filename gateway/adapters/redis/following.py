"""RedisFollowing: how far following another registry is, and requests to look at it."""

import asyncio
from contextlib import suppress
from typing import Final

from redis.exceptions import RedisError, WatchError

from gateway.adapters.redis.borders import bordered
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.replies import bytes_of
from gateway.adapters.redis_keys import Keys, keys_of

TIMEOUTS: Final = 3
"""Of one reply, for all of a call."""


class RedisFollowing:
    """The `FollowMemory` port on redis-py."""

    __slots__ = ("_connections", "_keys", "_timeout_s")

    def __init__(self, url: str, *, namespace: str, timeout_s: float, name: str) -> None:
        """Prepare the connections, as `RedisStore` does; nothing is connected yet.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._connections = Connections(url, self._keys.following, timeout_s=timeout_s, name=name)

    async def read(self) -> bytes | None:
        """The document as it was written last."""
        async with bordered(self._connections) as client, self._in_time():
            return bytes_of(await client.get(self._keys.following))

    async def swap(self, before: bytes | None, after: bytes) -> bool:
        """Replace the document; False if another stands there by now."""
        async with (
            bordered(self._connections) as client,
            self._in_time(),
            client.pipeline(transaction=True) as pipe,
        ):
            await pipe.watch(self._keys.following)
            stands = bytes_of(await pipe.get(self._keys.following))
            if stands == after:
                # Written before, by a try whose reply was lost.
                return True
            if stands != before:
                return False
            pipe.multi()  # type: ignore[no-untyped-call] # redis-py left it untyped
            pipe.set(self._keys.following, after)
            try:
                await pipe.execute()
            except WatchError:
                return False
        return True

    async def ask(self) -> int:
        """Ask the leader, on whichever host, to look soon; how often that was asked."""
        async with bordered(self._connections) as client, self._in_time():
            return int(await client.incrby(self._keys.following_asked))

    async def asked(self) -> int:
        """How often looking was asked for."""
        async with bordered(self._connections) as client, self._in_time():
            return int(await client.get(self._keys.following_asked) or 0)

    async def close(self) -> None:
        """Let go of the connections."""
        with suppress(RedisError, OSError):
            await self._connections.close()

    def _in_time(self) -> asyncio.Timeout:
        return asyncio.timeout(TIMEOUTS * self._timeout_s)
