"""Pages of the audit stream, over all epochs: revisions grow from one epoch to the next.

An id begins with the epoch, and who asks knows a revision only. The first entry behind a guess says
which epoch is meant, so that each page takes one look, and one more for each restore in between.
"""

from typing import Any, Final

from redis.asyncio import Redis

from gateway.adapters.redis.replies import Entries, entries_of
from gateway.core.errors import StoreUnavailable

MAX_EPOCHS: Final = 64
"""Restores looked over for one page."""


async def page_after(client: Redis, key: str, after: int, count: int) -> Entries:
    """The first entries with a greater revision, oldest first."""
    start = f"1-{after + 1}"
    for _ in range(MAX_EPOCHS):
        page = entries_of(await client.xrange(key, min=start, count=count))
        if not page:
            return []
        epoch, revision = order_of_id(page[0][0])
        if revision > after:
            return page
        start = f"{epoch}-{after + 1}"
    raise StoreUnavailable(_TOO_MANY)


async def page_before(client: Redis, key: str, before: int | None, count: int) -> Entries:
    """The last entries with a lower revision, newest first."""
    end: Any = "+"
    for _ in range(MAX_EPOCHS):
        page = entries_of(await client.xrevrange(key, max=end, count=count))
        if not page:
            return []
        epoch, revision = order_of_id(page[0][0])
        if before is None or revision < before:
            return page
        end = f"({epoch}-{before}"
    raise StoreUnavailable(_TOO_MANY)


_TOO_MANY: Final = f"The audit log holds more than {MAX_EPOCHS} epochs in a row out of order."


def order_of_id(stream_id: bytes) -> tuple[int, int]:
    """Epoch and revision of an entry's id."""
    epoch, _, revision = stream_id.partition(b"-")
    return int(epoch), int(revision)
