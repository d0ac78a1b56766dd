"""The writes that must happen whole and once: WATCH, look, MULTI, EXEC; no Lua.

A transaction in Redis is not undone when one of its commands fails, so whatever could fail in EXEC
(a key of another type, a stream id that went back) is looked at under WATCH first.

When the reply to EXEC is lost, the write may or may not have happened. It is then simply tried
again: an audit entry has the revision as its stream id, so a try that finds the document moved and
its own entry in the log knows that it was applied, and none is applied twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoReply
from redis.exceptions import WatchError

from gateway.adapters.redis.replies import bytes_of, entries_of
from gateway.adapters.redis.seals import seal_of
from gateway.adapters.redis_keys import MAX_RESULTS, Keys, audit_id
from gateway.core.audit import Commit, encode_entry, entry_hash
from gateway.core.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from gateway.core.snapshot import MAX_SNAPSHOT_BYTES, Snapshot, decode, encode

MAX_ABORTED: Final = 16
"""Tries while others keep moving a watched key."""


class Beside(Protocol):
    """What a transaction does beside its commit."""

    def watched(self) -> list[str]:
        """Keys that must not move."""

    async def check(self, pipe: Pipeline) -> None:
        """Look, under WATCH, at whatever could speak against it.

        Raises:
            Conflict: something does.
        """

    def queue(self, pipe: Pipeline) -> None:
        """Add the commands, behind those of the commit."""


class Written(Struct, frozen=True):
    """What one transaction writes: a commit, an answer to a promotion request, or both.

    With a `seal_key` the commit's document is sealed.
    """

    keys: Keys
    commit: Commit | None
    answer: tuple[str, Mapping[str, str]] | None
    timeout_s: float
    seal_key: str | None = None
    beside: Beside | None = None


async def write(client: Redis, written: Written) -> None:
    """Write all of it at once, trying again while that is safe.

    Raises:
        Conflict: the stored document is not the one the commit was made from.
        NotFound: the promotion request was answered by someone else.
        StoreUnavailable: the store is at odds with itself, or the outcome is not known.
        RedisError: nothing was written.
    """
    await until_written(lambda _: _attempt(client, written))


async def until_written(attempt: Callable[[bool], Awaitable[bool]]) -> None:
    """Try a write again while that is safe.

    Args:
        attempt: one try, False if a watched key moved under it. It is told whether the reply to an
            earlier one was lost, so that what it would write may stand already.

    Raises:
        StoreUnavailable: others never leave the keys alone, or the outcome is not known.
        RedisError: nothing was written.
    """
    lost: Exception | None = None
    for _ in range(MAX_ABORTED):
        try:
            if await attempt(lost is not None):
                return
        except ReplyLost as error:
            if lost is not None:
                raise StoreUnavailable(_NOT_KNOWN) from error
            lost = error
        except (LostConnection, NoReply, TimeoutError) as error:
            if lost is not None:
                raise StoreUnavailable(_NOT_KNOWN) from error
            raise
    message = "The store is too busy: others kept changing what this write had read."
    raise StoreUnavailable(message)


_NOT_KNOWN: Final = (
    "The store stopped answering while it wrote, so whether the change was made is not known; "
    "read what stands before trying again."
)


class ReplyLost(Exception):
    """EXEC was sent and nothing came back."""


async def _attempt(client: Redis, written: Written) -> bool:
    """One try; False if a watched key moved under it."""
    keys, commit, answer = written.keys, written.commit, written.answer
    async with client.pipeline(transaction=True) as pipe:
        async with asyncio.timeout(3 * written.timeout_s):
            watched = [keys.snapshot, keys.audit] if commit is not None else []
            watched += [keys.promotions] if answer is not None else []
            watched += written.beside.watched() if written.beside is not None else []
            await pipe.watch(*watched)
            stands = None if commit is None else await _standing(pipe, keys, commit)
            if stands is not None:
                return stands
            if answer is not None:
                await _check_request(pipe, keys, answer[0])
            if written.beside is not None:
                await written.beside.check(pipe)
        pipe.multi()  # type: ignore[no-untyped-call] # redis-py left it untyped
        if commit is not None:
            queue_commit(pipe, keys, commit, written.seal_key)
        if written.beside is not None:
            written.beside.queue(pipe)
        if answer is not None:
            _queue_answer(pipe, keys, answer)
        return await execute(pipe, 2 * written.timeout_s)


async def execute(pipe: Pipeline, timeout_s: float) -> bool:
    """Send EXEC; False if a watched key moved.

    Raises:
        ReplyLost: whether it was done is not known.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await pipe.execute()
    except WatchError as error:
        # redis-py says WatchError, too, when the connection broke after EXEC was sent.
        if isinstance(error.__context__, LostConnection | NoReply | OSError):
            raise ReplyLost from error
        return False
    except (LostConnection, NoReply, TimeoutError, OSError) as error:
        raise ReplyLost from error
    return True


