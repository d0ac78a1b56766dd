"""Model cards: what the stores hold of a version, read when somebody asks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.control.registry import Registry
from gateway.control.reports import Reports
from gateway.core.cards import Biography, Card, Facts, card_of, experiments_on
from gateway.governance_ports import GovernanceStore
from gateway.ports import Store

PAGE: Final = 200
"""Entries of the audit log that are read at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """Where cards are read from. `now` is in UTC seconds."""

    registry: Registry
    store: Store
    governance: GovernanceStore
    reports: Reports
    now: Callable[[], float]

    async def card(self, model: str, number: int) -> Card:
        """All that is known of a version.

        Reads the whole audit log, page by page.

        Raises:
            NotFound: it is not registered.
            StoreUnavailable: the store is away.
        """
        snapshot = self.registry.snapshot
        manifest = await self.registry.manifest(model, number)
        tried = experiments_on(snapshot, model, number)
        lived = await self._lived(Biography(model, number, tried))
        facts = Facts(
            manifest=manifest,
            inspection=await self.governance.inspection(model, number),
            reports={name: await self.reports.report(name) for name in tried},
            history=tuple(lived.decided),
            history_since=lived.since,
        )
        return card_of(snapshot, facts, self.now())

    async def _lived(self, biography: Biography) -> Biography:
        after = 0
        while True:
            page = await self.store.audit(after, PAGE)
            for entry in page:
                biography.read(entry)
            if len(page) < PAGE:
                return biography
            after = page[-1].revision
