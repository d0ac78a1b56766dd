"""Reports on experiments: their evidence read when somebody asks, whoever leads."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from gateway.control.gatekeeping import EvidenceOf
from gateway.control.registry import Registry
from gateway.core.deciding import Decide
from gateway.core.errors import NotFound, StoreUnavailable
from gateway.core.experimenting import champion_of, experiment_of, with_record
from gateway.core.experiments import LIVE, HoldReason, State
from gateway.core.principals import STEWARD
from gateway.core.reporting import Point, Report, Surroundings, remarks_on, report_of
from gateway.core.snapshot import Snapshot, document_digest
from gateway.core.tallies import NO_EVIDENCE
from gateway.core.transitions import promote

Results = Callable[[], Awaitable[Mapping[str, Mapping[str, int]]]]
"""What became of sightings and outcomes, by experiment id; raises StoreUnavailable."""
PointsOf = Callable[[str, int], Awaitable[Sequence[bytes]]]
"""The newest points of an experiment's history by id, oldest first; raises StoreUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportParts:
    """What reports are made from. `now` is in UTC seconds."""

    registry: Registry
    evidence_of: EvidenceOf
    results: Results
    points_of: PointsOf
    decide: Decide
    now: Callable[[], float]


class Reports:
    """What the admin API and the command line show of experiments."""

    __slots__ = ("_parts",)

    def __init__(self, parts: ReportParts) -> None:
        """Read through the given calls."""
        self._parts = parts

    async def report(self, name: str) -> Report:
        """Everything that is known of an experiment.

        Raises:
            NotFound: there is none.
            StoreUnavailable: the store is away, and the evidence with it.
        """
        snapshot = self._parts.registry.snapshot
        record = experiment_of(snapshot, name)
        evidence, results = NO_EVIDENCE, {}
        if record.state is not State.DRAFT:
            found = await self._parts.evidence_of([record.id])
            evidence = found.get(record.id, NO_EVIDENCE)
            results = dict((await self._parts.results()).get(record.id, {}))
        around = Surroundings(
            revision=snapshot.revision,
            etag=document_digest(record),
            now=self._parts.now(),
            champion=_champion(snapshot, name),
            results=results,
        )
        # Every phase and segment is read on its own, which takes a while where there are many.
        report = await asyncio.to_thread(
            report_of, name, record, evidence, self._parts.decide, around
        )
        kept = await self._kept_back(snapshot, name)
        return replace(report, remarks=(*report.remarks, *kept))

    async def history(self, name: str, limit: int) -> list[Point]:
        """The newest points of an experiment's history, oldest first.

        Raises:
            NotFound: there is no such experiment.
            StoreUnavailable: the store is away.
        """
        record = experiment_of(self._parts.registry.snapshot, name)
        points = []
        for document in await self._parts.points_of(record.id, limit):
            try:
                points.append(msgspec.json.decode(document, type=Point))
            except msgspec.DecodeError:  # of another version
                continue
        return points

    async def remarks(self, name: str) -> list[str]:
        """What a reader should know of an experiment besides its numbers.

        Raises:
            NotFound: there is none.
        """
        snapshot = self._parts.registry.snapshot
        told = remarks_on(experiment_of(snapshot, name), _champion(snapshot, name))
        return told + await self._kept_back(snapshot, name)

    async def _kept_back(self, snapshot: Snapshot, name: str) -> list[str]:
        """What gates miss of a winner that they keep back, a sentence each."""
        record = snapshot.experiments[name]
        if (record.state, record.reason) != (State.HELD, HoldReason.GATE):
            return []
        model, champion = champion_of(snapshot, record)
        weights = {} if record.phase is None else record.phase.weights
        told: dict[str, None] = {}
        for variant, number in record.versions.items():
            if variant == record.document.control or not weights.get(variant):
                continue
            if number == champion:
                continue
            moved = promote(snapshot, model, number, record.document.alias)
            changed = with_record(moved, name, replace(record, state=State.PROMOTED))
            try:
                look = await self._parts.registry.gatekeeper.look(snapshot, changed, STEWARD)
            except StoreUnavailable:
                return ["A gate keeps the winner back; what it misses cannot be read now."]
            told.update(dict.fromkeys(f"Kept back: {one.sentence}" for one in look.missing))
        return list(told)


def _champion(snapshot: Snapshot, name: str) -> int | None:
    """What the experiment's alias names; None, too, where its endpoint has gone since it ended."""
    record = snapshot.experiments[name]
    if record.state not in LIVE:
        return None
    try:
        return champion_of(snapshot, record)[1]
    except NotFound:
        return None
