"""Applying a Bundle: one new Snapshot, what changes by it, and which rights that takes. Pure.

Everything is put first and checked once at the end, so that documents may name each other in any
order. Whatever a single change would be refused for is refused here too.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import HASH_VERSION
from gateway.core.bundles import (
    TABLES,
    Bundle,
    check_bundle,
    form_at,
    named_targets,
    pieces_for,
    settled,
)
from gateway.core.differences import Difference, differences
from gateway.core.documents import HOLD_OUT
from gateway.core.endpoints import weights_of
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.experiment_records import widths_of
from gateway.core.experimenting import Drawn, check_unused, delete_experiment, with_draft
from gateway.core.experiments import LIVE, TERMINAL, HoldOut, Layer, State
from gateway.core.models import check_name
from gateway.core.principals import Action
from gateway.core.snapshot import Snapshot, check, endpoint_record
from gateway.core.transitions import model_of, with_alias, with_endpoint, without_endpoint

BUILT_IN: Final = "admin"
"""The principal that every gateway has; it stands in no document."""
Right = tuple[Action, str | None]
"""An action, and the model that it is about; None where it is about none."""


class Chance(Struct, frozen=True):
    """Where fresh salts and ids come from: a salt by what it is for, the same for the same."""

    salt: Callable[[str], str]
    id: Callable[[str], str]


class DocumentChange(Struct, frozen=True):
    """What becomes of one target; see `gateway.core.bundles.named_targets` for how it is named."""

    target: str
    kind: Literal["create", "update", "delete"]
    differences: tuple[Difference, ...]


def applied(snapshot: Snapshot, bundle: Bundle, chance: Chance, *, prune: bool) -> Snapshot:
    """The Snapshot in which all that a Bundle says stands.

    With `prune`, what it does not name of the kinds that it names is deleted: endpoints, layers,
    gates, principals and drafts. Aliases, the hold-out and ended experiments stay.

    Raises:
        InvalidRequest: a document contradicts itself, or names what does not exist.
        NotFound: an alias of a model or version that is not registered.
        Conflict: a change that is not legal now, such as deleting an experiment that runs.
    """
    check_bundle(bundle)
    changed = _with_aliases(snapshot, bundle)
    if prune:
        changed = _without_unnamed(changed, bundle)
    changed = _with_governance(changed, bundle)
    changed = _with_layers(changed, bundle, chance)
    changed = _with_endpoints(changed, bundle, chance)
    for name, document in (bundle.experiments or {}).items():
        drawn = Drawn(id=chance.id(name), salt=chance.salt(name))
        changed = with_draft(changed, name, document, drawn)
    if prune and bundle.layers is not None:
        changed = _without_layers(changed, bundle.layers)
    if changed != snapshot:
        check(changed)
    return changed


def changes(
    base: Snapshot, changed: Snapshot, bundle: Bundle, hidden: Container[str] = ()
) -> tuple[DocumentChange, ...]:
    """What a Bundle changes, in a fixed order; salts among `hidden` are not told."""
    told = (
        _change(target, form_at(base, target), form_at(changed, target, hidden))
        for target in sorted({*named_targets(bundle), *_moved(base, changed)})
    )
    return tuple(change for change in told if change is not None)


def reading(rights: Iterable[Right]) -> tuple[Right, ...]:
    """The rights that it takes to be told of changes which take these; roles are not for all."""
    return tuple(
        (action if action is Action.ACCESS else Action.READ, model) for action, model in rights
    )


def needed(base: Snapshot, changed: Snapshot, told: Iterable[DocumentChange]) -> tuple[Right, ...]:
    """The rights that a single change of each of these documents would take, each once."""
    rights: dict[Right, None] = {}
    for change in told:
        kind, _, name = change.target.partition("/")
        match kind:
            case "aliases":
                rights[Action.PROMOTE, name.partition("/")[0]] = None
            case "gates":
                rights[Action.GATES, None] = None
            case "principals":
                rights[Action.ACCESS, None] = None
            case "endpoints" | "experiments":
                action = Action.RULES if kind == "endpoints" else Action.EXPERIMENT
                models = (_model_of(held, kind, name) for held in (base, changed))
                rights.update({(action, model): None for model in models if model is not None})
            case _:
                rights[Action.EXPERIMENT, None] = None
    return tuple(rights)


def _with_aliases(snapshot: Snapshot, bundle: Bundle) -> Snapshot:
    for model, aliases in (bundle.aliases or {}).items():
        for alias, number in aliases.items():
            if model_of(snapshot, model).aliases.get(alias) != number:
                snapshot = with_alias(snapshot, model, number, alias)
    return snapshot


def _with_governance(snapshot: Snapshot, bundle: Bundle) -> Snapshot:
    for name in bundle.gates or {}:
        check_name("a gate", name)
    for name in bundle.principals or {}:
        if name == BUILT_IN:
            message = f"Principal '{BUILT_IN}' is built in; a bundle cannot say what it may do."
            raise InvalidRequest(message)
    return replace(
        snapshot,
        gates={**snapshot.gates, **(bundle.gates or {})},
        principals={**snapshot.principals, **(bundle.principals or {})},
    )


def _with_layers(snapshot: Snapshot, bundle: Bundle, chance: Chance) -> Snapshot:
    layers = dict(snapshot.layers)
    for name, document in (bundle.layers or {}).items():
        stored = layers.get(name)
        salt = document.salt or (chance.salt(f"layer.{name}") if stored is None else stored.salt)
        if stored is not None and stored.salt != salt:
            check_unused(snapshot, name, LIVE, "has another salt")
        layers[name] = Layer(salt=salt)
    hold_out, stated = snapshot.hold_out, bundle.holdout
    if stated is not None:
        kept = chance.salt(HOLD_OUT) if hold_out is None else hold_out.salt
        hold_out = HoldOut(salt=stated.salt or kept, share=stated.share)
    return replace(snapshot, layers=layers, hold_out=hold_out)


def _with_endpoints(snapshot: Snapshot, bundle: Bundle, chance: Chance) -> Snapshot:
    for name, document in (bundle.endpoints or {}).items():
        stored = snapshot.endpoints.get(name)
        split = [rule.name for rule in document.rules if rule.split is not None]
        salts = {rule: chance.salt(f"{name}.{rule}") for rule in split}
        changed = with_endpoint(snapshot, name, document, salts)
        # A salt that is written out is the one that was drawn: that alone changes nothing.
        if stored is not None and settled(stored) == settled(changed.endpoints[name]):
            continue
        snapshot = _with_pieces(changed, name, bundle, {} if stored is None else stored.splits)
    return snapshot


def _with_pieces(
    snapshot: Snapshot, name: str, bundle: Bundle, before: Mapping[str, Any]
) -> Snapshot:
    """Give new splits the intervals that the Bundle tells, where they go with the weights."""
    record = snapshot.endpoints[name]
    splits = dict(record.splits)
    for rule in record.document.rules:
        pieces = dict(pieces_for(bundle, name, rule.name))
        if rule.split is None or not pieces or rule.name in before:
            continue
        state = replace(splits[rule.name], intervals=pieces)
        if state.hash_version == HASH_VERSION and widths_of(state) == weights_of(rule.split):
            splits[rule.name] = state
    record = replace(record, splits=splits)
    return replace(snapshot, endpoints={**snapshot.endpoints, name: record})


def _without_unnamed(snapshot: Snapshot, bundle: Bundle) -> Snapshot:
    if bundle.experiments is not None:
        for name in sorted(snapshot.experiments.keys() - bundle.experiments.keys()):
            snapshot = _without_draft(snapshot, name)
    if bundle.endpoints is not None:
        for name in sorted(snapshot.endpoints.keys() - bundle.endpoints.keys()):
            snapshot = without_endpoint(snapshot, name)
    if bundle.gates is not None:
        snapshot = replace(snapshot, gates=_only(snapshot.gates, bundle.gates))
    if bundle.principals is not None:
        principals = _only(snapshot.principals, bundle.principals)
        tokens = {
            id_: token
            for id_, token in snapshot.tokens.items()
            if token.principal in principals or token.principal not in snapshot.principals
        }
        snapshot = replace(snapshot, principals=principals, tokens=tokens)
    return snapshot


def _without_draft(snapshot: Snapshot, name: str) -> Snapshot:
    state = snapshot.experiments[name].state
    if state is State.DRAFT:
        return delete_experiment(snapshot, name)
    if state in TERMINAL:
        return snapshot
    message = (
        f"Experiment '{name}' is {state} and the bundle does not name it; stop it first, or write "
        "it into the bundle."
    )
    raise Conflict(message)


def _without_layers(snapshot: Snapshot, named: Container[str]) -> Snapshot:
    for name in snapshot.layers:
        if name not in named:
            check_unused(snapshot, name, frozenset(State) - TERMINAL, "cannot be deleted")
    return replace(snapshot, layers=_only(snapshot.layers, named))


def _only(table: Mapping[str, Any], named: Container[str]) -> dict[str, Any]:
    return {name: document for name, document in table.items() if name in named}


def _moved(base: Snapshot, changed: Snapshot) -> Iterator[str]:
    """What was deleted, named by nobody."""
    for kind in TABLES:
        gone = getattr(base, kind).keys() - getattr(changed, kind).keys()
        yield from (f"{kind}/{name}" for name in gone)


def _change(target: str, before: Any, after: Any) -> DocumentChange | None:  # noqa: ANN401 - JSON
    kind: Literal["create", "update", "delete"] = "update"
    if before is None or after is None:
        if before == after:
            return None
        kind = "create" if before is None else "delete"
        return DocumentChange(target, kind, ())
    found = tuple(differences(before, after))
    return DocumentChange(target, kind, found) if found else None


def _model_of(snapshot: Snapshot, kind: str, name: str) -> str | None:
    """The model that an endpoint or an experiment is about, implied ones too; None for none."""
    called: str | None = name
    if kind == "experiments":
        study = snapshot.experiments.get(name)
        called = None if study is None else study.document.endpoint
    if called is None or not (called in snapshot.endpoints or called in snapshot.models):
        return None
    return endpoint_record(snapshot, called).document.model
