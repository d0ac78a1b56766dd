"""Rotation of the signing keys: its steps, what may come between them, and hosts that follow."""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from gateway.adapters.disk import StateFolder
from gateway.adapters.redis import RedisStore
from gateway.control.keyring import Keyring, Timing
from gateway.control.watcher import MAX_PAUSE_S, REFRESH_S, settling_s
from gateway.core.assignment import Reason
from gateway.core.errors import Conflict, StoreUnavailable
from gateway.core.predictions import NO_UNIT, PredictionFacts, Signer, SigningKeys
from gateway.core.signing_keys import GRACE_S
from gateway.ports import Store
from tests.fakes import FakeDataPlane, ManualClock, MemoryStore

AGE_S = 90 * 86_400.0
SETTLE_S = 12.0
FACTS = PredictionFacts(
    at_ms=1,
    nonce=b"12345678",
    revision=1,
    endpoint="e",
    rule="",
    variant="default",
    version=1,
    reason=Reason.DEFAULT,
    propensity=1.0,
    unit_hash=NO_UNIT,
)


async def nothing() -> None:
    """Nothing happens while keys settle."""


@dataclass
class Pauses:
    """Notes pauses in place of taking them; `during` happens in each."""

    during: Callable[[], Awaitable[None]] = nothing
    taken: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)
        await self.during()


@pytest.fixture
def pauses() -> Pauses:
    """The pauses of a rotation."""
    return Pauses()


@pytest.fixture
def timing(clock: ManualClock, pauses: Pauses) -> Timing:
    """When the steps are taken: as the clock says, without waiting."""
    return Timing(now=clock, settle_s=SETTLE_S, max_age_s=AGE_S, sleep=pauses)


@pytest.fixture
async def keyring(store: MemoryStore, disk: StateFolder, data_plane: FakeDataPlane) -> Keyring:
    """A keyring that has begun."""
    keyring = Keyring(store, disk, data_plane, os.urandom)
    await keyring.begin()
    return keyring


def shared(store: MemoryStore) -> SigningKeys:
    """What the store holds."""
    assert store.keys is not None
    return store.keys


async def test_a_new_key_is_known_before_it_signs(
    keyring: Keyring, store: MemoryStore, timing: Timing, pauses: Pauses, data_plane: FakeDataPlane
) -> None:
    """While it settles the old key signs and both can be read; then the new one signs, dated."""
    old = shared(store)
    settling: list[SigningKeys] = []

    async def look() -> None:
        settling.append(shared(store))

    pauses.during = look
    signing = await keyring.rotate("ana", timing)
    assert pauses.taken == [SETTLE_S]
    (known,) = settling
    assert (known.current, known.made) == (old.current, {})
    assert known.keys.keys() == {old.current, known.waiting}
    assert (signing.current, signing.waiting) == (known.waiting, None)
    assert (signing.keys, signing.unit_key) == (known.keys, old.unit_key)
    assert signing.made == {signing.current: timing.now()}
    assert [secrets.keys for secrets in data_plane.secrets] == [old, known, signing]
    assert shared(store) == keyring.keys == signing


async def test_a_rotation_drops_keys_that_nothing_needs(
    keyring: Keyring, store: MemoryStore, timing: Timing, clock: ManualClock
) -> None:
    """The first key goes with the first rotation after its youngest id has expired."""
    first = shared(store).current
    second = (await keyring.rotate("ana", timing)).current
    clock.at += AGE_S + GRACE_S
    third = (await keyring.rotate("ana", timing)).current
    assert shared(store).keys.keys() == {first, second, third}
    clock.at += 1.0
    fourth = (await keyring.rotate("ana", timing)).current
    assert shared(store).keys.keys() == {second, third, fourth}


async def test_who_rotated_is_logged_without_a_key(
    keyring: Keyring, timing: Timing, caplog: pytest.LogCaptureFixture
) -> None:
    """A line names who asked and the ids, and no secret."""
    with caplog.at_level(logging.INFO):
        keys = await keyring.rotate("ana", timing)
    assert f"'ana' rotated the signing keys: {keys.current} signs" in caplog.text
    assert not any(secret in caplog.text for secret in (*keys.keys.values(), keys.unit_key))


async def test_a_rotation_that_was_killed_is_taken_up(
    keyring: Keyring, store: MemoryStore, timing: Timing, pauses: Pauses
) -> None:
    """The key that waits signs after another settling time; none is added."""

    async def die() -> None:
        raise KeyboardInterrupt

    pauses.during = die
    with pytest.raises(KeyboardInterrupt):
        await keyring.rotate("ana", timing)
    left = shared(store)
    pauses.during = nothing
    signing = await keyring.rotate("bob", timing)
    assert signing.current == left.waiting
    assert signing.keys == left.keys
    assert pauses.taken == [SETTLE_S, SETTLE_S]


