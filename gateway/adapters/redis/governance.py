"""RedisGovernance: reports of inspections, one hash for all versions."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.adapters.redis.borders import bordered
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.replies import bytes_of
from gateway.adapters.redis_keys import Keys, keys_of, manifest_field
from gateway.core.errors import StoreUnavailable
from gateway.core.inspections import Inspection

TIMEOUTS: Final = 2
"""Of one reply, for a round trip."""


class RedisGovernance:
    """The `GovernanceStore` port on redis-py."""

    __slots__ = ("_connections", "_keys", "_timeout_s")

    def __init__(self, url: str, *, namespace: str, timeout_s: float, name: str) -> None:
        """Prepare the connections, as `RedisStore` does; nothing is connected yet.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._connections = Connections(url, self._keys.inspections, timeout_s=timeout_s, name=name)

    async def put_inspection(self, inspection: Inspection) -> None:
        """Keep a version's report in the place of an earlier one."""
        field = manifest_field(inspection.model, inspection.number)
        document = msgspec.json.encode(inspection)
        async with self._client() as client:
            await client.hset(self._keys.inspections, field, document)

    async def inspection(self, model: str, number: int) -> Inspection | None:
        """The newest report of a version; one that cannot be read is told as unavailable."""
        async with self._client() as client:
            field = manifest_field(model, number)
            document = bytes_of(await client.hget(self._keys.inspections, field))
        return None if document is None else _read(document)

    async def inspections(self, model: str) -> Mapping[int, Inspection]:
        """The newest reports of a model's versions."""
        start = manifest_field(model, 0)[:-1].encode()
        async with self._client() as client:
            # As they come, in bytes; redis-py types them for every option.
            fields: list[Any] = await client.hkeys(self._keys.inspections)
            fields = [field for field in fields if field.startswith(start)]
            found: list[Any] = await client.hmget(self._keys.inspections, fields) if fields else []
        reports = [_read(document) for document in found if document is not None]
        return {report.number: report for report in sorted(reports, key=lambda one: one.number)}

    async def drop_inspections(self, model: str, numbers: Sequence[int]) -> None:
        """Forget the reports of versions that are gone."""
        fields = [manifest_field(model, number) for number in numbers]
        if not fields:
            return
        async with self._client() as client:
            await client.hdel(self._keys.inspections, *fields)

    async def close(self) -> None:
        """Let go of the connections."""
        with suppress(RedisError, OSError):
            await self._connections.close()

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Redis]:
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                yield client


def _read(document: bytes) -> Inspection:
    try:
        return msgspec.json.decode(document, type=Inspection)
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = "A report of an inspection in the store cannot be read."
        raise StoreUnavailable(message) from None
