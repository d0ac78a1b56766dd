"""Homeward: a worker's end of the link, always there and mostly silent.

It brings what control hands over, and tells control what is served, counted and recorded. While
control is away the worker serves on with what it has; records wait in their bounded place.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.core.errors import NotReady, Overloaded
from gateway.core.snapshot import order_of
from gateway.ports import RepositoryEntry
from gateway.processes.birth import Birth
from gateway.processes.frames import (
    Apply,
    Ask,
    Entrust,
    Handed,
    Hello,
    Message,
    Offer,
    Pulse,
    Reply,
    Standing,
    Terms,
    rows_of,
)
from gateway.processes.link import AWAY, Link
from gateway.serving.recording import Recorder
from gateway.serving.worker import Worker

log: Final = logging.getLogger(__name__)

LOOK_S: Final = 0.1
"""Between two parcels, and between two attempts to reach control."""
QUIET_LOOKS: Final = 3
"""So many looks are one while nothing comes that is to be handed over."""
PULSE_LOOKS: Final = 10
"""A pulse goes out with every so many looks, if anything was asked for since the last."""
IDLE_LOOKS: Final = 100
"""And with every so many in any case."""
MAX_UNSENT_BYTES: Final = 4 * 1024 * 1024
"""While control is that far behind it is handed nothing more."""
ASK_S: Final = 5.0
LOAD_S: Final = 90.0
KEEP_S: Final = 10.0
"""How long control may take to have outcomes on disk."""


class Homeward:
    """Requires: `run` for the worker's life, then `flush`."""

    def __init__(self, birth: Birth, worker: Worker, recorder: Recorder) -> None:
        """Nothing is connected yet.

        Args:
            birth: who this process is, and where control listens.
            worker: what control hands things to.
            recorder: where prediction records wait; its cells are those of this process.
        """
        self._birth = birth
        self._worker = worker
        self._recorder = recorder
        self._link: Link | None = None
        self._told: Standing | None = None
        self._looks = 0
        self._handed = 0  # parcels
        self._done = -1
        self._done_at = 0  # looks
        worker.moved = self._tell_standing

    async def run(self) -> None:
        """Stay connected and hand over what there is, for ever."""
        quiet = 0
        while True:
            handed = self._handed
            self._hand_over()
            quiet = 0 if handed != self._handed or self._link is None else quiet + 1
            looks = QUIET_LOOKS if quiet > PULSE_LOOKS else 1
            if self._link is None:
                await self._connect()
            else:
                before, self._looks = self._looks, self._looks + looks
                if before // PULSE_LOOKS != self._looks // PULSE_LOOKS:
                    self._beat()
            await asyncio.sleep(LOOK_S * looks)

    async def ask(self, *words: Any, what: Any, timeout_s: float = ASK_S) -> Any:  # noqa: ANN401 - as it travels
        """Ask control.

        Raises:
            NotReady: it is away. GatewayError: what it refused with.
        """
        link = self._link or Link(_ignore, _forget)
        return await link.ask(what, *words, timeout_s=timeout_s)

    async def offer(self, events: Sequence[bytes], outcomes: int) -> None:
        """Hand outcomes to control; return once it has them on disk.

        Raises:
            Overloaded: control is behind. NotReady: it is away. GatewayError: it refused.
        """
        link = self._link
        if link is None:
            raise NotReady(AWAY)
        if not self._takes_more():
            message = "Too many outcomes are on their way; retry later."
            raise Overloaded(message)
        await link.exchange(lambda serial: Offer(serial, tuple(events), outcomes), KEEP_S)

    async def flush(self) -> None:
        """Hand over what is left, wait until it is taken, and hang up."""
        while self._hand_over():  # noqa: ASYNC110 - the transport tells nobody
            await asyncio.sleep(LOOK_S / 10)
        self._tell_standing()
        self._send(self._pulse(with_shadows=True))
        while (link := self._link) is not None and link.is_open and link.unsent_bytes:  # noqa: ASYNC110 - the transport tells nobody
            await asyncio.sleep(LOOK_S / 10)
        if self._link is not None:
            self._link.close()

    async def _connect(self) -> None:
        loop, birth = asyncio.get_running_loop(), self._birth
        link = Link(self._received, self._hung_up)
        try:
            nearby = socket.socket(socket.AF_UNIX)
        except OSError:  # too many files are open
            return
        nearby.settimeout(0)
        try:
            nearby.connect(birth.address)  # at once, or not now: the listener outlives control
            await loop.create_unix_connection(lambda: link, sock=nearby)
        except OSError:
            nearby.close()
            return
        self._link, self._told = link, None
        link.send(Hello(birth.slot, birth.life, os.getpid(), birth.secret))
        self._tell_standing()

    def _received(self, link: Link, message: Message) -> None:
        worker, recorder = self._worker, self._recorder
        match message:
            case Terms(records, spans):
                recorder.enabled = records
                recorder.with_spans = spans
            case Apply(update):
                if order_of(update.snapshot) < order_of(worker.snapshot):
                    log.error("Control came with an older Snapshot; the newer one serves on.")
                else:
                    worker.apply(update)
            case Ask(serial, "inputs", (str(endpoint),)):
                self._send(Reply(serial, worker.recent_inputs(endpoint)))
            case Entrust(secrets):
                worker.entrust(secrets)
            case Ask(_, "pulse"):
                self._hand_over()
                self._send(self._pulse(with_shadows=True))
            case _:
                log.error("Control said what only a worker says; the link is cut.")
                link.cut()

    def _hung_up(self, link: Link) -> None:
        if self._link is link:
            self._link = None
            self._recorder.watchman.forget()  # the last parcels may be lost with it

    def _send(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)

    def _takes_more(self) -> bool:
        return self._link is not None and self._link.unsent_bytes < MAX_UNSENT_BYTES

    def _hand_over(self) -> bool:
        """Send what is recorded, as long as control takes it; whether some is left."""
        recorder = self._recorder
        while recorder.encode_pending():
            pass
        while self._takes_more():
            parcel = recorder.take()
            if parcel is None:
                return False
            self._handed += 1
            self._send(Handed(parcel))
        return self._link is not None

    def _beat(self) -> None:
        """Send a pulse, unless it would say what the last one did."""
        all_statistics = (loaded.statistics for loaded in self._worker.pool.all())
        done = sum(one.success.count + one.fail.count for one in all_statistics)
        is_due = self._looks - self._done_at >= IDLE_LOOKS
        if self._takes_more() and (done != self._done or is_due):
            self._done, self._done_at = done, self._looks
            self._send(self._pulse(with_shadows=False))

    def _tell_standing(self) -> None:
        if self._link is None:
            return
        standing = Standing(self._worker.report(), dict(self._worker.lanes))
        if standing != self._told:
            self._told = standing
            self._send(standing)

    def _pulse(self, *, with_shadows: bool) -> Pulse:
        worker = self._worker
        shadows = None
        if with_shadows:
            found = ((name, worker.shadow_report(name)) for name in worker.live.endpoints)
            shadows = {name: report for name, report in found if report}
        rows = rows_of(self._recorder.cells.collect())
        return Pulse(rows, worker.statistics(None, None), shadows)


class FarOutcomes:
    """Implements `gateway.evidence_ports.OutcomeSink` by handing them to control."""

    def __init__(self, homeward: Homeward) -> None:
        """Hand over on this link."""
        self.accept = homeward.offer


class FarRepository:
    """Implements `gateway.ports.Repository` by asking control."""

    def __init__(self, homeward: Homeward) -> None:
        """Ask over this link."""
        self._ask = homeward.ask

    async def index(self) -> list[RepositoryEntry]:
        """Every version that is known, served or not."""
        return msgspec.convert(await self._ask(what="index"), list[RepositoryEntry])

    async def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        """Statistics of all workers."""
        rows: list[dict[str, Any]] = await self._ask(model, version, what="statistics")
        return rows

    async def load(self, model: str, number: int | None, actor: str) -> None:
        """Commit that a version is kept warm; return once it is ready in every worker."""
        await self._ask(model, number, actor, what="load", timeout_s=LOAD_S)

    async def unload(self, model: str, number: int | None, actor: str) -> None:
        """Commit that a version is let go."""
        await self._ask(model, number, actor, what="unload")


def _ignore(_: Link, __: Message) -> None:
    """For a link that was never made."""


def _forget(_: Link) -> None:
    """As above."""
