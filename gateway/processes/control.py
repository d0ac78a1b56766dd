"""The control process: one for each host. Every foreign system is spoken to here."""

import asyncio
import contextlib
import os
import socket
from typing import Final

import uvloop

from gateway.adapters.otel import OtelConfig, read_config, resource_of
from gateway.control.export import Exporter
from gateway.doors.http.listening import Listener, configure, for_admin
from gateway.processes.birth import Birth
from gateway.processes.control_half import ControlHalf, check_admin
from gateway.processes.fleet import Fleet
from gateway.processes.living import BEAT_S, STEADY_BEAT_S, beat, leave_within, told_to_stop
from gateway.processes.roster import Roster, share
from gateway.processes.slots import workers_stop_s
from gateway.serving.cells import Cells, watch_process
from gateway.serving.vitals import DRAINING, READY, STARTING
from gateway.tasks import Tasks

FLUSH_SHARE: Final = 0.6
"""Of control's own part of the time to stop in: what telemetry may take."""


def run(birth: Birth) -> int:
    """Control until told to stop; the exit code.

    Raises:
        GatewayError: a setting is wrong, or the embedded store cannot be had.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Control(birth).live())


class _Sources:
    """The exporter, as the fleet knows it."""

    def __init__(self, exporter: Exporter, otel: OtelConfig) -> None:
        self._exporter = exporter
        self._otel = otel
        self._host = socket.gethostname()
        self.receive = exporter.receive
        self.lost = exporter.lost

    def source(self, name: str, pid: int, settled: int) -> None:
        resource = resource_of(self._otel, self._host, pid, int(name))
        self._exporter.source(name, resource, settled)


class _Control:
    """Requires: built in the running event loop, or just before it; `live` once."""

    def __init__(self, birth: Birth) -> None:
        self._birth = birth
        self._state = STARTING
        self._tasks = Tasks()

    async def live(self) -> int:
        birth, settings = self._birth, self._birth.settings
        check_admin(settings)
        stopping = told_to_stop(birth)
        roster = share(birth.memory, birth.workers + 1)
        beating = asyncio.create_task(self._beat(roster))
        cells = Cells()
        watch_process(cells)
        otel = read_config(os.environ)
        fleet = Fleet(roster, birth.secret, cells, settings.shadows.samples)
        half = ControlHalf(settings, otel, fleet, cells, fleet.collect)
        fleet.observe_with(half.plane.intake.observe)
        if half.exporter is not None:
            fleet.record_to(_Sources(half.exporter, otel), with_spans=otel.traces is not None)
        tls = (settings.admin.tls_cert, settings.admin.tls_key)
        admin = Listener(configure(half.admin(), for_admin(settings), tls, lifespan="off"))
        try:
            await half.start()
            fleet.serve(half.plane.repository, half.plane.intake)
            await self._serve(fleet, admin, stopping)
        finally:
            rest_s = settings.stop_s - workers_stop_s(settings.stop_s, settings.drain_delay_s)
            fleet.close()
            await half.stop(rest_s * FLUSH_SHARE)
            beating.cancel()
        return 0

    async def _serve(self, fleet: Fleet, admin: Listener, stopping: asyncio.Event) -> None:
        """Answer workers and operators until it is time; workers may say what they still have."""
        birth, settings = self._birth, self._birth.settings
        loop = asyncio.get_running_loop()
        waiting = socket.socket(fileno=birth.link)
        links = await loop.create_unix_server(fleet.link, sock=waiting)
        self._tasks.start("fleet", fleet.watch)
        serving = asyncio.create_task(
            admin.serve(sockets=[socket.socket(fileno=birth.admin)]), name="admin listener"
        )
        self._state = READY
        await stopping.wait()
        self._state = DRAINING
        leave_within(settings.stop_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(workers_stop_s(settings.stop_s, settings.drain_delay_s)):
                await fleet.emptied()
        admin.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        await self._tasks.close()
        links.close()

    async def _beat(self, roster: Roster) -> None:
        while True:
            beat(roster, self._birth, self._state)
            await asyncio.sleep(STEADY_BEAT_S if self._state == READY else BEAT_S)
