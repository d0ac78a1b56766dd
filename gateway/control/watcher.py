"""The Watcher: the one loop that follows the store and hands what it finds to the data plane.

Truth is the revision in the document; a hint only makes the next look come sooner. What is read is
taken over only if it can be read, is higher than what is served, and holds together; whatever else
the store shows, serving goes on as it was and the status says why.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.control.catalog import Catalog
from gateway.control.keyring import Keyring
from gateway.control.registry import Registry
from gateway.control.status import (
    Acknowledgement,
    Refused,
    Rejected,
    Source,
    Standing,
    read_acknowledgements,
    status_of,
)
from gateway.core.errors import InvalidRequest, StoreUnavailable, Unsealed, words_of
from gateway.core.snapshot import EMPTY, Snapshot, decode, order_of, stated_revision
from gateway.ports import DataPlane, Disk, LastKnown, Store, Update

log: Final = logging.getLogger(__name__)

MIN_GAP_S: Final = 0.05
"""Between two reads, however many hints come."""
MAX_PAUSE_S: Final = 5.0
"""Between two attempts while the store is away, before jitter takes up to half of it off."""
REFRESH_S: Final = 3.0
"""How often secrets are read again, missing versions looked for, and the report is renewed."""
ACKNOWLEDGED_S: Final = 15
"""A process that was not heard of for this long is gone."""

DATA_LOSS: Final = "data_loss"
DIVERGENCE: Final = "divergence"
LAST_GOOD: Final = "last_good"
SECRETS: Final = "secrets"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherParts:
    """What the watcher works with. `now` is in UTC seconds."""

    store: Store
    disk: Disk
    data_plane: DataPlane
    registry: Registry
    catalog: Catalog
    keyring: Keyring
    now: Callable[[], float]
    entropy: Callable[[int], bytes]


def settling_s(poll_s: float) -> float:
    """After how many seconds every host that reaches the store has read its secrets again.

    A host does so at the first look after `REFRESH_S`, and its next look is at most `MAX_PAUSE_S`
    away after a failure; doubled, so that slow replies fit in too.
    """
    return 2 * (REFRESH_S + poll_s) + MAX_PAUSE_S


class Watcher:
    """Requires: `start` once, before the catalog scans; then `run` and `complete` for ever."""

    def __init__(self, parts: WatcherParts, *, process: str, poll_s: float) -> None:
        """Nothing is served yet.

        Args:
            parts: what it works with.
            process: this process's name in acknowledgements.
            poll_s: how often the store is read without a hint.
        """
        self._parts = parts
        self._poll_s = poll_s
        self.standing = Standing(process=process, since=parts.now())
        # What is served.
        self._snapshot = EMPTY
        self._document: bytes | None = None
        self._unreadable: bytes | None = None
        self._update: Update | None = None
        self._generation = 0
        self._serving = asyncio.Lock()
        self._saving = asyncio.Lock()
        # Pacing.
        self._failures = 0
        self._refreshed_at: float | None = None
        self._acknowledged: Acknowledgement | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The Snapshot that the data plane was handed last."""
        return self._snapshot

    async def start(self) -> None:
        """Serve what this host served last, whether or not the store is there."""
        try:
            known = await asyncio.to_thread(self._parts.disk.last_good)
        except (InvalidRequest, OSError) as error:
            known = None
            reason = f"The last good Snapshot on disk is of no use: {words_of(error)}"
            self._alarm(LAST_GOOD, reason)
            self._parts.registry.hold(f"{reason} The store is empty; restore it by hand.")
        if known is not None:
            self._parts.catalog.trust(known.manifests)
            await self._serve(known.snapshot, "disk")
        await self._parts.keyring.begin()

    async def run(self) -> None:
        """Follow the store for ever."""
        while True:
            await self.tick()
            await self.pause()

    async def complete(self) -> None:
        """Serve versions as they come to this host, for ever, whether or not the store is there."""
        while True:
            await self._parts.catalog.moved()
            await self._prepare_missing()

    async def pause(self) -> None:
        """Wait for a hint or the next poll; while the store is away, back off with jitter."""
        if self._failures == 0:
            await asyncio.sleep(MIN_GAP_S)
            await self._parts.store.hint(self._poll_s)
            return
        pause_s = min(self._poll_s * 2 ** min(self._failures - 1, 16), MAX_PAUSE_S)
        await asyncio.sleep(pause_s * (0.5 + self._parts.entropy(1)[0] / 512))

    async def tick(self) -> None:
        """Read the store once and do what follows from it."""
        try:
            document = await self._parts.store.read()
        except Unsealed as error:
            self._note_reached()
            self._unreadable = None
            self._refuse(error.document, str(error))
        except StoreUnavailable as error:
            self._note_away(str(error))
        else:
            self._note_reached()
            await self._take(document)
        await self._refresh()
        await self._acknowledge()

    async def status(self) -> dict[str, Any]:
        """The status document, with every process that the store knows of."""
        others: list[Acknowledgement] = []
        if self.standing.reachable:
            try:
                others = read_acknowledgements(await self._parts.store.acknowledgements())
            except StoreUnavailable as error:
                self._note_away(str(error))
        newest = self._parts.registry.snapshot.revision
        self.standing.refused = tuple(Refused(*row) for row in self._parts.catalog.refused())
        own, now = self.acknowledgement(), self._parts.now()
        return status_of(self.standing, own, others, newest=newest, now=now)

    def acknowledgement(self) -> Acknowledgement:
        """What this process serves now."""
        report = self._parts.data_plane.report()
        missing = {} if self._update is None else self._update.missing
        return Acknowledgement(
            process=self.standing.process,
            at=self._parts.now(),
            epoch=self._snapshot.epoch,
            revision=report.revision,
            source=self.standing.source,
            ready=report.ready,
            leads=self.standing.leads,
            endpoints=dict(report.endpoints),
            versions=report.versions,
            missing={f"{model}/{number}": why for (model, number), why in missing.items()},
            alarms=dict(self.standing.alarms),
        )

    async def _take(self, document: bytes | None) -> None:
        """Take over a document if it is newer and holds together."""
        if document is None:
            self._note_vanished()
            return
        if document == self._document:
            self._note_good()
            return
        if self.standing.rejected is not None and document == self._unreadable:
            return
        try:
            snapshot = decode(document)
        except InvalidRequest as error:
            self._unreadable = document
            self._refuse(document, str(error))
            return
        if await self._adopt(snapshot):
            self._document = document

    def _refuse(self, document: bytes, reason: str) -> None:
        """Note a document that is not taken over, once for as long as it stands."""
        sha256, before = hashlib.sha256(document).hexdigest(), self.standing.rejected
        if before is not None and (before.sha256, before.reason) == (sha256, reason):
            return
        now, revision = self._parts.now(), stated_revision(document)
        self.standing.rejected = Rejected(sha256, reason, now, revision)
        self.standing.rejections += 1
        log.error("The stored Snapshot is refused; the last good one serves on. %s", reason)

    async def _adopt(self, snapshot: Snapshot) -> bool:
        """Serve a Snapshot that is higher than the one served; True if it is served now."""
        offered, served = order_of(snapshot), order_of(self._snapshot)
        if offered < served:
            self._alarm(
                DATA_LOSS,
                f"The store went back to revision {snapshot.revision}; revision "
                f"{self._snapshot.revision} serves on. Put its data back; docs/redis.md says how.",
            )
            return False
        if offered == served and snapshot != self._snapshot:
            self._alarm(
                DIVERGENCE,
                f"The store holds another revision {snapshot.revision} than the one served, "
                "which serves on.",
            )
            return False
        self._note_good()
        if offered == served:
            self.standing.source = "redis"
            return True
        await self._serve(snapshot, "redis")
        await self._save()
        return True

    async def _serve(self, snapshot: Snapshot, source: Source) -> None:
        # First, because it waits for nothing: who may not ask any more hears of it at once.
        self._parts.keyring.follow(snapshot)
        async with self._serving:
            self._generation = self._parts.catalog.generation
            update = await self._parts.catalog.prepare(snapshot)
            self._parts.data_plane.apply(update)
            self._parts.registry.learn(snapshot)
            self._snapshot = snapshot
            self._update = update
            self.standing.source = source

    async def _save(self) -> None:
        """Keep what is served for a start without the store; a full disk costs only that."""
        async with self._saving:
            known = LastKnown(self._snapshot, self._parts.catalog.manifests_of(self._snapshot))
            try:
                await asyncio.to_thread(self._parts.disk.save_last_good, known)
            except OSError as error:
                self._alarm(LAST_GOOD, f"The Snapshot could not be saved: {words_of(error)}")
            else:
                self.standing.alarms.pop(LAST_GOOD, None)

    async def _refresh(self) -> None:
        """Now and then: secrets, missing versions, a disk that was full."""
        await self._prepare_missing()
        now = self._parts.now()
        if self._refreshed_at is not None and 0 <= now - self._refreshed_at < REFRESH_S:
            return
        self._refreshed_at = now
        if DATA_LOSS not in self.standing.alarms:
            # Keys that such a store holds may be older than those that signed.
            await self._parts.keyring.refresh()
        alarm = self._parts.keyring.alarm
        if alarm is None:
            self.standing.alarms.pop(SECRETS, None)
        else:
            self._alarm(SECRETS, alarm)
        if LAST_GOOD in self.standing.alarms and self._snapshot.revision > 0:
            await self._save()

    async def _prepare_missing(self) -> None:
        """Look again for versions that were missing, once the catalog has read something new."""
        async with self._serving:
            update, generation = self._update, self._parts.catalog.generation
            if update is None or not update.missing or generation == self._generation:
                return
            self._generation = generation
            again = await self._parts.catalog.prepare(update.snapshot)
            if again == update:
                return
            self._update = again
            self._parts.data_plane.apply(again)
        await self._save()

    async def _acknowledge(self) -> None:
        """Report when something changed, and now and then in any case."""
        if not self.standing.reachable:
            return
        report = self.acknowledgement()
        before = self._acknowledged
        if (
            before is not None
            and 0 <= report.at - before.at < REFRESH_S
            and msgspec.structs.replace(report, at=before.at) == before
        ):
            return
        try:
            await self._parts.store.acknowledge(
                report.process, msgspec.json.encode(report), ACKNOWLEDGED_S
            )
        except StoreUnavailable as error:
            log.debug("The report did not reach the store. %s", error)
        else:
            self._acknowledged = report

    def _note_away(self, reason: str) -> None:
        self._failures += 1
        if self.standing.reachable or self.standing.reason is None:
            log.warning("The store is away; serving goes on. %s", reason)
            self.standing.since = self._parts.now()
        self.standing.reachable = False
        self.standing.reason = reason

    def _note_reached(self) -> None:
        self._failures = 0
        if not self.standing.reachable:
            self.standing.since = self._parts.now()
        self.standing.reachable = True
        self.standing.reason = None

    def _note_vanished(self) -> None:
        self.standing.rejected = None
        if self._snapshot.revision > 0:
            self._alarm(
                DATA_LOSS,
                f"The store holds no Snapshot any more; revision {self._snapshot.revision} "
                "serves on. Put its data back; docs/redis.md says how.",
            )

    def _note_good(self) -> None:
        self.standing.rejected = None
        self.standing.alarms.pop(DATA_LOSS, None)
        self.standing.alarms.pop(DIVERGENCE, None)

    def _alarm(self, kind: str, text: str) -> None:
        if self.standing.alarms.get(kind) != text:
            log.error("%s", text)
        self.standing.alarms[kind] = text
