import os
from pathlib import Path

import pytest

from gateway.adapters.segments import FOLDER, Segments, StoredRecords
from gateway.ports import Extent

KEEP = 1 << 20


def opened(state: Path, keep_bytes: int = KEEP) -> Segments:
    """A record log that is open."""
    log = Segments(state, keep_bytes)
    list(log.undelivered())
    return log


def left(state: Path) -> list[bytes]:
    """What a fresh process finds undelivered."""
    log = Segments(state, KEEP)
    found = [body for _, body in log.undelivered()]
    log.close()
    return found


def files(state: Path) -> list[Path]:
    """The segments on disk."""
    return sorted((state / FOLDER).glob("*.otlp"))


def test_requests_are_read_back(tmp_path: Path) -> None:
    """Each alone, and neighbours joined to one."""
    log = opened(tmp_path)
    extents = log.append([b"one", b"", b"three"])
    assert [log.read(extent) for extent in extents] == [b"one", b"", b"three"]
    first, _, last = extents
    whole = Extent(first.segment, first.offset, last.offset + last.size - first.offset)
    assert log.read(whole) == b"onethree"
    log.close()


def test_a_frame_is_a_length_and_a_request(tmp_path: Path) -> None:
    """The layout is that of the Collector's file exporter, for its tools."""
    log = opened(tmp_path)
    log.append([b"abc", b"de"])
    log.close()
    (path,) = files(tmp_path)
    assert path.read_bytes() == b"\0\0\0\x03abc\0\0\0\x02de"
    assert path.stat().st_mode & 0o077 == 0


def test_the_next_process_goes_on_behind_the_cursor(tmp_path: Path) -> None:
    """What was marked is delivered; what came later is found, over all segments."""
    log = opened(tmp_path)
    extents = log.append([b"1", b"2", b"3"])
    log.mark(extents[1])
    log.close()
    assert left(tmp_path) == [b"3"]
    log = opened(tmp_path)
    log.append([b"4"])
    log.close()
    assert len(files(tmp_path)) == 2
    assert left(tmp_path) == [b"3", b"4"]


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_frame_that_was_cut_short_is_passed_over(tmp_path: Path, cut: int) -> None:
    """A process that died while it wrote costs that frame."""
    log = opened(tmp_path)
    log.append([b"whole", b"torn"])
    log.close()
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    assert left(tmp_path) == [b"whole"]
    assert list(StoredRecords(tmp_path).requests(1)) == [b"whole"]


def test_a_length_that_cannot_be_ends_the_segment(tmp_path: Path) -> None:
    """Damage is no reason to ask for four gigabytes of memory."""
    log = opened(tmp_path)
    log.append([b"good"])
    log.close()
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xffrest")
    assert left(tmp_path) == [b"good"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"segment":1}', b"\xff"])
def test_a_damaged_cursor_loses_nothing(tmp_path: Path, content: bytes) -> None:
    """All that is there is sent again rather than not at all."""
    log = opened(tmp_path)
    extents = log.append([b"1", b"2"])
    log.mark(extents[0])
    log.close()
    (tmp_path / FOLDER / "cursor.json").write_bytes(content)
    assert left(tmp_path) == [b"1", b"2"]


def test_the_oldest_segments_go_first(tmp_path: Path) -> None:
    """The log stays within its bound and a segment, and says what it deleted."""
    log = opened(tmp_path, KEEP)
    removed = []
    for _ in range(40):
        log.append([bytes(65_536)])
        removed += log.trim()
    assert removed == list(range(1, len(removed) + 1))
    assert len(removed) >= 20
    assert sum(path.stat().st_size for path in files(tmp_path)) <= KEEP
    assert next(one.number for one in StoredRecords(tmp_path).segments()) == removed[-1] + 1
    with pytest.raises(OSError, match="No such file"):
        log.read(Extent(1, 0, 10))
    log.close()


def test_a_damaged_extent_is_an_error(tmp_path: Path) -> None:
    """Bytes that are not the frames that were written are never sent as records."""
    log = opened(tmp_path)
    (extent,) = log.append([b"abcdef"])
    (path,) = files(tmp_path)
    path.write_bytes(b"\0\0\0\x01abcdefghi")
    with pytest.raises(OSError, match="damaged"):
        log.read(extent)
    log.close()


def test_a_full_disk_takes_back_what_was_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the failure the segment holds whole frames, and the next append goes on."""
    log = opened(tmp_path)
    log.append([b"before"])
    real = os.writev

    def full(file: int, pieces: list[bytes]) -> int:
        real(file, [pieces[0]])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space left"):
        log.append([b"lost"])
    monkeypatch.setattr(os, "writev", real)
    log.append([b"after"])
    log.close()
    assert left(tmp_path) == [b"before", b"after"]


def test_a_write_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take fewer bytes at a time than it is given."""
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda file, pieces: real(file, [b"".join(pieces)[:3]]))
    log = opened(tmp_path)
    bodies = [bytes([number]) * number for number in range(20)]
    extents = log.append(bodies)
    assert [log.read(extent) for extent in extents] == bodies
    log.close()


def test_one_process_has_the_log(tmp_path: Path) -> None:
    """A second one is refused, until the first is gone."""
    log = opened(tmp_path)
    with pytest.raises(OSError, match="unavailable"):
        opened(tmp_path)
    log.close()
    opened(tmp_path).close()


def test_there_may_be_no_log(tmp_path: Path) -> None:
    """A host that never kept records has no segments."""
    assert StoredRecords(tmp_path).segments() == []
    assert list(StoredRecords(tmp_path).requests(1)) == []
