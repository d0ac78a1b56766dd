"""Entrances: which versions a change newly lets in, and how far.

Two Snapshots are compared by what they make of each version, whoever made the change and by what
way. What is no entrance: a version that had as much before, and one that goes back to where it was.
"""

from collections.abc import Container, Iterator, Mapping
from enum import StrEnum

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
    """Where a Snapshot has a version. `alias` is the one that leads there, if any does."""

    model: str
    number: int
    reach: Reach
    alias: str | None = None
    is_alias: bool = False
    """Whether it is the alias itself."""

    @property
    def key(self) -> Key:
        """The version."""
        return self.model, self.number


def places_of(snapshot: Snapshot) -> frozenset[Place]:
    """Every place of every version."""
    found = {place for name in snapshot.models for place in _of_model(snapshot, name)}
    for record in snapshot.endpoints.values():
        found.update(_of_endpoint(snapshot, record.document))
    for name, model in snapshot.models.items():
        if name not in snapshot.endpoints and CHAMPION in model.aliases:
            found.update(_of_endpoint(snapshot, Endpoint(schema=SCHEMA, model=name)))
    found.update(_of_experiments(snapshot))
    return frozenset(found)


class Comparison(Struct, frozen=True, eq=False):
    """Two Snapshots side by side: the places before, those that are fresh, and who goes back.

    Worked out once for all gates. `returning` are the controls of experiments that take their
    promotion back; `fallen_to` are those of experiments that start and may come to that, though no
    alias names them yet.
    """

    base: Snapshot
    before: frozenset[Place]
    fresh: frozenset[Place]
    returning: frozenset[Key]
    fallen_to: frozenset[Key]


def compare(base: Snapshot, changed: Snapshot) -> Comparison:
    """What a change makes of the versions' places."""
    before = places_of(base)
    fresh = places_of(changed) - before
    returning = frozenset(_taken_back(base, changed))
    return Comparison(base, before, fresh, returning, frozenset(_fallen_to(base, changed)))


def entrances(compared: Comparison, gate: Gate) -> Mapping[Key, Stage]:
    """The versions that a change lets in, of the models that a gate means."""
    fresh = [place for place in compared.fresh if matches_any(gate.models, place.model)]
    controls = {key for key in compared.fallen_to if matches_any(gate.models, key[0])}
    if not fresh and not controls:
        return {}
    base, before = compared.base, compared.before
    promoted = {place.key for place in before if _is_promoted(place, gate)}
    seen = {place.key for place in before if place.reach is not Reach.WARM}
    warm = {place.key for place in before}
    led = {(place.model, place.alias) for place in before if place.reach is Reach.ALL}
    led |= {(place.model, alias) for place in fresh for alias in gate.aliases}
    # Going back is not asked for, so what may be gone back to is asked for when that begins.
    past = {key for place in fresh for key in _brought(base, place, led)}
    found = dict.fromkeys((past | controls) - promoted, Stage.PROMOTION)
    for place in fresh:
        is_led = (place.model, place.alias) in led
        if place.key in compared.returning or _goes_back(base, place, gate, is_led=is_led):
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


def _is_promoted(place: Place, gate: Gate) -> bool:
    return place.reach is Reach.ALL or (place.is_alias and place.alias in gate.aliases)


def _goes_back(base: Snapshot, place: Place, gate: Gate, *, is_led: bool) -> bool:
    """Whether an alias that leads there, or would do as well, named the version before.

    What an alias named while it did not lead to everybody was a trial only, hence `is_led`.
    """
    model = base.models.get(place.model)
    if model is None:
        return False
    if place.is_alias:
        aliases = {place.alias}
    elif place.reach is Reach.ALL:
        aliases = {place.alias, *gate.aliases} if is_led else set(gate.aliases)
    else:
        aliases = set(model.previous)
    return any(place.number in model.previous.get(alias or "", ()) for alias in aliases)


def _brought(base: Snapshot, place: Place, led: Container[tuple[str, str | None]]) -> set[Key]:
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


def _of_model(snapshot: Snapshot, name: str) -> Iterator[Place]:
    model = snapshot.models[name]
    for alias, number in model.aliases.items():
        yield Place(name, number, Reach.SOME, alias, is_alias=True)
    for number in model.loaded:
        yield Place(name, number, Reach.WARM)


def _of_endpoint(snapshot: Snapshot, document: Endpoint) -> Iterator[Place]:
    yield _placed(snapshot, document.model, document.default, Reach.ALL)
    for rule in document.rules:
        yield from _of_rule(snapshot, document.model, rule)
    for shadow in document.shadows:
        yield _placed(snapshot, document.model, shadow.target, Reach.SOME)


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
            yield Place(model, number, reach)


def _placed(snapshot: Snapshot, model: str, target: Target, reach: Reach) -> Place:
    number = target.version or snapshot.models[model].aliases[target.alias or ""]
    return Place(model, number, reach, target.alias)
