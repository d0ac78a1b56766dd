"""Access: who asks, recognised by a bearer token, and whether they may.

A token is `tilt_<id>_<secret>`. Its id may be shown and finds the record; the SHA-256 of the whole
is compared in constant time, with the same work for an id that nobody has.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable
from hmac import compare_digest
from typing import Final, TypeAlias

from msgspec import Struct

from gateway.core.errors import Forbidden, Unauthenticated, excerpt
from gateway.core.principals import (
    ADMIN,
    ALLOWED,
    GROUP,
    RESERVED,
    Action,
    Grant,
    InferenceGrant,
    Right,
    Role,
    has_right,
    is_principal_name,
    may,
    may_somewhere,
)
from gateway.core.snapshot import Snapshot

MAX_TOKEN_BYTES: Final = 512
MAX_REMEMBERED: Final = 1024
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 40
_PRODUCT: Final = "tilt"
_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NO_TOKEN: Final = "Send a bearer token in the Authorization header."  # noqa: S105 - a sentence
_UNKNOWN: Final = "The bearer token is not known here."


class Principal(Struct, frozen=True):
    """Who asks, and what they may do.

    `token` is the public id of the token that was shown; None for those whom an issuer named, of
    whom `groups` says the rest. Who is `fixed` is of this host, and of no Snapshot: the admin.
    """

    name: str
    grants: tuple[Grant, ...] = ()
    inference: tuple[InferenceGrant, ...] = ()
    token: str | None = None
    groups: tuple[str, ...] = ()
    fixed: bool = False


Denied: TypeAlias = Callable[[Principal, Action, str | None], None]
"""Hears whom something was refused that they may not do, and on which model."""


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    """A token that is good: the SHA-256 of its bytes, who holds it, and until when (UTC seconds).

    The built-in admin's has the empty id, because people may choose it as they like.
    """

    id: str
    sha256: str
    holder: Principal
    expires_at: float | None = None


NOBODY: Final = Token(id="", sha256="0" * 64, holder=Principal(""))


class Tokens:
    """Tokens by their ids, to recognise bearers by."""

    __slots__ = ("_by_id", "_remembered", "all")

    def __init__(self, tokens: Iterable[Token]) -> None:
        """Hold these and no others; a change makes a new one of this class."""
        self.all = tuple(tokens)
        self._by_id = {token.id: token for token in self.all}
        # Whole headers that were good: most callers send theirs again and again.
        self._remembered: dict[bytes, Token] = {}

    def principal(self, authorization: bytes | None, now: float) -> Principal:
        """The bearer of an Authorization header.

        Args:
            authorization: the header's value.
            now: UTC seconds.

        Raises:
            Unauthenticated: no bearer token, one that nobody holds, or one that has expired.
        """
        if authorization is None:
            raise Unauthenticated(_NO_TOKEN)
        token = self._remembered.get(authorization)
        if token is None:
            token = self._found(bearer_of(authorization))
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[authorization] = token
        if token.expires_at is not None and token.expires_at <= now:
            message = "The bearer token has expired."
            raise Unauthenticated(message)
        return token.holder

    def _found(self, presented: bytes) -> Token:
        """Compare with two digests, whichever token came: that of its id, and the admin's."""
        digest = digest_of(presented).encode()
        named = self._by_id.get(id_of(presented), NOBODY)
        own = self._by_id.get(NOBODY.id, NOBODY)
        found = None
        for token in (named, own):
            if compare_digest(token.sha256.encode(), digest):
                found = token
        if found is None:
            raise Unauthenticated(_UNKNOWN)
        return found


def digest_of(token: bytes) -> str:
    """How a token is stored."""
    return hashlib.sha256(token).hexdigest()


def id_of(token: bytes) -> str:
    """The public id in a token; empty for what is not of our form."""
    product, _, rest = token.partition(b"_")
    name, _, secret = rest.partition(b"_")
    if product != _PRODUCT.encode() or not secret or not name.isalnum():
        return ""
    return name.decode("ascii")


