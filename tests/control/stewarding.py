"""A steward over a store, for tests: with evidence as they want it, and an end when they want it.

Run as a module it is a process that steps once and is killed on the way:
`python -m tests.control.stewarding URL NAMESPACE MOMENT UNITS`.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from gateway.adapters.redis import RedisStore
from gateway.control.experiments import Experiments
from gateway.control.registry import Registry, Request
from gateway.control.status import Standing
from gateway.control.steward import Steward, StewardParts
from gateway.core.audit import AuditEntry, Commit, first_break
from gateway.core.errors import StoreUnavailable
from gateway.core.experiments import Experiment, ExperimentRecord
from gateway.core.ledger import decisions_in
from gateway.core.readings import Decision
from gateway.core.snapshot import ModelRecord, decode
from gateway.core.tallies import Evidence
from gateway.ports import Store
from tests.fakes import CountingEntropy, ManualClock, manifest_of
from tests.rollouts import HERE, document_of, evidence_of, judge_by_units

ASKED = Request(actor="ana")
HELD_OUT = document_of(hold_out=500, hold_out_s=60.0)


class Killed(BaseException):
    """What ends a process at once: nobody's to catch."""


def _raise() -> NoReturn:
    raise Killed


class Fragile:
    """A store whose next commit ends the process, before or after it is written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.at: str | None = None
        self.end: Callable[[], NoReturn] = _raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, commit: Commit, result: Any = None) -> None:
        if self.at == "before the commit":
            self.end()
        await self._store.commit(commit, result)
        if self.at == "after the commit":
            self.end()
        if self.at == "reply lost":
            self.at = None
            raise StoreUnavailable("The store stopped answering.")


class Scene:
    """A steward over a store, with evidence as a test wants it."""

    def __init__(self, store: Store) -> None:
        self.fragile = Fragile(store)
        self.clock = ManualClock(1_000.0)
        self.units = 5
        self.away = False
        self.untellable = False
        self.asked: list[list[str]] = []
        self.points: list[tuple[str, Any]] = []
        self.decide: Callable[[ExperimentRecord, Evidence, float], Decision] = judge_by_units
        self.entropy = CountingEntropy()
        self.born()

    def born(self) -> None:
        """A process that knows nothing but what the store holds."""
        self.fragile.at = None
        self.standing = Standing(process="one", leads=True)
        self.registry = Registry(self.fragile, now=self.clock, entropy=self.entropy)
        self.experiments = Experiments(self.registry, now=self.clock, entropy=self.entropy)
        self.steward = Steward(
            StewardParts(
                registry=self.registry,
                experiments=self.experiments,
                standing=self.standing,
                evidence_of=self.evidence_of,
                keep_points=self.keep_points,
                decide=self.judge,
                decide_exactly=self.judge_exactly,
                now=self.clock,
                circumstances=HERE,
            )
        )

    def judge(self, record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
        return self.decide(record, evidence, now)

    def judge_exactly(self, record: ExperimentRecord, evidence: Evidence, now: float) -> Decision:
        if self.untellable:
            raise OverflowError
        return self.decide(record, evidence, now)

    async def evidence_of(self, ids: Sequence[str]) -> Mapping[str, Evidence]:
        if self.away:
            raise StoreUnavailable("The store cannot be reached.")
        self.asked.append(list(ids))
        records = self.registry.snapshot.experiments.values()
        return {one.id: evidence_of(one, self.units) for one in records if one.id in ids}

    async def keep_points(self, points: Mapping[str, bytes]) -> None:
        self.points += [(one, msgspec.json.decode(point)) for one, point in points.items()]

    async def begin(self, document: Experiment | None = None, name: str = "exp") -> "Scene":
        """Register two versions, and start an experiment on them."""
        for number in (1, 2):
            manifest = manifest_of("m", number)
            await self.fragile.put_manifest(manifest)
            seed = ModelRecord(versions={}, aliases={"champion": 1})
            await self.registry.register(manifest, ASKED, seed=seed)
        await self.experiments.put(name, document or document_of(), ASKED)
        await self.experiments.start(name, ASKED)
        return self

    async def follow(self) -> None:
        """What the watcher does: learn what the store holds."""
        document = await self.fragile.read()
        assert document is not None
        self.registry.learn(decode(document))

    async def settle(self) -> int:
        """Tick until nothing happens any more; how many steps that took."""
        total = 0
        for _ in range(10):
            await self.follow()
            steps = await self.steward.tick()
            total += steps
            if not steps:
                return total
        raise AssertionError("it never settles")

    async def record(self, name: str = "exp") -> ExperimentRecord:
        await self.follow()
        return self.registry.snapshot.experiments[name]

    async def ledger(self) -> list[AuditEntry]:
        """The decisions, from a log that must hold together."""
        await self.follow()
        entries = await self.fragile.audit()
        assert first_break(entries, self.registry.snapshot.audit_head) is None
        return decisions_in(entries)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise Killed


async def _step_and_die(url: str, namespace: str, moment: str, units: int) -> None:
    scene = Scene(RedisStore(url, namespace=namespace, timeout_s=5.0, name="doomed"))
    await scene.follow()
    scene.units = units
    scene.fragile.at, scene.fragile.end = moment, _die
    await scene.steward.tick()


if __name__ == "__main__":
    asyncio.run(_step_and_die(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
