from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.endpoints import (
    Endpoint,
    EndpointRecord,
    Rule,
    Shadow,
    Split,
    Target,
    Weighted,
)
from gateway.core.errors import Conflict, GatewayError, InvalidRequest, NotFound
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot, named_versions
from gateway.core.transitions import (
    delete_endpoint,
    load,
    model_of,
    moved_share,
    promote,
    put_endpoint,
    register,
    rollback,
    unload,
)

DIGESTS = {number: f"{number:064x}" for number in range(1, 31)}


def registered(*numbers: int) -> Snapshot:
    """A Snapshot that knows these versions of model m."""
    snapshot = EMPTY
    for number in numbers:
        snapshot = register(snapshot, "m", number, DIGESTS[number])
    return snapshot


def split_document(
    weights: Mapping[str, int], exposure: int = 10_000, salt: str | None = None
) -> Endpoint:
    """An endpoint with one split, under rule r, over version 1."""
    variants = tuple(
        Weighted(name=name, weight=weight, version=1) for name, weight in weights.items()
    )
    split = Split(exposure=exposure, variants=variants, salt=salt)
    return Endpoint(
        schema=1, model="m", default=Target(version=1), rules=(Rule(name="r", split=split),)
    )


def put(snapshot: Snapshot, document: Endpoint, salt: str = "drawn") -> Snapshot:
    """Put endpoint e, with a salt for its rule should it be new."""
    return put_endpoint(snapshot, "e", document, {"r": salt})


def owners(record: EndpointRecord) -> list[str]:
    """Who owns each of the 10,000 positions under rule r."""
    table = [""] * 10_000
    for name, pieces in record.splits["r"].intervals.items():
        for start, end in pieces:
            table[start:end] = [name] * (end - start)
    assert "" not in table
    return table


@st.composite
def weights(draw: st.DrawFn) -> dict[str, int]:
    """One to five variants whose weights add up to 10,000."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True))
    edges = st.integers(0, 10_000)
    cuts = sorted(draw(st.lists(edges, min_size=len(names) - 1, max_size=len(names) - 1)))
    return {
        name: end - start
        for name, (start, end) in zip(names, pairwise([0, *cuts, 10_000]), strict=True)
    }


# Versions.


def test_a_first_version_makes_its_model() -> None:
    """Registering adds the version and moves nothing that is served."""
    snapshot = registered(1, 2)
    assert snapshot.models == {"m": ModelRecord(versions={1: DIGESTS[1], 2: DIGESTS[2]})}
    assert named_versions(snapshot) == {"m": frozenset()}
    assert snapshot.revision == 0


def test_a_seed_gives_a_new_model_its_settings_and_a_known_model_nothing() -> None:
    """First aliases and settings come with the first version only."""
    seed = ModelRecord(versions={}, aliases={"champion": 1}, labels=("no", "yes"))
    snapshot = register(EMPTY, "m", 1, DIGESTS[1], seed)
    assert snapshot.models["m"].aliases == {"champion": 1}
    assert snapshot.models["m"].labels == ("no", "yes")
    later = ModelRecord(versions={}, aliases={"champion": 2})
    assert register(snapshot, "m", 2, DIGESTS[2], later).models["m"].aliases == {"champion": 1}


def test_the_same_number_with_other_bytes_is_a_conflict() -> None:
    """A version never changes; the same bytes again change nothing."""
    snapshot = registered(1)
    assert register(snapshot, "m", 1, DIGESTS[1]) == snapshot
    with pytest.raises(Conflict, match="registered with other bytes"):
        register(snapshot, "m", 1, DIGESTS[2])


@pytest.mark.parametrize(
    ("model", "number", "digest"),
    [
        pytest.param("../m", 1, DIGESTS[1], id="name"),
        pytest.param("m", 0, DIGESTS[1], id="number-0"),
        pytest.param("m", 1_000_000_000, DIGESTS[1], id="number-10-digits"),
        pytest.param("m", 1, "../../etc/passwd", id="digest"),
    ],
)
def test_a_version_that_no_snapshot_may_hold_is_refused(
    model: str, number: int, digest: str
) -> None:
    """Name, number and digest are checked before they are stored."""
    with pytest.raises(InvalidRequest):
        register(EMPTY, model, number, digest)


def test_a_seed_whose_alias_names_no_version_is_refused() -> None:
    """A new model's first aliases name its first version."""
    seed = ModelRecord(versions={}, aliases={"champion": 2})
    with pytest.raises(InvalidRequest, match="names version 2, which is not registered"):
        register(EMPTY, "m", 1, DIGESTS[1], seed)


# Promotion and rollback.


