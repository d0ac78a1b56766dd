"""The table of the admin API: every operation, who may ask for it, and what it looks like.

Which roles an action needs is one table, `gateway.core.principals.ALLOWED`; a test walks every row
here with every role.
"""

from typing import Any, Final

from gateway.control.previews import Preview
from gateway.core.endpoints import Endpoint
from gateway.core.explaining import Explanation
from gateway.core.principals import Action
from gateway.doors.http import admin_endpoints as endpoints
from gateway.doors.http import admin_keys as keys
from gateway.doors.http import admin_models as models
from gateway.doors.http.admin_audit_routes import AUDIT_OPERATIONS
from gateway.doors.http.admin_bundle_routes import BUNDLE_OPERATIONS
from gateway.doors.http.admin_calls import Operation, Query
from gateway.doors.http.admin_cards import CARD_OPERATIONS
from gateway.doors.http.admin_documents import (
    Alive,
    Changed,
    EndpointDocument,
    EndpointList,
    Keep,
    KeyList,
    ModelDocument,
    ModelList,
    Promote,
    RecentInputs,
    Rollback,
    ShadowReport,
    Statistics,
)
from gateway.doors.http.admin_experiment_routes import EXPERIMENT_OPERATIONS
from gateway.doors.http.admin_gate_routes import GATE_OPERATIONS
from gateway.doors.http.admin_guard import METRICS
from gateway.doors.http.admin_mlflow_routes import MLFLOW_OPERATIONS
from gateway.doors.http.admin_principal_routes import PRINCIPAL_OPERATIONS
from gateway.doors.http.admin_retention_routes import RETENTION_OPERATIONS
from gateway.doors.http.admin_version_routes import VERSION_OPERATIONS
from gateway.doors.http.admin_webhook_routes import WEBHOOK_OPERATIONS
from gateway.doors.http.openapi import describe_openapi

