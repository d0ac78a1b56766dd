"""RedisStore: the shared configuration in Redis 7 or newer, or Valkey.

Truth is the revision in the document; messages are hints. No method waits longer than a few
timeouts, and none retries: who calls paces itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError, WatchError

from gateway.adapters.redis.borders import bordered, cancelling_kept
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.entries import order_of_id, page_after
from gateway.adapters.redis.replies import bytes_of, entries_of
from gateway.adapters.redis.seals import SEAL_CHARACTERS, is_sealed
from gateway.adapters.redis.signing_keys import Swap, read_keys, swap
from gateway.adapters.redis.transactions import Written, write
from gateway.adapters.redis_keys import Keys, keys_of, manifest_field
from gateway.core.audit import AuditEntry, Commit, decode_entry
from gateway.core.errors import InvalidRequest, NotFound, Unsealed
from gateway.core.models import Manifest
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import MAX_SNAPSHOT_BYTES
from gateway.ports import PromotionRequest

AUDIT_PAGE: Final = 100
"""Entries read at once; a decision's may hold tens of kilobytes."""
MAX_REQUESTS: Final = 16
"""Promotion requests read at once."""
FLOOD: Final = 64
"""Hints taken at once; with more waiting, the channel is left alone for one poll."""
_UNSEALED: Final = (
    "The stored Snapshot has no valid seal, so nobody with the seal key wrote it; "
    "seal it by hand or restore it."
)


