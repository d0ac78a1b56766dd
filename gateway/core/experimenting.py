"""What people do with experiments: each a pure function from one Snapshot to the next.

What the steward does on its own follows from evidence and is in `gateway.core.stepping`.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import HASH_VERSION, SCALE, Interval, SplitState
from gateway.core.errors import Conflict, InvalidRequest, NotFound, excerpt
from gateway.core.experiment_checks import check_experiment
from gateway.core.experiments import (
    LIVE,
    TERMINAL,
    Experiment,
    ExperimentRecord,
    HoldOut,
    Layer,
    Phase,
    State,
)
from gateway.core.models import check_name
from gateway.core.snapshot import ModelRecord, Snapshot, check, endpoint_record
from gateway.core.strategies import opening
from gateway.core.transitions import promote, rollback

PAUSABLE: Final = frozenset({State.SHADOW, State.RUNNING, State.HELD})


class Drawn(Struct, frozen=True):
    """What chance gave for a new experiment; both are used once and never again."""

    id: str
    salt: str


def put_experiment(snapshot: Snapshot, name: str, document: Experiment, drawn: Drawn) -> Snapshot:
    """Write a draft, or replace one whole.

    Raises:
        InvalidRequest: the document contradicts itself or names what does not exist.
        Conflict: it was started; what it measures was registered then and stays.
    """
    drafted = with_draft(snapshot, name, document, drawn)
    return drafted if drafted is snapshot else _checked(drafted)


def with_draft(snapshot: Snapshot, name: str, document: Experiment, drawn: Drawn) -> Snapshot:
    """The same, before it is checked against the rest of the Snapshot: for several at once."""
    check_experiment(name, document)
    stored = snapshot.experiments.get(name)
    if stored is not None and stored.state is not State.DRAFT:
        if stored.document == document:
            return snapshot
        how = "it ended" if stored.state in TERMINAL else "it was started"
        message = (
            f"Experiment '{name}' cannot be changed: {how}, and what is measured is registered "
            "before the first unit is seen. Start a new one under another name."
        )
        raise Conflict(message)
    weights = opening(document).weights
    identity = drawn if stored is None else Drawn(stored.id, stored.split.salt)
    record = ExperimentRecord(
        document=document,
        id=identity.id,
        split=SplitState.fresh(salt=identity.salt, hash_version=HASH_VERSION, weights=weights),
    )
    return replace(snapshot, experiments={**snapshot.experiments, name: record})


def delete_experiment(snapshot: Snapshot, name: str) -> Snapshot:
    """Drop a draft or one that has ended.

    Raises:
        NotFound: no such experiment.
        Conflict: it runs.
    """
    record = experiment_of(snapshot, name)
    if record.state in LIVE:
        message = f"Experiment '{name}' is {record.state}; stop it first."
        raise Conflict(message)
    rest = {other: held for other, held in snapshot.experiments.items() if other != name}
    return replace(snapshot, experiments=rest)


def start_experiment(
    snapshot: Snapshot, name: str, at: float, supersedes: str | None = None, *, by: str = ""
) -> Snapshot:
    """Start a draft: resolve its aliases, take its slots, begin its first phase.

    Args:
        snapshot: the one it stands in; the commit that follows gives the phase its number.
        name: the draft's name.
        at: UTC seconds.
        supersedes: a live experiment that is stopped by the same commit; `by` is who asks.

    Raises:
        NotFound: no such experiment.
        Conflict: it is no draft, its layer has no room, or the alias that it would move names
            another version than its control.
        InvalidRequest: it cannot run beside what the Snapshot holds.
    """
    if supersedes is not None:
        if supersedes == name:
            message = "An experiment cannot supersede itself."
            raise InvalidRequest(message)
        snapshot = stop_experiment(snapshot, supersedes, at, f"superseded by '{name}'")
    record = experiment_of(snapshot, name)
    if record.state is not State.DRAFT:
        message = f"Experiment '{name}' is {record.state}; only a draft can be started."
        raise Conflict(message)
    document = record.document
    endpoint = endpoint_record(snapshot, document.endpoint).document
    model = snapshot.models[endpoint.model]
    versions = resolved(document, model)
    _check_control(name, document, model, versions)
    first = opening(document)
    exposure = first.exposure if document.shadow is None else 0
    started = replace(
        record,
        split=SplitState.fresh(
            salt=record.split.salt, hash_version=HASH_VERSION, weights=first.weights
        ),
        state=State.RUNNING if document.shadow is None else State.SHADOW,
        since=at,
        exposure=exposure,
        phases=(Phase(snapshot.revision + 1, at, exposure, first.weights),),
        versions=versions,
        scalars=endpoint.token_scalars,
        slots=_slots_for(snapshot, name, document),
        started_by=by,
    )
    return with_record(snapshot, name, started)


def pause_experiment(snapshot: Snapshot, name: str, at: float, reason: str) -> Snapshot:
    """Leave traffic as it is and take no step; harm still rolls back.

    Raises:
        NotFound: no such experiment.
        Conflict: it is in no state in which steps are taken.
    """
    record = _in(snapshot, name, PAUSABLE, "paused")
    return with_record(snapshot, name, replace(record, state=State.PAUSED, reason=reason, since=at))


def resume_experiment(snapshot: Snapshot, name: str, at: float) -> Snapshot:
    """Take steps again; one that is held is read anew, and held again if its reason stands.

    Raises:
        NotFound: no such experiment.
        Conflict: it is neither paused nor held.
    """
    record = _in(snapshot, name, frozenset({State.PAUSED, State.HELD}), "resumed")
    state = State.SHADOW if shadows_only(record) else State.RUNNING
    return with_record(snapshot, name, replace(record, state=state, reason="", since=at))


def approve_experiment(snapshot: Snapshot, name: str) -> Snapshot:
    """Let it promote once its evidence says so.

    Raises:
        NotFound: no such experiment.
        Conflict: it does not ask for approval, has it, or does not run.
    """
    record = _in(snapshot, name, LIVE - {State.HOLDING_OUT}, "approved")
    if record.document.promote != "approval" or record.approved:
        why = "has it already" if record.approved else "does not wait for it"
        message = f"Experiment '{name}' cannot be given approval: it {why}."
        raise Conflict(message)
    return with_record(snapshot, name, replace(record, approved=True))


def stop_experiment(snapshot: Snapshot, name: str, at: float, reason: str) -> Snapshot:
    """End it without a verdict: everybody gets the endpoint's default again.

    One that holds out was promoted, and stays so.

    Raises:
        NotFound: no such experiment.
        Conflict: it does not run.
    """
    record = _in(snapshot, name, LIVE, "stopped")
    ended = State.PROMOTED if record.state is State.HOLDING_OUT else State.STOPPED
    return with_record(snapshot, name, replace(record, state=ended, reason=reason, since=at))


def roll_back_experiment(snapshot: Snapshot, name: str, at: float, reason: str) -> Snapshot:
    """End it as harmful: everybody gets the default again, a promotion of its own is undone.

    Raises:
        NotFound: no such experiment.
        Conflict: it does not run.
    """
    record = _in(snapshot, name, LIVE, "rolled back")
    ended = replace(record, state=State.ROLLED_BACK, reason=reason, since=at)
    if record.state is State.HOLDING_OUT:
        snapshot = demoted(snapshot, record)
    return with_record(snapshot, name, ended)


def put_layer(snapshot: Snapshot, name: str, salt: str) -> Snapshot:
    """Add a layer, or give an empty one another salt.

    Raises:
        Conflict: its salt would change under experiments that run in it.
    """
    check_name("a layer", name)
    stored = snapshot.layers.get(name)
    if stored is not None and stored.salt != salt:
        check_unused(snapshot, name, LIVE, "has another salt")
    layers = {**snapshot.layers, name: Layer(salt=salt)}
    return _checked(replace(snapshot, layers=layers))


def delete_layer(snapshot: Snapshot, name: str) -> Snapshot:
    """Drop a layer that no experiment needs.

    Raises:
        NotFound: no such layer.
        Conflict: a draft or a live experiment names it.
    """
    if name not in snapshot.layers:
        message = f"There is no layer '{excerpt(name)}'."
        raise NotFound(message)
    check_unused(snapshot, name, frozenset(State) - TERMINAL, "cannot be deleted")
    rest = {other: layer for other, layer in snapshot.layers.items() if other != name}
    return replace(snapshot, layers=rest)


def put_hold_out(snapshot: Snapshot, hold_out: HoldOut) -> Snapshot:
    """Set aside units that no experiment enrols.

    Raises:
        InvalidRequest: a share that may not be.
    """
    return _checked(replace(snapshot, hold_out=hold_out))


def delete_hold_out(snapshot: Snapshot) -> Snapshot:
    """Set nobody aside.

    Raises:
        NotFound: nobody is.
    """
    if snapshot.hold_out is None:
        message = "There is no global hold-out."
        raise NotFound(message)
    return replace(snapshot, hold_out=None)


def experiment_of(snapshot: Snapshot, name: str) -> ExperimentRecord:
    """The record of an experiment.

    Raises:
        NotFound: there is none.
    """
    record = snapshot.experiments.get(name)
    if record is None:
        message = f"There is no experiment '{excerpt(name)}'."
        raise NotFound(message)
    return record


def resolved(document: Experiment, model: ModelRecord) -> dict[str, int]:
    """The version that each variant runs now.

    Raises:
        InvalidRequest: an alias that the model does not have.
    """
    versions = {}
    for variant in document.variants:
        number = variant.version or model.aliases.get(variant.alias or "")
        if number is None:
            message = f"Variant '{variant.name}': the model has no alias '{variant.alias}'."
            raise InvalidRequest(message)
        versions[variant.name] = number
    return versions


def shadows_only(record: ExperimentRecord) -> bool:
    """Whether it was started and still is in its shadow stage, paused or not."""
    return record.phase is not None and record.phase.exposure == 0


def champion_of(snapshot: Snapshot, record: ExperimentRecord) -> tuple[str, int | None]:
    """The model of the experiment, and the version that the alias it would move names now."""
    model = endpoint_record(snapshot, record.document.endpoint).document.model
    return model, snapshot.models[model].aliases.get(record.document.alias)


def promoted_variant(record: ExperimentRecord) -> str:
    """The variant that one which holds out has promoted: all others but the control are gone."""
    weights: Mapping[str, int] = {} if record.phase is None else record.phase.weights
    control = record.document.control
    named = (name for name, weight in weights.items() if weight and name != control)
    return next(named, control)


def with_record(snapshot: Snapshot, name: str, record: ExperimentRecord) -> Snapshot:
    """Put a record.

    Raises:
        InvalidRequest: it does not go with the rest of the Snapshot.
    """
    experiments = {**snapshot.experiments, name: record}
    return _checked(replace(snapshot, experiments=experiments))


def free_slots(snapshot: Snapshot, layer: str) -> list[Interval]:
    """The parts of a layer that no live experiment holds."""
    taken = sorted(
        slot
        for record in snapshot.experiments.values()
        if record.document.layer == layer and record.state in LIVE
        for slot in record.slots
    )
    free, edge = [], 0
    for start, end in (*taken, (SCALE, SCALE)):
        if start > edge:
            free.append((edge, start))
        edge = max(edge, end)
    return free


def _slots_for(snapshot: Snapshot, name: str, document: Experiment) -> tuple[Interval, ...]:
    layer, wanted = document.layer, document.layer_share
    if layer is None:
        return ()
    if layer not in snapshot.layers:
        message = f"Experiment '{name}': there is no layer '{layer}'; put it first."
        raise Conflict(message)
    free, slots = free_slots(snapshot, layer), []
    room = sum(end - start for start, end in free)
    if room < wanted:
        message = (
            f"Experiment '{name}' wants {wanted} out of {SCALE} of layer '{layer}', "
            f"of which {room} are free; stop another one or take a smaller share."
        )
        raise Conflict(message)
    for start, end in free:
        width = min(wanted, end - start)
        if width:
            slots.append((start, start + width))
        wanted -= width
    return tuple(slots)


def _check_control(
    name: str, document: Experiment, model: ModelRecord, versions: Mapping[str, int]
) -> None:
    """What is certified against the control may replace the control, and nothing else."""
    champion, control = model.aliases.get(document.alias), versions[document.control]
    if document.promote != "never" and champion not in (None, control):
        message = (
            f"Experiment '{name}' would move '{document.alias}', which names version {champion}, "
            f"while its control is version {control}. Take that version as the control, or set "
            "'promote' to 'never'."
        )
        raise Conflict(message)


def demoted(snapshot: Snapshot, record: ExperimentRecord) -> Snapshot:
    """Undo the promotion that it made; one that somebody else made since then stays."""
    alias = record.document.alias
    model, champion = champion_of(snapshot, record)
    control = record.versions[record.document.control]
    if champion == control or champion != record.versions[promoted_variant(record)]:
        return snapshot
    before = snapshot.models[model].previous.get(alias, ())
    if before and before[-1] == control:
        return rollback(snapshot, model, alias)
    return promote(snapshot, model, control, alias)


def _in(
    snapshot: Snapshot, name: str, states: Iterable[State], participle: str
) -> ExperimentRecord:
    record = experiment_of(snapshot, name)
    if record.state not in states:
        message = f"Experiment '{name}' is {record.state}; it cannot be {participle} now."
        raise Conflict(message)
    return record


def check_unused(snapshot: Snapshot, layer: str, states: frozenset[State], refusal: str) -> None:
    """Refuse, with a Conflict, to touch a layer that an experiment in one of the states names."""
    for name, record in snapshot.experiments.items():
        if record.document.layer == layer and record.state in states:
            message = f"Layer '{layer}' {refusal} while experiment '{name}' is in it."
            raise Conflict(message)


def _checked(snapshot: Snapshot) -> Snapshot:
    check(snapshot)
    return snapshot
