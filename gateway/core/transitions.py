"""Transitions: what a commit does to a Snapshot. Each is a pure function to a new Snapshot.

The revision and the audit head are not moved here; the commit does that (`gateway.core.audit`).
"""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from gateway.core.assignment import HASH_VERSION, SCALE, SplitState, reweigh
from gateway.core.endpoints import Endpoint, EndpointRecord, Split, check_endpoint, weights_of
from gateway.core.errors import Conflict, NotFound, excerpt
from gateway.core.experiments import LIVE
from gateway.core.models import CHAMPION, Key, check_name
from gateway.core.plans import ranges_of_split
from gateway.core.reviews import Review, review_name
from gateway.core.snapshot import ModelRecord, Snapshot, check, endpoint_record, named_versions

MAX_HISTORY: Final = 20
"""Versions that each alias remembers to go back to."""


def put_endpoint(
    snapshot: Snapshot, name: str, document: Endpoint, salts: Mapping[str, str]
) -> Snapshot:
    """Replace an endpoint's document whole, moving as few units as its new weights allow.

    Args:
        snapshot: the one it stands in.
        name: the endpoint's name.
        document: the new document.
        salts: for each rule with a split, the salt to use if that split is new and names none.

    Raises:
        InvalidRequest: the document contradicts itself or names what does not exist.
        Conflict: it serves another model, and an experiment runs on it.
    """
    return _checked(with_endpoint(snapshot, name, document, salts))


def with_endpoint(
    snapshot: Snapshot, name: str, document: Endpoint, salts: Mapping[str, str]
) -> Snapshot:
    """The same, before it is checked against the rest of the Snapshot: for several at once."""
    check_endpoint(name, document)
    _check_studied(snapshot, name, document.model)
    stored = snapshot.endpoints.get(name)
    before = {} if stored is None else stored.splits
    splits = {
        rule.name: _state_of(rule.split, before.get(rule.name), salts.get(rule.name, rule.name))
        for rule in document.rules
        if rule.split is not None
    }
    record = EndpointRecord(document=document, splits=splits)
    return replace(snapshot, endpoints={**snapshot.endpoints, name: record})


def delete_endpoint(snapshot: Snapshot, name: str) -> Snapshot:
    """Drop an endpoint's document; a model of that name is then followed by its champion.

    Raises:
        NotFound: no such document.
        InvalidRequest: an experiment needs it.
        Conflict: the model of that name is another than it serves, and an experiment runs on it.
    """
    return _checked(without_endpoint(snapshot, name))


def without_endpoint(snapshot: Snapshot, name: str) -> Snapshot:
    """The same, before it is checked against the rest of the Snapshot: for several at once."""
    if name not in snapshot.endpoints:
        message = f"Endpoint '{excerpt(name)}' has no document to delete."
        raise NotFound(message)
    if name in snapshot.models:
        _check_studied(snapshot, name, name)
    rest = {other: record for other, record in snapshot.endpoints.items() if other != name}
    return replace(snapshot, endpoints=rest)


def register(  # noqa: PLR0913 - what is known of a version when it is first seen
    snapshot: Snapshot,
    model: str,
    number: int,
    digest: str,
    seed: ModelRecord | None = None,
    *,
    review: Review | None = None,
) -> Snapshot:
    """Add a version that was seen for the first time, with its Review.

    `seed` holds a new model's settings and first aliases; it is ignored for a known model. A
    version that is known stays as it is.

    Raises:
        Conflict: the same number is registered with other bytes, or was retired.
    """
    check_name("a model", model)
    record = snapshot.models.get(model) or seed or ModelRecord(versions={})
    if number in record.retired:
        message = f"Version {number} of '{model}' was retired; its number stays taken."
        raise Conflict(message)
    known = record.versions.get(number)
    if known == digest:
        return snapshot
    if known is not None:
        raise Conflict(other_bytes((model, number)))
    reviews = snapshot.reviews
    if review is not None:
        reviews = {**reviews, review_name(model, number): review}
    record = replace(record, versions={**record.versions, number: digest})
    return _with_model(replace(snapshot, reviews=reviews), model, record)


