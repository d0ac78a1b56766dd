"""What somebody looks for in the audit log, and whether an entry is that."""

from typing import Final

from msgspec import Struct

from gateway.core.audit import AuditEntry

DENIED: Final = "access.denied"


class Sought(Struct, frozen=True):
    """Conditions that an entry must all meet; None and False ask for nothing.

    `action` and `target` are beginnings; `model` means whatever belongs to a model of that name:
    itself, its reviews and its promotion requests. Times are in UTC seconds.
    """

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    model: str | None = None
    since: float | None = None
    until: float | None = None
    overrides: bool = False
    denials: bool = False


EVERYTHING: Final = Sought()


def meets(entry: AuditEntry, sought: Sought) -> bool:
    """Whether an entry is what is looked for."""
    targets = (entry.target, *(moved.target for moved in entry.also))
    return (
        sought.actor in (None, entry.actor)
        and entry.action.startswith(sought.action or "")
        and any(target.startswith(sought.target or "") for target in targets)
        and (sought.model is None or any(_is_of(target, sought.model) for target in targets))
        and (sought.since is None or entry.at >= sought.since)
        and (sought.until is None or entry.at < sought.until)
        and (not sought.overrides or is_override(entry))
        and (not sought.denials or entry.action == DENIED)
    )


def is_override(entry: AuditEntry) -> bool:
    """Whether a gate was passed by force."""
    return isinstance(entry.evidence, dict) and entry.evidence.get("override") is True


def _is_of(target: str, model: str) -> bool:
    kind, _, name = target.partition("/")
    if kind in ("reviews", "wishes"):
        return name.rpartition("/")[0] == model
    return kind == "models" and name == model
