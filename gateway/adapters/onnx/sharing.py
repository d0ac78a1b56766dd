"""Shared weights: a form of a model whose weights several processes map from one file.

onnxruntime copies weights into each process, packs them for its kernels and keeps the packed
copy. It can also write a model with its weights packed in a file beside it; a session on such a
form maps them, so that all processes of a host hold one copy, in the page cache.

The form belongs to the host: packing depends on the build of onnxruntime and on the processor.
It lies beside the verified copy of the version, in a private folder named by the version's digest
and by what it was packed for, appears there whole, and is hashed before each use. Whether it is
used is measured once: it must answer the same, and run no slower.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from gateway.adapters.onnx.engine import OnnxEngine, same, sample
from gateway.adapters.onnx.runtime import ort
from gateway.core.errors import GatewayError
from gateway.core.models import StoredFile
from gateway.ports import Artifact

RECIPE: Final = 1
"""Grows when forms are written in another way."""
MIN_SHARED_BYTES: Final = 16 * 1024 * 1024
"""Smaller versions are not worth a file of their own."""
SLOWER: Final = 1.1
"""A shared form that takes so much longer than the model itself is not used."""
SIZES: Final = (1, 32)
"""Rows at which both are timed."""
TURNS: Final = 15
LONG_NS: Final = 200_000_000
"""Both are run in turn until so often, or for so long."""
MODEL: Final = "model.onnx"
WEIGHTS: Final = "weights.bin"
CHOICE: Final = "choice.json"
OpenEngine: TypeAlias = Callable[[str | None], OnnxEngine]
"""Opens the shared form at a path, or the model itself; raises EngineFailed."""
WriteForm: TypeAlias = Callable[[str, str, str], None]
"""Writes the form of a model (path), as a model (path) and weights (name); raises EngineFailed."""

log: Final = logging.getLogger(__name__)


class Choice(Struct, frozen=True, forbid_unknown_fields=True):
    """What was found once for a version on this host.

    `plain_ns` and `shared_ns` are of the fastest run by rows. `files` are those of the form.
    """

    equal: bool
    plain_ns: Mapping[int, int]
    shared_ns: Mapping[int, int]
    files: tuple[StoredFile, ...]

    def usable(self, *, though_slower: bool) -> bool:
        """Whether the shared form is to be used."""
        fast = all(took <= SLOWER * self.plain_ns[rows] for rows, took in self.shared_ns.items())
        return self.equal and (fast or though_slower)


def shared_form(
    artifact: Artifact,
    *,
    open_engine: OpenEngine,
    write_form: WriteForm,
    now_ns: Callable[[], int],
    though_slower: bool,
) -> str | None:
    """Path of the version's shared form, written and measured first if this host has none.

    Args:
        artifact: only a copy in the cache that is named by its content can have one.
        open_engine: opens either form.
        write_form: writes the shared form.
        now_ns: monotonic.
        though_slower: use it if it answers the same, whatever it takes.

    Returns:
        None where the model itself is to be used. Nothing that goes wrong here keeps a version
        from being served.
    """
    digest, cache = artifact.manifest.digest, Path(artifact.path).parent.parent
    if Path(artifact.path).parent.name != digest:
        return None
    folder = cache / f"{digest}-{_host()}"
    try:
        # One process writes, the others wait: writing takes several times the weights.
        with _alone(cache):
            if not folder.exists():
                _write(artifact, folder, open_engine, write_form, now_ns)
        choice = _read(folder)
    except OSError as error:
        log.warning("weights of %s are not shared: %s", digest[:12], type(error).__name__)
        return None
    use = choice is not None and choice.usable(though_slower=though_slower)
    log.info("weights of %s are %sshared", digest[:12], "" if use else "not ")
    return str(folder / MODEL) if use else None


def _write(
    artifact: Artifact,
    folder: Path,
    open_engine: OpenEngine,
    write_form: WriteForm,
    now_ns: Callable[[], int],
) -> None:
    """Write the form and what was measured, and put both in their place at once."""
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=folder.parent))
    try:
        try:
            write_form(artifact.path, str(work / MODEL), WEIGHTS)
            files = tuple(_seal(path) for path in sorted(work.iterdir()))
            choice = _measure(open_engine(None), open_engine(str(work / MODEL)), files, now_ns)
        except GatewayError:
            # Not tried again at each load.
            choice = Choice(equal=False, plain_ns={}, shared_ns={}, files=())
        took = {rows: (choice.plain_ns[rows], ns) for rows, ns in choice.shared_ns.items()}
        log.info("a form to share was measured, (plain, shared) ns by rows: %s", took)
        if not choice.equal:
            for path in work.iterdir():
                path.unlink()
        (work / CHOICE).write_bytes(msgspec.json.encode(choice))
        _seal(work / CHOICE)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _read(folder: Path) -> Choice | None:
    """What was chosen; None, and the folder is dropped, where it is not as it was written."""
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
        return None
    try:
        choice = msgspec.json.decode((folder / CHOICE).read_bytes(), type=Choice)
        intact = all(_hashed(folder / file.path) == file for file in choice.files)
    except (OSError, msgspec.DecodeError):
        intact = False
    if intact:
        return choice
    log.warning("a shared form was damaged; it is dropped, and written again at the next load")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _measure(
    plain: OnnxEngine,
    shared: OnnxEngine,
    files: tuple[StoredFile, ...],
    now_ns: Callable[[], int],
) -> Choice:
    """Run both on the same samples, in turn, and keep the fastest run of each."""
    names = [spec.name for spec in plain.signature.outputs]
    fastest: list[dict[int, int]] = [{}, {}]
    equal = True
    for rows in SIZES if plain.signature.batched else (1,):
        tensors = sample(plain.signature, rows)
        equal = equal and same(plain.run(tensors, names), shared.run(tensors, names))
        start = now_ns()
        for _ in range(TURNS):
            for engine, best in zip((plain, shared), fastest, strict=True):
                begun = now_ns()
                engine.run(tensors, names)
                took = now_ns() - begun
                best[rows] = min(took, best.get(rows, took))
            if now_ns() - start > LONG_NS:
                break
    kept = files if equal else ()
    return Choice(equal=equal, plain_ns=fastest[0], shared_ns=fastest[1], files=kept)


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Hold this host's lock for writing forms, and clear away what a killed writer left."""
    held = os.open(cache / "share.lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        for left in cache.glob(f"{_WORK}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(held)


def _seal(path: Path) -> StoredFile:
    """Bring a file to the disk, so that its pages are clean, and let nobody write to it."""
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
    path.chmod(0o400)
    return _hashed(path)


def _hashed(path: Path) -> StoredFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return StoredFile(path=path.name, size=file.tell(), sha256=digest)


def _host() -> str:
    """A name for what a form is packed for: this build of onnxruntime on this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    can = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (str(RECIPE), ort.get_build_info(), platform.machine(), can)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


_WORK: Final = ".share-"
