"""The announcer: tells what is in the audit log to whoever listens, on the leader only.

Each listener has a cursor of its own in the store and a task of its own, so one that is away delays
nobody. An event is told at least once and in order: the cursor moves behind it. A leader that is
killed between the two leaves an event to the next one that is told again, under the same id.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.control.audit_export import LISTENER, AuditExport, missed_before, order_of
from gateway.control.delivering import WEBHOOK, DeliveryParts, Telling
from gateway.control.status import Standing
from gateway.core.announcements import (
    Aliases,
    Event,
    alert_event,
    aliases_of,
    encode_event,
    events_of,
    models_in,
    source_of,
)
from gateway.core.audit import AuditEntry
from gateway.core.errors import StoreUnavailable
from gateway.core.webhooks import Progress, Webhook
from gateway.governance_ports import AlarmEdge, AnnouncementStore, Overview

log: Final = logging.getLogger(__name__)

TICK_S: Final = 1.0
MAX_PAUSE_S: Final = 5.0
ALARMS_S: Final = 5.0
"""How often alarms are looked at."""
MAX_ENTRIES: Final = 50
"""Read at once for a webhook."""
MAX_KNOWN: Final = 1_024
"""Models' aliases remembered, by digest."""
MAX_ALARMS: Final = 256
"""Alarms that are up at once; further ones are told when others are over."""
ALARM: Final = "webhooks"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncerParts:
    """What the announcer works with.

    `export` is None where logs are not exported. `alarms` gives those of each process that is
    known now, by name; it raises StoreUnavailable. `now` is in UTC seconds.
    """

    store: AnnouncementStore
    delivery: DeliveryParts
    export: AuditExport | None
    alarms: Callable[[], Awaitable[Mapping[str, Mapping[str, str]]]]
    standing: Standing
    namespace: str
    now: Callable[[], float]


