from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.audit import AuditEntry, commit_of, decode_entry, encode_entry
from gateway.core.deciding import Circumstances
from gateway.core.ledger import (
    SCHEMA,
    Basis,
    basis_document,
    basis_of,
    decisions_in,
    first_difference,
    replay,
)
from gateway.core.readings import Decision
from gateway.core.stepping import step
from gateway.core.tallies import Evidence
from tests.rollouts import HERE, evidence_of, judge_by_units, record_of, started

ELSEWHERE = replace(HERE, cpu="another")


def entry_of(units: int = 500, made_on: Circumstances = HERE) -> AuditEntry:
    """The entry of one step, as it comes back from the store."""
    snapshot = started()
    record = record_of(snapshot)
    evidence = evidence_of(record, units)
    decision = judge_by_units(record, evidence, 200.0)
    basis = Basis(SCHEMA, record, evidence, 200.0, 1, decision, made_on)
    changed = step(snapshot, "exp", decision, at=200.0, champion=1)
    entry = commit_of(
        snapshot,
        changed,
        at=201.0,
        actor="steward",
        action="experiment.step",
        target="experiments/exp",
        reason=decision.detail,
        evidence=basis_document(basis),
    ).entry
    return decode_entry(encode_entry(entry))


def off_by(amount: float) -> Any:
    """Judging as it was, with one number a little different."""

    def decide(record: Any, evidence: Evidence, now: float) -> Decision:
        decision = judge_by_units(record, evidence, now)
        reading = decision.readings[0]
        moved = replace(reading, estimate=(reading.estimate or 0.0) + amount)
        return replace(decision, readings=(moved,))

    return decide


@pytest.mark.parametrize("units", [13, 50, 500, 1_000])
def test_a_decision_is_made_again_bit_for_bit(units: int) -> None:
    """From nothing but its entry: rollback, verdict, step and promotion alike."""
    replayed = replay(entry_of(units), judge_by_units, HERE)
    assert replayed.exact
    assert replayed.difference is None


def test_all_that_a_decision_was_made_from_is_read_back() -> None:
    """The record as it stood, the tallies and the moment."""
    basis = basis_of(entry_of(500))
    record = record_of(started())
    assert basis.record == record
    assert basis.evidence == evidence_of(record, 500)
    assert (basis.now, basis.champion, basis.made_on) == (200.0, 1, HERE)


def test_the_last_bit_counts_where_it_was_decided() -> None:
    """On the same code, libraries and CPU nothing may differ."""
    replayed = replay(entry_of(), off_by(2**-40), HERE)
    assert replayed.difference is not None
    assert replayed.difference.startswith("decision.readings[0].estimate is -0.25 in the entry")


def test_elsewhere_numbers_may_differ_in_their_last_digits() -> None:
    """But not by more than one part in a thousand million."""
    assert replay(entry_of(), off_by(2**-40), ELSEWHERE).difference is None
    assert replay(entry_of(), off_by(1e-6), ELSEWHERE).difference is not None


def test_another_decision_is_another_decision_anywhere() -> None:
    """No tolerance applies to words and states."""

    def kinder(record: Any, evidence: Evidence, now: float) -> Decision:
        return replace(judge_by_units(record, evidence, now), reason="approval")

    replayed = replay(entry_of(50), kinder, ELSEWHERE)
    assert replayed.difference is not None
    assert "decision.reason" in replayed.difference


def test_what_the_step_did_to_the_record_is_worked_out_again() -> None:
    """An entry whose document does not follow from its decision is found out."""
    entry = entry_of(500)
    forged = replace(entry, document={**entry.document, "exposure": 9_000})
    replayed = replay(forged, judge_by_units, HERE)
    assert replayed.difference == "record.exposure is 9000 in the entry and 5000 in the replay."


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param({}, id="empty"),
        pytest.param({"schema": 2}, id="newer"),
        pytest.param({"schema": 1}, id="cut"),
        pytest.param([1], id="a list"),
    ],
)
def test_evidence_that_cannot_be_read_is_a_difference(evidence: Any) -> None:
    """It is told, never passed over."""
    replayed = replay(replace(entry_of(), evidence=evidence), judge_by_units, HERE)
    assert replayed.difference is not None


def test_only_decisions_are_in_the_ledger() -> None:
    """What people do is in the audit log around it."""
    entry = entry_of()
    assert decisions_in([replace(entry, evidence=None), entry]) == [entry]


@pytest.mark.parametrize(
    ("stored", "made", "told"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, "x.a is 1"),
        ({"a": 1}, {"b": 1}, "x.a is in the entry only"),
        ({}, {"b": 1}, "x.b is in the replay only"),
        ([1, 2], [1], "x has 2 items"),
        ([1, [2]], [1, [3]], "x[1][0] is 2"),
        (1, 1.0, "x is 1"),
        (None, 0.0, "x is None"),
    ],
)
def test_the_first_difference_is_told_with_its_place(
    stored: object, made: object, told: str | None
) -> None:
    """A reader can find it without reading two documents side by side."""
    found = first_difference(stored, made, "x", tolerance=0.0)
    assert found is None if told is None else told in (found or "")


def test_a_decision_of_before_there_were_gates_replays() -> None:
    """Its basis says nothing of them."""
    entry = entry_of()
    assert isinstance(entry.evidence, dict)
    old = {name: part for name, part in entry.evidence.items() if name not in ("closed", "passed")}
    assert len(old) == len(entry.evidence) - 2
    assert replay(replace(entry, evidence=old), judge_by_units, HERE).difference is None


def test_what_gates_add_to_other_entries_is_no_decision() -> None:
    """A promotion that met its gates has evidence, and is nothing to decide again."""
    entry = entry_of()
    other = replace(entry, action="model.promote", evidence={"gates": []})
    assert decisions_in([other, entry]) == [entry]
