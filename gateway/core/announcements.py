"""Announcements: what an audit entry means to others, as CloudEvents; pure and always the same.

An event says who did what to which version, and why; it holds no input, no token and no secret.
Its id is that of the entry, `epoch-revision`, and `-2`, `-3` for further events of the same entry,
so that who hears of something twice knows it.

Types begin with `tiltyard.`, which claims no domain: CloudEvents asks for a reversed domain name
of who defines them only where there is one.

Source: CloudEvents specification 1.0.2, JSON event format 1.0.2.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from gateway.core.audit import AuditEntry
from gateway.core.reviews import Outcome

MAX_REASON: Final = 500
"""Characters of a reason that an event repeats."""
MAX_LISTED: Final = 20
"""Items of a list that an event repeats."""


class EventType(StrEnum):
    """What others may hear of."""

    VERSION_REGISTERED = "tiltyard.version.registered"
    CHECKS_PASSED = "tiltyard.checks.passed"
    CHECKS_FAILED = "tiltyard.checks.failed"
    APPROVAL_GIVEN = "tiltyard.approval.given"
    APPROVAL_WITHDRAWN = "tiltyard.approval.withdrawn"
    PROMOTION_REQUESTED = "tiltyard.promotion.requested"
    PROMOTION_WITHDRAWN = "tiltyard.promotion.withdrawn"
    VERSION_PROMOTED = "tiltyard.version.promoted"
    VERSION_ROLLED_BACK = "tiltyard.version.rolled_back"
    VERSION_RETIRED = "tiltyard.version.retired"
    EXPERIMENT_STARTED = "tiltyard.experiment.started"
    EXPERIMENT_DECIDED = "tiltyard.experiment.decided"
    EXPERIMENT_ROLLED_BACK = "tiltyard.experiment.rolled_back"
    EXPERIMENT_ENDED = "tiltyard.experiment.ended"
    GATE_OVERRIDDEN = "tiltyard.gate.overridden"
    ACCESS_DENIED = "tiltyard.access.denied"
    ALERT_RAISED = "tiltyard.alert.raised"
    ALERT_CLEARED = "tiltyard.alert.cleared"
    PING = "tiltyard.webhook.ping"


class Event(Struct, frozen=True, kw_only=True):
    """A CloudEvent in its structured form; `data` is a small JSON object."""

    specversion: str = "1.0"
    id: str
    source: str
    type: EventType
    subject: str
    time: str
    datacontenttype: str = "application/json"
    data: dict[str, Any]


class Aliases(Struct, frozen=True):
    """What a model's aliases named at some time."""

    named: Mapping[str, int]


Before: TypeAlias = Mapping[str, Aliases]
"""By target, the aliases of models before an entry; without those that are not known."""
Told: TypeAlias = tuple[EventType, str, dict[str, Any]]
"""Type, subject and what the data says beside what every event says."""

MODELS: Final = "models/"
_REVIEWS: Final = "reviews/"


def encode_event(event: Event) -> bytes:
    """An event as it is sent; the same bytes at each try."""
    return msgspec.json.encode(event, order="deterministic")


def events_of(entry: AuditEntry, source: str, before: Before) -> tuple[Event, ...]:
    """What others may hear of an entry, in a fixed order; nothing for most.

    Args:
        entry: of the audit log.
        source: the gateway, as `source_of` names it.
        before: see there. A move of an alias whose model is not in it is told only by the entry's
            own action, and without where it moved from.
    """
    common = _common(entry)
    return tuple(
        Event(
            id=f"{entry.epoch}-{entry.revision}{'' if place == 1 else f'-{place}'}",
            source=source,
            type=kind,
            subject=subject,
            time=moment(entry.at),
            data={**common, **data},
        )
        for place, (kind, subject, data) in enumerate(_told(entry, before), start=1)
    )


def source_of(namespace: str) -> str:
    """How events name the gateway: a relative reference, the same for all hosts that share it."""
    return f"/tiltyard/{namespace}"


def alert_event(source: str, process: str, kind: str, at: float, told: str | None) -> Event:
    """An alarm of a process that came up, or, without a text, is over. `at` is in UTC seconds."""
    raised = told is not None
    digest = hashlib.sha256(f"{process}\n{kind}\n{raised}".encode(errors="replace")).hexdigest()
    return Event(
        # Without a full stop: what signs a delivery puts them between its parts.
        id=f"alert-{int(at * 1000)}-{digest[:16]}",
        source=source,
        type=EventType.ALERT_RAISED if raised else EventType.ALERT_CLEARED,
        subject=f"alarms/{kind}",
        time=moment(at),
        data={"process": shown(process, 200), "alarm": kind, "text": shown(told or "", MAX_REASON)},
    )