class Announcer:
    """Requires: `run` for ever; or `tick` and `settled` again and again."""

    def __init__(self, parts: AnnouncerParts) -> None:
        """Nothing is told yet."""
        self._parts = parts
        self.source: Final = source_of(parts.namespace)
        self._known: OrderedDict[str, Aliases] = OrderedDict()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._looked_at = float("-inf")

    async def run(self) -> None:
        """Tell while this process leads, for ever."""
        pause_s = TICK_S
        try:
            while True:
                try:
                    await self.tick()
                    pause_s = TICK_S
                except StoreUnavailable as error:
                    log.debug("Nothing is announced. %s", error)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                await asyncio.sleep(pause_s)
        finally:
            for task in self._busy.values():
                task.cancel()
            await self.settled()

    async def tick(self) -> None:
        """Look who has something to hear, and begin to tell them.

        Raises:
            StoreUnavailable: the store is away.
        """
        standing = self._parts.standing
        if not standing.leads:
            standing.alarms.pop(ALARM, None)
            return
        await self._watch_alarms()
        # What is saved while the overview is on its way is not in it.
        busy = frozenset(self._busy)
        overview = await self._parts.store.overview()
        self._tell_disabled(overview)
        if self._parts.export and LISTENER not in busy and _is_behind(overview, LISTENER):
            self._begin(LISTENER, self._export(overview))
        for name, webhook in overview.webhooks.items():
            listener = f"{WEBHOOK}{name}"
            if webhook is not None and listener not in busy and _is_behind(overview, listener):
                self._begin(listener, self._tell(name, webhook, overview))

    async def settled(self) -> None:
        """Wait until nobody is being told anything."""
        while self._busy:
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    def _begin(self, listener: str, telling: Awaitable[None]) -> None:
        task = asyncio.ensure_future(self._guarded(listener, telling))
        self._busy[listener] = task
        task.add_done_callback(lambda _: self._busy.pop(listener, None))

    async def _guarded(self, listener: str, telling: Awaitable[None]) -> None:
        """Whatever is wrong with one listener, the others go on."""
        try:
            await telling
        except StoreUnavailable as error:
            log.debug("'%s' is told later. %s", listener, error)
        except Exception:
            log.exception("'%s' could not be told; it is tried again.", listener)

    async def _export(self, overview: Overview) -> None:
        parts = self._parts
        progress = await self._begun(LISTENER, overview)
        while parts.export is not None and progress.next_at <= parts.now():
            after = await parts.export.turn(progress)
            if after is None:
                return
            progress = after

    async def _tell(self, name: str, webhook: Webhook, overview: Overview) -> None:
        """Tell a webhook what it has not heard, until it is all told or a try fails."""
        progress = await self._begun(f"{WEBHOOK}{name}", overview)
        if progress.disabled or progress.next_at > self._parts.now():
            return
        telling = Telling(self._parts.delivery, name, webhook, progress)
        if await self._tell_entries(telling) and not telling.has_sent:
            # Else its document may have changed meanwhile: the next tick goes on with the new one.
            await self._tell_alerts(telling)

    async def _tell_entries(self, telling: Telling) -> bool:
        """Tell what is in the audit log; False if it is to be gone on later."""
        store = self._parts.store
        while page := await store.entries(telling.progress.cursor, MAX_ENTRIES):
            telling.miss(missed_before(telling.progress.cursor, page))
            for entry_id, entry in page:
                events = () if entry is None else await self._events(entry_id, entry)
                if not await telling.tell(events, entry_id):
                    return False
            await telling.save()
            if telling.has_sent:
                break
        return True

    async def _tell_alerts(self, telling: Telling) -> None:
        while alerts := await self._parts.store.alerts(telling.progress.alerts, MAX_ENTRIES):
            for alert_id, alert in alerts:
                if not await telling.tell_alert(alert, alert_id):
                    return
            await telling.save()

    async def _begun(self, listener: str, overview: Overview) -> Progress:
        """How far a listener is; one that was never seen begins with what comes next."""
        known = overview.progress.get(listener)
        if known is not None:
            return known
        progress = Progress(cursor=overview.newest, alerts=overview.newest_alert)
        await self._parts.store.save_progress(listener, progress)
        return progress

    async def _events(self, entry_id: str, entry: AuditEntry) -> tuple[Event, ...]:
        """What an entry says to others; nothing, if it is not as any of ours would be."""
        before: dict[str, Aliases] = {}
        for target, digest_before, digest_after, document in models_in(entry):
            found = self._known.get(digest_before)
            if found is None and digest_before:
                store = self._parts.store
                found = await store.aliases_before(entry_id, target, digest_before)
            if found is not None:
                before[target] = found
            self._known[digest_after] = aliases_of(document)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        try:
            return events_of(entry, self.source, before)
        except Exception:  # it will not become better, and others wait behind it
            log.exception("Audit entry %s cannot be told.", entry_id)
            return ()

    async def _watch_alarms(self) -> None:
        """Write down alarms that came up or are over since the last look."""
        parts, now = self._parts, self._parts.now()
        if 0 <= now - self._looked_at < ALARMS_S:
            return
        told = await parts.store.alarms()
        up = {
            f"{process} {kind}": text
            for process, alarms in (await parts.alarms()).items()
            for kind, text in alarms.items()
        }
        over = sorted(told.keys() - up.keys())
        room = max(MAX_ALARMS - len(told) + len(over), 0)
        changes: list[tuple[str, str | None]] = [(key, None) for key in over]
        changes += [(key, up[key]) for key in sorted(up.keys() - told.keys())[:room]]
        if changes:
            await parts.store.tell_alarms([self._edge(key, text, now) for key, text in changes])
        self._looked_at = now

    def _edge(self, key: str, text: str | None, at: float) -> AlarmEdge:
        process, _, kind = key.rpartition(" ")
        event = alert_event(self.source, process, kind, at, text)
        return AlarmEdge(key, None if text is None else at, encode_event(event))

    def _tell_disabled(self, overview: Overview) -> None:
        """An alarm while a webhook is disabled: somebody is to look at it."""
        progress, alarms = overview.progress, self._parts.standing.alarms
        disabled = [
            name
            for name in sorted(overview.webhooks)
            if (known := progress.get(f"{WEBHOOK}{name}")) is not None and known.disabled
        ]
        if disabled:
            names = ", ".join(f"'{name}'" for name in disabled)
            alarms[ALARM] = f"Nothing is sent to {names} any more; `webhook show` says why."
        else:
            alarms.pop(ALARM, None)


def _is_behind(overview: Overview, listener: str) -> bool:
    """Whether there is something that a listener has not heard; True of one never seen."""
    known = overview.progress.get(listener)
    if known is None:
        return True
    waits = order_of(known.cursor) < order_of(overview.newest)
    if listener != LISTENER:
        waits = waits or order_of(known.alerts) < order_of(overview.newest_alert)
    return waits and not known.disabled
