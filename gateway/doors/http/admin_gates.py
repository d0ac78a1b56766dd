"""Operations on gates, approvals and wishes."""

from gateway.core.gates import Gate
from gateway.core.gating import Finding, missing_of
from gateway.core.governing import gate_of, review_of
from gateway.core.models import CHAMPION, Key, check_name, parse_version
from gateway.core.patterns import matches_any
from gateway.core.snapshot import Snapshot, document_digest
from gateway.core.transitions import model_of
from gateway.doors.http.admin_calls import Call, answer, changed
from gateway.doors.http.admin_gate_documents import (
    Approve,
    GateDocument,
    GateEntry,
    GateList,
    PutWish,
    VersionGates,
    WishAnswer,
    WishEntry,
    WishList,
)
from gateway.doors.http.messages import Response


async def list_gates(call: Call) -> Response:
    """Every gate."""
    snapshot = call.parts.registry.snapshot
    entries = tuple(
        GateEntry(name, document_digest(gate), gate)
        for name, gate in sorted(snapshot.gates.items())
    )
    return answer(GateList(snapshot.revision, entries), revision=snapshot.revision)


async def show_gate(call: Call) -> Response:
    """One gate."""
    name, snapshot = call.path["name"], call.parts.registry.snapshot
    gate = gate_of(snapshot, name)
    etag = document_digest(gate)
    meant = tuple(model for model in sorted(snapshot.models) if matches_any(gate.models, model))
    document = GateDocument(name, snapshot.revision, etag, gate, meant)
    return answer(document, revision=snapshot.revision, etag=etag)


async def put_gate(call: Call) -> Response:
    """Add or replace a gate, or say what that would mean."""
    name = call.path["name"]
    document: Gate = call.document
    if call.flag("dry_run"):
        preview = await call.parts.gates.preview(name, document)
        return answer(preview, revision=preview.revision, etag=preview.etag)
    asked = call.asked(call.text("reason") or "")
    return await changed(call, f"gates/{name}", call.parts.gates.put(name, document, asked))


async def delete_gate(call: Call) -> Response:
    """Drop a gate."""
    name = call.path["name"]
    asked = call.asked(call.text("reason") or "")
    return await changed(call, f"gates/{name}", call.parts.gates.delete(name, asked))


async def show_version_gates(call: Call) -> Response:
    """What stands between a version and an alias."""
    snapshot, key = call.parts.registry.snapshot, _version(call)
    alias = check_name("an alias", call.text("alias") or CHAMPION)
    review = review_of(snapshot, key)
    found = await call.parts.registry.gatekeeper.findings(snapshot, key, alias, call.actor)
    document = VersionGates(
        model=key[0],
        version=key[1],
        alias=alias,
        revision=snapshot.revision,
        open=not missing_of(found),
        requirements=found,
        approvals=review.approvals,
    )
    return answer(document, revision=snapshot.revision)


async def approve(call: Call) -> Response:
    """Stand for a version."""
    body: Approve = call.document
    model, number = _version(call)
    doing = call.parts.gates.approve(model, number, call.asked(body.reason))
    return await changed(call, f"reviews/{model}/{number}", doing)


async def unapprove(call: Call) -> Response:
    """Take one's approval back."""
    model, number = _version(call)
    doing = call.parts.gates.unapprove(model, number, call.asked(call.text("reason") or ""))
    return await changed(call, f"reviews/{model}/{number}", doing)


async def list_wishes(call: Call) -> Response:
    """Every wish that is not granted yet."""
    return await _wishes(call, None)


async def list_model_wishes(call: Call) -> Response:
    """Those for one model."""
    model_of(call.parts.registry.snapshot, call.path["model"])
    return await _wishes(call, call.path["model"])


async def put_wish(call: Call) -> Response:
    """Promote, now or as soon as the gates allow it."""
    body: PutWish = call.document
    asked = call.asked(body.reason, allow_signature_change=body.allow_signature_change)
    wished = await call.parts.wishes.put(call.path["model"], body.version, asked, alias=body.alias)
    change = wished.change
    document = WishAnswer(
        revision=change.revision,
        etag=change.etag,
        changed=change.entry is not None,
        granted=wished.granted,
        missing=wished.missing,
    )
    return answer(document, revision=change.revision, etag=change.etag)


async def drop_wish(call: Call) -> Response:
    """Let a wish go."""
    model, alias = call.path["model"], call.path["alias"]
    asked = call.asked(call.text("reason") or "")
    return await changed(
        call, f"wishes/{model}/{alias}", call.parts.wishes.drop(model, alias, asked)
    )


async def _wishes(call: Call, only: str | None) -> Response:
    snapshot = call.parts.registry.snapshot
    entries = [
        await _wish(call, snapshot, name)
        for name in sorted(snapshot.wishes)
        if only in (None, name.partition("/")[0])
    ]
    return answer(WishList(snapshot.revision, tuple(entries)), revision=snapshot.revision)


async def _wish(call: Call, snapshot: Snapshot, name: str) -> WishEntry:
    model, _, alias = name.partition("/")
    wish = snapshot.wishes[name]
    known = snapshot.models.get(model)
    found: tuple[Finding, ...] = ()
    if known is not None and wish.version in known.versions:
        keeper = call.parts.registry.gatekeeper
        found = await keeper.findings(snapshot, (model, wish.version), alias, wish.asked_by)
    return WishEntry(model, alias, document_digest(wish), wish, missing_of(found))


def _version(call: Call) -> Key:
    return call.path["model"], parse_version(call.path["version"])
