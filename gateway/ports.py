"""Ports: what the rooms ask of the world, without naming who answers.

Each is kept by an adapter and wired in `app` or `processes`; `DataPlane` is kept by
`gateway.serving.worker` in one process, and by `gateway.processes.fleet` over many.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from gateway.core.access import Token
from gateway.core.audit import AuditEntry, Commit
from gateway.core.models import Manifest
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import Snapshot
from gateway.core.tensors import Array, Signature, Tensors


class Stop:
    """Ends a run before its time. Made by the caller for one run; thread-safe."""

    __slots__ = ("_asked", "_end")

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._asked = False
        self._end: Callable[[], None] | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody has asked."""
        return self._asked

    def stop(self) -> None:
        """Ask; a run that has not begun yet ends as it begins."""
        self._asked = True
        if self._end is not None:
            self._end()

    def connect(self, end: Callable[[], None]) -> None:
        """For the engine: how to end the run. Called at once if somebody asked before."""
        self._end = end
        # In this order, so that one of the two threads calls it, whoever is first.
        if self._asked:
            end()


class Engine(Protocol):
    """One loaded version that can be run; thread-safe."""

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, in the model's order."""

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        """Run once and return the named outputs in that order.

        Raises:
            EngineFailed: the model raised.
        """

    def run_until(self, tensors: Tensors, outputs: Sequence[str], stop: Stop) -> list[Array]:
        """As `run`, but ended by `stop`, as soon as the engine can.

        Raises:
            DeadlineExceeded: it was stopped before it was done.
        """


class Artifact(Struct, frozen=True):
    """A version made ready on this host: its manifest and its verified copy."""

    manifest: Manifest
    path: str


class LoadEngine(Protocol):
    """Loads an artifact. Slow; called off the event loop."""

    def __call__(self, artifact: Artifact) -> Engine:
        """Raises EngineFailed with a sentence when the artifact cannot be loaded."""


class Secrets(Struct, frozen=True):
    """What the data plane must know to sign ids and to recognise privileged callers."""

    keys: SigningKeys
    tokens: tuple[Token, ...]


class Update(Struct, frozen=True):
    """A Snapshot to serve, with an artifact (or the reason for none) for each named version.

    `artifacts` and `missing` are keyed by (model, number). Those of `missing` that are `pending`
    are on their way to this host and come with a later Update.
    """

    snapshot: Snapshot
    artifacts: Mapping[tuple[str, int], Artifact]
    missing: Mapping[tuple[str, int], str]
    pending: frozenset[tuple[str, int]] = frozenset()


class EndpointReport(Struct, frozen=True):
    """What one process serves of an endpoint: its revision, and why it lags if it does."""

    revision: int
    lagging: str | None = None


class VersionReport(Struct, frozen=True):
    """The state of one version in one process."""

    model: str
    number: int
    state: str
    reason: str | None = None


class WorkerReport(Struct, frozen=True):
    """What a process serves now. `revision` is that of the newest Snapshot it was handed."""

    revision: int
    ready: bool
    endpoints: Mapping[str, EndpointReport]
    versions: tuple[VersionReport, ...]


class Parcel(Struct, frozen=True, array_like=True):
    """Encoded prediction records on their way from a process that serves to control.

    Every record of a process has a serial, from 1 on without gaps. A parcel settles those from
    `first` to `first + records + dropped - 1`: `records` of them are in it, `dropped` found no
    room. `sightings` holds `gateway.core.evidence.Sightings`, encoded; empty if there are none.
    `logs` holds repeated `log_records` fields of an OTLP `ScopeLogs` (more than `records`
    where exposures are told too), `spans` repeated `spans` fields of a `ScopeSpans`.
    """

    first: int
    records: int
    dropped: int
    logs: bytes
    spans: bytes = b""
    span_count: int = 0
    sightings: bytes = b""


