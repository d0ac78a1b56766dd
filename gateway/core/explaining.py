"""Explaining: which variant a unit gets, worked out again from what was committed.

Nothing that served the request is asked. The rules, salt and intervals of any Revision stand in
the audit log, so an assignment can be recomputed long after it was made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.assignment import Reason, positions
from gateway.core.audit import AuditEntry, entry_hash, first_break
from gateway.core.endpoints import Endpoint, EndpointRecord, Rule
from gateway.core.errors import Conflict, InvalidRequest, NotFound
from gateway.core.experiments import ExperimentRecord, HoldOut, Layer
from gateway.core.plans import MAX_UNIT_BYTES, Assignment, assign
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, check, endpoint_record, plan_of
from gateway.core.targeting import Scalar, holds
from gateway.core.tensors import Tensors

_T = TypeVar("_T", ModelRecord, EndpointRecord, ExperimentRecord)


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
    """Whether a rule's conditions hold; `position` is None where the rule does not split."""

    rule: str
    holds: bool
    decides: bool
    position: Position | None


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
    facts = _facts_of(record.document, situation)
    assignment = assign(plan_of(snapshot, endpoint), facts, unit)
    return Explanation(
        endpoint=endpoint,
        revision=snapshot.revision,
        unit=unit.decode(errors="replace"),
        variant=assignment.variant.name,
        version=assignment.variant.version,
        reason=assignment.reason,
        rule=assignment.rule,
        propensity=assignment.propensity,
        rules=tuple(
            _explain_rule(rule, record, facts, assignment) for rule in record.document.rules
        ),
    )


def rebuilt(entries: Sequence[AuditEntry], revision: int) -> Snapshot:
    """The Snapshot of an earlier revision, from the audit log's entries since the first.

    Args:
        entries: the oldest first; later ones than the revision are left out.
        revision: the one that is asked for, at least 1.

    Raises:
        NotFound: the entries do not lead from revision 1 to this one.
        Conflict: the chain of the entries is broken.
    """
    wanted = [entry for entry in entries if entry.revision <= revision]
    if [entry.revision for entry in wanted] != list(range(1, revision + 1)):
        message = f"The audit log does not hold every change up to revision {revision}."
        raise NotFound(message)
    broken = first_break(wanted, entry_hash(wanted[-1]) if wanted else "")
    if broken is not None:
        message = f"The audit log was tampered with at revision {broken}; nothing follows from it."
        raise Conflict(message)
    documents: dict[str, Any] = {}
    for entry in wanted:
        documents[entry.target] = entry.document
    snapshot = replace(
        EMPTY,
        revision=revision,
        models=_table(documents, "models", ModelRecord),
        endpoints=_table(documents, "endpoints", EndpointRecord),
        experiments=_table(documents, "experiments", ExperimentRecord),
        layers=msgspec.convert(documents.get("layers") or {}, dict[str, Layer]),
        hold_out=msgspec.convert(documents.get("holdout"), HoldOut | None),
    )
    check(snapshot)
    return snapshot


def _table(documents: Mapping[str, Any], kind: str, of: type[_T]) -> dict[str, _T]:
    """The documents of one kind that stand."""
    return {
        target.removeprefix(f"{kind}/"): msgspec.convert(document, of, str_keys=True)
        for target, document in documents.items()
        if document is not None and target.startswith(f"{kind}/")
    }


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


def _facts_of(document: Endpoint, situation: Situation) -> _Facts:
    """The situation, with the unit where each split looks for it."""
    headers = dict(situation.headers)
    parameters = dict(situation.parameters)
    tensors = {}
    for rule in document.rules:
        if rule.split is None:
            continue
        key = rule.split.unit
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
        drawn = positions(state.salt, facts.unit)
        position = Position(
            salt=state.salt,
            hash_version=state.hash_version,
            enrolment=drawn.enrolment,
            variant=drawn.variant,
            exposure=rule.split.exposure,
            enrolled=drawn.enrolment < rule.split.exposure,
        )
    return RuleExplanation(
        rule=rule.name,
        holds=all(holds(condition, facts.header, facts.parameters) for condition in rule.when),
        decides=assignment.rule == rule.name,
        position=position,
    )
