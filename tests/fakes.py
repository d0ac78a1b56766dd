"""Fakes at the ports: honest, in memory, and able to fail when told to."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.core.audit import AuditEntry, Commit, encode_entry, entry_hash
from gateway.core.chain import Line, LogEnd
from gateway.core.errors import (
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    GatewayError,
    NotFound,
    StoreUnavailable,
)
from gateway.core.evidence import decode_entry, enter
from gateway.core.inspections import Inspection, InspectionOrder
from gateway.core.models import Manifest, StoredFile, bundle_digest
from gateway.core.predictions import SigningKeys
from gateway.core.reviews import Check, CheckResult, Outcome
from gateway.core.snapshot import encode
from gateway.core.tensors import Array, Signature, Tensors, TensorSpec
from gateway.governance_ports import KeptBase, Reseeding
from gateway.ports import (
    EndpointReport,
    PromotionRequest,
    RepositoryEntry,
    Secrets,
    Stop,
    Store,
    Update,
    WorkerReport,
)


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self, at: float = 1_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


class CountingEntropy:
    """Bytes that never repeat and are the same in every run."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, size: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(size, "big")


def signature_of(columns: int = 4) -> Signature:
    """A signature with one input and one output."""
    return Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, columns)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
        batched=True,
    )


def manifest_of(
    model: str = "m", number: int = 1, content: str = "", signature: Signature | None = None
) -> Manifest:
    """A manifest whose digest follows from `content`, by default its own for each number."""
    text = content or f"{model}{number}"
    files = (
        StoredFile(path="model.onnx", size=len(text), sha256=text.encode().hex().ljust(64, "0")),
    )
    return Manifest(
        schema=1,
        model=model,
        number=number,
        digest=bundle_digest(files),
        files=files,
        signature=signature or signature_of(),
        lineage={"trainer": "test"},
        created_at=1.0,
    )


