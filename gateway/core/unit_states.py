"""Units: what is remembered of one unit of an experiment, and what it adds to the tallies.

A state holds only what adds up whatever the order: the earliest time of everything that was seen,
and of every outcome the corrections that could still matter. So any order of the same facts, in any
parts, and any of them twice, leads to the same state and the same tallies. Two things depend on the
order, and are counted when they happen: which of two contradicting outcomes stands, and which are
left out of a unit that has too many.

The first exposure is the earliest time of a sighting or of an outcome's prediction, and decides the
unit's phase, variant and segment. It stays as it is once a metric of the unit is frozen.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from gateway.core.evidence import Outcome
from gateway.core.stats.moments import LIMIT
from gateway.core.studies import MetricPlan, Study, mean_of, scalar_of, score
from gateway.core.tallies import CellKey

FORMAT: Final = 1
"""Of states in the store."""
MAX_OUTCOMES: Final = 1_000
"""Facts kept of one unit and outcome; further ones are counted and left out."""
MAX_TOLD: Final = 16
"""Corrections kept of one fact; further ones are counted and left out."""

# What became of one outcome.
ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"
CONTRADICTION: Final = "contradiction"
REVISION: Final = "revision"
SUPERSEDED: Final = "superseded"
OVERFULL: Final = "overfull"

Told: TypeAlias = tuple[int, int, float, int | None]
"""Sequence, accepted at, value, observed at; times in Unix milliseconds."""
Value: TypeAlias = tuple[float, ...]
"""Of a frozen metric: nothing (missing), y, or y and x."""
Sighting: TypeAlias = tuple[int, int, int, int, int]
"""Phase, variant, segment, event bits, Unix milliseconds."""


class Seen(Struct, array_like=True, gc=False):
    """A unit under one variant.

    Attributes:
        variant: Index.
        ms: Its earliest exposure.
        phase: That of it.
        sighted_ms: Its earliest sighting; -1 if only outcomes told of it.
        segment: That of it; 0 (`other`) as long as there is none.
        events: Event bit, by place, to when it was seen first.
    """

    variant: int
    ms: int
    phase: int
    sighted_ms: int
    segment: int
    events: dict[int, int]


class Fact(Struct, array_like=True, gc=False):
    """One outcome of one row of one prediction, and its corrections.

    Attributes:
        outcome: Place in `Study.outcomes`.
        variant: Index of what the prediction ran.
        at_ms: The prediction's time.
        told: By sequence; of two, the one with the higher sequence was accepted later, because
            one that is neither newer nor earlier can never count.
        scalars: The row's, if a metric needs them.
    """

    outcome: int
    variant: int
    at_ms: int
    told: list[Told]
    scalars: tuple[float, ...] = ()


class UnitState(Struct, array_like=True, gc=False):
    """All of it.

    Attributes:
        format: Of this state.
        seen: One for each variant.
        facts: By prediction, row and outcome.
        latest_ms: When the last of them was accepted.
        first: (ms, phase, variant, segment) of the first exposure, once it stays.
        frozen: By a metric's index.
    """

    format: int = FORMAT
    seen: list[Seen] = []
    facts: dict[bytes, Fact] = {}
    latest_ms: int = 0
    first: tuple[int, int, int, int] | None = None
    frozen: dict[int, Value] = {}


class Standing(Struct, frozen=True, array_like=True, gc=False):
    """What a unit adds to its cell while nothing freezes; equal ones add the same.

    `events` has the bits that count. `after` holds (metric, late, revised) where there are any.
    """

    cell: CellKey
    events: int
    received: bool
    contaminated: bool
    after: tuple[tuple[int, int, int], ...] = ()


def decode_unit(data: bytes) -> UnitState:
    """Read a state back.

    Raises:
        msgspec.DecodeError: it is none, or of another format.
    """
    state = _DECODER.decode(data)
    if state.format != FORMAT:
        raise msgspec.DecodeError(f"Unit states of format {state.format} are not read here.")
    return state


def encode_unit(state: UnitState) -> bytes:
    """A state as the store holds it."""
    return _ENCODER.encode(state)


def add_sighting(state: UnitState, sighting: Sighting) -> None:
    """Take in one row of `Sightings`."""
    phase, variant, segment, bits, ms = sighting
    seen = _exposed(state, variant, ms, phase)
    if seen.sighted_ms < 0 or (ms, segment) < (seen.sighted_ms, seen.segment):
        seen.sighted_ms, seen.segment = ms, segment
    events, place = seen.events, 0
    while bits:
        if bits & 1 and events.get(place, ms) >= ms:
            events[place] = ms
        bits >>= 1
        place += 1


def add_outcome(study: Study, state: UnitState, outcome: Outcome, accepted_ms: int) -> str:
    """Take in one outcome whose phase, variant and name the study knows; what became of it."""
    variant, place = study.variants[outcome.variant], study.outcomes[outcome.name]
    seen = _exposed(state, variant, outcome.at_ms, outcome.phase)
    # Who has a prediction id has an answer: that is `SERVED`, whose place is 0.
    if seen.events.get(0, outcome.at_ms) >= outcome.at_ms:
        seen.events[0] = outcome.at_ms
    key = b"%b%d:%d" % (outcome.nonce, outcome.row, place)
    accepted_ms = _in_time(study, state, accepted_ms)
    told: Told = (outcome.sequence, accepted_ms, outcome.value, outcome.observed_ms)
    fact = state.facts.get(key)
    if fact is not None:
        result = _retold(fact, told)
    elif _is_full(state, place):
        return OVERFULL
    else:
        scalars = outcome.scalars if study.keeps[place] else ()
        state.facts[key] = Fact(place, variant, outcome.at_ms, [told], scalars)
        result = ACCEPTED
    state.latest_ms = max(state.latest_ms, accepted_ms)
    return result


def first_of(state: UnitState) -> tuple[int, int, int, int]:
    """(ms, phase, variant, segment) of a unit's first exposure."""
    if state.first is not None:
        return state.first
    seen = state.seen[0]
    if len(state.seen) > 1:
        seen = min(state.seen, key=lambda one: (one.ms, one.phase, one.variant))
    return seen.ms, seen.phase, seen.variant, seen.segment


