"""The spool: records between the processes that made them and the collector, on disk if there is.

Every request is appended to the record log, if there is one, and waits there for its turn; what is
sent soon is sent from memory, so that the disk is read after an outage only. A disk that fails
costs nothing but room: records then wait in bounded memory. All calls come from the event loop;
files are touched by one thread.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, TypeVar

from msgspec import Struct

from gateway.core.errors import InvalidRequest
from gateway.core.otlp.requests import count
from gateway.ports import Extent, RecordFolder
from gateway.telemetry import PREDICTION_EVENT

MERGED_BYTES: Final = 512 * 1024
"""Neighbours on disk are remembered as one up to this size."""
PRESSING: Final = 16
"""So many unwritten frames are written at once; `pressed` says so."""
_EVENT: Final = PREDICTION_EVENT.encode()

log: Final = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(slots=True)
class Frame:
    """A request of some records, in memory (`body`), on disk (`extent`) or both.

    `spans` is the request of their spans. `held` says that the body came in and stays in memory,
    where it counts against the bounds until the frame is settled.
    """

    records: int
    size: int
    body: bytes | None
    spans: bytes = b""
    span_count: int = 0
    extent: Extent | None = None
    held: bool = False


class SpoolBounds(Struct, frozen=True):
    """What may wait in memory."""

    max_records: int
    max_bytes: int


class Losses(Struct, frozen=True):
    """Who counts what the spool loses, by reason."""

    records: Callable[[str, int], None]
    spans: Callable[[str, int], None]


class Spool:
    """Frames in the order in which they came.

    `add` → unwritten → (`write`) → ready → (`take`) → the sender's. Without a folder what is added
    is ready at once.
    """

    def __init__(
        self,
        folder: RecordFolder | None,
        bounds: SpoolBounds,
        losses: Losses,
        *,
        may_skip_disk: bool = True,
    ) -> None:
        """Start empty; `recover` finds what an earlier process left.

        Args:
            folder: the record log; None keeps all in memory.
            bounds: of what waits in memory.
            losses: told of every record and span that is lost here.
            may_skip_disk: whether what the disk refuses is ready all the same, because a collector
                wants it; else it waits for the disk.
        """
        # For ever.
        self._folder = folder
        self._bounds = bounds
        self._losses = losses
        self._may_skip_disk = may_skip_disk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tiltyard-records")
        self.pressed = asyncio.Event()
        # Change with every frame.
        self._unwritten: deque[Frame] = deque()
        self._ready: deque[Frame] = deque()
        self.pending = 0
        self._held_records = 0
        self._held_bytes = 0
        self._cursor: Extent | None = None
        self._marked: Extent | None = None
        # Change with the disk's health.
        self._writing: asyncio.Future[tuple[list[Extent], list[int]]] | None = None
        self.failing = False
        self._opened = False

    @property
    def has_ready(self) -> bool:
        """Whether `take` gives something."""
        return bool(self._ready)

    @property
    def on_disk(self) -> bool:
        """Whether there is a record log."""
        return self._folder is not None

    @property
    def is_saved(self) -> bool:
        """Whether everything is written, and the cursor written down."""
        return self._cursor == self._marked and not self._unwritten

    def add(self, frame: Frame) -> bool:
        """Take a frame in; False if memory is full, and the frame is not taken."""
        if not self._has_room(frame):
            return False
        frame.held = True
        self._held_records += frame.records
        self._held_bytes += frame.size + len(frame.spans)
        self.pending += frame.records
        (self._ready if self._folder is None else self._unwritten).append(frame)
        if len(self._unwritten) >= PRESSING:
            self.pressed.set()
        return True

    async def recover(self) -> int:
        """Open the record log; how many records an earlier process left undelivered there.

        A log that cannot be opened is not used: another process may have it.
        """
        if self._folder is None or self._opened:
            return 0
        self._opened = True
        try:
            found = await self._run(self._read_left, self._folder)
        except OSError as error:
            log.warning("The record log cannot be opened, records wait in memory: %s", error)
            folder, self._folder = self._folder, None
            await self._run(folder.close)
            self._ready.extend(self._unwritten)
            self._unwritten.clear()
            return 0
        self._ready.extendleft(reversed(found))
        records = sum(frame.records for frame in found)
        self.pending += records
        return records

    async def write(self) -> None:
        """Append what is unwritten. A caller that is cancelled leaves the writing to its end."""
        self.pressed.clear()
        if self._folder is None or not self._unwritten:
            return
        if self._writing is None:
            batch = tuple(self._unwritten)
            bodies = [frame.body or b"" for frame in batch]
            self._writing = asyncio.ensure_future(self._run(_append, self._folder, bodies))
            self._writing.add_done_callback(partial(self._written, batch))
        await asyncio.wait([self._writing])

    def take(self, max_records: int, max_bytes: int) -> list[Frame]:
        """The next frames, at least one if one is ready; they are the caller's from now on."""
        taken: list[Frame] = []
        records = size = 0
        while self._ready:
            records += self._ready[0].records
            size += self._ready[0].size
            if taken and (records > max_records or size > max_bytes):
                break
            frame = self._ready.popleft()
            self.pending -= frame.records
            taken.append(frame)
        return taken

    async def body_of(self, frames: Sequence[Frame]) -> bytes:
        """One request of all these frames; what cannot be read any more is lost and counted."""
        for frame in frames:
            if frame.body is None and frame.extent is not None and self._folder is not None:
                try:
                    frame.body = await self._run(self._folder.read, frame.extent)
                except (OSError, InvalidRequest):
                    self._losses.records("spool_full", frame.records)
                    frame.records = 0
                    frame.body = b""
        return b"".join(frame.body or b"" for frame in frames)

    def settle(self, frames: Sequence[Frame]) -> None:
        """Note that nothing more will be done for these frames."""
        for frame in frames:
            self._let_go(frame)
        self._cursor = next((f.extent for f in reversed(frames) if f.extent), self._cursor)

    async def save(self) -> None:
        """Write the cursor down, if it moved."""
        cursor = self._cursor
        if self._folder is None or cursor is None or cursor == self._marked:
            return
        try:
            await self._run(self._folder.mark, cursor)
        except OSError as error:
            self._fail(error)
        else:
            self._marked = cursor

    async def close(self) -> int:
        """Write what can be written; how many records are lost because memory alone had them."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self.write()
        await self.save()
        lost = sum(f.records for f in chain(self._ready, self._unwritten) if f.extent is None)
        self._ready = deque(frame for frame in self._ready if frame.extent is not None)
        self._unwritten.clear()
        self.pending -= lost
        if self._folder is not None:
            await self._run(self._folder.close)
        self._thread.shutdown(wait=False)
        return lost

    def _has_room(self, frame: Frame) -> bool:
        within_records = self._held_records + frame.records <= self._bounds.max_records
        return (
            within_records
            and self._held_bytes + frame.size + len(frame.spans) <= self._bounds.max_bytes
        )

    def _let_go(self, frame: Frame) -> None:
        if frame.held:
            frame.held = False
            self._held_records -= frame.records
            self._held_bytes -= frame.size + len(frame.spans)

    def _written(
        self, batch: Sequence[Frame], writing: "asyncio.Future[tuple[list[Extent], list[int]]]"
    ) -> None:
        """On the event loop, once a batch is on disk or the disk failed."""
        self._writing = None
        error = None if writing.cancelled() else writing.exception()
        if writing.cancelled() or error is not None:
            self._fail(error)
            if self._may_skip_disk:
                self._ready.extend(self._unwritten.popleft() for _ in batch)
            return
        self.failing = False
        extents, removed = writing.result()
        for extent in extents:
            frame = self._unwritten.popleft()
            frame.extent = extent
            self._keep(frame)
        if removed:
            self._forget(frozenset(removed))

    def _keep(self, frame: Frame) -> None:
        """Make a written frame ready, without its bytes if memory is better used for others."""
        if 2 * self._held_bytes <= self._bounds.max_bytes and (
            2 * self._held_records <= self._bounds.max_records
        ):
            self._ready.append(frame)
            return
        self._let_go(frame)
        frame.body = None
        if frame.span_count:
            self._losses.spans("queue_full", frame.span_count)
            frame.spans, frame.span_count = b"", 0
        last = self._ready[-1] if self._ready else None
        if last is None or not _joined(last, frame):
            self._ready.append(frame)

    def _forget(self, removed: frozenset[int]) -> None:
        """Count what was deleted before its turn, unless memory has it."""
        kept: deque[Frame] = deque()
        lost = 0
        for frame in self._ready:
            if frame.extent is None or frame.extent.segment not in removed:
                kept.append(frame)
            elif frame.body is not None:
                frame.extent = None
                kept.append(frame)
            else:
                lost += frame.records
        self._ready = kept
        self.pending -= lost
        self._losses.records("spool_full", lost)

    def _fail(self, error: BaseException | None) -> None:
        if not self.failing:
            log.warning("The record log cannot be written, records wait in memory: %s", error)
        self.failing = True

    def _read_left(self, folder: RecordFolder) -> list[Frame]:
        """In the thread: what an earlier process left."""
        found: list[Frame] = []
        for extent, body in folder.undelivered():
            try:
                records = count(body, _EVENT)
            except InvalidRequest:
                log.warning("A damaged request in the record log is skipped.")
                continue
            frame = Frame(records, extent.size, None, extent=extent)
            if not found or not _joined(found[-1], frame):
                found.append(frame)
        return found

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _append(folder: RecordFolder, bodies: list[bytes]) -> tuple[list[Extent], list[int]]:
    return folder.append(bodies), folder.trim()


def _joined(last: Frame, frame: Frame) -> bool:
    """Let one frame stand for two neighbours on disk, so that a long outage fits in memory."""
    one, other = last.extent, frame.extent
    if one is None or other is None or last.body is not None or frame.body is not None:
        return False
    is_next = one.segment == other.segment and one.offset + one.size == other.offset
    if not is_next or last.size + frame.size > MERGED_BYTES:
        return False
    last.extent = Extent(one.segment, one.offset, one.size + other.size)
    last.size += frame.size
    last.records += frame.records
    return True
