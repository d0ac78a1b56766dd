"""Names of what governance tells: the audit log as log records, and deliveries to webhooks.

They belong to `gateway.telemetry`, which is full; `docs/telemetry.md` has both.
"""

from typing import Final

from gateway.telemetry import Instrument

AUDIT_EVENT: Final = "tiltyard.admin.audit"
GOVERNANCE_EVENTS: Final = frozenset({AUDIT_EVENT})

AUDIT_ACTOR: Final = "tiltyard.audit.actor"
AUDIT_ACTION: Final = "tiltyard.audit.action"
AUDIT_TARGET: Final = "tiltyard.audit.target"
AUDIT_REASON: Final = "tiltyard.audit.reason"
AUDIT_BEFORE: Final = "tiltyard.audit.before"
AUDIT_AFTER: Final = "tiltyard.audit.after"
AUDIT_ALSO: Final = "tiltyard.audit.also"
AUDIT_EPOCH: Final = "tiltyard.audit.epoch"
AUDIT_REVISION: Final = "tiltyard.audit.revision"
AUDIT_HASH: Final = "tiltyard.audit.hash"
AUDIT_OVERRIDE: Final = "tiltyard.audit.override"
WEBHOOK_NAME: Final = "tiltyard.webhook.name"
GOVERNANCE_ATTRIBUTES: Final = frozenset(
    {
        AUDIT_ACTOR, AUDIT_ACTION, AUDIT_TARGET, AUDIT_REASON, AUDIT_BEFORE, AUDIT_AFTER,
        AUDIT_ALSO, AUDIT_EPOCH, AUDIT_REVISION, AUDIT_HASH, AUDIT_OVERRIDE, WEBHOOK_NAME,
    }
)  # fmt: skip

AUDIT_EXPORTED: Final = Instrument(
    "tiltyard.audit.exported", "counter", "{entry}", "Audit entries that the collector took."
)
AUDIT_DROPPED: Final = Instrument(
    "tiltyard.audit.dropped",
    "counter",
    "{entry}",
    "Audit entries that the collector did not get, by reason.",
)
WEBHOOK_DELIVERED: Final = Instrument(
    "tiltyard.webhook.delivered", "counter", "{event}", "Events that a webhook took."
)
WEBHOOK_FAILED: Final = Instrument(
    "tiltyard.webhook.failed", "counter", "{try}", "Tries to deliver an event that failed."
)
WEBHOOK_DEAD: Final = Instrument(
    "tiltyard.webhook.dead", "counter", "{event}", "Events that were given up."
)
WEBHOOK_MISSED: Final = Instrument(
    "tiltyard.webhook.missed",
    "counter",
    "{entry}",
    "Audit entries that were gone before they could be told.",
)
GOVERNANCE_INSTRUMENTS: Final = (
    AUDIT_EXPORTED, AUDIT_DROPPED, WEBHOOK_DELIVERED, WEBHOOK_FAILED, WEBHOOK_DEAD, WEBHOOK_MISSED,
)  # fmt: skip
AUDIT_DROP_REASONS: Final = ("rejected", "invalid", "missed")
"""Values of `tiltyard.drop.reason` on `tiltyard.audit.dropped`."""
