"""Governance: what stands beside serving and experiments, put together for the control plane."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.control.cards import Cards
from gateway.control.following import FollowSources, follower_of
from gateway.control.gates import Gates
from gateway.control.granting import Granter
from gateway.control.mlflow import Follower
from gateway.control.registering import Registrar
from gateway.control.registry import Registry
from gateway.control.reports import Reports
from gateway.control.retention import Retainer, RetentionParts
from gateway.control.status import Standing
from gateway.control.telling import Telling, TellingParts, TellingPlace
from gateway.control.wishes import Wishes
from gateway.core.snapshot import Snapshot
from gateway.governance_ports import GovernanceStore, VersionFiles
from gateway.ports import Store
from gateway.tasks import Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernanceParts:
    """What governance needs of the control plane. `now` is in UTC seconds.

    `served` is the Snapshot that this host serves.
    `follow` is None where no other registry is followed.
    """

    registry: Registry
    registrar: Registrar
    store: Store
    governance: GovernanceStore
    files: VersionFiles
    reports: Reports
    telling: TellingParts
    place: TellingPlace
    standing: Standing
    follow: FollowSources | None
    served: Callable[[], Snapshot]
    now: Callable[[], float]


class Governance:
    """Cards, gates, wishes, retention, telling and following.

    Requires: `start` with the control plane's tasks, `close` at the end.
    """

    __slots__ = (
        "_granter",
        "_parts",
        "cards",
        "follower",
        "gates",
        "retainer",
        "telling",
        "wishes",
    )

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
                served=parts.served,
                now=parts.now,
            )
        )
        self.follower = _follower_of(parts, self.wishes)

    def start(self, tasks: Tasks) -> None:
        """Begin the loops."""
        tasks.start("granter", self._granter.run)
        tasks.start("retention", self.retainer.run)
        self.telling.start(tasks)
        if self.follower is not None:
            tasks.start("mlflow", self.follower.run)

    async def close(self) -> None:
        """Let go of the stores, and of those who listen."""
        await self.telling.close()
        await self._parts.governance.close()
        if self._parts.follow is not None:
            await self._parts.follow.there.close()
            await self._parts.follow.memory.close()


def _follower_of(parts: GovernanceParts, wishes: Wishes) -> Follower | None:
    if parts.follow is None:
        return None
    return follower_of(
        parts.follow,
        parts.registry,
        parts.registrar,
        wishes,
        leads=lambda: parts.standing.leads,
        now=parts.now,
    )
