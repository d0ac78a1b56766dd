"""The rows of retention in the table of the admin API."""

from typing import Final

from gateway.control.retention import Collected
from gateway.core.principals import Action
from gateway.core.retentions import Retention
from gateway.doors.http import admin_retention as retention
from gateway.doors.http.admin_calls import Operation, Query
from gateway.doors.http.admin_documents import Changed
from gateway.doors.http.admin_retention import Collect, RetentionDocument, RetentionList

ROOT: Final = "/admin/v1/retention"
DOCUMENTS: Final = f"{ROOT}/documents"
DOCUMENT: Final = f"{DOCUMENTS}/{{name}}"
REASON: Final = Query("reason", "why, for the audit log")

RETENTION_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=ROOT,
        action=Action.READ,
        name="lookAtRetention",
        summary="Every version that a retention means, and what holds it; `gone` may go.",
        handle=retention.look,
        answer=Collected,
    ),
    Operation(
        method="POST",
        path=f"{ROOT}/collect",
        action=Action.OPERATE,
        name="collectVersions",
        summary="Let go of every version that may go, as the leader does every hour.",
        handle=retention.collect,
        body=Collect,
        answer=Collected,
    ),
    Operation(
        method="GET",
        path=DOCUMENTS,
        action=Action.READ,
        name="listRetentions",
        summary="Every document of retention.",
        handle=retention.list_retentions,
        answer=RetentionList,
    ),
    Operation(
        method="GET",
        path=DOCUMENT,
        action=Action.READ,
        name="getRetention",
        summary="A document of retention.",
        handle=retention.show_retention,
        answer=RetentionDocument,
    ),
    Operation(
        method="PUT",
        path=DOCUMENT,
        action=Action.OPERATE,
        name="putRetention",
        summary="Write or replace a document of retention.",
        handle=retention.put_retention,
        query=(REASON,),
        body=Retention,
        answer=Changed,
    ),
    Operation(
        method="DELETE",
        path=DOCUMENT,
        action=Action.OPERATE,
        name="deleteRetention",
        summary="Drop a document of retention.",
        handle=retention.delete_retention,
        query=(REASON,),
        answer=Changed,
    ),
)
