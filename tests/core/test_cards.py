"""What a card is put together from."""

import pytest
from msgspec.structs import replace

from gateway.core.audit import AuditEntry, commit_of
from gateway.core.cards import Biography, Card, Facts, card_of, experiments_on
from gateway.core.errors import NotFound
from gateway.core.reviews import Review
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot
from gateway.core.transitions import promote, rollback
from tests.experiments import experiment_of, record_of
from tests.fakes import manifest_of


def snapshot_of(**fields: object) -> Snapshot:
    """Three versions of model m, the first its champion."""
    record = ModelRecord({n: f"{n:064x}" for n in (1, 2, 3)}, {"champion": 1})
    return replace(EMPTY, models={"m": replace(record, **fields)})


def made(snapshot: Snapshot, number: int) -> Card:
    """The card of a version of which little is known."""
    facts = Facts(manifest_of("m", number), None, {}, ())
    return card_of(snapshot, facts, 5.0)


def entry_of(
    base: Snapshot, changed: Snapshot, action: str, target: str = "models/m"
) -> AuditEntry:
    """The entry of a change."""
    commit = commit_of(
        base, changed, at=7.0, actor="ana", action=action, target=target, reason="because"
    )
    return commit.entry


@pytest.mark.parametrize(
    ("fields", "number", "standing"),
    [
        ({}, 1, "champion"),
        ({}, 2, "registered, not served"),
        ({"previous": {"champion": (2,)}}, 2, "champion before, and warm to go back to"),
        ({"loaded": (3,)}, 3, "named by an endpoint or an experiment, or loaded by hand"),
        ({"retired": {4: f"{4:064x}"}}, 4, "retired: its files may be gone"),
    ],
)
def test_a_card_says_how_its_version_stands(
    fields: dict[str, object], number: int, standing: str
) -> None:
    """In words, whatever names it."""
    assert made(snapshot_of(**fields), number).standing[0].startswith(standing)


def test_a_version_that_is_not_registered_has_no_card() -> None:
    """Neither has a model."""
    with pytest.raises(NotFound):
        made(snapshot_of(), 9)
    with pytest.raises(NotFound):
        made(EMPTY, 1)


def test_an_experiment_that_ran_it_belongs_to_it() -> None:
    """By the versions that it ran, on an endpoint of that model."""
    record = replace(
        record_of(experiment_of(endpoint="m")), versions={"control": 1, "candidate": 2}
    )
    snapshot = replace(snapshot_of(), experiments={"x": record})
    assert experiments_on(snapshot, "m", 2) == ["x"]
    assert experiments_on(snapshot, "m", 3) == []
    assert experiments_on(snapshot, "n", 2) == []


def test_its_life_is_what_moved_it_and_what_was_said_of_it() -> None:
    """Promotions to and from it, its review, and no change that is about others."""
    first = snapshot_of()
    second = promote(first, "m", 2)
    third = promote(second, "m", 3)
    fourth = rollback(third, "m")
    review = Review(f"{2:064x}", registered_by="ana", registered_at=0.0)
    fifth = replace(fourth, reviews={"m/2": review})
    sixth = replace(fifth, models={"m": replace(fifth.models["m"], loaded=(3,))})
    life, late = Biography("m", 2, []), Biography("m", 2, [])
    entries: list[AuditEntry] = []
    for base, changed, action, target in (
        (EMPTY, first, "model.register", "models/m"),
        (first, second, "model.promote", "models/m"),
        (second, third, "model.promote", "models/m"),
        (third, fourth, "model.rollback", "models/m"),
        (fourth, fifth, "model.approve", "reviews/m/2"),
        (fifth, sixth, "model.load", "models/m"),
    ):
        entry = entry_of(base, changed, action, target)
        entries.append(replace(entry, revision=len(entries) + 1))
    for entry in entries:
        life.read(entry)
    for entry in entries[2:]:  # What came before is archived.
        late.read(entry)
    assert (life.since, late.since) == (None, 7.0)
    assert [one.action for one in late.decided] == ["model.rollback", "model.approve"]
    assert [one.action for one in life.decided] == [
        "model.promote",
        "model.promote",
        "model.rollback",
        "model.approve",
    ]
    assert all((one.actor, one.at, one.reason) == ("ana", 7.0, "because") for one in life.decided)


def test_what_was_forced_is_told_as_such() -> None:
    """An override of a gate stands out."""
    base = snapshot_of()
    entry = replace(
        entry_of(base, promote(base, "m", 2), "model.promote"), evidence={"override": True}
    )
    life = Biography("m", 2, [])
    life.read(entry)
    assert life.decided[0].forced


def test_a_version_is_retired_once() -> None:
    """Later changes of its model are about others."""
    first = snapshot_of()
    record = replace(first.models["m"], versions={1: "a" * 64, 2: "b" * 64}, retired={3: "c" * 64})
    second = replace(first, models={"m": record})
    third = replace(second, models={"m": replace(record, loaded=(2,))})
    life = Biography("m", 3, [])
    changes = ((first, second, "model.retire"), (second, third, "model.load"))
    for revision, (base, changed, action) in enumerate(changes, start=1):
        life.read(replace(entry_of(base, changed, action), revision=revision))
    assert [one.action for one in life.decided] == ["model.retire"]
