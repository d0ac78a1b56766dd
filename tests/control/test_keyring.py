import os
from pathlib import Path

import pytest

from gateway.adapters.disk import StateFolder
from gateway.control.keyring import Keyring, fresh_keys
from gateway.core.errors import InvalidRequest
from gateway.core.predictions import SigningKeys
from tests.fakes import FakeDataPlane, MemoryStore


@pytest.fixture
def keyring(store: MemoryStore, disk: StateFolder, data_plane: FakeDataPlane) -> Keyring:
    """The keyring under test."""
    return Keyring(store, disk, data_plane, os.urandom)


async def test_the_first_host_makes_the_keys(
    keyring: Keyring, store: MemoryStore, disk: StateFolder, data_plane: FakeDataPlane
) -> None:
    """Keys that were made are shared, entrusted and kept on disk."""
    await keyring.begin()
    assert store.keys is not None
    assert data_plane.secrets[-1].keys == store.keys == disk.signing_keys()
    assert [token.holder.name for token in data_plane.secrets[-1].tokens] == ["admin"]
    await keyring.refresh()
    assert len(data_plane.secrets) == 1


async def test_cached_keys_serve_without_the_store(
    keyring: Keyring, store: MemoryStore, disk: StateFolder, data_plane: FakeDataPlane
) -> None:
    """A host that has seen keys uses them at once, whether the store is there or not."""
    keys = fresh_keys(os.urandom)
    disk.save_signing_keys(keys)
    store.away = True
    await keyring.begin()
    await keyring.refresh()
    assert [secrets.keys for secrets in data_plane.secrets] == [keys]


async def test_keys_made_alone_are_offered_later(
    keyring: Keyring, store: MemoryStore, disk: StateFolder, data_plane: FakeDataPlane
) -> None:
    """A host that never saw any makes its own, and they become the shared ones if none are."""
    store.away = True
    await keyring.begin()
    own = data_plane.secrets[-1].keys
    assert disk.signing_keys() is None
    store.away = False
    await keyring.refresh()
    assert store.keys == own == disk.signing_keys()


@pytest.mark.parametrize("away", [False, True])
async def test_keys_made_here_and_shared_go_when_the_shared_ones_go(
    keyring: Keyring, store: MemoryStore, data_plane: FakeDataPlane, *, away: bool
) -> None:
    """What a host offered is kept for as long as the store keeps it, and no longer."""
    store.away = away
    await keyring.begin()
    store.away = False
    await keyring.refresh()
    store.keys = SigningKeys(schema=1, current=9, keys={9: "c" * 64}, unit_key="b" * 64)
    await keyring.refresh()
    assert data_plane.secrets[-1].keys == store.keys


async def test_keys_of_others_sign_from_then_on(
    keyring: Keyring, store: MemoryStore, disk: StateFolder, data_plane: FakeDataPlane
) -> None:
    """When others put theirs there first, those sign, and what was signed alone stays readable."""
    store.away = True
    await keyring.begin()
    own = data_plane.secrets[-1].keys
    store.away = False
    store.keys = SigningKeys(schema=1, current=1, keys={1: "a" * 64}, unit_key="b" * 64)
    await keyring.refresh()
    now = data_plane.secrets[-1].keys
    assert (now.current, now.unit_key) == (1, "b" * 64)
    assert now.keys == {1: "a" * 64, **own.keys}
    assert disk.signing_keys() == store.keys


async def test_rotated_keys_are_followed(
    keyring: Keyring, store: MemoryStore, disk: StateFolder, data_plane: FakeDataPlane
) -> None:
    """New keys in the store are entrusted and kept."""
    await keyring.begin()
    assert store.keys is not None
    rotated = SigningKeys(
        schema=1, current=9, keys={**store.keys.keys, 9: "c" * 64}, unit_key=store.keys.unit_key
    )
    store.keys = rotated
    await keyring.refresh()
    assert data_plane.secrets[-1].keys.current == 9
    assert disk.signing_keys() == rotated


async def test_damaged_keys_change_nothing(
    keyring: Keyring,
    store: MemoryStore,
    data_plane: FakeDataPlane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys in the store that cannot be read are an alarm; those known go on signing."""
    await keyring.begin()

    async def damaged(_: SigningKeys) -> SigningKeys:
        message = "The signing keys in the store cannot be read."
        raise InvalidRequest(message)

    monkeypatch.setattr(store, "signing_keys", damaged)
    await keyring.refresh()
    assert keyring.alarm is not None
    assert len(data_plane.secrets) == 1


async def test_a_disk_that_is_full_is_told(
    keyring: Keyring, data_plane: FakeDataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that cannot be kept are used all the same, with an alarm that names no path."""

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("gateway.adapters.disk.write_whole", full)
        await keyring.begin()
    assert len(data_plane.secrets) == 1
    assert keyring.alarm == "The signing keys could not be saved. No space left on device."
    await keyring.refresh()
    assert keyring.alarm is None


def test_fresh_keys_do_not_collide() -> None:
    """Keys that several hosts make have ids of their own, within what a prediction id holds."""
    made = [fresh_keys(os.urandom) for _ in range(50)]
    assert len({keys.unit_key for keys in made}) == 50
    assert all(1 <= keys.current <= 2**16 - 1 for keys in made)
    assert all(len(keys.keys[keys.current]) == 64 for keys in made)
