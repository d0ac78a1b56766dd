"""The steward: the one loop that judges running experiments and takes their steps.

Only the leader ticks, which spares work; that a step is taken once is due to compare-and-set: it
is committed only if the record is still the one that was judged. A steward that is killed anywhere
leaves either the record before or the record after, and the next tick goes on from there. While
the store is away nothing is judged and nothing moves.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import replace

from gateway.control.experiments import Experiments, Judgement
from gateway.control.gatekeeping import EvidenceOf
from gateway.control.registry import Registry
from gateway.control.status import Standing
from gateway.core.deciding import Circumstances, Decide
from gateway.core.errors import Conflict, GatewayError, NotFound, StoreUnavailable
from gateway.core.experimenting import champion_of
from gateway.core.experiments import LIVE, ExperimentRecord
from gateway.core.ledger import SCHEMA, Basis, basis_document
from gateway.core.principals import STEWARD
from gateway.core.readings import Decision
from gateway.core.reporting import Point, point_of
from gateway.core.snapshot import Snapshot, document_digest
from gateway.core.stepping import next_record, step
from gateway.core.tallies import NO_EVIDENCE, Evidence

log: Final = logging.getLogger(__name__)

TICK_S: Final = 1.0
POINT_S: Final = 5.0
"""At most so often a point of an experiment's history is kept."""
ALARM: Final = "experiments"

