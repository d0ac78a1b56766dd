"""ArtifactCache: this host's copies of versions, the only files that are ever opened as models.

A version is hashed while it is copied, and its copy takes its place whole, under its digest. Where
the bytes come from is said by an `Origin`: a folder, a staged upload or an object store.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import msgspec

from gateway.adapters.disk import sync_folder
from gateway.core.errors import InvalidRequest, TooLarge, excerpt
from gateway.core.lineage import check_lineage
from gateway.core.models import Manifest, StoredFile, bundle_digest, is_name
from gateway.core.tensors import Signature
from gateway.ports import Artifact

MODEL_FILE: Final = "model.onnx"
LINEAGE_FILE: Final = "version.toml"
MAX_FILES: Final = 256
MAX_BYTES: Final = 32 * 1024**3
MAX_TOML_BYTES: Final = 256 * 1024
CHUNK: Final = 1024 * 1024
COPYING: Final = ".copy-"
"""How a folder begins in which a copy is made."""


class Origin(Protocol):
    """The files of one version where they come from. Raises OSError where that fails."""

    @property
    def is_near(self) -> bool:
        """Whether reading twice is cheap."""

    def survey(self) -> list[tuple[str, int]]:
        """Name and size of each file.

        Raises:
            InvalidRequest: something there is no plain file.
        """

    def open(self, name: str) -> BinaryIO:
        """Open one of them to be read from its beginning."""

    def stamp(self) -> str:
        """A mark that changes whenever the files do."""


class Files:
    """The `Origin` that is a folder of plain files; links are not followed."""

    is_near: Final = True

    def __init__(self, folder: Path, where: str) -> None:
        """`where` names the version in refusals."""
        self._folder = folder
        self._where = where

    def survey(self) -> list[tuple[str, int]]:
        """Name and size of each file; hidden ones are left out."""
        folder = self._folder
        if not all(stat.S_ISDIR(path.lstat().st_mode) for path in (folder.parent, folder)):
            message = f"{self._where} is no folder; links are not followed."
            raise InvalidRequest(message)
        found = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    seen = entry.stat(follow_symlinks=False)
                    _check_file(self._where, entry.name, seen)
                    found.append((entry.name, seen.st_size))
        return found

    def open(self, name: str) -> BinaryIO:
        """Open a regular file with one name."""
        return open_plain(self._folder / name)

    def stamp(self) -> str:
        """Over names, sizes, times and inodes."""
        return stamp_of(self._folder)


class ArtifactCache:
    """Copies of versions, `<folder>/<digest>/`. Blocking; safe to call from threads."""

    __slots__ = ("_describe", "_folder", "_max_bytes", "_now", "_verified")

    def __init__(
        self,
        folder: Path,
        *,
        describe: Callable[[str], Signature] | None,
        now: Callable[[], float],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Choose the folder; it is made when needed.

        Args:
            folder: where the copies are.
            describe: reads the signature of a model's file; raises InvalidRequest if it cannot.
                Without it no file is parsed here, and manifests have an empty signature.
            now: UTC seconds.
            max_bytes: of all files of one version.
        """
        self._folder = folder
        self._describe = describe
        self._now = now
        self._max_bytes = max_bytes
        self._verified: set[str] = set()

    def take(self, model: str, number: int, origin: Origin) -> Artifact:
        """Copy a version, hashing on the way, and describe it.

        Raises:
            InvalidRequest: what lies there is no version, with a sentence; its cause is an OSError
                if a disk or the network failed, which may pass.
        """
        where = f"Version {number} of '{model}'"
        try:
            return self._take(model, number, origin, where)
        except OSError as error:
            message = f"{where} cannot be read: {reason_of(error)}."
            raise InvalidRequest(message) from error

    def cached(self, manifest: Manifest) -> Artifact | None:
        """The verified copy of a known version; a damaged one is dropped."""
        try:
            return self._standing(manifest)
        except OSError:
            return None

    def read(self, artifact: Artifact, name: str, limit: int) -> bytes | None:
        """A small file of a copy, None if the version has none of that name.

        Raises:
            TooLarge: it has more than `limit` bytes. InvalidRequest: it cannot be read.
        """
        sizes = {file.path: file.size for file in artifact.manifest.files}
        if name not in sizes:
            return None
        if sizes[name] > limit:
            message = f"'{name}' has {sizes[name]} bytes; at most {limit} may be."
            raise TooLarge(message)
        try:
            with open_plain(Path(artifact.path).with_name(name)) as file:
                return file.read(limit)
        except OSError as error:
            message = f"'{name}' cannot be read: {reason_of(error)}."
            raise InvalidRequest(message) from error

    def _standing(self, manifest: Manifest) -> Artifact | None:
        """As `cached`; raises OSError where the disk does not let it be seen."""
        folder = self._folder / manifest.digest
        known = manifest.digest in self._verified
        # A copy takes its place whole, so one that is not there yet is not damaged.
        if not known and not folder.exists():
            return None
        try:
            if all(_is_intact(folder, file, hashed=not known) for file in manifest.files):
                self._verified.add(manifest.digest)
                return Artifact(manifest=manifest, path=str(folder / MODEL_FILE))
        except FileNotFoundError:
            pass
        self._verified.discard(manifest.digest)
        _discard(folder)
        return None

    def _take(self, model: str, number: int, origin: Origin, where: str) -> Artifact:
        names = self._survey(origin, where)
        before = origin.stamp()
        standing = None
        if origin.is_near:
            # Hash in place first: a version that is in the cache is not copied again.
            files = tuple(_hash(origin, name) for name in names)
            standing = self._standing(_manifest(model, number, files))
        if standing is None:
            standing = self._keep(model, number, origin, names)
        folder = Path(standing.path).parent
        # Wanted anew, though it may be old: nobody sweeps it while it is looked at.
        with contextlib.suppress(OSError):
            os.utime(folder)
        signature = standing.manifest.signature
        try:
            lineage = _lineage(folder, standing.manifest.files, where)
            if self._describe is not None:
                signature = self._describe(standing.path)
        except InvalidRequest:
            self._verified.discard(standing.manifest.digest)
            _discard(folder)
            raise
        if origin.stamp() != before:
            message = f"{where} changed while it was read; it is looked at again."
            raise InvalidRequest(message)
        described = msgspec.structs.replace(
            standing.manifest, signature=signature, lineage=lineage, created_at=self._now()
        )
        return Artifact(manifest=described, path=standing.path)

    def _survey(self, origin: Origin, where: str) -> list[str]:
        """The names of the version's files, once nothing speaks against them."""
        found = origin.survey()
        total = sum(size for _, size in found)
        if MODEL_FILE not in (name for name, _ in found):
            message = f"{where} has no {MODEL_FILE}."
            raise InvalidRequest(message)
        if len(found) > MAX_FILES or total > self._max_bytes:
            message = (
                f"{where} has {len(found)} files and {total} bytes; "
                f"at most {MAX_FILES} and {self._max_bytes} may."
            )
            raise TooLarge(message)
        return sorted(name for name, _ in found)

    def _keep(self, model: str, number: int, origin: Origin, names: list[str]) -> Artifact:
        """Copy the files, hashing what is written, and put the copy in its place at once."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=COPYING, dir=self._folder))
        try:
            budget = self._max_bytes
            files = []
            for name in names:
                files.append(_copy(origin, name, work / name, budget))
                budget -= files[-1].size
            manifest = _manifest(model, number, tuple(files))
            folder = self._folder / manifest.digest
            work.chmod(0o500)
            sync_folder(work)
            try:
                work.rename(folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            sync_folder(self._folder)
        finally:
            _discard(work)
        artifact = self._standing(manifest)
        if artifact is None:
            message = f"Version {number} of '{model}' could not be kept in the cache."
            raise InvalidRequest(message)
        return artifact


def _manifest(model: str, number: int, files: tuple[StoredFile, ...]) -> Manifest:
    """What the files alone tell."""
    return Manifest(
        schema=1,
        model=model,
        number=number,
        digest=bundle_digest(files),
        files=files,
        signature=Signature(inputs=(), outputs=(), batched=False),
        lineage={},
        created_at=0.0,
    )


def stamp_of(folder: Path) -> str:
    """A mark that changes whenever the files in a folder do: names, sizes, times and inodes."""
    marks = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                seen = entry.stat(follow_symlinks=False)
                marks.append(
                    (entry.name, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ino)
                )
    except OSError as error:
        marks.append((type(error).__name__, 0, 0, 0, 0))
    return hashlib.sha256(repr(sorted(marks)).encode()).hexdigest()


def _check_file(where: str, name: str, seen: os.stat_result) -> None:
    if not is_name(name):
        message = f"{where} holds '{excerpt(name)}', which is no proper name of a file."
        raise InvalidRequest(message)
    if not stat.S_ISREG(seen.st_mode):
        message = f"{where} holds '{name}', which is no regular file; links are not followed."
        raise InvalidRequest(message)
    if seen.st_nlink != 1:
        message = f"{where} holds '{name}', which has another name elsewhere; copy it, unlinked."
        raise InvalidRequest(message)


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file with one name, following no link and waiting for no pipe."""
    held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    seen = os.fstat(held)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
        os.close(held)
        message = f"'{path.name}' is no regular file with one name."
        raise InvalidRequest(message)
    return os.fdopen(held, "rb")


