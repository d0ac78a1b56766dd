"""UploadFolder: files on their way to become versions, in the state folder, for its owner only.

`<folder>/<id>/` holds what came whole, under its name, and `.part-…` files that are on their way.
What an upload is, is kept in memory: after a restart every one is begun anew.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.errors import (
    GatewayError,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    excerpt,
)
from gateway.core.models import check_name
from gateway.governance_ports import Staged, StagedFile

ID_BYTES: Final = 16
MAX_FILES: Final = 256


class UploadBounds(Struct, frozen=True):
    """How much may be on its way: bytes of one upload and of all, uploads at once, and seconds."""

    max_bytes: int
    quota_bytes: int
    max_open: int
    expire_s: float


class UploadFolder:
    """The `Uploads` port on a folder. Blocking; safe to call from threads."""

    def __init__(
        self,
        folder: Path,
        bounds: UploadBounds,
        *,
        now: Callable[[], float],
        entropy: Callable[[int], bytes],
    ) -> None:
        """Forget what lies there from before; `now` is in UTC seconds."""
        self._folder = folder
        self._bounds = bounds
        self._now = now
        self._entropy = entropy
        # Of one owner at once, so that nobody keeps all others out.
        self._share = max(1, bounds.max_open - max(1, bounds.max_open // 4))
        self._lock = threading.Lock()
        self._open: dict[str, Staged] = {}
        # Bytes on disk of each upload, those of files on their way among them.
        self._held: dict[str, int] = {}
        shutil.rmtree(folder, ignore_errors=True)

    def begin(self, model: str, owner: str) -> Staged:
        """Open an upload.

        Raises:
            Overloaded: too many are open, or they hold too much. NotReady: the disk fails.
        """
        check_name("a model", model)
        with self._lock:
            self._expire()
            mine = sum(one.owner == owner for one in self._open.values())
            if len(self._open) >= self._bounds.max_open or mine >= self._share:
                message = "Too many uploads are open on this host; finish or discard one."
                raise Overloaded(message)
            upload = self._entropy(ID_BYTES).hex()
            folder = self._folder / upload
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.mkdir(mode=0o700)
            except OSError as error:
                raise _full(error) from error
            staged = Staged(upload, model, owner, str(folder), self._due())
            self._open[upload] = staged
            self._held[upload] = 0
            return staged

    def find(self, upload: str) -> Staged:
        """An upload by its id.

        Raises:
            NotFound: there is none, or it expired.
        """
        with self._lock:
            self._expire()
            return self._known(upload)

    def receive(self, upload: str, name: str) -> "IncomingFile":
        """Begin to take a file of an upload, which is kept for longer by that.

        Raises:
            NotFound: no such upload. InvalidRequest: the name is none, or there are too many files.
        """
        check_name("a file of a version", name)
        with self._lock:
            self._expire()
            staged = self._known(upload)
            names = {file.name for file in staged.files}
            if name not in names and len(names) >= MAX_FILES:
                message = f"A version holds at most {MAX_FILES} files."
                raise TooLarge(message)
            self._open[upload] = replace(staged, expires_at=self._due())
        part = Path(staged.folder) / f".part-{self._entropy(ID_BYTES).hex()}"
        return IncomingFile(self, upload, name, part)

    def discard(self, upload: str) -> None:
        """Forget an upload and its files, if it is there."""
        with self._lock:
            self._drop(upload)

    def grow(self, upload: str, size: int) -> None:
        """Count bytes that are about to be written.

        Raises:
            NotFound: the upload expired. TooLarge: it would hold more than it may.
            Overloaded: all uploads together would.
        """
        with self._lock:
            staged = self._known(upload)
            if self._held[upload] + size > self._bounds.max_bytes:
                message = f"An upload holds at most {self._bounds.max_bytes} bytes."
                raise TooLarge(message)
            if sum(self._held.values()) + size > self._bounds.quota_bytes:
                message = "The uploads on this host hold as much as they may; try again later."
                raise Overloaded(message)
            self._held[upload] += size
            self._open[upload] = replace(staged, expires_at=self._due())

    def shrink(self, upload: str, size: int) -> None:
        """Count bytes that are gone."""
        with self._lock:
            if upload in self._held:
                self._held[upload] -= size

    def keep(self, upload: str, part: Path, file: StagedFile) -> None:
        """Give a whole file its name, in the place of an earlier one."""
        with self._lock:
            staged = self._known(upload)
            part.rename(Path(staged.folder) / file.name)
            before = {one.name: one for one in staged.files}
            if file.name in before:
                self._held[upload] -= before[file.name].size
            files = tuple({**before, file.name: file}.values())
            self._open[upload] = replace(staged, files=files)

    def _due(self) -> float:
        return self._now() + self._bounds.expire_s

    def _known(self, upload: str) -> Staged:
        staged = self._open.get(upload)
        if staged is None:
            message = f"There is no upload '{excerpt(upload)}' on this host; it may have expired."
            raise NotFound(message)
        return staged

    def _expire(self) -> None:
        now = self._now()
        for staged in [one for one in self._open.values() if one.expires_at <= now]:
            self._drop(staged.id)

    def _drop(self, upload: str) -> None:
        staged = self._open.pop(upload, None)
        self._held.pop(upload, None)
        if staged is not None:
            shutil.rmtree(staged.folder, ignore_errors=True)


class IncomingFile:
    """The `Incoming` port: one file, hashed while it is written."""

    def __init__(self, uploads: UploadFolder, upload: str, name: str, part: Path) -> None:
        """Nothing came yet.

        Raises:
            NotReady: the disk fails.
        """
        self._uploads = uploads
        self._upload = upload
        self._name = name
        self._part = part
        self._digest = hashlib.sha256()
        self._size = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(part, flags, 0o600), "wb")
        except OSError as error:
            raise _full(error) from error

    def write(self, part: bytes) -> None:
        """Take the next part.

        Raises:
            TooLarge: the upload would hold more than it may. Overloaded: all of them would.
            NotFound: it expired. NotReady: the disk is full.
        """
        self._uploads.grow(self._upload, len(part))
        self._size += len(part)
        try:
            self._file.write(part)
        except OSError as error:
            raise _full(error) from error
        self._digest.update(part)

    def finish(self, sha256: str | None) -> StagedFile:
        """Give the file its name.

        Raises:
            InvalidRequest: it does not have the digest that it should have.
            NotFound: the upload expired. NotReady: the disk is full.
        """
        file = StagedFile(self._name, self._size, self._digest.hexdigest())
        try:
            if sha256 is not None and sha256 != file.sha256:
                message = f"'{self._name}' came with the SHA-256 {file.sha256}, not as stated."
                raise InvalidRequest(message)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._uploads.keep(self._upload, self._part, file)
        except OSError as error:
            self.abandon()
            raise _full(error) from error
        except GatewayError:
            self.abandon()
            raise
        return file

    def abandon(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._part.unlink()
        self._uploads.shrink(self._upload, self._size)
        self._size = 0


def _full(error: OSError) -> NotReady:
    return NotReady(f"The state folder cannot take an upload: {error.strerror}.")
