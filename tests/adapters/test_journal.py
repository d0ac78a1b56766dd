import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.adapters.journal import FOLDER, SUFFIX, Journal, kept_entries
from gateway.core.errors import Overloaded

KEEP = 1 << 20


def opened(state: Path, keep_bytes: int = KEEP) -> Journal:
    """A journal that is open."""
    journal = Journal(state, keep_bytes, name="h", entropy=lambda size: b"\7" * size)
    journal.open()
    return journal


def left(state: Path) -> list[bytes]:
    """What a fresh process finds unshipped."""
    journal = opened(state)
    found = [entry for _, entry in journal.read(10_000, KEEP)]
    journal.close()
    return found


def files(state: Path) -> list[Path]:
    """The segments on disk."""
    return sorted((state / FOLDER).glob(f"*{SUFFIX}"))


def test_entries_are_read_in_order_with_rising_sequences(tmp_path: Path) -> None:
    """What was appended is read, and the last sequence is what the append said."""
    journal = opened(tmp_path)
    assert journal.append([b"one", b""]) == 2
    assert journal.append([b"three"]) == 3
    assert journal.read(10, KEEP) == [(1, b"one"), (2, b""), (3, b"three")]
    journal.close()


def test_a_read_is_bounded_and_never_empty_handed(tmp_path: Path) -> None:
    """By entries and by bytes, but for the first entry."""
    journal = opened(tmp_path)
    journal.append([b"x" * 100, b"y" * 100, b"z"])
    assert [sequence for sequence, _ in journal.read(2, KEEP)] == [1, 2]
    assert [sequence for sequence, _ in journal.read(9, 150)] == [1]
    assert [sequence for sequence, _ in journal.read(9, 10)] == [1]
    journal.close()


def test_a_journal_goes_back_to_what_must_be_shipped_again(tmp_path: Path) -> None:
    """To the segment that holds it; what was shipped before that may go."""
    for name in (b"1", b"2", b"3"):  # a segment for each process
        journal = opened(tmp_path)
        journal.append([name])
        journal.read(9, KEEP)
        journal.mark(9)
        journal.close()
    journal = opened(tmp_path)
    journal.rewind(1)
    assert journal.read(9, KEEP) == [(2, b"2"), (3, b"3")]
    journal.rewind(0)
    assert [sequence for sequence, _ in journal.read(9, KEEP)] == [1, 2, 3]
    journal.close()


def test_a_journal_says_what_was_shipped_under_its_id(tmp_path: Path) -> None:
    """Under a new id nothing was."""
    journal = opened(tmp_path)
    journal.append([b"1", b"2"])
    journal.read(9, KEEP)
    journal.mark(1)
    journal.close()
    journal = Journal(tmp_path, KEEP, name="h", entropy=lambda size: b"\x08" * size)
    assert journal.open().shipped == 1
    journal.rename()
    journal.close()
    again = Journal(tmp_path, KEEP, name="h", entropy=os.urandom)
    assert again.open().shipped == 0
    again.close()


def test_what_is_marked_is_not_read_again(tmp_path: Path) -> None:
    """Neither in this process nor in the next, and bytes behind the cursor are counted."""
    journal = opened(tmp_path)
    journal.append([b"1", b"2", b"3"])
    journal.read(10, KEEP)
    journal.mark(2)
    assert journal.read(10, KEEP) == [(3, b"3")]
    assert journal.unshipped == journal.size / 3
    journal.mark(3)
    assert (journal.read(10, KEEP), journal.unshipped) == ([], 0)
    journal.append([b"4"])
    journal.close()
    assert left(tmp_path) == [b"4"]


def test_a_process_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """The host keeps its id, sequences rise, and the last entry is told."""
    journal = opened(tmp_path)
    journal.append([b"1", b"2"])
    journal.close()
    again = Journal(tmp_path, KEEP, name="other", entropy=os.urandom)
    tail = again.open()
    assert (tail.host, tail.last, tail.newest) == ("h-07070707", 2, b"2")
    assert again.append([b"3"]) == 3
    assert [entry for _, entry in again.read(10, KEEP)] == [b"1", b"2", b"3"]
    again.close()


def test_an_empty_journal_has_no_last_entry(tmp_path: Path) -> None:
    """However often it was opened."""
    for _ in range(2):
        journal = Journal(tmp_path, KEEP, name="h", entropy=os.urandom)
        tail = journal.open()
        assert (tail.last, tail.newest, journal.read(1, 1)) == (0, None, [])
        journal.close()


def test_without_its_cursor_everything_is_unshipped(tmp_path: Path) -> None:
    """The store knows what it has; here nothing is forgotten."""
    journal = opened(tmp_path)
    journal.append([b"1", b"2"])
    journal.read(9, KEEP)
    journal.mark(2)
    journal.close()
    (tmp_path / FOLDER / "cursor.json").write_text("{")
    assert left(tmp_path) == [b"1", b"2"]


def test_sequences_go_on_though_every_segment_is_gone(tmp_path: Path) -> None:
    """The cursor alone keeps the store from passing over what comes next."""
    journal = opened(tmp_path)
    journal.append([b"1", b"2"])
    journal.read(9, KEEP)
    journal.mark(2)
    journal.close()
    for path in files(tmp_path):
        path.unlink()
    journal = opened(tmp_path)
    assert journal.append([b"3"]) == 3
    journal.close()


def test_one_process_has_the_journal(tmp_path: Path) -> None:
    """A second one is told so, and the first goes on."""
    journal = opened(tmp_path)
    with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
        opened(tmp_path)
    journal.append([b"1"])
    journal.close()
    assert left(tmp_path) == [b"1"]


