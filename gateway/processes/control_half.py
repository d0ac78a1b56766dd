"""The control half of a process: the control plane, its stores and the admin application.

The one-process form and the control process build it here. It sees the serving half as a
`DataPlane` and does not know whether that is in this process.
"""

import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.adapters.circumstances import circumstances
from gateway.adapters.courier import CourierRules, HttpCourier
from gateway.adapters.disk import ADMIN_FILE, StateFolder
from gateway.adapters.journal import Journal
from gateway.adapters.objects import folder_of, open_store
from gateway.adapters.onnx import describe
from gateway.adapters.otel import OtelConfig, OtlpSender, resource_of
from gateway.adapters.otel_encode import OtlpEncoder
from gateway.adapters.redis import (
    RedisAnnouncements,
    RedisAuditLog,
    RedisEvidence,
    RedisFolds,
    RedisGovernance,
    RedisHistory,
    RedisStore,
)
from gateway.adapters.sandbox import SandboxInspector
from gateway.adapters.segments import Segments
from gateway.adapters.sweeping import FolderSweeper
from gateway.adapters.uploads import UploadBounds, UploadFolder
from gateway.adapters.valkey import EmbeddedValkey
from gateway.control.auditing import DAY_S, AuditPlace
from gateway.control.bundles import Bundles
from gateway.control.export import Exporter
from gateway.control.export_parts import Clock as ExportClock
from gateway.control.export_parts import ExportParts, ExportSettings, Wire
from gateway.control.plane import ControlParts, ControlPlane
from gateway.control.telling import TellingParts
from gateway.core.errors import InvalidRequest
from gateway.doors.http.admin import create_admin
from gateway.doors.http.admin_calls import AdminParts
from gateway.doors.http.messages import ASGIApplication
from gateway.doors.http.metrics import render
from gateway.governance_ports import Inspector, Issuer
from gateway.ports import DataPlane, ModelStore
from gateway.processes.following import desk_of, sources_of
from gateway.processes.names import process_name
from gateway.processes.stores import Stores
from gateway.serving.cells import Cells
from gateway.settings import LOOPBACK, Settings
from gateway.tasks import Tasks
from gateway.telemetry import CONFIG_AGE, CONFIG_REJECTED, Series

FLUSH_SHARE: Final = 0.3
"""Of the time to stop in: what telemetry may take to send what is left."""


