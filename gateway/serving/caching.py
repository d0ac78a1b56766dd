"""The response cache: equal questions to one version are answered by one run.

Off unless an endpoint asks for it. What a version says of an input depends on nothing but its
files and that input, so an answer is kept by endpoint, version digest and a hash of the input's
bytes; all of the version's outputs are kept, so any choice of them can be served, and callers who
pin a version or force a variant may share them. Equal requests that come while the first of them
waits or runs wait for it. Only results are kept, never errors, and where the first one comes to
nothing each of the others is tried by itself.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Final

from gateway.core.endpoints import Caching
from gateway.core.errors import Cancelled, DeadlineExceeded, GatewayError
from gateway.core.fingerprint import fingerprint
from gateway.serving.batching import Batcher
from gateway.serving.jobs import Job, Result, answer, settled
from gateway.serving.keeping import Shelf, Storage
from gateway.serving.pool import Loaded, PoolParts

HIT: Final = "hit"
COALESCED: Final = "coalesced"
MISS: Final = "miss"
BYPASS: Final = "bypass"
"""What a job's `cache` may say: it was kept, shared, run, or too large to be looked up."""
MAX_FOLLOWERS: Final = 1_024
"""Requests that wait for one that is equal; further ones are queued themselves."""

log: Final = logging.getLogger(__name__)


class ResponseCache:
    """Looks up, shares and keeps; one for each process, on the event loop's thread."""

    def __init__(self, parts: PoolParts, max_bytes: int) -> None:
        """Start empty.

        Args:
            parts: the process's loop, clock and cells.
            max_bytes: all endpoints together keep no more.
        """
        self.storage = Storage(parts.loop.call_soon, parts.cells, max_bytes)
        self.now_ns = parts.now_ns
        self._leads: dict[tuple[Shelf, bytes], _Lead] = {}

    def submit(self, job: Job, batcher: Batcher, loaded: Loaded, endpoint: str) -> None:
        """Answer a job at once from what is kept, let it wait for an equal one, or queue it.

        `job.cache` says which. The time of the question is `job.queued_ns`.

        Args:
            job: its `tensors` are checked against the version's signature.
            batcher: the queue of `loaded`.
            loaded: the version, on which the caller holds a lease.
            endpoint: whose space it is.

        Raises:
            Overloaded: as `Batcher.submit`.
        """
        space = self.storage.spaces.get(endpoint)
        if space is None:  # asked before the endpoint stopped keeping, and fallen back since
            batcher.submit(job)
            return
        key = fingerprint(loaded.artifact.manifest.signature, job.tensors)
        if key is None:
            job.cache = BYPASS
            batcher.submit(job)
            return
        shelf = space.shelf(loaded.digest)
        kept = self.storage.find(shelf, key, job.queued_ns)
        took_ns = self.now_ns() - job.queued_ns
        if kept is None:
            loaded.statistics.cache_miss.add(took_ns)
            self.follow_or_lead(job, batcher, shelf, key)
            return
        loaded.statistics.cache_hit.add(took_ns)
        space.hits.value += 1
        job.cache = HIT
        _answer(job, list(kept.outputs))

    def follow_or_lead(self, job: Job, batcher: Batcher, shelf: Shelf, key: bytes) -> None:
        """Let a job wait for an equal one that is under way, or queue it as the first.

        Raises:
            Overloaded: as `Batcher.submit`.
        """
        lead = self._leads.get((shelf, key))
        if lead is not None and len(lead.followers) < MAX_FOLLOWERS:
            job.cache = COALESCED
            lead.followers.append(job)
            return
        job.cache = MISS
        shelf.space.misses.value += 1
        if lead is not None:
            batcher.submit(job)
            return
        lead = self._leads[shelf, key] = _Lead(self, job, batcher, shelf, key)
        try:
            batcher.submit(job)
        except BaseException:
            self.dismiss(lead)
            job.done = lead.done
            raise

    def dismiss(self, lead: "_Lead") -> None:
        """Let a job lead no more."""
        self._leads.pop((lead.shelf, lead.key), None)

    def adapt(self, policies: Mapping[str, Caching], digests: Collection[str]) -> None:
        """Follow what is live; see `Storage.adapt`."""
        self.storage.adapt(policies, digests)


class _Lead:
    """The first of several equal requests, and those that wait for it."""

    __slots__ = ("batcher", "cache", "done", "followers", "job", "key", "shelf")

    def __init__(
        self, cache: ResponseCache, job: Job, batcher: Batcher, shelf: Shelf, key: bytes
    ) -> None:
        """Stand between the job and its caller."""
        self.cache = cache
        self.job = job
        self.batcher = batcher
        self.shelf = shelf
        self.key = key
        self.done = job.done
        self.followers: list[Job] = []
        job.done = self.land

    def land(self, result: Result) -> None:
        """Keep a result and share it; where there is none, let each follower try by itself."""
        self.cache.dismiss(self)
        if not isinstance(result, GatewayError):
            try:
                self.cache.storage.keep(self.shelf, self.key, result, self.job.queued_ns)
            except Exception:
                log.exception("an answer could not be kept")
        answer(self.done, result)
        now_ns = self.cache.now_ns() if self.followers else 0
        for follower in self.followers:
            try:
                self._settle(follower, result, now_ns)
            except GatewayError as error:
                _answer(follower, error.with_traceback(None))
            except Exception:
                log.exception("a request that waited for an equal one could not be run")
                _answer(follower, GatewayError("The gateway failed; its log says more."))

    def _settle(self, follower: Job, result: Result, now_ns: int) -> None:
        if follower.is_settled:
            return
        if follower.deadline_ns and now_ns > follower.deadline_ns:
            message = "The request's time ran out while it waited for an equal one."
            _answer(follower, DeadlineExceeded(message))
        elif isinstance(result, (DeadlineExceeded, Cancelled)):
            # The first was not run, which says nothing of the others: one of them is the next.
            self.cache.follow_or_lead(follower, self.batcher, self.shelf, self.key)
        elif isinstance(result, GatewayError):
            follower.cache = MISS
            self.shelf.space.misses.value += 1
            self.batcher.submit(follower)
        else:
            self.shelf.space.coalesced.value += 1
            follower.run_ns = self.job.run_ns
            follower.batch_rows = self.job.batch_rows
            follower.queue_ns = max(0, now_ns - follower.queued_ns - follower.run_ns)
            _answer(follower, result)


def _answer(job: Job, result: Result) -> None:
    """Tell the caller of a job that was never queued, once."""
    done, job.done = job.done, settled
    answer(done, result)
