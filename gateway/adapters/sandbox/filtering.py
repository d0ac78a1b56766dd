"""Filtering: the kernel refuses system calls that no inspection makes.

A candidate that takes over its process could still speak to sockets in the file system, start
programs or trace others of the same user; none of that is asked for by reading and computing.
Source of the numbers: the kernel's tables of system calls, `linux/seccomp.h`, `linux/filter.h`.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from typing import Final

_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EPERM
_UNKNOWN: Final = 0x00050000 | errno.ENOSYS
_KILL: Final = 0x80000000
_LOAD: Final = 0x20
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_HAS_BITS: Final = 0x45
_RETURN: Final = 0x06
_NUMBER_AT: Final = 0
_MACHINE_AT: Final = 4
_FIRST_ARGUMENT_AT: Final = 16
_CLONE_THREAD: Final = 0x00010000
_CLONE3: Final = 435
_OTHER_TABLE: Final = 0x40000000
"""From here on the numbers are those of a second table (x32)."""

_NEW: Final = {
    "io_uring_setup": 425,
    "pidfd_send_signal": 424,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "fsopen": 430,
    "move_mount": 429,
}
"""Numbered alike on every machine."""
_REFUSED: Final[Mapping[str, tuple[int, int, int, tuple[int, ...]]]] = {
    # machine: (its mark, clone, tgkill, what is refused)
    "x86_64": (
        0xC000003E,
        56,
        234,
        (
            *(41, 42, 43, 49, 50, 53, 288),  # socket, connect, accept, bind, listen, pair, accept4
            *(57, 58, 59, 322),  # fork, vfork, execve, execveat
            *(101, 310, 311),  # ptrace, process_vm_readv and writev
            *(62, 200, 129, 297),  # kill, tkill, and signals with a value
            *(272, 308, 165, 166, 155, 161),  # unshare, setns, mount, umount, pivot_root, chroot
            *(248, 249, 250, 321, 298, 323),  # keys, bpf, perf_event_open, userfaultfd
            *(246, 169, 175, 313, 176, 304),  # kexec, reboot, modules, open_by_handle_at
            *_NEW.values(),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        131,
        (
            *(198, 203, 202, 200, 201, 199, 242),
            *(221, 281),
            *(117, 270, 271),
            *(129, 130, 138, 240),
            *(97, 268, 40, 39, 41, 51),
            *(217, 218, 219, 280, 241, 282),
            *(104, 142, 105, 273, 106, 265),
            *_NEW.values(),
        ),
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def filter_calls() -> bool:
    """Refuse them from now on, for this process and its threads; whether the kernel agreed.

    Threads may still be made, processes not. It must have no new privileges already.
    """
    known = _REFUSED.get(platform.machine())
    if known is None:
        return False
    steps = _steps(*known)
    program = _Program(len(steps), b"".join(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _steps(machine: int, clone: int, tgkill: int, refused: tuple[int, ...]) -> list[bytes]:
    steps = [
        _step(_LOAD, _MACHINE_AT),
        _step(_EQUAL, machine, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_AT_LEAST, _OTHER_TABLE, 0, 1),
        _step(_RETURN, _KILL),
        # The C library takes `clone` where the newer call is not known.
        _step(_EQUAL, _CLONE3, 0, 1),
        _step(_RETURN, _UNKNOWN),
    ]
    for number in refused:
        steps += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _REFUSE)]
    return [
        *steps,
        _step(_EQUAL, clone, 0, 2),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_HAS_BITS, _CLONE_THREAD, 4, 3),
        # A process may end itself, as one does that cannot go on.
        _step(_EQUAL, tgkill, 0, 3),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_EQUAL, os.getpid(), 1, 0),
        _step(_RETURN, _REFUSE),
        _step(_RETURN, _ALLOW),
    ]


def _step(code: int, operand: int, when: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, when, otherwise, operand)
