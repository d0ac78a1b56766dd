"""What the admin API says and hears of principals and tokens."""

from msgspec import Struct

from gateway.core.principals import PrincipalDocument


class PrincipalEntry(Struct, frozen=True):
    """One principal in the list; `tokens` counts those that it holds."""

    name: str
    etag: str
    document: PrincipalDocument
    tokens: int


class PrincipalList(Struct, frozen=True):
    """Every principal but the built-in admin."""

    revision: int
    principals: tuple[PrincipalEntry, ...]


class TokenEntry(Struct, frozen=True):
    """What is known of a token: never the token, nor its digest. Times are in UTC seconds."""

    id: str
    principal: str
    created_at: float
    created_by: str
    expires_at: float | None
    expired: bool
    etag: str


class TokenList(Struct, frozen=True):
    """Every token but those in state folders."""

    revision: int
    tokens: tuple[TokenEntry, ...]


class IssueToken(Struct, frozen=True, forbid_unknown_fields=True):
    """A wish for a token; without `expires_in_s` it is good until it is revoked."""

    expires_in_s: float | None = None
    reason: str = ""


class RotateToken(Struct, frozen=True, forbid_unknown_fields=True):
    """A wish for a token in the place of another, which stays good for `overlap_s`.

    Without `expires_in_s` the new one lives for as long as the old one was to.
    """

    overlap_s: float = 3600.0
    expires_in_s: float | None = None
    reason: str = ""


class IssuedToken(Struct, frozen=True):
    """A token, shown this once; None where the request was a repeat."""

    id: str
    token: str | None
    principal: str
    expires_at: float | None
    revision: int
