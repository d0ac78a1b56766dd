"""The fleet: control's data plane over many workers, each at the far end of a link.

Workers come and go. One that comes is told all that matters; one that goes leaves what it counted,
and what it had in flight is counted as lost. Control may end and start again: the workers come back
with what they serve.
"""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gateway.core.errors import GatewayError, NotReady
from gateway.core.evidence import decode_sightings
from gateway.core.models import Key
from gateway.evidence_ports import OutcomeSink
from gateway.ports import Parcel, Repository, Secrets, Update, WorkerReport
from gateway.processes.frames import (
    Ask,
    Handed,
    Hello,
    Message,
    Offer,
    Pulse,
    Reply,
    Standing,
    Terms,
    refusal_of,
    series_of,
)
from gateway.processes.link import AWAY, Link
from gateway.processes.merging import (
    Rows,
    added_shadows,
    added_statistics,
    folded,
    merged_report,
)
from gateway.processes.orders import Orders
from gateway.processes.roster import EXIT_CODE, Roster
from gateway.serving.cells import Cells, merge
from gateway.serving.sightings import Observe, drop_into
from gateway.serving.vitals import FIRST_LANE, HANDED_OVER, LANES, RECORDS
from gateway.telemetry import ERROR_TYPE, MODEL_NAME, MODEL_VERSION, PREDICTION_LOST, Series

log: Final = logging.getLogger(__name__)

REFRESH_S: Final = 0.5
"""How long a worker may take to say what it counted; then what it said last is taken."""
LOOK_S: Final = 0.05
PROCESS_LOST: Final = "process_lost"


class Records(Protocol):
    """Where the prediction records of workers go. A source is named by its slot."""

    def source(self, name: str, pid: int, settled: int) -> None:
        """A process is going to send parcels; all to the serial `settled` went elsewhere before."""

    def receive(self, source: str, parcel: Parcel) -> None:
        """Take a parcel."""

    def lost(self, source: str, made: int) -> None:
        """The source is gone and made that many records in its life; what never came is lost."""


@dataclass(slots=True)
class _Member:
    """One life of one worker, as far as it is known here."""

    slot: int
    life: int
    link: Link
    report: WorkerReport | None = None
    has_served: bool = False
    is_behind: bool = False
    lanes: dict[int, Key] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    statistics: Rows = field(default_factory=list)
    shadows: dict[str, Rows] = field(default_factory=dict)
    inputs: dict[str, Rows] = field(default_factory=dict)
    pulse: asyncio.Future[None] | None = None

    @property
    def source(self) -> str:
        return str(self.slot)


