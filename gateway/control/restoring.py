"""Restoring: a store that lost its data gets back what this host serves, under a new epoch.

Nothing is restored over a store that is not behind, and never by itself: somebody asks, with a
reason, and the first entry of the new epoch says what was lost. Other hosts follow because the
epoch is higher than the one that they serve.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.control.catalog import Catalog
from gateway.control.keyring import Keyring
from gateway.control.registry import Registry, Request
from gateway.control.status import Standing, read_acknowledgements
from gateway.core.audit import AuditEntry, Commit, entry_hash
from gateway.core.chain import RESTORE, LogEnd, Loss, digest_of_documents
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.experiments import LIVE
from gateway.core.models import Key, Manifest
from gateway.core.snapshot import EMPTY, Snapshot, canonical, decode, order_of
from gateway.governance_ports import AuditLog, KeptBase, Reseeding
from gateway.ports import Store

TARGET: Final = "store"


class Restored(Struct, frozen=True):
    """What a restore did, or would do.

    `epoch` and `revision` are new, `from_epoch` and `from_revision` those that this host served.
    `store` says what was found. `lost_revisions` are no longer in the audit log. The manifests of
    `without_manifest` are nowhere on this host. Of `experiments`, which run on, all that units did
    until now is lost, but for what the hosts' journals send again.
    """

    done: bool
    epoch: int
    revision: int
    from_epoch: int
    from_revision: int
    store: str
    lost_revisions: tuple[int, int] | None
    manifests: int
    without_manifest: tuple[str, ...]
    signing_keys: int
    experiments: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoringParts:
    """What restoring works with. `served` is the Snapshot that this host serves."""

    log: AuditLog
    store: Store
    registry: Registry
    catalog: Catalog
    keyring: Keyring
    standing: Standing
    served: Callable[[], Snapshot]
    now: Callable[[], float]


class _Looked(Struct, frozen=True):
    """A look at the store: what it holds, and whether that is behind what is served."""

    document: bytes | None
    log_ends: LogEnd | None
    store: str
    epoch: int


class Restoring:
    """Requires: the watcher has started."""

    __slots__ = ("_parts", "_running")

    def __init__(self, parts: RestoringParts) -> None:
        """Nothing is looked at yet."""
        self._parts = parts
        self._running = asyncio.Lock()

    async def restore(self, request: Request, *, dry_run: bool) -> Restored:
        """Write what this host serves into a store that is behind it.

        Raises:
            InvalidRequest: no reason is given.
            Conflict: the store is not behind, another process serves something newer, or the store
                moved meanwhile.
            StoreUnavailable: the store is away, or whether it was restored is not known.
        """
        if not request.reason.strip():
            message = "Give a reason: a restore is written into the audit log."
            raise InvalidRequest(message)
        async with self._running:
            served = self._parts.served()
            looked = await self._look(served)
            known, lacking = await self._parts.catalog.every_manifest(served)
            seed = self._seed(served, looked, request, tuple(known.values()))
            if not dry_run:
                await self._parts.log.reseed(seed)
                self._parts.registry.learn(seed.commit.snapshot)
        return _told(served, looked, seed, lacking, done=not dry_run)

    async def _look(self, served: Snapshot) -> _Looked:
        """What the store holds.

        Raises:
            Conflict: it is not behind.
        """
        if served.revision == 0:
            message = "This host serves nothing that could be put back."
            raise Conflict(message)
        document, log_ends = await self._parts.log.found()
        stored, told = _stands(document)
        if stored is not None and order_of(stored) >= order_of(served):
            message = (
                f"The store is not behind: it holds revision {stored.revision} of epoch "
                f"{stored.epoch}, and revision {served.revision} of epoch {served.epoch} is served."
            )
            raise Conflict(message)
        epoch = max(served.epoch, 0 if stored is None else stored.epoch)
        for one in read_acknowledgements(await self._parts.store.acknowledgements()):
            if (one.epoch, one.revision) > order_of(served):
                message = f"Process '{one.process}' serves revision {one.revision}; restore there."
                raise Conflict(message)
        return _Looked(document, log_ends, told, epoch)

    def _seed(
        self, served: Snapshot, looked: _Looked, request: Request, manifests: tuple[Manifest, ...]
    ) -> Reseeding:
        """The first commit of the new epoch, and all that goes with it.

        Revisions go on, so that each stands for one Snapshot whatever the epoch. Where the log is
        ahead of what is served, the chain goes on from its end; what it did after is undone.
        """
        last, head = served.revision, served.audit_head
        if looked.log_ends is not None and looked.log_ends.revision > last:
            last, head = looked.log_ends.revision, looked.log_ends.hash
        base = replace(served, revision=last, audit_head=head)
        loss = Loss(
            epoch=served.epoch,
            revision=served.revision,
            audit_head=served.audit_head,
            documents_sha256=digest_of_documents(base),
            process=self._parts.standing.process,
            source=self._parts.standing.source,
            store=looked.store,
            log_ends=looked.log_ends,
        )
        entry = AuditEntry(
            schema=1,
            epoch=looked.epoch + 1,
            revision=last + 1,
            at=self._parts.now(),
            actor=request.actor,
            action=RESTORE,
            target=TARGET,
            reason=request.reason,
            before="",
            after="",
            document=None,
            previous=head,
            evidence=msgspec.json.decode(canonical(loss)),
        )
        snapshot = replace(
            served, epoch=entry.epoch, revision=entry.revision, audit_head=entry_hash(entry)
        )
        return Reseeding(
            commit=Commit(base=EMPTY, snapshot=snapshot, entry=entry),
            found=looked.document,
            log_ends=looked.log_ends,
            base=KeptBase(base),
            manifests=manifests,
            keys=self._parts.keyring.keys,
        )


def _stands(document: bytes | None) -> tuple[Snapshot | None, str]:
    """What a store holds, and how to call it."""
    if document is None:
        return None, "empty"
    try:
        snapshot = decode(document)
    except InvalidRequest:
        return None, "unreadable"
    return snapshot, f"revision {snapshot.revision} of epoch {snapshot.epoch}"


def _told(
    served: Snapshot, looked: _Looked, seed: Reseeding, lacking: list[Key], *, done: bool
) -> Restored:
    kept = 0 if looked.log_ends is None else looked.log_ends.revision
    last = seed.commit.snapshot.revision - 1
    return Restored(
        done=done,
        epoch=seed.commit.snapshot.epoch,
        revision=seed.commit.snapshot.revision,
        from_epoch=served.epoch,
        from_revision=served.revision,
        store=looked.store,
        lost_revisions=(kept + 1, last) if kept < last else None,
        manifests=len(seed.manifests),
        without_manifest=tuple(f"{model}/{number}" for model, number in lacking),
        signing_keys=0 if seed.keys is None else len(seed.keys.keys),
        experiments=tuple(
            name for name, record in sorted(served.experiments.items()) if record.state in LIVE
        ),
    )