async def test_of_two_hosts_that_rotate_one_wins(
    keyring: Keyring, store: MemoryStore, timing: Timing, pauses: Pauses, tmp_path: Path
) -> None:
    """The slower one gets a Conflict, and one key was added."""
    other = Keyring(
        store, StateFolder(tmp_path / "other", entropy=os.urandom), FakeDataPlane(), os.urandom
    )
    await other.begin()
    won: list[SigningKeys] = []

    async def overtake() -> None:
        won.append(await other.rotate("bob", replace(timing, sleep=Pauses())))

    pauses.during = overtake
    with pytest.raises(Conflict):
        await keyring.rotate("ana", timing)
    assert won == [shared(store)]
    assert len(shared(store).keys) == 2


async def test_a_host_rotates_once_at_a_time(
    keyring: Keyring, store: MemoryStore, timing: Timing, pauses: Pauses
) -> None:
    """A second request during the first is a Conflict at once, and the first is done."""
    refused: list[str] = []

    async def ask_again() -> None:
        with pytest.raises(Conflict) as caught:
            await keyring.rotate("bob", timing)
        refused.append(str(caught.value))

    pauses.during = ask_again
    signing = await keyring.rotate("ana", timing)
    assert len(refused) == 1
    assert shared(store) == signing
    assert len(pauses.taken) == 1


async def test_without_the_store_nothing_rotates(
    keyring: Keyring, store: MemoryStore, timing: Timing, data_plane: FakeDataPlane
) -> None:
    """A store that is away from the start leaves all as it was."""
    before = shared(store)
    store.away = True
    with pytest.raises(StoreUnavailable):
        await keyring.rotate("ana", timing)
    assert shared(store) == before
    assert len(data_plane.secrets) == 1


async def test_a_store_that_goes_while_keys_settle_leaves_the_old_key_signing(
    keyring: Keyring, store: MemoryStore, timing: Timing, pauses: Pauses, data_plane: FakeDataPlane
) -> None:
    """The new key waits, the old one signs, and the next rotation goes on from there."""
    before = shared(store)

    async def lose() -> None:
        store.away = True

    pauses.during = lose
    with pytest.raises(StoreUnavailable):
        await keyring.rotate("ana", timing)
    assert data_plane.secrets[-1].keys.current == before.current
    store.away = False
    pauses.during = nothing
    waiting = shared(store).waiting
    assert (await keyring.rotate("ana", timing)).current == waiting


@pytest.mark.parametrize("poll_s", [0.05, 0.5, 30.0])
def test_keys_settle_for_longer_than_hosts_look_away(poll_s: float) -> None:
    """Hosts read their keys at the first look after an interval; a look may fail and be late."""
    assert settling_s(poll_s) > REFRESH_S + poll_s + MAX_PAUSE_S


class Host:
    """A keyring on a store, and what it signs and reads with."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.plane = FakeDataPlane()
        disk = StateFolder(folder, entropy=os.urandom)
        self.keyring = Keyring(store, disk, self.plane, os.urandom)

    @property
    def signer(self) -> Signer:
        return Signer(self.plane.secrets[-1].keys)


@pytest.fixture
async def hosts(valkey_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[list[Host]]:
    """Two hosts on one real server, each with connections of its own."""
    stores = [
        RedisStore(valkey_url, namespace=namespace, timeout_s=2.0, name=f"host-{number}")
        for number in range(2)
    ]
    hosts = [Host(store, tmp_path / str(number)) for number, store in enumerate(stores)]
    for host in hosts:
        await host.keyring.begin()
    yield hosts
    for store in stores:
        await store.close()


async def test_every_id_is_read_on_every_host_at_every_moment(
    hosts: list[Host], clock: ManualClock
) -> None:
    """Over three rotations, by both hosts: whoever follows first, whatever was signed is read."""
    first, second = hosts
    ids: set[str] = set()
    keys_seen: set[int] = set()

    def all_are_read() -> None:
        for host in hosts:
            keys_seen.add(host.plane.secrets[-1].keys.current)
            ids.add(host.signer.sign(FACTS))
        for host in hosts:
            assert all(host.signer.read(one) == FACTS for one in ids)

    for rotating, following in ((first, second), (second, first), (first, second)):

        async def settle(following: Host = following) -> None:
            # The host that rotates knows the new key by now, the other one does not.
            all_are_read()
            await following.keyring.refresh()
            all_are_read()

        pauses = Pauses(during=settle)
        timing = Timing(now=clock, settle_s=SETTLE_S, max_age_s=AGE_S, sleep=pauses)
        all_are_read()
        await rotating.keyring.rotate("ana", timing)
        # The one signs with the new key, the other one still with the old key.
        assert rotating.keyring.keys != following.keyring.keys
        all_are_read()
        await following.keyring.refresh()
        all_are_read()
        assert rotating.keyring.keys == following.keyring.keys
        clock.at += 86_400.0

    assert len(keys_seen) == len(ids) == 4
