"""A whole data plane on fake engines, for the tests of serving and of the doors before it."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from gateway.core.access import Principal, Token, digest_of, id_of
from gateway.core.assignment import HASH_VERSION, SplitState
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule, Split, Target, weights_of
from gateway.core.models import Key, Manifest
from gateway.core.oip.messages import InferRequest, RequestedOutput
from gateway.core.predictions import SigningKeys
from gateway.core.principals import Grant, InferenceGrant, Right, Role
from gateway.core.snapshot import ModelRecord, Snapshot, named_versions
from gateway.core.targeting import Scalar
from gateway.core.tensors import Array
from gateway.ports import Artifact, Engine, Secrets, Update
from gateway.serving.caching import ResponseCache
from gateway.serving.calls import Answer, Call
from gateway.serving.cells import Cells
from gateway.serving.concluding import Concluder
from gateway.serving.pipeline import Pipeline
from gateway.serving.pool import PoolParts, State
from gateway.serving.recording import Recorder
from gateway.serving.shadowing import Shadows
from gateway.serving.worker import Worker
from gateway.settings import BatchSettings, PoolSettings, RecordingSettings, ShadowSettings
from gateway.telemetry import Instrument, Record
from tests.fakes import CountingEntropy, NanoClock, SlowEngine, manifest_of

INLINE = PoolSettings()
THREADED = PoolSettings(inline_ms=-1.0, executor_threads=1)
KEYS = SigningKeys(schema=1, current=1, keys={1: "11" * 32}, unit_key="22" * 32)
FORCE_TOKEN, WRITE_TOKEN, READ_TOKEN = "tilt_force_x", "tilt_write_x", "tilt_read_x"
OUTCOMES_TOKEN, INFER_TOKEN, OTHER_TOKEN = "tilt_outcomes_x", "tilt_infer_x", "tilt_other_x"
SECRETS = Secrets(
    keys=KEYS,
    tokens=tuple(
        Token(id_of(token.encode()), digest_of(token.encode()), holder)
        for token, holder in (
            (FORCE_TOKEN, Principal("force", inference=(InferenceGrant(Right.FORCE),))),
            (WRITE_TOKEN, Principal("write", grants=(Grant(Role.DEPLOYER),))),
            (READ_TOKEN, Principal("read", grants=(Grant(Role.VIEWER),))),
            (OUTCOMES_TOKEN, Principal("outcomes", inference=(InferenceGrant(Right.OUTCOMES),))),
            (INFER_TOKEN, Principal("infer", inference=(InferenceGrant(Right.INFER, ("m",)),))),
            (OTHER_TOKEN, Principal("other", inference=(InferenceGrant(Right.INFER, ("n*",)),))),
        )
    ),
)


class OpenRecorder(Recorder):
    """A recorder that shows its records to the test."""

    def __init__(self, cells: Cells, settings: RecordingSettings) -> None:
        super().__init__(cells, settings)
        self.shown: list[Record] = []

    def record(self, record: Record) -> None:
        self.shown.append(record)
        super().record(record)

    def record_all(self, records: list[Record]) -> None:
        self.shown += records
        super().record_all(records)

    def drain(self) -> list[Record]:
        """What was recorded since the last call."""
        shown, self.shown = self.shown, []
        return shown


def model_of(
    *versions: int,
    champion: int | None = 1,
    aliases: Mapping[str, int] | None = None,
    previous: Mapping[str, tuple[int, ...]] | None = None,
    loaded: tuple[int, ...] = (),
) -> ModelRecord:
    """A model whose champion is named, unless that is None."""
    named = dict(aliases or {})
    if champion is not None:
        named["champion"] = champion
    return ModelRecord(
        versions=dict.fromkeys(versions, "0" * 64),
        aliases=named,
        previous=dict(previous or {}),
        loaded=loaded,
    )


def endpoint_of(*rules: Rule, **fields: object) -> EndpointRecord:
    """An endpoint of model `m` with fresh intervals for each of its splits."""
    document = Endpoint(schema=1, model="m", rules=rules, **fields)  # type: ignore[arg-type]
    splits = {
        rule.name: SplitState.fresh(
            salt=f"salt-{rule.name}", hash_version=HASH_VERSION, weights=weights_of(rule.split)
        )
        for rule in rules
        if rule.split is not None
    }
    return EndpointRecord(document=document, splits=splits)


def serve_rule(version: int, *, on_error: str = "error", name: str = "candidate") -> Rule:
    """A rule without conditions that serves one version."""
    return Rule(name=name, serve=Target(version=version), on_error=on_error)


def split_rule(split: Split, *, on_error: str = "error", name: str = "experiment") -> Rule:
    """A rule without conditions that splits."""
    return Rule(name=name, split=split, on_error=on_error)


def snapshot_of(
    revision: int = 1,
    *,
    models: Mapping[str, ModelRecord] | None = None,
    endpoints: Mapping[str, EndpointRecord] | None = None,
) -> Snapshot:
    """A Snapshot; by default of one model `m` whose champion is version 1."""
    return Snapshot(
        schema=1,
        epoch=1,
        revision=revision,
        audit_head="",
        models=dict(models or {"m": model_of(1)}),
        endpoints=dict(endpoints or {}),
    )


def rows_of(*values: float) -> Array:
    """One row for each value: the value, and three zeros."""
    rows = np.zeros((len(values), 4), dtype=np.float32)
    rows[:, 0] = values
    return rows


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop and the threads run until something holds."""
    while not holds():  # noqa: ASYNC110 - a thread has no event of this loop
        await asyncio.sleep(0.001)


