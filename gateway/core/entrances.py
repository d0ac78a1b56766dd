"""Entrances: which versions a change newly lets in, and how far.

Two Snapshots are compared by what they make of each version, whoever made the change and by what
way. What is no entrance: a version that had as much before, and one that goes back to where it was.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import SCALE
from gateway.core.endpoints import Endpoint, Rule, Target
from gateway.core.experiments import LIVE, TERMINAL, State
from gateway.core.gates import Gate
from gateway.core.models import CHAMPION, Key
from gateway.core.patterns import matches_any
from gateway.core.snapshot import SCHEMA, ModelRecord, Snapshot, endpoint_record


class Stage(StrEnum):
    """How far a version comes in. Whoever is promoted must have met what a trial asks, too."""

    TRIAL = "trial"
    PROMOTION = "promotion"


class Reach(StrEnum):
    """What a place is to the version that stands there."""

    WARM = "warm"
    """Loaded by hand, or named by a draft."""
    SOME = "some"
    """A rule, a shadow, a running experiment, an alias: some requests, or those who ask for it."""
    ALL = "all"
    """Every request that nothing else takes: a default, or a rule without conditions."""


class Place(Struct, frozen=True):
    """Where a Snapshot has a version. `alias` is the one that leads there, if any does.

    `endpoint` is the name under which clients reach it, empty for what is of the model itself.
    """

    model: str
    number: int
    reach: Reach
    alias: str | None = None
    is_alias: bool = False
    """Whether it is the alias itself."""
    endpoint: str = ""

    @property
    def key(self) -> Key:
        """The version."""
        return self.model, self.number


_Way: TypeAlias = tuple[str, str | None]
"""A model and an alias of it that leads somewhere."""


def places_of(snapshot: Snapshot) -> frozenset[Place]:
    """Every place of every version."""
    found = {place for name in snapshot.models for place in _of_model(snapshot, name)}
    for name, record in snapshot.endpoints.items():
        found.update(_of_endpoint(snapshot, name, record.document))
    for name, model in snapshot.models.items():
        if name not in snapshot.endpoints and CHAMPION in model.aliases:
            found.update(_of_endpoint(snapshot, name, Endpoint(schema=SCHEMA, model=name)))
    found.update(_of_experiments(snapshot))
    return frozenset(found)


class Comparison(Struct, frozen=True, eq=False):
    """Two Snapshots side by side: the places before, those that are fresh, and who goes back.

    Worked out once for all gates. `returning` are the controls of experiments that take their
    promotion back; `fallen_to` are those of experiments that start and may come to that, though no
    alias names them yet. `stood_for` is the model that an endpoint served before it got another.
    """

    base: Snapshot
    before: frozenset[Place]
    fresh: frozenset[Place]
    returning: frozenset[Key]
    fallen_to: frozenset[Key]
    stood_for: Mapping[str, str]


def compare(base: Snapshot, changed: Snapshot) -> Comparison:
    """What a change makes of the versions' places."""
    before = places_of(base)
    fresh = places_of(changed) - before
    return Comparison(
        base=base,
        before=before,
        fresh=fresh,
        returning=frozenset(_taken_back(base, changed)),
        fallen_to=frozenset(_fallen_to(base, changed)),
        stood_for=dict(_moved_away(base, changed)),
    )


def entrances(compared: Comparison, gate: Gate) -> Mapping[Key, Stage]:
    """The versions that a change lets in where a gate asks.

    That is wherever a model serves that the gate means, and under each name that it means: another
    model that takes its place is held to the same.
    """
    fresh = [place for place in compared.fresh if _means(gate, place, compared.stood_for)]
    controls = {key for key in compared.fallen_to if matches_any(gate.models, key[0])}
    if not fresh and not controls:
        return {}
    base = compared.base
    before = [place for place in compared.before if _means(gate, place, {})]
    promoted = {place.key for place in before if _is_promoted(place, gate)}
    seen = {place.key for place in before if place.reach is not Reach.WARM}
    warm = {place.key for place in before}
    led = {(place.model, place.alias) for place in before if place.reach is Reach.ALL}
    led |= {(one.model, alias) for one in fresh if _owns(gate, one) for alias in gate.aliases}
    # Going back is not asked for, so what may be gone back to is asked for when that begins.
    past = {key for place in fresh for key in _brought(base, place, led)}
    found = dict.fromkeys((past | controls) - promoted, Stage.PROMOTION)
    for place in fresh:
        if place.key in compared.returning or _goes_back(base, place, gate, led):
            continue
        if _is_promoted(place, gate):
            if (place.is_alias and place.alias in gate.aliases) or place.key not in promoted:
                found[place.key] = Stage.PROMOTION
        elif place.key not in (warm if place.reach is Reach.WARM else seen):
            found.setdefault(place.key, Stage.TRIAL)
    return found


def stage_of(snapshot: Snapshot, model: str, alias: str, gate: Gate) -> Stage:
    """How far a version of a model would come in if an alias named it."""
    leads = {
        place.alias
        for place in places_of(snapshot)
        if place.model == model and place.reach is Reach.ALL
    }
    implied = alias == CHAMPION and model not in snapshot.endpoints
    is_far = alias in gate.aliases or alias in leads or implied
    return Stage.PROMOTION if is_far else Stage.TRIAL


def without_aliases(snapshot: Snapshot, model: str, seed: ModelRecord | None) -> ModelRecord | None:
    """What seeds a new model: no alias where a gate means it, since those are for promotions."""
    if seed is None or not any(matches_any(gate.models, model) for gate in snapshot.gates.values()):
        return seed
    return replace(seed, aliases={}, previous={})