class Fleet:
    """Implements `gateway.ports.DataPlane` over every worker of this host.

    Requires: all calls come from the event loop. `serve` makes it answer workers.
    """

    def __init__(self, roster: Roster, secret: str, cells: Cells, shadow_samples: int) -> None:
        """Know of no worker yet.

        Args:
            roster: the vitals of all processes.
            secret: what a worker has to show.
            cells: those of this process, for what is lost with a worker.
            shadow_samples: worst disagreements kept for each shadow.
        """
        self._roster = roster
        self._secret = secret
        self._cells = cells
        self._shadow_samples = shadow_samples
        self._records: Records | None = None
        self._observe = drop_into(cells)
        self._with_spans = False
        self._members: dict[int, _Member] = {}
        self._links: dict[Link, _Member | None] = {}
        self._repository: Repository | None = None
        self._sink: OutcomeSink | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._parted = asyncio.Event()  # a link ended since `watch` last saw to it
        # What every worker is told.
        self._orders = Orders()
        # What the dead left.
        self._series: list[Series] = []
        self._statistics: Rows = []
        self._shadows: dict[str, Rows] = {}

    @property
    def connected(self) -> int:
        """Links that are open."""
        return len(self._links)

    def link(self) -> Link:
        """The protocol of a worker that connects."""
        return Link(self._received, self._hung_up, self._opened)

    def record_to(self, records: Records, *, with_spans: bool) -> None:
        """Ask workers for their records, and for the spans of sampled requests if wanted."""
        self._records = records
        self._with_spans = with_spans

    def observe_with(self, observe: Observe) -> None:
        """Hand what workers see of the units of experiments to this; without it, it is dropped."""
        self._observe = observe

    def serve(self, repository: Repository, sink: OutcomeSink) -> None:
        """Answer what the doors of the workers ask, and take the outcomes that they hand over."""
        self._repository = repository
        self._sink = sink

    def apply(self, update: Update) -> None:
        """Hand a Snapshot to every worker, those that come later included."""
        self._orders.take(update)
        self._tell(self._orders.newest)

    def entrust(self, secrets: Secrets) -> None:
        """Hand the secrets to every worker, those that come later included."""
        self._orders.take_secrets(secrets)
        self._tell(self._orders.entrust)

    def report(self) -> WorkerReport:
        """What all workers serve that have begun to; while none has, what those there are say."""
        known = [m for _, m in sorted(self._members.items()) if m.report is not None]
        serving = [member for member in known if member.has_served]
        return merged_report(
            {
                f"worker {member.slot}": member.report
                for member in serving or known
                if member.report is not None
            }
        )

    async def refresh(self, endpoint: str | None = None) -> None:
        """Ask every worker what it counted; what does not come in time is as it was."""
        open_to_us = [member for member in self._members.values() if member.link.is_open]
        if not open_to_us:
            return
        if endpoint is not None:
            await asyncio.gather(*(_ask_inputs(member, endpoint) for member in open_to_us))
            return
        await asyncio.wait(map(self._ask_pulse, open_to_us), timeout=REFRESH_S)

    def statistics(self, model: str | None, version: int | None) -> Rows:
        """Statistics of every version that is loaded anywhere, the dead workers' part included."""
        living = added_statistics([member.statistics for member in self._members.values()])
        loaded = {(row["name"], row["version"]) for row in living}
        dead = [row for row in self._statistics if (row["name"], row["version"]) in loaded]
        return [
            row
            for row in added_statistics([living, dead])
            if model in (None, row["name"]) and version in (None, int(row["version"]))
        ]

    def shadow_report(self, endpoint: str) -> Rows:
        """What the shadows of an endpoint found in all workers."""
        collections = [member.shadows.get(endpoint, []) for member in self._members.values()]
        collections.append(self._shadows.get(endpoint, []))
        return added_shadows(collections, self._shadow_samples)

    def recent_inputs(self, endpoint: str) -> Rows:
        """What each worker kept of what the endpoint was asked, as asked for last; oldest first."""
        kept = [row for m in self._members.values() for row in m.inputs.pop(endpoint, [])]
        return sorted(kept, key=lambda row: int(row["time_unix_nano"]))

    def collect(self) -> list[Series]:
        """All metrics: those of this process, of every worker, and what the dead left."""
        living = [member.series for member in self._members.values()]
        return merge([self._cells.collect(), self._series, *living])

    async def watch(self) -> None:
        """Take leave of workers whose links ended once their processes have. For ever."""
        while True:
            await self._parted.wait()
            self._parted.clear()
            while parted := [one for one in self._members.values() if not one.link.is_open]:
                for member in filter(self._is_gone, parted):
                    self._bury(member)
                await asyncio.sleep(LOOK_S)

    async def emptied(self) -> None:
        """Wait until every worker has hung up."""
        while self._links:  # noqa: ASYNC110 - links end by callback
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """Settle the accounts of every worker that is gone, and hang up on the others."""
        for member in list(self._members.values()):
            if self._is_gone(member) or not member.link.is_open:
                self._bury(member)
        for link in list(self._links):
            link.close()

    def _opened(self, link: Link) -> None:
        self._links[link] = None

    def _received(self, link: Link, message: Message) -> None:
        member = self._links.get(link)
        if member is None:
            self._welcome(link, message)
            return
        match message:
            case Standing(report, lanes):
                member.report, member.lanes = report, dict(lanes)
                member.has_served = member.has_served or report.ready
                self._follow_up(member)
            case Pulse():
                self._count(member, message)
            case Handed(parcel):
                if parcel.sightings:
                    self._observe(decode_sightings(parcel.sightings))
                if self._records is not None:
                    self._records.receive(member.source, parcel)
            case Ask() | Offer():
                task = asyncio.create_task(self._answer(link, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                log.error("A worker said what only control says; its link is cut.")
                link.cut()

    def _welcome(self, link: Link, message: Message) -> None:
        """Take a worker in by its first words; who cannot say them is not one of ours."""
        if not (
            isinstance(message, Hello)
            and hmac.compare_digest(message.secret, self._secret)
            and 0 < message.slot < self._roster.slots
        ):
            log.error("A stranger came to the link and was sent away.")
            link.cut()
            return
        before = self._members.get(message.slot)
        member = _Member(message.slot, message.life, link)
        if before is not None and before.life == message.life:
            member = before  # only its link was lost
            before.link.cut()
            before.link = link
        elif before is not None:
            self._bury(before)
        if member is not before:
            self._name_source(member, message.pid)
        self._members[message.slot] = member
        self._links[link] = member
        link.send(Terms(self._records is not None, self._with_spans))
        first = None if member.has_served else self._orders.first
        member.is_behind = first is not None
        for frame in (self._orders.entrust, first or self._orders.newest):
            if frame is not None:
                link.send_frame(frame)

    def _name_source(self, member: _Member, pid: int) -> None:
        """Expect the records that a worker has not handed over, to whichever control before us."""
        if self._records is not None:
            region = self._roster.region(member.slot, member.life)
            self._records.source(member.source, pid, int(region[HANDED_OVER]))

    def _hung_up(self, link: Link) -> None:
        self._parted.set()
        member = self._links.pop(link, None)
        if member is not None and member.link is link and member.pulse is not None:
            _settle(member)

    def _tell(self, frame: bytes | None) -> None:
        for link, member in list(self._links.items()):
            if frame is not None and member is not None and not member.is_behind:
                link.send_frame(frame)

    def _follow_up(self, member: _Member) -> None:
        """A worker that serves what was whole before is told the newest."""
        if member.is_behind and member.has_served:
            member.is_behind = False
            newest = self._orders.newest
            if newest is not None:
                member.link.send_frame(newest)
        self._orders.note(self.report())

    def _ask_pulse(self, member: _Member) -> asyncio.Future[None]:
        if member.pulse is None or member.pulse.done():
            member.pulse = asyncio.get_running_loop().create_future()
            member.link.send(Ask(0, "pulse"))
        return member.pulse

    def _count(self, member: _Member, pulse: Pulse) -> None:
        member.series = series_of(pulse.rows)
        member.statistics = pulse.statistics
        if pulse.shadows is not None:
            member.shadows = pulse.shadows
            _settle(member)

    async def _answer(self, link: Link, ask: Ask | Offer) -> None:
        """Answer the door of a worker."""
        result = None
        try:
            if self._repository is None or self._sink is None:
                raise NotReady(AWAY)
            if isinstance(ask, Offer):
                await self._sink.accept(ask.events, ask.outcomes)
            else:
                result = await _ask_repository(self._repository, ask)
        except GatewayError as error:
            link.send(Reply(ask.serial, refused=refusal_of(error)))
        except Exception:
            log.exception("A worker's question could not be answered.")
            link.send(Reply(ask.serial, refused=("internal", "Control failed; its log says more.")))
        else:
            link.send(Reply(ask.serial, result))

    def _is_gone(self, member: _Member) -> bool:
        return self._roster.is_gone(member.slot, member.life)

    def _bury(self, member: _Member) -> None:
        """Count what a dead worker had in flight, and keep what it had counted."""
        if self._members.get(member.slot) is member:
            del self._members[member.slot]
        self._series = folded(self._series, member.series)
        self._statistics = added_statistics([self._statistics, member.statistics])
        for endpoint, rows in member.shadows.items():
            known = self._shadows.get(endpoint, [])
            self._shadows[endpoint] = added_shadows([known, rows], self._shadow_samples)
        region = self._roster.region(member.slot, member.life)
        key = self._orders.accuse(member.report, int(region[EXIT_CODE]))
        if key is not None:
            log.error("version %s/%d ended two workers and is quarantined.", *key)
            self._tell(self._orders.newest)
        lost = 0
        for lane in range(FIRST_LANE, FIRST_LANE + LANES):
            count = max(int(region[lane]), 0)
            lost += count
            if count:
                model, number = member.lanes.get(lane, ("", 0))
                labels = (
                    (MODEL_NAME, model),
                    (MODEL_VERSION, number),
                    (ERROR_TYPE, PROCESS_LOST),
                )
                self._cells.counter(PREDICTION_LOST, labels).add(count)
        if lost:
            log.error("worker %d ended with %d requests in flight.", member.slot, lost)
        if self._records is not None:
            self._records.lost(member.source, int(region[RECORDS]))


def _settle(member: _Member) -> None:
    if member.pulse is not None and not member.pulse.done():
        member.pulse.set_result(None)


async def _ask_inputs(member: _Member, endpoint: str) -> None:
    """Fetch what a worker kept; one that does not answer in time has none."""
    with contextlib.suppress(GatewayError):
        rows = await member.link.ask("inputs", endpoint, timeout_s=REFRESH_S)
        member.inputs[endpoint] = rows


async def _ask_repository(repository: Repository, ask: Ask) -> Any:  # noqa: ANN401 - as it travels
    calls: dict[str, Callable[..., Awaitable[Any]]] = {
        "index": repository.index,
        "statistics": repository.statistics,
        "load": repository.load,
        "unload": repository.unload,
    }
    return await calls[ask.what](*ask.words)