def ping_event(source: str, name: str, actor: str, at: float, mark: str) -> Event:
    """What tries a webhook out; `mark` is random, so that each is another one."""
    return Event(
        id=f"ping-{mark}",
        source=source,
        type=EventType.PING,
        subject=f"webhooks/{name}",
        time=moment(at),
        data={"actor": shown(actor, 200)},
    )


def shown(text: str, limit: int) -> str:
    """Text that people wrote, cut to a length, with signs that move a cursor escaped."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut)


def moment(at: float) -> str:
    """UTC seconds as RFC 3339 writes them."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def aliases_of(document: object) -> Aliases:
    """The aliases of a model's document; none of what is no such document."""
    stated = document.get("aliases") if isinstance(document, dict) else None
    table = stated if isinstance(stated, dict) else {}
    return Aliases({name: number for name, number in table.items() if isinstance(number, int)})


def models_in(entry: AuditEntry) -> Iterator[tuple[str, str, str, Any]]:
    """Target, digest before, digest after and document of each model that an entry changed."""
    for one in _changes(entry):
        if one[0].startswith(MODELS):
            yield one


def is_override(entry: AuditEntry) -> bool:
    """Whether a gate was passed by force."""
    return _stated(entry.evidence, "override") is True


def _common(entry: AuditEntry) -> dict[str, Any]:
    return {
        "actor": shown(entry.actor, 200),
        "action": entry.action,
        "target": shown(entry.target, 200),
        "reason": shown(entry.reason, MAX_REASON),
        "epoch": entry.epoch,
        "revision": entry.revision,
        "override": is_override(entry),
    }


def _told(entry: AuditEntry, before: Before) -> Iterator[Told]:
    teller = _TELLERS.get(entry.action)
    if teller is not None:
        yield from teller(entry)
    yield from _moves(entry, before)
    if is_override(entry):
        missing = _stated(entry.evidence, "missing")
        listed = missing[:MAX_LISTED] if isinstance(missing, list) else []
        yield EventType.GATE_OVERRIDDEN, entry.target, {"missing": listed}


def _moves(entry: AuditEntry, before: Before) -> Iterator[Told]:
    """Aliases that moved, whatever moved them."""
    backward = entry.action.endswith(".rollback") or _ended_as(entry) == "rolled_back"
    kind = EventType.VERSION_ROLLED_BACK if backward else EventType.VERSION_PROMOTED
    for target, digest_before, _, document in models_in(entry):
        model, after = target.removeprefix(MODELS), aliases_of(document).named
        known = Aliases({}) if not digest_before else before.get(target)
        if known is None:
            if entry.action in ("model.promote", "model.rollback"):
                yield kind, target, {"model": model, "aliases": dict(after)}
            continue
        for alias, number in sorted(after.items()):
            stood = known.named.get(alias)
            if stood != number:
                moved = {"model": model, "alias": alias, "version": number, "from": stood}
                yield kind, _version(model, number), moved


def _registered(entry: AuditEntry) -> Iterator[Told]:
    model = entry.target.removeprefix(MODELS)
    reviewed = [number for name, number, _ in _reviews(entry) if name == model]
    versions = _stated(entry.document, "versions")
    known = versions if isinstance(versions, dict) else {}
    number = reviewed[0] if reviewed else max((int(n) for n in known if n.isdecimal()), default=0)
    digest = known.get(str(number), "")
    data = {"model": model, "version": number, "digest": digest}
    yield EventType.VERSION_REGISTERED, _version(model, number), data
    yield from _checked(entry)


def _checked(entry: AuditEntry) -> Iterator[Told]:
    for model, number, review in _reviews(entry):
        checks = _stated(review, "checks")
        if not isinstance(checks, dict) or not checks:
            continue
        outcomes = {name: str(_stated(check, "outcome")) for name, check in sorted(checks.items())}
        failed = [name for name, outcome in outcomes.items() if outcome == Outcome.FAILED]
        kind = EventType.CHECKS_FAILED if failed else EventType.CHECKS_PASSED
        data = {"model": model, "version": number, "checks": outcomes, "failed": failed}
        yield kind, _version(model, number), data


def _refused(entry: AuditEntry) -> Iterator[Told]:
    model = entry.target.removeprefix(MODELS)
    number, failed = _stated(entry.evidence, "number"), _stated(entry.evidence, "failed")
    version = number if isinstance(number, int) else 0
    names = list(failed)[:MAX_LISTED] if isinstance(failed, list | dict) else []
    data = {
        "model": model,
        "version": version,
        "digest": str(_stated(entry.evidence, "digest") or ""),
        "failed": [shown(str(name), 200) for name in names],
    }
    yield EventType.CHECKS_FAILED, _version(model, version), data


