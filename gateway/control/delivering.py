"""Delivering: one webhook is told events in order, each until it is taken or given up."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from gateway.control.status import Standing
from gateway.core.announcements import Event, encode_event
from gateway.core.webhooks import (
    DeadLetter,
    Posted,
    Progress,
    Verdict,
    Webhook,
    after_try,
    signed_headers,
    wants,
)
from gateway.governance_ports import AnnouncementStore, Courier
from gateway.governance_telemetry import (
    WEBHOOK_DEAD,
    WEBHOOK_DELIVERED,
    WEBHOOK_FAILED,
    WEBHOOK_MISSED,
    WEBHOOK_NAME,
)
from gateway.serving.cells import Cells

log: Final = logging.getLogger(__name__)

WEBHOOK: Final = "webhook:"
"""Before a webhook's name: the listener."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryParts:
    """What delivering works with; only the leader delivers.

    `now` is in UTC seconds, `draw` from [0, 1). Events are given up when they are older than
    `give_up_s`.
    """

    store: AnnouncementStore
    courier: Courier
    standing: Standing
    cells: Cells
    now: Callable[[], float]
    draw: Callable[[], float]
    give_up_s: float


class Telling:
    """One webhook while it is told; what is settled is in the store before the next event."""

    def __init__(
        self, parts: DeliveryParts, name: str, webhook: Webhook, progress: Progress
    ) -> None:
        self._parts = parts
        self._name = name
        self._webhook = webhook
        self._label = ((WEBHOOK_NAME, name),)
        self.progress = progress
        self.has_sent = False

    def miss(self, entries: int) -> None:
        """Count entries that nobody can tell any more."""
        if entries:
            self._parts.cells.counter(WEBHOOK_MISSED, self._label).add(entries)
            self.progress = replace(self.progress, missed=self.progress.missed + entries)

    async def tell(self, events: tuple[Event, ...], entry_id: str) -> bool:
        """Tell the events of an entry that are not settled; False if it is to be gone on later."""
        for place in range(self.progress.settled, len(events)):
            event, settled = events[place], place + 1
            after = replace(self.progress, settled=settled)
            if not wants(self._webhook, event.type):
                self.progress = after
            elif not await self._try(event, encode_event(event), {"settled": settled}):
                return False
        self.progress = replace(self.progress, cursor=entry_id, settled=0)
        return True

    async def tell_alert(self, alert: bytes, alert_id: str) -> bool:
        """The same of an alert, which is one event."""
        event = _alert(alert)
        if event is not None and wants(self._webhook, event.type):
            return await self._try(event, alert, {"alerts": alert_id})
        self.progress = replace(self.progress, alerts=alert_id)
        return True

    async def save(self) -> None:
        """Write down how far it is."""
        await self._parts.store.save_progress(f"{WEBHOOK}{self._name}", self.progress)

    async def _try(self, event: Event, body: bytes, place: dict[str, Any]) -> bool:
        """Deliver once; True if the event is settled, whichever way, and the place moved."""
        parts = self._parts
        if not parts.standing.leads:
            return False
        self.has_sent = True
        posted = await deliver(parts.courier, self._webhook, (event.id, body), parts.now())
        now = parts.now()
        tries = self.progress.tries + 1 if self.progress.trying == event.id else 1
        happened = (event.id, datetime.fromisoformat(event.time).timestamp())
        limits = (parts.give_up_s, parts.draw())
        after, verdict = after_try(self.progress, posted, now, event=happened, limits=limits)
        is_settled = verdict in (Verdict.DELIVERED, Verdict.DEAD)
        self.progress = replace(after, **place) if is_settled else after
        self._count(verdict)
        if verdict is Verdict.DEAD:
            log.warning("An event is given up: '%s' did not take it.", self._name)
            letter = DeadLetter(msgspec.Raw(body), now, tries, after.problem)
            await parts.store.bury(self._name, letter, self.progress)
        else:
            await self.save()
        return is_settled

    def _count(self, verdict: Verdict) -> None:
        cells = self._parts.cells
        if verdict is Verdict.DELIVERED:
            cells.counter(WEBHOOK_DELIVERED, self._label).add()
            return
        cells.counter(WEBHOOK_FAILED, self._label).add()
        if verdict is Verdict.DEAD:
            cells.counter(WEBHOOK_DEAD, self._label).add()


async def deliver(
    courier: Courier, webhook: Webhook, event: tuple[str, bytes], now: float
) -> Posted:
    """Sign an event, given by its id and its bytes, and post it once."""
    event_id, body = event
    headers = {
        "content-type": "application/cloudevents+json; charset=utf-8",
        **signed_headers(webhook, event_id, now, body),
    }
    return await courier.post(webhook.url, headers, body)


def _alert(encoded: bytes) -> Event | None:
    """An alert as it is stored; None if it is none, so that those behind it get their turn."""
    try:
        event = msgspec.json.decode(encoded, type=Event)
        datetime.fromisoformat(event.time)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return None
    return event
