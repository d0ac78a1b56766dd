"""Entries of the audit log as rows for people: who did what to which version, and why."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from gateway.core.sought import DENIED

COLUMNS: Final = ("revision", "at", "actor", "action", "target", "why")
STYLES: Final[Mapping[str, str]] = {"OVERRIDE": "bold red", "DENIED": "yellow"}
SHOWN_KINDS: Final = 3
"""Kinds of denials of one entry that a row tells."""


def row_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    """A cell for each of `COLUMNS`."""
    at = f"{datetime.fromtimestamp(entry['at'], UTC):%Y-%m-%d %H:%M:%S}"
    mark, why = mark_of(entry), entry["reason"] or None
    if mark == "DENIED":
        why = _denied(entry["evidence"])
    elif mark:
        why = f"{mark}: {why}"
    target = " ".join((entry["target"], *_versions(entry)))
    return (entry["revision"], at, entry["actor"], entry["action"], target, why)


def mark_of(entry: dict[str, Any]) -> str:
    """What makes an entry stand out, in a word; empty for most."""
    evidence = entry.get("evidence")
    if isinstance(evidence, dict) and evidence.get("override") is True:
        return "OVERRIDE"
    return "DENIED" if entry["action"] == DENIED and isinstance(evidence, dict) else ""


def _versions(entry: dict[str, Any]) -> Iterator[str]:
    """Which version of the target it is about; of a promotion, where the aliases point since."""
    action, evidence, document = entry["action"], entry.get("evidence"), entry.get("document")
    if action == "model.refuse" and isinstance(evidence, dict):
        yield str(evidence.get("number", ""))
    elif action == "model.register":
        targets = (str(one.get("target", "")) for one in entry.get("also") or ())
        yield from (one.rpartition("/")[2] for one in targets if one.startswith("reviews/"))
    elif action in ("model.promote", "model.rollback") and isinstance(document, dict):
        aliases = document.get("aliases") or {}
        yield f"({', '.join(f'{alias}: {number}' for alias, number in aliases.items())})"


def _denied(evidence: dict[str, Any]) -> str:
    """How often, and who asked for what on which model; of many kinds the first few."""
    kinds = evidence["denials"]
    count = sum(one["count"] for one in kinds) + evidence["others"]
    told = [
        " ".join(one[name] for name in ("principal", "peer", "action", "model") if one.get(name))
        for one in kinds[:SHOWN_KINDS]
    ]
    more = ["..."] if len(kinds) > SHOWN_KINDS or evidence["others"] else []
    return f"DENIED {count}: {', '.join(told + more)}"
