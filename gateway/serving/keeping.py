"""Keeping answers: bounded bytes, the least recently used first to go, and a time to live.

A space is what one endpoint may keep, and a shelf what it keeps of one version. An answer is found
under the hash of its inputs (`gateway.core.fingerprint`). Time is an argument.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from gateway.core.endpoints import Caching
from gateway.core.tensors import Array
from gateway.serving.cells import Cells
from gateway.telemetry import (
    CACHE_COALESCED,
    CACHE_EVICTED,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_SIZE,
    ENDPOINT,
)

MIB: Final = 1024 * 1024
ANSWER_BYTES: Final = 448
"""What keeping an answer costs beside its arrays: its key, its place and its times."""
ARRAY_BYTES: Final = 176
"""What an array costs beside its elements."""
ELEMENT_BYTES: Final = 64
"""What an element of BYTES costs beside its bytes and its place in the array."""
CLEARED_AT_ONCE: Final = 250
"""Answers of a closed version that are freed in one go; takes half a millisecond."""


class Kept(Struct, gc=False):
    """An answer that is kept: read-only outputs in the signature's order, and its bookkeeping.

    Not tracked by the garbage collector, so that many of them cost it nothing. `size` is in bytes,
    `at_ns` when it was asked for; `used` grows with each use, over all shelves.
    """

    outputs: tuple[Array, ...]
    size: int
    at_ns: int
    used: int


class Shelf:
    """What an endpoint keeps of one version, the least recently used answer first."""

    __slots__ = ("answers", "closed", "size", "space")

    def __init__(self, space: "Space") -> None:
        self.space = space
        self.answers: OrderedDict[bytes, Kept] = OrderedDict()
        self.size = 0
        self.closed = False

    def oldest(self) -> int:
        """When the least recently used answer was used. Requires: there is one."""
        return next(iter(self.answers.values())).used


class Space:
    """What one endpoint may keep, what it keeps, and what came of its requests."""

    __slots__ = (
        "coalesced",
        "evicted",
        "hits",
        "max_bytes",
        "misses",
        "policy",
        "shelves",
        "size",
        "stored",
        "ttl_ns",
    )

    def __init__(self, endpoint: str, policy: Caching, cells: Cells) -> None:
        labels = ((ENDPOINT, endpoint),)
        self.policy = policy
        self.max_bytes = policy.max_mb * MIB
        self.ttl_ns = None if policy.ttl_s is None else int(policy.ttl_s * 1e9)
        self.size = 0
        self.shelves: dict[str, Shelf] = {}
        self.hits = cells.counter(CACHE_HITS, labels)
        self.misses = cells.counter(CACHE_MISSES, labels)
        self.coalesced = cells.counter(CACHE_COALESCED, labels)
        self.evicted = cells.counter(CACHE_EVICTED, labels)
        self.stored = cells.gauge(CACHE_SIZE, labels)

    def shelf(self, digest: str) -> Shelf:
        """The shelf of a version; an empty one where there is none yet."""
        shelf = self.shelves.get(digest)
        if shelf is None:
            shelf = self.shelves[digest] = Shelf(self)
        return shelf


class Storage:
    """Every kept answer of this process. All calls come from the event loop's thread."""

    def __init__(
        self, later: Callable[[Callable[[], None]], object], cells: Cells, max_bytes: int
    ) -> None:
        """Start empty.

        Args:
            later: calls something when the event loop has time.
            cells: of the process.
            max_bytes: all endpoints together keep no more; at the bound the least recently used
                answer goes, whosever it is.
        """
        self.size = 0
        self.spaces: dict[str, Space] = {}
        self._max_bytes = max_bytes
        self._later = later
        self._cells = cells
        self._leaving: deque[Shelf] = deque()
        self._uses = 0
        cells.watch(self._refresh)

    def find(self, shelf: Shelf, key: bytes, now_ns: int) -> Kept | None:
        """The answer that is kept under a key, unless its time is over."""
        kept = shelf.answers.get(key)
        if kept is None:
            return None
        ttl_ns = shelf.space.ttl_ns
        if ttl_ns is not None and now_ns - kept.at_ns >= ttl_ns:
            self._forget(shelf, shelf.answers.pop(key))
            return None
        self._uses += 1
        kept.used = self._uses
        shelf.answers.move_to_end(key)
        return kept

    def keep(self, shelf: Shelf, key: bytes, outputs: Sequence[Array], at_ns: int) -> None:
        """Keep a copy of an answer, and let older ones go until it fits.

        A copy, because outputs of a shared run are views that would hold all of it. An answer that
        is larger than a bound is not kept, and neither is one that comes to a closed shelf.
        """
        space = shelf.space
        size = _size_of(outputs)
        if shelf.closed or size > min(space.max_bytes, self._max_bytes):
            return
        if key in shelf.answers:
            self._forget(shelf, shelf.answers.pop(key))
        while space.size + size > space.max_bytes:
            self._evict(space.shelves.values())
        while self.size + size > self._max_bytes:
            if self._leaving:
                self._clear(1)
            else:
                self._evict(one for each in self.spaces.values() for one in each.shelves.values())
        self._uses += 1
        copies = tuple(map(_read_only, outputs))
        shelf.answers[key] = Kept(copies, size, at_ns, self._uses)
        shelf.size += size
        space.size += size
        self.size += size

    def adapt(self, policies: Mapping[str, Caching], digests: Collection[str]) -> None:
        """Follow what is live: give endpoints their space, let go of what nothing can ask for.

        An endpoint whose policy changed starts anew.

        Args:
            policies: of each endpoint that keeps answers.
            digests: of the versions that are not closed.
        """
        for endpoint, space in list(self.spaces.items()):
            gone = policies.get(endpoint) != space.policy
            for digest in [one for one in space.shelves if gone or one not in digests]:
                self._close(space.shelves.pop(digest))
            if gone:
                space.stored.set(0)
                del self.spaces[endpoint]
        for endpoint, policy in policies.items():
            if endpoint not in self.spaces:
                self.spaces[endpoint] = Space(endpoint, policy, self._cells)

    def _evict(self, shelves: Iterable[Shelf]) -> None:
        """Let the least recently used answer of these shelves go. Requires: there is one."""
        shelf = min((shelf for shelf in shelves if shelf.answers), key=Shelf.oldest)
        self._forget(shelf, shelf.answers.popitem(last=False)[1])
        shelf.space.evicted.value += 1

    def _forget(self, shelf: Shelf, kept: Kept) -> None:
        """Stop counting what was taken off a shelf."""
        self.size -= kept.size
        shelf.size -= kept.size
        if not shelf.closed:
            shelf.space.size -= kept.size

    def _close(self, shelf: Shelf) -> None:
        """Nobody finds these answers any more; they go in portions, to hold nobody up."""
        shelf.closed = True
        shelf.space.size -= shelf.size
        if shelf.answers:
            if not self._leaving:
                self._later(self._clear_more)
            self._leaving.append(shelf)

    def _clear_more(self) -> None:
        self._clear(CLEARED_AT_ONCE)
        if self._leaving:
            self._later(self._clear_more)

    def _clear(self, count: int) -> None:
        """Free some answers of closed shelves."""
        while self._leaving and count:
            shelf = self._leaving[0]
            self._forget(shelf, shelf.answers.popitem(last=False)[1])
            if not shelf.answers:
                self._leaving.popleft()
            count -= 1

    def _refresh(self) -> None:
        """Bring the gauges up to date; called before each collection."""
        for space in self.spaces.values():
            space.stored.set(space.size)


def _read_only(output: Array) -> Array:
    copy = output.copy()
    copy.setflags(write=False)
    return copy


def _size_of(outputs: Sequence[Array]) -> int:
    """Bytes that keeping these outputs takes."""
    size = ANSWER_BYTES
    for output in outputs:
        size += ARRAY_BYTES + output.nbytes
        if output.dtype.hasobject:
            size += output.size * ELEMENT_BYTES + sum(map(len, output.reshape(-1).tolist()))
    return size
