"""The journal of outcomes in the state folder: `journal/<sequence>.log`, and what was shipped.

A segment is named by the sequence of its first entry. It is a row of frames: length, CRC-32 and
sequence of the entry, highest bytes first, then the entry. What `append` returned from outlives
`kill -9` and a power cut. Sequences rise, with gaps where the disk failed, and none is given twice:
the store tells by them what it has. Each process begins a segment of its own, so a frame that was
not written to its end is the last of one, and reading goes on with the next.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final
from zlib import crc32

import msgspec

from gateway.adapters.appending import create, lock, numbered, write_pieces
from gateway.adapters.disk import sync_folder, write_whole
from gateway.core.errors import Overloaded
from gateway.evidence_ports import JournalTail

log: Final = logging.getLogger(__name__)

FOLDER: Final = "journal"
SUFFIX: Final = ".log"
CURSOR_FILE: Final = "cursor.json"
HOST_FILE: Final = "host"
LOCK_FILE: Final = "lock"
MAX_ENTRY_BYTES: Final = 64 * 1024 * 1024
_HEAD: Final = Struct(">IIQ")
_SUMMED: Final = Struct(">IQ")
_SHARE: Final = 16
"""A segment is this part of all, so that what is deleted at once is small."""
_LEAST_SEGMENT: Final = 64 * 1024
_MOST_SEGMENT: Final = 16 * 1024 * 1024
_HOST_BYTES: Final = 4


class _Cursor(msgspec.Struct, frozen=True):
    """Entries up to this sequence are shipped; the next frame is at this place, or behind it.

    `host` is the id under which they were.
    """

    sequence: int = 0
    segment: int = 0
    offset: int = 0
    host: str = ""


@dataclass(slots=True)
class _Segment:
    """A file, and how many of its bytes are frames that may be read."""

    first: int
    path: Path
    size: int


class Journal:
    """The `Journal` port. Used by one thread at a time; one process has the folder."""

    def __init__(
        self, state: Path, keep_bytes: int, *, name: str, entropy: Callable[[int], bytes]
    ) -> None:
        """Touch nothing yet.

        Args:
            state: the state folder.
            keep_bytes: above this size shipped segments are deleted, and appends refused.
            name: what the id of a host that has none yet begins with.
            entropy: fresh random bytes, which the id ends with.
        """
        self._folder = state / FOLDER
        self._keep_bytes = keep_bytes
        self._segment_bytes = min(max(keep_bytes // _SHARE, _LEAST_SEGMENT), _MOST_SEGMENT)
        self._name = name
        self._entropy = entropy
        self._lock: int | None = None
        self._file: int | None = None  # of the last segment, if it is ours to append to
        self._segments: list[_Segment] = []
        self._next = 1
        self._host_id = ""
        self._cursor = _Cursor()
        self._read: list[_Cursor] = []  # behind each entry that was read and is not marked

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(one.size for one in self._segments)

    @property
    def unshipped(self) -> int:
        """Bytes behind the cursor."""
        cursor = self._cursor
        behind = sum(one.size for one in self._segments if one.first >= cursor.segment)
        is_there = any(one.first == cursor.segment for one in self._segments)
        return behind - (cursor.offset if is_there else 0)

    def open(self) -> JournalTail:
        """Find what an earlier process left. Called first, once.

        Raises:
            OSError: the folder cannot be made or read, or another process has it.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock(self._folder / LOCK_FILE)
        try:
            self._host_id = self._host()
            self._cursor = self._read_cursor()
            self._segments = [
                _Segment(first, path, path.stat().st_size)
                for first, path in numbered(self._folder, SUFFIX)
            ]
            last, newest = self._find_end()
        except OSError:
            self.close()
            raise
        self._next = max(last, self._cursor.sequence) + 1
        is_same = self._cursor.host == self._host_id
        return JournalTail(self._host_id, last, newest, self._cursor.sequence if is_same else 0)

    def append(self, entries: Sequence[bytes]) -> int:
        """Write entries behind the others, all of them or none, and sync; the last one's sequence.

        Raises:
            Overloaded: what is not shipped yet fills the journal.
            OSError: the disk failed.
        """
        first = self._next
        pieces: list[bytes] = []
        for sequence, entry in enumerate(entries, start=first):
            summed = crc32(entry, crc32(_SUMMED.pack(len(entry), sequence)))
            pieces += (_HEAD.pack(len(entry), summed, sequence), entry)
        size = sum(map(len, pieces))
        self._make_room(size)
        file, segment = self._open()
        # Whatever becomes of the write, the disk may hold these sequences from now on.
        self._next += len(entries)
        try:
            write_pieces(file, pieces)
            os.fdatasync(file)
        except OSError:
            self._abandon(file, segment)
            raise
        segment.size += size
        return self._next - 1

    def read(self, max_entries: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """The first entries behind the cursor with their sequences; at least one if there is one.

        Raises:
            OSError: the disk failed.
        """
        found: list[tuple[int, bytes]] = []
        self._read.clear()
        size = damaged = 0
        for segment in [one for one in self._segments if one.first >= self._cursor.segment]:
            end = self._cursor.offset if segment.first == self._cursor.segment else 0
            for sequence, entry, end in _frames(segment, end):  # noqa: B020 - it goes on from there
                if damaged:
                    log.error("%d bytes of the journal are damaged and passed over.", damaged)
                    damaged = 0
                size += len(entry)
                if found and (len(found) >= max_entries or size > max_bytes):
                    return found
                found.append((sequence, entry))
                self._read.append(_Cursor(sequence, segment.first, end, self._host_id))
            damaged += segment.size - end
        return found

    def mark(self, sequence: int) -> None:
        """Put the cursor behind an entry of those that were read last.

        Raises:
            OSError: it could not be written down; it moved all the same.
        """
        passed = [one for one in self._read if one.sequence <= sequence]
        if not passed:
            return
        self._cursor = passed[-1]
        del self._read[: len(passed)]
        work = self._folder / f".{CURSOR_FILE}.new"
        work.write_bytes(msgspec.json.encode(self._cursor))
        work.rename(self._folder / CURSOR_FILE)

    def rewind(self, sequence: int) -> None:
        """Put the cursor to the segment in which the entry behind this sequence is, if it is kept.

        Entries before it in that segment are read again, too.
        """
        self._read.clear()
        firsts = [one.first for one in self._segments if one.first <= sequence + 1]
        self._cursor = _Cursor(sequence, max(firsts, default=0), 0, self._host_id)

    def rename(self) -> str:
        """Take a new id for this host: the store knows more of the old one than is here.

        Raises:
            OSError: the disk failed.
        """
        host = f"{self._name}-{self._entropy(_HOST_BYTES).hex()}"
        write_whole(self._folder / HOST_FILE, host.encode())
        self._host_id = host
        return host

    def close(self) -> None:
        """Let go of the files."""
        for file in (self._file, self._lock):
            if file is not None:
                os.close(file)
        self._file = self._lock = None

    def _host(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            kept = (self._folder / HOST_FILE).read_text(encoding="utf-8", errors="replace").strip()
            if kept:
                return kept
        return self.rename()

    def _read_cursor(self) -> _Cursor:
        try:
            return msgspec.json.decode((self._folder / CURSOR_FILE).read_bytes(), type=_Cursor)
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return _Cursor()  # the store knows what it has

    def _find_end(self) -> tuple[int, bytes | None]:
        """The last sequence that may be on disk, and the last entry; forgets empty segments."""
        skipped = 0
        while self._segments:
            segment = self._segments[-1]
            last, newest, good = segment.first - 1, None, 0
            for last, newest, good in _frames(segment, 0):  # noqa: B007 - the last one counts
                pass
            torn = segment.size - good
            if torn:
                log.warning("The journal ended in %d bytes that are no entry.", torn)
            # They may have been so many entries.
            skipped = max(skipped, last + (torn + _HEAD.size - 1) // _HEAD.size)
            segment.size = good
            if newest is not None:
                return max(last, skipped), newest
            segment.path.unlink()
            self._segments.pop()
        return skipped, None

    def _make_room(self, size: int) -> None:
        """Delete the oldest shipped segments for so many bytes more."""
        total = self.size + size
        while total > self._keep_bytes and len(self._segments) > 1:
            oldest = self._segments[0]
            if oldest.first >= self._cursor.segment and not self._is_passed(oldest):
                break
            oldest.path.unlink(missing_ok=True)
            total -= oldest.size
            del self._segments[0]
        if total > self._keep_bytes:
            raise Overloaded(_FULL)

    def _is_passed(self, segment: _Segment) -> bool:
        return self._cursor.segment == segment.first and self._cursor.offset >= segment.size

    def _open(self) -> tuple[int, _Segment]:
        """The segment that is written to; a fresh one if there is none or it is long enough."""
        if self._file is not None and self._segments[-1].size >= self._segment_bytes:
            os.close(self._file)
            self._file = None
        if self._file is None:
            path = self._folder / f"{self._next:020d}{SUFFIX}"
            file = create(path)
            try:
                sync_folder(self._folder)
            except OSError:
                os.close(file)
                path.unlink(missing_ok=True)
                raise
            self._file = file
            self._segments.append(_Segment(self._next, path, 0))
        return self._file, self._segments[-1]

    def _abandon(self, file: int, segment: _Segment) -> None:
        """Never write again behind what is half written; cut it off, as far as the disk lets us."""
        with contextlib.suppress(OSError):
            os.ftruncate(file, segment.size)
        os.close(file)
        self._file = None
        if not segment.size:
            self._segments.pop()
            with contextlib.suppress(OSError):
                segment.path.unlink()


_FULL: Final = "Too many outcomes wait for the store; retry later."


def kept_entries(state: Path) -> Iterator[tuple[int, bytes]]:
    """Every entry that this host keeps, shipped or not, for tools that look at the folder.

    Beside the process that writes: entries that come meanwhile may be missing.
    """
    folder = state / FOLDER
    for first, path in numbered(folder, SUFFIX) if folder.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):
            segment = _Segment(first, path, path.stat().st_size)
            yield from ((sequence, entry) for sequence, entry, _ in _frames(segment, 0))


def _frames(segment: _Segment, start: int) -> Iterator[tuple[int, bytes, int]]:
    """Sequence, entry and end of the whole frames from there on, as far as they are undamaged."""
    with segment.path.open("rb") as file:
        file.seek(start)
        while start + _HEAD.size <= segment.size:
            length, stated, sequence = _HEAD.unpack(file.read(_HEAD.size))
            start += _HEAD.size + length
            if start > segment.size or length > MAX_ENTRY_BYTES:
                return
            entry = file.read(length)
            if crc32(entry, crc32(_SUMMED.pack(length, sequence))) != stated:
                return
            yield sequence, entry, start
