"""The shared signing keys in Redis: read, and replaced only where nobody else did so first."""

import asyncio
from typing import Final

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from gateway.adapters.redis.replies import bytes_of
from gateway.adapters.redis.transactions import execute, until_written
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.predictions import SigningKeys

_MOVED: Final = "The signing keys moved: another rotation was faster, or is under way."


class Swap(Struct, frozen=True):
    """One change of the keys under `key`: from what was read to what shall stand."""

    key: str
    before: SigningKeys
    after: SigningKeys
    timeout_s: float


def read_keys(document: bytes | None) -> SigningKeys:
    """Decode what is stored.

    Raises:
        InvalidRequest: it cannot be read; no part of it is repeated.
    """
    try:
        return msgspec.json.decode(document or b"", type=SigningKeys)
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = "The signing keys in the store cannot be read."
        raise InvalidRequest(message) from None


async def swap(client: Redis, asked: Swap) -> None:
    """Make a change, trying again while that is safe.

    Raises:
        Conflict: other keys stand, or none.
        InvalidRequest: what stands cannot be read.
        StoreUnavailable: the outcome is not known.
        RedisError: nothing was written.
    """
    await until_written(lambda lost: _attempt(client, asked, lost=lost))


async def _attempt(client: Redis, asked: Swap, *, lost: bool) -> bool:
    """One try; False if the keys moved under it. After a lost reply it may stand already."""
    async with client.pipeline(transaction=True) as pipe:
        async with asyncio.timeout(2 * asked.timeout_s):
            await pipe.watch(asked.key)
            document = bytes_of(await pipe.get(asked.key))
        stands = None if document is None else read_keys(document)
        if lost and stands == asked.after:
            return True
        if stands != asked.before:
            raise Conflict(_MOVED)
        pipe.multi()  # type: ignore[no-untyped-call] # redis-py left it untyped
        pipe.set(asked.key, msgspec.json.encode(asked.after))
        return await execute(pipe, 2 * asked.timeout_s)
