"""What every model store keeps, whichever way its bytes lie."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.adapters.folder import FolderStore
from gateway.adapters.objects import SCHEMES, ObjectStore, open_store
from gateway.control.copies import is_passing
from gateway.core.errors import Conflict, InvalidRequest, NotReady
from gateway.ports import ModelStore
from tests.fakes import ManualClock, signature_of

fsspec = pytest.importorskip("fsspec", reason="the extra 'objects' is not installed")


class Place:
    """A model store and a way to put files there that is not its own."""

    def __init__(self, store: ModelStore, write: Callable[[str, bytes], None]) -> None:
        self.store = store
        self._write = write

    def put(self, where: str, **files: bytes) -> None:
        """Write a folder's files."""
        for name, content in (files or {"model.onnx": b"onnx"}).items():
            self._write(f"{where}/{name.replace('_', '.')}", content)


def in_folder(tmp_path: Path, **given: Any) -> Place:
    """The store that is a folder."""
    root = tmp_path / "models"

    def write(path: str, content: bytes) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return Place(FolderStore(root, tmp_path / "cache", now=ManualClock(), **given), write)


def in_memory(tmp_path: Path, **given: Any) -> Place:
    """The store that is fsspec's memory."""
    files, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}/models"
    store = ObjectStore(files, root, tmp_path / "cache", now=ManualClock(), **given)
    return Place(store, lambda path, content: files.pipe_file(f"{root}/{path}", content))


def on_disk(tmp_path: Path, **given: Any) -> Place:
    """The store that is fsspec's way to a disk."""
    files, root = fsspec.filesystem("file", auto_mkdir=True), str(tmp_path / "objects")
    store = ObjectStore(files, root, tmp_path / "cache", now=ManualClock(), **given)
    return Place(store, lambda path, content: files.pipe_file(f"{root}/{path}", content))


@pytest.fixture(params=[in_folder, in_memory, on_disk])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of store, with nothing in it."""
    made: Place = request.param(tmp_path, describe=None)
    return made


def test_versions_are_plain_numbers_under_proper_names(place: Place) -> None:
    """Whatever else lies there is not seen, candidates among it."""
    assert place.store.scan() == []
    for where in ("m/1", "m/12", "other/3", "m/007", "m/x", "..m/1", "candidates/m", "m/1/deeper"):
        place.put(where)
    place.put("m", model_toml=b"champion = 12")
    assert place.store.scan() == [("m", 1), ("m", 12), ("other", 3)]
    assert place.store.seed("m") == {"champion": 12}
    assert place.store.seed("other") == place.store.seed("../m") == {}


def test_a_version_is_copied_while_it_is_hashed(place: Place) -> None:
    """The same bytes have the same digest wherever they lie; nothing is parsed."""
    place.put("m/1", model_onnx=b"no model at all", version_toml=b'commit = "c0ffee"')
    artifact = place.store.fetch("m", 1)
    assert [file.path for file in artifact.manifest.files] == ["model.onnx", "version.toml"]
    assert artifact.manifest.lineage == {"commit": "c0ffee"}
    assert artifact.manifest.signature.inputs == ()
    assert Path(artifact.path).read_bytes() == b"no model at all"
    assert place.store.cached(artifact.manifest) is not None
    assert place.store.read(artifact, "version.toml", 100) == b'commit = "c0ffee"'
    assert place.store.read(artifact, "golden.json", 100) is None
    with pytest.raises(InvalidRequest):
        place.store.read(artifact, "version.toml", 3)


def test_a_stamp_moves_with_the_files(place: Place) -> None:
    """Another content is another stamp; looking again is not."""
    place.put("m/1")
    place.store.scan()
    first = place.store.stamp("m", 1)
    place.store.scan()
    assert place.store.stamp("m", 1) == first
    place.put("m/1", model_onnx=b"another")
    place.store.scan()
    assert place.store.stamp("m", 1) != first


def test_a_source_is_a_folder_of_the_store(place: Place) -> None:
    """It is read where it lies; ways out of the store are none."""
    place.put("candidates/m", model_onnx=b"candidate")
    assert Path(place.store.fetch("m", 4, "candidates/m").path).read_bytes() == b"candidate"
    for source in ("../x", "/etc", "a/../b", "http://x", "", "a//b", "nowhere/at-all"):
        with pytest.raises(InvalidRequest):
            place.store.fetch("m", 4, source)


def test_a_placed_version_is_seen_when_it_is_published(place: Place, tmp_path: Path) -> None:
    """Before, nobody sees any of it; discarded, nothing of it is left."""
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "model.onnx").write_bytes(b"onnx")
    (staged / "weights.bin").write_bytes(b"w")
    artifact = place.store.take("m", 7, str(staged))
    gone = place.store.place(artifact)
    assert place.store.scan() == []
    gone.discard()
    placement = place.store.place(artifact)
    assert place.store.scan() == []
    placement.publish()
    placement.discard()
    assert place.store.scan() == [("m", 7)]
    assert place.store.fetch("m", 7).manifest.digest == artifact.manifest.digest
    with pytest.raises(Conflict):
        place.store.place(artifact).publish()
    assert place.store.fetch("m", 7).manifest.digest == artifact.manifest.digest


def test_bad_files_are_refused(place: Place) -> None:
    """No model's file, a wrong digest, a lineage that cannot be read: a sentence each."""
    place.put("m/1", weights_bin=b"w")
    place.put("m/2", model_onnx=b"onnx", version_toml=b'sha256 = "00"')
    place.put("m/3", model_onnx=b"onnx", version_toml=b"= [")
    place.put("m/4", model_onnx=b"onnx", version_toml=b"tags = 3")
    for number in (1, 2, 3, 4, 5):
        with pytest.raises(InvalidRequest):
            place.store.fetch("m", number)