@pytest.mark.parametrize("cut", range(1, 2 * (16 + 4) + 1))
def test_a_torn_tail_costs_what_is_torn(tmp_path: Path, cut: int) -> None:
    """At every byte: whole entries stay, and what comes next is read behind them."""
    journal = opened(tmp_path)
    journal.append([b"good", b"torn", b"last"])
    journal.close()
    (path,) = files(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    whole = [b"good", b"torn"][: (2 * 20 - cut) // 20 + 1]
    journal = opened(tmp_path)
    sequence = journal.append([b"next"])
    found = journal.read(9, KEEP)
    journal.close()
    assert [entry for _, entry in found] == [*whole, b"next"]
    assert found[-1][0] == sequence > len(whole)
    assert [entry for _, entry in kept_entries(tmp_path)] == [*whole, b"next"]
    assert left(tmp_path) == [*whole, b"next"]


@pytest.mark.parametrize("place", range(20))
def test_a_damaged_entry_is_not_read(tmp_path: Path, place: int) -> None:
    """Whichever byte of it: what lies behind in the segment is passed over, and no more."""
    journal = opened(tmp_path)
    journal.append([b"good", b"ugly"])
    journal.close()
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[20 + place] ^= 0x55
    path.write_bytes(content)
    journal = opened(tmp_path)
    assert journal.append([b"next"]) > 2
    assert [entry for _, entry in journal.read(9, KEEP)] == [b"good", b"next"]
    journal.close()


def test_a_segment_of_nothing_but_damage_is_forgotten(tmp_path: Path) -> None:
    """Its sequences are not given again, since the store may have them."""
    journal = opened(tmp_path)
    journal.append([b"1", b"2", b"3"])
    journal.close()
    (path,) = files(tmp_path)
    path.write_bytes(b"\0" * path.stat().st_size)
    journal = opened(tmp_path)
    assert journal.append([b"next"]) > 3
    assert [entry for _, entry in journal.read(9, KEEP)] == [b"next"]
    journal.close()


def test_a_full_journal_refuses_and_forgets_nothing_unshipped(tmp_path: Path) -> None:
    """Until something is shipped; then the oldest segments make room."""
    journal, body = opened(tmp_path), b"x" * 70_000
    kept = KEEP // 70_000
    for _ in range(kept):
        journal.append([body])
    with pytest.raises(Overloaded, match="retry later"):
        journal.append([body])
    assert journal.size <= KEEP
    assert len(journal.read(100, 2 * KEEP)) == kept
    journal.mark(kept // 2)
    for _ in range(kept // 2):
        journal.append([body])
    with pytest.raises(Overloaded):
        journal.append([body])
    assert [sequence for sequence, _ in journal.read(100, 2 * KEEP)] == list(
        range(kept // 2 + 1, kept + kept // 2 + 1)
    )
    journal.close()


def test_shipped_segments_stay_until_the_bound(tmp_path: Path) -> None:
    """They are this host's log of outcomes."""
    journal = opened(tmp_path)
    for number in range(30):
        journal.append([number.to_bytes(1) * 70_000])
        journal.mark(journal.read(9, KEEP)[-1][0])
    journal.close()
    kept = [sequence for sequence, _ in kept_entries(tmp_path)]
    assert kept == list(range(31 - len(kept), 31))
    assert len(kept) == KEEP // 70_000


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Bound the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_is_full_takes_all_or_nothing(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    """What was half written is taken back, and the journal goes on once there is room."""
    journal = opened(tmp_path)
    journal.append([b"before"])
    small_files(100)
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            journal.append([b"a", b"x" * 200])
    small_files(1 << 20)
    sequence = journal.append([b"after"])
    assert [entry for _, entry in journal.read(9, KEEP)] == [b"before", b"after"]
    assert sequence > 2
    journal.close()
    assert left(tmp_path) == [b"before", b"after"]


def test_a_sync_that_fails_takes_the_entries_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was told that they are there; their sequences are not given again."""

    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = opened(tmp_path)
    journal.append([b"1"])
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            journal.append([b"2"])
    assert journal.append([b"3"]) == 3
    assert journal.read(9, KEEP) == [(1, b"1"), (3, b"3")]
    journal.close()
    assert left(tmp_path) == [b"1", b"3"]


def test_a_new_id_is_kept(tmp_path: Path) -> None:
    """For the next process too."""
    journal = Journal(tmp_path, KEEP, name="h", entropy=os.urandom)
    before = journal.open().host
    renamed = journal.rename()
    journal.close()
    journal = Journal(tmp_path, KEEP, name="h", entropy=os.urandom)
    assert before != renamed == journal.open().host
    journal.close()


APPENDING = """
import sys
from pathlib import Path
from gateway.adapters.journal import Journal
journal = Journal(Path(sys.argv[1]), 1 << 24, name="h", entropy=bytes)
journal.open()
number = int(sys.argv[2])
while True:
    last = journal.append([b"%d" % n for n in range(number, number + 3)])
    number += 3
    print(number, last, flush=True)
"""


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    """A process that appends is killed again and again; what it told of is there, once each."""
    number, told = 0, 0
    for wanted in (40, 3, 77):
        words = [sys.executable, "-c", APPENDING, str(tmp_path), str(number)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(wanted):
                number, told = map(int, process.stdout.readline().split())
            process.kill()
            for line in process.stdout:
                number, told = map(int, line.split())
        entries = list(kept_entries(tmp_path))
        assert [sequence for sequence, _ in entries if sequence <= told] == sorted(
            {sequence for sequence, _ in entries if sequence <= told}
        )
        kept = [int(entry) for _, entry in entries]
        assert kept[:number] == list(range(number))
        number = len(kept)
