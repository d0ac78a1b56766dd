"""The part of the admin API's table that is about principals and tokens."""

from typing import Final

from gateway.core.principals import Action, PrincipalDocument
from gateway.doors.http import admin_principals as principals
from gateway.doors.http.admin_calls import Operation, Query
from gateway.doors.http.admin_documents import Changed
from gateway.doors.http.admin_principal_documents import (
    IssuedToken,
    IssueToken,
    PrincipalEntry,
    PrincipalList,
    RotateToken,
    TokenList,
)

ROOT: Final = "/admin/v1"
PRINCIPAL: Final = f"{ROOT}/principals/{{name}}"
TOKEN: Final = f"{ROOT}/tokens/{{id}}"
REASON: Final = Query("reason", "why, for the audit log")

PRINCIPAL_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=f"{ROOT}/principals",
        action=Action.ACCESS,
        name="listPrincipals",
        summary="Every principal, but the built-in admin.",
        handle=principals.list_principals,
        answer=PrincipalList,
    ),
    Operation(
        method="GET",
        path=PRINCIPAL,
        action=Action.ACCESS,
        name="getPrincipal",
        summary="A principal: its roles, and its rights at the inference port.",
        handle=principals.show_principal,
        answer=PrincipalEntry,
    ),
    Operation(
        method="PUT",
        path=PRINCIPAL,
        action=Action.ACCESS,
        name="putPrincipal",
        summary="Write or replace a principal.",
        handle=principals.put_principal,
        query=(REASON,),
        body=PrincipalDocument,
        answer=Changed,
    ),
    Operation(
        method="DELETE",
        path=PRINCIPAL,
        action=Action.ACCESS,
        name="deletePrincipal",
        summary="Drop a principal, and revoke every token that it holds.",
        handle=principals.delete_principal,
        query=(REASON,),
        answer=Changed,
    ),
    Operation(
        method="POST",
        path=f"{PRINCIPAL}/tokens",
        action=Action.ACCESS,
        name="issueToken",
        summary="Make a token for a principal; it is shown in this answer only.",
        handle=principals.issue_token,
        body=IssueToken,
        answer=IssuedToken,
        shown_once=("token",),
    ),
    Operation(
        method="GET",
        path=f"{ROOT}/tokens",
        action=Action.ACCESS,
        name="listTokens",
        summary="Every token by its id: who holds it, who made it, until when it is good.",
        handle=principals.list_tokens,
        query=(Query("principal", "of this principal only"),),
        answer=TokenList,
    ),
    Operation(
        method="POST",
        path=f"{TOKEN}/rotate",
        action=Action.ACCESS,
        name="rotateToken",
        summary="Make a token in the place of another, which stays good for a while.",
        handle=principals.rotate_token,
        body=RotateToken,
        answer=IssuedToken,
        shown_once=("token",),
    ),
    Operation(
        method="DELETE",
        path=TOKEN,
        action=Action.ACCESS,
        name="revokeToken",
        summary="Take a token back; it is refused everywhere within seconds.",
        handle=principals.revoke_token,
        query=(REASON,),
        answer=Changed,
    ),
)
