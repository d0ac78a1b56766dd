"""Operations on experiments, layers, the hold-out and the ledger."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from gateway.control.registry import Change, Request
from gateway.core.assignment import SCALE
from gateway.core.audit import AuditEntry, entry_hash
from gateway.core.documents import HOLD_OUT
from gateway.core.errors import InvalidRequest, NotFound, excerpt
from gateway.core.experimenting import experiment_of, free_slots
from gateway.core.experiments import LIVE, Experiment
from gateway.core.ledger import decisions_in
from gateway.core.reporting import kind_of
from gateway.core.snapshot import MAX_FAULT, MAX_REVISION, Snapshot, document_digest
from gateway.core.whatif import Policy
from gateway.doors.http.admin_calls import Call, answer, changed
from gateway.doors.http.admin_documents import AuditItem
from gateway.doors.http.admin_experiment_documents import (
    Because,
    Begin,
    ExperimentDocument,
    ExperimentEntry,
    ExperimentList,
    History,
    HoldOutDocument,
    LayerDocument,
    LayerEntry,
    LayerList,
    LedgerPage,
    PutHoldOut,
    PutLayer,
)
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import Response
from gateway.doors.report_page import report_page
from gateway.ports import Store

PAGE_HEADERS: Final[Headers] = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"x-content-type-options", b"nosniff"),
]
POINTS: Final = 500
MAX_POINTS: Final = 10_000
LEDGER_PAGE: Final = 100
MAX_LEDGER_PAGE: Final = 500
READ_AT_ONCE: Final = 200
"""Audit entries looked through at a time for decisions."""


async def list_experiments(call: Call) -> Response:
    """Every experiment."""
    snapshot = call.parts.registry.snapshot
    entries = [
        ExperimentEntry(
            name=name,
            endpoint=record.document.endpoint,
            strategy=kind_of(record.document),
            state=record.state,
            reason=record.reason,
            since=record.since,
            step=record.step,
            exposure=record.exposure,
            verdicts=record.verdicts,
            etag=document_digest(record),
            remarks=tuple(await call.parts.reports.remarks(name)),
        )
        for name, record in sorted(snapshot.experiments.items())
    ]
    return answer(ExperimentList(snapshot.revision, tuple(entries)), revision=snapshot.revision)


async def show_experiment(call: Call) -> Response:
    """One experiment's document and what became of it."""
    name, snapshot = call.path["name"], call.parts.registry.snapshot
    record = experiment_of(snapshot, name)
    etag = document_digest(record)
    document = ExperimentDocument(
        name=name,
        revision=snapshot.revision,
        etag=etag,
        remarks=tuple(await call.parts.reports.remarks(name)),
        record=record,
    )
    return answer(document, revision=snapshot.revision, etag=etag)


async def put_experiment(call: Call) -> Response:
    """Write a draft, or say what starting it would do."""
    name, experiments = call.path["name"], call.parts.experiments
    document: Experiment = call.document
    if call.flag("dry_run"):
        preview = await experiments.preview(name, document, call.actor)
        return answer(preview, revision=preview.revision, etag=preview.etag)
    asked = call.asked(
        call.text("reason") or "", allow_signature_change=call.flag("allow_signature_change")
    )
    return await changed(call, f"experiments/{name}", experiments.put(name, document, asked))


async def delete_experiment(call: Call) -> Response:
    """Drop a draft or one that has ended."""
    name = call.path["name"]
    asked = call.asked(call.text("reason") or "")
    doing = call.parts.experiments.delete(name, asked)
    return await changed(call, f"experiments/{name}", doing)


async def start(call: Call) -> Response:
    """Start a draft."""
    name = call.path["name"]
    begin: Begin = call.document
    asked = call.asked(begin.reason, allow_signature_change=begin.allow_signature_change)
    doing = call.parts.experiments.start(name, asked, supersedes=begin.supersedes)
    return await changed(call, f"experiments/{name}", doing)


async def pause(call: Call) -> Response:
    """Leave traffic as it is and take no step."""
    return await _moved(call, call.parts.experiments.pause)


async def resume(call: Call) -> Response:
    """Take steps again."""
    return await _moved(call, call.parts.experiments.resume)


async def approve(call: Call) -> Response:
    """Let it promote once its evidence says so."""
    return await _moved(call, call.parts.experiments.approve)


async def stop(call: Call) -> Response:
    """End it without a verdict."""
    return await _moved(call, call.parts.experiments.stop)


async def roll_back(call: Call) -> Response:
    """End it as harmful."""
    return await _moved(call, call.parts.experiments.roll_back)


async def show_report(call: Call) -> Response:
    """What its evidence says now."""
    report = await call.parts.reports.report(call.path["name"])
    return answer(report, revision=report.revision, etag=report.etag)


async def show_report_page(call: Call) -> Response:
    """The same as a page for people, with its history drawn."""
    name, reports = call.path["name"], call.parts.reports
    report = await reports.report(name)
    document = experiment_of(call.parts.registry.snapshot, name).document
    page = report_page(report, document, await reports.history(name, MAX_POINTS))
    return Response(200, page.encode(), list(PAGE_HEADERS))