async def _standing(pipe: Pipeline, keys: Keys, commit: Commit) -> bool | None:
    """True if this very commit stands already, None if it may be written now.

    False if another one came in between these looks, so that they must be taken again.

    Raises:
        Conflict: another document stands.
        StoreUnavailable: the audit log is ahead of the document.
    """
    stored = bytes_of(await pipe.get(keys.snapshot))
    if not _is_base(stored, commit.base):
        if await is_logged(pipe, keys, commit):
            return True
        message = (
            f"The configuration moved: revision {commit.base.revision} is no longer the newest."
        )
        raise Conflict(message)
    newest = entries_of(await pipe.xrevrange(keys.audit, count=1))
    if newest and _order(newest[0][0]) >= (commit.snapshot.epoch, commit.snapshot.revision):
        if bytes_of(await pipe.get(keys.snapshot)) != stored:
            return False
        message = (
            "The store lost data: its audit log is ahead of its Snapshot. "
            "Put its data back; docs/redis.md says how."
        )
        raise StoreUnavailable(message)
    return None


async def is_logged(pipe: Pipeline, keys: Keys, commit: Commit) -> bool:
    """Whether this very commit stands in the audit log."""
    own = audit_id(commit.snapshot.epoch, commit.snapshot.revision)
    found = entries_of(await pipe.xrange(keys.audit, min=own, max=own))
    return bool(found) and found[0][1].get(b"hash") == entry_hash(commit.entry).encode()


async def _check_request(pipe: Pipeline, keys: Keys, request_id: str) -> None:
    if not await pipe.xrange(keys.promotions, min=request_id, max=request_id):
        message = f"Promotion request '{request_id}' is not waiting: it was answered."
        raise NotFound(message)
    # A results key of another type must be seen before EXEC, which would not undo the commit.
    await pipe.xlen(keys.promotion_results)


def queue_commit(pipe: Pipeline, keys: Keys, commit: Commit, seal_key: str | None) -> None:
    """Add what writes Snapshot, seal, audit entry and event."""
    document = encode(commit.snapshot)
    fields: dict[Any, Any] = {
        "entry": encode_entry(commit.entry),
        "hash": entry_hash(commit.entry),
    }
    pipe.set(keys.snapshot, document)
    if seal_key is not None:
        pipe.set(keys.seal, seal_of(seal_key, document))
    pipe.xadd(keys.audit, fields, id=audit_id(commit.snapshot.epoch, commit.snapshot.revision))
    pipe.publish(keys.events, str(commit.snapshot.revision))


def _queue_answer(pipe: Pipeline, keys: Keys, answer: tuple[str, Mapping[str, str]]) -> None:
    request_id, stated = answer
    fields: dict[Any, Any] = {"request": request_id, **stated}
    pipe.xadd(keys.promotion_results, fields, maxlen=MAX_RESULTS, approximate=True)
    pipe.xdel(keys.promotions, request_id)


def _is_base(stored: bytes | None, base: Snapshot) -> bool:
    """Whether the stored document is the base, in canonical form or as a person wrote it."""
    if stored is None:
        return base.revision == 0
    if stored == encode(base):
        return True
    if len(stored) > MAX_SNAPSHOT_BYTES:
        return False
    try:
        return decode(stored) == base
    except InvalidRequest:
        return False


def _order(stream_id: bytes) -> tuple[int, int]:
    epoch, _, revision = stream_id.partition(b"-")
    return int(epoch), int(revision)
