"""Files of the audit log: exports and archives, written whole and verified line by line."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from gateway.core.audit import decode_entry
from gateway.core.chain import Chain, End, LastLine, Line, decode_line, encode_line, place_of
from gateway.core.checkpoints import Checkpoint, Signed, signature_state
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.sought import EVERYTHING, Sought, meets
from gateway.doors.cli.client import AdminClient
from gateway.doors.http.admin_documents import LinesPage

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
READ_BYTES: Final = 1024 * 1024
END_BYTES: Final = 1024
"""The last line of a file is never longer."""
SUFFIX: Final = ".jsonl"
CHECKPOINT_SUFFIX: Final = ".checkpoint.json"


def lines_of(client: AdminClient, after: int = 0) -> Iterator[Line]:
    """The log as it lies in the store, in pages."""
    following: int | None = after
    while following is not None:
        page = client.read("audit", "lines", into=LinesPage, query={"after": following})
        yield from page.lines
        following = page.next


def write_export(
    lines: Iterator[Line], file: IO[bytes], *, after: int, before: str, sought: Sought = EVERYTHING
) -> End:
    """Write lines and the last one that speaks of them.

    Args:
        lines: behind the revision `after`, whose entry has the hash `before`.
        file: where to.
        after: see `lines`.
        before: see `lines`.
        sought: only such entries; they make no chain, and the last line says so.
    """
    chain, kept = Chain(after, before), 0
    for line in lines:
        entry = chain.add(line)
        if sought == EVERYTHING or (entry is not None and meets(entry, sought)):
            file.write(encode_line(line))
            kept += 1
    end = chain.end().end
    if sought != EVERYTHING:
        end = msgspec.structs.replace(end, entries=kept, filtered=True)
    file.write(encode_line(LastLine(end)))
    return end


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that stands under its name only once all of it is on disk.

    Raises:
        InvalidRequest: it cannot be written.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with work.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        work.rename(path)
        held = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(held)
        finally:
            os.close(held)
    except OSError as error:
        message = f"'{path.name}' cannot be written: {error.strerror}."
        raise InvalidRequest(message) from error
    finally:
        work.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 over a file.

    Raises:
        InvalidRequest: it cannot be read.
    """
    sha256 = hashlib.sha256()
    with _opened(path) as file:
        for part in iter(lambda: file.read(READ_BYTES), b""):
            sha256.update(part)
    return sha256.hexdigest()


def name_of(checkpoint: Checkpoint) -> str:
    """How an archive is called; names sort as the entries do."""
    return f"audit-{checkpoint.first:012d}-{checkpoint.last:012d}{SUFFIX}"


def check_export(path: Path) -> tuple[Chain, bool]:
    """Look at an export by itself; whether it holds a selection only, which makes no chain.

    Raises:
        InvalidRequest: the file cannot be read.
    """
    end = _end_of(path)
    if end is not None and end.filtered:
        return _checked_alone(path, end), True
    chain = Chain(*(_first_of(path) if end is None else (end.after, end.before)))
    read_file(path, chain)
    return chain, False


def check_archives(folder: Path, key: bytes | None) -> tuple[Chain, list[str]]:
    """Join the archives of a folder to one chain; the states of their signatures.

    Raises:
        InvalidRequest: there is none, or one cannot be read.
    """
    signed = sorted(
        (_read_checkpoint(path) for path in folder.glob(f"*{CHECKPOINT_SUFFIX}")),
        key=lambda one: one.checkpoint.last,
    )
    if not signed:
        message = f"'{folder.name}' holds no archive of the audit log."
        raise InvalidRequest(message)
    chain, states = Chain(), []
    for one in signed:
        path = folder / name_of(one.checkpoint)
        chain.begin_file()
        states.append(signature_state(one, key))
        if states[-1] == "bad":
            chain.blame("signature", f"The checkpoint of {path.name} has no signature of its key.")
        if sha256_of(path) != one.checkpoint.sha256:
            chain.blame("changed", f"{path.name} is not the file that was signed.")
        read_file(path, chain)
        if (chain.revision, chain.head) != (one.checkpoint.last, one.checkpoint.head):
            chain.blame("changed", f"{path.name} does not end as its checkpoint says.")
    return chain, states


