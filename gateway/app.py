"""The front step: builds every room, and owns start, stop, the clocks and chance.

`create` is the ASGI application for any server; `gateway.running` runs it under uvicorn. Nothing
else in the gateway reads the environment, a clock or a random source.
"""

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from gateway.adapters.disk import ADMIN_FILE, StateFolder
from gateway.adapters.folder import FolderStore
from gateway.adapters.onnx import OnnxLoader, describe, trim_memory
from gateway.adapters.otel import OtelConfig, OtlpSender, read_config, resource_of
from gateway.adapters.otel_encode import OtlpEncoder
from gateway.adapters.redis import RedisStore
from gateway.adapters.segments import Segments
from gateway.adapters.valkey import EmbeddedValkey
from gateway.control.export import Exporter
from gateway.control.export_parts import Clock as ExportClock
from gateway.control.export_parts import ExportParts, ExportSettings, Wire
from gateway.control.plane import ControlParts, ControlPlane
from gateway.control.pump import Pump
from gateway.core.errors import GatewayError, InvalidRequest, NotReady
from gateway.core.oip.messages import Limits
from gateway.doors.http.admin import create_admin
from gateway.doors.http.admin_calls import AdminParts
from gateway.doors.http.answers import Answers
from gateway.doors.http.aside import Aside
from gateway.doors.http.exchange import Desk
from gateway.doors.http.fast import FastProtocol
from gateway.doors.http.guarded import GuardedProtocol
from gateway.doors.http.inference import DoorParts, InferenceDoor
from gateway.doors.http.listening import Listener, bind, configure
from gateway.doors.http.messages import ASGIApplication, Message, Receive, Send
from gateway.doors.http.metrics import render
from gateway.doors.http.readers import Readers
from gateway.doors.http.requests import Requests
from gateway.doors.http.watch import Watch
from gateway.serving.admission import Admission
from gateway.serving.afterwards import Afterwards
from gateway.serving.caching import ResponseCache
from gateway.serving.cells import Cells, watch_process
from gateway.serving.concluding import Concluder
from gateway.serving.keeping import MIB
from gateway.serving.pipeline import Pipeline
from gateway.serving.pool import PoolParts
from gateway.serving.recording import Recorder
from gateway.serving.shadowing import Shadows
from gateway.serving.worker import Worker
from gateway.settings import LOOPBACK, Settings, load
from gateway.tasks import Tasks
from gateway.telemetry import ACTIVE_REQUESTS, CONFIG_AGE, CONFIG_REJECTED, Attributes

FLUSH_SHARE: Final = 0.3
"""Of the time to stop in: what telemetry may take to send what is left."""


class SystemClock:
    """This machine's clocks."""

    monotonic_ns = staticmethod(time.perf_counter_ns)
    unix_ns = staticmethod(time.time_ns)


