"""ObjectStore: the model store in an object store, or whatever else fsspec can reach.

The layout is that of `gateway.adapters.folder`. There are no links and no renames there: a version
is seen once it has its `model.onnx`, which is therefore written last.
"""

import contextlib
import datetime as dt
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from gateway.adapters.artifacts import (
    MAX_BYTES,
    MODEL_FILE,
    ArtifactCache,
    Files,
    open_plain,
    reason_of,
    toml_of,
)
from gateway.adapters.folder import (
    SEED_FILE,
    FolderStore,
    check_place,
    number_of,
    source_parts,
    taken,
)
from gateway.core.errors import Conflict, GatewayError, InvalidRequest, NotReady, excerpt
from gateway.core.models import Manifest, is_name
from gateway.core.tensors import Signature
from gateway.ports import Artifact, ModelStore, Placement

log: Final = logging.getLogger(__name__)

SCHEMES: Final = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss"})
"""Object stores only: no scheme here leads to another host's web pages or to this host's files."""
_MARKS: Final = (
    "size", "ETag", "etag", "checksum", "md5Hash", "generation", "version_id", "ino",
    "mtime", "LastModified", "last_modified", "updated", "created",
)  # fmt: skip
_DEPTH: Final = 3


def folder_of(where: str) -> Path | None:
    """The folder that a setting names as the model store; None where it is an address."""
    return None if "://" in where else Path(where)


def open_store(
    where: str,
    cache: Path,
    *,
    describe: Callable[[str], Signature] | None,
    now: Callable[[], float],
) -> ModelStore:
    """The model store that a setting names: a folder, or an address of an object store.

    Raises:
        InvalidRequest: the scheme is none of those allowed, or what speaks it is not installed.
    """
    if (folder := folder_of(where)) is not None:
        return FolderStore(folder, cache, describe=describe, now=now)
    scheme, _, rest = where.partition("://")
    if scheme not in SCHEMES or not rest.strip("/"):
        allowed = ", ".join(sorted(SCHEMES))
        message = f"The model store is a folder or an address that begins with one of: {allowed}."
        raise InvalidRequest(message)
    try:
        filesystem = import_module("fsspec").filesystem(scheme)
    except (ImportError, ValueError) as error:
        message = (
            f"A model store at '{scheme}' needs the extra 'objects' and fsspec's package for it."
        )
        raise InvalidRequest(message) from error
    return ObjectStore(filesystem, rest, cache, describe=describe, now=now)


