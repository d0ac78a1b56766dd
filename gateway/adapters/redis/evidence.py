"""RedisEvidence: the stream of evidence in Redis 7 or newer, or Valkey."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError, WatchError

from gateway.adapters.redis.borders import bordered
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.replies import bytes_of
from gateway.adapters.redis_keys import (
    ENTRY_FIELD,
    Keys,
    keys_of,
    read_shipped,
    shipped_value,
)
from gateway.core.errors import StoreUnavailable
from gateway.evidence_ports import ANY_SEQUENCE

MAX_UNFOLDED: Final = 50_000
"""Entries of the stream; while nobody folds them, more stay in the journals of their hosts."""
MAX_ABORTED: Final = 16
"""Tries while other hosts keep writing the hash that all of them share."""
SHIP_TIMEOUTS: Final = 5
"""A batch may take so many timeouts of one reply."""


class RedisEvidence:
    """The `EvidenceStore` port on redis-py."""

    __slots__ = ("_connections", "_keys", "_timeout_s")

    def __init__(self, url: str, *, namespace: str, timeout_s: float, name: str) -> None:
        """Prepare the connections, as `RedisStore` does; nothing is connected yet.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._connections = Connections(url, self._keys.shipped, timeout_s=timeout_s, name=name)

    async def ship(
        self,
        host: str,
        entries: Sequence[tuple[int, bytes]],
        through_ms: int,
        within: tuple[int, int] = ANY_SEQUENCE,
    ) -> int:
        """Add the entries of a host's journal to the stream, each once however often it is tried.

        A try whose reply was lost may have been made: the next one finds its sequence and passes
        over what it wrote.
        """
        async with bordered(self._connections) as client:
            async with asyncio.timeout(SHIP_TIMEOUTS * self._timeout_s):
                for _ in range(MAX_ABORTED):
                    with suppress(WatchError):
                        return await self._ship(client, host, entries, through_ms, within)
        message = "The store is too busy: others kept changing what this write had read."
        raise StoreUnavailable(message)

    async def close(self) -> None:
        """Let go of the connections."""
        with suppress(RedisError, OSError):
            await self._connections.close()

    async def _ship(
        self,
        client: Redis,
        host: str,
        entries: Sequence[tuple[int, bytes]],
        through_ms: int,
        within: tuple[int, int],
    ) -> int:
        keys = self._keys
        async with client.pipeline(transaction=True) as pipe:
            await pipe.watch(keys.shipped)
            sequence, through = _shipped(bytes_of(await pipe.hget(keys.shipped, host)))
            if not within[0] <= sequence <= within[1]:
                return sequence
            # A stream key of another type must be seen before EXEC, which undoes nothing.
            length: int = await pipe.xlen(keys.evidence)
            if length >= MAX_UNFOLDED and entries:
                raise StoreUnavailable(_UNFOLDED)
            pipe.multi()  # type: ignore[no-untyped-call] # redis-py left it untyped
            for number, entry in entries:
                if number > sequence:
                    pipe.xadd(keys.evidence, {ENTRY_FIELD: entry})
            sequence = max([sequence, *(number for number, _ in entries)])
            value = shipped_value(sequence, max(through, through_ms))
            pipe.hset(keys.shipped, host, value)
            await pipe.execute()
        return sequence


_UNFOLDED: Final = "The stream of evidence is full, because nobody folds it."


def _shipped(value: bytes | None) -> tuple[int, int]:
    if value is None:
        return 0, 0
    try:
        return read_shipped(value)
    except ValueError:
        message = "What the store says of shipped journals cannot be read."
        raise StoreUnavailable(message) from None
