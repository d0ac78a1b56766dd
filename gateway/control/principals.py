"""Principals and tokens, as commits. A token is made here and leaves in one answer, never again."""

from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.control.registry import Change, Edit, Registry, Request
from gateway.core import credentials
from gateway.core.access import digest_of, fresh_token, id_of
from gateway.core.errors import InvalidRequest
from gateway.core.principals import PrincipalDocument, TokenRecord
from gateway.core.snapshot import Snapshot

MAX_LIFE_S: Final = 10 * 366 * 86_400.0


class Issued(Struct, frozen=True):
    """A token that was made now: its id, itself, until when it is good, and the commit."""

    id: str
    token: str
    principal: str
    expires_at: float | None
    change: Change


class Principals:
    """Changes who may ask."""

    __slots__ = ("_entropy", "_now", "_registry")

    def __init__(
        self, registry: Registry, *, now: Callable[[], float], entropy: Callable[[int], bytes]
    ) -> None:
        """Commit through a registry.

        Args:
            registry: makes the commits.
            now: UTC seconds.
            entropy: fresh random bytes, for tokens.
        """
        self._registry = registry
        self._now = now
        self._entropy = entropy

    async def put(self, name: str, document: PrincipalDocument, request: Request) -> Change:
        """Write or replace a principal.

        Raises:
            InvalidRequest: the document means nothing.
            Conflict: the request's condition does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return credentials.put_principal(base, name, document)

        return await self._registry.commit(
            Edit("principal.put", f"principals/{name}", make), request
        )

    async def delete(self, name: str, request: Request) -> Change:
        """Drop a principal and its tokens.

        Raises:
            NotFound: there is none.
        """

        async def make(base: Snapshot) -> Snapshot:
            return credentials.delete_principal(base, name)

        return await self._registry.commit(
            Edit("principal.delete", f"principals/{name}", make), request
        )

    async def issue(self, name: str, expires_in_s: float | None, request: Request) -> Issued:
        """Make a token for a principal.

        Raises:
            NotFound: there is no such principal.
            InvalidRequest: a life of no time, or of too much.
        """
        token_id, token, record = self._fresh(name, expires_in_s, request)

        async def make(base: Snapshot) -> Snapshot:
            return credentials.issue_token(base, token_id, record)

        change = await self._registry.commit(
            Edit("token.issue", f"tokens/{token_id}", make), request
        )
        return Issued(token_id, token, name, record.expires_at, change)

    async def rotate(
        self, old_id: str, overlap_s: float, expires_in_s: float | None, request: Request
    ) -> Issued:
        """Make a token in the place of another, which stays good for `overlap_s`.

        Without `expires_in_s` the new one lives for as long as the old one was to.

        Raises:
            NotFound: there is no such token.
            Conflict: it has expired.
            InvalidRequest: a life or an overlap of too much time.
        """
        old = credentials.token_of(await self._registry.fresh(), old_id)
        if not 0 <= overlap_s <= MAX_LIFE_S:
            message = f"'overlap_s' must be 0 to {MAX_LIFE_S:.0f}."
            raise InvalidRequest(message)
        if expires_in_s is None and old.expires_at is not None:
            expires_in_s = old.expires_at - old.created_at
        token_id, token, record = self._fresh(old.principal, expires_in_s, request)

        async def make(base: Snapshot) -> Snapshot:
            return credentials.rotate_token(base, old_id, token_id, record, overlap_s)

        evidence = {"replaces": old_id}
        change = await self._registry.commit(
            Edit("token.rotate", f"tokens/{token_id}", make, evidence), request
        )
        return Issued(token_id, token, old.principal, record.expires_at, change)

    async def revoke(self, token_id: str, request: Request) -> Change:
        """Take a token back.

        Raises:
            NotFound: there is none.
        """

        async def make(base: Snapshot) -> Snapshot:
            return credentials.revoke_token(base, token_id)

        return await self._registry.commit(
            Edit("token.revoke", f"tokens/{token_id}", make), request
        )

    def _fresh(
        self, name: str, expires_in_s: float | None, request: Request
    ) -> tuple[str, str, TokenRecord]:
        if expires_in_s is not None and not 0 < expires_in_s <= MAX_LIFE_S:
            message = f"'expires_in_s' must be above 0 and at most {MAX_LIFE_S:.0f}, or null."
            raise InvalidRequest(message)
        token, now = fresh_token(self._entropy), self._now()
        record = TokenRecord(
            principal=name,
            sha256=digest_of(token.encode()),
            created_at=now,
            created_by=request.actor,
        )
        if expires_in_s is not None:
            record = replace(record, expires_at=now + expires_in_s)
        return id_of(token.encode()), token, record
