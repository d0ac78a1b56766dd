"""The Catalog: from the model store to the registry, and from a Snapshot to what it needs on disk.

A version is inspected (`gateway.control.reception`) and registered, once and for ever. Files that
change under a registered number, or that are refused, are remembered with the reason and looked at
again only when they change. What is registered already is not inspected again.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from gateway.control.copies import UNDER_WAY, Backoff, Copies, is_passing
from gateway.control.reception import Examined, Reception
from gateway.control.registry import Registry, Request
from gateway.core.errors import Conflict, InvalidRequest, NotReady, StoreUnavailable
from gateway.core.models import Key, Manifest
from gateway.core.snapshot import Snapshot, named_keys, served_part
from gateway.core.transitions import other_bytes
from gateway.ports import Artifact, ModelStore, Store, Update

log: Final = logging.getLogger(__name__)

ACTOR: Final = "model-store"
SETTLE_S: Final = 0.5
"""A version that appears while this runs must hold still this long before it is read."""
SAID: Final = "a new version in the model store"
MAX_AT_ONCE: Final = 3
"""Models of which new versions are taken beside each other, so that none waits for another's."""


class Catalog:
    """Watches the model store of this host. One task scans; `prepare` may be called beside it.

    `run` and the tasks of `copies` are for whoever owns the loops.
    """

    __slots__ = (
        "_backoff",
        "_examined",
        "_faults",
        "_found",
        "_manifests",
        "_models",
        "_moved",
        "_moving",
        "_read",
        "_reception",
        "_registry",
        "_scanned",
        "_seen",
        "_stopped",
        "_store",
        "copies",
        "generation",
    )

    def __init__(
        self, store: Store, models: ModelStore, registry: Registry, reception: Reception
    ) -> None:
        """Nothing is known before the first scan."""
        self._store = store
        self._reception = reception
        self._models = models
        self._registry = registry
        self._scanned = False
        self._found: list[Key] = []
        # Marks of the files that were dealt with, and of those that may still be growing.
        self._seen: dict[Key, str] = {}
        self._moving: dict[Key, str] = {}
        self._read: dict[Key, tuple[str, Artifact]] = {}
        self._examined: dict[Key, Examined] = {}
        self._faults: dict[Key, str] = {}
        self._manifests: dict[Key, Manifest] = {}
        # Marks of the files that a passing error kept from being dealt with.
        self._stopped: dict[Key, str] = {}
        self._backoff = Backoff()
        self._moved = asyncio.Event()
        self.copies = Copies(models, self._manifest, self._faults, self._move)
        self.generation = 0
        """Counts what was read anew; who misses a version looks again when it moves."""

    async def moved(self) -> None:
        """Return when the generation moved since the last call. Requires: one caller."""
        await self._moved.wait()
        self._moved.clear()

    async def run(self, pause_s: float) -> None:
        """Scan for ever, sooner while files are still arriving."""
        while True:
            settled = await self.scan()
            await asyncio.sleep(pause_s if settled else min(pause_s, SETTLE_S))

    @property
    def is_complete(self) -> bool:
        """Whether a scan came to the end of what it found, and the store took all of it."""
        return self._scanned

    async def scan(self) -> bool:
        """Look at the model store once; False if something there may still be growing.

        What could not be registered because the store was away is tried again by the next scan.
        """
        found = await asyncio.to_thread(self._models.scan)
        self._found = [key for key in found if not self._is_retired(key)]
        marks = await asyncio.to_thread(self._marks)
        changed = {key: mark for key, mark in marks.items() if self._seen.get(key) != mark}
        moving = {
            key: mark
            for key, mark in changed.items()
            if self._scanned and mark not in (self._moving.get(key), self._stopped.get(key))
        }
        arriving = {model for model, _ in moving} - self._registry.snapshot.models.keys()
        ready = [
            (key, changed[key])
            for key in await self._in_order(changed)
            if not (key in moving or key[0] in arriving or self._backoff.holds(key))
        ]
        if await self._take_all(ready):
            self._scanned = True
        for key in {*self._seen, *self._stopped} - marks.keys():
            self._forget(key)
        self._moving = moving
        return not moving

    def trust(self, manifests: Iterable[Manifest]) -> None:
        """Know these manifests without asking the store."""
        for manifest in manifests:
            self._manifests.setdefault((manifest.model, manifest.number), manifest)

    def manifests_of(self, snapshot: Snapshot) -> tuple[Manifest, ...]:
        """The known manifests of all versions of a Snapshot, so that a lost store gets them back.

        Those that it names are among them, if they were ever served here.
        """
        return tuple(
            manifest
            for key, manifest in sorted(self._manifests.items())
            if key[0] in snapshot.models
            and snapshot.models[key[0]].versions.get(key[1]) == manifest.digest
        )

    async def every_manifest(self, snapshot: Snapshot) -> tuple[dict[Key, Manifest], list[Key]]:
        """The manifests of all versions of a Snapshot without asking the store, and which are not.

        What is not known is read anew from this host's model store, if the same bytes lie there.
        """
        known = {(one.model, one.number): one for one in self.manifests_of(snapshot)}
        lacking = []
        for name, model in sorted(snapshot.models.items()):
            for number, digest in sorted(model.versions.items()):
                key = (name, number)
                if key in known:
                    continue
                manifest = await self._read_again(key)
                if manifest is not None and manifest.digest == digest:
                    known[key] = manifest
                else:
                    lacking.append(key)
        return known, lacking

    async def prepare(self, snapshot: Snapshot) -> Update:
        """What is at hand of a Snapshot, at once, and why the rest is not; the rest is fetched.

        The generation moves with each version that comes.
        """
        artifacts: dict[Key, Artifact] = {}
        missing: dict[Key, str] = {}
        wanted: dict[Key, str] = {}
        pending: set[Key] = set()
        for key in sorted(named_keys(snapshot)):
            digest = snapshot.models[key[0]].versions[key[1]]
            artifact = await self.copies.find(key, digest)
            if artifact is not None:
                artifacts[key] = artifact
                continue
            wanted[key] = digest
            reason = self.copies.reason(key, digest)
            missing[key] = reason or UNDER_WAY
            if reason is None:
                pending.add(key)
        self.copies.want(wanted)
        return Update(
            snapshot=served_part(snapshot),
            artifacts=artifacts,
            missing=missing,
            pending=frozenset(pending),
        )

    def index(self) -> list[tuple[str, int, str | None]]:
        """Every version in the model store or in the registry, with what speaks against it."""
        models = self._registry.snapshot.models
        registered = {(name, number) for name, model in models.items() for number in model.versions}
        keys = sorted({*self._found, *registered})
        return [(model, number, self._faults.get((model, number))) for model, number in keys]

    def refused(self) -> list[tuple[str, int, str]]:
        """Every version of the model store that something speaks against, with the reason."""
        return [(model, number, why) for (model, number), why in sorted(self._faults.items())]

    def _is_retired(self, key: Key) -> bool:
        """Whether a number is over: files that still lie under it are nobody's concern."""
        record = self._registry.snapshot.models.get(key[0])
        return record is not None and key[1] in record.retired

    def _marks(self) -> dict[Key, str]:
        return {key: self._models.stamp(*key) for key in self._found}

    async def _in_order(self, keys: Iterable[Key]) -> list[Key]:
        """A new model's champion first: whichever of its versions is registered first becomes it.

        That is the one that `model.toml` names, else the highest that can be read.
        """
        new = {model for model, _ in keys} - self._registry.snapshot.models.keys()
        champions = {model: await self._seed(model) for model in new}

        def place(key: Key) -> tuple[str, bool, int]:
            model, number = key
            if model not in new:
                return model, False, number
            return model, champions[model].get("champion") != number, -number

        return sorted(keys, key=place)

    async def _take_all(self, ready: Iterable[tuple[Key, str]]) -> bool:
        """Deal with versions whose files are new, model by model; False if the store was away."""
        free = asyncio.Semaphore(MAX_AT_ONCE)

        async def take(versions: Sequence[tuple[Key, str]]) -> bool:
            async with free:
                for key, mark in versions:
                    if not await self._take(key, mark):
                        return False
            return True

        chains = [list(group) for _, group in groupby(ready, key=lambda one: one[0][0])]
        async with asyncio.TaskGroup() as group:
            taken = [group.create_task(take(chain)) for chain in chains]
        return all(task.result() for task in taken)

    async def _take(self, key: Key, mark: str) -> bool:
        """Deal with a version whose files are new; False if the store was away."""
        try:
            await self._register(await self._fetched(key, mark))
        except StoreUnavailable:
            return False
        except (InvalidRequest, NotReady) as error:
            self._refuse(key, str(error))
            if isinstance(error, NotReady) or is_passing(error):
                self._stopped[key] = mark
                self._backoff.failed(key)
                return True
        except Conflict as error:
            self._refuse(key, str(error))
        else:
            self._faults.pop(key, None)
        self._read.pop(key, None)
        self._examined.pop(key, None)
        self._stopped.pop(key, None)
        self._backoff.forget(key)
        self._seen[key] = mark
        self._move()
        return True

    def _refuse(self, key: Key, reason: str) -> None:
        """Remember what speaks against a version; say it once."""
        if self._faults.get(key) != reason:
            log.warning("%s/%d stays out. %s", *key, reason)
            self._faults[key] = reason
            self._move()

    async def _fetched(self, key: Key, mark: str) -> Artifact:
        """The copy of the files as they are now, read once though the store may be away."""
        known = self._read.get(key)
        if known is not None and known[0] == mark:
            return known[1]
        async with self.copies.reading(key):
            artifact = await asyncio.to_thread(self._models.fetch, *key)
        self._read[key] = (mark, artifact)
        return artifact

    async def _register(self, artifact: Artifact) -> None:
        key = (artifact.manifest.model, artifact.manifest.number)
        record = self._registry.snapshot.models.get(key[0])
        known = None if record is None else record.versions.get(key[1])
        standing = await self._store.manifest(*key)
        digests = {known, None if standing is None else standing.digest} - {None}
        if digests - {artifact.manifest.digest}:
            raise Conflict(other_bytes(key))
        if known is None or standing is None:
            standing = await self._enter(key, artifact)
        self._manifests[key] = standing
        self.copies.keep(standing)

    async def _enter(self, key: Key, artifact: Artifact) -> Manifest:
        """Have a version inspected and registered; inspected once though the store may be away."""
        request = Request(actor=ACTOR, reason=SAID)
        examined = self._examined.get(key)
        if examined is None or examined.manifest.digest != artifact.manifest.digest:
            examined = await self._reception.examine(artifact, request)
            self._examined[key] = examined
        standing, _ = await self._reception.enter(examined, request)
        return standing

    async def _read_again(self, key: Key) -> Manifest | None:
        """The manifest of the files of a version, None if there are none that can be read."""
        try:
            async with self.copies.reading(key):
                return (await asyncio.to_thread(self._models.fetch, *key)).manifest
        except (InvalidRequest, OSError):
            return None

    async def _seed(self, model: str) -> Mapping[str, Any]:
        return await asyncio.to_thread(self._models.seed, model)

    async def _manifest(self, key: Key, digest: str) -> Manifest:
        """The manifest of one version, from the store if it is not known.

        Raises:
            GatewayError: why there is none.
        """
        manifest = self._manifests.get(key)
        if manifest is None or manifest.digest != digest:
            manifest = await self._registry.manifest(*key)
            self._manifests[key] = manifest
        if manifest.digest != digest:
            message = f"Version {key[1]} of '{key[0]}': manifest and Snapshot name other bytes."
            raise Conflict(message)
        return manifest

    def _forget(self, key: Key) -> None:
        """A version whose files are gone has nothing against it any more."""
        self._faults.pop(key, None)
        self._seen.pop(key, None)
        self._stopped.pop(key, None)
        self._examined.pop(key, None)
        self._backoff.forget(key)
        self._move()

    def _move(self) -> None:
        self.generation += 1
        self._moved.set()