class Extent(Struct, frozen=True):
    """Where one or more records' requests lie on disk: whole frames of one segment."""

    segment: int
    offset: int
    size: int


class SegmentInfo(Struct, frozen=True):
    """One segment of the record log."""

    number: int
    size: int


class RecordFolder(Protocol):
    """The record log on disk: requests in segments, oldest first. Blocking; raises OSError."""

    def undelivered(self) -> Iterator[tuple[Extent, bytes]]:
        """Open the log: every request behind the cursor, as it was left. Called first, once."""

    def append(self, bodies: Sequence[bytes]) -> list[Extent]:
        """Write requests behind the others, all of them or none."""

    def trim(self) -> list[int]:
        """Delete the oldest segments beyond the size bound; their numbers."""

    def read(self, extent: Extent) -> bytes:
        """The requests that lie there, joined to one."""

    def mark(self, extent: Extent) -> None:
        """Put the cursor behind what lies there."""

    def close(self) -> None:
        """Let go of the files."""


class DataPlane(Protocol):
    """What control may ask of a process that serves: the link."""

    def apply(self, update: Update) -> None:
        """Move towards this Snapshot, endpoint by endpoint. Returns at once."""

    def entrust(self, secrets: Secrets) -> None:
        """Replace the secrets whole."""

    def report(self) -> WorkerReport:
        """Say what is served now."""

    async def refresh(self, endpoint: str | None = None) -> None:
        """Bring up to date what the methods below say, where that takes asking others.

        With an endpoint, its recent inputs too.
        """

    def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        """Triton-shaped statistics of each loaded version."""

    def shadow_report(self, endpoint: str) -> list[dict[str, Any]]:
        """What the shadows of an endpoint found, with their worst disagreements."""

    def recent_inputs(self, endpoint: str) -> list[dict[str, Any]]:
        """A sample of what the endpoint was asked lately, if its document asks for one."""


class PromotionRequest(Struct, frozen=True):
    """An entry of the promotions stream, as it came."""

    id: str
    fields: Mapping[str, str]


class Store(Protocol):
    """The shared store of configuration: one Snapshot document and what belongs to it.

    Every method raises StoreUnavailable when the store cannot be reached in time.
    """

    async def read(self) -> bytes | None:
        """The Snapshot document, None when there is none.

        Raises:
            Unsealed: it was not written by who may write it.
        """

    async def commit(
        self, commit: Commit, result: tuple[str, Mapping[str, str]] | None = None
    ) -> None:
        """Write Snapshot, audit entry and event, and `result` for a promotion request, at once.

        `result` is (promotion request id, fields of the results entry); the request is taken off
        the stream in the same transaction.

        Raises:
            Conflict: the stored document is not the one the commit was made from.
        """

    async def audit(self, after_revision: int = 0, limit: int | None = None) -> list[AuditEntry]:
        """Audit entries with a greater revision, oldest first; the first `limit`, or all."""

    async def put_manifest(self, manifest: Manifest) -> Manifest:
        """Write a manifest once; the one that stands, which may be an earlier one."""

    async def manifest(self, model: str, number: int) -> Manifest | None:
        """The manifest of a version."""

    async def signing_keys(self, fresh: SigningKeys) -> SigningKeys:
        """The shared signing keys; `fresh` becomes them if there are none."""

    async def replace_signing_keys(self, before: SigningKeys, after: SigningKeys) -> None:
        """Put `after` in the place of `before`.

        Raises:
            Conflict: the shared keys are not `before`.
        """

    async def acknowledge(self, process: str, document: bytes, ttl_s: int) -> None:
        """Say what a process serves; forgotten after `ttl_s`."""

    async def acknowledgements(self) -> Mapping[str, bytes]:
        """The living processes' documents by name."""

    async def hint(self, timeout_s: float) -> None:
        """Return when someone committed, or after the timeout. Content is never trusted."""

    async def lead(self, process: str, ttl_s: float) -> bool:
        """Take or keep the leader's lock; True while this process holds it."""

    async def promotion_requests(self) -> list[PromotionRequest]:
        """Requests on the promotions stream that have no result yet, oldest first."""

    async def refuse_promotion(self, request_id: str, fields: Mapping[str, str]) -> None:
        """Write a refusal to the results stream and take the request off, at once."""

    async def close(self) -> None:
        """Let go of the connections."""


