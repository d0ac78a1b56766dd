"""What retention lets go, and that nothing which is needed can be among it."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.audit import commit_of
from gateway.core.endpoints import Endpoint, EndpointRecord, Shadow, Target
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.experiments import State
from gateway.core.models import Key
from gateway.core.retention import DAY_S, mentions, policy_for, retire, standings
from gateway.core.retentions import Retention, check_retention
from gateway.core.reviews import PromotionWish, Review
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, check, named_keys
from gateway.core.transitions import promote, register, rollback
from tests.experiments import experiment_of, record_of

NOW = 1_000 * DAY_S
POLICY = Retention(schema=1, models=("m",), keep=1, min_age_days=10, ledger_days=100)


def snapshot_of(*numbers: int, champion: int = 1, policy: Retention = POLICY) -> Snapshot:
    """Old versions of model m, one of them the champion, and one document of retention."""
    record = ModelRecord(versions={n: f"{n:064x}" for n in numbers}, aliases={"champion": champion})
    reviews = {f"m/{n}": Review(f"{n:064x}", registered_by="ana", registered_at=0) for n in numbers}
    return replace(EMPTY, models={"m": record}, reviews=reviews, retentions={"p": policy})


def held(snapshot: Snapshot, mentioned: Mapping[Key, float] | None = None) -> dict[int, str | None]:
    """What holds each version of m."""
    return {one.number: one.held_by for one in standings(snapshot, mentioned or {}, NOW)}


def free(snapshot: Snapshot, mentioned: Mapping[Key, float] | None = None) -> set[int]:
    """The versions of m that may go."""
    return {number for number, why in held(snapshot, mentioned).items() if why is None}


def test_old_versions_that_nothing_names_may_go() -> None:
    """The champion and the newest stay; those between are free."""
    assert free(snapshot_of(1, 2, 3, 4)) == {2, 3}


def test_without_a_document_everything_stays() -> None:
    """A model that no document means has no version that may go."""
    other = replace(POLICY, models=("other-*",))
    assert standings(snapshot_of(1, 2, 3, policy=other), {}, NOW) == ()


def test_the_version_to_go_back_to_stays() -> None:
    """After a promotion the version before is kept warm, and so it is held."""
    moved = promote(snapshot_of(1, 2, 3, 4), "m", 3)
    assert free(moved) == {2}


def test_shadows_rules_and_loads_by_hand_hold() -> None:
    """Whatever an endpoint names or somebody loaded stays."""
    document = Endpoint(
        schema=1,
        model="m",
        default=Target(version=2),
        shadows=(Shadow(name="s", version=3, share=10),),
    )
    snapshot = snapshot_of(1, 2, 3, 4, 5, 6)
    loaded = replace(snapshot.models["m"], loaded=(4,))
    served = replace(
        snapshot, endpoints={"e": EndpointRecord(document=document)}, models={"m": loaded}
    )
    assert free(served) == {5}


def test_a_wish_holds_what_it_wishes() -> None:
    """A version that waits for its approvals is not taken away meanwhile."""
    wish = PromotionWish(version=2, asked_by="ana", at=0)
    assert free(replace(snapshot_of(1, 2, 3, 4), wishes={"m/champion": wish})) == {3}


@pytest.mark.parametrize(
    ("state", "since", "may_go"),
    [
        (State.RUNNING, 0.0, False),
        (State.PROMOTED, NOW - 99 * DAY_S, False),
        (State.PROMOTED, NOW - 101 * DAY_S, True),
    ],
)
def test_an_experiment_holds_its_versions_until_long_after_its_end(
    state: State, since: float, *, may_go: bool
) -> None:
    """While it runs, whatever its age; and then as long as entries of the log do."""
    record = replace(
        record_of(experiment_of(endpoint="m")),
        state=state,
        since=since,
        versions={"control": 1, "candidate": 2},
    )
    snapshot = replace(snapshot_of(1, 2, 3), experiments={"x": record})
    assert (2 in free(snapshot)) is may_go


def test_a_young_entry_of_the_log_holds_what_it_names() -> None:
    """A hundred days by this document, to the second."""
    snapshot = snapshot_of(1, 2, 3)
    assert free(snapshot, {("m", 2): NOW - 100 * DAY_S + 1}) == set()
    assert free(snapshot, {("m", 2): NOW - 100 * DAY_S}) == {2}


def test_a_young_version_stays() -> None:
    """Ten days by this document; one of which it is not known when it came stays for good."""
    snapshot = snapshot_of(1, 2, 3)
    young = replace(snapshot.reviews["m/2"], registered_at=NOW - 9 * DAY_S)
    assert free(replace(snapshot, reviews={**snapshot.reviews, "m/2": young})) == set()
    assert free(replace(snapshot, reviews={})) == set()


def test_of_several_documents_the_most_that_each_keeps_holds() -> None:
    """One that keeps more is never weakened by another."""
    more = replace(POLICY, models=("*",), keep=3, ledger_days=1, delete_files=True)
    both = replace(snapshot_of(1, 2, 3, 4, 5), retentions={"p": POLICY, "q": more})
    assert policy_for(both, "m") == replace(POLICY, keep=3)
    assert free(both) == {2}


def test_what_went_leaves_its_number_and_digest() -> None:
    """It cannot be served, reviewed or registered again, with the same or other bytes."""
    after = retire(snapshot_of(1, 2, 3), [("m", 2)], {}, NOW)
    assert after.models["m"].retired == {2: f"{2:064x}"}
    assert sorted(after.models["m"].versions) == [1, 3]
    assert "m/2" not in after.reviews
    for digest in (f"{2:064x}", f"{9:064x}"):
        with pytest.raises(Conflict, match="retired"):
            register(after, "m", 2, digest)


def test_a_long_history_forgets_what_went() -> None:
    """Going back twice skips the version that is gone."""
    snapshot = snapshot_of(1, 2, 3, 4, champion=1)
    for number in (2, 3):
        snapshot = promote(snapshot, "m", number)
    after = retire(snapshot, [("m", 1)], {}, NOW)
    assert after.models["m"].previous["champion"] == (2,)
    assert rollback(after, "m").models["m"].aliases["champion"] == 2


def test_what_is_held_cannot_be_retired() -> None:
    """The same question is asked again where it is done, so nothing slips in between."""
    with pytest.raises(Conflict, match="served"):
        retire(snapshot_of(1, 2, 3), [("m", 2), ("m", 1)], {}, NOW)
    with pytest.raises(Conflict, match="no retention"):
        retire(snapshot_of(1, 2, 3), [("m", 7)], {}, NOW)


def test_a_promotion_mentions_where_it_came_from_and_went() -> None:
    """Both the version that serves and the one before; that others are registered says nothing."""
    base = snapshot_of(1, 2, 3)
    entry = commit_of(
        base,
        promote(base, "m", 2),
        at=5,
        actor="ana",
        action="model.promote",
        target="models/m",
        reason="",
    ).entry
    assert mentions(entry, str) == {("m", 1), ("m", 2)}


def test_an_experiments_entry_mentions_its_versions() -> None:
    """They are numbers of the model that its endpoint serves."""
    base = snapshot_of(1, 2, 3)
    record = replace(
        record_of(experiment_of(endpoint="m")), versions={"control": 1, "candidate": 3}
    )
    entry = commit_of(
        base,
        replace(base, experiments={"x": record}),
        at=5,
        actor="ana",
        action="experiment.start",
        target="experiments/x",
        reason="",
    ).entry
    assert mentions(entry, lambda _: "m") == {("m", 1), ("m", 3)}
    damaged = replace(entry, document={"nonsense": 1})
    with pytest.raises(InvalidRequest):
        mentions(damaged, str)


@pytest.mark.parametrize(
    "fields",
    [
        {"models": ()},
        {"models": ("a/b",)},
        {"keep": 0},
        {"min_age_days": -1.0},
        {"ledger_days": float("nan")},
        {"schema": 2},
    ],
)
def test_a_document_that_contradicts_itself_is_refused(fields: dict[str, object]) -> None:
    """Bounds of every field; a document that keeps nothing is none."""
    with pytest.raises(InvalidRequest):
        check_retention("p", replace(POLICY, **fields))


@given(
    numbers=st.sets(st.integers(1, 8), min_size=2),
    aliases=st.lists(st.integers(1, 8), max_size=4),
    mentioned=st.dictionaries(st.integers(1, 8), st.integers(0, 1_000), max_size=4),
    keep=st.integers(1, 4),
)
def test_whatever_is_let_go_nothing_that_serves_loses_its_version(
    numbers: set[int], aliases: list[int], mentioned: dict[int, int], keep: int
) -> None:
    """Every version that may go can go, all at once, and the Snapshot that is left is sound."""
    snapshot = snapshot_of(*numbers, champion=min(numbers), policy=replace(POLICY, keep=keep))
    for number in aliases:
        if number in numbers and snapshot.models["m"].aliases["champion"] != number:
            snapshot = promote(snapshot, "m", number)
    seen = {("m", number): day * DAY_S for number, day in mentioned.items()}
    going = {("m", one.number) for one in standings(snapshot, seen, NOW) if one.held_by is None}
    after = retire(snapshot, going, seen, NOW)
    check(after)
    assert named_keys(after) == named_keys(snapshot)
    assert not going & {key for key, at in seen.items() if NOW - at < 100 * DAY_S}
    assert after.models["m"].versions.keys() >= set(sorted(numbers)[-keep:])
