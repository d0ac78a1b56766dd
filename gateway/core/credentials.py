"""Credentials: what changes principals and tokens do to a Snapshot. Pure, as all transitions."""

from typing import Final

from msgspec.structs import replace

from gateway.core.errors import Conflict, InvalidRequest, NotFound, excerpt
from gateway.core.principals import PrincipalDocument, TokenRecord, check_principal
from gateway.core.snapshot import Snapshot

MAX_PRINCIPALS: Final = 1_000
MAX_TOKENS: Final = 32
"""Tokens that one principal holds at a time."""


def put_principal(snapshot: Snapshot, name: str, document: PrincipalDocument) -> Snapshot:
    """Write or replace a principal.

    Raises:
        InvalidRequest: the document means nothing, or there are too many.
    """
    check_principal(name, document)
    if name not in snapshot.principals and len(snapshot.principals) >= MAX_PRINCIPALS:
        message = f"There are {MAX_PRINCIPALS} principals already; delete one first."
        raise InvalidRequest(message)
    return replace(snapshot, principals={**snapshot.principals, name: document})


def delete_principal(snapshot: Snapshot, name: str) -> Snapshot:
    """Drop a principal, and every token that it holds.

    Raises:
        NotFound: there is none.
    """
    _known(snapshot, name)
    rest = {other: one for other, one in snapshot.principals.items() if other != name}
    tokens = {key: one for key, one in snapshot.tokens.items() if one.principal != name}
    return replace(snapshot, principals=rest, tokens=tokens)


def issue_token(snapshot: Snapshot, token_id: str, record: TokenRecord) -> Snapshot:
    """Add a token; those of its principal that have expired go.

    Raises:
        NotFound: there is no such principal.
        Conflict: it holds too many already, or the id is taken.
    """
    name = record.principal
    _known(snapshot, name)
    kept = {
        key: one
        for key, one in snapshot.tokens.items()
        if one.principal != name or not _is_over(one, record.created_at)
    }
    if token_id in kept or sum(one.principal == name for one in kept.values()) >= MAX_TOKENS:
        message = f"'{excerpt(name)}' holds {MAX_TOKENS} tokens already; revoke one first."
        raise Conflict(message)
    return replace(snapshot, tokens={**kept, token_id: record})


def rotate_token(
    snapshot: Snapshot, old_id: str, token_id: str, record: TokenRecord, overlap_s: float
) -> Snapshot:
    """Add a token in the place of another, which is good for a while yet.

    Raises:
        NotFound: the old one is not there.
        Conflict: it is over, or another principal's, or there are too many.
    """
    old = token_of(snapshot, old_id)
    if _is_over(old, record.created_at) or old.principal != record.principal:
        message = f"Token '{excerpt(old_id)}' has expired; issue a new one."
        raise Conflict(message)
    until = record.created_at + overlap_s
    if old.expires_at is not None:
        until = min(until, old.expires_at)
    changed = issue_token(snapshot, token_id, record)
    if overlap_s == 0:
        return revoke_token(changed, old_id)
    return replace(changed, tokens={**changed.tokens, old_id: replace(old, expires_at=until)})


def revoke_token(snapshot: Snapshot, token_id: str) -> Snapshot:
    """Take a token back.

    Raises:
        NotFound: there is none.
    """
    token_of(snapshot, token_id)
    rest = {other: one for other, one in snapshot.tokens.items() if other != token_id}
    return replace(snapshot, tokens=rest)


def token_of(snapshot: Snapshot, token_id: str) -> TokenRecord:
    """The record of a token.

    Raises:
        NotFound: there is none.
    """
    record = snapshot.tokens.get(token_id)
    if record is None:
        message = f"There is no token '{excerpt(token_id)}'."
        raise NotFound(message)
    return record


def _known(snapshot: Snapshot, name: str) -> PrincipalDocument:
    document = snapshot.principals.get(name)
    if document is None:
        message = f"There is no principal '{excerpt(name)}'."
        raise NotFound(message)
    return document


def _is_over(record: TokenRecord, now: float) -> bool:
    return record.expires_at is not None and record.expires_at <= now
