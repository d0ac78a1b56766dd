"""Files that are only appended to: what the record log and the journal of outcomes share.

Every function blocks, and raises OSError when the disk fails.
"""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_PIECES: Final = 512
"""Pieces of one write; the system takes 1024."""


def lock(path: Path) -> int:
    """Take a folder for this process by a file in it, until the descriptor is closed.

    Raises:
        OSError: another process has it.
    """
    held = os.open(path, os.O_RDWR | os.O_CREAT | _SAFE, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held


def create(path: Path) -> int:
    """A new file to append to, for its owner only."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _SAFE, 0o600)


def numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """The files of a folder that are named by a number, in its order."""
    found = [path for path in folder.iterdir() if path.suffix == suffix and path.stem.isdecimal()]
    return sorted((int(path.stem), path) for path in found)


def write_pieces(file: int, pieces: Iterable[bytes]) -> None:
    """Write every piece; the system may take less at a time than it is given."""
    left = list(pieces)
    while left:
        written = os.writev(file, left[:_PIECES])
        done = 0
        while done < len(left) and written >= len(left[done]):
            written -= len(left[done])
            done += 1
        del left[:done]
        if written:
            left[0] = left[0][written:]
