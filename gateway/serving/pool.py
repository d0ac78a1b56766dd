"""The Pool: the Versions in this process, from loading to closed.

    loading ──▶ warming ──▶ ready ◀──▶ draining ──▶ closed
       └───────────┴──▶ failed

- loading: a thread reads and prepares the artifact; one version at a time.
- warming: the same thread runs it, measures it, and checks that rows are independent.
- ready: gives out leases.
- draining: nothing names it any more; requests that hold a lease finish. Ready again if named.
- closed: the engine is dropped and its memory given back.
- failed: could not be loaded; says why until nothing names it.
"""

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final

from gateway.core.errors import GatewayError, NotReady
from gateway.core.models import Key
from gateway.core.tensors import InputCheck
from gateway.ports import Artifact, Engine, LoadEngine
from gateway.serving.batching import Batcher
from gateway.serving.cells import Cells
from gateway.serving.lanes import Lanes
from gateway.serving.statistics import Statistics
from gateway.serving.threads import ThreadLimits, Threads, give_way
from gateway.serving.warming import Warmth, warm
from gateway.settings import BatchSettings, PoolSettings
from gateway.telemetry import MODEL_LOAD_DURATION, MODEL_NAME, MODEL_VERSION, RESULT

log: Final = logging.getLogger(__name__)


class State(StrEnum):
    """Where a version stands in this process."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"
    FAILED = "failed"


class Loaded:
    """One version in this process.

    A request holds it by a lease: `acquire` before it is queued, `release` when it is answered.
    """

    __slots__ = (
        "artifact",
        "batcher",
        "check",
        "in_flight",
        "key",
        "lane",
        "leases",
        "output_names",
        "reason",
        "state",
        "statistics",
        "warmth",
    )

    def __init__(self, key: Key, artifact: Artifact, lanes: Lanes) -> None:
        """Start in state loading, with a lane to count leases in."""
        self.key = key
        self.in_flight, self.lane = lanes.take(key)
        self.artifact = artifact
        self.check = InputCheck(artifact.manifest.signature)
        self.output_names = [spec.name for spec in artifact.manifest.signature.outputs]
        self.state = State.LOADING
        self.reason: str | None = None
        self.warmth: Warmth | None = None
        self.batcher: Batcher | None = None
        self.statistics = Statistics()
        self.leases = 0

    @property
    def digest(self) -> str:
        """Digest of the version's files."""
        return self.artifact.manifest.digest

    def acquire(self) -> Batcher:
        """Take a lease.

        Raises:
            NotReady: it is not warm yet, or closed.
        """
        if self.batcher is None:
            message = f"Version {self.key[1]} of model '{self.key[0]}' is not ready."
            raise NotReady(message)
        self.leases = self.in_flight[self.lane] = self.leases + 1
        return self.batcher

    def release(self, count: int = 1) -> None:
        """Give a lease back, or several."""
        self.leases = self.in_flight[self.lane] = self.leases - count


@dataclass(frozen=True, slots=True)
class PoolParts:
    """What a pool needs of its process.

    `after_flush` is called after the answers of each flush were given out; `work_ns` is the
    processor time of the calling thread.
    """

    loop: AbstractEventLoop
    load_engine: LoadEngine
    trim_memory: Callable[[], None]
    now_ns: Callable[[], int]
    pool: PoolSettings
    batching: BatchSettings
    cells: Cells
    after_flush: Callable[[], None] | None = None
    work_ns: Callable[[], int] | None = None
    lanes: Lanes = field(default_factory=Lanes)


