"""The part of the admin API's table that is about bundles.

What an apply changes decides what its caller must be allowed to do; the operation asks for that,
document by document, and the table only for what every caller needs.
"""

from typing import Any, Final

from gateway.control.bundles import BundlePlan
from gateway.core.bundles import Bundle
from gateway.core.principals import Action
from gateway.doors.http import admin_bundles as bundles
from gateway.doors.http.admin_bundle_documents import Apply, BundleApplied
from gateway.doors.http.admin_calls import Operation, Query

ROOT: Final = "/admin/v1"
MAX_BUNDLE_BYTES: Final = 8 * 1024 * 1024
"""As many as a Snapshot may hold."""

BUNDLE_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="POST",
        path=f"{ROOT}/apply",
        action=Action.READ,
        name="applyBundle",
        summary="Make all documents of a bundle stand in one commit, or say what that would do.",
        handle=bundles.apply_bundle,
        query=(
            Query("dry_run", "change nothing and answer the plan", kind="flag"),
            Query("prune", "delete what the bundle does not name, of kinds it names", kind="flag"),
            Query(
                "allow_signature_change",
                "serve versions that differ in their tensors from each other or from before",
                kind="flag",
            ),
        ),
        body=Apply,
        max_body=MAX_BUNDLE_BYTES,
        answer=BundleApplied,
        preview=BundlePlan,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/export",
        action=Action.READ,
        name="exportBundle",
        summary="All that people wrote, as one bundle.",
        handle=bundles.export_bundle,
        answer=Bundle,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/schemas/{{kind}}.json",
        action=Action.READ,
        name="getSchema",
        summary="The JSON Schema of a kind of document, for editors.",
        handle=bundles.show_schema,
        answer=dict[str, Any],
    ),
)
