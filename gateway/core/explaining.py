"""Explaining: which variant a unit gets, worked out again from what was committed.

Nothing that served the request is asked. The rules, salt and intervals of any Revision stand in
the audit log, so an assignment can be recomputed long after it was made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import HASH_VERSION, SCALE, Reason, SplitState, positions
from gateway.core.audit import AuditEntry, entry_hash
from gateway.core.documents import assembled, placed_of
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule, Split
from gateway.core.errors import Conflict, InvalidRequest, NotFound
from gateway.core.experiments import ExperimentRecord
from gateway.core.naming import MAX_UNIT_BYTES
from gateway.core.plans import Assignment, Enrols, assign, ranges_of_split
from gateway.core.snapshot import EMPTY, Snapshot, check, endpoint_record, plan_of
from gateway.core.targeting import Scalar, holds
from gateway.core.tensors import Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A request as rules see it: lower-case headers as they decode from Latin-1, parameters."""

    unit: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


class Position(Struct, frozen=True):
    """Where a unit stands in a split: two numbers out of 0..9,999, and what they came from."""

    salt: str
    hash_version: int
    enrolment: int
    variant: int
    exposure: int
    enrolled: bool


class RuleExplanation(Struct, frozen=True):
    """Whether a rule's conditions hold; `position` is None where the rule does not split.

    An experiment is a rule behind the endpoint's own: `phase` is the one that runs, and `left_out`
    says why the unit is not enrolled (`hold_out`, `layer` or `exposure`).
    """

    rule: str
    holds: bool
    decides: bool
    position: Position | None
    phase: int = 0
    left_out: str | None = None


class Explanation(Struct, frozen=True):
    """Which variant the unit gets at a revision, and why."""

    endpoint: str
    revision: int
    unit: str
    variant: str
    version: int
    reason: Reason
    rule: str | None
    propensity: float
    rules: tuple[RuleExplanation, ...]


def explain(snapshot: Snapshot, endpoint: str, situation: Situation) -> Explanation:
    """Decide a request with this unit as the data plane does, and say how.

    The unit is put wherever the endpoint's splits read theirs.

    Raises:
        NotFound: no such endpoint.
        InvalidRequest: a unit that is blank or too long to be one.
    """
    unit = situation.unit
    if not unit.strip() or len(unit) > MAX_UNIT_BYTES:
        message = f"A unit holds 1 to {MAX_UNIT_BYTES} bytes that are not all blank."
        raise InvalidRequest(message)
    record = endpoint_record(snapshot, endpoint)
    plan = plan_of(snapshot, endpoint)
    studied = {one.name: snapshot.experiments[one.name] for one in plan.experiments}
    facts = _facts_of(record.document, studied.values(), situation)
    assignment = assign(plan, facts, unit)
    return Explanation(
        endpoint=endpoint,
        revision=snapshot.revision,
        unit=unit.decode(errors="replace"),
        variant=assignment.variant.name,
        version=assignment.variant.version,
        reason=assignment.reason,
        rule=assignment.rule,
        propensity=assignment.propensity,
        rules=(
            *(_explain_rule(rule, record, facts, assignment) for rule in record.document.rules),
            *(
                _explain_experiment(one, studied[one.name], facts, assignment)
                for one in plan.experiments
            ),
        ),
    )


class Rebuilding:
    """Works an earlier Snapshot out again, entry by entry, from one that is known."""

    def __init__(self, base: Snapshot = EMPTY) -> None:
        """Begin with a Snapshot as it was kept; by default where the log begins."""
        self.revision = base.revision
        self._head = base.audit_head
        self._placed = placed_of(base)

    def add(self, entry: AuditEntry) -> None:
        """Take the next entry.

        Raises:
            NotFound: entries in between are missing.
            Conflict: it does not follow from the one before.
        """
        if entry.revision != self.revision + 1:
            message = f"The audit log does not hold every change up to revision {entry.revision}."
            raise NotFound(message)
        if entry.previous != self._head:
            message = (
                f"The audit log was tampered with at revision {entry.revision}; "
                "nothing follows from it."
            )
            raise Conflict(message)
        self.revision, self._head = entry.revision, entry_hash(entry)
        self._placed[entry.target] = entry.document
        self._placed |= {moved.target: moved.document for moved in entry.also}

    def snapshot(self) -> Snapshot:
        """The Snapshot after the newest entry that was taken; its epoch is not set.

        Raises:
            InvalidRequest: the documents do not hold together.
        """
        placed = assembled(self._placed.items())
        snapshot = replace(placed, revision=self.revision, audit_head=self._head)
        check(snapshot)
        return snapshot


@dataclass(frozen=True, slots=True)
class _Facts:
    """A request made up from a situation."""

    headers: Mapping[str, str]
    parameters: Mapping[str, Scalar]
    tensors: Tensors
    unit: bytes

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def raw_header(self, name: bytes) -> bytes | None:
        value = self.headers.get(name.decode("latin-1"))
        return None if value is None else value.encode("latin-1")


def _facts_of(
    document: Endpoint, studied: Iterable[ExperimentRecord], situation: Situation
) -> _Facts:
    """The situation, with the unit where each split looks for it."""
    headers = dict(situation.headers)
    parameters = dict(situation.parameters)
    tensors = {}
    split = (rule.split.unit for rule in document.rules if rule.split is not None)
    for key in (*split, *(record.document.unit for record in studied)):
        if key is None:
            continue
        if key.header is not None:
            headers[key.header.lower()] = situation.unit.decode("latin-1")
        elif key.parameter is not None:
            parameters[key.parameter] = situation.unit.decode(errors="replace")
        else:
            tensors[key.input or ""] = np.array([situation.unit], dtype=np.object_)
    return _Facts(headers, parameters, tensors, situation.unit)


def _explain_rule(
    rule: Rule, record: EndpointRecord, facts: _Facts, assignment: Assignment
) -> RuleExplanation:
    position = None
    if rule.split is not None:
        state = record.splits[rule.name]
        if state.hash_version == HASH_VERSION:
            position = _position(state, rule.split.exposure, facts.unit)
        else:
            position = _place(rule.split, state, facts.unit)
    return RuleExplanation(
        rule=rule.name,
        holds=all(holds(condition, facts.header, facts.parameters) for condition in rule.when),
        decides=assignment.rule == rule.name,
        position=position,
    )


def _explain_experiment(
    enrols: Enrols, record: ExperimentRecord, facts: _Facts, assignment: Assignment
) -> RuleExplanation:
    return RuleExplanation(
        rule=enrols.name,
        holds=all(
            holds(condition, facts.header, facts.parameters) for condition in record.document.when
        ),
        decides=assignment.rule == enrols.name,
        position=_position(record.split, record.exposure, facts.unit),
        phase=enrols.study.phase,
        left_out=enrols.left_out(facts.unit),
    )


def _position(state: SplitState, exposure: int, unit: bytes) -> Position:
    drawn = positions(state.salt, unit)
    return Position(
        salt=state.salt,
        hash_version=state.hash_version,
        enrolment=drawn.enrolment,
        variant=drawn.variant,
        exposure=exposure,
        enrolled=drawn.enrolment < exposure,
    )


def _place(split: Split, state: SplitState, unit: bytes) -> Position:
    """One hash decides both, as in GrowthBook."""
    ranges = ranges_of_split(split, state.salt)
    place = round((ranges.place(unit) or 0.0) * SCALE)
    return Position(
        salt=state.salt,
        hash_version=state.hash_version,
        enrolment=place,
        variant=place,
        exposure=split.exposure,
        enrolled=ranges.draw(unit) is not None,
    )