class Plane:
    """Worker, concluder and pipeline in this loop.

    Args:
        engines: what loading a version gives, or raises. A version that has none is missing.
    """

    def __init__(
        self,
        engines: Mapping[Key, Engine | Exception],
        *,
        pool: PoolSettings = INLINE,
        batching: BatchSettings | None = None,
        shadows: ShadowSettings | None = None,
        max_request_rows: int = 1_000,
        cache_bytes: int = 2**20,
    ) -> None:
        self.engines = dict(engines)
        self.gates: dict[Key, threading.Event] = {}
        self.loads: list[Key] = []
        self.clock = NanoClock()
        self.cells = Cells()
        self.recorder = OpenRecorder(self.cells, RecordingSettings())
        self.trims = 0
        parts = PoolParts(
            loop=asyncio.get_running_loop(),
            load_engine=self._load,
            trim_memory=self._trim,
            now_ns=self.clock.monotonic_ns,
            pool=pool,
            batching=batching or BatchSettings(),
            cells=self.cells,
        )
        self.shadows = Shadows(parts, shadows or ShadowSettings(), self.recorder)
        self.worker = Worker(parts, self.shadows, ResponseCache(parts, cache_bytes))
        self.concluder = Concluder(self.worker, self.recorder, self.clock, CountingEntropy())
        self.pipeline = Pipeline(self.worker, self.concluder, max_request_rows)
        self.worker.entrust(SECRETS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for gate in self.gates.values():
            gate.set()
        for engine in self.engines.values():
            if isinstance(engine, SlowEngine):
                engine.release()
        self.worker.close()

    def apply(self, snapshot: Snapshot) -> None:
        """Hand a Snapshot over, with an artifact for each named version that has an engine."""
        named = [(m, n) for m, numbers in named_versions(snapshot).items() for n in numbers]
        self.worker.apply(
            Update(
                snapshot=snapshot,
                artifacts={key: self.artifact(key) for key in named if key in self.engines},
                missing={key: "It is away." for key in named if key not in self.engines},
            )
        )

    def artifact(self, key: Key) -> Artifact:
        """What control would hand over of a version that has an engine."""
        return Artifact(manifest=self._manifest(key), path="unused")

    async def serve(self, snapshot: Snapshot) -> None:
        """Hand a Snapshot over and wait until nothing is loading."""
        self.apply(snapshot)
        await self.settled()

    async def settled(self) -> None:
        """Wait until nothing is loading, warming or draining."""
        moving = {State.LOADING, State.WARMING, State.DRAINING}
        await until(lambda: not any(one.state in moving for one in self.worker.pool.all()))

    def states(self) -> dict[Key, str]:
        """The state of each version that is not closed."""
        return {one.key: one.state.value for one in self.worker.pool.all()}

    def call(
        self,
        *values: float,
        unit: str | None = None,
        version: int | None = None,
        force: str | None = None,
        timeout_us: int = 0,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Scalar] | None = None,
        tensors: Mapping[str, Array] | None = None,
    ) -> Call:
        """A call with one row for each value."""
        request = InferRequest(
            tensors=dict(tensors) if tensors is not None else {"x": rows_of(*values)},
            outputs=tuple(RequestedOutput(name) for name in outputs),
            timeout_us=timeout_us,
            parameters=parameters or {},
        )
        headers = {} if unit is None else {b"x-unit-id": unit.encode()}
        now = self.clock.at_ns
        deadline_ns = now + timeout_us * 1000 if timeout_us else 0
        return Call(request, now, headers, version, force, deadline_ns=deadline_ns)

    def submit(self, call: Call, endpoint: str = "m") -> list[Answer]:
        """Submit a call; its answers, of which there is to be one, come into the list."""
        answers: list[Answer] = []
        served = self.pipeline.find(endpoint, call.version)

        def reply(answer: Answer) -> None:
            answer.settle()
            answers.append(answer)

        self.pipeline.submit(served, call, reply)
        return answers

    async def ask(self, call: Call, endpoint: str = "m") -> Answer:
        """Submit a call and wait for its one answer."""
        answers = self.submit(call, endpoint)
        await until(lambda: bool(answers))
        assert len(answers) == 1
        return answers[0]

    def leases(self) -> dict[Key, int]:
        """Leases held of each version that is not closed."""
        return {one.key: one.leases for one in self.worker.pool.all()}

    def count(self, instrument: Instrument, **attributes: object) -> float:
        """The sum of an instrument's series that have these attributes, by their last word."""
        return sum(
            series.value
            for series in self.cells.collect()
            if series.instrument is instrument
            and attributes.items()
            <= {name.rpartition(".")[2]: value for name, value in series.attributes}.items()
        )

    def _manifest(self, key: Key) -> Manifest:
        engine = self.engines[key]
        signature = None if isinstance(engine, Exception) else engine.signature
        return manifest_of(*key, signature=signature)

    def _load(self, artifact: Artifact) -> Engine:
        key = (artifact.manifest.model, artifact.manifest.number)
        self.loads.append(key)
        if key in self.gates:
            assert self.gates[key].wait(20), "nobody opened the gate"
        engine = self.engines[key]
        if isinstance(engine, Exception):
            raise engine
        return engine

    def _trim(self) -> None:
        self.trims += 1