def bearer_of(authorization: bytes | None) -> bytes:
    """The token in an Authorization header.

    Raises:
        Unauthenticated: there is none, or one that is too long to be ours.
    """
    scheme, _, presented = (authorization or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not 0 < len(presented) <= MAX_TOKEN_BYTES:
        raise Unauthenticated(_NO_TOKEN)
    return presented


def fresh_token(entropy: Callable[[int], bytes]) -> str:
    """A bearer token; its id is long enough to be nobody else's."""
    return f"{_PRODUCT}_{_base62(entropy, ID_LENGTH)}_{_base62(entropy, SECRET_LENGTH)}"


def built_in(token: str) -> Token:
    """The admin of this host, who holds every right but to approve and to pass gates by force."""
    holder = Principal(
        ADMIN,
        grants=(Grant(Role.ADMIN),),
        inference=tuple(InferenceGrant(right) for right in Right),
        fixed=True,
    )
    return Token(NOBODY.id, digest_of(token.encode()), holder)


def tokens_in(snapshot: Snapshot) -> tuple[Token, ...]:
    """Every token of a Snapshot whose principal is there and may do something."""
    found = []
    for token_id, record in sorted(snapshot.tokens.items()):
        document = snapshot.principals.get(record.principal)
        if document is not None and not document.disabled:
            holder = Principal(record.principal, document.grants, document.inference, token_id)
            found.append(Token(token_id, record.sha256, holder, record.expires_at))
    return tuple(found)


def named_by_issuer(snapshot: Snapshot, name: str, groups: tuple[str, ...]) -> Principal:
    """Whom an issuer named: the grants of the principal of that name and of those of its groups.

    Raises:
        Forbidden: there is none of these here, the name is the gateway's own or a group's, or the
            principal is disabled.
    """
    document = snapshot.principals.get(name)
    is_usual = is_principal_name(name) and name not in RESERVED and not name.startswith(GROUP)
    if not is_usual or (document is not None and document.disabled):
        message = f"'{excerpt(name)}' may not ask here."
        raise Forbidden(message)
    shared = [snapshot.principals.get(f"{GROUP}{group}") for group in groups]
    documents = [one for one in (document, *shared) if one is not None and not one.disabled]
    if not documents:
        message = f"'{name}' is no principal here, and in no group that is one."
        raise Forbidden(message)
    grants = tuple(grant for one in documents for grant in one.grants)
    return Principal(name, grants, groups=groups)


def standing(principal: Principal, snapshot: Snapshot) -> Principal:
    """A principal that was let in, as a newer Snapshot has it.

    Raises:
        Unauthenticated: the token was revoked since.
        Forbidden: an issuer's principal is none any more.
    """
    if principal.fixed:
        return principal
    if principal.token is None:
        return named_by_issuer(snapshot, principal.name, principal.groups)
    record = snapshot.tokens.get(principal.token)
    document = snapshot.principals.get(principal.name)
    if record is None or record.principal != principal.name or document is None:
        raise Unauthenticated(_UNKNOWN)
    if document.disabled:
        raise Unauthenticated(_UNKNOWN)
    return Principal(principal.name, document.grants, document.inference, principal.token)


def forbidden_model(
    principal: Principal, action: Action, models: Collection[str] | None
) -> tuple[str | None] | None:
    """The first model that a principal may not do this to, in a tuple; None where it may.

    Args:
        principal: who asks.
        action: what for.
        models: those that it is about; None for none in particular. Where there are none yet,
            because nothing of that name is there, whoever may do it to any model may.
    """
    if models is None:
        return None if may(principal.grants, action, None) else (None,)
    if not models:
        return None if may_somewhere(principal.grants, action) else (None,)
    for model in sorted(models):
        if not may(principal.grants, action, model):
            return (model,)
    return None


def denial(principal: Principal, action: Action, model: str | None) -> Forbidden:
    """The refusal, in a sentence that names the action, the model and who may."""
    roles = ", ".join(sorted(ALLOWED[action]))
    where = "for all models" if model is None else f"for model '{excerpt(model)}'"
    message = (
        f"'{principal.name}' may not do this: the action '{action}' needs one of the roles "
        f"{roles}, {where}."
    )
    return Forbidden(message)


def require(
    principal: Principal,
    action: Action,
    models: Collection[str] | None,
    denied: Denied | None = None,
) -> None:
    """Refuse a principal that may not do this to each of the models; see `forbidden_model`.

    Args:
        principal: who asks.
        action: what for.
        models: those that it is about.
        denied: told of a refusal, which others may want to know of.

    Raises:
        Forbidden: with the action and the model.
    """
    refused = forbidden_model(principal, action, models)
    if refused is not None:
        if denied is not None:
            denied(principal, action, *refused)
        raise denial(principal, action, *refused)


def require_right(principal: Principal, right: Right, model: str | None) -> None:
    """Refuse a principal without a right at the inference port.

    Raises:
        Forbidden: with the right and the model.
    """
    if not has_right(principal.inference, right, model):
        where = "" if model is None else f" for model '{excerpt(model)}'"
        message = f"'{principal.name}' does not hold the right '{right}'{where}."
        raise Forbidden(message)


def _base62(entropy: Callable[[int], bytes], length: int) -> str:
    """Random letters and digits; twice the bytes needed make the bias too small to matter."""
    number = int.from_bytes(entropy(2 * length), "big")
    letters = []
    for _ in range(length):
        number, digit = divmod(number, len(_BASE62))
        letters.append(_BASE62[digit])
    return "".join(letters)