class ControlHalf:
    """Requires: built in the running event loop; `start`, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        otel: OtelConfig,
        data_plane: DataPlane,
        cells: Cells,
        collect: Callable[[], list[Series]],
    ) -> None:
        """Build every room; nothing is started.

        Args:
            settings: the whole tree.
            otel: where telemetry goes.
            data_plane: whoever serves.
            cells: this process's own.
            collect: all metrics of this host, as they were refreshed last.
        """
        self._settings = settings
        self._data_plane = data_plane
        self._cells = cells
        self._collect = collect
        self.resource = resource_of(otel, socket.gethostname(), os.getpid())
        self._tasks = Tasks()
        self.valkey = _embedded(settings)
        self.exporter = self._exported(otel)
        self._inspector = _inspector(settings)
        self._stores = Stores(settings, None if self.valkey is None else self.valkey.url)
        self.plane = ControlPlane(self._parts(otel))
        self._issuer = _issuer(settings)
        self._cells.watch(self._measure)

    def _parts(self, otel: OtelConfig) -> ControlParts:
        settings, stores = self._settings, self._stores
        state, journal_bytes = Path(settings.state_dir), settings.outcomes.journal_mb << 20
        return ControlParts(
            store=stores.sealed(RedisStore),
            audit=self._audit(),
            disk=StateFolder(state, entropy=secrets.token_bytes, admin_token=settings.admin.token),
            models=self._models(state),
            uploads=_uploads(settings, state),
            inspector=self._inspector,
            files=FolderSweeper(folder_of(settings.model_store), state / "cache"),
            governance=stores.made(RedisGovernance),
            data_plane=self._data_plane,
            exporter=self.exporter,
            evidence=stores.made(RedisEvidence),
            folds=stores.made(RedisFolds),
            history=stores.made(RedisHistory),
            circumstances=circumstances(),
            telling=self._telling(otel),
            journal=Journal(
                state, journal_bytes, name=socket.gethostname(), entropy=secrets.token_bytes
            ),
            journal_bytes=journal_bytes,
            cells=self._cells,
            now=time.time,
            entropy=secrets.token_bytes,
            process=process_name(settings),
            poll_s=settings.redis.poll_s,
            scan_s=settings.store_scan_s,
            max_age_s=settings.outcomes.max_age_s,
            follow=sources_of(settings, stores) if settings.mlflow.url else None,
        )

    def metrics(self) -> bytes:
        """All metrics for Prometheus."""
        return render(self._collect(), self.resource)

    def admin(self) -> ASGIApplication:
        """The application of the admin listener."""
        return create_admin(
            AdminParts(
                registry=self.plane.registry,
                experiments=self.plane.experiments,
                bundles=Bundles(
                    self.plane.registry, self.plane.experiments, entropy=secrets.token_bytes
                ),
                gates=self.plane.governance.gates,
                wishes=self.plane.governance.wishes,
                reports=self.plane.reports,
                whatifs=self.plane.whatifs,
                retainer=self.plane.governance.retainer,
                cards=self.plane.governance.cards,
                webhooks=self.plane.governance.telling.webhooks,
                registrar=self.plane.registrar,
                versions=self.plane.versions,
                auditing=self.plane.auditing,
                denials=self.plane.denials,
                denied=self.plane.denials.refused,
                restore=self.plane.restore,
                store=self.plane.store,
                data_plane=self._data_plane,
                status=self.plane.status,
                metrics=self.metrics,
                principals=self.plane.principals,
                tokens=lambda: self.plane.keyring.tokens(self.plane.registry.snapshot),
                keys=lambda: self.plane.keyring.keys,
                rotate_keys=self.plane.rotate_keys,
                settings=self._settings.admin,
                clock=time.monotonic,
                now=time.time,
                issuer=self._issuer,
                mlflow=desk_of(self._settings.mlflow, self.plane.governance.follower),
            )
        )

    async def start(self) -> None:
        """Start the embedded store if there is one, then control. Never waits for a model."""
        if self.valkey is not None:
            await self.valkey.start()
            self._tasks.start("embedded store", self.valkey.watch)
        await self.plane.start()

    async def stop(self, flush_s: float) -> None:
        """Send what telemetry is left for at most `flush_s`; stop, the embedded store last."""
        await self.plane.stop(flush_s)
        await self._tasks.close()
        if self._issuer is not None:
            await self._issuer.close()
        if self.valkey is not None:
            await self.valkey.stop()

    def _measure(self) -> None:
        """Bring the gauges up to date that no room below can see by itself."""
        standing = self.plane.watcher.standing
        age_s = 0.0 if standing.reachable else time.time() - standing.since
        self._cells.gauge(CONFIG_AGE).set(age_s)
        self._cells.counter(CONFIG_REJECTED).value = standing.rejections

    async def _refreshed(self) -> list[Series]:
        await self._data_plane.refresh()
        return self._collect()

    def _exported(self, otel: OtelConfig) -> Exporter | None:
        """The exporter, where the environment names a collector or records are kept on disk."""
        recording = self._settings.recording
        keep_bytes = recording.keep_mb << 20
        if not keep_bytes and not otel.exports_records and otel.metrics is None:
            return None
        return Exporter(
            ExportParts(
                cells=self._cells,
                wire=Wire(OtlpEncoder(self.resource, time.time_ns()), OtlpSender(otel, time.time)),
                clock=ExportClock(time.monotonic, time.time_ns, random.random),
                collect=self._refreshed,
                folder=Segments(Path(self._settings.state_dir), keep_bytes) if keep_bytes else None,
            ),
            ExportSettings(
                logs=otel.logs is not None,
                traces=otel.traces is not None,
                metrics=otel.metrics is not None,
                batch_records=otel.batch_records,
                linger_s=otel.linger_s,
                metric_interval_s=otel.metric_interval_s,
                max_records=recording.max_records,
                max_bytes=recording.max_bytes,
            ),
        )

    def _models(self, state: Path) -> ModelStore:
        settings = self._settings
        reading = describe if self._inspector is None else None
        return open_store(settings.model_store, state / "cache", describe=reading, now=time.time)

    def _telling(self, otel: OtelConfig) -> TellingParts:
        webhooks = self._settings.webhooks
        rules = CourierRules(webhooks.allow_http, webhooks.allow_hosts, webhooks.timeout_s)
        # A connection of its own: the exporter's takes one request at a time.
        sender = None if otel.logs is None else OtlpSender(OtelConfig(logs=otel.logs), time.time)
        return TellingParts(
            store=self._stores.made(RedisAnnouncements),
            courier=HttpCourier(rules, time.time),
            sender=sender,
            clock=ExportClock(time.monotonic, time.time_ns, random.random),
            resource=self.resource,
            namespace=self._settings.redis.namespace,
            give_up_s=webhooks.give_up_s,
        )

    def _audit(self) -> AuditPlace:
        redis = self._settings.redis
        log = self._stores.sealed(RedisAuditLog)
        return AuditPlace(log=log, namespace=redis.namespace, keep_s=redis.audit_days * DAY_S)


def check_admin(settings: Settings) -> None:
    """Refuse an admin listener that others can reach but nobody was given a token for."""
    if settings.admin.host in LOOPBACK or settings.admin.token is not None:
        return
    if not (Path(settings.state_dir) / ADMIN_FILE).exists():
        message = (
            f"The admin listener on {settings.admin.host} is not on loopback: "
            "set TILTYARD_ADMIN_TOKEN first."
        )
        raise InvalidRequest(message)


def _issuer(settings: Settings) -> Issuer | None:
    """Who verifies tokens that are not ours, where one is named.

    Raises:
        InvalidRequest: its library is not installed.
    """
    if settings.oidc.issuer is None:
        return None
    from gateway.adapters.oidc import OidcIssuer  # noqa: PLC0415 - most never need it

    return OidcIssuer(settings.oidc, now=time.time)


def _embedded(settings: Settings) -> EmbeddedValkey | None:
    if settings.redis.url is not None or not settings.redis.embedded:
        return None
    return EmbeddedValkey(Path(settings.state_dir))


def _inspector(settings: Settings) -> Inspector | None:
    """Whoever inspects versions; None where they are read as they are."""
    if settings.inspection.mode == "off":
        return None
    return SandboxInspector(settings.inspection, now=time.time)


def _uploads(settings: Settings, state: Path) -> UploadFolder:
    bounds = UploadBounds(
        max_bytes=settings.uploads.max_mb << 20,
        quota_bytes=settings.uploads.quota_mb << 20,
        max_open=settings.uploads.max_open,
        expire_s=settings.uploads.expire_s,
    )
    return UploadFolder(state / "uploads", bounds, now=time.time, entropy=secrets.token_bytes)
