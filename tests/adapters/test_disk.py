import itertools
import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.adapters.disk import StateFolder, stored_admin_token, write_whole
from gateway.core.errors import InvalidRequest
from gateway.core.predictions import SigningKeys
from gateway.core.snapshot import EMPTY, ModelRecord, Snapshot
from gateway.core.transitions import register
from gateway.ports import LastKnown
from tests.fakes import manifest_of

KEYS = SigningKeys(schema=1, current=1, keys={1: "a" * 64}, unit_key="b" * 64)


def known_at(versions: int) -> LastKnown:
    """A Snapshot with this many versions."""
    snapshot: Snapshot = EMPTY
    for number in range(1, versions + 1):
        manifest = manifest_of(number=number)
        seed = ModelRecord(versions={}, aliases={"champion": number})
        snapshot = register(snapshot, "m", number, manifest.digest, seed)
    manifests = tuple(manifest_of(number=number) for number in range(1, versions + 1))
    return LastKnown(snapshot=snapshot, manifests=manifests)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The state folder."""
    return tmp_path / "state"


@pytest.fixture
def state(folder: Path) -> StateFolder:
    """The state folder's keeper."""
    return StateFolder(folder, entropy=os.urandom)


def test_the_last_good_snapshot_is_read_back(state: StateFolder) -> None:
    """What was saved is found with its manifests, by the next process too."""
    assert state.last_good() is None
    state.save_last_good(known_at(1))
    state.save_last_good(known_at(3))
    assert state.last_good() == known_at(3)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="cut"),
        pytest.param(lambda content: content.replace(b"champion", b"chaMpion"), id="changed"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"\x00" * 4096, id="zeros"),
        pytest.param(lambda content: content.partition(b"\n")[2], id="no-checksum"),
    ],
)
def test_damage_is_seen(state: StateFolder, folder: Path, damage: Callable[[bytes], bytes]) -> None:
    """A file that is not what was saved is an error, not a Snapshot and not nothing."""
    state.save_last_good(known_at(2))
    path = folder / "last-good.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidRequest, match="last-good"):
        state.last_good()


def test_a_full_disk_keeps_the_old_snapshot(state: StateFolder, folder: Path) -> None:
    """When the new one does not fit, the old one stays whole and nothing else is left."""
    state.save_last_good(known_at(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            state.save_last_good(known_at(50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert state.last_good() == known_at(1)
    assert [path.name for path in folder.iterdir()] == ["last-good.json"]


def test_files_are_their_owners_only(state: StateFolder, folder: Path) -> None:
    """Folder, keys, token and Snapshot are closed to everybody else."""
    state.save_last_good(known_at(1))
    state.save_signing_keys(KEYS)
    state.admin_token()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"last-good.json": 0o600, "signing-keys.json": 0o600, "admin.token": 0o600}


def test_a_secret_that_lies_open_is_closed(state: StateFolder, folder: Path) -> None:
    """A key file that others could read is made private when it is read."""
    state.save_signing_keys(KEYS)
    path = folder / "signing-keys.json"
    path.chmod(0o644)
    assert state.signing_keys() == KEYS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_that_cannot_be_read_are_none(state: StateFolder, folder: Path) -> None:
    """A damaged key file does not stop the start."""
    assert state.signing_keys() is None
    (folder / "signing-keys.json").write_bytes(b"{")
    assert state.signing_keys() is None


def test_the_admin_token_is_made_once(folder: Path, state: StateFolder) -> None:
    """The first start makes a token, and later ones keep it."""
    token = state.admin_token()
    assert StateFolder(folder, entropy=os.urandom).admin_token() == token


def test_a_token_from_the_settings_comes_first(folder: Path) -> None:
    """With a token given, none is made."""
    state = StateFolder(folder, entropy=os.urandom, admin_token="given")
    assert state.admin_token() == "given"
    assert list(folder.iterdir()) == []


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """Replacing a file replaces a link, and leaves what it points to."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "file").symlink_to(victim)
    write_whole(tmp_path / "file", b"new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "file").read_bytes() == b"new"
    for _ in itertools.repeat(None, 2):
        write_whole(tmp_path / "file", b"again")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["file", "victim"]


def test_the_admin_token_can_be_looked_up(tmp_path: Path) -> None:
    """The command line reads the token of a gateway on this host, and makes none."""
    assert stored_admin_token(tmp_path / "state") is None
    StateFolder(tmp_path / "state", entropy=os.urandom)
    assert stored_admin_token(tmp_path / "state") is None
    (tmp_path / "state" / "admin.token").write_text("secret\n")
    assert stored_admin_token(tmp_path / "state") == "secret"


def test_a_state_folder_that_is_no_use_is_told(tmp_path: Path) -> None:
    """What cannot be read there is an error of ours, not a traceback."""
    (tmp_path / "admin.token").mkdir()
    with pytest.raises(InvalidRequest, match=r"admin.token .* cannot be read"):
        stored_admin_token(tmp_path)
