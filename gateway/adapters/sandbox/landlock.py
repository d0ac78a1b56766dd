"""Landlock: a process tells the kernel which files it will ever open, and can take nothing back.

Source of the numbers and layouts: the kernel's `include/uapi/linux/landlock.h`.
"""

import ctypes
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION_FLAG: Final = 1
_RULE_PATH_BENEATH: Final = 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_EXECUTE: Final = 1 << 0
_TRUNCATE: Final = 1 << 14
_WRITE_FILE: Final = 1 << 1
_FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_FILE_RIGHTS_OF: Final = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights on files a version of the interface knows; 16 from the fifth on."""
_ALL_NETWORK: Final = (1 << 0) | (1 << 1)
"""Binding and connecting; from the fourth version on."""
_ALL_SCOPES: Final = (1 << 0) | (1 << 1)
"""Abstract sockets and signals of processes outside; from the sixth version on."""
_WITH_NETWORK: Final = 4
_WITH_SCOPES: Final = 6


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def restrict(readable: Iterable[str], writable: Iterable[str]) -> int:
    """Let this thread and its children open only what is named, and what is below it.

    It must have no new privileges already (`PR_SET_NO_NEW_PRIVS`). Paths that are not there are
    passed over.

    Returns:
        The version of the kernel's interface; 0 where there is none, and nothing changed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = int(libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG))
    if version < 1:
        return 0
    rights = (1 << _FILE_RIGHTS_OF.get(version, 16)) - 1
    rules = _Ruleset(
        rights,
        _ALL_NETWORK if version >= _WITH_NETWORK else 0,
        _ALL_SCOPES if version >= _WITH_SCOPES else 0,
    )
    size = 8 * (1 + (version >= _WITH_NETWORK) + (version >= _WITH_SCOPES))
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return 0
    try:
        for path in readable:
            _allow(libc, ruleset, path, _READ_FILE | _READ_DIR)
        for path in writable:
            _allow(libc, ruleset, path, rights)
        return version if libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    with suppress(OSError):
        held = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(held).st_mode):
                rights &= _FILE_RIGHTS
            rule = _PathBeneath(rights, held)
            libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(held)
