"""Plans: an Endpoint compiled against its model's aliases, ready to decide a request.

`assign` reads top to bottom as the rules do: the first rule whose conditions hold decides; a split
draws for the unit; who is not enrolled, and whom no rule takes, gets the default.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import HASH_VERSION, SCALE, Drawer, Reason, SplitState
from gateway.core.compare import Tolerance
from gateway.core.endpoints import (
    DEFAULT_VARIANT,
    Caching,
    Endpoint,
    EndpointRecord,
    Recording,
    Rule,
    Split,
    Target,
    UnitKey,
    weights_of,
)
from gateway.core.errors import InvalidRequest, NotFound, excerpt
from gateway.core.experiments import Study
from gateway.core.growthbook import Ranges
from gateway.core.naming import MAX_UNIT_BYTES, Facts, checked_unit, unit_of
from gateway.core.targeting import Condition, holds

_DEFAULT: Final = Reason.DEFAULT  # to ask an enum for a member takes a tenth of a microsecond
_SPLIT: Final = Reason.SPLIT


class Variant(Struct, frozen=True):
    """One branch of a plan: its name and the version that it runs."""

    name: str
    version: int


class Assignment(Struct, frozen=True):
    """This unit gets this variant for this reason.

    `propensity` is the probability, before the draw, that a unit under this rule gets this
    variant. `unit` is what was hashed; `sticky` is False when that was a fresh draw for this
    request because it named no unit. `salt` and `rule` are set where a split drew. `intended` names
    the variant that could not answer, where the default fell in for it: analyse as intended;
    `failed_with` is the kind of its error.
    `segment` is that of the request, where its experiment tells segments apart.
    """

    variant: Variant
    reason: Reason
    propensity: float = 1.0
    rule: str | None = None
    salt: str | None = None
    unit: bytes | None = None
    sticky: bool = False
    falls_back: bool = False
    intended: str | None = None
    segment: int = 0
    failed_with: str | None = None


@dataclass(frozen=True, slots=True)
class _CompiledSplit:
    salt: str
    hash_version: int
    drawer: Drawer | Ranges
    unit: UnitKey
    unit_header: bytes | None
    variants: Mapping[str, tuple[Variant, float]]
    left_out: float


@dataclass(frozen=True, slots=True)
class _CompiledRule:
    name: str
    when: tuple[Condition, ...]
    takes: Variant | _CompiledSplit
    falls_back: bool


class Enrols(Protocol):
    """An experiment behind the rules; kept by `gateway.core.enrolling`."""

    @property
    def name(self) -> str:
        """Of the experiment: what its rule is called."""

    @property
    def variants(self) -> Mapping[str, tuple[Variant, float]]:
        """Each variant with its share of the enrolled units."""

    @property
    def study(self) -> Study:
        """What is noted of its units."""

    @property
    def watches_outputs(self) -> bool:
        """Whether it wants to know of answers that are not finite."""

    def take(self, facts: Facts, draw: bytes) -> Assignment | None:
        """The variant of a request's unit; None where the request goes on."""

    def left_out(self, unit: bytes) -> str | None:
        """Why a unit is not enrolled; None if it is."""


