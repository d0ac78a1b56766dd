import hashlib
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from gateway.adapters.folder import FolderStore
from gateway.core.errors import InvalidRequest, TooLarge
from gateway.core.models import Manifest, bundle_digest
from gateway.core.tensors import Signature
from tests.fakes import signature_of


def describe(path: str) -> Signature:
    """Reads a pretended model: its first line is its number of columns."""
    content = Path(path).read_bytes()
    if not content.startswith(b"onnx"):
        message = "The file is no ONNX model."
        raise InvalidRequest(message)
    return signature_of(len(content))


def put(root: Path, model: str = "m", number: int | str = 1, content: bytes = b"onnx") -> Path:
    """Put a version into the store."""
    folder = root / model / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    return folder


def store_in(tmp_path: Path, **options: int) -> FolderStore:
    """A store with its cache beside it."""
    return FolderStore(
        tmp_path / "models",
        tmp_path / "state" / "cache",
        describe=describe,
        now=lambda: 42.0,
        max_bytes=options.get("max_bytes", 1_000_000),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The model store's folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def test_only_proper_names_are_versions(root: Path, tmp_path: Path) -> None:
    """Versions are plain numbers under proper names; anything else is not seen."""
    for number in ("1", "12", "007", "-1", "1e3", "0", "latest", "9999999999", "٣"):
        put(root, "m", number)
    for model in ("..m", ".hidden", "m n", "ü", "x" * 65, "%2e%2e"):
        put(root, model)
    (root / "linked").symlink_to(root / "m")
    put(root, "other", 3)
    (root / "other" / "4").symlink_to(root / "m" / "1")
    (root / "file").write_text("x")
    assert store_in(tmp_path).scan() == [("m", 1), ("m", 12), ("other", 3)]


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """A missing folder holds nothing."""
    assert store_in(tmp_path).scan() == []


def test_a_version_is_copied_and_described(root: Path, tmp_path: Path) -> None:
    """The copy is private, read-only and named by its digest; the manifest says what is in it."""
    folder = put(root, content=b"onnx model")
    (folder / "weights.bin").write_bytes(b"w" * 10)
    (folder / ".DS_Store").write_bytes(b"litter")
    sha256 = hashlib.sha256(b"onnx model").hexdigest()
    (folder / "version.toml").write_text(
        f'sha256 = "{sha256}"\ncreated = 2026-01-02\n[metrics]\nauc = 0.5\n'
    )
    artifact = store_in(tmp_path).fetch("m", 1)
    manifest = artifact.manifest
    assert [file.path for file in manifest.files] == ["model.onnx", "version.toml", "weights.bin"]
    assert manifest.files[0].sha256 == sha256
    assert manifest.digest == bundle_digest(manifest.files)
    assert manifest.lineage == {"sha256": sha256, "created": "2026-01-02", "metrics": {"auc": 0.5}}
    assert (manifest.created_at, manifest.signature) == (42.0, signature_of(10))
    copy = Path(artifact.path)
    assert copy.parent == tmp_path / "state" / "cache" / manifest.digest
    assert copy.read_bytes() == b"onnx model"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o400
    assert [path.name for path in copy.parent.parent.iterdir()] == [manifest.digest]


def test_equal_bytes_share_a_copy(root: Path, tmp_path: Path) -> None:
    """Two versions with the same files have one digest and one place."""
    put(root, "m", 1)
    put(root, "m", 2)
    store = store_in(tmp_path)
    assert store.fetch("m", 1).path == store.fetch("m", 2).path


def make_link(folder: Path) -> None:
    """A link to a file elsewhere."""
    (folder / "weights.bin").symlink_to("/etc/hostname")


def make_hard_link(folder: Path) -> None:
    """A second name for a file elsewhere."""
    secret = folder.parent.parent.parent / "secret"
    secret.write_text("secret")
    os.link(secret, folder / "weights.bin")


def make_folder(folder: Path) -> None:
    """A folder among the files."""
    (folder / "sub").mkdir()


def make_pipe(folder: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(folder / "weights.bin")


def make_linked_model(folder: Path) -> None:
    """A model that is a link."""
    (folder / "model.onnx").rename(folder.parent.parent.parent / "moved")
    (folder / "model.onnx").symlink_to(folder.parent.parent.parent / "moved")


def make_bad_name(folder: Path) -> None:
    """A name that would colour a terminal."""
    (folder / "a\x1b[31m.bin").write_text("x")


def remove_model(folder: Path) -> None:
    """No model."""
    (folder / "model.onnx").unlink()


def make_html(folder: Path) -> None:
    """A page instead of a model."""
    (folder / "model.onnx").write_text("<html>")


def make_empty(folder: Path) -> None:
    """A model without a byte."""
    (folder / "model.onnx").write_bytes(b"")


def make_wrong_digest(folder: Path) -> None:
    """A stated digest that is not the model's."""
    (folder / "version.toml").write_text(f'sha256 = "{"0" * 64}"')


def make_bad_toml(folder: Path) -> None:
    """A lineage that cannot be read."""
    (folder / "version.toml").write_bytes(b"\xff = [")


def make_large(folder: Path) -> None:
    """More bytes than may be."""
    (folder / "weights.bin").write_bytes(b"x" * 1_000_001)


def make_many(folder: Path) -> None:
    """More files than may be."""
    for number in range(300):
        (folder / f"w{number}").write_bytes(b"")


@pytest.mark.parametrize(
    "spoil",
    [
        make_link,
        make_hard_link,
        make_folder,
        make_pipe,
        make_linked_model,
        make_bad_name,
        remove_model,
        make_html,
        make_empty,
        make_wrong_digest,
        make_bad_toml,
        make_large,
        make_many,
        shutil.rmtree,
    ],
)
def test_what_is_no_plain_version_is_refused(spoil: object, root: Path, tmp_path: Path) -> None:
    """Links, folders, pipes and broken files are refused in words, and leave no copy."""
    folder = put(root)
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(InvalidRequest) as caught:
        store_in(tmp_path).fetch("m", 1)
    assert str(tmp_path) not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    cache = tmp_path / "state" / "cache"
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "model", ["../etc", "a/../b", "..", " ..", "/etc", "m/", "", "%2e%2e", "\\..\\", "x" * 300]
)
def test_a_name_never_leads_out_of_the_store(model: str, root: Path, tmp_path: Path) -> None:
    """A name that is no name touches no file."""
    store = store_in(tmp_path)
    with pytest.raises(InvalidRequest):
        store.fetch(model, 1)
    with pytest.raises(InvalidRequest):
        store.stamp(model, 1)
    assert store.seed(model) == {}


def test_what_the_disk_is_to_blame_for_can_be_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal whose cause is the disk may pass; that of the files themselves may not."""
    folder = put(root)
    store = store_in(tmp_path)

    def exhausted(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    for place in ("_hash", "_copy"):
        with monkeypatch.context() as patched:
            patched.setattr(f"gateway.adapters.artifacts.{place}", exhausted)
            with pytest.raises(InvalidRequest, match="Too many open files") as caught:
                store.fetch("m", 1)
            assert isinstance(caught.value.__cause__, OSError)
    artifact = store.fetch("m", 1)
    again = store_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("gateway.adapters.artifacts._is_intact", exhausted)
        assert again.cached(artifact.manifest) is None
        with pytest.raises(InvalidRequest) as caught:
            again.fetch("m", 1)
        assert isinstance(caught.value.__cause__, OSError)
    assert again.cached(artifact.manifest) is not None
    (folder / "model.onnx").write_bytes(b"broken")
    with pytest.raises(InvalidRequest) as caught:
        store.fetch("m", 1)
    assert caught.value.__cause__ is None


def test_files_that_change_while_they_are_read_are_refused(root: Path, tmp_path: Path) -> None:
    """A version that is still being written is not taken for a whole one."""
    folder = put(root)

    def growing(path: str) -> Signature:
        (folder / "weights.bin").write_bytes(b"late")
        return describe(path)

    store = FolderStore(root, tmp_path / "cache", describe=growing, now=lambda: 0.0)
    with pytest.raises(InvalidRequest, match="changed"):
        store.fetch("m", 1)


def test_a_file_that_grows_past_the_cap_is_cut_off(root: Path, tmp_path: Path) -> None:
    """The cap holds while copying, not only before."""
    put(root, content=b"onnx" + b"x" * 100)
    with pytest.raises(TooLarge):
        store_in(tmp_path, max_bytes=50).fetch("m", 1)


def test_a_stamp_moves_with_the_files(root: Path, tmp_path: Path) -> None:
    """Content, names and presence each change the stamp; looking again does not."""
    store = store_in(tmp_path)
    folder = put(root)
    stamps = [store.stamp("m", 1)]
    assert store.stamp("m", 1) == stamps[0]
    (folder / "model.onnx").write_bytes(b"onnx2")
    stamps.append(store.stamp("m", 1))
    (folder / "more.bin").write_bytes(b"")
    stamps.append(store.stamp("m", 1))
    shutil.rmtree(folder)
    stamps.append(store.stamp("m", 1))
    assert len(set(stamps)) == 4


def fetched(root: Path, tmp_path: Path) -> Manifest:
    """A version in the cache."""
    put(root)
    return store_in(tmp_path).fetch("m", 1).manifest


def test_a_copy_outlives_the_store(root: Path, tmp_path: Path) -> None:
    """What was fetched once is found without the model store."""
    manifest = fetched(root, tmp_path)
    shutil.rmtree(root)
    artifact = store_in(tmp_path).cached(manifest)
    assert artifact is not None
    assert Path(artifact.path).read_bytes() == b"onnx"


def test_a_damaged_copy_is_dropped_and_made_again(root: Path, tmp_path: Path) -> None:
    """A copy that does not have the manifest's bytes is never served."""
    manifest = fetched(root, tmp_path)
    copy = tmp_path / "state" / "cache" / manifest.digest / "model.onnx"
    copy.chmod(0o600)
    copy.write_bytes(b"evil")
    store = store_in(tmp_path)
    assert store.cached(manifest) is None
    assert not copy.exists()
    assert Path(store.fetch("m", 1).path).read_bytes() == b"onnx"
    assert store.cached(manifest) is not None


def test_a_copy_replaced_by_a_link_is_dropped(root: Path, tmp_path: Path) -> None:
    """A link in the cache is not followed."""
    manifest = fetched(root, tmp_path)
    copy = tmp_path / "state" / "cache" / manifest.digest / "model.onnx"
    copy.parent.chmod(0o700)
    copy.unlink()
    copy.symlink_to(root / "m" / "1" / "model.onnx")
    assert store_in(tmp_path).cached(manifest) is None


def test_threads_may_fetch_one_version_at_once(root: Path, tmp_path: Path) -> None:
    """Several copies of the same bytes end in one place."""
    put(root)
    store = store_in(tmp_path)
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda: paths.append(store.fetch("m", 1).path)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    assert len(set(paths)) == 1
    assert len(list((tmp_path / "state" / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        pytest.param('champion = 2\nlabels = ["a"]\nnew = 1', True, id="told"),
        pytest.param("champion = [", False, id="broken"),
        pytest.param(None, False, id="none"),
    ],
)
def test_a_seed_is_what_the_model_tells(
    text: str | None, seed: bool, root: Path, tmp_path: Path
) -> None:
    """`model.toml` is read with its unknown keys; a broken one counts as none."""
    put(root)
    if text is not None:
        (root / "m" / "model.toml").write_text(text)
    told = store_in(tmp_path).seed("m")
    assert told == ({"champion": 2, "labels": ["a"], "new": 1} if seed else {})