class FakeDataPlane:
    """Records what control hands over; serves each update at once."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.secrets: list[Secrets] = []
        self.lagging: dict[str, str] = {}

    def apply(self, update: Update) -> None:
        self.updates.append(update)

    def entrust(self, secrets: Secrets) -> None:
        self.secrets.append(secrets)

    def report(self) -> WorkerReport:
        revision = self.updates[-1].snapshot.revision if self.updates else 0
        models = self.updates[-1].snapshot.models if self.updates else {}
        return WorkerReport(
            revision=revision,
            ready=bool(self.updates),
            endpoints={
                name: EndpointReport(revision=revision, lagging=self.lagging.get(name))
                for name in models
            },
            versions=(),
        )

    async def refresh(self, endpoint: str | None = None) -> None:
        return

    def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        return []

    def shadow_report(self, endpoint: str) -> list[dict[str, Any]]:
        return []

    def recent_inputs(self, endpoint: str) -> list[dict[str, Any]]:
        return []


class MemoryStore:
    """The `Store` port in memory. `away` makes every call fail; `document` may be set at will."""

    def __init__(self) -> None:
        self.away = False
        self.document: bytes | None = None
        self.entries: list[AuditEntry] = []
        self.manifests: dict[tuple[str, int], Manifest] = {}
        self.keys: SigningKeys | None = None
        self.processes: dict[str, bytes] = {}
        self.leader: str | None = None
        self.requests: dict[str, dict[str, str]] = {}
        self.results: list[dict[str, str]] = []
        self.reads = 0
        self._event = asyncio.Event()

    async def read(self) -> bytes | None:
        self._reach()
        self.reads += 1
        return self.document

    async def commit(
        self, commit: Commit, result: tuple[str, Mapping[str, str]] | None = None
    ) -> None:
        self._reach()
        base = None if commit.base.revision == 0 else encode(commit.base)
        if self.document != base:
            if commit.entry in self.entries:
                return
            raise Conflict("The configuration moved.")
        newest = max(((entry.epoch, entry.revision) for entry in self.entries), default=(0, 0))
        if newest >= (commit.snapshot.epoch, commit.snapshot.revision):
            raise StoreUnavailable("The store lost data.")
        if result is not None:
            self._take_off(*result)
        self.document = encode(commit.snapshot)
        self.entries.append(commit.entry)
        self._event.set()

    async def audit(self, after_revision: int = 0, limit: int | None = None) -> list[AuditEntry]:
        self._reach()
        return [entry for entry in self.entries if entry.revision > after_revision][:limit]

    async def put_manifest(self, manifest: Manifest) -> Manifest:
        self._reach()
        return self.manifests.setdefault((manifest.model, manifest.number), manifest)

    async def manifest(self, model: str, number: int) -> Manifest | None:
        self._reach()
        return self.manifests.get((model, number))

    async def signing_keys(self, fresh: SigningKeys) -> SigningKeys:
        self._reach()
        self.keys = self.keys or fresh
        return self.keys

    async def replace_signing_keys(self, before: SigningKeys, after: SigningKeys) -> None:
        self._reach()
        if self.keys != before:
            raise Conflict("The signing keys moved.")
        self.keys = after

    async def acknowledge(self, process: str, document: bytes, ttl_s: int) -> None:
        self._reach()
        self.processes[process] = document

    async def acknowledgements(self) -> Mapping[str, bytes]:
        self._reach()
        return dict(self.processes)

    async def hint(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return
        self._event.clear()

    async def lead(self, process: str, ttl_s: float) -> bool:
        self._reach()
        self.leader = self.leader or process
        return self.leader == process

    async def promotion_requests(self) -> list[PromotionRequest]:
        self._reach()
        return [PromotionRequest(id=key, fields=dict(of)) for key, of in self.requests.items()]

    async def refuse_promotion(self, request_id: str, fields: Mapping[str, str]) -> None:
        self._reach()
        if request_id in self.requests:
            self._take_off(request_id, fields)

    async def close(self) -> None:
        return

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("The store cannot be reached.")

    def _take_off(self, request_id: str, fields: Mapping[str, str]) -> None:
        if self.requests.pop(request_id, None) is None:
            raise NotFound("The request was answered.")
        self.results.append({"request": request_id, **fields})


class MemoryGovernance:
    """Reports in memory, as JSON, so that what comes back is what a store would give."""

    def __init__(self) -> None:
        self.reports: dict[tuple[str, int], bytes] = {}

    async def put_inspection(self, inspection: Inspection) -> None:
        key = (inspection.model, inspection.number)
        self.reports[key] = msgspec.json.encode(inspection)

    async def inspection(self, model: str, number: int) -> Inspection | None:
        return (await self.inspections(model)).get(number)

    async def inspections(self, model: str) -> Mapping[int, Inspection]:
        return {
            number: msgspec.json.decode(report, type=Inspection)
            for (name, number), report in sorted(self.reports.items())
            if name == model
        }

    async def drop_inspections(self, model: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.reports.pop((model, number), None)

    async def close(self) -> None:
        pass


class FakeFiles:
    """Notes which files of versions are to be deleted."""

    def __init__(self) -> None:
        self.removed: list[tuple[str, int, str]] = []
        self.swept: list[tuple[frozenset[str], float]] = []

    def remove(self, model: str, number: int, digest: str) -> bool:
        self.removed.append((model, number, digest))
        return True

    def sweep(self, known: frozenset[str], before: float) -> int:
        self.swept.append((known, before))
        return 0


class FakeInspector:
    """Passes whatever it is shown, but for the checks that it is told to change."""

    def __init__(self, signature: Signature | None = None) -> None:
        self.signature = signature or signature_of()
        self.changes: dict[Check, CheckResult] = {}
        self.orders: list[InspectionOrder] = []

    async def inspect(self, order: InspectionOrder) -> Inspection:
        self.orders.append(order)
        passed = {check: CheckResult(Outcome.PASSED, "It is as it should be.") for check in Check}
        return Inspection(
            schema=1,
            model=order.model,
            number=order.number,
            digest=order.digest,
            at=1.0,
            took_s=0.1,
            tools={"fake": "1"},
            checks=passed | self.changes,
            signature=self.signature,
            size=sum(file.size for file in order.files),
        )

    async def close(self) -> None:
        pass


class StoreLog:
    """The `AuditLog` port over any Store; trims one in memory, and restores none."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.kept: dict[int, KeptBase] = {}

    async def lines(self, after: int, limit: int) -> list[Line]:
        return [_line(entry) for entry in await self.store.audit(after, limit)]

    async def lines_before(self, before: int | None, limit: int) -> list[Line]:
        entries = [e for e in await self.store.audit() if before is None or e.revision < before]
        return [_line(entry) for entry in reversed(entries)][:limit]

    async def bases(self) -> Mapping[int, KeptBase]:
        return self.kept

    async def trim(self, commit: Commit, base: KeptBase) -> None:
        await self.store.commit(commit)
        last = base.snapshot.revision
        self.kept = {last: base}
        if isinstance(self.store, MemoryStore):
            self.store.entries = [one for one in self.store.entries if one.revision > last]

    async def found(self) -> tuple[bytes | None, LogEnd | None]:
        newest = await self.lines_before(None, 1)
        end = LogEnd(int(newest[0].id.partition("-")[2]), newest[0].hash) if newest else None
        return await self.store.read(), end

    async def reseed(self, seed: Reseeding) -> None:
        raise NotImplementedError("Restoring is tested on a real server.")

    async def close(self) -> None:
        """There is nothing to close."""


