"""Operations on models, and those that read the whole: status, audit log, statistics, metrics."""

from collections.abc import Awaitable
from typing import Final

import msgspec

from gateway.control.registry import Change
from gateway.core.errors import NotFound, StoreUnavailable
from gateway.core.models import MAX_VERSION, Manifest
from gateway.core.reviews import Review, review_name
from gateway.core.snapshot import named_versions
from gateway.core.transitions import model_of
from gateway.doors.http.admin_calls import Call, answer, changed
from gateway.doors.http.admin_documents import (
    Alive,
    Keep,
    ModelDocument,
    ModelEntry,
    ModelList,
    Promote,
    RefusedVersion,
    Rollback,
    Statistics,
    VersionDocument,
)
from gateway.doors.http.messages import Response
from gateway.doors.http.metrics import PROMETHEUS
from gateway.ports import VersionReport

NO_REVIEW: Final = Review(digest="", registered_by="", registered_at=0.0)


async def list_models(call: Call) -> Response:
    """Every registered model."""
    snapshot = call.parts.registry.snapshot
    warm = named_versions(snapshot)
    entries = tuple(
        ModelEntry(
            name=name,
            versions=tuple(sorted(model.versions)),
            aliases=model.aliases,
            warm=tuple(sorted(warm[name])),
        )
        for name, model in sorted(snapshot.models.items())
    )
    document = ModelList(snapshot.revision, entries, await _refused(call))
    return answer(document, revision=snapshot.revision)


async def show_model(call: Call) -> Response:
    """One model with all that is known of its versions."""
    name, registry = call.path["model"], call.parts.registry
    snapshot = registry.snapshot
    refused = tuple(one for one in await _refused(call) if one.model == name)
    try:
        model = model_of(snapshot, name)
    except NotFound as error:
        if refused:
            raise _explained(error, refused[0]) from error
        raise
    warm = named_versions(snapshot)[name]
    here = {
        version.number: version
        for version in call.parts.data_plane.report().versions
        if version.model == name
    }
    versions = []
    for number, digest in sorted(model.versions.items()):
        manifest = await _manifest(call, name, number)
        review = snapshot.reviews.get(review_name(name, number), NO_REVIEW)
        facts = here.get(number), manifest, review
        versions.append(_version(number, digest, number in warm, *facts))
    etag = registry.etag(f"models/{name}")
    document = ModelDocument(
        name=name,
        revision=snapshot.revision,
        etag=etag,
        aliases=model.aliases,
        previous=model.previous,
        loaded=model.loaded,
        allow_nonfinite=model.allow_nonfinite,
        labels=model.labels,
        versions=tuple(versions),
        refused=refused,
    )
    return answer(document, revision=snapshot.revision, etag=etag)


async def promote(call: Call) -> Response:
    """Move an alias to a version."""
    name = call.path["model"]
    asked: Promote = call.document
    request = call.asked(
        asked.reason,
        allow_signature_change=asked.allow_signature_change,
        override=asked.override,
    )
    doing = call.parts.registry.promote(name, asked.version, request, alias=asked.alias)
    return await _changed(call, name, asked.version, doing)


async def rollback(call: Call) -> Response:
    """Move an alias back to the version it named before."""
    name = call.path["model"]
    asked: Rollback = call.document
    request = call.asked(asked.reason)
    doing = call.parts.registry.rollback(name, request, alias=asked.alias)
    return await changed(call, f"models/{name}", doing)


async def load(call: Call) -> Response:
    """Keep a version warm though nothing names it."""
    name = call.path["model"]
    asked: Keep = call.document
    doing = call.parts.registry.load(name, asked.version, call.asked(asked.reason))
    return await _changed(call, name, asked.version, doing)


async def unload(call: Call) -> Response:
    """Let go of versions that nothing names."""
    name = call.path["model"]
    asked: Keep = call.document
    doing = call.parts.registry.unload(name, asked.version, call.asked(asked.reason))
    return await changed(call, f"models/{name}", doing)


async def read_status(call: Call) -> Response:
    """Who serves what, and whether every process serves the newest revision whole."""
    document = await call.parts.status()
    return answer(document, revision=document["newest"])


async def read_statistics(call: Call) -> Response:
    """Statistics of this host's processes, added up."""
    model, version = call.text("model"), call.integer("version", 1, MAX_VERSION)
    await call.parts.data_plane.refresh()
    return answer(Statistics(call.parts.data_plane.statistics(model, version)))


async def read_metrics(call: Call) -> Response:
    """All metrics for Prometheus."""
    await call.parts.data_plane.refresh()
    return Response(200, call.parts.metrics(), [(b"content-type", PROMETHEUS)])


async def be_alive(_: Call) -> Response:
    """This process answers; whether it is ready to serve is the inference port's to say."""
    return answer(Alive())


async def _changed(
    call: Call, model: str, number: int | None, doing: Awaitable[Change]
) -> Response:
    """The answer to a change; one that names a version which was refused is told why."""
    try:
        return await changed(call, f"models/{model}", doing)
    except NotFound as error:
        for one in await _refused(call):
            if (one.model, one.version) == (model, number):
                raise _explained(error, one) from error
        raise


async def _refused(call: Call) -> tuple[RefusedVersion, ...]:
    """What lies in the model store of this host and is not taken as it is."""
    document = await call.parts.status()
    return msgspec.convert(document.get("refused", ()), tuple[RefusedVersion, ...])


def _explained(error: NotFound, one: RefusedVersion) -> NotFound:
    """The same error, with what speaks against the version that is missing."""
    return NotFound(f"{error} Version {one.version} in the model store is refused: {one.reason}")


async def _manifest(call: Call, model: str, number: int) -> Manifest | None:
    try:
        return await call.parts.registry.manifest(model, number)
    except (NotFound, StoreUnavailable):
        return None


def _version(  # noqa: PLR0913, PLR0917 - the facts that are put together
    number: int,
    digest: str,
    warm: bool,  # noqa: FBT001 - one of them
    here: VersionReport | None,
    manifest: Manifest | None,
    review: Review,
) -> VersionDocument:
    return VersionDocument(
        number=number,
        digest=digest,
        warm=warm,
        state=None if here is None else here.state,
        reason=None if here is None else here.reason,
        signature=None if manifest is None else manifest.signature,
        lineage=None if manifest is None else dict(manifest.lineage),
        created_at=None if manifest is None else manifest.created_at,
        checks={str(name): str(check.outcome) for name, check in review.checks.items()},
        approved_by=tuple(approval.principal for approval in review.approvals),
    )