def standing_of(study: Study, state: UnitState) -> Standing:
    """What a unit adds to the tallies, apart from its frozen metrics."""
    first = first_of(state)
    first_ms, phase, variant, segment = first
    ends_ms, bits = _ends_ms(state, first), 0
    for seen in state.seen:
        if seen.variant == variant:
            for place, ms in seen.events.items():
                if ends_ms is None or ms <= ends_ms:
                    bits |= 1 << place
    after: tuple[tuple[int, int, int], ...] = ()
    if state.latest_ms > first_ms + study.soonest_ms:
        after = tuple(_after(study, state, first, ends_ms))
    return Standing((phase, variant, segment), bits, bool(state.facts), ends_ms is not None, after)


def due_of(study: Study, state: UnitState) -> int | None:
    """When the next of a unit's metrics is to be frozen, in Unix milliseconds; None if all are."""
    waiting = [plan.due_ms for i, plan in enumerate(study.plans) if i not in state.frozen]
    return _starts_ms(study, first_of(state)[0]) + min(waiting) if waiting else None


def freeze(study: Study, state: UnitState, through_ms: int) -> list[tuple[int, Value]]:
    """Freeze the metrics whose time was over; each (index, value) that was frozen by this."""
    first = first_of(state)
    starts_ms, newly = _starts_ms(study, first[0]), list[tuple[int, Value]]()
    for index, plan in enumerate(study.plans):
        if index not in state.frozen and starts_ms + plan.due_ms <= through_ms:
            newly.append((index, _value_of(plan, state, first)))
    if newly:
        state.first = first
        state.frozen.update(newly)
    return newly


def is_unscored(study: Study, outcome: Outcome) -> bool:
    """Whether a metric cannot be computed from an outcome."""
    place = study.outcomes[outcome.name]
    return any(
        plan.outcome == place and score(plan, outcome.value, outcome.scalars) is None
        for plan in study.plans
    )


def is_after(study: Study, state: UnitState, outcome: Outcome, accepted_ms: int) -> bool:
    """Whether an outcome came after the time of a metric that reads it and is in its window."""
    first_ms, _, variant, _ = first_of(state)
    place = study.outcomes[outcome.name]
    accepted_ms = _in_time(study, state, accepted_ms)
    return study.variants[outcome.variant] == variant and any(
        accepted_ms > first_ms + plan.due_ms
        for plan in study.plans
        if place in (plan.outcome, plan.denominator)
        and first_ms <= outcome.at_ms <= first_ms + plan.window_ms
    )


