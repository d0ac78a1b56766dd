"""RedisAnnouncements: who listens, how far each is, and what nobody would take."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.adapters.redis.borders import bordered
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.replies import Entries, entries_of
from gateway.adapters.redis_keys import MAX_ALERTS, MAX_DEAD_LETTERS, Keys, keys_of
from gateway.core.announcements import Aliases, aliases_of, models_in
from gateway.core.audit import AuditEntry, decode_entry
from gateway.core.errors import InvalidRequest
from gateway.core.webhooks import DeadLetter, Progress, Webhook
from gateway.governance_ports import AlarmEdge, Overview

TIMEOUTS: Final = 3
"""Of one reply, for a round trip."""
PAGE: Final = 100
MAX_PAGES: Final = 20
"""Looked through, backwards, for what a model's aliases named before."""
START: Final = "0-0"
EVENT: Final = b"event"
LETTER: Final = b"letter"
WEBHOOK: Final = "webhook:"

T = TypeVar("T")


class RedisAnnouncements:
    """The `AnnouncementStore` port on redis-py."""

    __slots__ = ("_connections", "_keys", "_timeout_s")

    def __init__(self, url: str, *, namespace: str, timeout_s: float, name: str) -> None:
        """Prepare the connections, as `RedisStore` does; nothing is connected yet.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._connections = Connections(url, self._keys.audit, timeout_s=timeout_s, name=name)

    async def overview(self) -> Overview:
        """Who listens, how far each is, and how far there is to go."""
        keys = self._keys
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            pipe.xrevrange(keys.audit, count=1)
            pipe.xrevrange(keys.alerts, count=1)
            pipe.hgetall(keys.webhooks)
            pipe.hgetall(keys.listeners)
            newest, alert, webhooks, progress = await pipe.execute()
        told = {name.decode(): _read(value, Progress) for name, value in progress.items()}
        return Overview(
            newest=_id_of(entries_of(newest)),
            newest_alert=_id_of(entries_of(alert)),
            webhooks={name.decode(): _read(value, Webhook) for name, value in webhooks.items()},
            progress={name: one for name, one in told.items() if one is not None},
        )

    async def entries(self, after: str, limit: int) -> list[tuple[str, AuditEntry | None]]:
        """Ids and entries of the audit log behind an id, oldest first; None for what is none."""
        async with self._speaking() as client:
            reply = await client.xrange(self._keys.audit, min=f"({after}", count=limit)
        return [(entry_id.decode(), _entry(fields)) for entry_id, fields in entries_of(reply)]

    async def aliases_before(self, before: str, target: str, digest: str) -> Aliases | None:
        """What the aliases of a model named when its document had this digest, if it is found."""
        upto = f"({before}"
        for _ in range(MAX_PAGES):
            async with self._speaking() as client:
                reply = await client.xrevrange(self._keys.audit, max=upto, count=PAGE)
            page = entries_of(reply)
            for _, fields in page:
                entry = _entry(fields)
                for name, _, after, document in () if entry is None else models_in(entry):
                    if (name, after) == (target, digest):
                        return aliases_of(document)
            if len(page) < PAGE:
                break
            upto = f"({page[-1][0].decode()}"
        return None

    async def alerts(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Ids and encoded events behind an id, oldest first."""
        async with self._speaking() as client:
            reply = await client.xrange(self._keys.alerts, min=f"({after}", count=limit)
        return [(one.decode(), fields.get(EVENT, b"")) for one, fields in entries_of(reply)]

    async def save_progress(self, listener: str, progress: Progress) -> None:
        """Write down how far a listener is."""
        async with self._speaking() as client:
            await client.hset(self._keys.listeners, listener, _written(progress))

    async def bury(self, webhook: str, letter: DeadLetter, progress: Progress) -> None:
        """Keep an event that was given up, and how far its listener is by that, at once."""
        fields: dict[Any, Any] = {LETTER: _written(letter)}
        key = self._keys.dead_letters(webhook)
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            pipe.xadd(key, fields, maxlen=MAX_DEAD_LETTERS, approximate=True)
            pipe.hset(self._keys.listeners, f"{WEBHOOK}{webhook}", _written(progress))
            await pipe.execute()

    async def put_webhook(self, name: str, webhook: Webhook, progress: Progress | None) -> None:
        """Write a subscription and, unless that stays as it is, how far it is, at once."""
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.webhooks, name, _written(webhook))
            if progress is not None:
                pipe.hset(self._keys.listeners, f"{WEBHOOK}{name}", _written(progress))
            await pipe.execute()

    async def drop_webhook(self, name: str) -> None:
        """Forget a subscription, its secrets, its progress and its dead letters."""
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            pipe.hdel(self._keys.webhooks, name)
            pipe.hdel(self._keys.listeners, f"{WEBHOOK}{name}")
            pipe.unlink(self._keys.dead_letters(name))
            await pipe.execute()

    async def dead_letters(self, webhook: str, limit: int) -> list[tuple[str, DeadLetter]]:
        """Ids and letters, oldest first; what cannot be read is left out."""
        async with self._speaking() as client:
            reply = await client.xrange(self._keys.dead_letters(webhook), count=limit)
        found = [
            (entry_id.decode(), _read(fields.get(LETTER, b""), DeadLetter))
            for entry_id, fields in entries_of(reply)
        ]
        return [(entry_id, letter) for entry_id, letter in found if letter is not None]

    async def count_dead_letters(self, webhooks: Sequence[str]) -> Mapping[str, int]:
        """How many there are of each."""
        if not webhooks:
            return {}
        async with self._speaking() as client, client.pipeline(transaction=False) as pipe:
            for name in webhooks:
                pipe.xlen(self._keys.dead_letters(name))
            counts: list[int] = await pipe.execute()
        return dict(zip(webhooks, counts, strict=True))

    async def drop_dead_letter(self, webhook: str, letter_id: str) -> None:
        """Forget one that was delivered after all."""
        async with self._speaking() as client:
            await client.xdel(self._keys.dead_letters(webhook), letter_id)

    async def alarms(self) -> Mapping[str, float]:
        """Alarms that were told as raised and not as cleared, and since when."""
        async with self._speaking() as client:
            found: dict[Any, Any] = await client.hgetall(self._keys.alarms)
        return {key.decode(errors="replace"): _number(value) for key, value in found.items()}

    async def tell_alarms(self, edges: Sequence[AlarmEdge]) -> None:
        """Write events of alarms behind the others, and what is known of them now, at once."""
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            for edge in edges:
                fields: dict[Any, Any] = {EVENT: edge.event}
                pipe.xadd(self._keys.alerts, fields, maxlen=MAX_ALERTS, approximate=True)
                if edge.since is None:
                    pipe.hdel(self._keys.alarms, edge.key)
                else:
                    pipe.hset(self._keys.alarms, edge.key, repr(edge.since))
            await pipe.execute()

    async def close(self) -> None:
        """Let go of the connections."""
        with suppress(RedisError, OSError):
            await self._connections.close()

    @contextlib.asynccontextmanager
    async def _speaking(self) -> AsyncIterator[Redis]:
        """A client, in bounded time; what the library raises ends here as StoreUnavailable."""
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                yield client


def _id_of(entries: Entries) -> str:
    return entries[0][0].decode() if entries else START


def _entry(fields: Mapping[bytes, bytes]) -> AuditEntry | None:
    try:
        return decode_entry(fields.get(b"entry", b""))
    except InvalidRequest:
        return None


def _written(document: Progress | Webhook | DeadLetter) -> bytes:
    return msgspec.json.encode(document)


def _read(value: bytes, kind: type[T]) -> T | None:
    """What is stored; None where it cannot be read."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _number(value: bytes) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0
