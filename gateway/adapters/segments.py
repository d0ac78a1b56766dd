"""The record log in the state folder: `records/<number>.otlp`, and who has read how far.

A segment is a row of frames, each the length of a request as four bytes, highest first, and the
request: what the OpenTelemetry Collector's file exporter writes when its format is `proto`. Nothing
is synced: a power cut may cost the last seconds, a killed process costs nothing. A frame that was
not written to its end is the last of its segment and is passed over.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final

import msgspec

from gateway.adapters.appending import create, lock, numbered, write_pieces
from gateway.ports import Extent, SegmentInfo

FOLDER: Final = "records"
SUFFIX: Final = ".otlp"
CURSOR_FILE: Final = "cursor.json"
LOCK_FILE: Final = "lock"
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
_LENGTH: Final = Struct(">I")
_SHARE: Final = 16
"""A segment is this part of all, so that what is deleted at once is small."""
_LEAST_SEGMENT: Final = 64 * 1024
_MOST_SEGMENT: Final = 16 * 1024 * 1024


class Segments:
    """The `RecordFolder` port. Used by one thread at a time; one process has the folder."""

    def __init__(self, state: Path, keep_bytes: int) -> None:
        """Touch nothing yet.

        Args:
            state: the state folder.
            keep_bytes: above this size the oldest segments are deleted.
        """
        self._folder = state / FOLDER
        self._keep_bytes = keep_bytes
        self._segment_bytes = min(max(keep_bytes // _SHARE, _LEAST_SEGMENT), _MOST_SEGMENT)
        self._sizes: dict[int, int] = {}
        self._next = 1
        self._lock: int | None = None
        self._active: int | None = None
        self._file: int | None = None

    def undelivered(self) -> Iterator[tuple[Extent, bytes]]:
        """Open the log: every request behind the cursor, as it was left. Called first, once.

        Raises:
            OSError: the folder cannot be made or read, or another process has it.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock(self._folder / LOCK_FILE)
        cursor = self._cursor()
        self._sizes = {
            number: path.stat().st_size for number, path in numbered(self._folder, SUFFIX)
        }
        self._next = max([cursor.segment, *self._sizes], default=0) + 1
        for number in tuple(self._sizes):
            if number >= cursor.segment:
                start = cursor.offset + cursor.size if number == cursor.segment else 0
                yield from _frames(number, self._path(number), start)

    def append(self, bodies: Sequence[bytes]) -> list[Extent]:
        """Write requests behind the others, all of them or none.

        Raises:
            OSError: the disk failed; what was written of them is taken back.
        """
        file, number = self._open()
        begin = offset = self._sizes[number]
        pieces: list[bytes] = []
        extents: list[Extent] = []
        for body in bodies:
            pieces += (_LENGTH.pack(len(body)), body)
            extents.append(Extent(number, offset, _LENGTH.size + len(body)))
            offset += _LENGTH.size + len(body)
        try:
            write_pieces(file, pieces)
        except OSError:
            self._take_back(file, begin)
            raise
        self._sizes[number] = offset
        return extents

    def trim(self) -> list[int]:
        """Delete the oldest segments beyond the size bound; their numbers."""
        removed: list[int] = []
        total = sum(self._sizes.values())
        for number in sorted(self._sizes)[:-1]:
            if total <= self._keep_bytes:
                break
            self._path(number).unlink(missing_ok=True)
            total -= self._sizes.pop(number)
            removed.append(number)
        return removed

    def read(self, extent: Extent) -> bytes:
        """The requests that lie there, joined to one.

        Raises:
            OSError: they are gone or damaged.
        """
        with self._path(extent.segment).open("rb") as file:
            file.seek(extent.offset)
            content = file.read(extent.size)
        bodies: list[bytes] = []
        start = 0
        while start + _LENGTH.size <= len(content):
            (length,) = _LENGTH.unpack_from(content, start)
            start += _LENGTH.size + length
            bodies.append(content[start - length : start])
        if start != extent.size or len(content) != extent.size:
            raise OSError(errno.EIO, "a segment of the record log is damaged")
        return b"".join(bodies)

    def mark(self, extent: Extent) -> None:
        """Put the cursor behind what lies there; whole, or the old one stays."""
        work = self._folder / f".{CURSOR_FILE}.new"
        work.write_bytes(msgspec.json.encode(extent))
        work.rename(self._folder / CURSOR_FILE)

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._file, self._lock):
            if file is not None:
                os.close(file)
        self._file = self._lock = self._active = None

    def _open(self) -> tuple[int, int]:
        """The segment that is written to; a fresh one if there is none or it is long enough."""
        is_full = self._active is not None and self._sizes[self._active] >= self._segment_bytes
        if self._file is not None and is_full:
            os.close(self._file)
            self._file = None
        if self._file is None or self._active is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = create(self._path(self._next))
            self._active = self._next
            self._sizes[self._active] = 0
            self._next += 1
        return self._file, self._active

    def _take_back(self, file: int, begin: int) -> None:
        """Cut off what was half written; a segment that cannot be cut is not written to again."""
        try:
            os.ftruncate(file, begin)
        except OSError:
            os.close(file)
            self._file = None

    def _cursor(self) -> Extent:
        try:
            content = (self._folder / CURSOR_FILE).read_bytes()
            return msgspec.json.decode(content, type=Extent)
        except (FileNotFoundError, msgspec.DecodeError):
            return Extent(0, 0, 0)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}{SUFFIX}"


class StoredRecords:
    """The record log as the command line reads it, beside the process that writes it."""

    def __init__(self, state: Path) -> None:
        """`state` is the state folder; nothing is read yet."""
        self._folder = state / FOLDER

    def segments(self) -> list[SegmentInfo]:
        """Every segment, oldest first; none if there is no record log."""
        return [SegmentInfo(number, path.stat().st_size) for number, path in self._paths()]

    def requests(self, segment: int) -> Iterator[bytes]:
        """The requests of a segment in the order in which they came."""
        for number, path in self._paths():
            if number == segment:
                yield from (body for _, body in _frames(number, path, 0))

    def _paths(self) -> list[tuple[int, Path]]:
        return numbered(self._folder, SUFFIX) if self._folder.is_dir() else []


def _frames(number: int, path: Path, start: int) -> Iterator[tuple[Extent, bytes]]:
    """The whole frames of a segment from there on; the reading ends where one is cut short."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            if length > MAX_FRAME_BYTES or len(body := file.read(length)) < length:
                return
            yield Extent(number, start, _LENGTH.size + length), body
            start += _LENGTH.size + length
