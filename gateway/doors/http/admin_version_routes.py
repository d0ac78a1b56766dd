"""The rows of versions and uploads in the table of the admin API."""

from typing import Final

from gateway.core.differing import VersionDiff
from gateway.core.principals import Action
from gateway.doors.http import admin_uploads as uploads
from gateway.doors.http import admin_versions as versions
from gateway.doors.http.admin_calls import Operation, Query
from gateway.doors.http.admin_version_documents import (
    BeginUpload,
    Discarded,
    Inspected,
    InspectVersion,
    LineageDocument,
    Registered,
    RegisterVersion,
    Upload,
    UploadedFile,
    VersionList,
    WholeVersion,
)

MODEL: Final = "/admin/v1/models/{model}"
VERSIONS: Final = f"{MODEL}/versions"
VERSION: Final = f"{VERSIONS}/{{number}}"
UPLOADS: Final = f"{MODEL}/uploads"
UPLOAD: Final = f"{UPLOADS}/{{upload}}"

VERSION_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=VERSIONS,
        action=Action.READ,
        name="listVersions",
        summary="The versions of a model, or those with a lineage that is asked for.",
        handle=versions.list_versions,
        query=(
            Query("tag", "KEY or KEY=VALUE that a version has", many=True),
            Query("parent", "the version that they were made from", kind="integer"),
            Query("commit", "how the commit of their code begins"),
            Query("data", "where their data lay, or how its SHA-256 begins"),
        ),
        answer=VersionList,
    ),
    Operation(
        method="POST",
        path=VERSIONS,
        action=Action.REGISTER,
        name="registerVersion",
        summary="Inspect and register a version; 201 if it is new.",
        handle=versions.register,
        body=RegisterVersion,
        answer=Registered,
    ),
    Operation(
        method="GET",
        path=VERSION,
        action=Action.READ,
        name="getVersion",
        summary="All that is known of a version: manifest, Review and the report on it.",
        handle=versions.show_version,
        answer=WholeVersion,
    ),
    Operation(
        method="POST",
        path=f"{VERSION}/inspect",
        action=Action.REGISTER,
        name="inspectVersion",
        summary="Inspect a registered version again.",
        handle=versions.inspect,
        body=InspectVersion,
        answer=Inspected,
    ),
    Operation(
        method="GET",
        path=f"{MODEL}/lineage",
        action=Action.READ,
        name="getLineage",
        summary="Where versions come from: parents, those before, those made from each.",
        handle=versions.show_lineage,
        query=(Query("version", "of this version only", kind="integer"),),
        answer=LineageDocument,
    ),
    Operation(
        method="GET",
        path=f"{MODEL}/diff",
        action=Action.READ,
        name="diffVersions",
        summary="What changed from one version to another.",
        handle=versions.show_diff,
        query=(
            Query("from", "the version before", kind="integer", required=True),
            Query("to", "the version after", kind="integer", required=True),
        ),
        answer=VersionDiff,
    ),
    Operation(
        method="POST",
        path=UPLOADS,
        action=Action.REGISTER,
        name="beginUpload",
        summary="Open an upload of a version's files.",
        handle=uploads.begin,
        body=BeginUpload,
        answer=Upload,
    ),
    Operation(
        method="GET",
        path=UPLOAD,
        action=Action.REGISTER,
        name="getUpload",
        summary="What of an upload came so far.",
        handle=uploads.show,
        answer=Upload,
    ),
    Operation(
        method="DELETE",
        path=UPLOAD,
        action=Action.REGISTER,
        name="discardUpload",
        summary="Forget an upload.",
        handle=uploads.discard,
        answer=Discarded,
    ),
    Operation(
        method="PUT",
        path=f"{UPLOAD}/files/{{file}}",
        action=Action.REGISTER,
        name="putFile",
        summary="Send one file as raw bytes, with its SHA-256 in X-Sha256 if it is to be checked.",
        handle=uploads.put_file,
        streams=True,
        answer=UploadedFile,
    ),
)
