"""Wishes: promotions that were asked for and that a gate does not allow yet.

Whoever asks need not come back: what stands is looked at again whenever something moved, and is
granted by `gateway.control.granting` once its gates are open.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.control.registry import Change, Edit, Registry, Request
from gateway.core import governing
from gateway.core.errors import Conflict, GateClosed, Missing
from gateway.core.models import CHAMPION
from gateway.core.reviews import PromotionWish, wish_name
from gateway.core.snapshot import Snapshot

GATEKEEPER: Final = "gatekeeper"
"""Who acts in audit entries of wishes that are let go."""


class Wished(Struct, frozen=True):
    """What a wish came to: granted at once, or standing, with what is missing."""

    change: Change
    granted: bool
    missing: tuple[Missing, ...] = ()


class Wishes:
    """Commits wishes, and what becomes of them."""

    __slots__ = ("_now", "_registry")

    def __init__(self, registry: Registry, now: Callable[[], float]) -> None:
        """On a registry; `now` is in UTC seconds."""
        self._registry = registry
        self._now = now

    async def put(
        self,
        model: str,
        number: int,
        request: Request,
        *,
        alias: str = CHAMPION,
        source: str = "admin",
    ) -> Wished:
        """Promote now if the gates allow it, else as soon as they do.

        Either way an earlier wish for the alias is gone. Conditions of the request speak of the
        model's document.

        Args:
            model: its name.
            number: of the version.
            request: its actor is who asks, also when the wish is granted later.
            alias: the one that is to move.
            source: where it was asked for: `admin`, `mlflow`.

        Raises:
            NotFound: no such model or version.
            Conflict: the alias names it already, `if_match` does not hold, or the signature differs
                and the request does not allow it.
            StoreUnavailable: nothing was changed, or that is not known.
        """
        wish = PromotionWish(
            version=number,
            asked_by=request.actor,
            at=self._now(),
            reason=request.reason,
            source=source,
            groups=request.groups,
            allow_signature_change=request.allow_signature_change,
        )
        unforced = replace(request, override=False)
        try:
            change = await self._promote(model, alias, wish, unforced, None)
        except GateClosed as closed:

            async def make(base: Snapshot) -> Snapshot:
                return governing.put_wish(base, model, alias, wish)

            edit = Edit("wish.put", _target(model, alias), make)
            change = await self._registry.commit(edit, replace(unforced, if_match=None))
            return Wished(change, granted=False, missing=closed.missing)
        return Wished(change, granted=True)

    async def drop(self, model: str, alias: str, request: Request) -> Change:
        """Let a wish go.

        Raises:
            NotFound: there is none.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return governing.drop_wish(base, model, alias)

        edit = Edit("wish.drop", _target(model, alias), make)
        return await self._registry.commit(edit, request)

    async def grant(self, model: str, alias: str, wish: PromotionWish) -> Change:
        """Promote what is wished and drop the wish, as one commit by who asked.

        Raises:
            GateClosed: something is missing still.
            Conflict: the wish is out of date or was replaced, or the signature differs.
            StoreUnavailable: nothing was changed, or that is not known.
        """
        request = Request(
            actor=wish.asked_by,
            reason=wish.reason,
            groups=wish.groups,
            allow_signature_change=wish.allow_signature_change,
        )
        evidence = {
            "wish": wish_name(model, alias),
            "asked_at": wish.at,
            "source": wish.source,
            "granted_by": GATEKEEPER,
        }
        return await self._promote(model, alias, wish, request, evidence)

    async def _promote(
        self,
        model: str,
        alias: str,
        wish: PromotionWish,
        request: Request,
        evidence: dict[str, Any] | None,
    ) -> Change:
        async def make(base: Snapshot) -> Snapshot:
            if evidence is not None:
                if base.wishes.get(wish_name(model, alias)) != wish:
                    message = "The wish was replaced or withdrawn meanwhile."
                    raise Conflict(message)
                governing.check_wish(base, model, alias, wish)
            changed = await self._registry.promoted(base, (model, wish.version), alias, request)
            return governing.without_wish(changed, model, alias)

        edit = Edit("model.promote", f"models/{model}", make, evidence)
        return await self._registry.commit(edit, request)


def _target(model: str, alias: str) -> str:
    return f"wishes/{wish_name(model, alias)}"