class RedisStore:
    """The `Store` port on redis-py."""

    __slots__ = ("_connections", "_hints", "_keys", "_muted", "_seal_key", "_timeout_s")

    def __init__(
        self, url: str, *, namespace: str, timeout_s: float, name: str, seal_key: str | None = None
    ) -> None:
        """Prepare the connections; nothing is connected yet.

        Args:
            url: where the store is; see `Connections`.
            namespace: what all keys start with.
            timeout_s: of connecting and of each reply.
            name: what `CLIENT LIST` shows.
            seal_key: with one, every commit is sealed and nothing unsealed is read.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._seal_key = seal_key
        self._connections = Connections(url, self._keys.snapshot, timeout_s=timeout_s, name=name)
        self._hints: PubSub | None = None
        self._muted = False

    async def read(self) -> bytes | None:
        """The Snapshot document, None when there is none.

        A longer value than a Snapshot may be is cut off one byte past the limit.

        Raises:
            Unsealed: a seal key is set, and the document's seal was not made with it.
        """
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            pipe.exists(self._keys.snapshot)
            pipe.getrange(self._keys.snapshot, 0, MAX_SNAPSHOT_BYTES)
            if self._seal_key is not None:
                pipe.getrange(self._keys.seal, 0, SEAL_CHARACTERS)
            found, document, *seals = await pipe.execute()
        if not found:
            return None
        if self._seal_key is not None and not is_sealed(self._seal_key, document, *seals):
            raise Unsealed(_UNSEALED, bytes(document))
        return bytes(document)

    async def commit(
        self, commit: Commit, result: tuple[str, Mapping[str, str]] | None = None
    ) -> None:
        """Write Snapshot, audit entry and event, and `result`, at once.

        Raises:
            Conflict: the stored document is not the one the commit was made from.
            NotFound: the promotion request was answered by someone else.
        """
        async with self._bordered() as client:
            written = Written(self._keys, commit, result, self._timeout_s, self._seal_key)
            await write(client, written)

    async def audit(self, after_revision: int = 0, limit: int | None = None) -> list[AuditEntry]:
        """Audit entries with a greater revision, oldest first; the first `limit`, or all.

        Raises:
            InvalidRequest: an entry that cannot be read.
        """
        entries: list[AuditEntry] = []
        after = after_revision
        while True:
            async with self._speaking() as client:
                page = await page_after(client, self._keys.audit, after, AUDIT_PAGE)
            entries += [_entry(fields) for _, fields in page]
            if len(page) < AUDIT_PAGE or (limit is not None and len(entries) >= limit):
                return entries[:limit]
            after = order_of_id(page[-1][0])[1]

    async def put_manifest(self, manifest: Manifest) -> Manifest:
        """Write a manifest once; the one that stands, which may be an earlier one."""
        field = manifest_field(manifest.model, manifest.number)
        document = msgspec.json.encode(manifest, order="sorted")
        async with self._speaking() as client:
            if await client.hsetnx(self._keys.manifests, field, document):
                return manifest
        return await self.manifest(manifest.model, manifest.number) or manifest

    async def manifest(self, model: str, number: int) -> Manifest | None:
        """The manifest of a version.

        Raises:
            InvalidRequest: one that cannot be read.
        """
        field = manifest_field(model, number)
        async with self._speaking() as client:
            document = await client.hget(self._keys.manifests, field)
        if document is None:
            return None
        try:
            return msgspec.json.decode(document, type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            message = f"The manifest of '{model}' version {number} cannot be read: {error}."
            raise InvalidRequest(message) from error

    async def signing_keys(self, fresh: SigningKeys) -> SigningKeys:
        """The shared signing keys; `fresh` becomes them if there are none.

        Raises:
            InvalidRequest: keys that cannot be read; they are never repeated.
        """
        async with self._speaking() as client:
            document = await client.get(self._keys.signing_keys)
            if document is None:
                await client.set(self._keys.signing_keys, msgspec.json.encode(fresh), nx=True)
                document = await client.get(self._keys.signing_keys)
        return read_keys(bytes_of(document))

    async def replace_signing_keys(self, before: SigningKeys, after: SigningKeys) -> None:
        """Put `after` in the place of `before`.

        Raises:
            Conflict: the shared keys are not `before`.
            InvalidRequest: keys that cannot be read; they are never repeated.
        """
        async with self._bordered() as client:
            await swap(client, Swap(self._keys.signing_keys, before, after, self._timeout_s))

    async def acknowledge(self, process: str, document: bytes, ttl_s: int) -> None:
        """Say what a process serves; forgotten after `ttl_s`."""
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            pipe.sadd(self._keys.processes, process)
            pipe.set(self._keys.process(process), document, ex=ttl_s)
            await pipe.execute()

    async def acknowledgements(self) -> Mapping[str, bytes]:
        """The living processes' documents by name."""
        async with self._speaking() as client:
            members: set[Any] = await client.smembers(self._keys.processes)
            names = sorted(name.decode() for name in members)
            if not names:
                return {}
            documents: list[Any] = await client.mget([self._keys.process(name) for name in names])
            found = dict(zip(names, documents, strict=True))
            gone = [name for name, document in found.items() if document is None]
            if gone:
                # A process that reports at this moment adds itself again with its next report.
                await client.srem(self._keys.processes, *gone)
        return {name: document for name, document in found.items() if document is not None}

    async def hint(self, timeout_s: float) -> None:
        """Return when someone committed, or after the timeout. Never raises; content is unread."""
        if self._muted:
            self._muted = False
            await asyncio.sleep(timeout_s)
            return
        try:
            with cancelling_kept():
                heard = await self._listen(timeout_s)
        except (RedisError, OSError, TimeoutError):
            await self._hang_up()
            await asyncio.sleep(timeout_s)
            return
        if heard >= FLOOD:
            self._muted = True
            await self._hang_up()

    async def lead(self, process: str, ttl_s: float) -> bool:
        """Take or keep the leader's lock; True while this process holds it."""
        own, ttl_ms = process.encode(), int(ttl_s * 1000)
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            await pipe.watch(self._keys.leader)
            holder = await pipe.get(self._keys.leader)
            if holder not in (None, own):
                return False
            pipe.multi()  # type: ignore[no-untyped-call] # redis-py left it untyped
            pipe.set(self._keys.leader, own, px=ttl_ms)
            try:
                await pipe.execute()
            except WatchError:
                return False
        return True

    async def promotion_requests(self) -> list[PromotionRequest]:
        """Requests on the promotions stream that have no result yet, oldest first."""
        async with self._speaking() as client:
            reply = await client.xrange(self._keys.promotions, count=MAX_REQUESTS)
        return [
            PromotionRequest(
                id=entry_id.decode(),
                fields={
                    name.decode(errors="replace"): value.decode(errors="replace")
                    for name, value in fields.items()
                },
            )
            for entry_id, fields in entries_of(reply)
        ]

    async def refuse_promotion(self, request_id: str, fields: Mapping[str, str]) -> None:
        """Write a refusal to the results stream and take the request off, at once.

        A request that was answered already is left as it is.
        """
        answer = (request_id, fields)
        with contextlib.suppress(NotFound):
            async with self._bordered() as client:
                await write(client, Written(self._keys, None, answer, self._timeout_s))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._hang_up()
        with contextlib.suppress(RedisError, OSError):
            await self._connections.close()

    async def _listen(self, timeout_s: float) -> int:
        """Wait for a message, then take those that wait behind it; how many there were."""
        if self._hints is None:
            async with asyncio.timeout(2 * self._timeout_s):
                client = await self._connections.get()
                self._hints = client.pubsub(ignore_subscribe_messages=True)
                await self._hints.subscribe(self._keys.events)
        heard = 0
        wait_s = timeout_s
        # The reply to SUBSCRIBE comes first and counts for nothing.
        async with asyncio.timeout(timeout_s + self._timeout_s):
            for _ in range(FLOOD + 1):
                message = await self._hints.parse_response(block=False, timeout=wait_s)
                if message is None:
                    break
                if message[0] == b"message":
                    heard += 1
                    wait_s = 0.0
        return heard

    async def _hang_up(self) -> None:
        hints, self._hints = self._hints, None
        if hints is not None:
            with contextlib.suppress(RedisError, OSError):
                # Closing alone would hand the subscribed connection back with bytes unread.
                connection: Any = hints.connection
                if connection is not None:
                    await connection.disconnect(nowait=True)
                await hints.aclose()  # type: ignore[no-untyped-call] # redis-py left it untyped

    @contextlib.asynccontextmanager
    async def _speaking(self) -> AsyncIterator[Redis]:
        """A client for reads and small writes, in bounded time."""
        async with self._bordered() as client, asyncio.timeout(2 * self._timeout_s):
            yield client

    @contextlib.asynccontextmanager
    async def _bordered(self) -> AsyncIterator[Redis]:
        """A client; what the library raises ends here as StoreUnavailable."""
        async with bordered(self._connections, self._hang_up) as client:
            yield client


def _entry(fields: Mapping[bytes, bytes]) -> AuditEntry:
    try:
        return decode_entry(fields[b"entry"])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError) as error:
        message = "The audit log holds an entry that cannot be read."
        raise InvalidRequest(message) from error
