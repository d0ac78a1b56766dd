import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Conflict
from gateway.core.predictions import Signer, SigningKeys
from gateway.core.signing_keys import GRACE_S, retired, signing_with, stopped_at, with_next

OLD = SigningKeys(schema=1, current=1, keys={1: "11" * 32}, unit_key="ff" * 32)
AGE_S = 90 * 86_400.0


def rotated(keys: SigningKeys, key_id: int, now: float) -> SigningKeys:
    """A whole rotation at one moment."""
    return signing_with(with_next(keys, key_id, f"{key_id:02x}" * 32), key_id, now)


def test_a_next_key_is_known_and_does_not_sign() -> None:
    """What it signed elsewhere could be read; the current key signs on."""
    known = with_next(OLD, 2, "22" * 32)
    assert (known.current, known.waiting, set(known.keys)) == (1, 2, {1, 2})
    assert known.made == {}


@pytest.mark.parametrize(
    ("keys", "key_id"),
    [
        pytest.param(OLD, 1, id="id-taken"),
        pytest.param(with_next(OLD, 2, "22" * 32), 3, id="one-waits"),
    ],
)
def test_one_fresh_key_waits_at_a_time(keys: SigningKeys, key_id: int) -> None:
    """Neither a known id nor a second waiting key is taken in."""
    with pytest.raises(Conflict):
        with_next(keys, key_id, "33" * 32)


def test_a_key_that_signs_says_since_when() -> None:
    """It waits no longer; the one before it is still read, and stopped at that moment."""
    keys = rotated(OLD, 2, 500.0)
    assert (keys.current, keys.waiting, keys.made) == (2, None, {2: 500.0})
    assert set(keys.keys) == {1, 2}
    assert (stopped_at(keys, 1), stopped_at(keys, 2)) == (500.0, None)


def test_an_unknown_key_never_signs() -> None:
    """A key that is not there cannot be made the current one."""
    with pytest.raises(Conflict):
        signing_with(OLD, 9, 500.0)


@pytest.mark.parametrize("waits", [False, True])
def test_a_key_goes_once_no_id_of_it_is_accepted(*, waits: bool) -> None:
    """It stays for as long as outcomes come for its youngest id and a day; the others stay."""
    keys = rotated(rotated(OLD, 2, 500.0), 3, 1_000.0)
    if waits:
        keys = with_next(keys, 4, "44" * 32)
    others = {3, 4} if waits else {3}
    last = 500.0 + AGE_S + GRACE_S
    assert retired(keys, last, AGE_S) == keys
    assert set(retired(keys, last + 1.0, AGE_S).keys) == {2, *others}
    latest = retired(keys, last + 10_000.0, AGE_S)
    assert (set(latest.keys), latest.made) == (others, {3: 1_000.0})


def test_keys_of_unknown_age_are_never_dropped_before_a_rotation() -> None:
    """While nothing says when they stopped, they stay."""
    keys = SigningKeys(schema=1, current=2, keys={1: "11" * 32, 2: "22" * 32}, unit_key="ff" * 32)
    assert retired(keys, 1e12, AGE_S) == keys


@given(st.lists(st.floats(0, 1e10), min_size=1, max_size=8), st.floats(0, 1e7))
def test_whatever_the_clock_does_keys_stop_in_their_order(
    moments: list[float], max_age_s: float
) -> None:
    """No key stops before it began or before an earlier one, and what is left can sign."""
    keys = OLD
    for key_id, now in enumerate(moments, start=2):
        keys = rotated(keys, key_id, now)
    stops = [stopped_at(keys, key_id) for key_id in range(1, len(moments) + 1)]
    began = [keys.made[key_id + 1] for key_id in range(1, len(moments) + 1)]
    assert stops == began == sorted(began)
    for now in moments:
        left = retired(keys, now, max_age_s)
        Signer(left)
        # The oldest go first.
        assert sorted(left.keys) == list(range(min(left.keys), len(moments) + 2))


def test_documents_from_before_rotation_are_read_and_written_as_they_were() -> None:
    """Hosts of an earlier version can read the keys until the first rotation."""
    document = msgspec.json.encode(
        {"schema": 1, "current": 1, "keys": {"1": "11" * 32}, "unit_key": "ff" * 32}
    )
    keys = msgspec.json.decode(document, type=SigningKeys)
    assert keys == OLD
    assert msgspec.json.encode(keys) == document
    moved = rotated(OLD, 2, 5.0)
    assert msgspec.json.decode(msgspec.json.encode(moved), type=SigningKeys) == moved
