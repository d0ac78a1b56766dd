"""What is live: for each Endpoint the plan that is served now, bound to its loaded versions.

`Live` is replaced whole and never changed, so a request reads it once and keeps what it read.
An endpoint moves to the next plan once every version that the plan names is ready; one that
cannot move keeps its last plan and is reported as lagging, and delays nobody else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from gateway.core.errors import GatewayError, NotFound, NotReady, excerpt
from gateway.core.models import Key
from gateway.core.plans import Plan
from gateway.core.snapshot import Snapshot, endpoint_names, named_keys, named_versions, plan_of
from gateway.core.tensors import Signature
from gateway.ports import EndpointReport, Update
from gateway.serving.pool import Loaded, Pool, State
from gateway.telemetry import Kind

Kinds: TypeAlias = dict[tuple[object, ...], tuple[Kind, bytes]]
"""The kinds of prediction that a plan has made so far, each with the stub of its ids."""


@dataclass(frozen=True, slots=True)
class Served:
    """One endpoint as it is served: a plan and the versions it may use.

    `loaded` lacks a version only if it could not be loaded when the process started. `pinnable`
    holds every warm version of the model, for calls that name one in the path; `named` holds those
    that should be warm. Both follow the newest Snapshot, whatever the plan's revision.
    """

    plan: Plan
    loaded: Mapping[int, Loaded]
    pinnable: Mapping[int, Loaded]
    named: frozenset[int]
    signature: Signature
    allow_nonfinite: bool
    labels: tuple[str, ...]
    aliases: Mapping[str, int]
    kinds: Kinds
    is_plain: bool

    def signature_of(self, version: int | None) -> Signature:
        """What a call must look like: to a version that is pinned, or to the endpoint."""
        if version is None:
            return self.signature
        return self.pinnable[version].artifact.manifest.signature


@dataclass(frozen=True, slots=True)
class Live:
    """All that is served; immutable.

    `ready` says that a Snapshot was read and, at some time since, each of its endpoints was served,
    lagging or not. It stays: an endpoint that is added later may be slow to load or broken, and
    takes nothing from the others.
    """

    revision: int = 0
    ready: bool = False
    endpoints: Mapping[str, Served] = field(default_factory=dict)
    reports: Mapping[str, EndpointReport] = field(default_factory=dict)

    def find(self, endpoint: str) -> Served:
        """What serves an endpoint.

        Raises:
            NotFound: no endpoint of that name.
            NotReady: known, and not served yet; or nothing is known yet.
        """
        served = self.endpoints.get(endpoint)
        if served is not None:
            return served
        if endpoint in self.reports:
            message = f"'{excerpt(endpoint)}' is not ready: {self.reports[endpoint].lagging}."
            raise NotReady(message)
        if not self.revision:
            message = "The gateway has no Snapshot to serve yet."
            raise NotReady(message)
        message = f"There is no endpoint or model '{excerpt(endpoint)}'."
        raise NotFound(message)


NOTHING: Final = Live()


def advance(live: Live, update: Update, pool: Pool) -> Live:
    """The next Live: each endpoint on its newest plan that can be served.

    Args:
        live: what is served now.
        update: what should be.
        pool: the versions in this process.
    """
    snapshot = update.snapshot
    endpoints: dict[str, Served] = {}
    reports: dict[str, EndpointReport] = {}
    named = named_versions(snapshot)
    for name in endpoint_names(snapshot):
        before = live.endpoints.get(name)
        served, lagging = _next(before, update, name, pool)
        if served is not None:
            endpoints[name] = _renewed(served, named, pool)
        reports[name] = EndpointReport(
            revision=0 if served is None else served.plan.revision, lagging=lagging
        )
    return Live(
        revision=snapshot.revision,
        ready=live.ready or (bool(snapshot.revision) and len(endpoints) == len(reports)),
        endpoints=endpoints,
        reports=reports,
    )


def still_held(live: Live, snapshot: Snapshot) -> set[Key]:
    """Every version that the Snapshot names or a served plan holds."""
    keys = named_keys(snapshot)
    for served in live.endpoints.values():
        keys.update(loaded.key for loaded in served.loaded.values())
    return keys


def _next(
    before: Served | None, update: Update, name: str, pool: Pool
) -> tuple[Served | None, str | None]:
    snapshot, missing = update.snapshot, update.missing
    try:
        plan = plan_of(snapshot, name)
    except GatewayError as error:
        return before, str(error).rstrip(".")
    loaded: dict[int, Loaded] = {}
    waiting: str | None = None
    broken: str | None = None
    for number in sorted(plan.versions):
        key = (plan.model, number)
        version = pool.get(key)
        if version is not None and version.state is State.READY:
            loaded[number] = version
        elif version is None and key in missing:
            lacks = f"version {number}: {missing[key].rstrip('.')}"
            broken, waiting = (broken, lacks) if key in update.pending else (lacks, waiting)
        elif version is not None and version.state is State.FAILED:
            broken = f"version {number}: {(version.reason or 'it failed').rstrip('.')}"
        else:
            waiting = f"version {number} is loading"
    lagging = broken or waiting
    cold_start = before is None and waiting is None and plan.default.version in loaded
    if lagging is not None and not cold_start:
        return before, lagging
    return _bind(snapshot, plan, loaded), lagging


def _bind(snapshot: Snapshot, plan: Plan, loaded: dict[int, Loaded]) -> Served:
    model = snapshot.models[plan.model]
    return Served(
        plan=plan,
        loaded=loaded,
        pinnable={},
        named=frozenset(),
        signature=loaded[plan.default.version].artifact.manifest.signature,
        allow_nonfinite=model.allow_nonfinite,
        labels=model.labels,
        aliases=model.aliases,
        kinds={},
        is_plain=not (
            plan.shadows
            or plan.cache
            or plan.token_scalars
            or plan.recording.inputs
            or plan.recording.outputs
            or plan.recording.reservoir
        ),
    )


def _renewed(served: Served, named: Mapping[str, frozenset[int]], pool: Pool) -> Served:
    """The same plan with the versions that may be pinned now, also while the endpoint lags."""
    model = served.plan.model
    numbers = named.get(model, frozenset())
    pinnable = {
        number: version
        for number in numbers
        if (version := pool.get((model, number))) is not None and version.state is State.READY
    }
    return replace(served, pinnable=pinnable, named=numbers)
