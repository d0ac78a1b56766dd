"""Endpoints: the name that clients call, its ordered rules and its default.

An endpoint document is what people and CI write. It is checked here, on its own; whether the
versions and aliases that it names exist is checked against a Snapshot (`gateway.core.snapshot`).
A rule either serves one target or splits traffic over weighted variants.
"""

from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct

from gateway.core.assignment import HASH_VERSION, SCALE, SplitState
from gateway.core.compare import Tolerance, check_tolerance
from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.growthbook import VERSIONS
from gateway.core.models import CHAMPION, check_name
from gateway.core.targeting import Condition, check_condition

MAX_DOCUMENT_BYTES: Final = 256 * 1024
MAX_RULES: Final = 100
MAX_VARIANTS: Final = 100
MAX_CONDITIONS: Final = 20
MAX_SHADOWS: Final = 8
MAX_TOKEN_SCALARS: Final = 4
MAX_SALT_BYTES: Final = 64
MAX_UNIT_KEY: Final = 128
MAX_RESERVOIR: Final = 1_000
MAX_DIGITS: Final = 9
MAX_CACHE_MB: Final = 1024 * 1024
MAX_TTL_S: Final = 366 * 86_400
DEFAULT_UNIT_HEADER: Final = "X-Unit-Id"
DEFAULT_VARIANT: Final = "default"