KeepPoints = Callable[[Mapping[str, bytes]], Awaitable[None]]
"""Adds an encoded point to the history of each of these ids; raises StoreUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StewardParts:
    """What the steward works with. `now` is in UTC seconds.

    `decide` is the fast way, for every look; `decide_exactly` decides the same and tells every
    e-value as it is, for what is committed.
    """

    registry: Registry
    experiments: Experiments
    standing: Standing
    evidence_of: EvidenceOf
    keep_points: KeepPoints
    decide: Decide
    decide_exactly: Decide
    now: Callable[[], float]
    circumstances: Circumstances


class Steward:
    """Requires: `run` for ever, in one task."""

    __slots__ = ("_faults", "_parts", "_points")

    def __init__(self, parts: StewardParts) -> None:
        """Nothing was judged yet."""
        self._parts = parts
        self._faults: dict[str, str] = {}
        self._points: dict[str, Point] = {}

    async def run(self) -> None:
        """Tick every second, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self.tick()
            await asyncio.sleep(max(TICK_S - (loop.time() - began), TICK_S / 10))

    async def tick(self) -> int:
        """Judge every live experiment once; how many steps were committed."""
        parts = self._parts
        if not parts.standing.leads:
            return 0
        snapshot = parts.registry.snapshot
        live = {
            name: record for name, record in snapshot.experiments.items() if record.state in LIVE
        }
        if not live:
            self._settle(live)
            return 0
        try:
            found = await parts.evidence_of([record.id for record in live.values()])
        except StoreUnavailable as error:
            log.debug("Experiments are frozen. %s", error)
            return 0
        steps = 0
        points: dict[str, bytes] = {}
        for name, record in live.items():
            evidence, now = found.get(record.id, NO_EVIDENCE), parts.now()
            decision = self._judged(name, record, evidence, now, parts.decide)
            if decision is None:
                continue
            steps += await self._take(snapshot, name, evidence, decision, now)
            if self._is_time(record, now):
                self._note(points, record, point_of(record, evidence, decision, now))
            # Others get their turn: a hundred experiments take a while.
            await asyncio.sleep(0)
        self._settle(live)
        await self._keep(points)
        return steps

    def _judged(
        self, name: str, record: ExperimentRecord, evidence: Evidence, now: float, decide: Decide
    ) -> Decision | None:
        """A decision; an experiment that cannot be judged leaves the others alone."""
        try:
            decision = decide(record, evidence, now)
        except Exception:  # whatever is wrong with it, the others go on
            if name not in self._faults:
                log.exception("Experiment '%s' cannot be judged.", name)
            self._faults[name] = (
                f"Experiment '{name}' cannot be judged; its traffic stays as it is."
            )
            return None
        self._faults.pop(name, None)
        return decision

    async def _take(
        self, snapshot: Snapshot, name: str, evidence: Evidence, decision: Decision, now: float
    ) -> int:
        """Commit a step if there is one: 1 if it was committed."""
        record = snapshot.experiments[name]
        champion = champion_of(snapshot, record)[1]
        number = snapshot.revision + 1
        try:
            closed = await self._closed(snapshot, name, decision, champion, now)
        except StoreUnavailable as error:
            log.debug("What the gates ask of experiment '%s' cannot be read. %s", name, error)
            return 0
        after = next_record(
            record, decision, at=now, number=number, champion=champion, closed=closed
        )
        if after is record:
            return 0
        # What people would like to know besides must not stand in the way of a rollback.
        exact = self._judged(name, record, evidence, now, self._parts.decide_exactly) or decision
        basis = Basis(
            schema=SCHEMA,
            record=record,
            evidence=evidence,
            now=now,
            champion=champion,
            decision=exact,
            made_on=self._parts.circumstances,
            closed=closed,
        )
        judged = Judgement(
            name=name,
            etag=document_digest(record),
            decision=exact,
            at=now,
            champion=champion,
            basis=basis_document(basis),
            closed=closed,
        )
        try:
            change = await self._parts.experiments.step(judged)
        except (Conflict, NotFound, StoreUnavailable) as error:
            log.info("A step of experiment '%s' is left to the next look. %s", name, error)
            return 0
        except GatewayError as error:
            self._faults[name] = f"A step of experiment '{name}' is refused. {error}"
            return 0
        if change.entry is None:
            return 0
        log.info("Experiment '%s' is %s: %s", name, after.state, change.entry.reason)
        return 1

    async def _closed(
        self, snapshot: Snapshot, name: str, decision: Decision, champion: int | None, now: float
    ) -> tuple[str, ...]:
        """What gates miss of the version that a decision promotes, a sentence each.

        Raises:
            StoreUnavailable: what they ask for cannot be read.
        """
        if decision.winner is None or not snapshot.gates:
            return ()
        try:
            changed = step(snapshot, name, decision, at=now, champion=champion)
        except GatewayError:  # the commit will say why
            return ()
        look = await self._parts.registry.gatekeeper.look(snapshot, changed, STEWARD)
        closed = tuple(dict.fromkeys(one.sentence for one in look.missing))
        if closed:
            self._faults[name] = (
                f"Experiment '{name}' has a winner that a gate keeps back. {' '.join(closed)}"
            )
        return closed

    def _is_time(self, record: ExperimentRecord, now: float) -> bool:
        """Whether the last point is old enough for another."""
        before = self._points.get(record.id)
        return before is None or not 0 <= now - before.at < POINT_S

    def _note(self, points: dict[str, bytes], record: ExperimentRecord, point: Point) -> None:
        """Keep a point if numbers moved since the last one."""
        before = self._points.get(record.id)
        if before is not None and replace(point, at=before.at) == before:
            return
        self._points[record.id] = point
        points[record.id] = msgspec.json.encode(point)

    async def _keep(self, points: Mapping[str, bytes]) -> None:
        if not points:
            return
        try:
            await self._parts.keep_points(points)
        except StoreUnavailable as error:
            log.debug("Points of the history are lost. %s", error)

    def _settle(self, live: Mapping[str, ExperimentRecord]) -> None:
        """Forget what has ended, and say what is wrong."""
        ids = {record.id for record in live.values()}
        self._points = {one: point for one, point in self._points.items() if one in ids}
        self._faults = {name: fault for name, fault in self._faults.items() if name in live}
        alarms = self._parts.standing.alarms
        if self._faults:
            alarms[ALARM] = " ".join(self._faults[name] for name in sorted(self._faults))
        else:
            alarms.pop(ALARM, None)