async def answer_whatif(call: Call) -> Response:
    """What another policy would have earned."""
    try:
        policy = msgspec.json.decode(call.text("policy") or "", type=Policy)
    except msgspec.DecodeError as error:
        message = f"The policy cannot be read: {excerpt(str(error), MAX_FAULT)}."
        raise InvalidRequest(message) from error
    metric = call.text("metric") or ""
    return answer(await call.parts.whatifs.answer(call.path["name"], metric, policy))


async def show_history(call: Call) -> Response:
    """How its numbers moved."""
    name = call.path["name"]
    limit = call.integer("limit", 1, MAX_POINTS) or POINTS
    return answer(History(name, await call.parts.reports.history(name, limit)))


async def list_layers(call: Call) -> Response:
    """Every layer, and who shares it."""
    snapshot = call.parts.registry.snapshot
    entries = tuple(
        LayerEntry(
            name=name,
            etag=document_digest(layer),
            salt=layer.salt,
            experiments=_holders(snapshot, name),
            free=_free(snapshot, name),
        )
        for name, layer in sorted(snapshot.layers.items())
    )
    return answer(LayerList(snapshot.revision, entries), revision=snapshot.revision)


async def show_layer(call: Call) -> Response:
    """One layer."""
    name, snapshot = call.path["name"], call.parts.registry.snapshot
    layer = snapshot.layers.get(name)
    if layer is None:
        message = f"There is no layer '{excerpt(name)}'."
        raise NotFound(message)
    etag = document_digest(layer)
    holders, free = _holders(snapshot, name), _free(snapshot, name)
    document = LayerDocument(name, snapshot.revision, etag, layer, holders, free)
    return answer(document, revision=snapshot.revision, etag=etag)


async def put_layer(call: Call) -> Response:
    """Add a layer."""
    name = call.path["name"]
    body: PutLayer = call.document
    asked = call.asked(call.text("reason") or "")
    doing = call.parts.experiments.put_layer(name, body.salt, asked)
    return await changed(call, f"layers/{name}", doing)


async def delete_layer(call: Call) -> Response:
    """Drop a layer."""
    name = call.path["name"]
    asked = call.asked(call.text("reason") or "")
    doing = call.parts.experiments.delete_layer(name, asked)
    return await changed(call, f"layers/{name}", doing)


async def show_hold_out(call: Call) -> Response:
    """Who is kept away from every experiment."""
    snapshot = call.parts.registry.snapshot
    etag = call.parts.registry.etag(HOLD_OUT)
    document = HoldOutDocument(snapshot.revision, etag, snapshot.hold_out)
    return answer(document, revision=snapshot.revision, etag=etag)


async def put_hold_out(call: Call) -> Response:
    """Keep a share of units away from every experiment."""
    body: PutHoldOut = call.document
    asked = call.asked(call.text("reason") or "")
    return await changed(call, HOLD_OUT, call.parts.experiments.put_hold_out(body.share, asked))


async def delete_hold_out(call: Call) -> Response:
    """Keep nobody away."""
    asked = call.asked(call.text("reason") or "")
    return await changed(call, HOLD_OUT, call.parts.experiments.delete_hold_out(asked))


async def read_ledger(call: Call) -> Response:
    """A page of decisions, each with all that it was made from."""
    after = call.integer("after", 0, MAX_REVISION) or 0
    limit = call.integer("limit", 1, MAX_LEDGER_PAGE) or LEDGER_PAGE
    wanted = call.text("experiment")
    snapshot = call.parts.registry.snapshot
    entries = await _decisions(call.parts.store, after, wanted, limit + 1)
    page = entries[:limit]
    items = tuple(AuditItem(entry_hash(entry), entry) for entry in page)
    following = page[-1].revision if len(entries) > limit else None
    document = LedgerPage(snapshot.revision, snapshot.audit_head, items, following)
    return answer(document, revision=snapshot.revision)


async def _decisions(store: Store, after: int, wanted: str | None, limit: int) -> list[AuditEntry]:
    """The first decisions behind a revision, of one experiment or of all."""
    found: list[AuditEntry] = []
    while True:
        read = await store.audit(after, READ_AT_ONCE)
        found += [
            entry
            for entry in decisions_in(read)
            if wanted is None or entry.target == f"experiments/{wanted}"
        ]
        if len(read) < READ_AT_ONCE or len(found) >= limit:
            return found[:limit]
        after = read[-1].revision


async def _moved(call: Call, doing: Callable[[str, Request], Awaitable[Change]]) -> Response:
    name = call.path["name"]
    body: Because = call.document
    return await changed(call, f"experiments/{name}", doing(name, call.asked(body.reason)))


def _holders(snapshot: Snapshot, layer: str) -> dict[str, int]:
    """Live experiments of a layer with their shares, out of 10,000."""
    return {
        name: record.document.layer_share
        for name, record in sorted(snapshot.experiments.items())
        if record.document.layer == layer and record.state in LIVE
    }


def _free(snapshot: Snapshot, layer: str) -> int:
    return min(sum(end - start for start, end in free_slots(snapshot, layer)), SCALE)
