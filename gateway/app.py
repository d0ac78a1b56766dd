"""The front step: the ASGI application of the one-process form, both halves joined by calls.

`create` is for any ASGI server; `gateway.running` runs it under uvicorn. With workers, the halves
are processes of their own (`gateway.processes`), built of the same parts.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from gateway.adapters.otel import OtelConfig, read_config
from gateway.control.pump import Pump
from gateway.core.errors import GatewayError, NotReady
from gateway.doors.http.guarded import GuardedProtocol
from gateway.doors.http.listening import Listener, bind, configure, for_admin
from gateway.doors.http.messages import ASGIApplication, Message, Receive, Send
from gateway.doors.http.watch import Watch
from gateway.processes.control_half import FLUSH_SHARE, ControlHalf, check_admin
from gateway.processes.serving_half import ServingHalf
from gateway.settings import Settings, load
from gateway.tasks import Tasks


class Gateway:
    """Everything of one process.

    Requires: built in the running event loop; `start`, then `stop`.
    """

    def __init__(self, settings: Settings, otel: OtelConfig) -> None:
        """Build every room; nothing is started."""
        self._stop_s = settings.stop_s
        self._tasks = Tasks()
        self._serving = ServingHalf(settings)
        self.worker = self._serving.worker
        self._control = ControlHalf(
            settings, otel, self.worker, self._serving.cells, self._serving.cells.collect
        )
        self._pump = self._pumped(otel)
        plane = self._control.plane
        self.door = self._serving.door(plane.repository, plane.intake)

        self.connect = self._serving.connect

    def admin(self) -> ASGIApplication:
        """The application of the admin listener."""
        return self._control.admin()

    async def start(self) -> None:
        """Start control. Never waits for a model."""
        await self._control.start()
        self._tasks.start("pump", self._pump.run)

    async def stop(self) -> None:
        """Stop in the order in which things depend on each other."""
        self._pump.close()
        await self._tasks.close()
        await self._control.stop(self._stop_s * FLUSH_SHARE)
        await asyncio.to_thread(self._serving.close)

    def _pumped(self, otel: OtelConfig) -> Pump:
        """What carries sightings, and records to the exporter if there is one."""
        recorder, control = self._serving.recorder, self._control
        recorder.with_spans = otel.traces is not None
        return Pump(recorder, control.exporter, control.resource, control.plane.intake.observe)


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
        """A connection of the inference port."""
        connect = GuardedProtocol if self.gateway is None else self.gateway.connect
        return connect(config, server_state, app_state, _loop, watch=watch)

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
        self._admin_server = Listener(configure(admin, for_admin(settings), tls, lifespan="off"))
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
