"""RedisFolds: states of units, tallies and the place in the stream, in Redis 7 or newer, or Valkey.

Each batch carries a mark of its own, written with it. A batch is written only under WATCH of the
mark that its writer had read before everything else, so whoever acts on what another one has
changed since loses, also when both believe that they lead.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError, WatchError
from redis.exceptions import TimeoutError as NoReply

from gateway.adapters.redis.borders import bordered
from gateway.adapters.redis.connections import Connections
from gateway.adapters.redis.replies import entries_of
from gateway.adapters.redis_keys import (
    ENTRY_FIELD,
    MAX_LATE,
    MAX_QUARANTINED,
    Keys,
    keys_of,
    read_shipped,
)
from gateway.core.errors import StoreUnavailable
from gateway.core.folding import RESULTS, StudyChange
from gateway.core.tallies import Cell, Evidence, decode_cell, decode_shadow, encode_cell
from gateway.evidence_ports import FoldBatch, Stored, Waiting

TIMEOUTS: Final = 5
"""A batch may take so many timeouts of one reply to read or to write."""
SCANNED: Final = 1_000
"""Units read at a time."""
CURSOR: Final = b"cursor"
MARK: Final = b"mark"
THROUGH: Final = b"through_ms"
START: Final = b"0-0"
_SHADOW: Final = b"s:"


class RedisFolds:
    """The `FoldStore` port on redis-py."""

    __slots__ = ("_connections", "_cursor", "_keys", "_timeout_s")

    def __init__(self, url: str, *, namespace: str, timeout_s: float, name: str) -> None:
        """Prepare the connections, as `RedisStore` does; nothing is connected yet.

        Raises:
            InvalidRequest: a URL or namespace that cannot be used.
        """
        self._keys: Keys = keys_of(namespace)
        self._timeout_s = timeout_s
        self._connections = Connections(url, self._keys.fold, timeout_s=timeout_s, name=name)
        self._cursor = START
        """Where it was last; only a guess, which saves a round trip when it is right."""

    async def waiting(self, limit: int) -> Waiting:
        """How far folding is, and at most so many entries that wait."""
        async with self._speaking() as client:
            while True:
                asked = self._cursor
                async with client.pipeline(transaction=True) as pipe:
                    pipe.hmget(self._keys.fold, [MARK, CURSOR, THROUGH])
                    pipe.hgetall(self._keys.shipped)
                    pipe.xrange(self._keys.evidence, min=b"(" + asked, count=limit)
                    (mark, cursor, through), shipped, reply = await pipe.execute()
                self._cursor = cursor or START
                if self._cursor == asked:
                    break
        entries = [
            (entry_id, fields.get(ENTRY_FIELD.encode(), b""))
            for entry_id, fields in entries_of(reply)
        ]
        return Waiting(
            mark or b"", int(through or 0), entries, len(entries) < limit, _through_of(shipped)
        )

    async def stored(self, wanted: Mapping[str, Sequence[bytes]]) -> dict[str, Stored]:
        """By experiment id, the states of these units and the tallies."""
        if not wanted:
            return {}
        async with self._speaking() as client, client.pipeline(transaction=False) as pipe:
            for study_id, units in wanted.items():
                keys = self._keys.study(study_id)
                pipe.hmget(keys.units, units or [b""])
                pipe.hgetall(keys.tally)
                # Keys of another type must be seen before EXEC, which undoes nothing.
                pipe.zcard(keys.due)
                pipe.xlen(keys.late)
            pipe.xlen(self._keys.quarantine)
            pipe.hlen(self._keys.folding)
            replies = await pipe.execute()
        return {
            study_id: Stored(
                dict(zip(units, replies[4 * place], strict=False)),
                _evidence(replies[4 * place + 1], 0),
            )
            for place, (study_id, units) in enumerate(wanted.items())
        }

    async def due(self, ids: Sequence[str], through_ms: int, limit: int) -> dict[str, list[bytes]]:
        """By experiment id, at most so many units that are due, the earliest first."""
        if not ids:
            return {}
        async with self._speaking() as client, client.pipeline(transaction=False) as pipe:
            for study_id in ids:
                due = self._keys.study(study_id).due
                pipe.zrange(due, 0, through_ms, byscore=True, offset=0, num=limit)
            replies = await pipe.execute()
        return {study_id: units for study_id, units in zip(ids, replies, strict=True) if units}

    async def write(self, batch: FoldBatch) -> bool:
        """Write a batch at once; False if another one was written since its mark was read."""
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            await pipe.watch(self._keys.fold)
            if (await pipe.hget(self._keys.fold, MARK) or b"") != batch.expected:
                return False
            pipe.multi()  # type: ignore[no-untyped-call] # redis-py left it untyped
            self._queue(pipe, batch)
            try:
                await pipe.execute()
            except WatchError as error:
                # redis-py says WatchError, too, when the connection broke after EXEC was sent.
                if isinstance(error.__context__, LostConnection | NoReply | OSError):
                    raise StoreUnavailable(_NOT_KNOWN) from error
                return False
        return True

    async def evidence(self, ids: Sequence[str]) -> dict[str, Evidence]:
        """The tallies of experiments, all of one moment."""
        async with self._speaking() as client, client.pipeline(transaction=True) as pipe:
            pipe.hget(self._keys.fold, THROUGH)
            for study_id in ids:
                pipe.hgetall(self._keys.study(study_id).tally)
            through, *tallies = await pipe.execute()
        through_ms = int(through or 0)
        return {
            study_id: _evidence(tally, through_ms)
            for study_id, tally in zip(ids, tallies, strict=True)
        }

    async def units(self, experiment_id: str, limit: int) -> dict[bytes, bytes]:
        """The states of an experiment's units and cohorts, at most about so many, in no order."""
        key, cursor = self._keys.study(experiment_id).units, 0
        found: dict[bytes, bytes] = {}
        while True:
            async with self._speaking() as client:
                reply: Any = await client.hscan(key, cursor, count=SCANNED)
            cursor, page = reply
            found.update(page)
            if cursor == 0 or len(found) >= limit:
                return found

    async def results(self) -> dict[str, dict[str, int]]:
        """What became of events, by experiment id; that of none under the empty string."""
        async with self._speaking() as client:
            fields: dict[Any, Any] = await client.hgetall(self._keys.folding)
        results: dict[str, dict[str, int]] = {}
        for field, number in sorted(fields.items()):
            study_id, _, name = field.decode().rpartition(":")
            results.setdefault(study_id, {})[name] = int(number)
        return results

    async def close(self) -> None:
        """Let go of the connections."""
        with contextlib.suppress(RedisError, OSError):
            await self._connections.close()

    def _queue(self, pipe: Pipeline, batch: FoldBatch) -> None:
        keys, place = self._keys, {MARK: batch.mark}
        if batch.cursor is not None:
            place[CURSOR] = batch.cursor
            pipe.xtrim(keys.evidence, minid=batch.cursor.decode(), approximate=True)
        if batch.through_ms is not None:
            place[THROUGH] = b"%d" % batch.through_ms
        for change in batch.changes:
            self._queue_change(pipe, change)
        for cause, entry in batch.quarantined:
            fields: dict[Any, Any] = {"cause": cause, ENTRY_FIELD: entry}
            pipe.xadd(keys.quarantine, fields, maxlen=MAX_QUARANTINED, approximate=True)
        for name, number in batch.results.items():
            pipe.hincrby(keys.folding, f":{name}", number)
        for study_id in batch.forgotten:
            study = keys.study(study_id)
            pipe.unlink(study.units, study.due, study.tally, study.late, study.history)
            pipe.hdel(keys.folding, *(f"{study_id}:{name}" for name in RESULTS))
        mapping: dict[Any, Any] = dict(place)
        pipe.hset(keys.fold, mapping=mapping)

    def _queue_change(self, pipe: Pipeline, change: StudyChange) -> None:
        keys = self._keys.study(change.id)
        written: dict[Any, Any] = dict(change.units)
        if written:
            pipe.hset(keys.units, mapping=written)
        due: dict[Any, Any] = dict(change.due)
        if due:
            pipe.zadd(keys.due, due)
        if change.undue:
            pipe.zrem(keys.due, *change.undue)
        self._queue_tally(pipe, keys.tally, change)
        for entry in change.late:
            late: dict[Any, Any] = {ENTRY_FIELD: entry}
            pipe.xadd(keys.late, late, maxlen=MAX_LATE, approximate=True)
        for name, number in change.results.items():
            pipe.hincrby(self._keys.folding, f"{change.id}:{name}", number)

    def _queue_tally(self, pipe: Pipeline, key: str, change: StudyChange) -> None:
        tally: dict[Any, Any] = {_field(*cell.key): encode_cell(cell) for cell in change.cells}
        for shadow in change.shadows:
            tally[b"s:%d:%d" % (shadow.phase, shadow.variant)] = encode_cell(shadow)
        if tally:
            pipe.hset(key, mapping=tally)
        if change.gone:
            gone: list[Any] = [_field(*cell) for cell in change.gone]
            pipe.hdel(key, *gone)

    @contextlib.asynccontextmanager
    async def _speaking(self) -> AsyncIterator[Redis]:
        async with bordered(self._connections) as client:
            async with asyncio.timeout(TIMEOUTS * self._timeout_s):
                yield client


