"""Granting: the leader's loop over wishes, which promotes what its gates let through by now.

Approvals move the Snapshot and are seen at once; freezes end and experiments gather evidence
without that, so wishes are looked at every few seconds besides.
"""

import asyncio
import logging
from typing import Final

from gateway.control.registry import Registry, Request
from gateway.control.status import Standing
from gateway.control.wishes import GATEKEEPER, Wishes
from gateway.core.errors import Conflict, GateClosed, GatewayError, NotFound, StoreUnavailable
from gateway.core.governing import check_wish
from gateway.core.reviews import PromotionWish
from gateway.core.snapshot import Snapshot
from gateway.core.transitions import promote

log: Final = logging.getLogger(__name__)

TICK_S: Final = 0.5
"""How often is asked whether the Snapshot moved."""
LOOK_S: Final = 3.0
"""How often wishes are looked at though it did not."""


class Granter:
    """Requires: `run` for ever, in one task."""

    __slots__ = ("_looked_at", "_registry", "_seen", "_standing", "_wishes")

    def __init__(self, registry: Registry, wishes: Wishes, standing: Standing) -> None:
        """Nothing was looked at yet; `standing` says whether this process leads."""
        self._registry = registry
        self._wishes = wishes
        self._standing = standing
        self._seen: Snapshot | None = None
        self._looked_at = 0.0

    async def run(self) -> None:
        """Grant what may be granted, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            moved = self._registry.snapshot is not self._seen
            if moved or loop.time() - self._looked_at >= LOOK_S:
                self._looked_at = loop.time()
                await self.tick()
            await asyncio.sleep(TICK_S)

    async def tick(self) -> int:
        """Look at every wish once; how many were granted."""
        snapshot = self._registry.snapshot
        self._seen = snapshot
        if not self._standing.leads:
            return 0
        granted = 0
        for name, wish in sorted(snapshot.wishes.items()):
            model, _, alias = name.partition("/")
            try:
                granted += await self._attend(snapshot, model, alias, wish)
            except StoreUnavailable as error:
                log.debug("Wishes wait for the store. %s", error)
                return granted
        return granted

    async def _attend(
        self, snapshot: Snapshot, model: str, alias: str, wish: PromotionWish
    ) -> bool:
        """Grant a wish, let it go, or leave it; whether it was granted.

        Raises:
            StoreUnavailable: the store is away.
        """
        try:
            check_wish(snapshot, model, alias, wish)
            changed = promote(snapshot, model, wish.version, alias)
            await self._registry.gatekeeper.check(snapshot, changed, wish.asked_by)
            change = await self._wishes.grant(model, alias, wish)
        except GateClosed:
            return False
        except StoreUnavailable:
            raise
        except GatewayError as error:
            await self._let_go(model, alias, wish, str(error))
            return False
        log.info("'%s' of '%s' moved as wished: revision %d.", alias, model, change.revision)
        return True

    async def _let_go(self, model: str, alias: str, wish: PromotionWish, why: str) -> None:
        """Drop a wish that cannot be granted, unless it is another one by now."""
        etag = self._registry.etag(f"wishes/{model}/{alias}")
        if self._registry.snapshot.wishes.get(f"{model}/{alias}") != wish:
            return
        words = f"The wish for version {wish.version} is let go. {why}"
        try:
            await self._wishes.drop(model, alias, Request(GATEKEEPER, words, if_match=etag))
        except (Conflict, NotFound) as error:
            log.debug("A wish for '%s' of '%s' was replaced. %s", alias, model, error)
            return
        log.info("%s", words)
