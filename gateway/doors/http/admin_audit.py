"""Operations on the audit log: look, export, archive, trim; and restoring a store from here."""

from datetime import UTC, datetime
from typing import Final

from gateway.control.auditing import Wanted
from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.snapshot import MAX_REVISION
from gateway.core.sought import Sought
from gateway.doors.http.admin_calls import Call, answer, changed
from gateway.doors.http.admin_documents import (
    Archive,
    AuditItem,
    AuditPage,
    LinesPage,
    Restore,
    TrimAudit,
)
from gateway.doors.http.messages import Response

AUDIT_PAGE: Final = 100
MAX_AUDIT_PAGE: Final = 1000
DAY_S: Final = 86_400.0


async def read_audit(call: Call) -> Response:
    """A page of the audit log."""
    after = call.integer("after", 0, MAX_REVISION)
    before = call.integer("before", 1, MAX_REVISION)
    newest = call.flag("newest")
    if (after is not None and newest) or (before is not None and not newest):
        message = "'after' goes on with the oldest first, 'before' with 'newest'."
        raise InvalidRequest(message)
    found = await call.parts.auditing.page(
        Sought(
            actor=call.text("actor"),
            action=call.text("action"),
            target=call.text("target"),
            model=call.text("model"),
            since=_moment(call, "since"),
            until=_moment(call, "until"),
            overrides=call.flag("overrides"),
            denials=call.flag("denials"),
        ),
        call.integer("limit", 1, MAX_AUDIT_PAGE) or AUDIT_PAGE,
        edge=before if newest else after,
        newest=newest,
    )
    items = tuple(AuditItem(line.hash, entry) for line, entry in found.entries)
    return answer(AuditPage(items, found.next, found.unreadable))


async def read_lines(call: Call) -> Response:
    """A page of the log, byte by byte."""
    after = call.integer("after", 0, MAX_REVISION) or 0
    lines, following = await call.parts.auditing.lines(after)
    return answer(LinesPage(tuple(lines), following))


async def read_head(call: Call) -> Response:
    """Where the log must lead."""
    head = await call.parts.auditing.head()
    return answer(head, revision=head.revision)


async def make_checkpoint(call: Call) -> Response:
    """Sign what shall be archived; nothing is trimmed."""
    asked: Archive = call.document
    if (asked.before is None) == (asked.older_than_days is None):
        message = "Say what to archive: 'before' a revision, or 'older_than_days'."
        raise InvalidRequest(message)
    days = asked.older_than_days
    wanted = Wanted(asked.before, None if days is None else days * DAY_S)
    return answer(await call.parts.auditing.checkpoint(wanted))


async def trim(call: Call) -> Response:
    """Drop what was archived."""
    asked: TrimAudit = call.document
    request = call.asked(asked.reason)
    return await changed(call, "audit", call.parts.auditing.trim(asked.signed, request))


async def restore(call: Call) -> Response:
    """Put back what this host serves."""
    asked: Restore = call.document
    return answer(await call.parts.restore(call.asked(asked.reason), asked.dry_run))


def _moment(call: Call, name: str) -> float | None:
    """A time in UTC seconds: as such, or RFC 3339; without an offset it is UTC."""
    stated = call.text(name)
    if stated is None:
        return None
    if stated.replace(".", "", 1).isdecimal() and len(stated) <= _MAX_DIGITS:
        return float(stated)
    try:
        at = datetime.fromisoformat(stated)
    except ValueError as error:
        message = f"'{name}' is '{excerpt(stated)}'; write a time such as 2026-01-31T12:00:00Z."
        raise InvalidRequest(message) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


_MAX_DIGITS: Final = 20
