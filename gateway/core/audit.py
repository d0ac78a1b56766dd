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

from gateway.core.errors import InvalidRequest
from gateway.core.snapshot import Snapshot, canonical, document_at, document_digest


class AuditEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """Who did what to which document, and why.

    `before` and `after` are the documents' digests (empty where there was none); `document` is
    the whole document after, so that any earlier Revision can be rebuilt. `at` is in UTC seconds.
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
) -> Commit:
    """Give a changed Snapshot its revision and its audit entry.

    Args:
        base: the Snapshot that was read.
        changed: what a transition made of it.
        at: UTC seconds.
        actor: who asked.
        action: what for, such as `model.promote`.
        target: the document that changed, as `gateway.core.snapshot.document_at` names it.
        reason: the caller's words.
    """
    before, after = document_at(base, target), document_at(changed, target)
    entry = AuditEntry(
        schema=1,
        epoch=base.epoch,
        revision=base.revision + 1,
        at=at,
        actor=actor,
        action=action,
        target=target,
        reason=reason,
        before="" if before is None else document_digest(before),
        after="" if after is None else document_digest(after),
        document=msgspec.json.decode(canonical(after)),
        previous=base.audit_head,
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


_DECODER: Final = msgspec.json.Decoder(AuditEntry)
