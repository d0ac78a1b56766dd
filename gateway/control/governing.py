"""Governance: what stands beside serving and experiments, put together for the control plane."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.control.cards import Cards
from gateway.control.gates import Gates
from gateway.control.granting import Granter
from gateway.control.registry import Registry
from gateway.control.reports import Reports
from gateway.control.retention import Retainer, RetentionParts
from gateway.control.status import Standing
from gateway.control.telling import Telling, TellingParts, TellingPlace
from gateway.control.wishes import Wishes
from gateway.governance_ports import GovernanceStore, VersionFiles
from gateway.ports import Store
from gateway.tasks import Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernanceParts:
    """What governance needs of the control plane. `now` is in UTC seconds."""

    registry: Registry
    store: Store
    governance: GovernanceStore
    files: VersionFiles
    reports: Reports
    telling: TellingParts
    place: TellingPlace
    standing: Standing
    now: Callable[[], float]


class Governance:
    """Cards, gates, wishes, retention and telling.

    Requires: `start` with the control plane's tasks, `close` at the end.
    """

    __slots__ = ("_granter", "_parts", "cards", "gates", "retainer", "telling", "wishes")

    def __init__(self, parts: GovernanceParts) -> None:
        """Put the parts together; nothing runs yet."""
        self._parts = parts
        self.cards = Cards(
            registry=parts.registry,
            store=parts.store,
            governance=parts.governance,
            reports=parts.reports,
            now=parts.now,
        )
        self.telling = Telling(parts.telling, parts.place)
        self.gates = Gates(parts.registry, parts.now)
        self.wishes = Wishes(parts.registry, parts.now)
        self._granter = Granter(parts.registry, self.wishes, parts.standing)
        self.retainer = Retainer(
            RetentionParts(
                registry=parts.registry,
                store=parts.store,
                reports=parts.governance,
                files=parts.files,
                standing=parts.standing,
                now=parts.now,
            )
        )

    def start(self, tasks: Tasks) -> None:
        """Begin the loops."""
        tasks.start("granter", self._granter.run)
        tasks.start("retention", self.retainer.run)
        self.telling.start(tasks)

    async def close(self) -> None:
        """Let go of the stores, and of those who listen."""
        await self.telling.close()
        await self._parts.governance.close()
