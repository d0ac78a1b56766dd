"""Borders: what redis-py raises ends here, as errors of our own and without the URL's password."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import ClusterError, MovedError, ReadOnlyError, RedisError

from gateway.adapters.redis.connections import Connections
from gateway.core.errors import StoreUnavailable

_LOGIN: Final = {
    "already authenticated": "NOAUTH",
    "Authentication required": "NOAUTH",
    "invalid username-password": "WRONGPASS",
}
"""Words of refusals whose code redis-py has cut off."""
_CODE: Final = re.compile(r"(?:^|caused error: \('|\(\")([A-Z]{3,})\b")


async def _nothing_more() -> None:
    """For who keeps no connection of their own."""


@contextlib.asynccontextmanager
async def bordered(
    connections: Connections, hang_up: Callable[[], Awaitable[None]] = _nothing_more
) -> AsyncIterator[Redis]:
    """A client to speak to; `hang_up` lets go of what else is open to a node that is of no use.

    Raises:
        StoreUnavailable: in place of whatever the library raises inside.
    """
    with cancelling_kept():
        try:
            yield await connections.get()
        except (ReadOnlyError, ClusterError, MovedError) as error:
            # This node may not be written any more; the next call looks for the one that may.
            await hang_up()
            with contextlib.suppress(RedisError, OSError):
                await connections.drop()
            raise StoreUnavailable(_sentence(error)) from error
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(_sentence(error)) from error


@contextlib.contextmanager
def cancelling_kept() -> Iterator[None]:
    """Raise a cancellation that redis-py swallowed; it makes a lost connection of some of them."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        yield
    except Exception as error:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


def _sentence(error: Exception) -> str:
    """What went wrong, by the server's own error code where it gave one."""
    for words, login_code in _LOGIN.items():
        if words in str(error):
            return f"The store refused ({login_code})."
    stated = _CODE.search(str(error))
    code = getattr(error, "status_code", None) or (stated and stated[1])
    if code:
        return f"The store refused ({code})."
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "The store did not answer in time."
    return "The store cannot be reached."