class Gateway:
    """Everything of one process.

    Requires: built in the running event loop; `start`, then `stop`.
    """

    def __init__(self, settings: Settings, otel: OtelConfig) -> None:
        """Build every room; nothing is started."""
        self.settings = settings
        loop = asyncio.get_running_loop()
        clock = SystemClock()
        chance = random.Random(secrets.token_bytes(32))  # noqa: S311 - unique, not secret
        state = Path(settings.state_dir)
        resource = resource_of(otel, socket.gethostname(), os.getpid())
        self.cells = Cells()
        watch_process(self.cells)
        self.recorder = Recorder(self.cells, settings.recording, with_spans=otel.traces is not None)
        exporter = exporter_of(otel, settings, self.cells, resource)
        self.pump = None if exporter is None else Pump(self.recorder, exporter, resource)
        self.recorder.enabled = exporter is not None and exporter.wants_records
        self.admission = Admission(settings.admission, clock.monotonic_ns)
        self.worker, concluder = self._serving(loop, clock, chance.randbytes)
        self.pipeline = Pipeline(self.worker, concluder, settings.batching.max_request_rows)
        self.valkey = _embedded(settings, state)
        self.control = ControlPlane(
            ControlParts(
                store=self._store(),
                disk=StateFolder(
                    state, entropy=secrets.token_bytes, admin_token=settings.admin.token
                ),
                models=FolderStore(
                    Path(settings.model_store), state / "cache", describe=describe, now=time.time
                ),
                data_plane=self.worker,
                exporter=exporter,
                now=time.time,
                entropy=secrets.token_bytes,
                process=process_name(settings),
                poll_s=settings.redis.poll_s,
                scan_s=settings.store_scan_s,
            )
        )
        self.aside = Aside(loop)
        limits = Limits(
            body_bytes=settings.http.max_body_bytes, json_bytes=settings.http.max_json_bytes
        )
        self.desk = Desk(
            pipeline=self.pipeline,
            admission=self.admission,
            aside=self.aside,
            clock=clock,
            randbytes=chance.randbytes,
            limits=limits,
            readers=Readers(limits),
            answers=Answers(settings.http.json_nonfinite),
            trace_ratio=settings.recording.trace_ratio,
        )
        self.requests = Requests(self.cells)
        self.door = InferenceDoor(
            DoorParts(self.desk, self.control.repository, self.requests, settings.batching.max_rows)
        )
        self._resource = resource
        self._tasks = Tasks()
        self.cells.watch(self._measure)

    def metrics(self) -> bytes:
        """All metrics for Prometheus."""
        return render(self.cells.collect(), self._resource)

    def admin(self) -> ASGIApplication:
        """The application of the admin listener."""
        return create_admin(
            AdminParts(
                registry=self.control.registry,
                store=self.control.store,
                data_plane=self.worker,
                status=self.control.status,
                metrics=self.metrics,
                tokens=lambda: self.control.keyring.tokens,
                settings=self.settings.admin,
                clock=time.monotonic,
            )
        )

    async def start(self) -> None:
        """Start the embedded store if there is one, then control. Never waits for a model."""
        if self.valkey is not None:
            await self.valkey.start()
            self._tasks.start("embedded store", self.valkey.watch)
        await self.control.start()
        if self.pump is not None:
            self._tasks.start("pump", self.pump.run)

    async def stop(self) -> None:
        """Stop in the order in which things depend on each other, the embedded store last."""
        if self.pump is not None:
            self.pump.close()
        await self.control.stop(self.settings.stop_s * FLUSH_SHARE)
        await asyncio.to_thread(self.worker.close)
        await asyncio.to_thread(self.aside.close)
        await self._tasks.close()
        if self.valkey is not None:
            await self.valkey.stop()

    def _measure(self) -> None:
        """Bring the gauges up to date that no room below can see by itself."""
        standing = self.control.watcher.standing
        age_s = 0.0 if standing.reachable else time.time() - standing.since
        self.cells.gauge(CONFIG_AGE).set(age_s)
        self.cells.counter(CONFIG_REJECTED).value = standing.rejections
        self.cells.gauge(ACTIVE_REQUESTS).set(self.pipeline.in_flight)

    def _serving(
        self, loop: asyncio.AbstractEventLoop, clock: SystemClock, randbytes: Callable[[int], bytes]
    ) -> tuple[Worker, Concluder]:
        settings = self.settings
        parts = PoolParts(
            loop=loop,
            load_engine=OnnxLoader.of(settings.pool, workers=1),
            trim_memory=trim_memory,
            now_ns=clock.monotonic_ns,
            pool=settings.pool,
            batching=settings.batching,
            cells=self.cells,
            work_ns=time.thread_time_ns,
            after_flush=Afterwards(loop, self.recorder.encode_many).soon,
        )
        shadows = Shadows(parts, settings.shadows, self.recorder, calm=lambda: self.admission.calm)
        worker = Worker(parts, shadows, ResponseCache(parts, settings.cache.max_mb * MIB))
        return worker, Concluder(worker, self.recorder, clock, randbytes)

    def _store(self) -> RedisStore:
        redis = self.settings.redis
        url = redis.url if self.valkey is None else self.valkey.url
        if url is None:
            message = "Set TILTYARD_REDIS_URL, or allow the embedded store."
            raise InvalidRequest(message)
        return RedisStore(
            url,
            namespace=redis.namespace,
            timeout_s=redis.timeout_s,
            name=process_name(self.settings),
            seal_key=redis.seal_key,
        )


