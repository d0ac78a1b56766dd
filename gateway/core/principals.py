"""Principals: who may do what to which models, and the tokens that show who asks.

`ALLOWED` is the one table of action against role. A role is granted for models by pattern; what is
about no model in particular (keys, principals, the audit log) needs it for `*`, but for reading,
which any grant allows.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.models import is_hex256
from gateway.core.patterns import ANY, check_pattern, matches_any

ADMIN: Final = "admin"
"""The principal that is always there: it holds the token of each host's state folder."""
STEWARD: Final = "steward"
"""Who acts in audit entries of decisions of experiments."""
MACHINES: Final = frozenset(
    {"gateway", "model-store", STEWARD, "mlflow", "retention", "gatekeeper"}
)
"""Actors that are no principals: what the gateway does by itself."""
RESERVED: Final = MACHINES | {ADMIN}
GROUP: Final = "group:"
"""A principal whose name begins so stands for all whom the issuer says to be in that group."""
MAX_PRINCIPAL_NAME: Final = 128
MAX_GRANTS: Final = 64
_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_REST = _FIRST | frozenset("._-@+:")


class Role(StrEnum):
    """What a principal is to a model. `emergency` may pass a gate by force, and nothing else."""

    VIEWER = "viewer"
    EXPERIMENTER = "experimenter"
    APPROVER = "approver"
    DEPLOYER = "deployer"
    ADMIN = "admin"
    EMERGENCY = "emergency"


class Action(StrEnum):
    """What may be asked for at the admin API."""

    READ = "read"
    REGISTER = "register"
    """Upload and register versions, and have them inspected again."""
    RULES = "rules"
    """Change endpoints."""
    EXPERIMENT = "experiment"
    """Write, start, stop and end experiments; layers and hold-out."""
    APPROVE = "approve"
    PROMOTE = "promote"
    """Move aliases forward and back; load, unload; open and withdraw promotion requests."""
    OVERRIDE = "override"
    """Pass a gate by force, with a reason."""
    GATES = "gates"
    ACCESS = "access"
    """Principals and tokens."""
    OPERATE = "operate"
    """Keys, webhooks, archives of the audit log, retention, restoring."""


ALLOWED: Final[Mapping[Action, frozenset[Role]]] = {
    Action.READ: frozenset(Role) - {Role.EMERGENCY},
    Action.REGISTER: frozenset({Role.EXPERIMENTER, Role.DEPLOYER, Role.ADMIN}),
    Action.RULES: frozenset({Role.EXPERIMENTER, Role.DEPLOYER, Role.ADMIN}),
    Action.EXPERIMENT: frozenset({Role.EXPERIMENTER, Role.DEPLOYER, Role.ADMIN}),
    Action.APPROVE: frozenset({Role.APPROVER, Role.ADMIN}),
    Action.PROMOTE: frozenset({Role.DEPLOYER, Role.ADMIN}),
    Action.OVERRIDE: frozenset({Role.EMERGENCY}),
    Action.GATES: frozenset({Role.ADMIN}),
    Action.ACCESS: frozenset({Role.ADMIN}),
    Action.OPERATE: frozenset({Role.ADMIN}),
}


class Grant(Struct, frozen=True, forbid_unknown_fields=True):
    """A role, for the models whose names one of the patterns means."""

    role: Role
    models: tuple[str, ...] = (ANY,)


class Right(StrEnum):
    """What a token may do at the inference port."""

    INFER = "infer"
    FORCE = "force"
    """Name the variant that answers."""
    OUTCOMES = "outcomes"
    """Report outcomes, of whichever model."""


class InferenceGrant(Struct, frozen=True, forbid_unknown_fields=True):
    """A right at the inference port, for the models whose names one of the patterns means."""

    right: Right
    models: tuple[str, ...] = (ANY,)


