"""Principals: who may do what to which models, and the tokens that show who asks.

`ALLOWED` is the one table of action against role. A role is granted for models by pattern; what is
about no model in particular (keys, principals, the audit log) needs it for `*`, but for reading,
which any grant allows.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from gateway.core.patterns import ANY, matches_any

ADMIN: Final = "admin"
"""The principal that is always there: it holds the token of each host's state folder."""
MACHINES: Final = frozenset({"model-store", "steward", "mlflow", "retention", "gatekeeper"})
"""Actors that are no principals: what the gateway does by itself."""


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


class PrincipalDocument(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who a principal is to which models.

    `inference` lists what its tokens may do at the inference port: `infer`, `force`, `outcomes`.
    A `disabled` principal may do nothing.
    """

    schema: int
    grants: tuple[Grant, ...] = ()
    inference: tuple[str, ...] = ()
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
