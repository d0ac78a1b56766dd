"""Checks on experiments as the Snapshot keeps them: against what it holds, and side by side.

What ended is history: it may name what has gone since.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NoReturn, Protocol

from msgspec import Struct

from gateway.core.assignment import HASH_VERSION, SCALE, Interval, SplitState, covers_exactly
from gateway.core.endpoints import Endpoint, check_salt
from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.experiment_checks import check_experiment
from gateway.core.experiments import (
    ENROLLING,
    LIVE,
    TERMINAL,
    ExperimentRecord,
    HoldOut,
    Layer,
    Phase,
)
from gateway.core.models import check_name

MAX_EXPERIMENTS: Final = 1_000
MAX_LAYERS: Final = 100
MAX_ID: Final = 64
MAX_PHASES: Final = 2_000
MAX_PHASE: Final = 2**32 - 1
"""A prediction id has four bytes for it."""


class Registered(Protocol):
    """What is known of a model, as far as experiments ask."""

    @property
    def versions(self) -> Mapping[int, str]:
        """Every registered version."""

    @property
    def aliases(self) -> Mapping[str, int]:
        """Every alias."""


class Studied(Struct, frozen=True):
    """All of a Snapshot that decides whether its experiments hold together.

    `endpoints` holds every endpoint that may be called, implied ones included.
    """

    experiments: Mapping[str, ExperimentRecord]
    layers: Mapping[str, Layer]
    hold_out: HoldOut | None
    endpoints: Mapping[str, Endpoint]
    models: Mapping[str, Registered]


def check_experiments(studied: Studied) -> None:
    """Refuse experiments that contradict the rest of the Snapshot or each other.

    Raises:
        InvalidRequest: the first fault found, as a sentence.
    """
    _at_most("experiments", len(studied.experiments), MAX_EXPERIMENTS)
    _at_most("layers", len(studied.layers), MAX_LAYERS)
    for name, layer in studied.layers.items():
        check_name("a layer", name)
        check_salt(f"Layer '{name}'", layer.salt)
    if studied.hold_out is not None:
        check_salt("The hold-out", studied.hold_out.salt)
        if not 0 <= studied.hold_out.share <= SCALE // 2:
            _refuse("The hold-out", f"its share must be 0 to {SCALE // 2}")
    for name, record in studied.experiments.items():
        check_experiment(name, record.document)
        _check_record(f"Experiment '{name}'", record)
        if record.state not in TERMINAL:
            _check_names(f"Experiment '{name}'", name, record, studied)
    _check_slots(studied)
    _check_neighbours(studied)


def salts_of(studied: Studied) -> Iterator[tuple[str, str]]:
    """Every salt of experiments, layers and the hold-out, each with whose it is."""
    for name, record in studied.experiments.items():
        yield f"experiment '{name}'", record.split.salt
    for name, layer in studied.layers.items():
        yield f"layer '{name}'", layer.salt
    if studied.hold_out is not None:
        yield "hold-out", studied.hold_out.salt


def _check_record(where: str, record: ExperimentRecord) -> None:
    """What can be said of a record by itself."""
    names = [variant.name for variant in record.document.variants]
    if not (1 <= len(record.id) <= MAX_ID and record.id.isascii() and record.id.isalnum()):
        _refuse(where, f"its id holds 1 to {MAX_ID} letters and digits")
    check_salt(where, record.split.salt)
    if record.split.hash_version != HASH_VERSION:
        _refuse(where, f"hash version {excerpt(record.split.hash_version)} is not for experiments")
    if not covers_exactly(record.split) or not set(record.split.intervals) <= set(names):
        _refuse(where, "the stored intervals do not tile the whole range")
    if not set(record.versions) <= set(names):
        _refuse(where, "it holds the version of a variant that it does not have")
    _check_phases(where, record, names)
    if record.state in LIVE:
        _check_live(where, record, names)


def _check_phases(where: str, record: ExperimentRecord, names: list[str]) -> None:
    if not 0 <= record.exposure <= SCALE:
        _refuse(where, f"exposure is {excerpt(record.exposure)}; it must be 0 to {SCALE}")
    if len(record.phases) > MAX_PHASES:
        _refuse(where, f"it has {len(record.phases)} phases; at most {MAX_PHASES} are kept")
    before = 0
    for phase in record.phases:
        _check_phase(where, phase, names)
        if phase.number <= before:
            _refuse(where, "the numbers of its phases must grow")
        before = phase.number


def _check_phase(where: str, phase: Phase, names: list[str]) -> None:
    weights = phase.weights
    is_sound = (
        1 <= phase.number <= MAX_PHASE
        and 0 <= phase.exposure <= SCALE
        and set(weights) <= set(names)
        and all(weight >= 0 for weight in weights.values())
        and sum(weights.values()) == SCALE
    )
    if not is_sound:
        _refuse(where, f"phase {excerpt(phase.number)} has no sound number, exposure or weights")


def _check_live(where: str, record: ExperimentRecord, names: list[str]) -> None:
    """What assigns units must be what its phase says: the tokens' propensities come from it."""
    if record.phase is None:
        _refuse(where, "it runs without a phase")
    if set(record.versions) != set(names):
        _refuse(where, "it runs without the version of each variant")
    if record.state not in ENROLLING:
        return
    if record.phase.exposure != record.exposure:
        _refuse(where, "its exposure is not that of its phase")
    owned = widths_of(record.split)
    if any(owned.get(name, 0) != record.phase.weights.get(name, 0) for name in names):
        _refuse(where, "the stored intervals do not have the widths of its phase's weights")


