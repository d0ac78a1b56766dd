"""Reports on experiments: their evidence read when somebody asks, whoever leads."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from gateway.control.registry import Registry
from gateway.control.steward import EvidenceOf
from gateway.core.deciding import Decide
from gateway.core.errors import NotFound
from gateway.core.experimenting import champion_of, experiment_of
from gateway.core.experiments import LIVE, State
from gateway.core.reporting import Point, Report, Surroundings, remarks_on, report_of
from gateway.core.snapshot import Snapshot, document_digest
from gateway.core.tallies import NO_EVIDENCE

PointsOf = Callable[[str, int], Awaitable[Sequence[bytes]]]
"""The newest points of an experiment's history by id, oldest first; raises StoreUnavailable."""


class Reports:
    """What the admin API and the command line show of experiments."""

    __slots__ = ("_decide", "_evidence_of", "_now", "_points_of", "_registry")

    def __init__(
        self,
        registry: Registry,
        *,
        evidence_of: EvidenceOf,
        points_of: PointsOf,
        decide: Decide,
        now: Callable[[], float],
    ) -> None:
        """Read through the given calls; `now` is in UTC seconds."""
        self._registry = registry
        self._evidence_of = evidence_of
        self._points_of = points_of
        self._decide = decide
        self._now = now

    async def report(self, name: str) -> Report:
        """Everything that is known of an experiment.

        Raises:
            NotFound: there is none.
            StoreUnavailable: the store is away, and the evidence with it.
        """
        snapshot = self._registry.snapshot
        record = experiment_of(snapshot, name)
        evidence = NO_EVIDENCE
        if record.state is not State.DRAFT:
            found = await self._evidence_of([record.id])
            evidence = found.get(record.id, NO_EVIDENCE)
        around = Surroundings(
            revision=snapshot.revision,
            etag=document_digest(record),
            now=self._now(),
            champion=_champion(snapshot, name),
        )
        # Every phase and segment is read on its own, which takes a while where there are many.
        return await asyncio.to_thread(report_of, name, record, evidence, self._decide, around)

    async def history(self, name: str, limit: int) -> list[Point]:
        """The newest points of an experiment's history, oldest first.

        Raises:
            NotFound: there is no such experiment.
            StoreUnavailable: the store is away.
        """
        record = experiment_of(self._registry.snapshot, name)
        points = []
        for document in await self._points_of(record.id, limit):
            try:
                points.append(msgspec.json.decode(document, type=Point))
            except msgspec.DecodeError:  # of another version
                continue
        return points

    def remarks(self, name: str) -> list[str]:
        """What a reader should know of an experiment besides its numbers.

        Raises:
            NotFound: there is none.
        """
        snapshot = self._registry.snapshot
        return remarks_on(experiment_of(snapshot, name), _champion(snapshot, name))


def _champion(snapshot: Snapshot, name: str) -> int | None:
    """What the experiment's alias names; None, too, where its endpoint has gone since it ended."""
    record = snapshot.experiments[name]
    if record.state not in LIVE:
        return None
    try:
        return champion_of(snapshot, record)[1]
    except NotFound:
        return None