def _starts_ms(study: Study, first_ms: int) -> int:
    """From when on a unit waits: a request, with the others of its slot; any other one at once."""
    slot_ms = study.slot_ms
    return (first_ms // slot_ms + 1) * slot_ms if slot_ms else first_ms


def _exposed(state: UnitState, variant: int, ms: int, phase: int) -> Seen:
    """The unit under a variant, seen at this time, too."""
    for seen in state.seen:
        if seen.variant == variant:
            seen.ms, seen.phase = min((seen.ms, seen.phase), (ms, phase))
            return seen
    seen = Seen(variant, ms, phase, -1, 0, {})
    state.seen.append(seen)
    state.seen.sort(key=lambda one: one.variant)
    return seen


def _in_time(study: Study, state: UnitState, accepted_ms: int) -> int:
    """When something counts as accepted: not before what is frozen already, for it is not in it."""
    if not state.frozen or state.first is None:
        return accepted_ms
    frozen_ms = max(study.plans[index].due_ms for index in state.frozen)
    return max(accepted_ms, state.first[0] + frozen_ms + 1)


def _is_full(state: UnitState, place: int) -> bool:
    if len(state.facts) < MAX_OUTCOMES:
        return False
    return sum(fact.outcome == place for fact in state.facts.values()) >= MAX_OUTCOMES


def _retold(fact: Fact, told: Told) -> str:
    """Take in what was told of a known fact."""
    sequence, accepted_ms, value, observed_ms = told
    for index, known in enumerate(fact.told):
        if known[0] == sequence:
            if (known[2], known[3]) != (value, observed_ms):
                return CONTRADICTION
            if accepted_ms < known[1]:
                fact.told[index] = told
                fact.told = _useful(fact.told)
            return DUPLICATE
    result = REVISION if any(known[0] < sequence for known in fact.told) else SUPERSEDED
    useful = _useful([*fact.told, told])
    if len(useful) > MAX_TOLD:
        return OVERFULL
    fact.told = useful
    return result


def _useful(told: Iterable[Told]) -> list[Told]:
    """Those that no other one makes useless, by being both newer and no later."""
    useful: list[Told] = []
    for one in sorted(told, reverse=True):
        if not useful or one[1] < useful[-1][1]:
            useful.append(one)
    return useful[::-1]


def _ends_ms(state: UnitState, first: tuple[int, int, int, int]) -> int | None:
    """When the unit was seen under another variant; nothing counts after that. None: never."""
    if len(state.seen) == 1:
        return None
    others = [seen.ms for seen in state.seen if seen.variant != first[2]]
    return max(first[0], min(others)) if others else None


def _counted(
    state: UnitState, first: tuple[int, int, int, int], ends_ms: int | None, window_ms: int
) -> Iterator[tuple[bytes, Fact]]:
    """The facts of predictions within a window from the first exposure."""
    first_ms, last_ms = first[0], first[0] + window_ms
    if ends_ms is not None:
        last_ms = min(last_ms, ends_ms)
    for key, fact in state.facts.items():
        if fact.variant == first[2] and first_ms <= fact.at_ms <= last_ms:
            yield key, fact


def _after(
    study: Study, state: UnitState, first: tuple[int, int, int, int], ends_ms: int | None
) -> Iterator[tuple[int, int, int]]:
    """(metric, late, revised) of the metrics that have any."""
    for index, plan in enumerate(study.plans):
        due_ms = first[0] + plan.due_ms
        if state.latest_ms <= due_ms:
            continue
        late = revised = 0
        for _, fact in _counted(state, first, ends_ms, plan.window_ms):
            if fact.outcome not in (plan.outcome, plan.denominator):
                continue
            after = sum(told[1] > due_ms for told in fact.told)
            is_late = after == len(fact.told)
            late += is_late
            revised += after - is_late
        if late or revised:
            yield index, late, revised


def _value_of(plan: MetricPlan, state: UnitState, first: tuple[int, int, int, int]) -> Value:
    """The value of a metric from what was accepted in time."""
    due_ms, ends_ms = first[0] + plan.due_ms, _ends_ms(state, first)
    above: list[tuple[tuple[int, int, bytes], float]] = []
    below: list[float] = []
    covariates: list[float] = []
    came = 0
    for key, fact in _counted(state, first, ends_ms, plan.window_ms):
        in_time = [told for told in fact.told if told[1] <= due_ms]
        if not in_time or fact.outcome not in (plan.outcome, plan.denominator):
            continue
        _, _, value, observed_ms = in_time[-1]
        if fact.outcome == plan.denominator and abs(value) <= LIMIT:
            below.append(value)
        if fact.outcome != plan.outcome:
            continue
        came += 1
        worth = score(plan, value, fact.scalars)
        if worth is None:
            continue
        at_ms = fact.at_ms if observed_ms is None else observed_ms
        above.append(((at_ms, fact.at_ms, key), worth))
        covariate = scalar_of(fact.scalars, plan.covariate)
        if covariate is not None:
            covariates.append(covariate)
    return _combined(plan, came, above, below, covariates)


def _combined(
    plan: MetricPlan,
    came: int,
    above: list[tuple[tuple[int, int, bytes], float]],
    below: list[float],
    covariates: list[float],
) -> Value:
    """The unit's value, from the scores of its outcomes and when each happened."""
    metric, scores = plan.metric, [worth for _, worth in above]
    is_silent = not came and not below
    if is_silent or (came and not scores):
        if not is_silent or metric.silence == "missing":
            return ()
        return (metric.default, 0.0) if plan.denominator >= 0 else (metric.default,)
    if plan.denominator >= 0:
        value: Value = math.fsum(scores), math.fsum(below)
    else:
        y = max(above)[1] if metric.combine == "last" else _total(metric.combine, scores)
        value = (y, mean_of(covariates)) if covariates else (y,)
    return value if all(abs(number) <= LIMIT for number in value) else ()


def _total(combine: str, scores: list[float]) -> float:
    """One value of several, the same in whatever order they stand."""
    if combine == "max":
        return max(scores)
    return math.fsum(scores) if combine == "sum" else mean_of(scores)


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(UnitState)
