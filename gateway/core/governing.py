"""What people do about gates: each a pure function from one Snapshot to the next.

Documents of gates, approvals of versions, and wishes for promotions that a gate does not allow yet.
"""

from msgspec.structs import replace

from gateway.core.errors import Conflict, Forbidden, NotFound, excerpt
from gateway.core.gate_checks import check_gate
from gateway.core.gates import Gate
from gateway.core.models import Key
from gateway.core.people import may_now, roles_now
from gateway.core.principals import MACHINES, Action
from gateway.core.reviews import Approval, PromotionWish, Review, review_name, wish_name
from gateway.core.snapshot import Snapshot, check
from gateway.core.transitions import model_of


def put_gate(snapshot: Snapshot, name: str, gate: Gate) -> Snapshot:
    """Add a gate, or replace it whole. What serves already is not asked again.

    Raises:
        InvalidRequest: it contradicts itself.
    """
    check_gate(name, gate)
    changed = replace(snapshot, gates={**snapshot.gates, name: gate})
    check(changed)
    return changed


def delete_gate(snapshot: Snapshot, name: str) -> Snapshot:
    """Drop a gate.

    Raises:
        NotFound: there is none of that name.
    """
    gate_of(snapshot, name)
    rest = {other: gate for other, gate in snapshot.gates.items() if other != name}
    return replace(snapshot, gates=rest)


def gate_of(snapshot: Snapshot, name: str) -> Gate:
    """A gate.

    Raises:
        NotFound: there is none of that name.
    """
    gate = snapshot.gates.get(name)
    if gate is None:
        message = f"There is no gate '{excerpt(name)}'."
        raise NotFound(message)
    return gate


def approve(snapshot: Snapshot, key: Key, mine: Approval) -> Snapshot:
    """Have a principal stand for a version, with the roles that it holds for the model now.

    `mine` says who, when and why; its roles are found here.

    Raises:
        NotFound: no such model or version.
        Forbidden: the principal registered it.
    """
    review, principal = review_of(snapshot, key), mine.principal
    if principal == review.registered_by:
        message = (
            f"'{principal}' registered version {key[1]} of '{key[0]}'; someone else has to approve "
            "it."
        )
        raise Forbidden(message)
    roles = roles_now(snapshot.principals, principal, mine.groups, key[0])
    mine = replace(mine, roles=tuple(sorted(str(role) for role in roles)))
    for standing in review.approvals:
        if replace(standing, at=mine.at, reason=mine.reason) == mine:
            return snapshot
    others = tuple(one for one in review.approvals if one.principal != principal)
    return _with_review(snapshot, key, replace(review, approvals=(*others, mine)))


def unapprove(snapshot: Snapshot, key: Key, principal: str) -> Snapshot:
    """Take a principal's approval back.

    Raises:
        NotFound: no such model or version, or no approval by this principal.
    """
    review = review_of(snapshot, key)
    others = tuple(one for one in review.approvals if one.principal != principal)
    if len(others) == len(review.approvals):
        message = f"'{excerpt(principal)}' has not approved version {key[1]} of '{key[0]}'."
        raise NotFound(message)
    return _with_review(snapshot, key, replace(review, approvals=others))


def review_of(snapshot: Snapshot, key: Key) -> Review:
    """What stands for a version; an empty one for a version that has none, or other bytes.

    Raises:
        NotFound: no such model or version.
    """
    digest = model_of(snapshot, key[0]).versions.get(key[1])
    if digest is None:
        message = f"Model '{key[0]}' has no version {excerpt(key[1])}."
        raise NotFound(message)
    review = snapshot.reviews.get(review_name(*key))
    if review is None or review.digest != digest:
        return Review(digest=digest, registered_by="", registered_at=0.0)
    return review


def put_wish(snapshot: Snapshot, model: str, alias: str, wish: PromotionWish) -> Snapshot:
    """Have a wish stand in the place of an earlier one; the same one again changes nothing."""
    name = wish_name(model, alias)
    standing = snapshot.wishes.get(name)
    wish = replace(wish, over=model_of(snapshot, model).aliases.get(alias))
    if standing is not None and replace(standing, at=wish.at, reason=wish.reason) == wish:
        return snapshot
    return replace(snapshot, wishes={**snapshot.wishes, name: wish})


def drop_wish(snapshot: Snapshot, model: str, alias: str) -> Snapshot:
    """Let a wish go.

    Raises:
        NotFound: there is none.
    """
    name = wish_name(model, alias)
    if name not in snapshot.wishes:
        message = f"Nobody asked for '{excerpt(alias)}' of '{excerpt(model)}' to move."
        raise NotFound(message)
    return without_wish(snapshot, model, alias)


def without_wish(snapshot: Snapshot, model: str, alias: str) -> Snapshot:
    """The same without a wish for an alias, if there is one."""
    name = wish_name(model, alias)
    if name not in snapshot.wishes:
        return snapshot
    rest = {other: wish for other, wish in snapshot.wishes.items() if other != name}
    return replace(snapshot, wishes=rest)


def without_overtaken(base: Snapshot, changed: Snapshot) -> Snapshot:
    """The same without wishes that stood for an alias which moves by this change.

    They asked for a move from what it named. Were it to come back there, by a rollback for one,
    nobody would expect them to be granted.
    """
    if not base.wishes or base.models is changed.models:
        return changed
    gone = {
        name
        for name, wish in changed.wishes.items()
        if base.wishes.get(name) == wish and _named(base, name) != _named(changed, name)
    }
    if not gone:
        return changed
    rest = {name: wish for name, wish in changed.wishes.items() if name not in gone}
    return replace(changed, wishes=rest)


def check_wish(snapshot: Snapshot, model: str, alias: str, wish: PromotionWish) -> None:
    """Refuse a wish that is out of date, so that nobody is surprised by what they once wanted.

    Raises:
        Conflict: the version is gone, the alias moved since, or who asked may not any more.
    """
    record = snapshot.models.get(model)
    named = None if record is None else record.aliases.get(alias)
    principals, asks = snapshot.principals, wish.asked_by
    allowed = may_now(principals, asks, wish.groups, Action.PROMOTE, model) or asks in MACHINES
    if record is None or wish.version not in record.versions:
        message = f"Version {wish.version} of '{model}' is gone."
    elif named == wish.version:
        message = f"'{alias}' of '{model}' names version {wish.version} already."
    elif named != wish.over:
        message = f"'{alias}' of '{model}' moved to version {named} since; ask again."
    elif not allowed:
        message = f"'{wish.asked_by}' may not promote '{model}' any more."
    else:
        return
    raise Conflict(message)


def _named(snapshot: Snapshot, wish: str) -> int | None:
    """What the alias of a wish names."""
    model, _, alias = wish.rpartition("/")
    record = snapshot.models.get(model)
    return None if record is None else record.aliases.get(alias)


def _with_review(snapshot: Snapshot, key: Key, review: Review) -> Snapshot:
    return replace(snapshot, reviews={**snapshot.reviews, review_name(*key): review})