class ObjectStore:
    """The `ModelStore` port on a filesystem of fsspec. Blocking; safe to call from threads."""

    __slots__ = ("_cache", "_files", "_root", "_seen")

    def __init__(  # noqa: PLR0913 - where, and what `ArtifactCache` needs
        self,
        filesystem: Any,  # noqa: ANN401 - fsspec has no types
        root: str,
        cache: Path,
        *,
        describe: Callable[[str], Signature] | None,
        now: Callable[[], float],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Choose the place, and the folder of this host's copies."""
        self._files = filesystem
        self._root = root.rstrip("/")
        self._cache = ArtifactCache(cache, describe=describe, now=now, max_bytes=max_bytes)
        # What the last scan saw of each version's files.
        self._seen: dict[tuple[str, int], str] = {}

    def scan(self) -> list[tuple[str, int]]:
        """Every (model, number) with proper names and a model's file, sorted.

        One listing of the whole store; of one that cannot be reached, what was seen last.
        """
        try:
            listing = self._listing()
        except OSError as error:
            log.warning("The model store cannot be listed: %s.", reason_of(error))
            return sorted(self._seen)
        found: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
        whole = set()
        for path, facts in listing:
            parts = path.split("/")
            number = number_of(parts[1]) if len(parts) == _DEPTH and is_name(parts[0]) else None
            if number is not None:
                found.setdefault((parts[0], number), []).append(_mark(parts[2], facts))
                if parts[2] == MODEL_FILE:
                    whole.add((parts[0], number))
        self._seen = {key: _stamp(marks) for key, marks in found.items() if key in whole}
        return sorted(whole)

    def stamp(self, model: str, number: int) -> str:
        """A mark of the files as the last scan saw them."""
        check_place(model, number)
        return self._seen.get((model, number), "")

    def fetch(self, model: str, number: int, source: str | None = None) -> Artifact:
        """Copy a version into the cache; `source` is a folder of the store other than its own.

        Raises:
            InvalidRequest: what lies there is no version; its cause is an OSError if the store
                could not be read, which may pass.
        """
        check_place(model, number)
        inside = f"{model}/{number}" if source is None else "/".join(source_parts(source))
        origin = _Objects(self._files, f"{self._root}/{inside}")
        try:
            with _as_of_a_disk():
                return self._cache.take(model, number, origin)
        except OSError as error:
            message = f"Version {number} of '{model}' cannot be read: {reason_of(error)}."
            raise InvalidRequest(message) from error

    def take(self, model: str, number: int, folder: str) -> Artifact:
        """Copy a version into the cache from a folder of this host."""
        where = f"Version {number} of '{model}'"
        return self._cache.take(model, number, Files(Path(folder), where))

    def cached(self, manifest: Manifest) -> Artifact | None:
        """The verified copy of a known version; a damaged one is dropped."""
        return self._cache.cached(manifest)

    def read(self, artifact: Artifact, name: str, limit: int) -> bytes | None:
        """A small file of a copy, None if there is none of that name."""
        return self._cache.read(artifact, name, limit)

    def place(self, artifact: Artifact) -> Placement:
        """Write all of a version but its model's file.

        Raises:
            Conflict: something lies there already. NotReady: the store cannot be written.
        """
        manifest = artifact.manifest
        check_place(manifest.model, manifest.number)
        where = f"{self._root}/{manifest.model}/{manifest.number}"
        placed = _Placed(self._files, where, artifact)
        placed.prepare()
        return placed

    def seed(self, model: str) -> Mapping[str, Any]:
        """The model's seed settings, empty if there are none or they cannot be read."""
        if not is_name(model):
            return {}
        try:
            path = f"{self._root}/{model}/{SEED_FILE}"
            with _as_of_a_disk(), self._files.open(path, "rb") as file:
                return toml_of(file)
        except (OSError, InvalidRequest):
            return {}

    def _listing(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Path below the root and facts of each file, three levels deep."""
        with _as_of_a_disk():
            self._files.invalidate_cache()
            try:
                listed = self._files.find(self._root, maxdepth=_DEPTH, detail=True)
            except FileNotFoundError:
                return []
        start = len(self._files._strip_protocol(self._root)) + 1  # noqa: SLF001 - fsspec's own way
        return [(path[start:], facts) for path, facts in listed.items()]


@contextlib.contextmanager
def _as_of_a_disk() -> Iterator[None]:
    """Raise what a package behind fsspec raises as an OSError; some have errors of their own."""
    try:
        yield
    except (GatewayError, OSError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"the object store failed ({type(error).__name__})") from error


class _Objects:
    """The `Origin` that is a folder of an object store."""

    is_near: Final = False

    def __init__(self, filesystem: Any, folder: str) -> None:  # noqa: ANN401 - fsspec has no types
        self._files = filesystem
        self._folder = folder

    def survey(self) -> list[tuple[str, int]]:
        """Name and size of each file; hidden ones are left out."""
        found = []
        for facts in self._listed():
            name = str(facts["name"]).rstrip("/").rsplit("/", 1)[-1]
            if name.startswith(".") or not name:
                continue
            if not is_name(name) or facts.get("type") != "file" or facts.get("islink"):
                message = f"'{excerpt(name)}' is no file with a proper name."
                raise InvalidRequest(message)
            found.append((name, int(facts["size"])))
        return found

    def open(self, name: str) -> BinaryIO:
        """Open one of them to be read from its beginning."""
        return cast("BinaryIO", self._files.open(f"{self._folder}/{name}", "rb"))

    def stamp(self) -> str:
        """Over what the store tells of each file now."""
        try:
            return _stamp(_mark(str(facts["name"]), facts) for facts in self._listed())
        except OSError as error:
            return type(error).__name__

    def _listed(self) -> list[Mapping[str, Any]]:
        with _as_of_a_disk():
            self._files.invalidate_cache()
            listed: list[Mapping[str, Any]] = self._files.ls(self._folder, detail=True)
        return [facts for facts in listed if str(facts["name"]).strip("/") != self._own()]

    def _own(self) -> str:
        """Some stores list a folder among what is in it."""
        return str(self._files._strip_protocol(self._folder)).strip("/")  # noqa: SLF001 - as above


class _Placed:
    """The `Placement` in an object store."""

    def __init__(self, filesystem: Any, where: str, artifact: Artifact) -> None:  # noqa: ANN401
        self._files = filesystem
        self._where = where
        self._copy = Path(artifact.path).parent
        self._manifest = artifact.manifest
        self._done = False
        self._publishing = False

    def prepare(self) -> None:
        """Write all but the model's file.

        Raises:
            Conflict: something lies there already. NotReady: the store cannot be written.
        """
        self._check_free()
        for file in self._manifest.files:
            if file.path != MODEL_FILE:
                self._put(file.path)

    def publish(self) -> None:
        """Write the model's file, by which the version is seen.

        Raises:
            Conflict: it is there by now. NotReady: the store cannot be written.
        """
        self._check_free()
        self._publishing = True
        self._put(MODEL_FILE)
        self._done = True

    def discard(self) -> None:
        """Leave nothing behind, unless it was published, here or by someone else."""
        with contextlib.suppress(Conflict, NotReady):
            if not self._publishing:
                self._check_free()
            if not self._done:
                for file in self._manifest.files:
                    with contextlib.suppress(OSError), _as_of_a_disk():
                        self._files.rm_file(f"{self._where}/{file.path}")

    def _check_free(self) -> None:
        try:
            with _as_of_a_disk():
                self._files.invalidate_cache()
                is_taken = self._files.exists(f"{self._where}/{MODEL_FILE}")
        except OSError as error:
            raise NotReady(_unwritten(error)) from error
        if is_taken:
            self._done = True  # it is someone else's, or was published
            raise Conflict(taken(self._manifest))

    def _put(self, name: str) -> None:
        try:
            with _as_of_a_disk():
                self._files.makedirs(self._where, exist_ok=True)
                with (
                    open_plain(self._copy / name) as reader,
                    self._files.open(f"{self._where}/{name}", "wb") as writer,
                ):
                    shutil.copyfileobj(reader, writer)
        except OSError as error:
            self.discard()
            raise NotReady(_unwritten(error)) from error


def _unwritten(error: OSError) -> str:
    return f"The model store cannot be written: {reason_of(error)}."


def _mark(name: str, facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """What would change if the file did."""
    told = tuple(_plain(facts.get(key)) for key in _MARKS)
    return (os.path.basename(name), *told)  # noqa: PTH119 - a name in a store is no path


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def _stamp(marks: Iterable[tuple[Any, ...]]) -> str:
    return hashlib.sha256(repr(sorted(marks)).encode()).hexdigest()
