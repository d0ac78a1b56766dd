"""Registering by hand: from an upload or a folder of the model store to a registered version.

The bytes are inspected first. Then the number is taken (the manifest), the files are brought into
the model store where nobody sees them, the commit is made, and they are shown. So nobody else can
register the same files in between, and what is refused leaves nothing.
"""

import asyncio
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from msgspec.structs import replace

from gateway.control.reception import Examined, Reception
from gateway.control.registry import Change, Registry, Request
from gateway.core.errors import Conflict, Forbidden, InvalidRequest, NotFound, VersionRefused
from gateway.core.inspections import Inspection
from gateway.core.lineage import check_lineage, joined
from gateway.core.models import MAX_VERSION, Key, Manifest, check_name, parse_version
from gateway.core.snapshot import ModelRecord
from gateway.core.transitions import other_bytes
from gateway.core.versions import next_number
from gateway.governance_ports import Staged, Uploads
from gateway.ports import Artifact, ModelStore, Placement

log: Final = logging.getLogger(__name__)

MAX_TRIES: Final = 8
"""How often another number is taken where one was taken by someone else meanwhile."""
MAX_DONE: Final = 256
"""Uploads that became versions and are remembered, for who never saw the answer."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What is to be registered: one of `upload` and `source`, as which number, with what lineage.

    Without a number it is the next.
    """

    model: str
    number: int | None = None
    upload: str | None = None
    source: str | None = None
    lineage: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Entered:
    """A registered version; `change` is None if it was registered before with the same bytes."""

    manifest: Manifest
    change: Change | None


class Registrar:
    """Registers versions for whoever asks. Safe to use from several requests at once."""

    __slots__ = ("_done", "_locks", "_models", "_reception", "_registry", "uploads")

    def __init__(
        self,
        registry: Registry,
        models: ModelStore,
        reception: Reception,
        uploads: Uploads,
    ) -> None:
        """Nothing is under way."""
        self._registry = registry
        self._models = models
        self._reception = reception
        self.uploads = uploads
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._done: OrderedDict[str, tuple[str, int]] = OrderedDict()

    async def register(self, wanted: Registration, request: Request) -> Entered:
        """Inspect and register; asked again with the same bytes, say what stands.

        Raises:
            VersionRefused: a check forbids it, and the upload is gone. InvalidRequest: the files or
            the request are wrong.
            Conflict: the number is taken by other bytes. NotFound: no such upload.
            Forbidden: it is someone else's. NotReady: no inspection can be made now, or the store
            cannot be written. StoreUnavailable: nothing was registered, or that is not known.
        """
        wanted = _check(wanted)
        # One after the other for each model: numbers are given here.
        async with self._locks.setdefault(wanted.model, asyncio.Lock()):
            staged = None
            if wanted.upload is not None:
                known = self._done.get(wanted.upload)
                if known is not None and known[0] == wanted.model:
                    return Entered(await self._registry.manifest(*known), None)
                staged = await self.find(wanted.model, wanted.upload, request.actor)
            try:
                entered = await self._register(wanted, staged, request)
            except VersionRefused:
                # These bytes will never do; an upload of them would only take up a place.
                if staged is not None:
                    await asyncio.to_thread(self.uploads.discard, staged.id)
                raise
        if staged is not None:
            await self._conclude(staged, entered.manifest)
        return entered

    async def find(self, model: str, upload: str, actor: str) -> Staged:
        """An upload of a principal for a model.

        Raises:
            NotFound: there is none. Forbidden: it is someone else's.
        """
        staged = await asyncio.to_thread(self.uploads.find, upload)
        if staged.model != model:
            message = "This upload is for another model."
            raise NotFound(message)
        if staged.owner != actor:
            message = "This upload is someone else's."
            raise Forbidden(message)
        return staged

    async def inspect(self, model: str, number: int, request: Request) -> Inspection:
        """Inspect a registered version anew.

        Raises:
            NotFound: no such version. NotReady: its files are not at hand, or no inspection can be
            made now.
        """
        manifest = await self._registry.manifest(model, number)
        artifact = await asyncio.to_thread(self._models.cached, manifest)
        if artifact is None:
            fetched = await asyncio.to_thread(self._models.fetch, model, number)
            if fetched.manifest.digest != manifest.digest:
                raise Conflict(other_bytes((model, number)))
            artifact = replace(fetched, manifest=manifest)
        return await self._reception.inspect_again(artifact, request)

    async def _register(
        self, wanted: Registration, staged: Staged | None, request: Request
    ) -> Entered:
        snapshot = await self._registry.fresh()
        record = snapshot.models.get(wanted.model)
        found = await asyncio.to_thread(self._models.scan)
        number = wanted.number or next_number(record, wanted.model, found)
        artifact = await self._copied(wanted, staged, number)
        before = _number_of(record, artifact.manifest.digest, wanted.number)
        if before is not None:
            manifest = await self._registry.manifest(wanted.model, before)
            await self._restore(replace(artifact, manifest=manifest), found)
            return Entered(manifest, None)
        if record is not None and number in record.versions:
            raise Conflict(other_bytes((wanted.model, number)))
        if record is not None and number in record.retired:
            message = f"Version {number} of '{wanted.model}' was retired; take another number."
            raise Conflict(message)
        examined = await self._reception.examine(artifact, request)
        return await self._enter(examined, wanted, request)

    async def _copied(self, wanted: Registration, staged: Staged | None, number: int) -> Artifact:
        """The copy in the cache, with the lineage that came with what is wanted."""
        if staged is not None:
            artifact = await asyncio.to_thread(
                self._models.take, wanted.model, number, staged.folder
            )
        else:
            artifact = await asyncio.to_thread(
                self._models.fetch, wanted.model, number, _source(wanted, number)
            )
        if not wanted.lineage:
            return artifact
        lineage = check_lineage(joined(artifact.manifest.lineage, wanted.lineage))
        return replace(artifact, manifest=replace(artifact.manifest, lineage=lineage))

    async def _enter(self, examined: Examined, wanted: Registration, request: Request) -> Entered:
        """Take a number, and register under it."""
        for _ in range(MAX_TRIES):
            try:
                await self._reception.reserve(examined)
                break
            except Conflict:
                if wanted.number is not None or examined.manifest.number >= MAX_VERSION:
                    raise
                examined = examined.numbered(examined.manifest.number + 1)
        try:
            placement = await self._placed(examined, wanted)
        except Conflict:
            if not await self._is_registered(examined.manifest):
                raise
            return Entered(examined.manifest, None)
        try:
            manifest, change = await self._reception.enter(examined, request)
            if placement is not None:
                await _show(placement)
        finally:
            if placement is not None:
                await asyncio.to_thread(placement.discard)
        return Entered(manifest, change if change.entry is not None else None)

    async def _restore(self, artifact: Artifact, found: list[Key]) -> None:
        """Bring a registered version's files back into the model store, if they are not there."""
        if (artifact.manifest.model, artifact.manifest.number) in found:
            return
        placement = await asyncio.to_thread(self._models.place, artifact)
        try:
            await _show(placement)
        finally:
            await asyncio.to_thread(placement.discard)

    async def _is_registered(self, manifest: Manifest) -> bool:
        """Whether somebody else registered the same bytes under this number meanwhile."""
        record = (await self._registry.fresh()).models.get(manifest.model)
        return record is not None and record.versions.get(manifest.number) == manifest.digest

    async def _placed(self, examined: Examined, wanted: Registration) -> Placement | None:
        """The files on their way into the model store; None where they lie in their place."""
        manifest = examined.manifest
        if wanted.source == f"{manifest.model}/{manifest.number}":
            return None
        return await asyncio.to_thread(self._models.place, examined.artifact)

    async def _conclude(self, staged: Staged, manifest: Manifest) -> None:
        self._done[staged.id] = (manifest.model, manifest.number)
        if len(self._done) > MAX_DONE:
            self._done.popitem(last=False)
        await asyncio.to_thread(self.uploads.discard, staged.id)


