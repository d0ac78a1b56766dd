"""Access: who asks (a Principal with scopes), recognised by the digest of a bearer token."""

import hashlib
from collections.abc import Iterable
from hmac import compare_digest
from typing import Final

from msgspec import Struct

from gateway.core.errors import Forbidden, Unauthenticated

READ: Final = "read"
WRITE: Final = "write"
FORCE: Final = "force"
OUTCOMES: Final = "outcomes"
SCOPES: Final = frozenset({READ, WRITE, FORCE, OUTCOMES})
MAX_TOKEN_BYTES: Final = 512


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    """A bearer token as it is stored: who holds it, the SHA-256 of its bytes, what it may do."""

    name: str
    sha256: str
    scopes: tuple[str, ...]


class Principal(Struct, frozen=True):
    """Who asks, and what they may do."""

    name: str
    scopes: frozenset[str]
    groups: tuple[str, ...] = ()


def digest_of(token: bytes) -> str:
    """How a token is stored."""
    return hashlib.sha256(token).hexdigest()


def principal_of(authorization: bytes | None, tokens: Iterable[Token]) -> Principal:
    """Recognise the bearer of an Authorization header, comparing every token in constant time.

    Raises:
        Unauthenticated: no bearer token, or one that nobody holds.
    """
    scheme, _, presented = (authorization or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not 0 < len(presented) <= MAX_TOKEN_BYTES:
        message = "Send a bearer token in the Authorization header."
        raise Unauthenticated(message)
    digest = digest_of(presented)
    found: Token | None = None
    for token in tokens:
        if compare_digest(token.sha256.encode(), digest.encode()):
            found = token
    if found is None:
        message = "The bearer token is not known here."
        raise Unauthenticated(message)
    return Principal(name=found.name, scopes=frozenset(found.scopes))


def require(principal: Principal, scope: str) -> None:
    """Refuse a principal without the scope.

    Raises:
        Forbidden: with the scope's name.
    """
    if scope not in principal.scopes:
        message = f"'{principal.name}' does not hold the scope '{scope}'."
        raise Forbidden(message)
