"""Conditions of commits: what a request demands of what stands, and what it is answered with."""

from typing import Final

from gateway.core.audit import Commit
from gateway.core.documents import document_at
from gateway.core.errors import Conflict, InvalidRequest, excerpt
from gateway.core.snapshot import Snapshot, document_digest

MAX_REASON: Final = 1000
ANY_DOCUMENT: Final = "*"
NO_DOCUMENT: Final = ""


def etag_of(snapshot: Snapshot, target: str) -> str | None:
    """The ETag of a document; None where there is none."""
    found = document_at(snapshot, target)
    return None if found is None else document_digest(found)


def check_match(base: Snapshot, target: str, wanted: str | None) -> None:
    """Refuse a document that is not the one that the request speaks of.

    Raises:
        Conflict: with the ETag that stands.
    """
    if wanted is None:
        return
    stands = etag_of(base, target)
    if wanted == NO_DOCUMENT and stands is None:
        return
    if stands is not None and wanted in (ANY_DOCUMENT, stands):
        return
    now = "has no document" if stands is None else f"has the ETag {stands}"
    message = f"'{excerpt(target, 80)}' moved: at revision {base.revision} it {now}."
    raise Conflict(message)


def check_reason(reason: str) -> None:
    """Refuse a reason that no log should hold.

    Raises:
        InvalidRequest: it is too long.
    """
    if len(reason) > MAX_REASON:
        message = f"The reason has {len(reason)} characters; at most {MAX_REASON} may."
        raise InvalidRequest(message)


def accepted_of(commit: Commit) -> dict[str, str]:
    """The answer to a promotion request that was granted."""
    model = commit.entry.target.removeprefix("models/")
    before, after = commit.base.models[model].aliases, commit.snapshot.models[model].aliases
    alias = next(name for name, number in after.items() if before.get(name) != number)
    return {
        "status": "accepted",
        "reason": commit.entry.reason,
        "action": commit.entry.action.removeprefix("model."),
        "model": model,
        "version": str(after[alias]),
        "alias": alias,
        "revision": str(commit.snapshot.revision),
        "actor": commit.entry.actor,
    }
