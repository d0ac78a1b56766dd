"""Operations on principals and tokens."""

from gateway.control.principals import Issued
from gateway.core.errors import NotFound, excerpt
from gateway.core.principals import PrincipalDocument
from gateway.core.snapshot import Snapshot, document_digest
from gateway.doors.http.admin_calls import Call, answer, changed
from gateway.doors.http.admin_principal_documents import (
    IssuedToken,
    IssueToken,
    PrincipalEntry,
    PrincipalList,
    RotateToken,
    TokenEntry,
    TokenList,
)
from gateway.doors.http.messages import Response


async def list_principals(call: Call) -> Response:
    """Every principal."""
    snapshot = call.parts.registry.snapshot
    entries = tuple(_entry(snapshot, name) for name in sorted(snapshot.principals))
    return answer(PrincipalList(snapshot.revision, entries), revision=snapshot.revision)


async def show_principal(call: Call) -> Response:
    """One principal."""
    name, snapshot = call.path["name"], call.parts.registry.snapshot
    if name not in snapshot.principals:
        message = f"There is no principal '{excerpt(name)}'."
        raise NotFound(message)
    entry = _entry(snapshot, name)
    return answer(entry, revision=snapshot.revision, etag=entry.etag)


async def put_principal(call: Call) -> Response:
    """Write or replace a principal."""
    name = call.path["name"]
    document: PrincipalDocument = call.document
    asked = call.asked(call.text("reason") or "")
    doing = call.parts.principals.put(name, document, asked)
    return await changed(call, f"principals/{name}", doing)


async def delete_principal(call: Call) -> Response:
    """Drop a principal, and its tokens with it."""
    name = call.path["name"]
    asked = call.asked(call.text("reason") or "")
    return await changed(call, f"principals/{name}", call.parts.principals.delete(name, asked))


async def list_tokens(call: Call) -> Response:
    """Every token, or those of one principal."""
    snapshot, wanted = call.parts.registry.snapshot, call.text("principal")
    now = call.parts.now()
    entries = tuple(
        TokenEntry(
            id=token_id,
            principal=record.principal,
            created_at=record.created_at,
            created_by=record.created_by,
            expires_at=record.expires_at,
            expired=record.expires_at is not None and record.expires_at <= now,
            etag=document_digest(record),
        )
        for token_id, record in sorted(snapshot.tokens.items())
        if wanted in (None, record.principal)
    )
    return answer(TokenList(snapshot.revision, entries), revision=snapshot.revision)


async def issue_token(call: Call) -> Response:
    """Make a token for a principal."""
    wish: IssueToken = call.document
    asked = call.asked(wish.reason)
    return _shown(await call.parts.principals.issue(call.path["name"], wish.expires_in_s, asked))


async def rotate_token(call: Call) -> Response:
    """Make a token in the place of another."""
    wish: RotateToken = call.document
    asked = call.asked(wish.reason)
    return _shown(
        await call.parts.principals.rotate(
            call.path["id"], wish.overlap_s, wish.expires_in_s, asked
        )
    )


async def revoke_token(call: Call) -> Response:
    """Take a token back."""
    token_id = call.path["id"]
    asked = call.asked(call.text("reason") or "")
    return await changed(call, f"tokens/{token_id}", call.parts.principals.revoke(token_id, asked))


def _entry(snapshot: Snapshot, name: str) -> PrincipalEntry:
    document = snapshot.principals[name]
    held = sum(record.principal == name for record in snapshot.tokens.values())
    return PrincipalEntry(name, document_digest(document), document, held)


def _shown(issued: Issued) -> Response:
    revision = issued.change.revision
    document = IssuedToken(issued.id, issued.token, issued.principal, issued.expires_at, revision)
    return answer(document, revision=revision, etag=issued.change.etag)
