"""Arrivals: versions of a registry elsewhere, on their way into this one.

A version keeps its number. Where that is taken by other bytes it is refused: nothing here ever
changes under a number. Each is fetched once, whatever came of it, unless it failed for now only.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.control.copies import is_passing
from gateway.control.registry import Edit, Registry, Request
from gateway.core.errors import Conflict, GatewayError, InvalidRequest
from gateway.core.following import FollowedVersion, lineage_of, origin_of
from gateway.core.models import Key
from gateway.core.snapshot import ModelRecord, Snapshot
from gateway.following_ports import FollowedRegistry, Landing

log: Final = logging.getLogger(__name__)

ACTOR: Final = "mlflow"
MODEL_FILE: Final = "model.onnx"


class Arrivals:
    """One call of `take` at a time."""

    __slots__ = ("_landing", "_registry", "_settled", "_there")

    def __init__(self, there: FollowedRegistry, landing: Landing, registry: Registry) -> None:
        """Nothing was fetched yet."""
        self._there = there
        self._landing = landing
        self._registry = registry
        # Which version of there was dealt with under each number, and what speaks against it.
        self._settled: dict[Key, tuple[object, GatewayError | None]] = {}

    async def take(self, here: str, version: FollowedVersion) -> bool:
        """Have a version here; whether it was fetched for that.

        Args:
            here: what its model is called here.
            version: as it is there; ready.

        Raises:
            Conflict: its number is taken by other bytes, or it was refused before.
            InvalidRequest: its files cannot be taken.
            UpstreamFailed: they could not be had now. NotReady: they cannot be taken now.
            StoreUnavailable: it is not known what is registered.
        """
        key, mark = (here, version.number), (origin_of(version), version.source)
        record = self._registry.snapshot.models.get(here)
        if record is not None and version.number in record.retired:
            return False
        settled = self._settled.get(key)
        if settled is not None and settled[0] == mark:
            if settled[1] is not None:
                raise settled[1]
            return False
        fetched = not await self._is_ours(record, key, version)
        if fetched:
            try:
                await self._fetch(key, version)
            except (InvalidRequest, Conflict) as error:
                if not is_passing(error):
                    self._settled[key] = (mark, error)
                raise
        self._settled[key] = (mark, None)
        return fetched

    def is_here(self, here: str, number: int) -> bool:
        """Whether what has this number here was found to be what has it there."""
        settled = self._settled.get((here, number))
        return settled is not None and settled[1] is None

    async def refuse(self, here: str, version: FollowedVersion, reason: str) -> None:
        """Say in the log and the audit log why a version is not taken.

        Raises:
            StoreUnavailable: the audit log could not be written.
        """
        log.warning("Version %d of '%s' is not taken. %s", version.number, here, reason)
        evidence = {"number": version.number, "reason": reason, "mlflow": origin_of(version)}
        edit = Edit("model.refuse", f"models/{here}", _as_it_is, evidence, noted=True)
        await self._registry.commit(edit, Request(actor=ACTOR, reason="not taken from MLflow"))

    async def _is_ours(
        self, record: ModelRecord | None, key: Key, version: FollowedVersion
    ) -> bool:
        """Whether the registered version came from this very one."""
        if record is None or key[1] not in record.versions:
            return False
        manifest = await self._registry.manifest(*key)
        told = manifest.lineage.get("mlflow")
        origin = origin_of(version)
        return isinstance(told, Mapping) and {name: told.get(name) for name in origin} == origin

    async def _fetch(self, key: Key, version: FollowedVersion) -> None:
        """Fetch a version with its run's lineage and hand it in."""
        run = await self._there.run(version.run_id) if version.run_id else None
        staged = await self._landing.begin(key[0])
        try:
            digests = await self._there.fetch(version, run, Path(staged.folder))
            lineage = lineage_of(version, run, digests[MODEL_FILE])
            await self._landing.enter(staged, key, lineage, "a new version in MLflow")
        finally:
            await self._landing.discard(staged)
        log.info("Version %d of '%s' came from MLflow.", key[1], key[0])


async def _as_it_is(base: Snapshot) -> Snapshot:
    return base