def test_promotions_are_remembered_and_rolled_back_in_turn() -> None:
    """An alias goes back the way it came, one version at a time, until there is none."""
    snapshot = registered(1, 2, 3)
    for number in (1, 2, 3):
        snapshot = promote(snapshot, "m", number)
    record = snapshot.models["m"]
    assert (record.aliases, record.previous) == ({"champion": 3}, {"champion": (1, 2)})
    snapshot = rollback(snapshot, "m")
    record = snapshot.models["m"]
    assert (record.aliases, record.previous) == ({"champion": 2}, {"champion": (1,)})
    snapshot = rollback(snapshot, "m")
    assert snapshot.models["m"].aliases == {"champion": 1}
    with pytest.raises(Conflict, match="no earlier version"):
        rollback(snapshot, "m")


def test_aliases_have_histories_of_their_own() -> None:
    """Moving one alias leaves the others and their histories alone."""
    snapshot = registered(1, 2, 3)
    snapshot = promote(promote(snapshot, "m", 1), "m", 2, "challenger")
    snapshot = promote(snapshot, "m", 3, "challenger")
    record = snapshot.models["m"]
    assert record.aliases == {"champion": 1, "challenger": 3}
    assert record.previous == {"champion": (), "challenger": (2,)}
    assert rollback(snapshot, "m", "challenger").models["m"].aliases == {
        "champion": 1,
        "challenger": 2,
    }


def test_a_history_keeps_the_latest_twenty() -> None:
    """An alias that moves for ever does not make the Snapshot grow for ever."""
    snapshot = registered(*range(1, 31))
    for number in range(1, 31):
        snapshot = promote(snapshot, "m", number)
    assert snapshot.models["m"].previous["champion"] == tuple(range(10, 30))


def test_the_version_before_stays_warm() -> None:
    """Rollback needs no load: for each alias the version before is named, earlier ones are not."""
    snapshot = registered(1, 2, 3)
    for number in (1, 2, 3):
        snapshot = promote(snapshot, "m", number)
    assert named_versions(snapshot) == {"m": {2, 3}}
    assert named_versions(rollback(snapshot, "m")) == {"m": {1, 2}}


@pytest.mark.parametrize(
    ("step", "error"),
    [
        pytest.param(lambda s: promote(s, "none", 1), NotFound, id="promote-no-model"),
        pytest.param(lambda s: promote(s, "m", 9), NotFound, id="promote-no-version"),
        pytest.param(lambda s: promote(s, "m", 10**300), NotFound, id="promote-huge"),
        pytest.param(lambda s: promote(s, "m", 2), Conflict, id="promote-again"),
        pytest.param(lambda s: promote(s, "m", 1, "a b"), InvalidRequest, id="promote-bad-alias"),
        pytest.param(lambda s: rollback(s, "none"), NotFound, id="rollback-no-model"),
        pytest.param(lambda s: rollback(s, "m", "x" * 9999), NotFound, id="rollback-no-alias"),
        pytest.param(lambda s: load(s, "none", 1), NotFound, id="load-no-model"),
        pytest.param(lambda s: load(s, "m", 9), NotFound, id="load-no-version"),
        pytest.param(lambda s: load(s, "empty", None), NotFound, id="load-no-versions"),
        pytest.param(lambda s: unload(s, "x" * 9999, 1), NotFound, id="unload-no-model"),
        pytest.param(lambda s: unload(s, "m", 9), NotFound, id="unload-no-version"),
        pytest.param(lambda s: unload(s, "m", 2), Conflict, id="unload-champion"),
        pytest.param(lambda s: unload(s, "m", None), Conflict, id="unload-all-in-use"),
        pytest.param(lambda s: delete_endpoint(s, "m"), NotFound, id="delete-no-document"),
        pytest.param(lambda s: delete_endpoint(s, "x" * 9999), NotFound, id="delete-long-name"),
    ],
)
def test_an_illegal_step_is_refused(
    step: Callable[[Snapshot], Snapshot], error: type[GatewayError]
) -> None:
    """What is not there is not found, what may not be now is a conflict; both in few words."""
    snapshot = promote(promote(registered(1, 2, 3), "m", 1), "m", 2)
    snapshot = replace(snapshot, models={**snapshot.models, "empty": ModelRecord(versions={})})
    with pytest.raises(error) as refusal:
        step(snapshot)
    assert len(str(refusal.value)) < 300


# Loading by hand.


def test_a_version_is_kept_warm_by_hand() -> None:
    """Loading names the version, or the highest; loading it again changes nothing."""
    snapshot = load(registered(2, 10, 3), "m", 2)
    assert snapshot.models["m"].loaded == (2,)
    assert load(snapshot, "m", 2) is snapshot
    assert load(snapshot, "m", None).models["m"].loaded == (2, 10)
    assert named_versions(snapshot) == {"m": {2}}


