"""FolderStore: versions from a folder, copied into a cache of this host before anything opens them.

`<store>/<model>/<version>/model.onnx`, with further files beside it (external data), a
`version.toml` that tells its lineage, and a `<store>/<model>/model.toml` that seeds the model.
The folder may change at any time and may be written by others, so a version is hashed while it is
copied, and only the copy is ever loaded.
"""

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
from typing import Any, BinaryIO, Final

import msgspec

from gateway.adapters.disk import sync_folder
from gateway.core.errors import InvalidRequest, TooLarge, excerpt
from gateway.core.models import Manifest, StoredFile, bundle_digest, is_name, parse_version
from gateway.core.tensors import Signature
from gateway.ports import Artifact

MODEL_FILE: Final = "model.onnx"
LINEAGE_FILE: Final = "version.toml"
SEED_FILE: Final = "model.toml"
MAX_FILES: Final = 256
MAX_BYTES: Final = 32 * 1024**3
MAX_TOML_BYTES: Final = 256 * 1024
CHUNK: Final = 1024 * 1024


class FolderStore:
    """The `ModelStore` port on a folder. Blocking; safe to call from threads."""

    __slots__ = ("_cache", "_describe", "_max_bytes", "_now", "_root", "_verified")

    def __init__(
        self,
        root: Path,
        cache: Path,
        *,
        describe: Callable[[str], Signature],
        now: Callable[[], float],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Choose the folders.

        Args:
            root: the model store.
            cache: this host's copies, `<cache>/<digest>/`; made when needed.
            describe: reads the signature of a model's file; raises InvalidRequest if it cannot.
            now: UTC seconds.
            max_bytes: of all files of one version.
        """
        self._root = root
        self._cache = cache
        self._describe = describe
        self._now = now
        self._max_bytes = max_bytes
        self._verified: set[str] = set()

    def scan(self) -> list[tuple[str, int]]:
        """Every (model, number) whose folders have proper names, sorted; links are not followed."""
        found = []
        for model in _folders(self._root):
            if is_name(model):
                numbers = (_number(name) for name in _folders(self._root / model))
                found += [(model, number) for number in numbers if number is not None]
        return sorted(found)

    def stamp(self, model: str, number: int) -> str:
        """A mark that changes whenever the version's files do: names, sizes, times and inodes."""
        marks = []
        try:
            with os.scandir(self._folder(model, number)) as entries:
                for entry in entries:
                    seen = entry.stat(follow_symlinks=False)
                    marks.append(
                        (entry.name, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ino)
                    )
        except OSError as error:
            marks.append((type(error).__name__, 0, 0, 0, 0))
        return hashlib.sha256(repr(sorted(marks)).encode()).hexdigest()

    def fetch(self, model: str, number: int) -> Artifact:
        """Copy a version into the cache, hashing on the way, and describe it.

        Raises:
            InvalidRequest: what lies there is no loadable version, with a sentence; its cause is an
                OSError if the disk failed, which may pass.
        """
        where = f"Version {number} of '{model}'"
        try:
            return self._fetch(model, number, where)
        except OSError as error:
            message = f"{where} cannot be read: {_reason(error)}."
            raise InvalidRequest(message) from error

    def cached(self, manifest: Manifest) -> Artifact | None:
        """The verified copy of a known version; a damaged one is dropped."""
        try:
            return self._standing(manifest)
        except OSError:
            return None

    def seed(self, model: str) -> Mapping[str, Any]:
        """The model's seed settings, empty if there are none or they cannot be read."""
        if not is_name(model):
            return {}
        try:
            with _open(self._root / model / SEED_FILE) as file:
                return _toml(file)
        except (OSError, InvalidRequest):
            return {}

    def _standing(self, manifest: Manifest) -> Artifact | None:
        """As `cached`; raises OSError where the disk does not let it be seen."""
        folder = self._cache / manifest.digest
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

    def _folder(self, model: str, number: int) -> Path:
        if not is_name(model) or number < 1:
            message = f"'{excerpt(model)}' version {number} cannot be in a model store."
            raise InvalidRequest(message)
        return self._root / model / str(number)

    def _fetch(self, model: str, number: int, where: str) -> Artifact:
        source = self._folder(model, number)
        names = self._survey(source, where)
        before = self.stamp(model, number)
        # Hash in place first: a version that is in the cache is not copied again.
        known = self._manifest(model, number, tuple(_hash(source / name) for name in names))
        standing = self._standing(known)
        if standing is None:
            standing = self._keep(model, number, source, names)
        folder = Path(standing.path).parent
        try:
            lineage = _lineage(folder, standing.manifest.files, where)
            signature = self._describe(standing.path)
        except InvalidRequest:
            self._verified.discard(standing.manifest.digest)
            _discard(folder)
            raise
        if self.stamp(model, number) != before:
            message = f"{where} changed while it was read; it is looked at again."
            raise InvalidRequest(message)
        described = msgspec.structs.replace(
            standing.manifest, signature=signature, lineage=lineage, created_at=self._now()
        )
        return Artifact(manifest=described, path=standing.path)

    def _survey(self, source: Path, where: str) -> list[str]:
        """The names of the version's files, once nothing speaks against them."""
        if not all(stat.S_ISDIR(path.lstat().st_mode) for path in (source.parent, source)):
            message = f"{where} is no folder; links are not followed."
            raise InvalidRequest(message)
        names = []
        total = 0
        with os.scandir(source) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                seen = entry.stat(follow_symlinks=False)
                _check_file(where, entry.name, seen)
                names.append(entry.name)
                total += seen.st_size
        if MODEL_FILE not in names:
            message = f"{where} has no {MODEL_FILE}."
            raise InvalidRequest(message)
        if len(names) > MAX_FILES or total > self._max_bytes:
            message = (
                f"{where} has {len(names)} files and {total} bytes; "
                f"at most {MAX_FILES} and {self._max_bytes} may."
            )
            raise TooLarge(message)
        return sorted(names)

    def _keep(self, model: str, number: int, source: Path, names: list[str]) -> Artifact:
        """Copy the files, hashing what is written, and put the copy in its place at once."""
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".copy-", dir=self._cache))
        try:
            budget = self._max_bytes
            files = []
            for name in names:
                files.append(_copy(source / name, work / name, budget))
                budget -= files[-1].size
            manifest = self._manifest(model, number, tuple(files))
            folder = self._cache / manifest.digest
            work.chmod(0o500)
            sync_folder(work)
            try:
                work.rename(folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            sync_folder(self._cache)
        finally:
            _discard(work)
        artifact = self._standing(manifest)
        if artifact is None:
            message = f"Version {number} of '{model}' could not be kept in the cache."
            raise InvalidRequest(message)
        return artifact

    def _manifest(self, model: str, number: int, files: tuple[StoredFile, ...]) -> Manifest:
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


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _number(name: str) -> int | None:
    try:
        return parse_version(name)
    except (InvalidRequest, IndexError):
        return None


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


def _open(path: Path) -> BufferedReader:
    """Open a regular file with one name, following no link and waiting for no pipe."""
    held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    seen = os.fstat(held)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1:
        os.close(held)
        message = f"'{path.name}' is no regular file with one name."
        raise InvalidRequest(message)
    return os.fdopen(held, "rb")


def _hash(path: Path) -> StoredFile:
    with _open(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(path=path.name, size=file.tell(), sha256=digest)


def _copy(source: Path, target: Path, budget: int) -> StoredFile:
    digest = hashlib.sha256()
    size = 0
    with _open(source) as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            size += len(chunk)
            if size > budget:
                message = f"'{source.name}' grew past what one version may hold."
                raise TooLarge(message)
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(0o400)
    return StoredFile(path=source.name, size=size, sha256=digest.hexdigest())


def _is_intact(folder: Path, file: StoredFile, *, hashed: bool) -> bool:
    path = folder / file.path
    seen = path.lstat()
    if not stat.S_ISREG(seen.st_mode) or seen.st_size != file.size:
        return False
    return not hashed or _hash(path).sha256 == file.sha256


def _lineage(folder: Path, files: tuple[StoredFile, ...], where: str) -> Mapping[str, Any]:
    """What `version.toml` says; the digest that it states must be that of the model's file."""
    digests = {file.path: file.sha256 for file in files}
    if LINEAGE_FILE not in digests:
        return {}
    with _open(folder / LINEAGE_FILE) as file:
        told = _toml(file)
    stated = told.get("sha256")
    if stated is not None and stated != digests[MODEL_FILE]:
        message = f"{where}: {LINEAGE_FILE} states another digest than {MODEL_FILE} has."
        raise InvalidRequest(message)
    return told


def _toml(file: BinaryIO) -> dict[str, Any]:
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


def _reason(error: OSError) -> str:
    """The kernel's words without the path."""
    return error.strerror or type(error).__name__
