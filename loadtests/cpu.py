"""What a server's processes cost: CPU time and memory of the whole tree, from /proc."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PROC: Final = Path("/proc")
MARK: Final = "LOADTESTS_SERVER"
"""The variable that every process of a server inherits, also one that left the tree."""


@dataclass(frozen=True)
class Stat:
    """What `/proc/<pid>/stat` says of one process; CPU with that of children that were reaped."""

    parent: int
    ticks: int


def parse_stat(text: str) -> Stat:
    """Read the file's text; a process's name may hold blanks and parentheses."""
    words = text.rpartition(")")[2].split()
    return Stat(parent=int(words[1]), ticks=sum(int(word) for word in words[11:15]))


def descendants(root: int, parents: Mapping[int, int]) -> set[int]:
    """The process and all below it."""
    found = {root}
    grew = True
    while grew:
        below = {pid for pid, parent in parents.items() if parent in found}
        grew = not below <= found
        found |= below
    return found


def tree(root: int, mark: str | None = None) -> set[int]:
    """Every live process of a server: its descendants, and whoever carries its mark."""
    stats = _stats()
    found = descendants(root, {pid: stat.parent for pid, stat in stats.items()})
    if mark is not None:
        wanted = f"{MARK}={mark}".encode()
        found |= {pid for pid in stats if wanted in _read(pid, "environ").split(b"\0")}
    return {pid for pid in found if pid in stats}


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU that these processes used so far, with the children that they reaped."""
    stats = _stats()
    return sum(stats[pid].ticks for pid in pids if pid in stats) / TICKS_PER_S


def resident_mib(pid: int) -> float:
    """Resident memory of one process; 0 when it is gone."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def command(pid: int) -> str:
    """How a process was started, short."""
    words = _read(pid, "cmdline").decode(errors="replace").split("\0")
    return " ".join(Path(word).name if "/" in word else word for word in words)[:80].strip()


def _stats() -> dict[int, Stat]:
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal() and (text := _read(int(folder.name), "stat")):
            found[int(folder.name)] = parse_stat(text.decode(errors="replace"))
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""
