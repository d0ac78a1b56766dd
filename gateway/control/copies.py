"""Copies: the verified copies on this host, and the tasks that bring those that are wanted.

Verifying hashes a copy that lies here already; fetching copies a version out of the model store and
may take minutes. Nobody waits for either: a Snapshot is served with what is at hand, and what comes
later is told as a move.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.core.errors import Conflict, GatewayError, words_of
from gateway.core.models import Key, Manifest
from gateway.ports import Artifact, ModelStore

UNDER_WAY: Final = "It is being copied to this host."
FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0
"""How long to wait before what failed is tried again: twice as long each time, up to this."""
LOOK_S: Final = 0.25
"""How often to look whether something may be tried again, while anything is wanted."""


def is_passing(error: Exception) -> bool:
    """Whether the disk was to blame and not the files: it may be well again without them moving."""
    return isinstance(error, OSError) or isinstance(error.__cause__, OSError)


class Backoff:
    """When what failed may be tried again."""

    __slots__ = ("_waits",)

    def __init__(self) -> None:
        """Nothing failed yet."""
        self._waits: dict[Key, tuple[float, float]] = {}

    def failed(self, key: Key) -> None:
        """Wait twice as long as the last time."""
        _, before_s = self._waits.get(key, (0.0, 0.0))
        wait_s = min(max(2 * before_s, FIRST_RETRY_S), MAX_RETRY_S)
        self._waits[key] = (asyncio.get_running_loop().time() + wait_s, wait_s)

    def holds(self, key: Key) -> bool:
        """Whether it is too early."""
        due, _ = self._waits.get(key, (0.0, 0.0))
        return asyncio.get_running_loop().time() < due

    def forget(self, key: Key) -> None:
        """It did not fail, or is gone."""
        self._waits.pop(key, None)


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why there is no copy of these bytes. `mark` is that of files that are to blame themselves."""

    digest: str
    reason: str
    mark: str | None


class Copies:
    """Requires: `verify` and `fetch` run as tasks, one of each."""

    __slots__ = (
        "_backoff",
        "_failed",
        "_lacking",
        "_manifest_of",
        "_models",
        "_moved",
        "_reading",
        "_refused",
        "_to_fetch",
        "_to_verify",
        "_verified",
        "_wanted",
    )

    def __init__(
        self,
        models: ModelStore,
        manifest_of: Callable[[Key, str], Awaitable[Manifest]],
        refused: Mapping[Key, str],
        moved: Callable[[], None],
    ) -> None:
        """Nothing is wanted yet.

        Args:
            models: the model store of this host.
            manifest_of: the manifest of a version with this digest; may ask the store.
            refused: versions that are not fetched, with the reason; read again each time.
            moved: called when a copy is at hand, or the reason for none is another.
        """
        self._models = models
        self._manifest_of = manifest_of
        self._refused = refused
        self._moved = moved
        self._verified: dict[Key, Manifest] = {}
        self._wanted: dict[Key, str] = {}
        self._lacking: dict[Key, Manifest] = {}
        self._failed: dict[Key, _Failure] = {}
        self._backoff = Backoff()
        self._reading: dict[Key, asyncio.Lock] = {}
        self._to_verify = asyncio.Event()
        self._to_fetch = asyncio.Event()

    def reading(self, key: Key) -> asyncio.Lock:
        """Held by whoever reads a version out of the model store, so that nobody does it twice."""
        return self._reading.setdefault(key, asyncio.Lock())

    async def find(self, key: Key, digest: str) -> Artifact | None:
        """The copy, if it is known to be good; content is not read again."""
        manifest = self._verified.get(key)
        if manifest is None or manifest.digest != digest:
            return None
        artifact = await asyncio.to_thread(self._models.cached, manifest)
        if artifact is None:
            self._verified.pop(key, None)
        return artifact

    def reason(self, key: Key, digest: str) -> str | None:
        """Why there is no copy; None while it is looked for."""
        failure = self._failed.get(key)
        if failure is not None and failure.digest == digest:
            return failure.reason
        return self._refused.get(key) if key in self._lacking else None

    def keep(self, manifest: Manifest) -> None:
        """Know that the copy of this version is good."""
        key = (manifest.model, manifest.number)
        self._verified[key] = manifest
        self._failed.pop(key, None)
        self._backoff.forget(key)
        self._lacking.pop(key, None)
        if self._wanted.get(key) == manifest.digest:
            del self._wanted[key]

    def want(self, wanted: Mapping[Key, str]) -> None:
        """Bring these digests here, and nothing else any more."""
        self._wanted = dict(wanted)
        self._lacking = {
            key: manifest
            for key, manifest in self._lacking.items()
            if wanted.get(key) == manifest.digest
        }
        self._to_verify.set()
        self._to_fetch.set()

    async def verify(self) -> None:
        """For ever: take what lies here already, so that no large copy delays it."""
        while True:
            await self._woken(self._to_verify)
            for key, digest in list(self._wanted.items()):
                asked = self._wanted.get(key) == digest and key not in self._lacking
                if asked and not self._backoff.holds(key):
                    await self._verify(key, digest)

    async def fetch(self) -> None:
        """For ever: copy what is not here, one version after the other."""
        while True:
            await self._woken(self._to_fetch)
            for key, manifest in list(self._lacking.items()):
                asked = self._lacking.get(key) is manifest and key not in self._refused
                if asked and not self._backoff.holds(key):
                    await self._fetch(key, manifest)

    async def _woken(self, event: asyncio.Event) -> None:
        """Return when something may have to be done."""
        try:
            async with asyncio.timeout(LOOK_S if self._wanted else None):
                await event.wait()
        except TimeoutError:
            return
        event.clear()

    async def _verify(self, key: Key, digest: str) -> None:
        try:
            manifest = await self._manifest_of(key, digest)
            artifact = await asyncio.to_thread(self._models.cached, manifest)
        except (GatewayError, OSError) as error:
            self._fail(key, digest, error, None)
            return
        if artifact is not None:
            self.keep(manifest)
            self._moved()
        elif self._wanted.get(key) == digest:
            self._lacking[key] = manifest
            self._to_fetch.set()
            if key in self._refused:
                self._moved()

    async def _fetch(self, key: Key, manifest: Manifest) -> None:
        digest, mark = manifest.digest, None
        try:
            mark = await asyncio.to_thread(self._models.stamp, *key)
            failure = self._failed.get(key)
            if failure is not None and (failure.digest, failure.mark) == (digest, mark):
                self._backoff.failed(key)
                return
            async with self.reading(key):
                if await asyncio.to_thread(self._models.cached, manifest) is None:
                    fetched = await asyncio.to_thread(self._models.fetch, *key)
                    _check_digest(fetched.manifest, digest)
        except (GatewayError, OSError) as error:
            self._fail(key, digest, error, None if is_passing(error) else mark)
        else:
            self.keep(manifest)
            self._moved()

    def _fail(self, key: Key, digest: str, error: Exception, mark: str | None) -> None:
        """Note why, and try again later; files that are to blame, only when they are others."""
        self._backoff.failed(key)
        before = self._failed.get(key)
        failure = _Failure(digest, words_of(error), mark)
        self._failed[key] = failure
        if before is None or (before.digest, before.reason) != (digest, failure.reason):
            self._moved()


def _check_digest(manifest: Manifest, digest: str) -> None:
    if manifest.digest != digest:
        message = (
            f"Version {manifest.number} of '{manifest.model}' has other bytes in this host's "
            "model store."
        )
        raise Conflict(message)
