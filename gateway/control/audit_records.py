"""Audit entries as OTLP log records: one each, with what a reader of logs may know.

The documents themselves and what decisions were made from stay in the audit log; its hash leads
there.

Source: OpenTelemetry protocol 1.x.
"""

from typing import Final

from gateway import governance_telemetry as names
from gateway.core.announcements import MAX_REASON, is_override, shown
from gateway.core.audit import AuditEntry, entry_hash
from gateway.core.otlp.wire import (
    Value,
    bytes_field,
    fixed64_field,
    key_value,
    varint_field,
)

_LOG_RECORDS: Final = 2
_TIME, _SEVERITY, _SEVERITY_TEXT, _ATTRIBUTES, _OBSERVED, _EVENT_NAME = 1, 2, 3, 6, 11, 12
_INFO: Final = (9, b"INFO")
_WARN: Final = (13, b"WARN")
_SECOND: Final = 1_000_000_000
_LAST_S: Final = 9e9
"""The field ends in the year 2262; whoever writes a later time must not stop those behind it."""
_MAX_NAME: Final = 200
_MAX_ALSO: Final = 20
DENIED: Final = "access.denied"


def audit_record(entry: AuditEntry, observed_ns: int) -> bytes:
    """An entry as a `log_records` field of a `ScopeLogs`; overrides and denials are warnings.

    Args:
        entry: of the audit log.
        observed_ns: Unix nanoseconds of now.
    """
    override = is_override(entry)
    attributes: dict[str, Value] = {
        names.AUDIT_ACTOR: shown(entry.actor, _MAX_NAME),
        names.AUDIT_ACTION: shown(entry.action, _MAX_NAME),
        names.AUDIT_TARGET: shown(entry.target, _MAX_NAME),
        names.AUDIT_REASON: shown(entry.reason, MAX_REASON),
        names.AUDIT_BEFORE: entry.before,
        names.AUDIT_AFTER: entry.after,
        names.AUDIT_EPOCH: entry.epoch,
        names.AUDIT_REVISION: entry.revision,
        names.AUDIT_HASH: entry_hash(entry),
        names.AUDIT_OVERRIDE: override,
    }
    if entry.also:
        others = [shown(one.target, _MAX_NAME) for one in entry.also[:_MAX_ALSO]]
        attributes[names.AUDIT_ALSO] = " ".join(others)
    number, text = _WARN if override or entry.action == DENIED else _INFO
    record = (
        fixed64_field(_TIME, int(min(max(entry.at, 0.0), _LAST_S) * _SECOND))
        + varint_field(_SEVERITY, number)
        + bytes_field(_SEVERITY_TEXT, text)
        + b"".join(bytes_field(_ATTRIBUTES, key_value(*pair)) for pair in attributes.items())
        + fixed64_field(_OBSERVED, observed_ns)
        + bytes_field(_EVENT_NAME, names.AUDIT_EVENT.encode())
    )
    return bytes_field(_LOG_RECORDS, record)
