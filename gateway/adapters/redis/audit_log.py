"""RedisAuditLog: the audit stream as it lies there, what it is built upon, trims and restores."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from gateway.adapters.redis.borders import bordered
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.entries import order_of_id, page_after, page_before
from gateway.adapters.redis.replies import Entries, bytes_of, entries_of
from gateway.adapters.redis.transactions import (
    Written,
    execute,
    is_logged,
    queue_commit,
    until_written,
    write,
)
from gateway.adapters.redis_keys import Keys, audit_id, keys_of, manifest_field
from gateway.core.audit import Commit
from gateway.core.chain import Line, LogEnd
from gateway.core.checkpoints import Signed
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.snapshot import MAX_SNAPSHOT_BYTES, decode, encode
from gateway.governance_ports import KeptBase, Reseeding

TIMEOUTS: Final = 2
"""Of one reply, for a round trip."""


class RedisAuditLog:
    """The `AuditLog` port on redis-py."""

    __slots__ = ("_connections", "_keys", "_seal_key", "_timeout_s")

    def __init__(
        self, url: str, *, namespace: str, timeout_s: float, name: str, seal_key: str | None = None
    ) -> None:
        """Prepare the connections, as `RedisStore` does; nothing is connected yet.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._seal_key = seal_key
        self._connections = Connections(url, self._keys.audit, timeout_s=timeout_s, name=name)

    async def lines(self, after: int, limit: int) -> list[Line]:
        """The first entries with a greater revision, oldest first."""
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                return _lines(await page_after(client, self._keys.audit, after, limit))

    async def lines_before(self, before: int | None, limit: int) -> list[Line]:
        """The last entries with a lower revision, or the last of all, newest first."""
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                return _lines(await page_before(client, self._keys.audit, before, limit))

    async def bases(self) -> Mapping[int, KeptBase]:
        """What the log is built upon, by revision.

        Raises:
            InvalidRequest: one cannot be read.
        """
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                kept: Any = await client.hgetall(self._keys.audit_bases)
        return {_field(field): _read_base(content) for field, content in kept.items()}

    async def trim(self, commit: Commit, base: KeptBase) -> None:
        """Commit, and drop all entries up to the base's revision and all earlier bases, at once.

        Raises:
            Conflict: the stored document is not the one the commit was made from, or the log is
                not the one that the base was made from.
        """
        kept = await self.bases()
        trimming = _Trimming(
            self._keys, base, tuple(revision for revision in kept if revision < _last(base))
        )
        async with bordered(self._connections) as client:
            written = Written(self._keys, commit, None, self._timeout_s, self._seal_key, trimming)
            await write(client, written)

    async def found(self) -> tuple[bytes | None, LogEnd | None]:
        """The Snapshot document, whatever it is, and the newest entry of the log."""
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                async with client.pipeline(transaction=True) as pipe:
                    pipe.exists(self._keys.snapshot)
                    pipe.getrange(self._keys.snapshot, 0, MAX_SNAPSHOT_BYTES)
                    pipe.xrevrange(self._keys.audit, count=1)
                    exists, document, newest = await pipe.execute()
        return (bytes(document) if exists else None), _log_end(newest)

    async def reseed(self, seed: Reseeding) -> None:
        """Write a Snapshot over what was found, under a new epoch, with all that it needs, at once.

        Raises:
            Conflict: the store holds something else by now.
        """
        async with bordered(self._connections) as client:
            await until_written(lambda lost: self._try_to_seed(client, seed, lost=lost))

    async def close(self) -> None:
        """Let go of the connections."""
        with suppress(RedisError, OSError):
            await self._connections.close()

    async def _try_to_seed(self, client: Redis, seed: Reseeding, *, lost: bool) -> bool:
        keys = self._keys
        async with client.pipeline(transaction=True) as pipe:
            async with asyncio.timeout(2 * TIMEOUTS * self._timeout_s):
                await pipe.watch(keys.snapshot, keys.audit, keys.manifests, keys.signing_keys)
                if lost and await is_logged(pipe, keys, seed.commit):
                    return True
                stored = bytes_of(await pipe.getrange(keys.snapshot, 0, MAX_SNAPSHOT_BYTES))
                newest = _log_end(await pipe.xrevrange(keys.audit, count=1))
                # Keys of another type must be seen before EXEC, which undoes nothing.
                await pipe.hlen(keys.manifests)
                await pipe.hlen(keys.audit_bases)
            if (stored or None) != (seed.found or None) or newest != seed.log_ends:
                message = "The store moved while it was looked at; look again."
                raise Conflict(message)
            pipe.multi()  # type: ignore[no-untyped-call] # redis-py left it untyped
            queue_commit(pipe, keys, seed.commit, self._seal_key)
            pipe.hset(keys.audit_bases, str(_last(seed.base)), _encode_base(seed.base))
            for manifest in seed.manifests:
                field = manifest_field(manifest.model, manifest.number)
                document = msgspec.json.encode(manifest, order="sorted")
                pipe.hsetnx(keys.manifests, field, document)
            if seed.keys is not None:
                pipe.set(keys.signing_keys, msgspec.json.encode(seed.keys))
            return await execute(pipe, 2 * TIMEOUTS * self._timeout_s)