_NOT_KNOWN: Final = (
    "The store stopped answering while it wrote, so whether the batch was written is not known."
)


def _field(phase: int, variant: int, segment: int) -> bytes:
    return b"%d:%d:%d" % (phase, variant, segment)


def _evidence(fields: Mapping[bytes, bytes], through_ms: int) -> Evidence:
    """The tallies of one experiment.

    Raises:
        StoreUnavailable: they cannot be read, so nothing may be built on them.
    """
    try:
        cells = [decode_cell(data) for key, data in fields.items() if key[:2] != _SHADOW]
        shadows = [decode_shadow(data) for key, data in fields.items() if key[:2] == _SHADOW]
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = "The store holds tallies that cannot be read."
        raise StoreUnavailable(message) from None
    cells.sort(key=_key_of)
    shadows.sort(key=lambda shadow: (shadow.phase, shadow.variant))
    return Evidence(tuple(cells), tuple(shadows), through_ms)


def _key_of(cell: Cell) -> tuple[int, int, int]:
    return cell.key


def _through_of(shipped: Mapping[bytes, bytes]) -> dict[str, int]:
    """Host to the moment before which all of it is in the stream; 0 for what cannot be read."""
    found: dict[str, int] = {}
    for host, value in shipped.items():
        name = host.decode(errors="replace")
        found[name] = 0
        with contextlib.suppress(ValueError):
            found[name] = read_shipped(value)[1]
    return found