def _hash(origin: Origin, name: str) -> StoredFile:
    with origin.open(name) as file:
        return _hashed(file, name)


def _hashed(file: BinaryIO, name: str) -> StoredFile:
    # What is hashed is a file on disk, whatever its type says.
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return StoredFile(path=name, size=file.tell(), sha256=digest)


def _copy(origin: Origin, name: str, target: Path, budget: int) -> StoredFile:
    digest = hashlib.sha256()
    size = 0
    with origin.open(name) as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            size += len(chunk)
            if size > budget:
                message = f"'{name}' grew past what one version may hold."
                raise TooLarge(message)
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(0o400)
    return StoredFile(path=name, size=size, sha256=digest.hexdigest())


def _is_intact(folder: Path, file: StoredFile, *, hashed: bool) -> bool:
    path = folder / file.path
    seen = path.lstat()
    if not stat.S_ISREG(seen.st_mode) or seen.st_size != file.size:
        return False
    if not hashed:
        return True
    with open_plain(path) as content:
        return _hashed(content, file.path).sha256 == file.sha256


def _lineage(folder: Path, files: tuple[StoredFile, ...], where: str) -> Mapping[str, Any]:
    """What `version.toml` says; the digest that it states must be that of the model's file."""
    digests = {file.path: file.sha256 for file in files}
    if LINEAGE_FILE not in digests:
        return {}
    with open_plain(folder / LINEAGE_FILE) as file:
        told = toml_of(file)
    stated = told.get("sha256")
    if stated is not None and stated != digests[MODEL_FILE]:
        message = f"{where}: {LINEAGE_FILE} states another digest than {MODEL_FILE} has."
        raise InvalidRequest(message)
    return check_lineage(told)


def toml_of(file: BinaryIO) -> dict[str, Any]:
    """Read a TOML file within bounds, as JSON would keep it.

    Raises:
        InvalidRequest: it is none. TooLarge: it is too long.
    """
    text = file.read(MAX_TOML_BYTES + 1)
    if len(text) > MAX_TOML_BYTES:
        message = f"A TOML file has more than {MAX_TOML_BYTES} bytes."
        raise TooLarge(message)
    try:
        told = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        message = f"A TOML file cannot be read: {excerpt(str(error), 120)}."
        raise InvalidRequest(message) from error
    # As JSON keeps it: dates become text, what is not finite becomes null.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(told))
    return plain


def _discard(folder: Path) -> None:
    """Remove a copy, read-only as it may be."""
    if folder.is_dir() and not folder.is_symlink():
        folder.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def reason_of(error: OSError) -> str:
    """The kernel's words without the path."""
    return error.strerror or type(error).__name__