class UnitKey(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a request says who is randomised: a header, a parameter or an input tensor."""

    header: str | None = None
    parameter: str | None = None
    input: str | None = None


class Target(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One version, by number or through an alias."""

    version: int | None = None
    alias: str | None = None


class Weighted(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One variant of a split: its name, its weight out of 10,000 and what it serves."""

    name: str
    weight: int
    version: int | None = None
    alias: str | None = None

    @property
    def target(self) -> Target:
        """What this variant serves."""
        return Target(version=self.version, alias=self.alias)


class Split(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Weighted variants over the enrolled share of units.

    `exposure` and the weights are integers out of 10,000; the weights add up to 10,000.
    Units that are not enrolled go on to the endpoint's default.
    """

    exposure: int
    variants: tuple[Weighted, ...]
    unit: UnitKey = UnitKey(header=DEFAULT_UNIT_HEADER)
    salt: str | None = None
    hash: Literal["tiltyard", "growthbook-1", "growthbook-2"] = "tiltyard"
    """How units are drawn; as GrowthBook does, with the salt as its seed, for those who come from
    there."""

    @property
    def hash_version(self) -> int:
        """The same, as the split's state has it."""
        return VERSIONS.get(self.hash, HASH_VERSION)


class Rule(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The first rule whose conditions all hold decides; without conditions it always holds."""

    name: str
    when: tuple[Condition, ...] = ()
    serve: Target | None = None
    split: Split | None = None
    on_error: str = "error"


class Shadow(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A variant that gets a copy of a share of requests and never answers."""

    name: str
    share: int
    version: int | None = None
    alias: str | None = None
    tolerance: Tolerance = Tolerance()

    @property
    def target(self) -> Target:
        """What this shadow runs."""
        return Target(version=self.version, alias=self.alias)


class Recording(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a prediction record may hold of the payload: off unless asked for.

    `redact` names inputs and outputs that are never written; each tensor's text is cut at
    `max_bytes`. `reservoir` is how many recent inputs each process keeps, so that they can be
    looked at and sent again.
    """

    inputs: bool = False
    outputs: bool = False
    redact: tuple[str, ...] = ()
    max_bytes: int = 4096
    reservoir: int = 0


class Caching(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How much an endpoint may keep of its versions' answers in each process, and for how long.

    `max_mb` counts 1,048,576 bytes; without `ttl_s` an answer stays until there is no room.
    """

    max_mb: int
    ttl_s: float | None = None


class Endpoint(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The document behind one name that clients call."""

    schema: int
    model: str
    rules: tuple[Rule, ...] = ()
    default: Target = Target(alias=CHAMPION)
    """What answers when no rule does."""
    shadows: tuple[Shadow, ...] = ()
    recording: Recording = Recording()
    token_scalars: tuple[str, ...] = ()
    cache: Caching | None = None
    """Off unless asked for: only who knows the model knows that its answers may be kept."""


class EndpointRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint as the Snapshot keeps it: the document and the state of each split."""

    document: Endpoint
    splits: dict[str, SplitState] = {}


def targets_of(endpoint: Endpoint) -> Iterator[Target]:
    """Every target that an endpoint names, its shadows included."""
    yield endpoint.default
    for rule in endpoint.rules:
        if rule.serve is not None:
            yield rule.serve
        if rule.split is not None:
            yield from (variant.target for variant in rule.split.variants)
    yield from (shadow.target for shadow in endpoint.shadows)


def check_endpoint(name: str, endpoint: Endpoint) -> None:
    """Refuse a document that contradicts itself, with a sentence that says where.

    Raises:
        InvalidRequest: the first fault found.
    """
    check_name("an endpoint", name)
    check_name("a model", endpoint.model)
    if endpoint.schema != 1:
        given = excerpt(endpoint.schema)
        message = f"Endpoint '{name}' has schema {given}; this gateway writes schema 1."
        raise InvalidRequest(message)
    _at_most(f"Endpoint '{name}'", "rules", len(endpoint.rules), MAX_RULES)
    _at_most(f"Endpoint '{name}'", "shadows", len(endpoint.shadows), MAX_SHADOWS)
    _at_most(f"Endpoint '{name}'", "token scalars", len(endpoint.token_scalars), MAX_TOKEN_SCALARS)
    _distinct(f"Endpoint '{name}'", "rule", [rule.name for rule in endpoint.rules])
    _distinct(f"Endpoint '{name}'", "shadow", [shadow.name for shadow in endpoint.shadows])
    check_target(f"Endpoint '{name}', default", endpoint.default)
    for rule in endpoint.rules:
        _check_rule(f"Endpoint '{name}', rule '{excerpt(rule.name)}'", rule)
    _check_variant_names(f"Endpoint '{name}'", endpoint)
    for shadow in endpoint.shadows:
        _check_shadow(f"Endpoint '{name}', shadow '{excerpt(shadow.name)}'", shadow, endpoint)
    for scalar in endpoint.token_scalars:
        if not is_scalar_name(scalar):
            message = f"Endpoint '{name}': token scalars are 'output' or 'output:column'."
            raise InvalidRequest(message)
    _check_recording(f"Endpoint '{name}'", endpoint.recording)
    if endpoint.cache is not None:
        _check_cache(f"Endpoint '{name}'", endpoint.cache)


def is_scalar_name(text: str) -> bool:
    """Whether this may name an output scalar: `output`, or `output:column` counted from 0."""
    output, colon, column = text.rpartition(":")
    if not colon:
        return text != ""
    return bool(output) and column.isascii() and column.isdigit() and len(column) <= MAX_DIGITS


def _check_recording(where: str, recording: Recording) -> None:
    if not 0 <= recording.max_bytes <= MAX_DOCUMENT_BYTES:
        message = f"{where}: recording.max_bytes must be 0 to {MAX_DOCUMENT_BYTES}."
        raise InvalidRequest(message)
    if not 0 <= recording.reservoir <= MAX_RESERVOIR:
        message = f"{where}: recording.reservoir must be 0 to {MAX_RESERVOIR}."
        raise InvalidRequest(message)


def _check_rule(where: str, rule: Rule) -> None:
    check_name("a rule", rule.name)
    _at_most(where, "conditions", len(rule.when), MAX_CONDITIONS)
    for condition in rule.when:
        check_condition(where, condition)
    if (rule.serve is None) == (rule.split is None):
        message = f"{where}: give exactly one of 'serve' and 'split'."
        raise InvalidRequest(message)
    if rule.on_error not in ("error", "fallback"):
        message = f"{where}: 'on_error' is 'error' or 'fallback'."
        raise InvalidRequest(message)
    if rule.serve is not None:
        check_target(where, rule.serve)
    if rule.split is not None:
        _check_split(where, rule.split)


def _check_split(where: str, split: Split) -> None:
    if not 0 <= split.exposure <= SCALE:
        message = f"{where}: exposure is {excerpt(split.exposure)}; it must be 0 to {SCALE}."
        raise InvalidRequest(message)
    if not split.variants:
        message = f"{where}: a split needs at least one variant."
        raise InvalidRequest(message)
    _at_most(where, "variants", len(split.variants), MAX_VARIANTS)
    _distinct(where, "variant", [variant.name for variant in split.variants])
    for variant in split.variants:
        check_name("a variant", variant.name)
        if variant.name == DEFAULT_VARIANT:
            message = f"{where}: '{DEFAULT_VARIANT}' names the endpoint's default; take another."
            raise InvalidRequest(message)
        if not 0 <= variant.weight <= SCALE:
            message = (
                f"{where}: weight {excerpt(variant.weight)} of '{variant.name}' "
                f"is not 0 to {SCALE}."
            )
            raise InvalidRequest(message)
        check_target(f"{where}, variant '{variant.name}'", variant.target)
    total = sum(variant.weight for variant in split.variants)
    if total != SCALE:
        message = f"{where}: the weights add up to {total}; they must add up to {SCALE}."
        raise InvalidRequest(message)
    check_unit(where, split.unit)
    if split.salt is not None:
        check_salt(where, split.salt)


def check_salt(where: str, salt: str) -> None:
    """Refuse a salt that cannot key the hash.

    Raises:
        InvalidRequest: with a sentence that begins with `where`.
    """
    if not 1 <= len(salt.encode()) <= MAX_SALT_BYTES:
        message = f"{where}: a salt holds 1 to {MAX_SALT_BYTES} bytes of UTF-8."
        raise InvalidRequest(message)


def _check_variant_names(where: str, endpoint: Endpoint) -> None:
    """A variant's name means one target in the whole endpoint, so that it can be forced."""
    meaning = {DEFAULT_VARIANT: endpoint.default}
    for rule in endpoint.rules:
        named = [] if rule.split is None else [(v.name, v.target) for v in rule.split.variants]
        if rule.serve is not None:
            named.append((rule.name, rule.serve))
        for variant, target in named:
            if meaning.setdefault(variant, target) != target:
                message = f"{where} gives variant '{variant}' two targets; use two names."
                raise InvalidRequest(message)


def check_unit(where: str, unit: UnitKey) -> None:
    """Refuse a unit that is not read from exactly one place.

    Raises:
        InvalidRequest: with a sentence that begins with `where`.
    """
    given = [key for key in (unit.header, unit.parameter, unit.input) if key is not None]
    if len(given) != 1 or not 0 < len(given[0]) <= MAX_UNIT_KEY:
        message = f"{where}: 'unit' names exactly one of 'header', 'parameter' and 'input'."
        raise InvalidRequest(message)


def check_target(where: str, target: Target) -> None:
    """Refuse a target that is not exactly one of version and alias.

    Raises:
        InvalidRequest: with a sentence that begins with `where`.
    """
    if (target.version is None) == (target.alias is None):
        message = f"{where}: give exactly one of 'version' and 'alias'."
        raise InvalidRequest(message)
    if target.alias is not None:
        check_name("an alias", target.alias)


def _check_shadow(where: str, shadow: Shadow, endpoint: Endpoint) -> None:
    check_name("a shadow", shadow.name)
    check_target(where, shadow.target)
    if not 0 <= shadow.share <= SCALE:
        message = f"{where}: share is {excerpt(shadow.share)}; it must be 0 to {SCALE}."
        raise InvalidRequest(message)
    check_tolerance(where, shadow.tolerance)
    if not endpoint.rules and shadow.target == endpoint.default:
        message = f"{where}: it would shadow itself; name another version than the default."
        raise InvalidRequest(message)


def _check_cache(where: str, cache: Caching) -> None:
    if not 1 <= cache.max_mb <= MAX_CACHE_MB:
        message = (
            f"{where}: cache.max_mb is {excerpt(cache.max_mb)}; it must be 1 to {MAX_CACHE_MB}, "
            "or leave 'cache' out to keep nothing."
        )
        raise InvalidRequest(message)
    if cache.ttl_s is not None and not 0 < cache.ttl_s <= MAX_TTL_S:
        message = (
            f"{where}: cache.ttl_s is {excerpt(cache.ttl_s)}; it must be above 0 and at most "
            f"{MAX_TTL_S}, or null to keep answers while there is room."
        )
        raise InvalidRequest(message)


def _at_most(where: str, what: str, count: int, limit: int) -> None:
    if count > limit:
        message = f"{where} has {count} {what}; at most {limit} are allowed."
        raise InvalidRequest(message)


def _distinct(where: str, what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            message = f"{where} has two {what}s named '{excerpt(name)}'."
            raise InvalidRequest(message)
        seen.add(name)


def weights_of(split: Split) -> dict[str, int]:
    """The weight of each variant, in the order of the document."""
    return {variant.name: variant.weight for variant in split.variants}