class Application:
    """The ASGI application: the inference door, and the admin listener in its lifespan."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        """Nothing is built before the lifespan starts, because it needs the event loop."""
        self._settings = settings
        self._otel = read_config(environ)
        self._admin: asyncio.Task[None] | None = None
        self._admin_server: Listener | None = None
        self.gateway: Gateway | None = None
        self.failure: GatewayError | OSError | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or live through start and stop."""
        if scope["type"] == "http":
            if self.gateway is None:
                message = "The gateway needs its lifespan; run the server with it on."
                raise NotReady(message)
            await self.gateway.door(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    def connect(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        watch: Watch,
    ) -> GuardedProtocol:
        """A connection of the inference port, by the door that the settings choose."""
        of_server = (config, server_state, app_state, _loop)
        if self.gateway is None or self._settings.http.door == "asgi":
            return GuardedProtocol(*of_server, watch=watch)
        gateway = self.gateway
        return FastProtocol(*of_server, watch=watch, desk=gateway.desk, requests=gateway.requests)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except (GatewayError, OSError) as error:
            self.failure = error
            await self._stop()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        settings = self._settings
        check_admin(settings)
        admin_socket = bind(settings.admin.host, settings.admin.port)
        self.gateway = Gateway(settings, self._otel)
        await self.gateway.start()
        admin = self.gateway.admin()
        tls = (settings.admin.tls_cert, settings.admin.tls_key)
        self._admin_server = Listener(configure(admin, settings, tls, lifespan="off"))
        self._admin = asyncio.create_task(
            self._admin_server.serve(sockets=[admin_socket]), name="admin listener"
        )

    async def _stop(self) -> None:
        if self._admin_server is not None and self._admin is not None:
            self._admin_server.should_exit = True
            await asyncio.gather(self._admin, return_exceptions=True)
        if self.gateway is not None:
            await self.gateway.stop()


def create() -> Application:
    """The application for `uvicorn gateway.app:create --factory`, set by the environment.

    Raises:
        InvalidRequest: a setting is wrong.
    """
    return Application(load(os.environ), os.environ)


def process_name(settings: Settings) -> str:
    """How this process is known to the others: its host and port, stable over restarts."""
    place = settings.http.port or f"pid-{os.getpid()}"
    return f"{socket.gethostname()}:{place}"


def _embedded(settings: Settings, state: Path) -> EmbeddedValkey | None:
    if settings.redis.url is not None or not settings.redis.embedded:
        return None
    return EmbeddedValkey(state)


def exporter_of(
    otel: OtelConfig, settings: Settings, cells: Cells, resource: Attributes
) -> Exporter | None:
    """The exporter, where the environment names a collector or records are kept on disk."""
    keep_bytes = settings.recording.keep_mb << 20
    if not keep_bytes and not otel.exports_records and otel.metrics is None:
        return None
    return Exporter(
        ExportParts(
            cells=cells,
            wire=Wire(OtlpEncoder(resource, time.time_ns()), OtlpSender(otel, time.time)),
            clock=ExportClock(time.monotonic, time.time_ns, random.random),
            folder=Segments(Path(settings.state_dir), keep_bytes) if keep_bytes else None,
        ),
        ExportSettings(
            logs=otel.logs is not None,
            traces=otel.traces is not None,
            metrics=otel.metrics is not None,
            batch_records=otel.batch_records,
            linger_s=otel.linger_s,
            metric_interval_s=otel.metric_interval_s,
            max_records=settings.recording.max_records,
            max_bytes=settings.recording.max_bytes,
        ),
    )


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