async def _show(placement: Placement) -> None:
    """Let everybody see a registered version's files, unless some lie there by now.

    Another host that registers the same bytes may be faster. The version stands either way, and a
    catalog that finds other bytes there says so.
    """
    try:
        await asyncio.to_thread(placement.publish)
    except Conflict as error:
        log.warning("A version is registered, and its files are not those put here. %s", error)


def _check(wanted: Registration) -> Registration:
    """Refuse a registration that is none; one for a version's own place means its number."""
    check_name("a model", wanted.model)
    if (wanted.upload is None) == (wanted.source is None):
        message = "Name one of 'upload' and 'source': where the files of the version are."
        raise InvalidRequest(message)
    if wanted.number is not None and not 1 <= wanted.number <= MAX_VERSION:
        message = f"A version's number is 1 to {MAX_VERSION}."
        raise InvalidRequest(message)
    if wanted.lineage is not None:
        check_lineage(wanted.lineage)
    own = (wanted.source or "").removeprefix(f"{wanted.model}/")
    if wanted.number is None and own != wanted.source and own.isdigit():
        return dataclasses.replace(wanted, number=parse_version(own))
    return wanted


def _source(wanted: Registration, number: int) -> str | None:
    """The folder to read, None where it is the version's own place."""
    return None if wanted.source == f"{wanted.model}/{number}" else wanted.source


def _number_of(record: ModelRecord | None, digest: str, wanted: int | None) -> int | None:
    """The version with these bytes that a wanted means, if it is registered already."""
    if record is None:
        return None
    if wanted is not None:
        return wanted if record.versions.get(wanted) == digest else None
    same = [number for number, known in record.versions.items() if known == digest]
    return max(same, default=None)
