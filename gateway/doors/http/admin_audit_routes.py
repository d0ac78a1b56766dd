"""The part of the admin API's table that is about the audit log and restoring."""

from typing import Final

from gateway.control.restoring import Restored
from gateway.core.chain import Head
from gateway.core.checkpoints import Signed
from gateway.core.principals import Action
from gateway.doors.http import admin_audit as audit
from gateway.doors.http.admin_calls import Operation, Query
from gateway.doors.http.admin_documents import (
    Archive,
    AuditPage,
    Changed,
    LinesPage,
    Restore,
    TrimAudit,
)

ROOT: Final = "/admin/v1"

AUDIT_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=f"{ROOT}/audit",
        action=Action.READ,
        name="audit",
        summary="Who changed what, when and why; each entry holds the hash of the one before.",
        handle=audit.read_audit,
        query=(
            Query("after", "the revision after which to begin", kind="integer"),
            Query("before", "with `newest`: the revision before which to begin", kind="integer"),
            Query("limit", "entries on a page, 1 to 1000", kind="integer"),
            Query("newest", "the newest first", kind="flag"),
            Query("actor", "by this principal only"),
            Query("action", "only actions that begin so, such as `model.`"),
            Query("target", "only targets that begin so, such as `endpoints/`"),
            Query("model", "only what belongs to this model"),
            Query("since", "not before this time, RFC 3339 or UTC seconds"),
            Query("until", "before this time"),
            Query("overrides", "only gates passed by force", kind="flag"),
            Query("denials", "only what was refused", kind="flag"),
        ),
        answer=AuditPage,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/audit/lines",
        action=Action.READ,
        name="auditLines",
        summary="Audit entries byte by byte as they lie in the store, to verify or keep them.",
        handle=audit.read_lines,
        query=(Query("after", "the revision after which to begin", kind="integer"),),
        answer=LinesPage,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/audit/head",
        action=Action.READ,
        name="auditHead",
        summary="Where the audit log must lead, and the checkpoint behind which it was trimmed.",
        handle=audit.read_head,
        answer=Head,
    ),
    Operation(
        method="POST",
        path=f"{ROOT}/audit/checkpoint",
        action=Action.OPERATE,
        name="auditCheckpoint",
        summary="Sign a checkpoint of what is to be archived; nothing is trimmed.",
        handle=audit.make_checkpoint,
        body=Archive,
        answer=Signed,
    ),
    Operation(
        method="POST",
        path=f"{ROOT}/audit/trim",
        action=Action.OPERATE,
        name="auditTrim",
        summary="Drop from the store what was archived behind a signed checkpoint.",
        handle=audit.trim,
        body=TrimAudit,
        answer=Changed,
    ),
    Operation(
        method="POST",
        path=f"{ROOT}/restore",
        action=Action.OPERATE,
        name="restore",
        summary="Put back into a store that lost its data what this host serves.",
        handle=audit.restore,
        body=Restore,
        answer=Restored,
    ),
)
