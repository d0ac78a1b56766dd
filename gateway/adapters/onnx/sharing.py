"""Shared weights: a form of a model whose weights several processes map from one file.

onnxruntime copies weights into each process, packs them for its kernels and keeps the packed
copy. It can also write a model with its weights packed in a file beside it; a session on such a
form maps them, so that all processes of a host hold one copy, in the page cache.

The form belongs to the host: packing depends on the build of onnxruntime and on the processor.
It lies beside the verified copy of the version, in a private folder named by the version's digest
and by what it was packed for, appears there whole, and is hashed before each use. A process of its
own (`forming`) writes it, runs it first and times it, so that nothing of that costs the caller
memory or, should a kernel crash, its life. What was found is kept beside the form.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from gateway.adapters.environment import process_environment
from gateway.adapters.onnx.runtime import ort
from gateway.core.models import StoredFile
from gateway.ports import Artifact

RECIPE: Final = 1
"""Grows when forms are written in another way."""
MIN_SHARED_BYTES: Final = 16 * 1024 * 1024
"""Smaller versions are not worth a file of their own."""
SLOWER: Final = 1.1
"""A shared form that takes so much longer than the model itself is not used."""
FORMING_S: Final = 600
TRY_AGAIN: Final = 75
"""Exit code of a process that the disk kept from writing a form."""
PASSING: Final = frozenset({TRY_AGAIN, -signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM})
"""Exit codes that say nothing of the model."""
MODEL: Final = "model.onnx"
WEIGHTS: Final = "weights.bin"
CHOICE: Final = "choice.json"
_WORK: Final = ".share-"

log: Final = logging.getLogger(__name__)


class Choice(Struct, frozen=True, forbid_unknown_fields=True):
    """What was found once for a version on this host.

    `plain_ns` and `shared_ns` are of the fastest run by rows. `files` are those of the form, none
    if it did not answer as the model does.
    """

    equal: bool
    plain_ns: Mapping[int, int] = {}
    shared_ns: Mapping[int, int] = {}
    files: tuple[StoredFile, ...] = ()

    def usable(self, *, though_slower: bool) -> bool:
        """Whether the shared form is to be used."""
        fast = all(took <= SLOWER * self.plain_ns[rows] for rows, took in self.shared_ns.items())
        return self.equal and (fast or though_slower)


class Order(Struct, frozen=True):
    """What a process that writes a form is told: the version, where to, and a run's threads."""

    artifact: Artifact
    folder: str
    threads: int


def shared_form(artifact: Artifact, threads: int, *, though_slower: bool) -> str | None:
    """Path of the version's shared form, written and measured first if this host has none.

    Args:
        artifact: only a copy in the cache that is named by its content can have one.
        threads: of a run.
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
        # One process orders, the others wait: writing takes several times the weights.
        with _alone(cache):
            if not folder.exists():
                _order(artifact, folder, threads)
        choice = _read(folder)
    except OSError as error:
        log.warning("weights of %s are not shared: %s", digest[:12], type(error).__name__)
        return None
    use = choice is not None and choice.usable(though_slower=though_slower)
    log.info("weights of %s are %sshared", digest[:12], "" if use else "not ")
    return str(folder / MODEL) if use else None


def seal(path: Path) -> StoredFile:
    """Bring a file to the disk, so that its pages are clean, and let nobody write to it."""
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
    path.chmod(0o400)
    return _hashed(path)


def _order(artifact: Artifact, folder: Path, threads: int) -> None:
    """Have the form written, and put it in its place at once, or the finding that there is none."""
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=folder.parent))
    order = msgspec.json.encode(Order(artifact, str(work), threads))
    environ = process_environment(os.environ)
    environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-P", "-m", "gateway.adapters.onnx.forming"]
    try:
        try:
            code = subprocess.run(  # noqa: S603 - our own words
                command,
                input=order,
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=FORMING_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 1
        if code in PASSING:
            raise InterruptedError
        if code:
            log.warning("a form to share could not be made (exit code %d)", code)
            for left in work.iterdir():
                left.unlink()
            # Not tried again at each load.
            (work / CHOICE).write_bytes(msgspec.json.encode(Choice(equal=False)))
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("a form to share was measured: %s", (folder / CHOICE).read_text(encoding="ascii"))


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