@pytest.mark.parametrize("make", [in_folder, in_memory, on_disk])
def test_signatures_are_read_where_nobody_inspects(make: Any, tmp_path: Path) -> None:
    """With a way to describe a file, the manifest says what it found."""
    place = make(tmp_path, describe=lambda _: signature_of(4))
    place.put("m/1")
    assert place.store.fetch("m", 1).manifest.signature == signature_of(4)


@pytest.mark.parametrize(
    "address",
    ["http://169.254.169.254/m", "https://x/m", "gopher://x", "ftp://x/m", "memory://m",
     "file:///etc", "simplecache::http://x", "s3://", "github://a:b@c/", "data://x", "zip://x"],
)  # fmt: skip
def test_no_other_scheme_is_followed(address: str, tmp_path: Path) -> None:
    """M19: an allow-list of object stores; the address is the operator's setting in any case."""
    with pytest.raises(InvalidRequest):
        open_store(address, tmp_path, describe=None, now=ManualClock())
    assert not {"http", "https", "file", "memory"} & SCHEMES


def test_a_folder_needs_no_scheme(tmp_path: Path) -> None:
    """A plain path is the store that is a folder."""
    store = open_store(str(tmp_path), tmp_path / "c", describe=None, now=ManualClock())
    assert isinstance(store, FolderStore)


class Failing:
    """A filesystem whose package has errors of its own, and fails when it is told to."""

    class Unreachable(Exception):
        """As such a package would raise."""

    def __init__(self, files: Any) -> None:
        self.files = files
        self.away = False

    def __getattr__(self, name: str) -> Any:
        if self.away and not name.startswith("_"):
            raise self.Unreachable
        return getattr(self.files, name)


@pytest.fixture
def failing() -> Failing:
    """It works until it is told not to."""
    return Failing(fsspec.filesystem("memory"))


@pytest.fixture
def remote(failing: Failing, tmp_path: Path) -> Place:
    """A store behind it."""
    root = f"/{uuid.uuid4().hex}/models"
    store = ObjectStore(failing, root, tmp_path / "cache", describe=None, now=ManualClock())
    return Place(store, lambda path, content: failing.files.pipe_file(f"{root}/{path}", content))


def test_an_object_store_that_is_away_is_not_an_empty_one(remote: Place, failing: Failing) -> None:
    """What was seen stays, with its mark, so nothing is fetched anew when it is back."""
    remote.put("m/1")
    assert remote.store.scan() == [("m", 1)]
    stamp = remote.store.stamp("m", 1)
    failing.away = True
    assert remote.store.scan() == [("m", 1)]
    assert remote.store.stamp("m", 1) == stamp
    assert remote.store.seed("m") == {}
    with pytest.raises(InvalidRequest, match="cannot be read") as refused:
        remote.store.fetch("m", 1)
    assert is_passing(refused.value)


def test_who_places_nothing_takes_nothing_away(remote: Place, failing: Failing) -> None:
    """Another host published the same version meanwhile; its files are its own."""
    remote.put("source", model_onnx=b"onnx", more_bin=b"x")
    artifact = remote.store.fetch("m", 1, "source")
    mine, other = remote.store.place(artifact), remote.store.place(artifact)
    other.publish()
    mine.discard()
    assert [file.path for file in remote.store.fetch("m", 1).manifest.files] == [
        "model.onnx",
        "more.bin",
    ]
    third = remote.store.fetch("m", 2, "source")
    failing.away = True
    with pytest.raises(NotReady, match="cannot be written"):
        remote.store.place(third)
