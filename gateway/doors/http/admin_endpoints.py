"""Operations on endpoints. Each reads as: what was asked, who knows, what is answered."""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from gateway.control.previews import Preview, preview_of
from gateway.core.endpoints import Endpoint
from gateway.core.errors import InvalidRequest, NotFound, excerpt
from gateway.core.explaining import Situation, explain
from gateway.core.snapshot import (
    MAX_REVISION,
    Snapshot,
    endpoint_names,
    endpoint_record,
    plan_of,
)
from gateway.core.targeting import ATTRIBUTE_HEADER, Scalar
from gateway.doors.http.admin_calls import Call, answer, changed
from gateway.doors.http.admin_documents import (
    EndpointDocument,
    EndpointEntry,
    EndpointList,
    RecentInputs,
    ShadowReport,
)
from gateway.doors.http.messages import Response


async def list_endpoints(call: Call) -> Response:
    """Every name that clients may call."""
    snapshot = call.parts.registry.snapshot
    entries = tuple(_entry(snapshot, name, call) for name in endpoint_names(snapshot))
    return answer(EndpointList(snapshot.revision, entries), revision=snapshot.revision)


async def show_endpoint(call: Call) -> Response:
    """One endpoint's document, and its compiled plan if that is asked for."""
    name, registry = call.path["name"], call.parts.registry
    snapshot = registry.snapshot
    record = endpoint_record(snapshot, name)
    etag = registry.etag(f"endpoints/{name}")
    document = EndpointDocument(
        name=name,
        implicit=etag is None,
        revision=snapshot.revision,
        etag=etag,
        document=record.document,
        splits=record.splits,
        plan=_plan(snapshot, name, etag) if call.flag("plan") else None,
    )
    return answer(document, revision=snapshot.revision, etag=etag)


async def put_endpoint(call: Call) -> Response:
    """Replace a document whole, or say what that would do."""
    name, registry = call.path["name"], call.parts.registry
    document: Endpoint = call.document
    if call.flag("dry_run"):
        preview = await registry.preview_endpoint(name, document, call.actor)
        return answer(preview, revision=preview.revision, etag=preview.etag)
    asked = call.asked(
        call.text("reason") or "", allow_signature_change=call.flag("allow_signature_change")
    )
    return await changed(call, f"endpoints/{name}", registry.put_endpoint(name, document, asked))


async def delete_endpoint(call: Call) -> Response:
    """Drop a document; a model of that name is then followed by its champion."""
    name, registry = call.path["name"], call.parts.registry
    asked = call.asked(call.text("reason") or "")
    return await changed(call, f"endpoints/{name}", registry.delete_endpoint(name, asked))


async def show_shadows(call: Call) -> Response:
    """What the shadows of an endpoint found."""
    name = call.path["name"]
    endpoint_record(call.parts.registry.snapshot, name)
    await call.parts.data_plane.refresh()
    return answer(ShadowReport(name, call.parts.data_plane.shadow_report(name)))


async def show_inputs(call: Call) -> Response:
    """What an endpoint was asked lately, where its document has it kept."""
    name = call.path["name"]
    endpoint_record(call.parts.registry.snapshot, name)
    await call.parts.data_plane.refresh(name)
    return answer(RecentInputs(name, call.parts.data_plane.recent_inputs(name)))


async def explain_assignment(call: Call) -> Response:
    """Which variant a unit gets, now or at an earlier revision."""
    snapshot = call.parts.registry.snapshot
    revision = call.integer("revision", 1, MAX_REVISION)
    if revision is not None and revision != snapshot.revision:
        snapshot = await _earlier(call, revision)
    situation = Situation(
        unit=(call.text("unit") or "").encode(),
        headers=_headers(call),
        parameters={name: _scalar(value) for name, value in _pairs(call, "parameter")},
    )
    explanation = explain(snapshot, call.path["name"], situation)
    return answer(explanation, revision=explanation.revision)


def _entry(snapshot: Snapshot, name: str, call: Call) -> EndpointEntry:
    document = endpoint_record(snapshot, name).document
    return EndpointEntry(
        name=name,
        model=document.model,
        implicit=name not in snapshot.endpoints,
        etag=call.parts.registry.etag(f"endpoints/{name}"),
        default_version=plan_of(snapshot, name).default.version,
        rules=len(document.rules),
        shadows=len(document.shadows),
    )


def _plan(snapshot: Snapshot, name: str, etag: str | None) -> Preview:
    """The plan that stands, as a preview that changes nothing."""
    record = endpoint_record(snapshot, name)
    explicit = replace(snapshot, endpoints={**snapshot.endpoints, name: record})
    return replace(preview_of(explicit, explicit, name, None), etag=etag)


async def _earlier(call: Call, revision: int) -> Snapshot:
    known = call.parts.registry.snapshot.revision
    if revision > known:
        message = f"Revision {revision} is not known; the newest is {known}."
        raise NotFound(message)
    return await call.parts.auditing.past.snapshot_at(revision)


def _headers(call: Call) -> dict[str, str]:
    """Headers and attributes as the data plane would decode them."""
    stated = [(name.lower(), value) for name, value in _pairs(call, "header")]
    stated += [
        (ATTRIBUTE_HEADER + name.lower(), value) for name, value in _pairs(call, "attribute")
    ]
    return {name: value.encode().decode("latin-1") for name, value in stated}


def _pairs(call: Call, query: str) -> Iterable[tuple[str, str]]:
    for stated in call.query.get(query, ()):
        name, equals, value = stated.partition("=")
        if not name or not equals:
            message = f"'{query}' is '{excerpt(stated)}'; write NAME=VALUE."
            raise InvalidRequest(message)
        yield name, value


def _scalar(text: str) -> Scalar:
    """A parameter as JSON spells it; what is no JSON scalar is text."""
    try:
        value: Scalar = _SCALAR.decode(text)
        return value
    except msgspec.DecodeError:
        return text


_SCALAR: Final = msgspec.json.Decoder(str | int | float | bool)