def concerns(gate: Gate, model: str, alias: str, places: Iterable[Place]) -> bool:
    """Whether a gate asks for something where an alias of a model leads, of all places."""
    return matches_any(gate.models, model) or any(
        _means(gate, place, {}) for place in places if (place.model, place.alias) == (model, alias)
    )


def _owns(gate: Gate, place: Place) -> bool:
    """Whether a gate means the model, so that all of its aliases are asked for."""
    return matches_any(gate.models, place.model)


def _means(gate: Gate, place: Place, stood_for: Mapping[str, str]) -> bool:
    names = (place.model, place.endpoint, stood_for.get(place.endpoint, ""))
    return any(matches_any(gate.models, name) for name in names if name)


def _is_promoted(place: Place, gate: Gate) -> bool:
    return place.reach is Reach.ALL or (place.is_alias and place.alias in gate.aliases)


def _goes_back(base: Snapshot, place: Place, gate: Gate, led: Container[_Way]) -> bool:
    """Whether an alias that leads there, or would do as well, named the version before.

    What an alias named while it did not lead to everybody was a trial only.
    """
    model = base.models.get(place.model)
    if model is None:
        return False
    is_led, is_own = (place.model, place.alias) in led, _owns(gate, place)
    aliases = {place.alias} if is_led or place.is_alias else set()
    if is_own and not place.is_alias:
        aliases |= set(gate.aliases if place.reach is Reach.ALL else model.previous)
    return any(place.number in model.previous.get(alias or "", ()) for alias in aliases)


def _brought(base: Snapshot, place: Place, led: Container[_Way]) -> set[Key]:
    """What the alias of a place named before it led to everybody; who is gone is left out."""
    model = base.models.get(place.model)
    is_new = place.reach is Reach.ALL and (place.model, place.alias) not in led
    if model is None or place.alias is None or not is_new:
        return set()
    named = {*model.previous.get(place.alias, ()), model.aliases.get(place.alias)}
    return {(place.model, number) for number in model.versions if number in named}


def _taken_back(base: Snapshot, changed: Snapshot) -> Iterator[Key]:
    """The controls of experiments that take their promotion back."""
    for name, record in base.experiments.items():
        after = changed.experiments.get(name)
        if record.state is not State.HOLDING_OUT or after is None:
            continue
        if after.state is State.ROLLED_BACK:
            model = endpoint_record(base, record.document.endpoint).document.model
            yield model, record.versions[record.document.control]


def _fallen_to(base: Snapshot, changed: Snapshot) -> Iterator[Key]:
    """The controls of experiments that start, if their alias names nothing that it could go to."""
    for name, record in changed.experiments.items():
        before = base.experiments.get(name)
        if record.state not in LIVE or (before is not None and before.state in LIVE):
            continue
        document = record.document
        model = endpoint_record(changed, document.endpoint).document.model
        if document.promote != "never" and document.alias not in changed.models[model].aliases:
            yield model, record.versions[document.control]


def _moved_away(base: Snapshot, changed: Snapshot) -> Iterator[tuple[str, str]]:
    """Each endpoint that gets another model, with the one that it served."""
    for name, record in changed.endpoints.items():
        if name in base.endpoints or name in base.models:
            before = endpoint_record(base, name).document.model
            if before != record.document.model:
                yield name, before


def _of_model(snapshot: Snapshot, name: str) -> Iterator[Place]:
    model = snapshot.models[name]
    for alias, number in model.aliases.items():
        yield Place(name, number, Reach.SOME, alias, is_alias=True)
    for number in model.loaded:
        yield Place(name, number, Reach.WARM)


def _of_endpoint(snapshot: Snapshot, name: str, document: Endpoint) -> Iterator[Place]:
    found = [_placed(snapshot, document.model, document.default, Reach.ALL)]
    for rule in document.rules:
        found += _of_rule(snapshot, document.model, rule)
    for shadow in document.shadows:
        found.append(_placed(snapshot, document.model, shadow.target, Reach.SOME))
    return (replace(place, endpoint=name) for place in found)


def _of_rule(snapshot: Snapshot, model: str, rule: Rule) -> Iterator[Place]:
    if rule.serve is not None:
        yield _placed(snapshot, model, rule.serve, Reach.SOME if rule.when else Reach.ALL)
    if rule.split is None:
        return
    takes_all = not rule.when and rule.split.exposure == SCALE
    named = [
        (_placed(snapshot, model, variant.target, Reach.SOME), variant.weight)
        for variant in rule.split.variants
    ]
    for place, _ in named:
        share = sum(weight for other, weight in named if other.number == place.number)
        reach = Reach.ALL if takes_all and share == SCALE else Reach.SOME
        yield Place(model, place.number, reach, place.alias)


def _of_experiments(snapshot: Snapshot) -> Iterator[Place]:
    for record in snapshot.experiments.values():
        if record.state in TERMINAL:
            continue
        model = endpoint_record(snapshot, record.document.endpoint).document.model
        reach = Reach.SOME if record.state in LIVE else Reach.WARM
        for variant in record.document.variants:
            now = _placed(snapshot, model, variant.target, reach)
            number = record.versions.get(variant.name, now.number)
            yield Place(model, number, reach, endpoint=record.document.endpoint)


def _placed(snapshot: Snapshot, model: str, target: Target, reach: Reach) -> Place:
    number = target.version or snapshot.models[model].aliases[target.alias or ""]
    return Place(model, number, reach, target.alias)