class PrincipalDocument(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who a principal is to which models.

    `inference` lists what its tokens may do at the inference port. A `disabled` principal may do
    nothing.
    """

    schema: int
    grants: tuple[Grant, ...] = ()
    inference: tuple[InferenceGrant, ...] = ()
    disabled: bool = False


class TokenRecord(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A token as it is stored, under its public id: whose it is, and the SHA-256 of its bytes.

    Times are in UTC seconds; without `expires_at` it is good until it is revoked.
    """

    principal: str
    sha256: str
    created_at: float
    created_by: str
    expires_at: float | None = None


def roles_for(grants: tuple[Grant, ...], model: str | None) -> frozenset[Role]:
    """The roles held for a model; for what is about no model, those granted for every one."""
    if model is None:
        return frozenset(grant.role for grant in grants if ANY in grant.models)
    return frozenset(grant.role for grant in grants if matches_any(grant.models, model))


def may(grants: tuple[Grant, ...], action: Action, model: str | None) -> bool:
    """Whether these grants allow an action on a model, or on what is about none."""
    if action is Action.READ and model is None:
        return any(grant.role in ALLOWED[action] for grant in grants)
    return not ALLOWED[action].isdisjoint(roles_for(grants, model))


def may_somewhere(grants: tuple[Grant, ...], action: Action) -> bool:
    """Whether these grants allow an action on any model at all."""
    return any(grant.role in ALLOWED[action] for grant in grants)


def has_right(grants: tuple[InferenceGrant, ...], right: Right, model: str | None) -> bool:
    """Whether these allow it at the inference port; for what is about no model, anywhere."""
    for grant in grants:
        if grant.right == right and (model is None or matches_any(grant.models, model)):
            return True
    return False


def is_principal_name(text: str) -> bool:
    """Whether this may name a principal, or a group of an issuer."""
    return (
        0 < len(text) <= MAX_PRINCIPAL_NAME
        and text[0] in _FIRST
        and all(c in _REST for c in text)
        and ".." not in text
    )


def check_principal_name(name: str) -> str:
    """Return the name, or refuse it with a sentence that says what one may hold."""
    if name in RESERVED:
        message = f"'{name}' is the gateway's own; no document names it."
        raise InvalidRequest(message)
    if not is_principal_name(name):
        message = (
            f"'{excerpt(name)}' cannot name a principal: use 1 to {MAX_PRINCIPAL_NAME} letters, "
            "digits, '.', '_', '-', '@', '+' or ':', starting with a letter or digit."
        )
        raise InvalidRequest(message)
    return name


def check_principal(name: str, document: PrincipalDocument) -> None:
    """Refuse a document that means nothing.

    Raises:
        InvalidRequest: with a sentence that says where.
    """
    check_principal_name(name)
    if document.schema != 1:
        message = f"A principal has schema {excerpt(document.schema)}; this gateway reads 1."
        raise InvalidRequest(message)
    granted: tuple[Grant | InferenceGrant, ...] = (*document.grants, *document.inference)
    if len(granted) > MAX_GRANTS or any(len(one.models) > MAX_GRANTS for one in granted):
        message = f"A principal holds at most {MAX_GRANTS} grants, each for as many patterns."
        raise InvalidRequest(message)
    for one in granted:
        if not one.models:
            message = "A grant without models allows nothing; '*' means all."
            raise InvalidRequest(message)
        for pattern in one.models:
            check_pattern("models", pattern)
    if any(one.right is Right.OUTCOMES and one.models != (ANY,) for one in document.inference):
        message = "The right 'outcomes' is for all models: leave 'models' out."
        raise InvalidRequest(message)


def check_token(token_id: str, record: TokenRecord) -> None:
    """Refuse a record that no token could be.

    Raises:
        InvalidRequest: with a sentence.
    """
    if not (token_id.isascii() and token_id.isalnum() and is_hex256(record.sha256)):
        message = f"'{excerpt(token_id)}' is no record of a token."
        raise InvalidRequest(message)
