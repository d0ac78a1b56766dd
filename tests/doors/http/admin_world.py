"""An admin door over a real Registry, with fakes at its ports; shared by the tests of the doors."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec
from starlette.types import ASGIApp

from gateway.adapters.folder import FolderStore
from gateway.adapters.uploads import UploadBounds, UploadFolder
from gateway.control.auditing import Auditing, AuditingParts, AuditPlace
from gateway.control.bundles import Bundles
from gateway.control.cards import Cards
from gateway.control.denials import Denials
from gateway.control.experiments import Experiments
from gateway.control.gates import Gates
from gateway.control.principals import Principals
from gateway.control.reception import Reception, ReceptionParts
from gateway.control.registering import Registrar
from gateway.control.registry import Registry, Request
from gateway.control.reports import ReportParts, Reports
from gateway.control.restoring import Restored
from gateway.control.retention import Retainer, RetentionParts
from gateway.control.status import Acknowledgement, Standing, status_of
from gateway.control.versions import Versions
from gateway.control.webhooks import WebhookParts, Webhooks
from gateway.control.whatif import WhatIfs
from gateway.control.wishes import Wishes
from gateway.core.access import Principal, Token, Tokens, digest_of, id_of, tokens_in
from gateway.core.predictions import SigningKeys
from gateway.core.principals import Action, Grant, InferenceGrant, Right, Role
from gateway.core.signing_keys import signing_with, with_next
from gateway.core.snapshot import ModelRecord
from gateway.core.tallies import Evidence
from gateway.doors.http.admin import create_admin
from gateway.doors.http.admin_calls import AdminParts
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import Message
from gateway.governance_ports import Issuer
from gateway.ports import EndpointReport, Store, VersionReport, WorkerReport
from gateway.settings import AdminSettings
from tests.announcing import FakeCourier, MemoryAnnouncements
from tests.fakes import (
    CountingEntropy,
    FakeDataPlane,
    FakeFiles,
    FakeInspector,
    ManualClock,
    MemoryGovernance,
    MemoryStore,
    StoreLog,
    manifest_of,
)
from tests.rollouts import judge_by_units

READER, WRITER, FORCER = "tilt_r_reads", "tilt_w_writes", "tilt_f_forces"
RIGHTS = (InferenceGrant(Right.FORCE),)
TOKENS = tuple(
    Token(id_of(token.encode()), digest_of(token.encode()), holder)
    for token, holder in (
        (READER, Principal("rita", (Grant(Role.VIEWER),), fixed=True)),
        (WRITER, Principal("wim", (Grant(Role.ADMIN),), fixed=True)),
        (FORCER, Principal("fay", inference=RIGHTS, fixed=True)),
    )
)
MODEL = "flights"
KEYS = SigningKeys(schema=1, current=7, keys={7: "07" * 32}, unit_key="ee" * 32)
SPLIT: dict[str, Any] = {
    "schema": 1,
    "model": MODEL,
    "rules": [
        {
            "name": "gold",
            "when": [{"attribute": "plan", "equals": "gold"}],
            "serve": {"version": 2},
        },
        {
            "name": "half",
            "split": {
                "exposure": 10_000,
                "salt": "salt-one",
                "variants": [
                    {"name": "control", "alias": "champion", "weight": 5_000},
                    {"name": "treatment", "version": 2, "weight": 5_000},
                ],
            },
        },
    ],
}


BOUNDS = UploadBounds(max_bytes=8 << 20, quota_bytes=12 << 20, max_open=3, expire_s=60.0)


class Plane(FakeDataPlane):
    """A data plane with one loaded version and one shadow."""

    def report(self) -> WorkerReport:
        versions = (VersionReport(model=MODEL, number=1, state="ready"),)
        return WorkerReport(revision=1, ready=True, endpoints={}, versions=versions)

    def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        return [{"name": model or "all", "version": str(version)}]

    def shadow_report(self, endpoint: str) -> list[dict[str, Any]]:
        tally = {"compared": 3, "agreed": 2, "errors": 0, "max_absolute": 0.5}
        return [{"shadow": "s", "version": 2, "tally": tally, "skipped": {"overload": 1}}]

    def recent_inputs(self, endpoint: str) -> list[dict[str, Any]]:
        return [{"prediction_id": "p1", "request": {"inputs": []}}]


class World:
    """Everything behind an admin door, within a test's reach."""

    def __init__(
        self,
        store: Store | None = None,
        settings: AdminSettings | None = None,
        issuer: Issuer | None = None,
        folder: Path = Path("/nonexistent"),
    ) -> None:
        self.memory = MemoryStore()
        self.governance = MemoryGovernance()
        self.inspector = FakeInspector()
        self.store: Store = self.memory if store is None else store
        self.clock = ManualClock()
        self.tokens: tuple[Token, ...] = TOKENS
        self.issuer = issuer
        self.refusals: list[tuple[str, Action, str | None]] = []
        self.lagging: dict[str, str] = {}
        self.alarms: dict[str, str] = {}
        self.behind = 0
        self.refused: list[dict[str, Any]] = []
        self.evidence: dict[str, Evidence] = {}
        self.points: list[bytes] = []
        self.units: dict[bytes, bytes] = {}
        self.keys: SigningKeys | None = KEYS
        self.rotated: list[str] = []
        self.registry = Registry(
            self.store, now=self.clock, entropy=CountingEntropy(), evidence_of=self.evidence_of
        )
        self.experiments = Experiments(self.registry, now=self.clock, entropy=CountingEntropy())
        self.governance = MemoryGovernance()
        self.announcements = MemoryAnnouncements()
        self.courier = FakeCourier()
        self.reports = Reports(
            ReportParts(
                registry=self.registry,
                evidence_of=self.evidence_of,
                results=self.results_of,
                points_of=self.points_of,
                decide=judge_by_units,
                now=self.clock,
            )
        )
        self.wishes = Wishes(self.registry, self.clock)
        self.principals = Principals(self.registry, now=self.clock, entropy=CountingEntropy())
        self.models = FolderStore(
            folder / "models", folder / "cache", describe=None, now=self.clock
        )
        self.uploads = UploadFolder(
            folder / "uploads", BOUNDS, now=self.clock, entropy=CountingEntropy()
        )
        self.denials = Denials(self.registry, now=self.clock)
        self.restores: list[tuple[Request, bool]] = []
        self.parts = AdminParts(
            registrar=Registrar(self.registry, self.models, self.reception(), self.uploads),
            versions=Versions(self.registry, self.governance),
            registry=self.registry,
            experiments=self.experiments,
            bundles=Bundles(self.registry, self.experiments, entropy=CountingEntropy()),
            gates=Gates(self.registry, self.clock),
            wishes=self.wishes,
            reports=self.reports,
            whatifs=WhatIfs(self.registry, self.units_of),
            retainer=Retainer(
                RetentionParts(
                    registry=self.registry,
                    store=self.store,
                    reports=self.governance,
                    files=FakeFiles(),
                    standing=Standing("here", leads=True),
                    served=lambda: self.registry.snapshot,
                    now=self.clock,
                )
            ),
            webhooks=Webhooks(
                WebhookParts(
                    store=self.announcements,
                    courier=self.courier,
                    registry=self.registry,
                    namespace="tiltyard",
                    now=self.clock,
                    entropy=CountingEntropy(),
                )
            ),
            cards=Cards(
                registry=self.registry,
                store=self.store,
                governance=self.governance,
                reports=self.reports,
                now=self.clock,
            ),
            auditing=Auditing(
                AuditingParts(
                    place=AuditPlace(log=StoreLog(self.store), namespace="test", keep_s=0.0),
                    registry=self.registry,
                    key=lambda: bytes(32),
                    now=self.clock,
                )
            ),
            denials=self.denials,
            restore=self.restore,
            store=self.store,
            data_plane=Plane(),
            status=self.status,
            metrics=lambda: b"tiltyard_up 1\n",
            principals=self.principals,
            tokens=self.known,
            keys=lambda: self.keys,
            rotate_keys=self.rotate_keys,
            settings=settings or AdminSettings(),
            clock=self.clock,
            now=self.clock,
            issuer=issuer,
            denied=self.denied,
        )
        self.app: ASGIApp = create_admin(self.parts)

    def known(self) -> Tokens:
        """The tokens of this world, and those of its Snapshot."""
        return Tokens((*self.tokens, *tokens_in(self.registry.snapshot)))

    def denied(self, principal: Principal, action: Action, model: str | None) -> None:
        """Somebody was refused what they may not do."""
        self.refusals.append((principal.name, action, model))
        self.denials.refused(principal, action, model)

    def reception(self) -> Reception:
        """Where versions are inspected, by a fake."""
        return Reception(
            ReceptionParts(
                store=self.store,
                governance=self.governance,
                inspector=self.inspector,
                models=self.models,
                registry=self.registry,
                data_plane=Plane(),
                now=self.clock,
            )
        )

    async def seed(self, *numbers: int) -> "World":
        """Register versions of the model, the first its champion."""
        for number in numbers or (1, 2, 3):
            manifest = manifest_of(MODEL, number)
            await self.store.put_manifest(manifest)
            first = ModelRecord(versions={}, aliases={"champion": number})
            await self.registry.register(manifest, Request(actor="seed"), seed=first)
        return self

    async def evidence_of(self, ids: Sequence[str]) -> Mapping[str, Evidence]:
        """What was folded, by experiment."""
        await self.store.read()
        return {one: self.evidence[one] for one in ids if one in self.evidence}

    async def units_of(self, experiment_id: str, limit: int) -> Mapping[bytes, bytes]:
        """The states of an experiment's units."""
        await self.store.read()
        return self.units

    async def results_of(self) -> Mapping[str, Mapping[str, int]]:
        """What became of outcomes, the same for every experiment."""
        return {one: {"late": 2, "duplicate": 1_500} for one in self.evidence}

    async def points_of(self, experiment: str, limit: int) -> Sequence[bytes]:
        """The history of whichever experiment is asked for."""
        return self.points[-limit:]

    async def restore(self, asked: Request, dry_run: bool) -> Restored:
        """Take note of who asks, and answer as if a lost store was put back."""
        self.restores.append((asked, dry_run))
        return Restored(
            done=not dry_run,
            epoch=2,
            revision=43,
            from_epoch=1,
            from_revision=42,
            store="empty",
            lost_revisions=(1, 42),
            manifests=3,
            without_manifest=("flights/9",),
            signing_keys=2,
            experiments=("ramp",),
        )

    async def rotate_keys(self, actor: str) -> SigningKeys:
        """A rotation that settles at once, by the same steps as a real one."""
        before = await self.store.signing_keys(KEYS)
        key_id = max(before.keys) + 1
        known = with_next(before, key_id, f"{key_id:02x}" * 32)
        self.keys = signing_with(known, key_id, self.clock())
        await self.store.replace_signing_keys(before, self.keys)
        self.rotated.append(actor)
        return self.keys

    async def status(self) -> Mapping[str, Any]:
        """What control would say if this process were all there is."""
        revision = self.registry.snapshot.revision - self.behind
        own = Acknowledgement(
            process="one",
            at=self.clock(),
            epoch=1,
            revision=revision,
            source="redis",
            ready=True,
            leads=True,
            endpoints={
                MODEL: EndpointReport(revision=revision, lagging=self.lagging.get(MODEL)),
            },
            versions=(),
        )
        standing = Standing(process="one", source="redis", reachable=not self.memory.away)
        standing.alarms = self.alarms
        newest = self.registry.snapshot.revision
        document = status_of(standing, own, [], newest=newest, now=self.clock())
        return {**document, "refused": self.refused}

    def client(self, token: str | None = WRITER, host: str = "127.0.0.1:8082") -> httpx.AsyncClient:
        """A client of the door."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)

    async def ask(
        self, method: str, path: str, document: object = None, **given: Any
    ) -> httpx.Response:
        """Ask once, as the holder of a token that may write unless told otherwise."""
        token = given.pop("token", WRITER)
        host = given.pop("host", "127.0.0.1:8082")
        headers = dict(given.pop("headers", {}))
        content = given.pop("content", None)
        if document is not None:
            content = msgspec.json.encode(document)
        if content is not None:
            headers.setdefault("content-type", "application/json")
        async with self.client(token, host) as client:
            return await client.request(method, path, content=content, headers=headers, **given)

    async def knock(self, method: str, raw_path: str, token: str | None) -> tuple[int, Headers]:
        """Ask with a method and a path exactly as given; the status and the headers."""
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        if token is not None:
            headers.append((b"authorization", b"Bearer " + token.encode()))
        scope = {
            "type": "http",
            "method": method,
            "path": unquote(raw_path),
            "raw_path": raw_path.encode(),
            "query_string": b"",
            "headers": headers,
            "client": ("10.0.0.9", 1),
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b'{"version":2}'}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0]["status"], sent[0]["headers"]


class Waiting(httpx.BaseTransport):
    """Carries a synchronous client's requests to an ASGI application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._carry(request))

    async def _carry(self, request: httpx.Request) -> httpx.Response:
        answer = await httpx.ASGITransport(self.app).handle_async_request(request)
        body = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)
