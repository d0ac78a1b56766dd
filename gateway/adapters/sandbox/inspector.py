"""SandboxInspector: the `Inspector` port by a process of its own, one inspection at a time."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from gateway.adapters.sandbox.nursery import Account, Nursery
from gateway.adapters.sandbox.verdict import Times, report
from gateway.adapters.sandbox.wire import Errand
from gateway.core.errors import NotReady
from gateway.core.inspections import Inspection, InspectionOrder
from gateway.governance_settings import InspectionSettings

IDLE_S: Final = 10.0
"""Without an inspection for so long, the process that waits for the next is ended."""


class SandboxInspector:
    """The `Inspector` port. Every version has a child process of its own."""

    def __init__(
        self,
        settings: InspectionSettings,
        *,
        now: Callable[[], float],
        idle_s: float = IDLE_S,
    ) -> None:
        """Start nothing yet.

        Args:
            settings: limits; with `mode` short only what is required is checked.
            now: UTC seconds.
            idle_s: how long the process may wait for another inspection.
        """
        self._settings = settings
        self._now = now
        self._idle_s = idle_s
        self._nursery = Nursery()
        self._turn = asyncio.Lock()
        self._resting: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process that forks, while there is one."""
        return self._nursery.pid

    async def inspect(self, order: InspectionOrder) -> Inspection:
        """The report. A version that crashes, hangs or takes too much has failed a check.

        Raises:
            NotReady: no inspection can be made on this host now, with a sentence that says why.
        """
        errand = Errand(
            _placed(order),
            short=self._settings.mode != "full",
            time_s=self._settings.time_s,
            run_s=self._settings.run_s,
            memory_mb=self._settings.memory_mb,
        )
        async with self._turn:
            if self._closed:
                message = "No inspection can be made: the gateway is stopping."
                raise NotReady(message)
            self._wake()
            at, begun = self._now(), time.monotonic()
            try:
                account = await self._attended(errand)
            finally:
                self._resting = asyncio.create_task(self._rest())
        return report(errand, account, Times(at, time.monotonic() - begun))

    async def close(self) -> None:
        """End what runs; an inspection under way is told as one that cannot be made."""
        self._closed = True
        self._nursery.interrupt()
        async with self._turn:
            self._wake()
            await asyncio.to_thread(self._nursery.end)

    async def _attended(self, errand: Errand) -> Account:
        work = asyncio.ensure_future(asyncio.to_thread(self._nursery.attend, errand))
        try:
            account = await asyncio.shield(work)
        except asyncio.CancelledError:
            self._nursery.interrupt()
            await asyncio.wait([work])
            raise
        if self._closed:
            message = "The inspection was ended: the gateway is stopping."
            raise NotReady(message)
        return account

    async def _rest(self) -> None:
        """End the process when nothing came for a while."""
        await asyncio.sleep(self._idle_s)
        async with self._turn:
            if self._resting is asyncio.current_task():
                await asyncio.to_thread(self._nursery.end)

    def _wake(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None


def _placed(order: InspectionOrder) -> InspectionOrder:
    """The same with folders that mean the same where the sandbox works, which is elsewhere."""
    champion = None if order.champion is None else str(Path(order.champion).absolute())
    return replace(order, folder=str(Path(order.folder).absolute()), champion=champion)