def test_unloading_lets_go_of_what_nothing_uses() -> None:
    """One version, or all of them, is no longer named."""
    snapshot = load(load(registered(1, 2), "m", 1), "m", 2)
    assert unload(snapshot, "m", 1).models["m"].loaded == (2,)
    assert unload(snapshot, "m", None).models["m"].loaded == ()


def test_unloading_the_version_before_gives_up_the_way_back_to_it() -> None:
    """A version that is only kept to go back to may be let go of."""
    snapshot = registered(1, 2, 3)
    for number in (1, 2, 3):
        snapshot = promote(snapshot, "m", number)
    after = unload(snapshot, "m", 2)
    assert after.models["m"].previous == {"champion": (1,)}
    assert rollback(after, "m").models["m"].aliases == {"champion": 1}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(Endpoint(schema=1, model="m", default=Target(version=1)), id="default"),
        pytest.param(split_document({"a": 0, "b": 10_000}), id="variant"),
        pytest.param(
            Endpoint(
                schema=1, model="m", default=Target(version=2),
                rules=(Rule(name="r", serve=Target(version=1)),),
            ),
            id="rule",
        ),
        pytest.param(
            Endpoint(
                schema=1, model="m", default=Target(version=2),
                shadows=(Shadow(name="s", share=1, version=1),),
            ),
            id="shadow",
        ),
    ],
)  # fmt: skip
def test_a_version_that_an_endpoint_names_is_not_unloaded(document: Endpoint) -> None:
    """Wherever a document names a version, unloading it is a conflict."""
    snapshot = put(registered(1, 2), document)
    with pytest.raises(Conflict, match="Version 1 of 'm' is in use"):
        unload(snapshot, "m", 1)
    with pytest.raises(Conflict, match="names version 1"):
        unload(snapshot, "m", None)


# Endpoints.


def test_a_new_split_is_cut_in_order_with_the_salt_that_was_drawn() -> None:
    """A split that was never served gets contiguous intervals and the caller's salt."""
    record = put(registered(1), split_document({"b": 2500, "a": 7500})).endpoints["e"]
    state = record.splits["r"]
    assert state.intervals == {"b": ((0, 2500),), "a": ((2500, 10_000),)}
    assert (state.salt, state.hash_version) == ("drawn", 1)


def test_an_edit_keeps_the_salt_and_the_intervals_that_it_can() -> None:
    """Weights move the least, and a salt drawn later is not used."""
    snapshot = put(registered(1), split_document({"a": 5000, "b": 5000}))
    after = put(snapshot, split_document({"a": 4000, "b": 5000, "c": 1000}, 100), "later")
    state = after.endpoints["e"].splits["r"]
    assert state.salt == "drawn"
    assert state.intervals == {
        "a": ((0, 4000),),
        "b": ((5000, 10_000),),
        "c": ((4000, 5000),),
    }


def test_a_document_replaces_the_one_before_whole() -> None:
    """Nothing of an earlier document stays: neither its rules nor the state of its splits."""
    snapshot = put(registered(1), split_document({"a": 10_000}))
    plain = Endpoint(schema=1, model="m", default=Target(version=1))
    after = put(snapshot, plain)
    assert after.endpoints == {"e": EndpointRecord(document=plain, splits={})}


def test_a_named_salt_starts_over_unless_it_is_the_one_in_use() -> None:
    """Naming another salt draws everybody anew; naming the same one moves nobody."""
    first, second = {"a": 5000, "b": 5000}, {"b": 5000, "a": 5000}
    snapshot = put(registered(1), split_document(first))
    same = put(snapshot, split_document(second, salt="drawn")).endpoints["e"].splits["r"]
    assert same.intervals == {"a": ((0, 5000),), "b": ((5000, 10_000),)}
    other = put(snapshot, split_document(second, salt="other")).endpoints["e"].splits["r"]
    assert (other.salt, other.intervals) == ("other", {"b": ((0, 5000),), "a": ((5000, 10_000),)})


def test_deleting_a_document_leaves_the_model() -> None:
    """Without its document an endpoint's name is that of the model again, or nothing."""
    snapshot = put(registered(1), split_document({"a": 10_000}))
    after = delete_endpoint(snapshot, "e")
    assert after.endpoints == {}
    assert after.models == snapshot.models


@pytest.mark.parametrize(
    "weights_after",
    [
        pytest.param({"a": 9000, "b": 2000}, id="too-much"),
        pytest.param({"a": 9000, "b": 999}, id="too-little"),
        pytest.param({"a": -1, "b": 10_001}, id="negative"),
        pytest.param({"a": 0, "b": 0}, id="nothing"),
        pytest.param({}, id="no-variants"),
        pytest.param({"a": 10**300, "b": 1}, id="huge"),
    ],
)
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "edit"])
def test_weights_that_do_not_add_up_are_refused(
    weights_after: dict[str, int], is_new: bool
) -> None:
    """Impossible weights are an invalid request for a new split and for an edit alike."""
    snapshot = registered(1)
    if not is_new:
        snapshot = put(snapshot, split_document({"a": 5000, "b": 5000}))
    with pytest.raises(InvalidRequest):
        put(snapshot, split_document(weights_after))


