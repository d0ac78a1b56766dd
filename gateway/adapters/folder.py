"""FolderStore: the model store that is a folder.

`<store>/<model>/<version>/model.onnx`, with further files beside it (external data), a
`version.toml` that tells its lineage, a `golden.json` with requests to be tried, and a
`<store>/<model>/model.toml` that seeds the model. The folder may change at any time and may be
written by others, so only copies are ever loaded (`gateway.adapters.artifacts`).
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from gateway.adapters.artifacts import (
    MAX_BYTES,
    ArtifactCache,
    Files,
    open_plain,
    reason_of,
    stamp_of,
    toml_of,
)
from gateway.adapters.disk import sync_folder
from gateway.core.errors import Conflict, InvalidRequest, NotReady, excerpt
from gateway.core.models import Manifest, check_name, is_name, parse_version
from gateway.core.tensors import Signature
from gateway.ports import Artifact, Placement

SEED_FILE: Final = "model.toml"
INCOMING: Final = ".incoming-"
"""How a folder begins in which a version is put together; nobody takes it for a version."""
MAX_DEPTH: Final = 8


class FolderStore:
    """The `ModelStore` port on a folder. Blocking; safe to call from threads."""

    __slots__ = ("_cache", "_root")

    def __init__(
        self,
        root: Path,
        cache: Path,
        *,
        describe: Callable[[str], Signature] | None,
        now: Callable[[], float],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Choose the folders: the model store's, and that of this host's copies.

        The other arguments are those of `ArtifactCache`.
        """
        self._root = root
        self._cache = ArtifactCache(cache, describe=describe, now=now, max_bytes=max_bytes)

    def scan(self) -> list[tuple[str, int]]:
        """Every (model, number) whose folders have proper names, sorted; links are not followed."""
        found = []
        for model in _folders(self._root):
            if is_name(model):
                numbers = (number_of(name) for name in _folders(self._root / model))
                found += [(model, number) for number in numbers if number is not None]
        return sorted(found)

    def stamp(self, model: str, number: int) -> str:
        """A mark that changes whenever the version's files do: names, sizes, times and inodes."""
        return stamp_of(self._folder(model, number))

    def fetch(self, model: str, number: int, source: str | None = None) -> Artifact:
        """Copy a version into the cache; `source` is a folder of the store other than its own.

        Raises:
            InvalidRequest: what lies there is no version, with a sentence; its cause is an OSError
                if the disk failed, which may pass.
        """
        folder = self._folder(model, number)
        if source is not None:
            folder = self._inside(source_parts(source))
        return self._cache.take(model, number, Files(folder, f"Version {number} of '{model}'"))

    def take(self, model: str, number: int, folder: str) -> Artifact:
        """Copy a version into the cache from a folder of this host, as `fetch` does."""
        where = f"Version {number} of '{model}'"
        return self._cache.take(model, number, Files(Path(folder), where))

    def cached(self, manifest: Manifest) -> Artifact | None:
        """The verified copy of a known version; a damaged one is dropped."""
        return self._cache.cached(manifest)

    def read(self, artifact: Artifact, name: str, limit: int) -> bytes | None:
        """A small file of a copy, None if there is none of that name.

        Raises:
            TooLarge: it has more than `limit` bytes. InvalidRequest: it cannot be read.
        """
        return self._cache.read(artifact, name, limit)

    def place(self, artifact: Artifact) -> Placement:
        """Bring a copy into the store, where nobody sees it before it is published.

        Raises:
            Conflict: something lies there already. NotReady: the store cannot be written.
        """
        manifest = artifact.manifest
        target = self._folder(manifest.model, manifest.number)
        if os.path.lexists(target):
            raise Conflict(taken(manifest))
        try:
            return _prepared(artifact, target)
        except OSError as error:
            message = f"The model store cannot be written: {reason_of(error)}."
            raise NotReady(message) from error

    def seed(self, model: str) -> Mapping[str, Any]:
        """The model's seed settings, empty if there are none or they cannot be read."""
        if not is_name(model):
            return {}
        try:
            with open_plain(self._root / model / SEED_FILE) as file:
                return toml_of(file)
        except (OSError, InvalidRequest):
            return {}

    def _inside(self, parts: tuple[str, ...]) -> Path:
        """A folder below the store's, on no way that leads over a link."""
        folder = self._root
        for part in parts:
            folder /= part
            if folder.is_symlink():
                message = f"'{excerpt('/'.join(parts))}' leads over a link; none is followed."
                raise InvalidRequest(message)
        return folder

    def _folder(self, model: str, number: int) -> Path:
        check_place(model, number)
        return self._root / model / str(number)


class _Prepared:
    """A version put together beside the place that it is to take."""

    def __init__(self, work: Path, target: Path, manifest: Manifest) -> None:
        self._work = work
        self._target = target
        self._manifest = manifest

    def publish(self) -> None:
        """Let everybody see it, whole.

        Raises:
            Conflict: something lies there by now. NotReady: the store cannot be written.
        """
        try:
            self._work.rename(self._target)
            sync_folder(self._target.parent)
        except OSError as error:
            if self._target.exists():
                raise Conflict(taken(self._manifest)) from error
            message = f"The model store cannot be written: {reason_of(error)}."
            raise NotReady(message) from error

    def discard(self) -> None:
        """Leave nothing behind, unless it was published."""
        shutil.rmtree(self._work, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._target.parent.rmdir()  # a model's folder that was made for it


def check_place(model: str, number: int) -> None:
    """Refuse what no model store has a place for."""
    if not is_name(model) or number < 1:
        message = f"'{excerpt(model)}' version {number} cannot be in a model store."
        raise InvalidRequest(message)


def source_parts(source: str) -> tuple[str, ...]:
    """The folders of a path inside the model store.

    Raises:
        InvalidRequest: it is absolute, an address, or has a part that is no proper name.
    """
    parts = tuple(source.split("/"))
    if len(parts) > MAX_DEPTH:
        message = f"A source is a folder in the model store, at most {MAX_DEPTH} levels deep."
        raise InvalidRequest(message)
    return tuple(check_name("a folder in the model store", part) for part in parts)


def taken(manifest: Manifest) -> str:
    """That a number's place in the store is not free."""
    return (
        f"The model store holds files under version {manifest.number} of '{manifest.model}' "
        "already; give the new bytes a new number."
    )


def number_of(name: str) -> int | None:
    """The version that a folder's name names, None for every other name."""
    try:
        return parse_version(name)
    except (InvalidRequest, IndexError):
        return None


def _prepared(artifact: Artifact, target: Path) -> _Prepared:
    copy = Path(artifact.path).parent
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=INCOMING, dir=target.parent))
    prepared = _Prepared(work, target, artifact.manifest)
    try:
        for file in artifact.manifest.files:
            written = work / file.path
            with open_plain(copy / file.path) as reader, written.open("xb") as writer:
                shutil.copyfileobj(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
            written.chmod(0o644)
        work.chmod(0o755)
        sync_folder(work)
    except OSError:
        prepared.discard()
        raise
    return prepared


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
