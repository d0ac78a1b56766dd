"""Operations on retention: its documents, what may go, and letting it go."""

from typing import Final

from msgspec import Struct

from gateway.control.retention import Collected
from gateway.core.errors import NotFound, excerpt
from gateway.core.retentions import Retention
from gateway.core.snapshot import document_digest
from gateway.doors.http.admin_calls import Call, answer, changed
from gateway.doors.http.messages import Response

TARGET: Final = "retentions"


class RetentionDocument(Struct, frozen=True):
    """A document of retention as it stands."""

    name: str
    etag: str
    document: Retention


class RetentionList(Struct, frozen=True):
    """Every document of retention."""

    revision: int
    retentions: tuple[RetentionDocument, ...]


class Collect(Struct, frozen=True, forbid_unknown_fields=True):
    """Why versions are let go now."""

    reason: str = ""


async def list_retentions(call: Call) -> Response:
    """Every document."""
    snapshot = call.parts.registry.snapshot
    documents = tuple(
        RetentionDocument(name, document_digest(document), document)
        for name, document in sorted(snapshot.retentions.items())
    )
    return answer(RetentionList(snapshot.revision, documents), revision=snapshot.revision)


async def show_retention(call: Call) -> Response:
    """One document."""
    name, snapshot = call.path["name"], call.parts.registry.snapshot
    document = snapshot.retentions.get(name)
    if document is None:
        message = f"There is no retention '{excerpt(name)}'."
        raise NotFound(message)
    etag = document_digest(document)
    found = RetentionDocument(name, etag, document)
    return answer(found, revision=snapshot.revision, etag=etag)


async def put_retention(call: Call) -> Response:
    """Write or replace a document."""
    name = call.path["name"]
    asked = call.asked(call.text("reason") or "")
    doing = call.parts.retainer.put(name, call.document, asked)
    return await changed(call, f"{TARGET}/{name}", doing)


async def delete_retention(call: Call) -> Response:
    """Drop a document."""
    name = call.path["name"]
    asked = call.asked(call.text("reason") or "")
    return await changed(call, f"{TARGET}/{name}", call.parts.retainer.delete(name, asked))


async def look(call: Call) -> Response:
    """What may go, and what holds the rest."""
    found: Collected = await call.parts.retainer.look()
    return answer(found, revision=found.revision)


async def collect(call: Call) -> Response:
    """Let go of what may go."""
    asked: Collect = call.document
    found = await call.parts.retainer.collect(call.asked(asked.reason))
    return answer(found, revision=found.revision)