@dataclass(frozen=True, slots=True)
class ShadowPlan:
    """A shadow variant, the share of requests it copies (out of 10,000) and its tolerance.

    `study` is set where an experiment wants to know what it finds.
    """

    variant: Variant
    share: int
    tolerance: Tolerance
    study: Study | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides a request of one endpoint; immutable.

    `experiments` enrol behind the rules. `watches_outputs` says that one of them wants to know of
    answers that are not finite.
    """

    endpoint: str
    model: str
    revision: int
    rules: tuple[_CompiledRule, ...]
    default: Variant
    shadows: tuple[ShadowPlan, ...]
    recording: Recording
    token_scalars: tuple[str, ...]
    variants: Mapping[str, Variant]
    cache: Caching | None = None
    experiments: tuple["Enrols", ...] = ()
    watches_outputs: bool = False

    def including(
        self,
        experiments: tuple["Enrols", ...],
        shadows: Iterable[ShadowPlan],
        variants: Mapping[str, Variant],
    ) -> "Plan":
        """The same with these experiments, more shadows, and all variants that may be forced."""
        return dataclasses.replace(
            self,
            experiments=experiments,
            shadows=(*self.shadows, *shadows),
            variants=variants,
            watches_outputs=any(experiment.watches_outputs for experiment in experiments),
        )

    def hash_version(self, rule: str | None) -> int:
        """How the split of a rule, or an experiment, draws."""
        for compiled in self.rules:
            if compiled.name == rule and isinstance(compiled.takes, _CompiledSplit):
                return compiled.takes.hash_version
        return HASH_VERSION

    @property
    def versions(self) -> frozenset[int]:
        """Every version that this plan may run, shadows included."""
        shadowing = {shadow.variant.version for shadow in self.shadows}
        return frozenset(variant.version for variant in self.variants.values()) | shadowing


def compile_plan(
    endpoint: str, record: EndpointRecord, aliases: Mapping[str, int], revision: int
) -> Plan:
    """Resolve every target to a version number.

    Args:
        endpoint: the endpoint's name.
        record: its document and split states.
        aliases: the model's aliases.
        revision: of the Snapshot that holds all of it.

    Raises:
        NotFound: an alias that the model does not have.
    """
    document = record.document

    def variant(name: str, target: Target) -> Variant:
        return Variant(name=name, version=_resolve(endpoint, document, target, aliases))

    default = variant(DEFAULT_VARIANT, document.default)
    variants = {DEFAULT_VARIANT: default}
    rules = []
    for rule in document.rules:
        compiled = _compile_rule(rule, record, variant)
        rules.append(compiled)
        if isinstance(compiled.takes, Variant):
            variants[compiled.takes.name] = compiled.takes
        else:
            variants.update({name: chosen for name, (chosen, _) in compiled.takes.variants.items()})
    return Plan(
        endpoint=endpoint,
        model=document.model,
        revision=revision,
        rules=tuple(rules),
        default=default,
        shadows=tuple(
            ShadowPlan(variant(shadow.name, shadow.target), shadow.share, shadow.tolerance)
            for shadow in document.shadows
        ),
        recording=document.recording,
        token_scalars=document.token_scalars,
        variants=variants,
        cache=document.cache,
    )


def assign(plan: Plan, facts: Facts, draw: bytes) -> Assignment:
    """Decide the variant of a request.

    Args:
        plan: the endpoint's current plan.
        facts: what the request says of itself.
        draw: fresh random bytes, the unit of a request that names none.

    Raises:
        InvalidRequest: a unit of more than 1,024 bytes.
    """
    if not plan.rules and not plan.experiments:
        return Assignment(plan.default, Reason.STATIC)
    for rule in plan.rules:
        if not rule.when or all_hold(rule.when, facts):
            return _take(plan, rule, facts, draw)
    for experiment in plan.experiments:
        assignment = experiment.take(facts, draw)
        if assignment is not None:
            return assignment
    return Assignment(plan.default, Reason.DEFAULT)


def force(plan: Plan, name: str) -> Assignment:
    """The assignment of a caller who may name the variant.

    Raises:
        InvalidRequest: the plan has no variant of that name.
    """
    variant = plan.variants.get(name)
    if variant is None:
        known = ", ".join(sorted(plan.variants))
        message = f"Endpoint '{plan.endpoint}' has no variant '{excerpt(name)}'; it has {known}."
        raise InvalidRequest(message)
    return Assignment(variant, Reason.FORCED)


def fall_back(plan: Plan, assignment: Assignment, failed_with: str | None = None) -> Assignment:
    """The default in place of a variant that could not answer; the unit stays as it was drawn."""
    return replace(
        assignment,
        variant=plan.default,
        reason=Reason.FALLBACK,
        falls_back=False,
        intended=assignment.variant.name,
        failed_with=failed_with,
    )


def shares(plan: Plan) -> Mapping[str, Mapping[str, float]]:
    """The expected share of each variant under each rule, as fractions of the units it takes."""
    table: dict[str, Mapping[str, float]] = {}
    for rule in plan.rules:
        if isinstance(rule.takes, Variant):
            table[rule.name] = {rule.takes.name: 1.0}
        else:
            drawn = {name: share for name, (_, share) in rule.takes.variants.items()}
            table[rule.name] = {**drawn, DEFAULT_VARIANT: rule.takes.left_out}
    for experiment in plan.experiments:
        table[experiment.name] = {name: part for name, (_, part) in experiment.variants.items()}
    return table


def all_hold(when: tuple[Condition, ...], facts: Facts) -> bool:
    """Whether a request fits every condition."""
    return all(holds(condition, facts.header, facts.parameters) for condition in when)


def _take(plan: Plan, rule: _CompiledRule, facts: Facts, draw: bytes) -> Assignment:
    split = rule.takes
    if isinstance(split, Variant):
        reason = Reason.TARGETING_MATCH
        return Assignment(split, reason, rule=rule.name, falls_back=rule.falls_back)
    if split.unit_header is None:
        unit = unit_of(split.unit, facts)
    else:
        unit = facts.raw_header(split.unit_header)
    if unit is not None and (len(unit) > MAX_UNIT_BYTES or not unit.strip()):
        unit = checked_unit(unit)
    hashed = draw if unit is None else unit
    name = split.drawer.draw(hashed)
    if name is None:
        variant, propensity, reason = plan.default, split.left_out, _DEFAULT
    else:
        variant, propensity = split.variants[name]
        reason = _SPLIT
    return Assignment(
        variant,
        reason,
        propensity,
        rule.name,
        split.salt,
        hashed,
        unit is not None,  # sticky
        rule.falls_back and name is not None,
    )


def _compile_rule(
    rule: Rule, record: EndpointRecord, variant: Callable[[str, Target], Variant]
) -> _CompiledRule:
    takes: Variant | _CompiledSplit
    if rule.split is not None:
        takes = _compile_split(rule.split, record.splits[rule.name], variant)
    else:
        # A checked rule that does not split serves.
        takes = variant(rule.name, rule.serve or record.document.default)
    return _CompiledRule(
        name=rule.name, when=rule.when, takes=takes, falls_back=rule.on_error == "fallback"
    )


def _compile_split(
    split: Split, state: SplitState, variant: Callable[[str, Target], Variant]
) -> _CompiledSplit:
    header = split.unit.header
    drawer: Drawer | Ranges = Drawer(state, split.exposure)
    shares_ = {one.name: split.exposure * one.weight / SCALE**2 for one in split.variants}
    left_out = (SCALE - split.exposure) / SCALE
    if state.hash_version != HASH_VERSION:
        drawer = ranges_of_split(split, state.salt)
        shares_ = {one.name: drawer.share(one.name) for one in split.variants}
        left_out = 1 - sum(shares_.values())
    return _CompiledSplit(
        salt=state.salt,
        hash_version=state.hash_version,
        drawer=drawer,
        unit=split.unit,
        unit_header=None if header is None else header.lower().encode("latin-1", "replace"),
        variants={
            weighted.name: (
                variant(weighted.name, weighted.target),
                shares_[weighted.name],
            )
            for weighted in split.variants
        },
        left_out=left_out,
    )


def ranges_of_split(split: Split, salt: str) -> Ranges:
    """A split that is drawn as GrowthBook does."""
    return Ranges(salt, split.hash_version, weights_of(split), split.exposure)


def _resolve(endpoint: str, document: Endpoint, target: Target, aliases: Mapping[str, int]) -> int:
    if target.version is not None:
        return target.version
    version = aliases.get(target.alias or "")
    if version is None:
        message = (
            f"Endpoint '{endpoint}' names alias '{target.alias}', "
            f"which model '{document.model}' does not have."
        )
        raise NotFound(message)
    return version
