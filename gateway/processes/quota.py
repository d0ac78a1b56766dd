"""How many workers a host should have: as many as processors that this process may use."""

import math
import os
from pathlib import Path
from typing import Final, Literal

UNIFIED: Final = Path("/sys/fs/cgroup")


def worker_count(workers: int | Literal["auto"]) -> int:
    """The number of workers that a setting asks for."""
    return processors() if workers == "auto" else workers


def processors(cgroups: Path = UNIFIED, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that this process may use, by affinity and by quota; at least 1.

    A quota of one and a half processors is one worker's: two would take turns being stopped.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = quota_of(cgroups, _read(membership))
    return max(1, allowed if quota is None else min(allowed, math.floor(quota)))


def quota_of(cgroups: Path, membership: str) -> float | None:
    """The smallest quota on the way from our control group to the root; None without any.

    Args:
        cgroups: where control groups are mounted.
        membership: the content of `/proc/self/cgroup`.
    """
    quotas = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = cgroups if not controllers else cgroups / "cpu"
        group = Path(path.lstrip("/"))
        for folder in {mount, *(mount / parent for parent in (group, *group.parents))}:
            quota = _unified(folder) if not controllers else _divided(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _unified(folder: Path) -> float | None:
    """`cpu.max` of version 2: microseconds of processor in a period, or `max`."""
    words = _read(folder / "cpu.max").split()
    return _ratio(words[0], words[1]) if len(words) > 1 else None


def _divided(folder: Path) -> float | None:
    """The two files of version 1; -1 is no quota."""
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        share, of = int(quota), int(period)
    except ValueError:
        return None
    return share / of if share > 0 and of > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
