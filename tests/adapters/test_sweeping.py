"""What may be deleted is deleted, and nothing beside it."""

import os
from pathlib import Path

import pytest

from gateway.adapters.folder import FolderStore
from gateway.adapters.objects import folder_of
from gateway.adapters.sweeping import FolderSweeper
from gateway.core.errors import NotReady
from tests.control.building import describe, put

OLD = 1_000.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """This host's copies."""
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path, cache: Path) -> FolderStore:
    """The model store that the sweeper deletes from."""
    return FolderStore(tmp_path / "models", cache, describe=describe, now=lambda: OLD)


@pytest.fixture
def sweeper(tmp_path: Path, cache: Path) -> FolderSweeper:
    """On the same folders."""
    return FolderSweeper(tmp_path / "models", cache)


def test_a_retired_version_leaves_the_store(
    store: FolderStore, sweeper: FolderSweeper, tmp_path: Path
) -> None:
    """The folder of that version goes, its neighbour stays."""
    put(tmp_path / "models", 1, "onnx4")
    put(tmp_path / "models", 2, "onnx5")
    digest = store.fetch("m", 1).manifest.digest
    assert sweeper.remove("m", 1, digest)
    assert store.scan() == [("m", 2)]
    assert sorted(path.name for path in (tmp_path / "models" / "m").iterdir()) == ["2"]


def test_what_is_not_the_retired_version_stays(
    store: FolderStore, sweeper: FolderSweeper, tmp_path: Path
) -> None:
    """Files that were changed since, a link and a name that leads elsewhere are left alone."""
    folder = put(tmp_path / "models", 1)
    digest = store.fetch("m", 1).manifest.digest
    assert not sweeper.remove("m", 1, "0" * 64)
    assert not sweeper.remove("../models/m", 1, digest)
    (folder / "more.bin").write_bytes(b"x")
    assert not sweeper.remove("m", 1, digest)
    (folder / "more.bin").unlink()
    folder.rename(folder.with_name("9"))
    folder.symlink_to(folder.with_name("9"))
    assert not sweeper.remove("m", 1, digest)
    assert (folder.with_name("9") / "model.onnx").is_file()


def test_copies_that_nobody_knows_are_swept(
    store: FolderStore, sweeper: FolderSweeper, cache: Path, tmp_path: Path
) -> None:
    """Of copies and the forms beside them: unknown ones untouched for long, and no other file."""
    put(tmp_path / "models", 1, "onnx4")
    put(tmp_path / "models", 2, "onnx5")
    kept, gone = (store.fetch("m", number).manifest.digest for number in (1, 2))
    (cache / f"{gone}-form").mkdir()
    (cache / "share.lock").touch()
    assert sweeper.sweep(frozenset({kept}), before=OLD) == 0
    for entry in cache.iterdir():
        os.utime(entry, (1, 1))
    assert sweeper.sweep(frozenset({kept}), before=OLD) == 2
    assert sorted(path.name for path in cache.iterdir()) == [kept, "share.lock"]


def test_what_killed_processes_left_goes_a_day_later(
    sweeper: FolderSweeper, tmp_path: Path
) -> None:
    """Half a version on its way into the store, half a deletion, half a copy; never a version."""
    model = put(tmp_path / "models", 1).parent
    left = [model / ".incoming-x", model / ".gone-3", tmp_path / "cache" / ".copy-x"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "model.onnx").touch()
        folder.chmod(0o500)
    before = left[0].stat().st_mtime + 1
    sweeper.sweep(frozenset(), before=before)
    assert all(folder.exists() for folder in left)
    sweeper.sweep(frozenset(), before=before + 86_400)
    assert not any(folder.exists() for folder in left)
    assert [path.name for path in model.iterdir()] == ["1"]


def test_nothing_is_deleted_where_the_store_is_no_folder(
    store: FolderStore, cache: Path, tmp_path: Path
) -> None:
    """An address is never taken for a path; this host's own copies are swept all the same."""
    put(tmp_path / "models", 1)
    digest = store.fetch("m", 1).manifest.digest
    sweeper = FolderSweeper(folder_of("s3://models/here"), cache)
    with pytest.raises(NotReady, match="object store"):
        sweeper.remove("m", 1, digest)
    os.utime(cache / digest, (1, 1))
    assert sweeper.sweep(frozenset(), before=OLD) == 1


def test_a_copy_that_is_wanted_anew_is_young_again(
    store: FolderStore, sweeper: FolderSweeper, cache: Path, tmp_path: Path
) -> None:
    """So it is not swept between being looked at and being registered."""
    put(tmp_path / "models", 1)
    digest = store.fetch("m", 1).manifest.digest
    os.utime(cache / digest, (1, 1))
    store.fetch("m", 1)
    assert sweeper.sweep(frozenset(), before=OLD) == 0


def test_without_a_cache_there_is_nothing_to_sweep(tmp_path: Path) -> None:
    """A host that never copied anything is no error."""
    assert FolderSweeper(tmp_path, tmp_path / "none").sweep(frozenset(), before=OLD) == 0