def _check_names(where: str, name: str, record: ExperimentRecord, studied: Studied) -> None:
    """What it names exists, and its endpoint lets it be met."""
    document = record.document
    endpoint = studied.endpoints.get(document.endpoint)
    if endpoint is None:
        _refuse(where, f"there is no endpoint or model '{document.endpoint}'")
    model = studied.models[endpoint.model]
    numbered = [variant.version for variant in document.variants if variant.version is not None]
    for number in (*numbered, *record.versions.values()):
        if number not in model.versions:
            _refuse(where, f"version {excerpt(number)} of '{endpoint.model}' is not registered")
    for variant in document.variants:
        if variant.alias is not None and variant.alias not in model.aliases:
            _refuse(where, f"model '{endpoint.model}' has no alias '{variant.alias}'")
    if any(rule.name == name for rule in endpoint.rules):
        _refuse(where, f"endpoint '{document.endpoint}' has a rule of that name")
    if record.state in LIVE:
        _check_endpoint(where, record, endpoint)


def _check_endpoint(where: str, record: ExperimentRecord, endpoint: Endpoint) -> None:
    called = record.document.endpoint
    for rule in endpoint.rules:
        if not rule.when:
            _refuse(
                where,
                f"rule '{rule.name}' of endpoint '{called}' takes every request, so the experiment "
                "would enrol nobody; give the rule conditions, or take it away",
            )
    if record.scalars != endpoint.token_scalars:
        _refuse(
            where,
            f"the token scalars of endpoint '{called}' must stay as they were when it started",
        )
    for metric in record.document.metrics:
        for scalar in (metric.scalar, metric.covariate):
            if scalar is not None and scalar not in record.scalars:
                _refuse(
                    where,
                    f"metric '{metric.name}' needs '{scalar}', which is not among the token "
                    f"scalars of endpoint '{called}'",
                )


def _check_slots(studied: Studied) -> None:
    taken: dict[str, list[tuple[Interval, str]]] = {}
    for name, record in studied.experiments.items():
        if record.state in TERMINAL:
            continue
        layer = record.document.layer
        if layer is not None:
            taken.setdefault(layer, []).extend((slot, name) for slot in record.slots)
        _check_share(f"Experiment '{name}'", record, studied)
    for layer, slots in taken.items():
        edge, owner = 0, ""
        for (start, end), name in sorted(slots):
            if end <= start or start < 0 or end > SCALE:
                _refuse(f"Experiment '{name}'", f"a slot is no part of 0 to {SCALE}")
            if start < edge:
                _refuse(
                    f"Experiment '{name}'",
                    f"its slots of layer '{layer}' overlap those of '{owner}'",
                )
            edge, owner = end, name


def _check_share(where: str, record: ExperimentRecord, studied: Studied) -> None:
    layer = record.document.layer
    if layer is None and record.slots:
        _refuse(where, "it holds slots and is in no layer")
    if layer is None or record.state not in LIVE:
        return
    if layer not in studied.layers:
        _refuse(where, f"there is no layer '{layer}'")
    if sum(end - start for start, end in record.slots) != record.document.layer_share:
        _refuse(where, f"its slots are not its share of layer '{layer}'")


def _check_neighbours(studied: Studied) -> None:
    """Experiments that are met on one endpoint keep out of each other's way."""
    first: dict[str, str] = {}
    for name, record in studied.experiments.items():
        if record.state not in LIVE:
            continue
        called = record.document.endpoint
        other = first.setdefault(called, name)
        if other == name:
            continue
        one, two = studied.experiments[other].document, record.document
        if one.layer is None or one.layer != two.layer:
            _refuse(
                f"Experiment '{name}'",
                f"experiment '{other}' runs on endpoint '{called}' too; put both in one layer",
            )
        if one.unit != two.unit:
            _refuse(
                f"Experiment '{name}'",
                f"experiment '{other}' on endpoint '{called}' has other units, so a layer could "
                "not keep them apart",
            )


def widths_of(state: SplitState) -> dict[str, int]:
    """How much of 0..9,999 each variant owns."""
    return {
        name: sum(end - start for start, end in pieces) for name, pieces in state.intervals.items()
    }


def _at_most(what: str, count: int, limit: int) -> None:
    if count > limit:
        message = f"There are {count} {what}; at most {limit} are kept."
        raise InvalidRequest(message)


def _refuse(where: str, fault: str) -> NoReturn:
    message = f"{where}: {fault}."
    raise InvalidRequest(message)
