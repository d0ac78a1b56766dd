"""Status: who serves which revision, what lags and why, and what is wrong with the store.

Every process acknowledges what it serves; the status is what those acknowledgements add up to, so
that "promotion complete on 7 of 7" is a fact and not a hope.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from gateway.ports import EndpointReport, VersionReport

Source: TypeAlias = Literal["redis", "disk", "none"]

FAILED: Final = "failed"


class Rejected(Struct, frozen=True):
    """A stored document that was not taken over: its SHA-256, why, and since when.

    `revision` is what it says of itself, None where that cannot be read.
    """

    sha256: str
    reason: str
    at: float
    revision: int | None = None


class Refused(Struct, frozen=True):
    """A version in this host's model store that was not registered, and why."""

    model: str
    version: int
    reason: str


class Acknowledgement(Struct, frozen=True):
    """What one process says of itself. Fields are only ever added, so that old ones can read it."""

    process: str
    at: float
    epoch: int
    revision: int
    source: Source
    ready: bool
    leads: bool
    endpoints: dict[str, EndpointReport]
    versions: tuple[VersionReport, ...]
    missing: dict[str, str] = {}
    alarms: dict[str, str] = {}


class Standing(Struct):
    """How this process stands with its stores; the watcher keeps it up to date."""

    process: str
    source: Source = "none"
    reachable: bool = False
    since: float = 0.0
    """Since when the store is reachable, or is not."""
    reason: str | None = None
    alarms: dict[str, str] = {}
    rejected: Rejected | None = None
    rejections: int = 0
    leads: bool = False
    refused: tuple[Refused, ...] = ()
    """What this process would not take from its model store."""


def read_acknowledgements(documents: Mapping[str, bytes]) -> list[Acknowledgement]:
    """Those that can be read, by process."""
    found = []
    for _, document in sorted(documents.items()):
        try:
            found.append(msgspec.json.decode(document, type=Acknowledgement))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def status_of(
    standing: Standing,
    own: Acknowledgement,
    others: list[Acknowledgement],
    *,
    newest: int,
    now: float,
) -> dict[str, Any]:
    """The status document.

    Args:
        standing: how this process stands with the store.
        own: what this process serves.
        others: every acknowledgement that is known; an older one of this process gives way.
        newest: the highest revision known here, which may not be served yet.
        now: UTC seconds.
    """
    everyone = [own, *(ack for ack in others if ack.process != own.process)]
    everyone.sort(key=lambda ack: ack.process)
    done = sum(_is_complete(ack, own) for ack in everyone)
    return {
        "process": own.process,
        "epoch": own.epoch,
        "revision": own.revision,
        "newest": newest,
        "complete": done == len(everyone) and own.revision >= newest,
        "source": standing.source,
        "ready": own.ready,
        "store": {
            "reachable": standing.reachable,
            "since": standing.since,
            "reason": standing.reason,
        },
        "alarms": dict(standing.alarms),
        "rejected": None if standing.rejected is None else msgspec.to_builtins(standing.rejected),
        "refused": [msgspec.to_builtins(version) for version in standing.refused],
        "leader": next((ack.process for ack in everyone if ack.leads), None),
        "promotion": {
            "revision": own.revision,
            "complete": done,
            "of": len(everyone),
            "text": f"promotion complete on {done} of {len(everyone)}",
        },
        "processes": [_process(ack, now) for ack in everyone],
        "endpoints": _endpoints(everyone, own.revision),
    }


def _is_complete(ack: Acknowledgement, newest: Acknowledgement) -> bool:
    """Whether a process serves all of the newest Snapshot that is known here."""
    return (ack.epoch, ack.revision) >= (newest.epoch, newest.revision) and not _lagging(ack)


def _lagging(ack: Acknowledgement) -> dict[str, str]:
    return {
        name: report.lagging
        for name, report in sorted(ack.endpoints.items())
        if report.lagging is not None
    }


def _process(ack: Acknowledgement, now: float) -> dict[str, Any]:
    failed = [
        {"model": version.model, "number": version.number, "reason": version.reason}
        for version in ack.versions
        if version.state == FAILED
    ]
    return {
        "name": ack.process,
        "epoch": ack.epoch,
        "revision": ack.revision,
        "source": ack.source,
        "ready": ack.ready,
        "leads": ack.leads,
        "age_s": max(now - ack.at, 0.0),
        "lagging": _lagging(ack),
        "failed": failed,
        "missing": dict(ack.missing),
        "alarms": dict(ack.alarms),
    }


def _endpoints(everyone: list[Acknowledgement], revision: int) -> dict[str, Any]:
    """For each endpoint, the processes that serve it whole and those that lag."""
    names = sorted({name for ack in everyone for name in ack.endpoints})
    table: dict[str, Any] = {}
    for name in names:
        lagging = {
            ack.process: report.lagging or f"serves revision {ack.revision}"
            for ack in everyone
            if (report := ack.endpoints.get(name)) is not None
            and (report.lagging is not None or ack.revision < revision)
        }
        table[name] = {
            "complete": len(everyone) - len(lagging),
            "of": len(everyone),
            "lagging": lagging,
        }
    return table
