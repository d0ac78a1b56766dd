"""People: what roles a name stands for now, as far as a Snapshot knows."""

from collections.abc import Mapping, Sequence

from gateway.core.principals import (
    ADMIN,
    Action,
    Grant,
    PrincipalDocument,
    Role,
    may,
    roles_for,
)


def grants_now(
    principals: Mapping[str, PrincipalDocument], name: str, groups: Sequence[str] = ()
) -> tuple[Grant, ...]:
    """What a name may do now; nothing for who is gone or disabled.

    Args:
        principals: those of the Snapshot.
        name: of a principal, or of somebody whom an issuer named.
        groups: those in which the issuer said that they are, by the names of their principals.
    """
    own = principals.get(name)
    if name == ADMIN and own is None:
        return (Grant(Role.ADMIN),)
    if own is not None and own.disabled:
        return ()
    shared = [principals.get(group) for group in groups]
    documents = [one for one in (own, *shared) if one is not None and not one.disabled]
    return tuple(grant for one in documents for grant in one.grants)


def roles_now(
    principals: Mapping[str, PrincipalDocument], name: str, groups: Sequence[str], model: str
) -> frozenset[Role]:
    """The roles that a name holds for a model now."""
    return roles_for(grants_now(principals, name, groups), model)


def may_now(
    principals: Mapping[str, PrincipalDocument],
    name: str,
    groups: Sequence[str],
    action: Action,
    model: str,
) -> bool:
    """Whether a name may do this to a model now."""
    return may(grants_now(principals, name, groups), action, model)