ROOT: Final = "/admin/v1"
ENDPOINT: Final = f"{ROOT}/endpoints/{{name}}"
MODEL: Final = f"{ROOT}/models/{{model}}"
REASON: Final = Query("reason", "why, for the audit log")

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path="/",
        is_open=True,
        action=Action.READ,
        name="alive",
        summary="This process answers.",
        handle=models.be_alive,
        answer=Alive,
    ),
    Operation(
        method="GET",
        path="/health",
        is_open=True,
        action=Action.READ,
        name="health",
        summary="This process answers.",
        handle=models.be_alive,
        answer=Alive,
    ),
    Operation(
        method="GET",
        path=METRICS,
        action=Action.READ,
        name="metrics",
        summary="Metrics for Prometheus; open on loopback unless `admin.open_metrics` is off.",
        handle=models.read_metrics,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/openapi.json",
        action=Action.READ,
        name="openapi",
        summary="This document.",
        handle=describe_openapi(lambda: OPERATIONS),
        answer=dict[str, Any],
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/status",
        action=Action.READ,
        name="status",
        summary="Who serves which revision, what lags and why, and how the store is.",
        handle=models.read_status,
        answer=dict[str, Any],
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/endpoints",
        action=Action.READ,
        name="listEndpoints",
        summary="Every name that clients may call.",
        handle=endpoints.list_endpoints,
        answer=EndpointList,
    ),
    Operation(
        method="GET",
        path=ENDPOINT,
        action=Action.READ,
        name="getEndpoint",
        summary="An endpoint's document, split states and ETag.",
        handle=endpoints.show_endpoint,
        query=(Query("plan", "show the compiled plan too", kind="flag"),),
        answer=EndpointDocument,
    ),
    Operation(
        method="PUT",
        path=ENDPOINT,
        action=Action.RULES,
        name="putEndpoint",
        summary="Replace an endpoint's document, or say what that would do.",
        handle=endpoints.put_endpoint,
        query=(
            Query("dry_run", "change nothing and answer the plan", kind="flag"),
            Query(
                "allow_signature_change",
                "serve versions that differ in their tensors from each other or from before",
                kind="flag",
            ),
            REASON,
        ),
        body=Endpoint,
        answer=Changed,
        preview=Preview,
    ),
    Operation(
        method="DELETE",
        path=ENDPOINT,
        action=Action.RULES,
        name="deleteEndpoint",
        summary="Drop an endpoint's document.",
        handle=endpoints.delete_endpoint,
        query=(REASON,),
        answer=Changed,
    ),
    Operation(
        method="GET",
        path=f"{ENDPOINT}/shadows",
        action=Action.READ,
        name="getShadows",
        summary="What an endpoint's shadows found on this host.",
        handle=endpoints.show_shadows,
        answer=ShadowReport,
    ),
    Operation(
        method="GET",
        path=f"{ENDPOINT}/inputs",
        action=Action.READ,
        name="getInputs",
        summary="Recent inputs of an endpoint that keeps a reservoir of them.",
        handle=endpoints.show_inputs,
        answer=RecentInputs,
    ),
    Operation(
        method="GET",
        path=f"{ENDPOINT}/assignment",
        action=Action.READ,
        name="explainAssignment",
        summary="Which variant a unit gets, worked out from what was committed.",
        handle=endpoints.explain_assignment,
        query=(
            Query("unit", "who is randomised", required=True),
            Query("revision", "an earlier revision", kind="integer"),
            Query("header", "NAME=VALUE that conditions may read", many=True),
            Query("parameter", "NAME=VALUE that conditions may read", many=True),
            Query("attribute", "NAME=VALUE that conditions may read", many=True),
        ),
        answer=Explanation,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/models",
        action=Action.READ,
        name="listModels",
        summary="Every registered model.",
        handle=models.list_models,
        answer=ModelList,
    ),
    Operation(
        method="GET",
        path=MODEL,
        action=Action.READ,
        name="getModel",
        summary="A model, its aliases and its versions.",
        handle=models.show_model,
        answer=ModelDocument,
    ),
    Operation(
        method="POST",
        path=f"{MODEL}/promote",
        action=Action.PROMOTE,
        name="promote",
        summary="Move an alias to a version.",
        handle=models.promote,
        body=Promote,
        answer=Changed,
    ),
    Operation(
        method="POST",
        path=f"{MODEL}/rollback",
        action=Action.PROMOTE,
        name="rollback",
        summary="Move an alias back to the version it named before.",
        handle=models.rollback,
        body=Rollback,
        answer=Changed,
    ),
    Operation(
        method="POST",
        path=f"{MODEL}/load",
        action=Action.PROMOTE,
        name="load",
        summary="Keep a version warm though nothing names it.",
        handle=models.load,
        body=Keep,
        answer=Changed,
    ),
    Operation(
        method="POST",
        path=f"{MODEL}/unload",
        action=Action.PROMOTE,
        name="unload",
        summary="Let go of a version that nothing names.",
        handle=models.unload,
        body=Keep,
        answer=Changed,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/statistics",
        action=Action.READ,
        name="statistics",
        summary="Counts and times of each version loaded on this host.",
        handle=models.read_statistics,
        query=(
            Query("model", "of this model only"),
            Query("version", "of this version only", kind="integer"),
        ),
        answer=Statistics,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/keys",
        action=Action.READ,
        name="listKeys",
        summary="Ids of the keys of prediction ids: which one signs, since when.",
        handle=keys.list_keys,
        answer=KeyList,
    ),
    Operation(
        method="POST",
        path=f"{ROOT}/keys/rotate",
        action=Action.OPERATE,
        name="rotateKeys",
        summary="Let a new key sign prediction ids, once every host had time to hear of it.",
        handle=keys.rotate_keys,
        answer=KeyList,
    ),
    *VERSION_OPERATIONS,
    *EXPERIMENT_OPERATIONS,
    *RETENTION_OPERATIONS,
    *CARD_OPERATIONS,
    *BUNDLE_OPERATIONS,
    *WEBHOOK_OPERATIONS,
    *GATE_OPERATIONS,
    *PRINCIPAL_OPERATIONS,
    *AUDIT_OPERATIONS,
    *MLFLOW_OPERATIONS,
)
