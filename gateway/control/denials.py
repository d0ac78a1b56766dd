"""Denials: who was refused what, gathered and written into the audit log now and then.

A flood of refused requests must not flood the log, so what is alike is counted together, only so
many kinds are told apart, and there is one entry every few seconds at most. Nothing of a token that
is not known is ever kept.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from gateway.control.registry import Edit, Registry, Request
from gateway.core.access import Principal
from gateway.core.errors import GatewayError, excerpt
from gateway.core.principals import Action
from gateway.core.snapshot import Snapshot
from gateway.core.sought import DENIED

log: Final = logging.getLogger(__name__)

ACTOR: Final = "gateway"
TARGET: Final = "access"
EVERY_S: Final = 10.0
"""Between two entries."""
MAX_KINDS: Final = 100
"""Kinds of denials told apart in one entry; further ones are only counted."""
UNKNOWN_TOKEN: Final = "unknown token"  # noqa: S105 - words


class _Kind(Struct, frozen=True):
    """What is counted together. `peer` stands in for who nobody knows."""

    principal: str
    action: str
    model: str
    peer: str


class _Count(Struct):
    """How often, and when: UTC seconds."""

    count: int
    first_at: float
    last_at: float


class Denials:
    """Gathers denials; `run` writes them. Noting one is cheap and never fails."""

    __slots__ = ("_counts", "_now", "_others", "_registry")

    def __init__(self, registry: Registry, *, now: Callable[[], float]) -> None:
        """Nobody was refused yet; `now` is in UTC seconds."""
        self._registry = registry
        self._now = now
        self._counts: dict[_Kind, _Count] = {}
        self._others = 0

    def note(
        self, principal: str, action: str, model: str | None = None, *, peer: str = ""
    ) -> None:
        """Count one denial.

        Args:
            principal: who was refused; empty for who is not known.
            action: what was asked for, in the words of the audit log or of `Action`.
            model: on which model; None for what is about none.
            peer: the address, for who is not known.
        """
        now = self._now()
        kind = _Kind(excerpt(principal), excerpt(action), excerpt(model or ""), excerpt(peer))
        count = self._counts.get(kind)
        if count is not None:
            count.count += 1
            count.last_at = now
        elif len(self._counts) < MAX_KINDS:
            self._counts[kind] = _Count(1, now, now)
        else:
            self._others += 1

    def refused(self, principal: Principal, action: Action, model: str | None) -> None:
        """Count, and log, what somebody who is known may not do; see `gateway.core.access`."""
        about = "what is about no model" if model is None else f"model '{excerpt(model)}'"
        log.warning("'%s' was refused '%s' on %s.", excerpt(principal.name), action, about)
        self.note(principal.name, action, model)

    def stranger(self, peer: str) -> None:
        """Count a request with a token that nobody holds; the token is not looked at."""
        self.note("", UNKNOWN_TOKEN, peer=peer)

    async def run(self) -> None:
        """Write what was gathered, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.flush()

    async def flush(self) -> bool:
        """Write what was gathered as one entry; False if there is nothing, or the store is away.

        What cannot be written stays, and is written with what comes next.
        """
        counts, others = self._counts, self._others
        if not counts:
            return False
        self._counts, self._others = {}, 0
        try:
            await self._registry.commit(_edit(counts, others), Request(actor=ACTOR))
        except GatewayError as error:
            log.warning("Denials wait for the audit log. %s", error)
            self._put_back(counts, others)
            return False
        except asyncio.CancelledError:
            # Whether they were written is not known; twice is better than never.
            self._put_back(counts, others)
            raise
        return True

    async def finish(self, within_s: float) -> None:
        """Write what is left, if that takes no longer than so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.flush()

    def _put_back(self, counts: dict[_Kind, _Count], others: int) -> None:
        later, self._counts = self._counts, counts
        self._others += others
        for kind, count in later.items():
            before = self._counts.get(kind)
            if before is not None:
                before.count += count.count
                before.last_at = count.last_at
            elif len(self._counts) < MAX_KINDS:
                self._counts[kind] = count
            else:
                self._others += count.count


def _edit(counts: dict[_Kind, _Count], others: int) -> Edit:
    evidence: dict[str, Any] = {
        "denials": [
            {
                **{
                    name: value
                    for name in ("principal", "action", "model", "peer")
                    if (value := getattr(kind, name))
                },
                "count": count.count,
                "first_at": count.first_at,
                "last_at": count.last_at,
            }
            for kind, count in counts.items()
        ],
        "others": others,
        "count": sum(count.count for count in counts.values()) + others,
    }

    async def make(base: Snapshot) -> Snapshot:
        return base

    return Edit(DENIED, TARGET, make, evidence=evidence, noted=True)
