"""FolderShelf: versions put into the folder of the model store, whole or not at all.

They are written in a folder that no scan looks into, and moved to their place by one rename on the
same file system.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.adapters.disk import sync_folder
from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.models import check_name

STAGING: Final = ".staged"
SEED_FILE: Final = "model.toml"
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


class FolderShelf:
    """The `Shelf` port on a folder. Blocking; safe to call from threads."""

    __slots__ = ("_root",)

    def __init__(self, root: Path) -> None:
        """Choose the model store's folder; it is made when needed."""
        self._root = root

    def stage(self) -> str:
        """A fresh folder beside the models, in which nobody looks for versions.

        Raises:
            InvalidRequest: the disk failed.
        """
        staging = self._root / STAGING
        try:
            staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            return tempfile.mkdtemp(dir=staging)
        except OSError as error:
            raise InvalidRequest(f"The model store cannot be written: {error.strerror}.") from error

    def standing(self, model: str, number: int) -> Mapping[str, str] | None:
        """The SHA-256 of each file of a version in the store; None where there is no folder."""
        folder = self._folder(model, number)
        if not folder.is_dir() or folder.is_symlink():
            return None
        try:
            return _digests(folder)
        except OSError as error:
            raise InvalidRequest(f"Version {number} of '{model}' cannot be read.") from error

    def digests(self, staged: str) -> Mapping[str, str]:
        """The SHA-256 of each file of a staged folder."""
        return _digests(Path(staged))

    def place(self, staged: str, model: str, number: int, texts: Mapping[str, str]) -> None:
        """Move a staged folder to its place at once, with these small files in it.

        Raises:
            Conflict: there is a folder already.
            InvalidRequest: the disk failed.
        """
        target = self._folder(model, number)
        work = Path(staged)
        try:
            for name, text in texts.items():
                (work / check_name("a file", name)).write_text(text, encoding="utf-8")
            for path in work.iterdir():
                _sync(path)
            work.chmod(0o755)
            sync_folder(work)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise Conflict(_taken(model, number))
            work.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            if error.errno in _TAKEN:
                raise Conflict(_taken(model, number)) from error
            raise InvalidRequest(f"The model store cannot be written: {error.strerror}.") from error

    def seed(self, model: str, text: str) -> None:
        """Write `model.toml` of a model that has none."""
        path = self._root / check_name("a model", model) / SEED_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return
        except OSError as error:
            raise InvalidRequest(f"The model store cannot be written: {error.strerror}.") from error

    def discard(self, staged: str) -> None:
        """Drop a staged folder, if it is still there."""
        shutil.rmtree(staged, ignore_errors=True)

    def _folder(self, model: str, number: int) -> Path:
        if number < 1:
            raise InvalidRequest(f"{number} is no version's number.")
        return self._root / check_name("a model", model) / str(number)


def _taken(model: str, number: int) -> str:
    return f"The model store has a version {number} of '{model}' already."


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _sync(path: Path) -> None:
    held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(held, 0o644)
        os.fsync(held)
    finally:
        os.close(held)
