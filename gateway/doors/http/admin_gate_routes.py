"""The part of the admin API's table that is about gates, approvals and wishes."""

from typing import Final

from gateway.control.gates import GatePreview
from gateway.core.gates import Gate
from gateway.core.principals import Action
from gateway.doors.http import admin_gates as gates
from gateway.doors.http.admin_calls import Operation, Query
from gateway.doors.http.admin_documents import Changed
from gateway.doors.http.admin_gate_documents import (
    Approve,
    GateDocument,
    GateList,
    PutWish,
    VersionGates,
    WishAnswer,
    WishList,
)

ROOT: Final = "/admin/v1"
GATE: Final = f"{ROOT}/gates/{{name}}"
MODEL: Final = f"{ROOT}/models/{{model}}"
VERSION: Final = f"{MODEL}/versions/{{version}}"
REASON: Final = Query("reason", "why, for the audit log")

GATE_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=f"{ROOT}/gates",
        action=Action.READ,
        name="listGates",
        summary="Every gate.",
        handle=gates.list_gates,
        answer=GateList,
    ),
    Operation(
        method="GET",
        path=GATE,
        action=Action.READ,
        name="getGate",
        summary="A gate, and the models that it means.",
        handle=gates.show_gate,
        answer=GateDocument,
    ),
    Operation(
        method="PUT",
        path=GATE,
        action=Action.GATES,
        name="putGate",
        summary="Add or replace a gate, or say which models it would mean.",
        handle=gates.put_gate,
        query=(
            Query("dry_run", "change nothing; say what serves and would not pass", kind="flag"),
            REASON,
        ),
        body=Gate,
        answer=Changed,
        preview=GatePreview,
    ),
    Operation(
        method="DELETE",
        path=GATE,
        action=Action.GATES,
        name="deleteGate",
        summary="Drop a gate.",
        handle=gates.delete_gate,
        query=(REASON,),
        answer=Changed,
    ),
    Operation(
        method="GET",
        path=f"{VERSION}/gates",
        action=Action.READ,
        name="checkGates",
        summary="What stands between a version and an alias, for who asks.",
        handle=gates.show_version_gates,
        query=(Query("alias", "the alias that would move; the champion if not given"),),
        answer=VersionGates,
    ),
    Operation(
        method="POST",
        path=f"{VERSION}/approve",
        action=Action.APPROVE,
        name="approveVersion",
        summary="Stand for a version, with the roles held for its model now.",
        handle=gates.approve,
        body=Approve,
        answer=Changed,
    ),
    Operation(
        method="DELETE",
        path=f"{VERSION}/approve",
        action=Action.APPROVE,
        name="unapproveVersion",
        summary="Take one's approval back.",
        handle=gates.unapprove,
        query=(REASON,),
        answer=Changed,
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/wishes",
        action=Action.READ,
        name="listWishes",
        summary="Promotions that were asked for, and what each waits for.",
        handle=gates.list_wishes,
        answer=WishList,
    ),
    Operation(
        method="GET",
        path=f"{MODEL}/wishes",
        action=Action.READ,
        name="listModelWishes",
        summary="Promotions of a model that were asked for, and what each waits for.",
        handle=gates.list_model_wishes,
        answer=WishList,
    ),
    Operation(
        method="POST",
        path=f"{MODEL}/wishes",
        action=Action.PROMOTE,
        name="putWish",
        summary="Move an alias to a version now, or as soon as its gates allow it.",
        handle=gates.put_wish,
        body=PutWish,
        answer=WishAnswer,
    ),
    Operation(
        method="DELETE",
        path=f"{MODEL}/wishes/{{alias}}",
        action=Action.PROMOTE,
        name="dropWish",
        summary="Let a wish go.",
        handle=gates.drop_wish,
        query=(REASON,),
        answer=Changed,
    ),
)
