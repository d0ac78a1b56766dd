"""Chains of audit entries as they lie in a store, for tests that damage them."""

from msgspec import Raw
from msgspec.structs import replace

from gateway.core.audit import AuditEntry, commit_of, encode_entry, entry_hash
from gateway.core.chain import Chain, Fault, Head, Line, begin
from gateway.core.snapshot import EMPTY, Snapshot
from gateway.core.transitions import register


def line_of(entry: AuditEntry) -> Line:
    """An entry as a store holds it."""
    stream_id = f"{entry.epoch}-{entry.revision}"
    return Line(stream_id, entry_hash(entry), Raw(encode_entry(entry)))


def committed(count: int, *, at: float = 1_000.0, step_s: float = 1.0) -> tuple[list[Line], Head]:
    """So many registrations, and where they lead."""
    snapshot, entries = EMPTY, []
    for number in range(1, count + 1):
        snapshot, entry = registered(snapshot, number, at + number * step_s)
        entries.append(entry)
    return [line_of(entry) for entry in entries], head_of(snapshot)


def registered(snapshot: Snapshot, number: int, at: float) -> tuple[Snapshot, AuditEntry]:
    """Register a version of a model."""
    commit = commit_of(
        snapshot,
        register(snapshot, "m", number, f"{number:064x}"),
        at=at,
        actor=("ana", "ben")[number % 2],
        action="model.register",
        target="models/m",
        reason=f'number {number}, "said" so',
    )
    return commit.snapshot, commit.entry


def head_of(snapshot: Snapshot) -> Head:
    """Where a log must lead that made this Snapshot."""
    return Head(snapshot.revision, snapshot.epoch, snapshot.audit_head)


def seen(lines: list[Line], head: Head) -> Chain:
    """A chain of these lines, held against the head."""
    chain = begin(head)
    for line in lines:
        chain.add(line)
    chain.finish(head)
    return chain


def told(lines: list[Line], head: Head) -> list[tuple[int, str]]:
    """What is wrong with these lines."""
    return facts(seen(lines, head).faults)


def facts(faults: list[Fault]) -> list[tuple[int, str]]:
    """Faults without their sentences."""
    return [(fault.revision, fault.what) for fault in faults]


def forged(line: Line, entry: AuditEntry, **fields: object) -> Line:
    """The line with other facts, its hash made to match."""
    return replace(line_of(replace(entry, **fields)), id=line.id)
