"""The control plane of one process: its parts put together, started and stopped in order."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gateway.control.auditing import Auditing, AuditingParts, AuditPlace
from gateway.control.catalog import Catalog
from gateway.control.denials import Denials
from gateway.control.experiments import Experiments
from gateway.control.export import Exporter
from gateway.control.folder import Folder, FolderParts
from gateway.control.following import FollowSources
from gateway.control.governing import Governance, GovernanceParts
from gateway.control.intake import Intake
from gateway.control.keyring import Keyring, Timing
from gateway.control.principals import Principals
from gateway.control.promotions import Promotions
from gateway.control.reception import Reception, ReceptionParts
from gateway.control.registering import Registrar
from gateway.control.registry import Registry, Request
from gateway.control.reports import ReportParts, Reports
from gateway.control.repository import ServedRepository
from gateway.control.restoring import Restored, Restoring, RestoringParts
from gateway.control.shipping import Shipper
from gateway.control.steward import Steward, StewardParts
from gateway.control.telling import TellingParts, TellingPlace
from gateway.control.versions import Versions
from gateway.control.watcher import Watcher, WatcherParts, settling_s
from gateway.control.whatif import WhatIfs
from gateway.core.deciding import Circumstances
from gateway.core.judging import decide
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import Snapshot
from gateway.core.studies import Studies, studies_of
from gateway.evidence_ports import EvidenceStore, FoldStore, HistoryStore, Journal
from gateway.governance_ports import GovernanceStore, Inspector, Uploads, VersionFiles
from gateway.ports import DataPlane, Disk, ModelStore, Store
from gateway.serving.cells import Cells
from gateway.tasks import Tasks

FIRST_SCANS: Final = 5
"""How often a first start looks for what a busy store did not take, before it serves the rest."""
PROMOTIONS_S: Final = 0.5
"""How often the promotions stream is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlParts:
    """What the control plane needs of its process.

    `exporter` is None where no collector is configured. `now` is in UTC seconds. `cells` are those
    of this process; `journal_bytes` bounds the journal. `max_age_s` is how old a prediction may be
    when its outcome comes. `inspector` is None where versions are read without inspection.
    `follow` is None where no other registry is followed.
    """

    store: Store
    audit: AuditPlace
    disk: Disk
    models: ModelStore
    files: VersionFiles
    uploads: Uploads
    governance: GovernanceStore
    telling: TellingParts
    inspector: Inspector | None
    data_plane: DataPlane
    exporter: Exporter | None
    evidence: EvidenceStore
    folds: FoldStore
    history: HistoryStore
    circumstances: Circumstances
    journal: Journal
    journal_bytes: int
    cells: Cells
    now: Callable[[], float]
    entropy: Callable[[int], bytes]
    process: str
    poll_s: float
    scan_s: float
    max_age_s: float
    follow: FollowSources | None = None


