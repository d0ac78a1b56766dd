"""Bundles: all that people write about what is served, in one document that a repository can keep.

A Bundle holds documents as people write them, by kind and name. What the store keeps beside them
(states of splits, phases, histories, tokens) is no part of it. The salts that the store drew are
told when it is exported, so that units keep their variants wherever it is applied.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import Interval, SplitState
from gateway.core.documents import HOLD_OUT
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule, weights_of
from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.experiments import TERMINAL, Experiment, HoldOut
from gateway.core.gates import Gate
from gateway.core.principals import PrincipalDocument
from gateway.core.snapshot import Snapshot, canonical

SCHEMA: Final = 1
ALIASES: Final = "aliases"


class LayerDocument(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A layer as people write it; without a salt it keeps the one it has, or gets a fresh one."""

    salt: str | None = None


class HoldOutDocument(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Units that no experiment enrols, out of 10,000; the salt as in a layer."""

    share: int
    salt: str | None = None


class Bundle(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be served, as documents by name; a kind that is left out is left alone.

    `aliases` gives the version that each alias of a model names. An experiment is written as a
    draft; starting it is an act of its own. `intervals` say which part of a split each variant
    owns, by endpoint, rule and variant: used where that split is new, so that units keep their
    variants after weights were moved.
    """

    schema: int
    aliases: dict[str, dict[str, int]] | None = None
    endpoints: dict[str, Endpoint] | None = None
    layers: dict[str, LayerDocument] | None = None
    holdout: HoldOutDocument | None = None
    experiments: dict[str, Experiment] | None = None
    gates: dict[str, Gate] | None = None
    principals: dict[str, PrincipalDocument] | None = None
    intervals: dict[str, dict[str, dict[str, tuple[Interval, ...]]]] | None = None


TABLES: Final[Mapping[str, type]] = {
    "endpoints": Endpoint,
    "layers": LayerDocument,
    "experiments": Experiment,
    "gates": Gate,
    "principals": PrincipalDocument,
}
"""Fields of a Bundle that hold documents by name; those of a Snapshot have the same names."""


def check_bundle(bundle: Bundle) -> None:
    """Refuse a Bundle of another schema; its documents are checked where they are applied.

    Raises:
        InvalidRequest: with the schema.
    """
    if bundle.schema != SCHEMA:
        message = f"The bundle has schema {excerpt(bundle.schema)}; this gateway reads {SCHEMA}."
        raise InvalidRequest(message)


def named_targets(bundle: Bundle) -> Iterator[str]:
    """What a Bundle speaks of: `<kind>/<name>`, `aliases/<model>/<alias>` and `holdout`."""
    for model, aliases in (bundle.aliases or {}).items():
        yield from (f"{ALIASES}/{model}/{alias}" for alias in aliases)
    for kind in TABLES:
        yield from (f"{kind}/{name}" for name in getattr(bundle, kind) or {})
    if bundle.holdout is not None:
        yield HOLD_OUT


def exported(snapshot: Snapshot) -> Bundle:
    """What stands, as a Bundle that changes nothing when it is applied.

    Experiments that have ended are history and left out; tables without an entry are too.
    """
    aliases = {name: _sorted(model.aliases) for name, model in snapshot.models.items()}
    drafts = {
        name: record.document
        for name, record in snapshot.experiments.items()
        if record.state not in TERMINAL
    }
    return Bundle(
        schema=SCHEMA,
        aliases=_sorted({name: table for name, table in aliases.items() if table}) or None,
        endpoints=_sorted({n: settled(r) for n, r in snapshot.endpoints.items()}) or None,
        layers=_sorted({n: LayerDocument(r.salt) for n, r in snapshot.layers.items()}) or None,
        holdout=_hold_out(snapshot.hold_out),
        experiments=_sorted(drafts) or None,
        gates=_sorted(snapshot.gates) or None,
        principals=_sorted(snapshot.principals) or None,
        intervals=_moved_intervals(snapshot) or None,
    )


def settled(record: EndpointRecord, hidden: Container[str] = ()) -> Endpoint:
    """An endpoint's document with the salt of each split written out, but for `hidden` ones."""
    rules = tuple(_settled_rule(rule, record, hidden) for rule in record.document.rules)
    return replace(record.document, rules=rules)


def form_at(snapshot: Snapshot, target: str, hidden: Container[str] = ()) -> Any:  # noqa: ANN401 - JSON
    """What people would write to have what stands at a target, as JSON has it; None for nothing.

    `hidden` salts are left out: they were drawn and nobody wrote them.
    """
    kind, _, name = target.partition("/")
    if kind == ALIASES:
        model, _, alias = name.partition("/")
        return snapshot.models[model].aliases.get(alias) if model in snapshot.models else None
    if target == HOLD_OUT:
        return msgspec.to_builtins(_hold_out(snapshot.hold_out, hidden))
    stored = getattr(snapshot, kind).get(name)
    match kind:
        case _ if stored is None:
            return None
        case "endpoints":
            stored = settled(stored, hidden)
        case "experiments":
            stored = stored.document
        case "layers":
            stored = LayerDocument(_shown(stored.salt, hidden))
    return msgspec.to_builtins(stored)


def tags_of(snapshot: Snapshot, targets: Iterable[str]) -> dict[str, str]:
    """For each target a digest of what stands there, empty where nothing does.

    What moves by itself (the phases of an experiment that runs) does not move it.
    """
    forms = ((target, form_at(snapshot, target)) for target in targets)
    return {target: "" if form is None else tag_of(form) for target, form in forms}


def tag_of(document: object) -> str:
    """SHA-256 over a document's canonical JSON."""
    return hashlib.sha256(canonical(document)).hexdigest()


def pieces_for(bundle: Bundle, endpoint: str, rule: str) -> Mapping[str, tuple[Interval, ...]]:
    """The intervals that a Bundle tells for a split; empty where it tells none."""
    return (bundle.intervals or {}).get(endpoint, {}).get(rule, {})


def _settled_rule(rule: Rule, record: EndpointRecord, hidden: Container[str]) -> Rule:
    if rule.split is None or rule.split.salt is not None:
        return rule
    salt = _shown(record.splits[rule.name].salt, hidden)
    return replace(rule, split=replace(rule.split, salt=salt))


def _shown(salt: str, hidden: Container[str]) -> str | None:
    return None if salt in hidden else salt


def _hold_out(stored: HoldOut | None, hidden: Container[str] = ()) -> HoldOutDocument | None:
    if stored is None:
        return None
    return HoldOutDocument(share=stored.share, salt=_shown(stored.salt, hidden))


def _moved_intervals(
    snapshot: Snapshot,
) -> dict[str, dict[str, dict[str, tuple[Interval, ...]]]]:
    """Intervals that do not follow from the weights, because weights were moved."""
    found: dict[str, dict[str, dict[str, tuple[Interval, ...]]]] = {}
    for name, record in sorted(snapshot.endpoints.items()):
        for rule in record.document.rules:
            state = record.splits.get(rule.name)
            if rule.split is None or state is None:
                continue
            fresh = SplitState.fresh(
                salt=state.salt, hash_version=state.hash_version, weights=weights_of(rule.split)
            )
            if fresh.intervals != state.intervals:
                found.setdefault(name, {})[rule.name] = state.intervals
    return found


def _sorted(table: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(table.items()))
