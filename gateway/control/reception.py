"""The Reception: where a version is inspected, and entered in the registry or refused.

Whoever brings it (the model store, an upload, a registry that is followed) comes through here, so
that nothing is registered that was not inspected, and each refusal is written down once.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from msgspec.structs import replace

from gateway.control.registry import Change, Edit, Registry, Request
from gateway.core.errors import Conflict, GatewayError, InvalidRequest, words_of
from gateway.core.goldens import GOLDEN_FILE, MAX_GOLDEN_BYTES, read_golden
from gateway.core.inspections import GoldenRequest, Inspection, InspectionOrder
from gateway.core.models import CHAMPION, Manifest
from gateway.core.reviews import Review
from gateway.core.snapshot import ModelRecord, Snapshot, endpoint_record
from gateway.core.tensors import Signature
from gateway.core.transitions import other_bytes, reviewed
from gateway.core.versions import refusal_evidence, refusal_of, review_of
from gateway.governance_ports import GovernanceStore, Inspector
from gateway.ports import Artifact, DataPlane, ModelStore, Store

log: Final = logging.getLogger(__name__)

REFUSE: Final = "model.refuse"
INSPECT: Final = "model.inspect"
MAX_TOLD: Final = 1024
"""Refusals remembered, so that each is written down once."""
MAX_INPUTS: Final = 64
MAX_LABELS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptionParts:
    """What a reception needs. `inspector` is None where versions are read without inspection.

    `now` is in UTC seconds.
    """

    store: Store
    governance: GovernanceStore
    inspector: Inspector | None
    models: ModelStore
    registry: Registry
    data_plane: DataPlane
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Examined:
    """A version that may be registered; `inspection` is None where none is made."""

    artifact: Artifact
    inspection: Inspection | None

    @property
    def manifest(self) -> Manifest:
        """What is known of it for ever."""
        return self.artifact.manifest

    def numbered(self, number: int) -> "Examined":
        """The same under another number."""
        inspection = self.inspection
        return Examined(
            replace(self.artifact, manifest=replace(self.manifest, number=number)),
            None if inspection is None else replace(inspection, number=number),
        )


class Reception:
    """Safe to use from several tasks at once."""

    __slots__ = ("_parts", "_told")

    def __init__(self, parts: ReceptionParts) -> None:
        """Nobody came yet."""
        self._parts = parts
        self._told: OrderedDict[str, None] = OrderedDict()

    async def examine(self, artifact: Artifact, request: Request) -> Examined:
        """Inspect a copy that is to be registered.

        Raises:
            VersionRefused: it failed a check that forbids it; that is written down.
            InvalidRequest: its golden requests cannot be read.
            NotReady: no inspection can be made now. StoreUnavailable: the store is away.
        """
        inspection = await self.inspect(artifact)
        if inspection is None:
            return Examined(artifact, None)
        refusal = refusal_of(inspection)
        if refusal is not None:
            await self._note(inspection, request)
            raise refusal
        manifest = artifact.manifest
        if inspection.signature is not None:
            manifest = replace(manifest, signature=inspection.signature)
        return Examined(replace(artifact, manifest=manifest), inspection)

    async def inspect(self, artifact: Artifact) -> Inspection | None:
        """The report on a copy; None where versions are not inspected.

        Raises:
            InvalidRequest: its golden requests cannot be read.
            NotReady: no inspection can be made now.
        """
        golden = await self._golden(artifact)
        if self._parts.inspector is None:
            return None
        return await self._parts.inspector.inspect(await self._order(artifact, golden))

    async def enter(self, examined: Examined, request: Request) -> tuple[Manifest, Change]:
        """Register a version with its Review, in one commit; the manifest that stands.

        The first version of a model that is registered becomes its champion.

        Raises:
            Conflict: the number has other bytes, or was retired.
            StoreUnavailable: nothing was registered, or that is not known.
        """
        standing = await self.reserve(examined)
        if examined.inspection is not None:
            await self._parts.governance.put_inspection(examined.inspection)
        review = self._review(examined, request.actor)
        seed = None
        if standing.model not in self._parts.registry.snapshot.models:
            told = await asyncio.to_thread(self._parts.models.seed, standing.model)
            seed = _record(told, standing.number)
        change = await self._parts.registry.register(standing, request, seed=seed, review=review)
        return standing, change

    async def reserve(self, examined: Examined) -> Manifest:
        """Write the manifest, which takes the number for these bytes; the one that stands.

        Raises:
            Conflict: the number has other bytes.
        """
        manifest = examined.manifest
        standing = await self._parts.store.put_manifest(manifest)
        if standing.digest != manifest.digest:
            raise Conflict(other_bytes((manifest.model, manifest.number)))
        return standing

    async def inspect_again(self, artifact: Artifact, request: Request) -> Inspection:
        """Inspect a registered version anew and put the result in its Review.

        Raises:
            InvalidRequest: versions are not inspected here.
            NotFound: it is not registered. NotReady: no inspection can be made now.
        """
        inspection = await self.inspect(artifact)
        if inspection is None:
            message = "Versions are not inspected here; the setting inspection.mode is 'off'."
            raise InvalidRequest(message)
        await self._parts.governance.put_inspection(inspection)
        key = inspection.model, inspection.number
        review = review_of(inspection, request.actor, self._parts.now())

        async def make(base: Snapshot) -> Snapshot:
            return reviewed(base, key, review)

        await self._parts.registry.commit(
            Edit(INSPECT, f"reviews/{key[0]}/{key[1]}", make), request
        )
        return inspection

    def _review(self, examined: Examined, actor: str) -> Review:
        at = self._parts.now()
        if examined.inspection is not None:
            return review_of(examined.inspection, actor, at)
        return Review(digest=examined.manifest.digest, registered_by=actor, registered_at=at)

    async def _note(self, inspection: Inspection, request: Request) -> None:
        """Write a refusal down, unless that was done; the report last, as it says that it was."""
        known = f"{inspection.model}/{inspection.digest}"
        before = await self._parts.governance.inspection(inspection.model, inspection.number)
        told = before is not None and before.digest == inspection.digest
        if known in self._told or (told and before is not None and refusal_of(before) is not None):
            await self._parts.governance.put_inspection(inspection)
            return
        evidence: dict[str, Any] = refusal_evidence(inspection)
        target = f"models/{inspection.model}"
        edit = Edit(REFUSE, target, _unchanged, evidence=evidence, noted=True)
        await self._parts.registry.commit(edit, replace(request, if_match=None))
        await self._parts.governance.put_inspection(inspection)
        self._told[known] = None
        if len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)

    async def _golden(self, artifact: Artifact) -> tuple[GoldenRequest, ...]:
        content = await asyncio.to_thread(
            self._parts.models.read, artifact, GOLDEN_FILE, MAX_GOLDEN_BYTES
        )
        return () if content is None else read_golden(content)

    async def _order(
        self, artifact: Artifact, golden: tuple[GoldenRequest, ...]
    ) -> InspectionOrder:
        manifest = artifact.manifest
        record = self._parts.registry.snapshot.models.get(manifest.model)
        champion, signature = await self._champion(manifest, record)
        return InspectionOrder(
            model=manifest.model,
            number=manifest.number,
            digest=manifest.digest,
            folder=str(PurePath(artifact.path).parent),
            files=manifest.files,
            golden=golden,
            champion=champion,
            champion_signature=signature,
            inputs=await self._inputs(manifest.model),
            allow_nonfinite=record is not None and record.allow_nonfinite,
        )

    async def _champion(
        self, manifest: Manifest, record: ModelRecord | None
    ) -> tuple[str | None, Signature | None]:
        """The folder of the version that serves and its signature, as far as they are at hand."""
        number = None if record is None else record.aliases.get(CHAMPION)
        if number is None or number == manifest.number:
            return None, None
        try:
            serving = await self._parts.registry.manifest(manifest.model, number)
        except GatewayError as error:
            log.warning("'%s' is inspected without its champion. %s", manifest.model, error)
            return None, None
        copy = await asyncio.to_thread(self._parts.models.cached, serving)
        folder = None if copy is None else str(PurePath(copy.path).parent)
        return folder, serving.signature

    async def _inputs(self, model: str) -> tuple[dict[str, Any], ...]:
        """Recent requests of the first endpoint of a model that keeps some."""
        for name in _keeping(self._parts.registry.snapshot, model):
            try:
                await self._parts.data_plane.refresh(name)
                kept = self._parts.data_plane.recent_inputs(name)
            except (GatewayError, OSError) as error:
                log.warning("Recent inputs of '%s' are not at hand. %s", name, words_of(error))
                continue
            requests = [one["request"] for one in kept if isinstance(one.get("request"), dict)]
            if requests:
                return tuple(requests[-MAX_INPUTS:])
        return ()


async def _unchanged(base: Snapshot) -> Snapshot:
    return base


def _keeping(snapshot: Snapshot, model: str) -> list[str]:
    """Endpoints of a model that keep recent inputs, that of its own name first."""
    names = [
        name
        for name in snapshot.endpoints
        if (document := endpoint_record(snapshot, name).document).model == model
        and document.recording.reservoir > 0
    ]
    return sorted(names, key=lambda name: (name != model, name))


def _record(told: Mapping[str, Any], champion: int) -> ModelRecord:
    """What `model.toml` seeds; unknown keys are for others, wrong ones are left out."""
    labels = told.get("labels")
    proper = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return ModelRecord(
        versions={},
        aliases={CHAMPION: champion},
        allow_nonfinite=told.get("allow_nonfinite") is True,
        labels=tuple((labels or [])[:MAX_LABELS]) if proper else (),
    )
