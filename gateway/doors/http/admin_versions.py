"""Operations on versions: register, inspect again, list, compare."""

import msgspec

from gateway.control.registering import Registration
from gateway.control.versions import Known
from gateway.core.differing import VersionDiff
from gateway.core.errors import InvalidRequest, VersionRefused
from gateway.core.inspections import is_acceptable
from gateway.core.lineage import Wanted
from gateway.core.models import MAX_VERSION, check_name, parse_version
from gateway.core.principals import Action
from gateway.doors.http.admin_calls import Call, answer
from gateway.doors.http.admin_version_documents import (
    Inspected,
    InspectVersion,
    LineageDocument,
    Registered,
    RegisterVersion,
    VersionEntry,
    VersionList,
    WholeVersion,
)
from gateway.doors.http.messages import Response, error_response


async def register(call: Call) -> Response:
    """Register a version; a refused one is told with every check that was made."""
    asked: RegisterVersion = call.document
    model = check_name("a model", call.path["model"])
    _check_source(call, model, asked.source or "")
    wanted = Registration(
        model=model,
        number=asked.version,
        upload=asked.upload,
        source=asked.source,
        lineage=asked.lineage,
    )
    try:
        entered = await call.parts.registrar.register(wanted, call.asked(asked.reason))
    except VersionRefused as error:
        return refused(error)
    manifest = entered.manifest
    known = await call.parts.versions.known(model, manifest.number)
    report = await call.parts.versions.report(model, manifest.number)
    document = Registered(
        revision=call.parts.registry.snapshot.revision,
        model=model,
        version=manifest.number,
        digest=manifest.digest,
        changed=entered.change is not None,
        review=known.review,
        checks={} if report is None else report.checks,
    )
    response = answer(document, revision=document.revision)
    response.status = 201 if document.changed else 200
    return response


async def inspect(call: Call) -> Response:
    """Inspect a registered version again."""
    asked: InspectVersion = call.document
    model, number = call.path["model"], parse_version(call.path["number"])
    await call.parts.versions.known(model, number)
    inspection = await call.parts.registrar.inspect(model, number, call.asked(asked.reason))
    acceptable = is_acceptable(inspection.checks)
    return answer(Inspected(model, number, acceptable, inspection))


async def list_versions(call: Call) -> Response:
    """The versions of a model, or those with a lineage that is asked for."""
    model = call.path["model"]
    wanted = Wanted(
        tags=tuple(call.query.get("tag", ())),
        parent=call.integer("parent", 1, MAX_VERSION),
        commit=call.text("commit"),
        data=call.text("data"),
    )
    listed = await call.parts.versions.listed(model, wanted)
    revision = call.parts.registry.snapshot.revision
    document = VersionList(model, revision, tuple(_entry(one) for one in listed))
    return answer(document, revision=revision)


async def show_version(call: Call) -> Response:
    """All that is known of one version."""
    model, number = call.path["model"], parse_version(call.path["number"])
    known = await call.parts.versions.known(model, number)
    manifest = known.manifest
    return answer(
        WholeVersion(
            model=model,
            number=number,
            digest=manifest.digest,
            created_at=manifest.created_at,
            aliases=known.aliases,
            files=manifest.files,
            signature=manifest.signature,
            told=dict(manifest.lineage),
            lineage=known.lineage,
            review=known.review,
            inspection=await call.parts.versions.report(model, number),
        )
    )


async def show_lineage(call: Call) -> Response:
    """Where the versions of a model come from."""
    model = call.path["model"]
    number = call.integer("version", 1, MAX_VERSION)
    return answer(LineageDocument(model, tuple(await call.parts.versions.origins(model, number))))


async def show_diff(call: Call) -> Response:
    """What changed from one version to another."""
    numbers = call.integer("from", 1, MAX_VERSION), call.integer("to", 1, MAX_VERSION)
    before, after = numbers
    if before is None or after is None:
        message = "Name two versions, 'from' and 'to'."
        raise InvalidRequest(message)
    document: VersionDiff = await call.parts.versions.diff(call.path["model"], before, after)
    return answer(document)


def _check_source(call: Call, model: str, source: str) -> None:
    """Refuse the files of another model to who may not even read what is known of it.

    Raises:
        Forbidden: with that model.
    """
    owner, *rest = source.split("/")
    is_version = owner in call.parts.registry.snapshot.models or "".join(rest).isdigit()
    if owner != model and is_version:
        call.require(Action.READ, owner)


def refused(error: VersionRefused) -> Response:
    """The error with every check that was made."""
    response = error_response(error)
    document = {**msgspec.json.decode(response.body), "checks": error.checks}
    return Response(response.status, msgspec.json.encode(document), response.headers)


def _entry(known: Known) -> VersionEntry:
    manifest, review = known.manifest, known.review
    checks = {} if review is None else review.checks
    approvals = () if review is None else review.approvals
    return VersionEntry(
        number=manifest.number,
        digest=manifest.digest,
        created_at=manifest.created_at,
        aliases=known.aliases,
        registered_by=None if review is None else review.registered_by,
        approved_by=tuple(approval.principal for approval in approvals),
        checks={str(name): str(result.outcome) for name, result in checks.items()},
        lineage=known.lineage,
    )