def reviewed(snapshot: Snapshot, key: Key, review: Review) -> Snapshot:
    """Put the checks of a new inspection in the place of earlier ones; approvals stay.

    Raises:
        NotFound: no such version.
    """
    model, number = key
    _known(model, model_of(snapshot, model), number)
    name = review_name(model, number)
    before = snapshot.reviews.get(name, review)
    after = replace(
        before,
        digest=review.digest,
        inspected_at=review.inspected_at,
        report=review.report,
        checks=review.checks,
    )
    return _checked(replace(snapshot, reviews={**snapshot.reviews, name: after}))


def other_bytes(key: Key) -> str:
    """That a number is taken by other bytes."""
    return (
        f"Version {key[1]} of '{key[0]}' is registered with other bytes; "
        "a version never changes, so give the new bytes a new number."
    )


def promote(snapshot: Snapshot, model: str, number: int, alias: str = CHAMPION) -> Snapshot:
    """Move an alias to another version.

    Raises:
        NotFound: no such model or version.
        Conflict: the alias names that version already.
    """
    return _checked(with_alias(snapshot, model, number, alias))


def with_alias(snapshot: Snapshot, model: str, number: int, alias: str) -> Snapshot:
    """The same, before it is checked against the rest of the Snapshot: for several at once."""
    record = model_of(snapshot, model)
    check_name("an alias", alias)
    _known(model, record, number)
    now = record.aliases.get(alias)
    if now == number:
        message = f"'{alias}' of '{model}' names version {number} already."
        raise Conflict(message)
    history = record.previous.get(alias, ())
    if now is not None:
        history = (*history, now)[-MAX_HISTORY:]
    moved = replace(
        record,
        aliases={**record.aliases, alias: number},
        previous={**record.previous, alias: history},
    )
    return replace(snapshot, models={**snapshot.models, model: moved})


def rollback(snapshot: Snapshot, model: str, alias: str = CHAMPION) -> Snapshot:
    """Move an alias back to the version it named before.

    Raises:
        NotFound: no such model or alias.
        Conflict: the alias never named another version.
    """
    record = model_of(snapshot, model)
    if alias not in record.aliases:
        message = f"Model '{model}' has no alias '{excerpt(alias)}'."
        raise NotFound(message)
    history = record.previous.get(alias, ())
    if not history:
        message = f"'{alias}' of '{model}' has no earlier version to go back to."
        raise Conflict(message)
    return _with_model(
        snapshot,
        model,
        replace(
            record,
            aliases={**record.aliases, alias: history[-1]},
            previous={**record.previous, alias: history[:-1]},
        ),
    )


def load(snapshot: Snapshot, model: str, number: int | None) -> Snapshot:
    """Keep a version warm though nothing names it; None takes the highest.

    Raises:
        NotFound: no such model or version.
    """
    record = model_of(snapshot, model)
    chosen = max(record.versions, default=0) if number is None else number
    _known(model, record, chosen)
    if chosen in record.loaded:
        return snapshot
    loaded = tuple(sorted({*record.loaded, chosen}))
    return _with_model(snapshot, model, replace(record, loaded=loaded))


def unload(snapshot: Snapshot, model: str, number: int | None) -> Snapshot:
    """Let go of a version kept warm by hand or to go back to; None lets go of them all.

    Raises:
        NotFound: no such model or version.
        Conflict: an alias, an endpoint or an experiment names the version.
    """
    record = model_of(snapshot, model)
    if number is not None:
        _known(model, record, number)
    gone = set(record.versions) if number is None else {number}
    history = {
        alias: tuple(version for version in versions if version not in gone)
        for alias, versions in record.previous.items()
    }
    kept = tuple(version for version in record.loaded if version not in gone)
    after = _with_model(snapshot, model, replace(record, loaded=kept, previous=history))
    in_use = sorted(named_versions(after)[model] & gone)
    if number is not None and in_use:
        message = (
            f"Version {number} of '{model}' is in use by an alias, an endpoint or an experiment."
        )
        raise Conflict(message)
    if number is None and in_use:
        listed = ", ".join(str(version) for version in in_use)
        message = (
            f"Model '{model}' is in use: an alias, an endpoint or an experiment names "
            f"version {listed}."
        )
        raise Conflict(message)
    return after


