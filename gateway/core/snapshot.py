"""The Snapshot: all served configuration in one immutable document with a revision.

Written to Redis and to disk as canonical JSON. Whatever is read back is checked as strictly as
what people write, because Redis may hold anything.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import SplitState, covers_exactly
from gateway.core.endpoints import (
    Endpoint,
    EndpointRecord,
    Split,
    check_endpoint,
    check_salt,
    targets_of,
    weights_of,
)
from gateway.core.enrolling import with_experiments
from gateway.core.errors import InvalidRequest, NotFound, TooLarge, excerpt
from gateway.core.experiment_records import Studied, check_experiments, salts_of, widths_of
from gateway.core.experiments import TERMINAL, ExperimentRecord, HoldOut, Layer
from gateway.core.gate_checks import MAX_GATES, check_gate
from gateway.core.gates import Gate
from gateway.core.models import CHAMPION, MAX_VERSION, Key, check_name, is_hex256
from gateway.core.plans import Plan, compile_plan
from gateway.core.principals import (
    PrincipalDocument,
    TokenRecord,
    check_principal,
    check_token,
)
from gateway.core.retentions import Retention, check_retention
from gateway.core.reviews import PromotionWish, Review

SCHEMA: Final = 1
MAX_SNAPSHOT_BYTES: Final = 8 * 1024 * 1024
MAX_REVISION: Final = 2**63 - 1
MAX_FAULT: Final = 200
"""Characters of a decoder's words that an error repeats."""


class ModelRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What is served of one model.

    `versions` maps every registered version to its digest; `loaded` lists those that someone
    loaded by hand; `previous` holds, for each alias, the versions it named before, latest last.
    `retired` are versions whose files were deleted: their numbers stay taken.
    """

    versions: dict[int, str]
    aliases: dict[str, int] = {}
    previous: dict[str, tuple[int, ...]] = {}
    loaded: tuple[int, ...] = ()
    allow_nonfinite: bool = False
    labels: tuple[str, ...] = ()
    retired: dict[int, str] = {}


class Snapshot(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All served configuration. `audit_head` is the hash of the audit entry that made it.

    Units of `hold_out` are enrolled by no experiment. `reviews` are by `model/number`, `wishes` by
    `model/alias`, `tokens` by their public ids. What governs is served by no process; it stands
    here so that a change and what allowed it are one commit.
    """

    schema: int
    epoch: int
    revision: int
    audit_head: str
    models: dict[str, ModelRecord]
    endpoints: dict[str, EndpointRecord]
    experiments: dict[str, ExperimentRecord] = {}
    layers: dict[str, Layer] = {}
    hold_out: HoldOut | None = None
    gates: dict[str, Gate] = {}
    principals: dict[str, PrincipalDocument] = {}
    tokens: dict[str, TokenRecord] = {}
    reviews: dict[str, Review] = {}
    wishes: dict[str, PromotionWish] = {}
    retentions: dict[str, Retention] = {}


EMPTY: Final = Snapshot(schema=SCHEMA, epoch=1, revision=0, audit_head="", models={}, endpoints={})


def canonical(document: object) -> bytes:
    """Canonical JSON: keys sorted as text, no spaces."""
    return msgspec.json.encode(msgspec.to_builtins(document, str_keys=True), order="sorted")


def encode(snapshot: Snapshot) -> bytes:
    """Write a Snapshot as `decode` reads it.

    Raises:
        TooLarge: it would hold more than any process reads back.
    """
    document = canonical(snapshot)
    _check_size(document)
    return document


def decode(document: bytes) -> Snapshot:
    """Read and check a document of whatever origin.

    Raises:
        InvalidRequest: not JSON, not a Snapshot of this schema, or one that contradicts itself.
        TooLarge: more bytes than a Snapshot may hold.
    """
    _check_size(document)
    try:
        snapshot = _DECODER.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"The Snapshot cannot be read: {excerpt(str(error), MAX_FAULT)}."
        raise InvalidRequest(message) from error
    check(snapshot)
    return snapshot


def stated_revision(document: bytes) -> int | None:
    """The revision that a document states, whatever else is wrong with it; None if it has none."""
    if len(document) > MAX_SNAPSHOT_BYTES:
        return None
    try:
        return _NUMBERED.decode(document).revision
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def document_digest(document: object) -> str:
    """SHA-256 over the canonical JSON of any of the documents here: a document's ETag."""
    return hashlib.sha256(canonical(document)).hexdigest()


