"""The audit chain: every commit writes one entry that holds the hash of the one before.

hash_n = SHA-256(canonical JSON of entry n, which holds hash_(n-1)). The Snapshot holds the newest
hash, so a changed entry breaks the chain and a cut tail does not reach the head.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.documents import document_at, moved_targets
from gateway.core.errors import InvalidRequest
from gateway.core.snapshot import Snapshot, canonical, document_digest


class Moved(Struct, frozen=True, forbid_unknown_fields=True):
    """A document that a commit changed: its target, its digests and itself, as in `AuditEntry`."""

    target: str
    before: str
    after: str
    document: Any


class AuditEntry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who did what to which document, and why.

    `before` and `after` are the documents' digests (empty where there was none); `document` is
    the whole document after, so that any earlier Revision can be rebuilt. `at` is in UTC seconds.
    Fields with a default were added later: they are left out where they say nothing, so that the
    hash of an entry is the same as when it was written.
    """

    schema: int
    epoch: int
    revision: int
    at: float
    actor: str
    action: str
    target: str
    reason: str
    before: str
    after: str
    document: Any
    previous: str
    also: tuple[Moved, ...] = ()
    """Other documents that the same commit changed."""
    evidence: Any = None
    """What a decision was made from; see `gateway.core.ledger`."""


class Commit(Struct, frozen=True):
    """A Snapshot that may be written only over the one it was made from."""

    base: Snapshot
    snapshot: Snapshot
    entry: AuditEntry


def entry_hash(entry: AuditEntry) -> str:
    """The hash that the next entry and the Snapshot hold."""
    return hashlib.sha256(encode_entry(entry)).hexdigest()


def encode_entry(entry: AuditEntry) -> bytes:
    """Canonical JSON: sorted keys, no spaces."""
    return canonical(entry)


def decode_entry(document: bytes) -> AuditEntry:
    """Read an entry back.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return _DECODER.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = "The audit entry cannot be read."
        raise InvalidRequest(message) from error


def commit_of(  # noqa: PLR0913 - one argument for each fact that an audit entry states
    base: Snapshot,
    changed: Snapshot,
    *,
    at: float,
    actor: str,
    action: str,
    target: str,
    reason: str,
    evidence: Any = None,  # noqa: ANN401 - a JSON document
) -> Commit:
    """Give a changed Snapshot its revision and its audit entry.

    Args:
        base: the Snapshot that was read.
        changed: what a transition made of it.
        at: UTC seconds.
        actor: who asked.
        action: what for, such as `model.promote`.
        target: the document that was meant, such as `models/<name>`; others that changed with it
            are found here.
        reason: the caller's words.
        evidence: what a decision was made from, as JSON would hold it.
    """
    moved = _moved(base, changed, target)
    entry = AuditEntry(
        schema=1,
        epoch=base.epoch,
        revision=base.revision + 1,
        at=at,
        actor=actor,
        action=action,
        target=target,
        reason=reason,
        before=moved.before,
        after=moved.after,
        document=moved.document,
        previous=base.audit_head,
        also=tuple(
            _moved(base, changed, other)
            for other in moved_targets(base, changed)
            if other != target
        ),
        evidence=evidence,
    )
    snapshot = replace(changed, revision=entry.revision, audit_head=entry_hash(entry))
    return Commit(base=base, snapshot=snapshot, entry=entry)


def first_break(entries: Sequence[AuditEntry], head: str, origin: str = "") -> int | None:
    """The revision at which a chain breaks; None if it leads from the origin to the head.

    Args:
        entries: the oldest first.
        head: the hash of the newest, which the Snapshot holds.
        origin: the hash of the entry before the oldest; empty where the chain begins.
    """
    previous = origin
    for entry in entries:
        if entry.previous != previous:
            return entry.revision
        previous = entry_hash(entry)
    if previous == head:
        return None
    return entries[-1].revision + 1 if entries else 1


def _moved(base: Snapshot, changed: Snapshot, target: str) -> Moved:
    before, after = document_at(base, target), document_at(changed, target)
    return Moved(
        target=target,
        before="" if before is None else document_digest(before),
        after="" if after is None else document_digest(after),
        document=msgspec.json.decode(canonical(after)),
    )


_DECODER: Final = msgspec.json.Decoder(AuditEntry)