class _Trimming(Struct, frozen=True):
    """Drops what a base stands for, if the log behind it follows from it."""

    keys: Keys
    base: KeptBase
    earlier: tuple[int, ...]

    def watched(self) -> list[str]:
        """Keys that must not move."""
        return [self.keys.audit_bases]

    async def check(self, pipe: Pipeline) -> None:
        """The last entry that goes is the one that the checkpoint ends with."""
        snapshot = self.base.snapshot
        own = audit_id(snapshot.epoch, snapshot.revision)
        last = entries_of(await pipe.xrange(self.keys.audit, min=own, max=own))
        await pipe.hlen(self.keys.audit_bases)
        if not last or last[0][1].get(b"hash") != snapshot.audit_head.encode():
            message = "The audit log is not the one that the checkpoint was made of."
            raise Conflict(message)

    def queue(self, pipe: Pipeline) -> None:
        """Trim, and keep the documents."""
        snapshot = self.base.snapshot
        first_kept = audit_id(snapshot.epoch, snapshot.revision + 1)
        pipe.xtrim(self.keys.audit, minid=first_kept, approximate=False)
        pipe.hset(self.keys.audit_bases, str(_last(self.base)), _encode_base(self.base))
        if self.earlier:
            pipe.hdel(self.keys.audit_bases, *map(str, self.earlier))


class _Base(Struct, frozen=True, forbid_unknown_fields=True):
    """How a base is kept."""

    snapshot: Raw
    signed: Signed | None = None


def _last(base: KeptBase) -> int:
    return base.snapshot.revision


def _encode_base(base: KeptBase) -> bytes:
    return msgspec.json.encode(_Base(Raw(encode(base.snapshot)), base.signed))


def _read_base(content: bytes) -> KeptBase:
    try:
        kept = msgspec.json.decode(content, type=_Base)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = "Documents that the audit log is built upon cannot be read."
        raise InvalidRequest(message) from error
    return KeptBase(decode(bytes(kept.snapshot)), kept.signed)


def _field(field: bytes) -> int:
    if not field.isdigit():
        message = "The hash of what the audit log is built upon holds a field that is no revision."
        raise InvalidRequest(message)
    return int(field)


def _lines(entries: Entries) -> list[Line]:
    """Entries as they lie there; one that would break a line of an export is told as null."""
    lines = []
    for stream_id, fields in entries:
        content = fields.get(b"entry", b"null")
        stated = fields.get(b"hash", b"").decode(errors="replace")
        lines.append(
            Line(stream_id.decode(), stated, Raw(content if _is_json(content) else b"null"))
        )
    return lines


def _is_json(content: bytes) -> bool:
    try:
        msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return b"\n" not in content and content == content.strip()


def _log_end(reply: Any) -> LogEnd | None:  # noqa: ANN401 - a reply
    newest = entries_of(reply)
    if not newest:
        return None
    stated = newest[0][1].get(b"hash", b"").decode(errors="replace")
    return LogEnd(order_of_id(newest[0][0])[1], stated)
