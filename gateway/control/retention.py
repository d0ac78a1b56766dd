"""Retention: lets versions go that nothing needs, each as a commit, then deletes their files.

The leader looks once an hour. Whether a version may go is asked again in the commit itself, of the
newest Snapshot and the whole audit log, so one that is promoted meanwhile stays. Files are deleted
only after the commit stands; a host that dies in between leaves files that nobody serves.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.control.registry import Change, Edit, Registry, Request
from gateway.control.status import Standing as Leading
from gateway.core.audit import AuditEntry
from gateway.core.errors import GatewayError, NotFound, StoreUnavailable, excerpt, words_of
from gateway.core.models import Key
from gateway.core.retention import (
    Standing,
    mentions,
    model_of_endpoint,
    policy_for,
    retire,
    standings,
)
from gateway.core.retentions import Retention
from gateway.core.snapshot import Snapshot, check
from gateway.governance_ports import GovernanceStore, VersionFiles
from gateway.ports import Store

log: Final = logging.getLogger(__name__)

ACTOR: Final = "retention"
SAID: Final = "nothing needs it, and its time is over"
LOOK_S: Final = 3600.0
FIRST_LOOK_S: Final = 300.0
GRACE_S: Final = 3600.0
"""A copy in the cache stays so long after it was last touched, whatever is known of it."""
PAGE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionParts:
    """What retention works with. `now` is in UTC seconds.

    `served` is the Snapshot that this host serves, which may not be the newest.
    """

    registry: Registry
    store: Store
    reports: GovernanceStore
    files: VersionFiles
    standing: Leading
    served: Callable[[], Snapshot]
    now: Callable[[], float]


class Collected(Struct, frozen=True):
    """What a look came to: all standings, and which of them went or would go."""

    revision: int
    standings: tuple[Standing, ...]
    gone: tuple[Standing, ...]


class Retainer:
    """Requires: `run` for ever, in one task; `collect` may be called beside it."""

    __slots__ = ("_collecting", "_mentioned", "_parts", "_since", "_through")

    def __init__(self, parts: RetentionParts) -> None:
        """Nothing of the audit log was read yet."""
        self._parts = parts
        self._mentioned: dict[Key, float] = {}
        self._through = (0, 0)
        # What the log said before is not known, in UTC seconds.
        self._since = float("-inf")
        self._collecting = asyncio.Lock()

    async def run(self) -> None:
        """Look every hour, for ever; the first time some minutes after the start."""
        wait_s = FIRST_LOOK_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = LOOK_S
            try:
                await self.tick()
            except GatewayError as error:
                log.warning("Retention is put off. %s", error)

    async def tick(self) -> None:
        """Let go what may go, if this process leads; sweep this host's cache in any case.

        Raises:
            GatewayError: the store is away, or holds an entry that cannot be read.
        """
        if self._parts.standing.leads and self._parts.registry.snapshot.retentions:
            await self.collect(Request(actor=ACTOR, reason=SAID))
        await self.sweep()

    async def look(self) -> Collected:
        """Say what may go and what holds the rest; nothing is changed.

        Raises:
            GatewayError: the store is away, or holds an entry that cannot be read.
        """
        base = await self._parts.registry.fresh()
        found = await self._standings(base)
        free = tuple(one for one in found if one.held_by is None)
        return Collected(revision=base.revision, standings=found, gone=free)

    async def collect(self, request: Request) -> Collected:
        """Let everything go that may go: one commit for each model.

        Raises:
            Conflict: a version came into use meanwhile; what went before stays gone.
            GatewayError: as `look`.
        """
        async with self._collecting:
            looked = await self.look()
            models = sorted({one.model for one in looked.gone})
            for model in models:
                leaving = [one for one in looked.gone if one.model == model]
                await self._let_go(model, leaving, request)
        return looked

    async def put(self, name: str, document: Retention, request: Request) -> Change:
        """Write a document, or replace one whole.

        Raises:
            InvalidRequest: it contradicts itself.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            changed = replace(base, retentions={**base.retentions, name: document})
            check(changed)
            return changed

        edit = Edit("retention.put", f"retentions/{name}", make)
        return await self._parts.registry.commit(edit, request)

    async def delete(self, name: str, request: Request) -> Change:
        """Drop a document; what it let go of is gone.

        Raises:
            NotFound: there is none.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            if name not in base.retentions:
                message = f"There is no retention '{excerpt(name)}'."
                raise NotFound(message)
            rest = {other: one for other, one in base.retentions.items() if other != name}
            return replace(base, retentions=rest)

        edit = Edit("retention.delete", f"retentions/{name}", make)
        return await self._parts.registry.commit(edit, request)

    async def sweep(self) -> None:
        """Delete this host's copies of versions that are gone."""
        parts = self._parts
        known = frozenset(
            digest
            for snapshot in (parts.registry.snapshot, parts.served())
            for model in snapshot.models.values()
            for digest in model.versions.values()
        )
        if not known:  # Nothing is known yet; or there is nothing, and nothing to lose.
            return
        try:
            swept = await asyncio.to_thread(parts.files.sweep, known, parts.now() - GRACE_S)
        except OSError as error:
            log.warning("Old copies could not be deleted: %s.", error.strerror)
            return
        if swept:
            log.info("%d copies of versions that are gone were deleted.", swept)

    async def _let_go(self, model: str, leaving: list[Standing], request: Request) -> Change:
        keys = [(one.model, one.number) for one in leaving]

        async def make(base: Snapshot) -> Snapshot:
            await self._read_to(base)
            return retire(base, keys, self._mentioned, self._parts.now(), since=self._since)

        policy = policy_for(self._parts.registry.snapshot, model)
        evidence = {"retired": {str(one.number): one.digest for one in leaving}}
        edit = Edit("model.retire", f"models/{model}", make, evidence=evidence)
        change = await self._parts.registry.commit(edit, request)
        numbers = [one.number for one in leaving]
        log.info("Versions %s of '%s' are retired.", ", ".join(map(str, numbers)), model)
        try:
            await self._parts.reports.drop_inspections(model, numbers)
        except StoreUnavailable as error:
            log.warning("Reports of retired versions stay behind. %s", error)
        if policy is not None and policy.delete_files:
            await self._delete(leaving)
        return change

    async def _delete(self, leaving: Iterable[Standing]) -> None:
        for one in leaving:
            remove = partial(self._parts.files.remove, one.model, one.number, one.digest)
            try:
                if not await asyncio.to_thread(remove):
                    log.info(
                        "The files of '%s' version %d are not those that were retired; they stay.",
                        one.model,
                        one.number,
                    )
            except (GatewayError, OSError) as error:
                log.warning(
                    "The files of '%s' version %d could not be deleted. %s",
                    one.model,
                    one.number,
                    words_of(error),
                )

    async def _standings(self, base: Snapshot) -> tuple[Standing, ...]:
        await self._read_to(base)
        return standings(base, self._mentioned, self._parts.now(), since=self._since)

    async def _read_to(self, base: Snapshot) -> None:
        """Know what the audit log names, up to a Snapshot's revision."""
        model_of = partial(model_of_endpoint, base)
        if base.epoch != self._through[0]:
            self._mentioned, self._through = {}, (base.epoch, 0)
            self._since = float("-inf")
        while self._through[1] < base.revision:
            page = await self._parts.store.audit(self._through[1], PAGE)
            for entry in page:
                self._note(entry, mentions(entry, model_of))
            if len(page) < PAGE:
                break
        if self._through[1] < base.revision:  # The log ends before what stands.
            self._since = self._parts.now()
        self._through = (base.epoch, max(self._through[1], base.revision))

    def _note(self, entry: AuditEntry, named: Iterable[Key]) -> None:
        if entry.revision > self._through[1] + 1:  # What came before was archived, or lost.
            self._since = max(entry.at, self._since)
        for key in named:
            self._mentioned[key] = max(entry.at, self._mentioned.get(key, entry.at))
        self._through = (self._through[0], max(self._through[1], entry.revision))
