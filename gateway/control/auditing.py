"""Auditing: the audit log for those who ask, and its archives.

Everything is read in pages of bounded size; no call holds more than one. What is archived is hashed
and signed before anything is trimmed, and the trim is a commit of its own, with the checkpoint in
its audit entry.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.control.past import Past, rebased
from gateway.control.registry import Change, Edit, Registry, Request
from gateway.core.audit import AuditEntry, decode_entry
from gateway.core.chain import (
    TRIM,
    Base,
    Chain,
    Head,
    Line,
    begin,
    digest_of_documents,
    encode_line,
    place_of,
)
from gateway.core.checkpoints import SCHEMA, Checkpoint, Signed, key_id, sign, signature_state
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.explaining import Rebuilding
from gateway.core.snapshot import EMPTY, Snapshot, canonical
from gateway.core.sought import Sought, meets
from gateway.governance_ports import AuditLog, KeptBase

PAGE: Final = 100
MAX_LOOKED_AT: Final = 5_000
"""Entries looked at for one page of those that are sought."""
MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
TARGET: Final = "audit"
DAY_S: Final = 86_400.0


class Found(Struct, frozen=True):
    """A page of what is sought, as (line, entry); `next` is where to go on, None at the end.

    `unreadable` are revisions whose entries cannot be read; verifying says more.
    """

    entries: tuple[tuple[Line, AuditEntry], ...]
    next: int | None
    unreadable: tuple[int, ...] = ()


class Wanted(Struct, frozen=True):
    """Which entries to archive: those before a revision, or older than so many seconds."""

    before: int | None = None
    older_than_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlace:
    """Where the log is, and under which name. Nothing younger than `keep_s` is trimmed from it."""

    log: AuditLog
    namespace: str
    keep_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditingParts:
    """What auditing works with.

    `key` gives the key of this host that signs checkpoints; it may block. `now` is in UTC seconds.
    """

    place: AuditPlace
    registry: Registry
    key: Callable[[], bytes]
    now: Callable[[], float]


class Auditing:
    """Reads, archives and trims."""

    __slots__ = ("_parts", "past")

    def __init__(self, parts: AuditingParts) -> None:
        """Nothing is read yet."""
        self._parts = parts
        self.past = Past(parts.place.log)

    async def page(
        self, sought: Sought, limit: int, *, edge: int | None = None, newest: bool = False
    ) -> Found:
        """At most `limit` entries that are sought.

        Args:
            sought: what for.
            limit: so many at most; the page ends earlier after `MAX_LOOKED_AT` or many bytes.
            edge: behind this revision, or before it when the newest come first.
            newest: the newest first.
        """
        found: list[tuple[Line, AuditEntry]] = []
        unreadable: list[int] = []
        looked = size = 0
        while looked < MAX_LOOKED_AT and size < MAX_PAGE_BYTES:
            lines = await self._lines(edge, newest=newest)
            for line in lines:
                edge = place_of(line.id)[1]
                entry = _decoded(line)
                if entry is None:
                    unreadable.append(edge)
                elif meets(entry, sought):
                    found.append((line, entry))
                    size += len(bytes(line.entry))
                if len(found) == limit:
                    more = line is not lines[-1] or bool(await self._lines(edge, newest=newest))
                    return Found(tuple(found), edge if more else None, tuple(unreadable))
            looked += len(lines)
            if len(lines) < PAGE:
                return Found(tuple(found), None, tuple(unreadable))
        return Found(tuple(found), edge, tuple(unreadable))

    async def lines(self, after: int) -> tuple[list[Line], int | None]:
        """The next entries as they lie there, and the revision to go on behind; None at the end."""
        page = await self._parts.place.log.lines(after, PAGE)
        return page, place_of(page[-1].id)[1] if page else None

    async def head(self) -> Head:
        """Where the log must lead, and what it is built upon.

        Raises:
            StoreUnavailable: the store is away, or lost what this process knows.
        """
        served = self._parts.registry.snapshot
        snapshot = await self._parts.registry.fresh()
        if (served.epoch, served.revision) == (snapshot.epoch, snapshot.revision):
            # What this process knows was not in anybody's reach since.
            snapshot = served
        key = await asyncio.to_thread(self._parts.key)
        bases = await self._parts.place.log.bases()
        return Head(
            revision=snapshot.revision,
            epoch=snapshot.epoch,
            head=snapshot.audit_head,
            bases=tuple(_base(number, base, key) for number, base in sorted(bases.items())),
        )

    async def checkpoint(self, wanted: Wanted) -> Signed:
        """Look at all that shall be archived, and sign what it comes to. Nothing is trimmed.

        Raises:
            Conflict: there is nothing, it is too young, or the chain does not hold.
        """
        snapshot, chain, first, sha256 = await self._looked_at(wanted)
        key = await asyncio.to_thread(self._parts.key)
        after, before = chain.origin
        checkpoint = Checkpoint(
            schema=SCHEMA,
            namespace=self._parts.place.namespace,
            epoch=snapshot.epoch,
            after=after,
            first=first,
            last=chain.revision,
            entries=chain.entries,
            before=before,
            head=chain.head,
            sha256=sha256,
            base_sha256=digest_of_documents(snapshot),
            at=self._parts.now(),
            key=key_id(key),
        )
        return sign(checkpoint, key)

    async def trim(self, signed: Signed, request: Request) -> Change:
        """Drop what a checkpoint of this host stands for, by a commit that holds it.

        Raises:
            Conflict: it is not signed by this host, or the log is not the one that it speaks of.
        """
        checkpoint = signed.checkpoint
        key = await asyncio.to_thread(self._parts.key)
        if signature_state(signed, key) != "good":
            message = "The checkpoint is not signed with this host's key; archive on the same host."
            raise Conflict(message)
        snapshot, chain, _, sha256 = await self._looked_at(Wanted(before=checkpoint.last + 1))
        seen = (chain.origin, chain.revision, chain.head, sha256, digest_of_documents(snapshot))
        if seen != (
            (checkpoint.after, checkpoint.before),
            checkpoint.last,
            checkpoint.head,
            checkpoint.sha256,
            checkpoint.base_sha256,
        ):
            message = "The audit log is not the one that the checkpoint was made of."
            raise Conflict(message)
        base = KeptBase(snapshot, signed)

        async def make(stands: Snapshot) -> Snapshot:
            return stands

        edit = Edit(
            TRIM,
            TARGET,
            make,
            evidence=msgspec.json.decode(canonical(signed)),
            noted=True,
            write=lambda commit, _: self._parts.place.log.trim(commit, base),
        )
        return await self._parts.registry.commit(edit, request)

    async def _lines(self, edge: int | None, *, newest: bool) -> list[Line]:
        if newest:
            return await self._parts.place.log.lines_before(edge, PAGE)
        return await self._parts.place.log.lines(edge or 0, PAGE)

    async def _looked_at(self, wanted: Wanted) -> tuple[Snapshot, Chain, int, str]:
        """The documents after what is wanted, its chain, its first revision, its file's SHA-256.

        Raises:
            Conflict: there is nothing, it is too young, or the chain does not hold.
        """
        head, bases = await self.head(), await self._parts.place.log.bases()
        chain = begin(head)
        start = bases.get(chain.revision)
        rebuilding = Rebuilding(EMPTY if start is None else start.snapshot)
        sha256, first, epoch = hashlib.sha256(), 0, 0
        youngest = self._parts.now() - max(self._parts.place.keep_s, wanted.older_than_s or 0.0)
        async for line in self.past.lines(chain.revision):
            epoch_of_line, revision = place_of(line.id)
            if wanted.before is not None and revision >= wanted.before:
                break
            entry = _decoded(line)
            if entry is not None and entry.at > youngest:
                self._refuse_young(wanted, entry)
                break
            chain.add(line)
            if chain.faults or entry is None:
                message = f"The chain does not hold. {chain.faults[0].sentence}"
                raise Conflict(message)
            rebuilding = rebased(rebuilding, entry, bases)
            rebuilding.add(entry)
            first, epoch = first or revision, epoch_of_line
            sha256.update(encode_line(line))
        if not first:
            message = "There is nothing to archive: no entry is that old."
            raise Conflict(message)
        sha256.update(encode_line(chain.end()))
        return replace(rebuilding.snapshot(), epoch=epoch), chain, first, sha256.hexdigest()

    def _refuse_young(self, wanted: Wanted, entry: AuditEntry) -> None:
        if wanted.before is None:
            return
        days = self._parts.place.keep_s / DAY_S
        message = (
            f"Revision {entry.revision} is younger than {days:g} days, "
            "which the setting redis.audit_days keeps in the store."
        )
        raise Conflict(message)


def _decoded(line: Line) -> AuditEntry | None:
    try:
        return decode_entry(bytes(line.entry))
    except InvalidRequest:
        return None


def _base(number: int, base: KeptBase, key: bytes) -> Base:
    state = "unknown" if base.signed is None else signature_state(base.signed, key)
    return Base(number, digest_of_documents(base.snapshot), base.signed, state)
