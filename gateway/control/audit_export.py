"""The audit log to the collector: each entry as a log record, in order and at least once.

The audit log itself is the queue: the cursor moves when the collector has taken what is before it,
so a collector that is away, or refuses us, costs nothing but time. Lost is only what the collector
takes whole and rejects in part, what it finds invalid by itself, and what was trimmed meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from gateway import __version__
from gateway.control.audit_records import audit_record
from gateway.control.export_parts import Clock, Sender
from gateway.core.audit import AuditEntry
from gateway.core.otlp.requests import request, resource_field, scope_field
from gateway.core.webhooks import Progress
from gateway.governance_ports import AnnouncementStore
from gateway.governance_telemetry import AUDIT_DROPPED, AUDIT_EXPORTED
from gateway.serving.cells import Cells
from gateway.telemetry import DROP_REASON, Attributes, Delivery

LISTENER: Final = "audit-logs"
MAX_ENTRIES: Final = 100
FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 60.0
MAX_RETRY_AFTER_S: Final = 3_600.0
_SCOPE: Final = scope_field("tiltyard", __version__)
_PROBLEMS: Final = {
    "retry": "The collector cannot be reached or takes nothing now.",
    "refused": "The collector refuses this gateway.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditExportParts:
    """What it works with. `resource` is who speaks; `leads` says whether this process leads."""

    store: AnnouncementStore
    sender: Sender
    clock: Clock
    cells: Cells
    resource: Attributes
    leads: Callable[[], bool]


class AuditExport:
    """Requires: one turn at a time."""

    __slots__ = ("_most", "_parts", "_resource")

    def __init__(self, parts: AuditExportParts) -> None:
        """Nothing is sent yet."""
        self._parts = parts
        self._resource = resource_field(parts.resource)
        self._most = MAX_ENTRIES

    async def turn(self, progress: Progress) -> Progress | None:
        """Send the next entries; how far it is then, None if there is nothing to do now.

        Raises:
            StoreUnavailable: the store is away; what was sent may be sent again.
        """
        parts = self._parts
        page = await parts.store.entries(progress.cursor, self._most)
        if not page or not parts.leads():
            return None
        entries = [entry for _, entry in page if entry is not None]
        delivery = await self._send(entries) if entries else Delivery("taken")
        if delivery.result in _PROBLEMS:
            progress = self._put_off(progress, delivery)
        elif delivery.result == "invalid" and len(page) > 1:
            # One of them is: it is found by halves.
            self._most = len(page) // 2
            return progress
        else:
            progress = self._settled(progress, page, delivery)
        await parts.store.save_progress(LISTENER, progress)
        return progress

    async def close(self) -> None:
        """Let go of the connection."""
        await self._parts.sender.close()

    async def _send(self, entries: list[AuditEntry]) -> Delivery:
        at_ns = self._parts.clock.unix_ns()
        rows = b"".join(audit_record(entry, at_ns) for entry in entries)
        return await self._parts.sender.send("logs", request(self._resource, _SCOPE, rows))

    def _settled(
        self,
        progress: Progress,
        page: list[tuple[str, AuditEntry | None]],
        delivery: Delivery,
    ) -> Progress:
        self._most = MAX_ENTRIES
        sent = sum(entry is not None for _, entry in page)
        missed = missed_before(progress.cursor, page)
        rejected = sent if delivery.result == "invalid" else min(delivery.rejected, sent)
        self._parts.cells.counter(AUDIT_EXPORTED).add(sent - rejected)
        reason = "invalid" if delivery.result == "invalid" else "rejected"
        self._drop(reason, rejected)
        self._drop("missed", missed)
        return replace(
            progress,
            cursor=page[-1][0],
            tries=0,
            next_at=0.0,
            delivered=progress.delivered + sent - rejected,
            dead=progress.dead + rejected,
            missed=progress.missed + missed,
            problem="",
            problem_at=0.0,
        )

    def _put_off(self, progress: Progress, delivery: Delivery) -> Progress:
        clock = self._parts.clock
        now = clock.unix_ns() / 1e9
        wait_s = min(FIRST_RETRY_S * 2.0 ** min(progress.tries, 16), LAST_RETRY_S)
        wait_s *= 0.5 + clock.draw() / 2
        if delivery.retry_after_s is not None:
            wait_s = min(delivery.retry_after_s, MAX_RETRY_AFTER_S)
        return replace(
            progress,
            tries=progress.tries + 1,
            failed=progress.failed + 1,
            next_at=now + wait_s,
            problem=_PROBLEMS[delivery.result],
            problem_at=progress.problem_at or now,
        )

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self._parts.cells.counter(AUDIT_DROPPED, ((DROP_REASON, reason),)).add(count)


def missed_before(cursor: str, page: list[tuple[str, AuditEntry | None]]) -> int:
    """Entries that are not in a page behind a cursor, though their revisions say that they were.

    Those that cannot be read count too. Behind a new epoch nothing is known.
    """
    missed = 0
    epoch, revision = order_of(cursor)
    for entry_id, entry in page:
        next_epoch, next_revision = order_of(entry_id)
        if next_epoch == epoch and revision:
            missed += next_revision - revision - 1
        missed += entry is None
        epoch, revision = next_epoch, next_revision
    return missed


def order_of(entry_id: str) -> tuple[int, int]:
    """Epoch and revision of an entry's id."""
    epoch, _, revision = entry_id.partition("-")
    return int(epoch or 0), int(revision or 0)