def read_file(path: Path, chain: Chain) -> None:
    """Add the lines of a file to a chain, and hold them against its last line."""
    ended = False
    with _opened(path) as file:
        for number, content in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
            try:
                line = decode_line(content)
            except InvalidRequest:
                chain.blame("changed", f"Line {number} of {path.name} cannot be read.")
                continue
            if ended:
                chain.blame("ahead", f"{path.name} goes on behind its last line.")
            elif isinstance(line, Line):
                chain.add(line)
            else:
                ended = True
                if line != chain.end():
                    chain.blame("cut", f"The last line of {path.name} speaks of other entries.")
    if not ended:
        chain.blame("cut", f"{path.name} has no last line: its end is missing.")


def _checked_alone(path: Path, end: End) -> Chain:
    """Look at each entry of a selection by itself."""
    seen = Chain()
    with _opened(path) as file:
        for content in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
            try:
                line = decode_line(content)
            except InvalidRequest:
                seen.blame("changed", f"A line of {path.name} cannot be read.")
                continue
            if isinstance(line, Line):
                alone = Chain(*_before(line))
                alone.add(line)
                seen.entries += 1
                seen.revision = alone.revision
                seen.faults += alone.faults
    if seen.entries != end.entries:
        seen.blame("cut", f"{path.name} holds {seen.entries} entries of {end.entries}.")
    return seen


def _before(line: Line) -> tuple[int, str]:
    """What an entry says that it follows."""
    try:
        previous = decode_entry(bytes(line.entry)).previous
    except InvalidRequest:
        previous = ""
    return place_of(line.id)[1] - 1, previous


def _first_of(path: Path) -> tuple[int, str]:
    """Where a file without a last line begins."""
    with _opened(path) as file:
        try:
            line = decode_line(file.readline(MAX_LINE_BYTES))
        except InvalidRequest:
            return 0, ""
    return _before(line) if isinstance(line, Line) else (0, "")


def _end_of(path: Path) -> End | None:
    """The last line of a file, None if it is none."""
    with _opened(path) as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - END_BYTES))
        content = file.read().rstrip(b"\n").rpartition(b"\n")[2] + b"\n"
    try:
        line = decode_line(content)
    except InvalidRequest:
        return None
    return line.end if isinstance(line, LastLine) else None


def _read_checkpoint(path: Path) -> Signed:
    message = f"The checkpoint '{path.name}' cannot be read."
    try:
        content = path.read_bytes()
        signed = msgspec.json.decode(content, type=Signed)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(message) from error
    if _encode_checkpoint(signed) != content:
        raise InvalidRequest(message)
    return signed


def _encode_checkpoint(signed: Signed) -> bytes:
    return msgspec.json.encode(signed) + b"\n"


def write_archive(client: AdminClient, folder: Path, signed: Signed) -> Path:
    """Write what a checkpoint stands for, and then the checkpoint.

    Raises:
        InvalidRequest: something cannot be written.
        Conflict: what was read is not what was signed; nothing may be trimmed.
    """
    checkpoint = signed.checkpoint
    path = folder / name_of(checkpoint)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def wanted() -> Iterator[Line]:
        for line in lines_of(client, checkpoint.after):
            if place_of(line.id)[1] > checkpoint.last:
                return
            yield line

    with written_whole(path) as file:
        write_export(wanted(), file, after=checkpoint.after, before=checkpoint.before)
    if sha256_of(path) != checkpoint.sha256:
        path.unlink()
        message = "The log that was read is not the one that was signed; nothing is trimmed."
        raise Conflict(message)
    with written_whole(path.with_suffix(CHECKPOINT_SUFFIX)) as file:
        file.write(_encode_checkpoint(signed))
    return path


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        message = f"'{path.name}' cannot be read: {error.strerror}."
        raise InvalidRequest(message) from error