def endpoint_record(snapshot: Snapshot, name: str) -> EndpointRecord:
    """The record of an endpoint; a model without one is an endpoint that follows its champion.

    Raises:
        NotFound: neither an endpoint nor a model has that name.
    """
    record = snapshot.endpoints.get(name)
    if record is not None:
        return record
    if name in snapshot.models:
        return EndpointRecord(document=Endpoint(schema=SCHEMA, model=name))
    message = f"There is no endpoint or model '{excerpt(name)}'."
    raise NotFound(message)


def plan_of(snapshot: Snapshot, name: str) -> Plan:
    """Compile one endpoint.

    Raises:
        NotFound: no such endpoint, or an alias that its model does not have.
    """
    record = endpoint_record(snapshot, name)
    aliases = snapshot.models[record.document.model].aliases
    plan = compile_plan(name, record, aliases, snapshot.revision)
    if not snapshot.experiments:
        return plan
    return with_experiments(plan, snapshot.experiments, snapshot.layers, snapshot.hold_out)


def endpoint_names(snapshot: Snapshot) -> list[str]:
    """Every name that clients may call, sorted; a model without a champion is not among them."""
    implied = (name for name, model in snapshot.models.items() if CHAMPION in model.aliases)
    return sorted({*snapshot.endpoints, *implied})


def named_versions(snapshot: Snapshot) -> Mapping[str, frozenset[int]]:
    """The versions of each model that every process keeps warm.

    Those that an alias, an endpoint or an experiment names, until it has ended; the one before for
    each alias (so that a rollback needs no load), and those loaded by hand.
    """
    named: dict[str, set[int]] = {}
    for name, model in snapshot.models.items():
        before = (versions[-1] for versions in model.previous.values() if versions)
        named[name] = {*model.aliases.values(), *before, *model.loaded}
    for record in snapshot.endpoints.values():
        aliases = snapshot.models[record.document.model].aliases
        for target in targets_of(record.document):
            version = target.version or aliases[target.alias or ""]
            named[record.document.model].add(version)
    for experiment in snapshot.experiments.values():
        if experiment.state not in TERMINAL:
            model_name = endpoint_record(snapshot, experiment.document.endpoint).document.model
            aliases = snapshot.models[model_name].aliases
            for variant in experiment.document.variants:
                now = variant.version or aliases[variant.alias or ""]
                named[model_name].add(experiment.versions.get(variant.name, now))
    return {name: frozenset(versions) for name, versions in named.items()}


def named_keys(snapshot: Snapshot) -> set[Key]:
    """The same versions, each with its model."""
    named = named_versions(snapshot)
    return {(model, number) for model, numbers in named.items() for number in numbers}


def served_part(snapshot: Snapshot) -> Snapshot:
    """What processes that serve need to know: everything but what governs."""
    return replace(
        snapshot, gates={}, principals={}, tokens={}, reviews={}, wishes={}, retentions={}
    )


def order_of(snapshot: Snapshot) -> tuple[int, int]:
    """Of two Snapshots the one with the greater order is newer."""
    return snapshot.epoch, snapshot.revision


def check(snapshot: Snapshot) -> None:
    """Refuse a Snapshot that contradicts itself.

    Raises:
        InvalidRequest: the first fault found, as a sentence.
    """
    if snapshot.schema != SCHEMA:
        message = (
            f"The Snapshot has schema {excerpt(snapshot.schema)}; this gateway reads {SCHEMA}."
        )
        raise InvalidRequest(message)
    if not (0 <= snapshot.revision <= MAX_REVISION and 1 <= snapshot.epoch <= MAX_REVISION):
        message = "The Snapshot's epoch and revision must be counted from 1 and 0."
        raise InvalidRequest(message)
    for name, model in snapshot.models.items():
        _check_model(name, model)
    for name, record in snapshot.endpoints.items():
        check_record(snapshot, name, record)
    _check_governance(snapshot)
    studied = _studied(snapshot)
    check_experiments(studied)
    _check_salts(snapshot, studied)