class ControlPlane:
    """Requires: `start` before anything is asked of it; `stop` ends it."""

    def __init__(self, parts: ControlParts) -> None:
        """Put the parts together; nothing runs yet."""
        self._parts = parts
        self._tasks = Tasks()
        self.store = parts.store
        self.registry = Registry(
            parts.store, now=parts.now, entropy=parts.entropy, evidence_of=parts.folds.evidence
        )
        self._reception = self._received(parts)
        self.catalog = Catalog(parts.store, parts.models, self.registry, self._reception)
        self.registrar = Registrar(self.registry, parts.models, self._reception, parts.uploads)
        self.keyring = Keyring(parts.store, parts.disk, parts.data_plane, parts.entropy)
        self.repository = ServedRepository(self.registry, self.catalog, parts.data_plane)
        self.watcher = Watcher(
            WatcherParts(
                store=parts.store,
                disk=parts.disk,
                data_plane=parts.data_plane,
                registry=self.registry,
                catalog=self.catalog,
                keyring=self.keyring,
                now=parts.now,
                entropy=parts.entropy,
            ),
            process=parts.process,
            poll_s=parts.poll_s,
        )
        self.intake = Intake(parts.journal, parts.cells, parts.now, parts.journal_bytes)
        self._shipper = Shipper(self.intake, parts.journal, parts.evidence, parts.cells)
        self._studied: tuple[Snapshot, Studies] | None = None
        self.folds = parts.folds
        self._folder = Folder(
            FolderParts(
                store=parts.folds,
                studies=self._studies,
                newest=self._newest,
                leads=lambda: self.watcher.standing.leads,
                now=parts.now,
                entropy=parts.entropy,
                cells=parts.cells,
            )
        )
        self.experiments = Experiments(self.registry, now=parts.now, entropy=parts.entropy)
        self.principals = Principals(self.registry, now=parts.now, entropy=parts.entropy)
        self.reports = self._reported(parts)
        self.whatifs = WhatIfs(self.registry, parts.folds.units)
        self.versions = Versions(self.registry, parts.governance)
        self.denials = Denials(self.registry, now=parts.now)
        self.auditing = self._audited(parts)
        self._restoring = self._restored(parts)
        self._steward = self._stewarded(parts)
        self.governance = self._governed(parts)
        self._promotions = Promotions(
            parts.store,
            self.registry,
            tokens=self.keyring.tokens,
            standing=self.watcher.standing,
            now=parts.now,
            denied=self.denials.refused,
        )

    async def start(self) -> None:
        """Serve what was served last, then follow the store."""
        await self.watcher.start()
        self._tasks.start("verifier", self.catalog.copies.verify)
        self._tasks.start("fetcher", self.catalog.copies.fetch)
        self._tasks.start("completer", self.watcher.complete)
        self._tasks.start("follower", self._follow)
        self._tasks.start("intake", self.intake.run)
        self._tasks.start("shipper", self._shipper.run)
        self._tasks.start("folder", self._folder.run)
        self._tasks.start("steward", self._steward.run)
        self.governance.start(self._tasks)
        self._tasks.start("denials", self.denials.run)
        self._tasks.start("promotions", lambda: self._promotions.run(PROMOTIONS_S))
        if self._parts.exporter is not None:
            self._tasks.start("export", self._parts.exporter.run)

    async def _follow(self) -> None:
        """Follow the model store and the store.

        On the very first start, with an empty store, all that lies in the model store is registered
        before any of it is served, so that the process is ready for all of it at once.
        """
        await self.watcher.tick()
        if self.registry.snapshot.revision == 0:
            for _ in range(FIRST_SCANS):
                await self.catalog.scan()
                if self.catalog.is_complete:
                    break
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watcher.run())
            group.create_task(self.catalog.run(self._parts.scan_s))

    async def stop(self, flush_s: float) -> None:
        """Stop following, send what telemetry is left for at most `flush_s`, hang up."""
        await self._tasks.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.denials.finish(flush_s))
            group.create_task(self._shipper.finish(flush_s))
            if self._parts.exporter is not None:
                group.create_task(self._parts.exporter.close(flush_s))
        await self.intake.close()
        await self._parts.evidence.close()
        await self._parts.folds.close()
        await self._parts.history.close()
        await self.governance.close()
        if self._parts.inspector is not None:
            await self._parts.inspector.close()
        await self._parts.audit.log.close()
        await self._parts.store.close()

    def _received(self, parts: ControlParts) -> Reception:
        return Reception(
            ReceptionParts(
                store=parts.store,
                governance=parts.governance,
                inspector=parts.inspector,
                models=parts.models,
                registry=self.registry,
                data_plane=parts.data_plane,
                now=parts.now,
            )
        )

    def _reported(self, parts: ControlParts) -> Reports:
        return Reports(
            ReportParts(
                registry=self.registry,
                evidence_of=parts.folds.evidence,
                results=parts.folds.results,
                points_of=parts.history.points_of,
                decide=partial(decide, display=True),
                now=parts.now,
            )
        )

    def _governed(self, parts: ControlParts) -> Governance:
        return Governance(
            GovernanceParts(
                registry=self.registry,
                registrar=self.registrar,
                store=parts.store,
                governance=parts.governance,
                files=parts.files,
                reports=self.reports,
                telling=parts.telling,
                place=TellingPlace(
                    registry=self.registry,
                    store=parts.store,
                    standing=self.watcher.standing,
                    cells=parts.cells,
                    now=parts.now,
                    entropy=parts.entropy,
                ),
                standing=self.watcher.standing,
                follow=parts.follow,
                served=lambda: self.watcher.snapshot,
                now=parts.now,
            )
        )

    def _stewarded(self, parts: ControlParts) -> Steward:
        return Steward(
            StewardParts(
                registry=self.registry,
                experiments=self.experiments,
                standing=self.watcher.standing,
                evidence_of=parts.folds.evidence,
                keep_points=parts.history.keep_points,
                decide=decide,
                decide_exactly=partial(decide, display=True),
                now=parts.now,
                circumstances=parts.circumstances,
            )
        )

    def _audited(self, parts: ControlParts) -> Auditing:
        return Auditing(
            AuditingParts(
                place=parts.audit,
                registry=self.registry,
                key=parts.disk.audit_key,
                now=parts.now,
            )
        )

    def _restored(self, parts: ControlParts) -> Restoring:
        return Restoring(
            RestoringParts(
                log=parts.audit.log,
                store=parts.store,
                registry=self.registry,
                catalog=self.catalog,
                keyring=self.keyring,
                standing=self.watcher.standing,
                served=lambda: self.watcher.snapshot,
                now=parts.now,
            )
        )

    def _studies(self) -> Studies:
        """What folding must know of the experiments of the newest Snapshot known here."""
        return self._studies_of(self.registry.snapshot)

    async def _newest(self) -> Studies:
        return self._studies_of(await self.registry.fresh())

    def _studies_of(self, snapshot: Snapshot) -> Studies:
        if self._studied is None or self._studied[0] is not snapshot:
            self._studied = (snapshot, studies_of(snapshot.revision, snapshot.experiments))
        return self._studied[1]

    async def status(self) -> dict[str, Any]:
        """Who serves what, what is wrong, and who has heard what."""
        status = await self.watcher.status()
        reachable = self.watcher.standing.reachable
        told = await self.governance.telling.webhooks.standing() if reachable else None
        return {**status, "announcements": told}

    async def restore(self, request: Request, dry_run: bool) -> Restored:  # noqa: FBT001 - a port
        """Put back into a store that lost its data what this host serves.

        Raises:
            Conflict: the store is not behind.
            StoreUnavailable: the store is away.
        """
        return await self._restoring.restore(request, dry_run=dry_run)

    async def rotate_keys(self, actor: str) -> SigningKeys:
        """Let a new key sign on every host; takes the time that hosts need to hear of it.

        Raises:
            Conflict: another rotation was faster.
            StoreUnavailable: the store is away.
            InvalidRequest: the shared keys cannot be read.
        """
        timing = Timing(
            now=self._parts.now,
            settle_s=settling_s(self._parts.poll_s),
            max_age_s=self._parts.max_age_s,
        )
        return await self.keyring.rotate(actor, timing)
