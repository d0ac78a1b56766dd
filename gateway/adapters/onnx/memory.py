"""Memory of runs: one arena for all sessions of a process, with a cap, and how it shrinks.

What a run needs comes from an arena that grows and by itself never shrinks. Facts of onnxruntime
1.31 that shape this page:

- The cap counts whole regions, used or not. A run that finds too little left may fit once what is
  not used was given back, which a run with the shrinking option does, even one that fails.
- Weights are counted against the cap but never refused, and once they alone are above it the cap
  holds no more. It must be generous; shared weights (`sharing`) do not count.
"""

import ctypes
import os
import threading
from pathlib import Path
from typing import Final

from gateway.adapters.onnx.runtime import ort

MIB: Final = 1024 * 1024
LARGE_BYTES: Final = 2 * MIB
"""Inputs or outputs of a run from which on its memory is given back; below, it is kept warm."""
LARGE_ROWS: Final = 1024
"""As many rows are large, however narrow they are."""
MIN_ARENA_BYTES: Final = 256 * MIB
_SHRINKAGE: Final = ("memory.enable_memory_arena_shrinkage", "cpu:0")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def run_options(*, shrinking: bool) -> ort.RunOptions:
    """Options of a run; with `shrinking` it leaves no unused region in the arena."""
    options = ort.RunOptions()
    if shrinking:
        options.add_run_config_entry(*_SHRINKAGE)
    return options


def arena_bytes(arena_mb: int | None, workers: int) -> int:
    """The cap for one process, 0 for none.

    Args:
        arena_mb: the setting in MiB, 0 for none; None for half of the memory that there is, in
            equal parts for the workers, so that all of them together leave the other half.
        workers: processes that load models on this host.
    """
    if arena_mb is not None:
        return arena_mb * MIB
    return max(MIN_ARENA_BYTES, memory_bytes() // (2 * workers))


def memory_bytes(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Memory that this process may use: the host's, or less where a control group says so.

    Args:
        cgroups: where control groups are mounted, version 2 or 1.
        membership: the kernel's list of the groups that this process is in.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in [*lines, "0::/"]:
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top = cgroups / kinds
        name = "memory.limit_in_bytes" if kinds else "memory.max"
        group = top / place.lstrip("/")
        # A limit of a group above holds too. In a container the path may lead nowhere.
        limits += [_limit(folder / name) for folder in (group, *group.parents)]
    return min(limit for limit in limits if limit > 0)


def cap_arena(cap_bytes: int) -> bool:
    """Make the arena that this process's sessions share; the first cap stands.

    Returns:
        Whether sessions are to use it: not if the cap is 0 and none was made before.
    """
    global _capped  # noqa: PLW0603 - onnxruntime keeps one such arena for the process
    with _capping:
        if cap_bytes and not _capped:
            memory = ort.OrtMemoryInfo(
                "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
            )
            # 1: grow by what is asked for, not to the next power of two.
            config = ort.OrtArenaCfg({"max_mem": cap_bytes, "arena_extend_strategy": 1})
            ort.create_and_register_allocator(memory, config)
            _capped = True
        return _capped


def trim_memory() -> None:
    """Give freed memory back to the operating system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _limit(path: Path) -> int:
    """What a control group allows; 0 where it says nothing."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or the word "max"
        return 0


_capping: Final = threading.Lock()
_capped = False