def moved_share(before: EndpointRecord, after: EndpointRecord) -> Mapping[str, float]:
    """For each rule with a split, the share of units whose variant changes, exactly.

    Enrolment and variant are independent, so the share is computed over both ranges.
    A split that is new, or has a new salt, counts every unit that leaves the default.
    """
    return {
        rule.name: _moved(
            _split_of(before.document, rule.name),
            before.splits.get(rule.name),
            rule.split,
            after.splits[rule.name],
        )
        for rule in after.document.rules
        if rule.split is not None
    }


def model_of(snapshot: Snapshot, model: str) -> ModelRecord:
    """The record of a registered model.

    Raises:
        NotFound: no such model.
    """
    record = snapshot.models.get(model)
    if record is None:
        message = f"There is no model '{excerpt(model)}'."
        raise NotFound(message)
    return record


def _check_studied(snapshot: Snapshot, name: str, model: str) -> None:
    """An experiment runs versions of one model; another one's would have the same numbers."""
    for experiment, record in snapshot.experiments.items():
        if record.document.endpoint != name or record.state not in LIVE:
            continue
        served = endpoint_record(snapshot, name).document.model
        if served != model:
            message = (
                f"Endpoint '{name}' serves '{served}' while experiment '{experiment}' runs on it; "
                "stop that first."
            )
            raise Conflict(message)


def _state_of(split: Split, before: SplitState | None, fresh_salt: str) -> SplitState:
    salt = split.salt or (before.salt if before is not None else fresh_salt)
    weights, version = weights_of(split), split.hash_version
    # GrowthBook's ranges lie one after the other, whatever that moves.
    is_ours = before is not None and before.hash_version == version == HASH_VERSION
    if before is None or before.salt != salt or not is_ours:
        return SplitState.fresh(salt=salt, hash_version=version, weights=weights)
    return reweigh(before, weights)


def _split_of(document: Endpoint, rule: str) -> Split | None:
    found = (candidate.split for candidate in document.rules if candidate.name == rule)
    return next(found, None)


def _moved(
    old: Split | None, old_state: SplitState | None, new: Split, new_state: SplitState
) -> float:
    if old is None or old_state is None:
        return new.exposure / SCALE
    if (old_state.salt, old.hash) != (new_state.salt, new.hash):
        return _moved_by_resalting(old, new)
    if new_state.hash_version != HASH_VERSION:
        before_, after_ = (ranges_of_split(split, new_state.salt) for split in (old, new))
        return before_.moved(after_)
    common = min(old.exposure, new.exposure)
    before, after = weights_of(old), weights_of(new)
    changed = sum(
        abs(after.get(name, 0) - before.get(name, 0)) for name in before.keys() | after.keys()
    )
    return (common * changed / 2 / SCALE + abs(old.exposure - new.exposure)) / SCALE


def _moved_by_resalting(old: Split, new: Split) -> float:
    """Two independent draws: the share of units that do not land where they were."""
    before, after = old.exposure / SCALE, new.exposure / SCALE
    weights = weights_of(old)
    stay = (1 - before) * (1 - after)
    for name, weight in weights_of(new).items():
        stay += before * after * (weights.get(name, 0) / SCALE) * (weight / SCALE)
    return 1 - stay


def _known(model: str, record: ModelRecord, number: int) -> None:
    if number not in record.versions:
        message = f"Model '{model}' has no version {excerpt(number)}."
        raise NotFound(message)


def _with_model(snapshot: Snapshot, name: str, record: ModelRecord) -> Snapshot:
    return _checked(replace(snapshot, models={**snapshot.models, name: record}))


def _checked(snapshot: Snapshot) -> Snapshot:
    check(snapshot)
    return snapshot
