"""The chain of the audit log: every change to it is found, and named by its revision."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from gateway.core.audit import AuditEntry, decode_entry
from gateway.core.chain import (
    MAX_FAULTS,
    Chain,
    Gap,
    Head,
    Line,
    LogEnd,
    Loss,
    decode_line,
    encode_line,
)
from gateway.core.snapshot import canonical
from tests.chains import committed, forged, line_of, seen, told

LINES, HEAD = committed(6)


def entry_of(line: Line) -> AuditEntry:
    """The entry of a line."""
    return decode_entry(bytes(line.entry))


def test_a_whole_chain_holds() -> None:
    """From nothing to the head, every entry counted."""
    chain = seen(LINES, HEAD)
    assert (chain.faults, chain.gaps, chain.entries) == ([], [], 6)
    assert (chain.revision, chain.head) == (HEAD.revision, HEAD.head)


@given(place=st.integers(0, 5), at=st.integers(0, 10_000), to=st.integers(0, 255))
def test_a_changed_byte_is_found_where_it_is(place: int, at: int, to: int) -> None:
    """Whatever byte of whichever entry it is."""
    line = LINES[place]
    content = bytearray(bytes(line.entry))
    at %= len(content)
    if content[at] == to:
        return
    content[at] = to
    lines = [*LINES[:place], replace(line, entry=Raw(bytes(content))), *LINES[place + 1 :]]
    assert told(lines, HEAD) == [(place + 1, "changed")]


@given(place=st.integers(0, 5), at=st.integers(0, 63))
def test_a_changed_hash_is_found(place: int, at: int) -> None:
    """The hash beside an entry, too."""
    stated = LINES[place].hash
    other = stated[:at] + ("0" if stated[at] != "0" else "1") + stated[at + 1 :]
    lines = [*LINES[:place], replace(LINES[place], hash=other), *LINES[place + 1 :]]
    assert told(lines, HEAD) == [(place + 1, "changed")]


@given(place=st.integers(0, 5), field=st.sampled_from(["actor", "previous"]))
def test_an_entry_forged_with_its_hash_is_found(place: int, field: str) -> None:
    """Who works the hash out again does not move the one that the next entry holds."""
    line = forged(LINES[place], entry_of(LINES[place]), **{field: "f" * 64})
    found = told([*LINES[:place], line, *LINES[place + 1 :]], HEAD)
    assert (place + 1, "changed") in found


def test_a_tail_forged_to_its_end_does_not_lead_to_the_head() -> None:
    """Every later entry made to match leaves the Snapshot's head."""
    first = forged(LINES[4], entry_of(LINES[4]), actor="mallory")
    last = forged(LINES[5], entry_of(LINES[5]), previous=first.hash)
    assert told([*LINES[:4], first, last], HEAD) == [(6, "changed")]


@given(place=st.integers(0, 4))
def test_a_missing_entry_is_named(place: int) -> None:
    """At the beginning and in the middle."""
    assert told([*LINES[:place], *LINES[place + 1 :]], HEAD) == [(place + 1, "missing")]


@given(kept=st.integers(0, 5))
def test_a_cut_tail_is_named(kept: int) -> None:
    """The first revision that is missing."""
    assert told(LINES[:kept], HEAD) == [(kept + 1, "cut")]


@given(place=st.integers(0, 4))
def test_entries_in_another_order_are_found(place: int) -> None:
    """Two that changed places."""
    lines = [*LINES[:place], LINES[place + 1], LINES[place], *LINES[place + 2 :]]
    assert (place + 1, "missing") in told(lines, HEAD)
    assert (place + 1, "order") in told(lines, HEAD)


def test_entries_that_change_places_under_the_ids_are_found() -> None:
    """The stream's ids are not hashed; the revision in the entry is."""
    lines = [replace(LINES[1], id=LINES[0].id), replace(LINES[0], id=LINES[1].id), *LINES[2:]]
    assert (1, "order") in told(lines, HEAD)
    assert (2, "order") in told(lines, HEAD)


def test_what_stands_behind_the_head_is_found() -> None:
    """A log that is ahead of its Snapshot."""
    lines, _ = committed(7)
    assert told(lines, HEAD) == [(7, "ahead")]


def test_only_so_many_faults_are_told() -> None:
    """The first ones say where to look."""
    lines, head = committed(50)
    assert len(told([replace(line, hash="") for line in lines], head)) == MAX_FAULTS


def restored_at(revision: int, log_ends: LogEnd | None, previous: str) -> tuple[Line, Head]:
    """The first entry of a new epoch."""
    loss = Loss(1, revision - 1, previous, "d" * 64, "one", "disk", "empty", log_ends)
    entry = AuditEntry(
        schema=1,
        epoch=2,
        revision=revision,
        at=1.0,
        actor="ana",
        action="store.restore",
        target="store",
        reason="flushed",
        before="",
        after="",
        document=None,
        previous=previous,
        evidence=msgspec.json.decode(canonical(loss)),
    )
    line = line_of(entry)
    return line, Head(revision, 2, line.hash)


def test_a_restore_of_an_emptied_store_tells_what_is_gone() -> None:
    """What was lost is a gap that the chain itself speaks of, and no fault."""
    line, head = restored_at(7, None, HEAD.head)
    chain = seen([line], head)
    assert (chain.faults, chain.gaps) == ([], [Gap(1, 6, 7)])


def test_a_restore_goes_on_from_what_the_store_still_had() -> None:
    """The entries between the log's end and the restore are the gap."""
    line, head = restored_at(7, LogEnd(4, LINES[3].hash), HEAD.head)
    chain = seen([*LINES[:4], line], head)
    assert (chain.faults, chain.gaps) == ([], [Gap(5, 6, 7)])


def test_entries_that_go_after_a_restore_are_missed() -> None:
    """A restore is no excuse for what the store still had when it was restored."""
    line, head = restored_at(7, LogEnd(4, LINES[3].hash), HEAD.head)
    assert told([*LINES[:3], line], head) == [(4, "missing")]
    assert told([line], head) == [(1, "missing")]


def test_a_line_has_one_way_to_be_written() -> None:
    """What is written is read back; the same with a space is refused."""
    assert decode_line(encode_line(LINES[0])) == LINES[0]
    assert decode_line(encode_line(Chain().end())) == Chain().end()
