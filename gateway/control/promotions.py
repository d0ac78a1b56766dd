"""Promotions by message: the leader answers the requests that CI puts on the promotions stream.

A request is taken off the stream by the transaction that answers it, so it is answered once, also
if the leader is killed in between or two processes believe that they lead. The token that a request
carries goes no further than the comparison.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from gateway.control.registry import Change, Registry, Request
from gateway.control.status import Standing
from gateway.core.access import Denied, Tokens, require, standing
from gateway.core.errors import GatewayError, InvalidRequest, StoreUnavailable, excerpt
from gateway.core.models import CHAMPION, check_name, parse_version
from gateway.core.principals import Action
from gateway.core.snapshot import Snapshot
from gateway.ports import PromotionRequest, Store

log: Final = logging.getLogger(__name__)

LEAD_S: Final = 10.0
RENEW_S: Final = LEAD_S / 3
"""The lead is renewed this often; each renewal is a write that the store may have to sync."""
MAX_PAUSE_S: Final = 5.0
MAX_REASON: Final = 500
FIELDS: Final = frozenset({"token", "model", "version", "alias", "action", "reason"})


class Promotions:
    """Answers promotion requests while this process leads."""

    __slots__ = ("_denied", "_now", "_registry", "_renewed_at", "_standing", "_store", "_tokens")

    def __init__(  # noqa: PLR0913 - an argument for each thing that it asks
        self,
        store: Store,
        registry: Registry,
        *,
        tokens: Callable[[Snapshot], Tokens],
        standing: Standing,
        now: Callable[[], float],
        denied: Denied | None = None,
    ) -> None:
        """Nobody leads yet.

        Args:
            store: holds the stream and the leader's lock.
            registry: makes the commits.
            tokens: those that are good by a Snapshot.
            standing: names this process, and hears whether it leads.
            now: UTC seconds.
            denied: told whom a promotion was refused that they may not ask for.
        """
        self._store = store
        self._registry = registry
        self._tokens = tokens
        self._standing = standing
        self._now = now
        self._denied = denied
        self._renewed_at = 0.0

    async def run(self, pause_s: float) -> None:
        """Lead if nobody else does, and answer, for ever."""
        wait_s = pause_s
        while True:
            try:
                await self.tick()
                wait_s = pause_s
            except StoreUnavailable:
                self._standing.leads = False
                wait_s = min(2 * wait_s, MAX_PAUSE_S)
            await asyncio.sleep(wait_s)

    async def tick(self) -> None:
        """Take or keep the lead, then answer what waits.

        Raises:
            StoreUnavailable: the store is away; what waits stays there.
        """
        now = asyncio.get_running_loop().time()
        if not self._standing.leads or now - self._renewed_at >= RENEW_S:
            self._standing.leads = await self._store.lead(self._standing.process, LEAD_S)
            self._renewed_at = now
        if not self._standing.leads:
            return
        for request in await self._store.promotion_requests():
            await self._answer(request)

    async def _answer(self, request: PromotionRequest) -> None:
        try:
            change = await self._grant(request)
        except StoreUnavailable:
            raise
        except GatewayError as error:
            # A request that was answered meanwhile ends here too; refusing it then does nothing.
            log.info("Promotion request %s is refused. %s", request.id, error)
            await self._store.refuse_promotion(request.id, _refused(request.fields, str(error)))
        else:
            log.info("Promotion request %s made revision %d.", request.id, change.revision)

    async def _grant(self, request: PromotionRequest) -> Change:
        """Do what a request asks for.

        Raises:
            GatewayError: why not, in a sentence.
        """
        fields = request.fields
        bearer = b"Bearer " + fields.get("token", "").encode()
        known = self._tokens(await self._registry.fresh())
        principal = known.principal(bearer, self._now())
        unknown = sorted(fields.keys() - FIELDS)
        if unknown:
            message = f"A promotion request has no field '{excerpt(unknown[0])}'."
            raise InvalidRequest(message)
        model = check_name("a model", fields.get("model", ""))
        require(principal, Action.PROMOTE, {model}, self._denied)
        asked = Request(
            actor=principal.name,
            reason=fields.get("reason", "")[:MAX_REASON],
            answers=request.id,
            permit=lambda base: require(standing(principal, base), Action.PROMOTE, {model}),
        )
        alias = check_name("an alias", fields.get("alias", CHAMPION))
        action = fields.get("action", "promote")
        if action == "rollback":
            return await self._registry.rollback(model, asked, alias=alias)
        if action != "promote":
            message = f"'{excerpt(action)}' is no action; use 'promote' or 'rollback'."
            raise InvalidRequest(message)
        number = parse_version(fields.get("version", ""))
        return await self._registry.promote(model, number, asked, alias=alias)


def _refused(fields: Mapping[str, str], reason: str) -> dict[str, str]:
    """The answer to a request that was not granted; the token is not among it."""
    asked = {
        name: excerpt(fields[name])
        for name in ("action", "model", "version", "alias")
        if name in fields
    }
    return {"status": "refused", "reason": reason, **asked}
