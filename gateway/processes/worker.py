"""A worker: one process that serves. It knows its models, one Snapshot and the way to control.

Nothing that it imports speaks to Redis, a collector or the disk's records.
"""

import asyncio
import contextlib
import socket
import time
from typing import Final

import uvloop

from gateway.doors.http.listening import Listener, configure
from gateway.processes.accepting import Accepting, sockets_to_hold
from gateway.processes.birth import Birth
from gateway.processes.homeward import FarOutcomes, FarRepository, Homeward
from gateway.processes.interpreter import settle_down
from gateway.processes.living import BEAT_S, STEADY_BEAT_S, beat, leave_within, told_to_stop
from gateway.processes.roster import Roster, share
from gateway.processes.serving_half import ServingHalf
from gateway.processes.slots import workers_stop_s
from gateway.serving.vitals import DRAINING, READY, STARTING
from gateway.tasks import forever

PATIENCE_S: Final = 5.0
"""How long callers of a worker that starts again wait, when nobody else accepts for it."""
FLUSH_S: Final = 2.0
FAREWELL_S: Final = 0.25
"""At least so long answers say `connection: close` before idle connections are closed, so that who
is just about to ask on one hears of it in an answer."""


def run(birth: Birth) -> int:
    """Serve until told to stop; the exit code.

    Raises:
        InvalidRequest: a certificate cannot be used.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(birth))


async def _serve(birth: Birth) -> int:
    settings = birth.settings
    stopping = told_to_stop(birth)
    roster = share(birth.memory, birth.workers + 1)
    half = ServingHalf(settings, roster.region(birth.slot, birth.life), birth.workers)
    half.worker.has_company = False
    homeward = Homeward(birth, half.worker, half.recorder)
    settle_down()
    tls = (settings.http.tls_cert, settings.http.tls_key)
    door = half.door(FarRepository(homeward), FarOutcomes(homeward))
    server = Listener(configure(door, settings, tls, lifespan="off", protocol=half.connect))
    sockets = {n: socket.socket(fileno=fd) for n, fd in enumerate(birth.listeners, start=1)}
    accepting = Accepting(server, sockets)
    serving = asyncio.create_task(server.serve(sockets=[]))
    carrying = asyncio.create_task(forever("link", homeward.run))
    living = asyncio.create_task(_live(birth, roster, half, accepting))
    await stopping.wait()
    leave_within(workers_stop_s(settings.stop_s, settings.drain_delay_s))
    half.worker.stopping = True
    await asyncio.sleep(max(settings.drain_delay_s, FAREWELL_S))
    server.should_exit = True
    for listening in sockets.values():
        listening.close()
    await serving
    for task in (carrying, living):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FLUSH_S):
            await homeward.flush()
    await asyncio.to_thread(half.close)
    return 0


async def _live(birth: Birth, roster: Roster, half: ServingHalf, accepting: Accepting) -> None:
    """Beat, and accept from the sockets that are ours to accept from now."""
    worker = half.worker
    others = [slot for slot in range(1, roster.slots) if slot != birth.slot]
    patient_until = time.monotonic() + PATIENCE_S if birth.life > 1 else 0.0
    while True:
        is_serving = worker.is_serving
        state = READY if is_serving else DRAINING if worker.stopping else STARTING
        if worker.pool.stuck < birth.settings.pool.spare_threads:
            beat(roster, birth, state)
        # Else models that hang hold every spare thread: without a beat we are replaced.
        if not worker.has_company:
            worker.has_company = not any(map(roster.is_first_start, others))
        if not worker.stopping:
            wanted = sockets_to_hold(
                roster,
                birth.slot,
                time.monotonic_ns(),
                is_serving=is_serving,
                may_wait=time.monotonic() < patient_until,
            )
            await accepting.hold(wanted)
        elif roster.is_relieved(birth.slot, birth.life):
            await accepting.hold(set())  # whoever connects now is another's
        is_steady = is_serving and worker.has_company and not worker.stopping
        await asyncio.sleep(STEADY_BEAT_S if is_steady else BEAT_S)