class RepositoryEntry(Struct, frozen=True):
    """One version in the repository index; `state` in the words of the OIP extension."""

    name: str
    version: str
    state: str
    reason: str = ""


class Repository(Protocol):
    """What the inference door may ask of control, on behalf of a caller who may promote."""

    async def index(self) -> list[RepositoryEntry]:
        """Every version that is known, served or not.

        Raises:
            NotReady: control is away.
        """

    async def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        """Triton-shaped statistics of each loaded version, those of one model or of all.

        Raises:
            NotReady: control is away.
        """

    async def load(self, model: str, number: int | None, actor: str) -> None:
        """Commit that a version (None: the highest) is kept warm; return once it is ready here.

        Raises:
            NotFound: no such version. EngineFailed: it cannot be loaded.
            StoreUnavailable: nothing can be committed now. NotReady: control is away.
        """

    async def unload(self, model: str, number: int | None, actor: str) -> None:
        """Commit that a version is let go.

        Raises:
            NotFound: no such version. Conflict: an alias or an endpoint names it.
            NotReady: control is away.
        """


class Placement(Protocol):
    """A version on its way into the model store, seen by nobody yet. Blocking."""

    def publish(self) -> None:
        """Let everybody see it, whole. Raises as `ModelStore.place` does."""

    def discard(self) -> None:
        """Leave nothing behind, unless it was published."""


class ModelStore(Protocol):
    """Where versions come from. Blocking; called off the event loop."""

    def scan(self) -> list[tuple[str, int]]:
        """Every (model, number) that the store holds now, sorted."""

    def fetch(self, model: str, number: int, source: str | None = None) -> Artifact:
        """Copy a version, or a folder `source` of the store, into the cache, hashing on the way.

        Where versions are inspected the signature stays empty. InvalidRequest says why not.
        """

    def take(self, model: str, number: int, folder: str) -> Artifact:
        """As `fetch`, from a folder of this host that is ours."""

    def read(self, artifact: Artifact, name: str, limit: int) -> bytes | None:
        """A small file of a copy, None if there is none; InvalidRequest where it is larger."""

    def place(self, artifact: Artifact) -> Placement:
        """Bring a copy into the store; Conflict where something lies, NotReady if it fails."""

    def cached(self, manifest: Manifest) -> Artifact | None:
        """The verified copy of a known version, if this host has it."""

    def seed(self, model: str) -> Mapping[str, Any]:
        """The model's seed settings (`model.toml`), empty if there are none."""

    def stamp(self, model: str, number: int) -> str:
        """A mark that changes whenever the version's files do; cheap, reads no content."""


class LastKnown(Struct, frozen=True):
    """The newest Snapshot that this host served, with the manifests that it needs."""

    snapshot: Snapshot
    manifests: tuple[Manifest, ...]


class Disk(Protocol):
    """What this host remembers by itself. Blocking, small; raises OSError when the disk fails."""

    def last_good(self) -> LastKnown | None:
        """The newest Snapshot saved; InvalidRequest if what lies there was damaged."""

    def save_last_good(self, known: LastKnown) -> None:
        """Replace it whole, or leave the old one."""

    def signing_keys(self) -> SigningKeys | None:
        """The keys seen last, None if there are none or they cannot be read."""

    def save_signing_keys(self, keys: SigningKeys) -> None:
        """Keep the keys for a start without the store."""

    def admin_token(self) -> str:
        """The bearer token of this host's admin; made on first use."""

    def audit_key(self) -> bytes:
        """What signs checkpoints here; InvalidRequest if what lies there is none."""