def _line(entry: AuditEntry) -> Line:
    content = msgspec.Raw(encode_entry(entry))
    return Line(f"{entry.epoch}-{entry.revision}", entry_hash(entry), content)


class NanoClock:
    """Both clocks of a serving process, in nanoseconds; they move when told to."""

    def __init__(self) -> None:
        self.at_ns = 1_000_000_000

    def monotonic_ns(self) -> int:
        return self.at_ns

    def unix_ns(self) -> int:
        return 1_767_225_600_000_000_000 + self.at_ns

    def advance(self, seconds: float) -> None:
        self.at_ns += int(seconds * 1e9)


class FakeEngine:
    """Answers each row of `x` with its sum and `bias`, and notes every run."""

    def __init__(self, bias: float = 0.0, signature: Signature | None = None) -> None:
        self.signature = signature or signature_of()
        self.bias = bias
        self.runs: list[Array] = []

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        rows = tensors["x"]
        self.runs.append(rows)
        return [rows.sum(axis=1, keepdims=True) + np.float32(self.bias)]

    def run_until(self, tensors: Tensors, outputs: Sequence[str], stop: Stop) -> list[Array]:
        if stop.asked:
            message = "The model was stopped because the request's time ran out."
            raise DeadlineExceeded(message)
        return self.run(tensors, outputs)


class SlowEngine(FakeEngine):
    """Runs at once until `hold`; from then on each run waits for `release`."""

    def __init__(self, bias: float = 0.0, signature: Signature | None = None) -> None:
        super().__init__(bias, signature)
        self.entered = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()
        self.entered.clear()

    def release(self) -> None:
        self._open.set()

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        if not self._open.is_set():
            self.entered.set()
            assert self._open.wait(20), "nobody released the engine"
        return super().run(tensors, outputs)


class FailingEngine(FakeEngine):
    """Raises `error` for runs that hold `poison`, or for all while `broken`."""

    poison = 666.0

    def __init__(self, error: Exception | None = None, bias: float = 0.0) -> None:
        super().__init__(bias)
        self.error = error or EngineFailed("The model failed to run on this input.")
        self.broken = False

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        results = super().run(tensors, outputs)
        if self.broken or bool((tensors["x"] == self.poison).any()):
            raise self.error
        return results


class FakeSink:
    """The `OutcomeSink` port: keeps what it is handed, and refuses when told to."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.error: GatewayError | None = None

    async def accept(self, events: Sequence[bytes], outcomes: int) -> None:
        if self.error is not None:
            raise self.error
        found = [event for one in events for event in decode_entry(enter(0, one)).events]
        assert len(found) == outcomes
        self.kept += found


class FakeRepository:
    """The `Repository` port: notes what it is asked for, and refuses when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int | None, str]] = []
        self.entries = [
            RepositoryEntry("m", "1", "READY"),
            RepositoryEntry("m", "2", "UNAVAILABLE", "unloaded"),
        ]
        self.error: GatewayError | None = None
        self.loaded: Callable[[str | None, int | None], list[dict[str, Any]]] = lambda *_: []

    async def index(self) -> list[RepositoryEntry]:
        return self.entries

    async def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        return self.loaded(model, version)

    async def load(self, model: str, number: int | None, actor: str) -> None:
        self._note("load", model, number, actor)

    async def unload(self, model: str, number: int | None, actor: str) -> None:
        self._note("unload", model, number, actor)

    def _note(self, what: str, model: str, number: int | None, actor: str) -> None:
        self.asked.append((what, model, number, actor))
        if self.error is not None:
            raise self.error
