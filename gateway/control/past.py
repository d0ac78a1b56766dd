"""The past: Snapshots of earlier revisions, worked out from what the audit log still holds."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from gateway.core.audit import AuditEntry, decode_entry
from gateway.core.chain import RESTORE, Line
from gateway.core.errors import NotFound
from gateway.core.explaining import Rebuilding
from gateway.core.snapshot import EMPTY, Snapshot
from gateway.governance_ports import AuditLog, KeptBase

PAGE: Final = 100
"""Entries read at once; a decision's may hold tens of kilobytes."""


class Past:
    """Reads the log in pages; holds nothing of it."""

    __slots__ = ("_log",)

    def __init__(self, log: AuditLog) -> None:
        """Nothing is read yet."""
        self._log = log

    async def snapshot_at(self, revision: int) -> Snapshot:
        """The documents as they stood at an earlier revision, at least 1.

        Raises:
            NotFound: the log does not lead there: that part is archived, or was lost.
            Conflict: the log was tampered with.
        """
        bases = await self._log.bases()
        begin = max((one for one in bases if one <= revision), default=0)
        if begin == 0 and bases:
            _refuse_archived(bases, revision)
        rebuilding = Rebuilding(bases[begin].snapshot if begin else EMPTY)
        while rebuilding.revision < revision:
            page = await self._log.lines(rebuilding.revision, PAGE)
            if not await asyncio.to_thread(_take, rebuilding, page, revision):
                break
        if rebuilding.revision != revision:
            message = f"The audit log does not hold every change up to revision {revision}."
            raise NotFound(message)
        return await asyncio.to_thread(rebuilding.snapshot)

    async def lines(self, after: int) -> AsyncIterator[Line]:
        """Every entry with a greater revision, oldest first, read in pages as it goes."""
        while True:
            page = await self._log.lines(after, PAGE)
            for line in page:
                yield line
            if len(page) < PAGE:
                return
            after = int(page[-1].id.partition("-")[2])


def rebased(rebuilding: Rebuilding, entry: AuditEntry, bases: Mapping[int, KeptBase]) -> Rebuilding:
    """Go on from what a restore put back, where the entry is one."""
    base = bases.get(entry.revision - 1)
    if entry.action != RESTORE or base is None:
        return rebuilding
    return Rebuilding(base.snapshot)


def _take(rebuilding: Rebuilding, page: list[Line], revision: int) -> bool:
    """Take entries up to a revision; False if there was none."""
    before = rebuilding.revision
    for line in page:
        entry = decode_entry(bytes(line.entry))
        if entry.revision > revision:
            break
        rebuilding.add(entry)
    return rebuilding.revision > before


def _refuse_archived(bases: Mapping[int, KeptBase], revision: int) -> None:
    """Say so where everything before a revision was archived.

    Raises:
        NotFound: this revision was.
    """
    trimmed = [number for number, base in bases.items() if base.signed is not None]
    if trimmed:
        message = (
            f"Revision {revision} lies in an archive of the audit log: "
            f"the store holds what came after revision {max(trimmed)}."
        )
        raise NotFound(message)
