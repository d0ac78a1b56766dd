"""The worker: one process's data plane, as control sees it.

Control hands it a Snapshot with the artifacts it names, and secrets; the worker loads what is
new, moves each endpoint when its versions are ready, and lets go of what nothing names.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gateway.core.access import Tokens
from gateway.core.models import Key
from gateway.core.predictions import Signer
from gateway.core.snapshot import EMPTY, Snapshot
from gateway.ports import Secrets, Update, VersionReport, WorkerReport
from gateway.serving.caching import ResponseCache
from gateway.serving.live import NOTHING, Live, advance, still_held
from gateway.serving.pool import Pool, PoolParts, State
from gateway.serving.reservoirs import Reservoirs
from gateway.serving.shadowing import Shadows
from gateway.telemetry import (
    CONFIG_REVISION,
    ENDPOINT,
    MODEL_NAME,
    MODEL_STATE,
    MODEL_STATE_NAME,
    MODEL_SWAP_COUNT,
    MODEL_VERSION,
)


class Worker:
    """Implements `gateway.ports.DataPlane` in this process."""

    def __init__(self, parts: PoolParts, shadows: Shadows, cache: ResponseCache) -> None:
        """Start with nothing to serve.

        Args:
            parts: what the pool needs.
            shadows: copies of requests go there.
            cache: keeps answers of the endpoints that ask for it.
        """
        self.live: Live = NOTHING
        self.secrets: Secrets | None = None
        self.tokens = Tokens(())
        self.signer: Signer | None = None
        self.stopping = False
        self.has_company = True
        """Whether those who share this port have got past their start, so that any may answer."""
        self.moved: Callable[[], None] = _nobody_asks
        """Called whenever a report may say something new."""
        self.pool = Pool(parts, self._advance)
        self.shadows = shadows
        self.cache = cache
        self.reservoirs = Reservoirs()
        self._update: Update | None = None
        self._parts = parts
        self._shown: set[Key] = set()
        parts.cells.watch(self._refresh)

    @property
    def ready(self) -> bool:
        """Whether new requests should come to this port."""
        return self.is_serving and self.has_company

    @property
    def is_serving(self) -> bool:
        """Whether this process can answer, whatever others can."""
        return self.live.ready and self.signer is not None and not self.stopping

    @property
    def snapshot(self) -> Snapshot:
        """The Snapshot that was handed over last."""
        return EMPTY if self._update is None else self._update.snapshot

    @property
    def lanes(self) -> Mapping[int, Key]:
        """Which version's requests in flight each lane of the vitals counts."""
        return self._parts.lanes.names

    def apply(self, update: Update) -> None:
        """Move towards this Snapshot, endpoint by endpoint. Returns at once."""
        self._update = update
        self.pool.want(update.artifacts)
        self._advance()

    def entrust(self, secrets: Secrets) -> None:
        """Replace the secrets whole."""
        if self.secrets is None or secrets.keys != self.secrets.keys:
            self.signer = Signer(secrets.keys)
        if self.secrets is None or secrets.tokens != self.secrets.tokens:
            self.tokens = Tokens(secrets.tokens)
        self.secrets = secrets
        self.moved()

    def report(self) -> WorkerReport:
        """Say what is served now."""
        return WorkerReport(
            revision=self.live.revision,
            ready=self.is_serving,
            endpoints=self.live.reports,
            versions=tuple(
                VersionReport(
                    model=loaded.key[0],
                    number=loaded.key[1],
                    state=loaded.state.value,
                    reason=loaded.reason,
                )
                for loaded in self.pool.all()
            ),
        )

    async def refresh(self, endpoint: str | None = None) -> None:
        """Nothing to ask of anybody: all of it is here."""

    def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        """Triton-shaped statistics of each loaded version, those of one model or of all."""
        return [
            loaded.statistics.as_dict(*loaded.key)
            for loaded in sorted(self.pool.all(), key=lambda loaded: loaded.key)
            if model in (None, loaded.key[0]) and version in (None, loaded.key[1])
        ]

    def shadow_report(self, endpoint: str) -> list[dict[str, Any]]:
        """What the shadows of an endpoint found, with their worst disagreements."""
        return self.shadows.report(endpoint)

    def recent_inputs(self, endpoint: str) -> list[dict[str, Any]]:
        """A sample of what the endpoint was asked lately, if its document asks for one."""
        return self.reservoirs.recent(endpoint)

    def close(self) -> None:
        """Stop the threads. Requires: no request is in flight."""
        self.shadows.close()
        self.pool.close()

    def _advance(self) -> None:
        """After a new Snapshot or a version's change of state: move what can move."""
        update = self._update
        if update is None:
            return
        before = self.live
        self.live = advance(before, update, self.pool)
        self.reservoirs.resize(
            {name: served.plan.recording.reservoir for name, served in self.live.endpoints.items()}
        )
        self._count_swaps(before)
        held = still_held(self.live, update.snapshot)
        self.pool.retire(lambda key: key not in held)
        plans = [served.plan for served in self.live.endpoints.values()]
        self.cache.adapt(
            {plan.endpoint: plan.cache for plan in plans if plan.cache is not None},
            {loaded.digest for loaded in self.pool.all()},
        )
        self.moved()

    def _count_swaps(self, before: Live) -> None:
        """Count each endpoint that now runs other versions than it did."""
        for name, served in self.live.endpoints.items():
            known = before.endpoints.get(name)
            if known is not None and set(known.loaded) != set(served.loaded):
                self._parts.cells.counter(MODEL_SWAP_COUNT, ((ENDPOINT, name),)).add()

    def _refresh(self) -> None:
        """Bring the gauges up to date; called before each collection."""
        cells = self._parts.cells
        cells.gauge(CONFIG_REVISION).set(self.live.revision)
        states = {loaded.key: loaded.state for loaded in self.pool.all()}
        self._shown.update(states)
        for model, number in self._shown:
            now = states.get((model, number), State.CLOSED)
            for state in State:
                labels = ((MODEL_NAME, model), (MODEL_VERSION, number), (MODEL_STATE_NAME, state))
                cells.gauge(MODEL_STATE, labels).set(int(now is state))


def _nobody_asks() -> None:
    """What `moved` is until somebody wants to know."""