@pytest.mark.parametrize(
    ("name", "document", "sentence"),
    [
        pytest.param("a b", Endpoint(schema=1, model="m"), "cannot name an endpoint", id="name"),
        pytest.param("e", Endpoint(schema=1, model="x"), "'x', which is not reg", id="model"),
        pytest.param("e", Endpoint(schema=1, model="m"), "alias 'champion'", id="alias"),
        pytest.param(
            "e",
            Endpoint(schema=1, model="m", default=Target(version=9)),
            "names version 9",
            id="version",
        ),
        pytest.param("e", split_document({"a": 10_000}, salt="x" * 65), "a salt holds", id="salt"),
        pytest.param("e", split_document({"a": 10_000}, salt=""), "a salt holds", id="no-salt"),
    ],
)
def test_a_document_that_cannot_be_served_is_refused(
    name: str, document: Endpoint, sentence: str
) -> None:
    """What contradicts itself or names what is not there never reaches the Snapshot."""
    with pytest.raises(InvalidRequest, match=sentence):
        put_endpoint(registered(1), name, document, {})


def test_a_salt_in_use_elsewhere_is_refused() -> None:
    """Two splits never draw with one salt."""
    snapshot = put(registered(1), split_document({"a": 10_000}))
    with pytest.raises(InvalidRequest, match="share a salt"):
        put_endpoint(snapshot, "other", split_document({"a": 10_000}), {"r": "drawn"})


# What an edit moves.


@settings(deadline=None)
@given(weights(), st.lists(st.tuples(weights(), st.integers(0, 10_000)), min_size=1, max_size=4))
def test_the_moved_share_is_what_a_count_of_all_places_gives(
    first: dict[str, int], edits: list[tuple[dict[str, int], int]]
) -> None:
    """Counting the places of the enrolment and variant ranges that change gives the same share."""
    snapshot, exposure = put(registered(1), split_document(first, 5000)), 5000
    for after_weights, after_exposure in edits:
        after = put(snapshot, split_document(after_weights, after_exposure))
        before_record, after_record = snapshot.endpoints["e"], after.endpoints["e"]
        pairs = zip(owners(before_record), owners(after_record), strict=True)
        changed = sum(old != new for old, new in pairs)
        both, one = min(exposure, after_exposure), abs(exposure - after_exposure)
        # (enrolment, variant): rows enrolled in both count changed places, rows in one all places.
        moved = Fraction(both * changed + one * 10_000, 10_000 * 10_000)
        assert moved_share(before_record, after_record) == {"r": pytest.approx(float(moved))}
        snapshot, exposure = after, after_exposure


def test_a_new_split_moves_whom_it_enrols() -> None:
    """A split that was not there takes its exposure away from the default."""
    plain = Endpoint(schema=1, model="m", default=Target(version=1))
    before = put(registered(1), plain)
    after = put(before, split_document({"a": 10_000}, 2500))
    assert moved_share(before.endpoints["e"], after.endpoints["e"]) == {"r": 0.25}


@pytest.mark.parametrize(
    ("exposures", "expected"),
    [
        # Stays: both outside, or both inside and in the same variant by chance (.5*.9 + .5*.1).
        pytest.param((10_000, 10_000), 0.5, id="all-enrolled"),
        pytest.param((5000, 5000), 0.625, id="half-enrolled"),
        pytest.param((0, 2500), 0.25, id="none-before"),
        pytest.param((0, 0), 0.0, id="never"),
    ],
)
def test_another_salt_moves_whom_two_independent_draws_part(
    exposures: tuple[int, int], expected: float
) -> None:
    """A new salt draws everybody again: who does not land where they were moves."""
    before = put(registered(1), split_document({"a": 5000, "b": 5000}, exposures[0]))
    after = put(before, split_document({"a": 9000, "b": 1000}, exposures[1], salt="other"))
    share = moved_share(before.endpoints["e"], after.endpoints["e"])
    assert share == {"r": pytest.approx(expected)}


def test_a_transition_leaves_the_snapshot_that_it_was_given() -> None:
    """Each step makes a new Snapshot and moves neither revision nor audit head."""
    before = promote(registered(1, 2), "m", 1)
    kept = replace(before)
    for after in (
        promote(before, "m", 2),
        load(before, "m", 2),
        register(before, "m", 3, DIGESTS[3]),
        put(before, split_document({"a": 10_000})),
    ):
        assert after != before
        assert (after.revision, after.audit_head) == (0, "")
    assert before == kept
    assert model_of(before, "m").aliases == {"champion": 1}