def _approved(kind: EventType) -> Callable[[AuditEntry], Iterator[Told]]:
    def tell(entry: AuditEntry) -> Iterator[Told]:
        for model, number, review in _reviews(entry):
            approvals = _stated(review, "approvals")
            listed = approvals if isinstance(approvals, list) else []
            people = [shown(str(_stated(one, "principal")), 200) for one in listed[:MAX_LISTED]]
            data = {"model": model, "version": number, "approved_by": people}
            yield kind, _version(model, number), data

    return tell


def _wished(kind: EventType) -> Callable[[AuditEntry], Iterator[Told]]:
    def tell(entry: AuditEntry) -> Iterator[Told]:
        model, _, alias = entry.target.removeprefix("wishes/").partition("/")
        data = {"model": model, "alias": alias, "version": _stated(entry.document, "version")}
        yield kind, entry.target, data

    return tell


def _retired(entry: AuditEntry) -> Iterator[Told]:
    model = entry.target.removeprefix(MODELS)
    retired = _stated(entry.document, "retired")
    known = retired if isinstance(retired, dict) else {}
    numbers = sorted(int(n) for n in known if n.isdecimal())
    yield (
        EventType.VERSION_RETIRED,
        entry.target,
        {"model": model, "retired": numbers[-MAX_LISTED:]},
    )


def _of_experiment(kind: EventType) -> Callable[[AuditEntry], Iterator[Told]]:
    def tell(entry: AuditEntry) -> Iterator[Told]:
        yield kind, entry.target, _experiment(entry)

    return tell


def _stepped(entry: AuditEntry) -> Iterator[Told]:
    """A step of the steward, where it is more than a change of weights."""
    kind = _ENDS.get(_ended_as(entry))
    if kind is not None:
        yield kind, entry.target, _experiment(entry)


def _experiment(entry: AuditEntry) -> dict[str, Any]:
    document = entry.document
    return {
        "experiment": entry.target.removeprefix("experiments/"),
        "endpoint": _stated(_stated(document, "document"), "endpoint"),
        "state": _stated(document, "state"),
        "versions": _stated(document, "versions"),
        "verdicts": _stated(document, "verdicts"),
    }


def _ended_as(entry: AuditEntry) -> str:
    return str(_stated(entry.document, "state")) if entry.action == "experiment.step" else ""


def _denied(entry: AuditEntry) -> Iterator[Told]:
    count = _stated(entry.evidence, "count")
    yield EventType.ACCESS_DENIED, entry.target, {"count": count if isinstance(count, int) else 1}


def _reviews(entry: AuditEntry) -> Iterator[tuple[str, int, Any]]:
    """Model, number and document of each Review that an entry changed."""
    for target, _, _, document in _changes(entry):
        model, _, number = target.removeprefix(_REVIEWS).rpartition("/")
        if target.startswith(_REVIEWS) and number.isdecimal():
            yield model, int(number), document


def _changes(entry: AuditEntry) -> Iterator[tuple[str, str, str, Any]]:
    if entry.before != entry.after:
        yield entry.target, entry.before, entry.after, entry.document
    for one in entry.also:
        yield one.target, one.before, one.after, one.document


def _stated(document: Any, field: str) -> Any:  # noqa: ANN401 - JSON, which may be anything
    return document.get(field) if isinstance(document, dict) else None


def _version(model: str, number: int) -> str:
    return f"{MODELS}{model}/versions/{number}"


_ENDS: Final[Mapping[str, EventType]] = {
    "holding_out": EventType.EXPERIMENT_DECIDED,
    "promoted": EventType.EXPERIMENT_DECIDED,
    "rolled_back": EventType.EXPERIMENT_ROLLED_BACK,
    "stopped": EventType.EXPERIMENT_ENDED,
}
_TELLERS: Final[Mapping[str, Callable[[AuditEntry], Iterator[Told]]]] = {
    "model.register": _registered,
    "model.inspect": _checked,
    "model.refuse": _refused,
    "model.approve": _approved(EventType.APPROVAL_GIVEN),
    "model.unapprove": _approved(EventType.APPROVAL_WITHDRAWN),
    "model.retire": _retired,
    "wish.put": _wished(EventType.PROMOTION_REQUESTED),
    "wish.drop": _wished(EventType.PROMOTION_WITHDRAWN),
    "experiment.start": _of_experiment(EventType.EXPERIMENT_STARTED),
    "experiment.stop": _of_experiment(EventType.EXPERIMENT_ENDED),
    "experiment.rollback": _of_experiment(EventType.EXPERIMENT_ROLLED_BACK),
    "experiment.step": _stepped,
    "access.denied": _denied,
}

ALL_TYPES: Final[Sequence[str]] = tuple(EventType)
