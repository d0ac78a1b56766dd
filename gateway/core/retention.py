"""Retention: which versions may go, and what holds the others.

Whatever its documents say, a version stays that is served or kept warm, that somebody wishes to be
promoted, that an experiment runs or ran lately, or that a young entry of the audit log names. A
version that goes leaves its number, digest and manifest behind: other bytes can never take its
number, and its lineage can still be asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.audit import AuditEntry
from gateway.core.endpoints import EndpointRecord, targets_of
from gateway.core.errors import Conflict, InvalidRequest, NotFound, excerpt
from gateway.core.experiments import TERMINAL, ExperimentRecord
from gateway.core.models import Key
from gateway.core.patterns import matches_any
from gateway.core.retentions import SCHEMA, Retention
from gateway.core.reviews import PromotionWish, review_name
from gateway.core.snapshot import ModelRecord, Snapshot, check, endpoint_record, named_keys

DAY_S: Final = 86_400.0


class Standing(Struct, frozen=True):
    """A version, and what holds it: words for a sentence, None where it may go."""

    model: str
    number: int
    digest: str
    held_by: str | None


def standings(
    snapshot: Snapshot,
    mentioned: Mapping[Key, float],
    now: float,
    *,
    since: float = float("-inf"),
) -> tuple[Standing, ...]:
    """Every version of every model that a document of retention means, sorted.

    Args:
        snapshot: what stands.
        mentioned: for each version, when the newest entry of the audit log that names it was
            written, in UTC seconds.
        now: UTC seconds.
        since: what the log said before, in UTC seconds, is not known: it was archived or lost.
    """
    in_use = named_keys(snapshot)
    wished = {(name.partition("/")[0], wish.version) for name, wish in snapshot.wishes.items()}
    found = []
    for model, record in sorted(snapshot.models.items()):
        policy = policy_for(snapshot, model)
        if policy is None:
            continue
        newest = set(sorted(record.versions)[-policy.keep :])
        tried = _tried(snapshot, model, now - policy.ledger_days * DAY_S)
        for number, digest in sorted(record.versions.items()):
            key = (model, number)
            reasons = (
                ("it is served, or kept warm to be served", key in in_use),
                ("somebody wishes it to be promoted", key in wished),
                ("an experiment runs it, or ran it lately", number in tried),
                (
                    f"the audit log named it less than {policy.ledger_days:g} days ago",
                    now - mentioned.get(key, -DAY_S * 1e6) < policy.ledger_days * DAY_S,
                ),
                (
                    f"the store holds no {policy.ledger_days:g} days of the audit log",
                    since > now - policy.ledger_days * DAY_S,
                ),
                (f"it is one of the newest {policy.keep}", number in newest),
                (
                    f"it was registered less than {policy.min_age_days:g} days ago",
                    _age_s(snapshot, key, now) < policy.min_age_days * DAY_S,
                ),
            )
            held_by = next((words for words, holds in reasons if holds), None)
            found.append(Standing(model, number, digest, held_by))
    return tuple(found)


def policy_for(snapshot: Snapshot, model: str) -> Retention | None:
    """What holds for a model: of all documents that mean it, the most that any of them keeps."""
    meant = [one for one in snapshot.retentions.values() if matches_any(one.models, model)]
    if not meant:
        return None
    return Retention(
        schema=SCHEMA,
        models=(model,),
        keep=max(one.keep for one in meant),
        min_age_days=max(one.min_age_days for one in meant),
        ledger_days=max(one.ledger_days for one in meant),
        delete_files=all(one.delete_files for one in meant),
    )


def retire(
    snapshot: Snapshot,
    keys: Iterable[Key],
    mentioned: Mapping[Key, float],
    now: float,
    *,
    since: float = float("-inf"),
) -> Snapshot:
    """Let versions go: out of what can be served, their numbers and digests kept.

    Raises:
        Conflict: one of them is held, or nothing says that it may go.
    """
    known = {
        (one.model, one.number): one for one in standings(snapshot, mentioned, now, since=since)
    }
    gone = sorted(set(keys))
    for key in gone:
        standing = known.get(key)
        if standing is None or standing.held_by is not None:
            why = "no retention lets it go" if standing is None else standing.held_by
            message = f"Version {key[1]} of '{excerpt(key[0])}' stays: {why}."
            raise Conflict(message)
    models = dict(snapshot.models)
    for model, number in gone:
        models[model] = _without(models[model], number)
    left = {review_name(*key) for key in gone}
    reviews = {name: review for name, review in snapshot.reviews.items() if name not in left}
    changed = replace(snapshot, models=models, reviews=reviews)
    check(changed)
    return changed


def mentions(entry: AuditEntry, model_of: Callable[[str], str]) -> set[Key]:
    """The versions that an entry of the audit log names as served, tried, wished or gone back to.

    That a version was registered, inspected or approved is no mention.

    Args:
        entry: of the audit log.
        model_of: the model that an endpoint serves.

    Raises:
        InvalidRequest: a document in it cannot be read, so that what it names is not known.
    """
    placed = [(entry.target, entry.document)]
    placed += [(moved.target, moved.document) for moved in entry.also]
    found: set[Key] = set()
    for target, document in placed:
        kind, _, name = target.partition("/")
        if document is None or kind not in _NAMED:
            continue
        try:
            found |= _NAMED[kind](name, document, model_of)
        except msgspec.ValidationError as error:
            message = f"The audit entry of revision {entry.revision} cannot be read: {error}."
            raise InvalidRequest(message) from error
    return found


def model_of_endpoint(snapshot: Snapshot, endpoint: str) -> str:
    """The model that an endpoint serves; of one that is gone, the model of its name."""
    try:
        return endpoint_record(snapshot, endpoint).document.model
    except NotFound:
        return endpoint


def _age_s(snapshot: Snapshot, key: Key, now: float) -> float:
    """Seconds since a version was registered; none where that is not known."""
    review = snapshot.reviews.get(review_name(*key))
    return 0.0 if review is None else now - review.registered_at


def _tried(snapshot: Snapshot, model: str, since: float) -> set[int]:
    """The versions that experiments run, or that ran in one which ended after that moment."""
    found: set[int] = set()
    for record in snapshot.experiments.values():
        over = record.state in TERMINAL and record.since <= since
        if not over and model_of_endpoint(snapshot, record.document.endpoint) == model:
            found.update(record.versions.values())
    return found


def _without(record: ModelRecord, number: int) -> ModelRecord:
    return replace(
        record,
        versions={n: digest for n, digest in record.versions.items() if n != number},
        retired={**record.retired, number: record.versions[number]},
        previous={
            alias: tuple(n for n in numbers if n != number)
            for alias, numbers in record.previous.items()
        },
    )


def _of_model(name: str, document: Any, _: Callable[[str], str]) -> set[Key]:  # noqa: ANN401
    record = msgspec.convert(document, ModelRecord, str_keys=True)
    before = (numbers[-1] for numbers in record.previous.values() if numbers)
    return {(name, number) for number in (*record.aliases.values(), *before, *record.loaded)}


def _of_endpoint(_: str, document: Any, __: Callable[[str], str]) -> set[Key]:  # noqa: ANN401
    served = msgspec.convert(document, EndpointRecord, str_keys=True).document
    return {
        (served.model, target.version)
        for target in targets_of(served)
        if target.version is not None
    }


def _of_experiment(_: str, document: Any, model_of: Callable[[str], str]) -> set[Key]:  # noqa: ANN401
    record = msgspec.convert(document, ExperimentRecord, str_keys=True)
    model = model_of(record.document.endpoint)
    return {(model, number) for number in record.versions.values()}


def _of_wish(name: str, document: Any, _: Callable[[str], str]) -> set[Key]:  # noqa: ANN401
    wish = msgspec.convert(document, PromotionWish, str_keys=True)
    return {(name.partition("/")[0], wish.version)}


_NAMED: Final[Mapping[str, Callable[[str, Any, Callable[[str], str]], set[Key]]]] = {
    "models": _of_model,
    "endpoints": _of_endpoint,
    "experiments": _of_experiment,
    "wishes": _of_wish,
}
