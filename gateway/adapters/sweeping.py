"""Sweeping: deletes files of versions that nobody needs any more, and nothing else.

In the model store a version is deleted only while it is, byte for byte, the one that was retired.
In this host's cache a copy is named by its content, and so are the forms beside it.
"""

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from gateway.adapters.artifacts import COPYING
from gateway.adapters.disk import sync_folder
from gateway.adapters.folder import INCOMING
from gateway.core.errors import NotReady
from gateway.core.models import HEX256_LENGTH, StoredFile, bundle_digest, is_hex256, is_name

GONE: Final = ".gone-"
"""How a version is named while it is deleted; scans do not see it."""
LEFT_S: Final = 86_400.0
"""What a process that was killed left half done is nobody's after so long, beyond the grace."""


class FolderSweeper:
    """The `VersionFiles` port on a model store in a folder, and this host's cache."""

    __slots__ = ("_cache", "_root")

    def __init__(self, root: Path | None, cache: Path) -> None:
        """Choose the folders: the model store's, None where it is none, and that of the copies."""
        self._root = root
        self._cache = cache

    def remove(self, model: str, number: int, digest: str) -> bool:
        """Delete a version from the model store, if what lies there still has this digest.

        It disappears at once; one that an earlier call did not finish goes with it.

        Raises:
            NotReady: the model store is no folder.
        """
        if self._root is None:
            message = "Nothing is deleted from an object store from here; its own rules may."
            raise NotReady(message)
        if not is_name(model):
            return False
        folder = self._root / model / str(number)
        gone = folder.with_name(f"{GONE}{number}")
        shutil.rmtree(gone, ignore_errors=True)
        if not folder.is_dir() or folder.is_symlink() or _digest(folder) != digest:
            return False
        folder.rename(gone)
        sync_folder(folder.parent)
        shutil.rmtree(gone)
        return True

    def sweep(self, known: frozenset[str], before: float) -> int:
        """Delete this host's copies of unknown digests, untouched since then; how many went.

        What was left half done, here or in the model store, goes a day later.
        """
        self._sweep_left(before - LEFT_S)
        swept = 0
        try:
            entries = list(os.scandir(self._cache))
        except FileNotFoundError:
            return 0
        for entry in entries:
            digest = entry.name[:HEX256_LENGTH]
            named = is_hex256(digest) and entry.name[HEX256_LENGTH:][:1] in ("", "-")
            if not named or digest in known or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_mtime < before:
                _discard(Path(entry.path))
                swept += 1
        return swept

    def _sweep_left(self, before: float) -> None:
        """Delete what processes that were killed left: half a copy, half a version."""
        left = list(self._cache.glob(f"{COPYING}*"))
        if self._root is not None:
            left += [*self._root.glob(f"*/{INCOMING}*"), *self._root.glob(f"*/{GONE}*")]
        for folder in left:
            try:
                seen = folder.lstat()
                if stat.S_ISDIR(seen.st_mode) and seen.st_mtime < before:
                    _discard(folder)
            except OSError:  # Another host was faster, or may and this one may not.
                continue


def _digest(folder: Path) -> str | None:
    """The digest of a version as it lies there; None if there is anything but regular files."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            files.append(StoredFile(path=path.name, size=file.tell(), sha256=sha256))
    return bundle_digest(tuple(files))


def _discard(folder: Path) -> None:
    """Remove a copy, read-only as it is."""
    folder.chmod(0o700)
    shutil.rmtree(folder)