def check_record(snapshot: Snapshot, name: str, record: EndpointRecord) -> None:
    """Refuse an endpoint that names what the Snapshot does not hold, or whose splits are torn.

    Raises:
        InvalidRequest: with a sentence that says where.
    """
    document = record.document
    check_endpoint(name, document)
    model = snapshot.models.get(document.model)
    if model is None:
        message = f"Endpoint '{name}' serves model '{document.model}', which is not registered."
        raise InvalidRequest(message)
    for target in targets_of(document):
        if target.version is not None and target.version not in model.versions:
            message = (
                f"Endpoint '{name}' names version {excerpt(target.version)} "
                f"of '{document.model}', "
                "which is not registered."
            )
            raise InvalidRequest(message)
        if target.alias is not None and target.alias not in model.aliases:
            message = (
                f"Endpoint '{name}' names alias '{target.alias}', "
                f"which model '{document.model}' does not have."
            )
            raise InvalidRequest(message)
    split_rules = {rule.name: rule.split for rule in document.rules if rule.split is not None}
    if set(split_rules) != set(record.splits):
        message = f"Endpoint '{name}' does not hold the state of each of its splits."
        raise InvalidRequest(message)
    for rule, split in split_rules.items():
        _check_state(f"Endpoint '{name}', rule '{rule}'", split, record.splits[rule])


def _check_governance(snapshot: Snapshot) -> None:
    for name, retention in snapshot.retentions.items():
        check_retention(name, retention)
    if len(snapshot.gates) > MAX_GATES:
        message = f"There are {len(snapshot.gates)} gates; at most {MAX_GATES} are kept."
        raise InvalidRequest(message)
    for name, gate in snapshot.gates.items():
        check_gate(name, gate)
    for name, principal in snapshot.principals.items():
        check_principal(name, principal)
    for token_id, token in snapshot.tokens.items():
        check_token(token_id, token)


def _check_state(where: str, split: Split, state: SplitState) -> None:
    check_salt(where, state.salt)
    if split.salt not in (None, state.salt):
        message = f"{where}: the stored salt is not the one that the document names."
        raise InvalidRequest(message)
    if state.hash_version != split.hash_version:
        message = f"{where}: hash version {excerpt(state.hash_version)} is not the document's."
        raise InvalidRequest(message)
    if not covers_exactly(state):
        message = f"{where}: the stored intervals do not tile the whole range."
        raise InvalidRequest(message)
    if widths_of(state) != weights_of(split):
        message = f"{where}: the stored intervals do not have the widths of the weights."
        raise InvalidRequest(message)


def _check_model(name: str, model: ModelRecord) -> None:
    check_name("a model", name)
    for alias in (*model.aliases, *model.previous):
        check_name("an alias", alias)
    if any(not 1 <= number <= MAX_VERSION for number in model.versions):
        message = f"Model '{name}' has a version that is not 1 to {MAX_VERSION}."
        raise InvalidRequest(message)
    if model.versions.keys() & model.retired.keys():
        message = f"Model '{name}' has a version that is retired as well."
        raise InvalidRequest(message)
    if not all(is_hex256(digest) for digest in (*model.versions.values(), *model.retired.values())):
        message = f"Model '{name}' has a digest that is not a SHA-256 in lower-case hex."
        raise InvalidRequest(message)
    history = [number for versions in model.previous.values() for number in versions]
    for number in (*model.aliases.values(), *model.loaded, *history):
        if number not in model.versions:
            message = f"Model '{name}' names version {excerpt(number)}, which is not registered."
            raise InvalidRequest(message)


def _studied(snapshot: Snapshot) -> Studied:
    named = {record.document.endpoint for record in snapshot.experiments.values()}
    known = named & (snapshot.endpoints.keys() | snapshot.models.keys())
    return Studied(
        experiments=snapshot.experiments,
        layers=snapshot.layers,
        hold_out=snapshot.hold_out,
        endpoints={name: endpoint_record(snapshot, name).document for name in known},
        models=snapshot.models,
    )


def _check_salts(snapshot: Snapshot, studied: Studied) -> None:
    of_rules = (
        (f"rule '{rule}' of endpoint '{name}'", state.salt)
        for name, record in snapshot.endpoints.items()
        for rule, state in record.splits.items()
    )
    owners: dict[str, str] = {}
    for where, salt in (*of_rules, *salts_of(studied)):
        if owners.setdefault(salt, where) != where:
            message = (
                f"The {owners[salt]} and the {where} share a salt, "
                "so their assignments would be correlated; give each its own."
            )
            raise InvalidRequest(message)


def _check_size(document: bytes) -> None:
    if len(document) > MAX_SNAPSHOT_BYTES:
        message = f"The Snapshot holds {len(document)} bytes; at most {MAX_SNAPSHOT_BYTES} may."
        raise TooLarge(message)


class _Numbered(Struct):
    revision: int


_NUMBERED: Final = msgspec.json.Decoder(_Numbered)
_DECODER: Final = msgspec.json.Decoder(Snapshot)