class Pool:
    """Loads, warms, drains and closes versions; calls `changed` after each change of state."""

    def __init__(self, parts: PoolParts, changed: Callable[[], None]) -> None:
        """Start empty, with one thread for loading and a few for running."""
        self._parts = parts
        self._changed = changed
        self._versions: dict[Key, Loaded] = {}
        self._retired: list[Loaded] = []
        yielding = partial(give_way, parts.pool.niceness)
        self._loader = ThreadPoolExecutor(1, "tiltyard-load", initializer=yielding)
        self._threads = Threads(
            parts.loop,
            parts.now_ns,
            ThreadLimits(
                slots=parts.pool.executor_threads,
                spare=parts.pool.spare_threads,
                stuck_each=max(parts.pool.spare_threads // 2, 1),
                stuck_s=parts.pool.stuck_s,
            ),
            prepare=yielding,
            after_flush=parts.after_flush,
            work_ns=parts.work_ns if parts.pool.intra_op_threads == 1 else None,
        )
        self._closing = False

    def get(self, key: Key) -> Loaded | None:
        """The version, in whatever state."""
        return self._versions.get(key)

    def all(self) -> list[Loaded]:
        """Every version that is not closed."""
        return [*self._versions.values(), *self._retired]

    @property
    def stuck(self) -> int:
        """Runs that do not come back; their threads are lost until they do."""
        return self._threads.stuck

    def want(self, artifacts: Mapping[Key, Artifact]) -> None:
        """Start loading what is named and not here. A changed digest never takes a place."""
        for key, artifact in artifacts.items():
            if key in self._versions or self._closing:
                continue
            draining = self._draining(key, artifact.manifest.digest)
            if draining is not None:
                self._retired.remove(draining)
                draining.state = State.READY
                self._versions[key] = draining
                continue
            loaded = Loaded(key, artifact, self._parts.lanes)
            self._versions[key] = loaded
            self._loader.submit(self._load, loaded)

    def retire(self, unwanted: Callable[[Key], bool]) -> None:
        """Let go of versions that nothing names: failed ones at once, ready ones by draining."""
        for key, loaded in list(self._versions.items()):
            if not unwanted(key) or loaded.state in (State.LOADING, State.WARMING):
                continue
            del self._versions[key]
            if loaded.state is State.FAILED:
                self._parts.lanes.give_back(loaded.in_flight, loaded.lane)
            if loaded.state is State.READY:
                loaded.state = State.DRAINING
                self._retired.append(loaded)
                deadline = self._parts.now_ns() + int(self._parts.pool.drain_s * 1e9)
                # Not at once: `changed` must not come back here in the middle of the loop.
                self._parts.loop.call_soon(self._drain, loaded, deadline)

    def close(self) -> None:
        """Stop the threads once they are idle. Requires: no request is in flight."""
        self._closing = True
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._threads.close()

    def _load(self, loaded: Loaded) -> None:
        """Runs in the loader thread."""
        parts = self._parts
        start = parts.now_ns()
        try:
            engine = parts.load_engine(loaded.artifact)
            parts.loop.call_soon_threadsafe(self._set, loaded, State.WARMING)
            warmth = warm(engine, parts.now_ns)
        except GatewayError as error:
            parts.loop.call_soon_threadsafe(self._fail, loaded, str(error))
        except Exception:
            log.exception("loading %s/%d failed", *loaded.key)
            parts.loop.call_soon_threadsafe(self._fail, loaded, "Loading failed unexpectedly.")
        else:
            parts.loop.call_soon_threadsafe(self._ready, loaded, engine, warmth)
        finally:
            took_ns = parts.now_ns() - start
            parts.loop.call_soon_threadsafe(self._measure, loaded, took_ns)

    def _ready(self, loaded: Loaded, engine: Engine, warmth: Warmth) -> None:
        loaded.warmth = warmth
        loaded.batcher = Batcher(
            engine,
            self._threads,
            loaded.statistics,
            self._parts.batching,
            shares_runs=warmth.rows_independent,
            inline_ms=self._parts.pool.inline_ms,
            timings=warmth.timings,
        )
        self._set(loaded, State.READY)

    def _fail(self, loaded: Loaded, reason: str) -> None:
        loaded.reason = reason
        log.warning("version %s/%d cannot be served: %s", *loaded.key, reason)
        self._set(loaded, State.FAILED)

    def _measure(self, loaded: Loaded, took_ns: int) -> None:
        model, number = loaded.key
        labels = ((MODEL_NAME, model), (MODEL_VERSION, number), (RESULT, loaded.state.value))
        self._parts.cells.histogram(MODEL_LOAD_DURATION, labels).observe(took_ns / 1e9)

    def _set(self, loaded: Loaded, state: State) -> None:
        loaded.state = state
        self._changed()

    def _draining(self, key: Key, digest: str) -> Loaded | None:
        retired = (one for one in self._retired if (one.key, one.digest) == (key, digest))
        return next(retired, None)

    def _drain(self, loaded: Loaded, deadline_ns: int) -> None:
        if loaded.state is not State.DRAINING:
            return
        if loaded.leases and self._parts.now_ns() < deadline_ns:
            self._parts.loop.call_later(_DRAIN_LOOK_S, self._drain, loaded, deadline_ns)
            return
        loaded.state = State.CLOSED
        loaded.batcher = None
        self._retired.remove(loaded)
        self._parts.lanes.give_back(loaded.in_flight, loaded.lane)
        if not self._closing:
            self._loader.submit(self._parts.trim_memory)
        self._changed()


_DRAIN_LOOK_S: Final = 0.05
