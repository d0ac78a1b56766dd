"""Measuring: the memory of this process, and how far apart two answers are."""

import os
import resource
import sys
from collections.abc import Sequence
from typing import Final

import numpy as np

from gateway.core.tensors import Array

_KIB: Final = 1024
_RESET_PEAK: Final = b"5"
WORST: Final = sys.float_info.max
"""Of a difference that is not finite; JSON has no word for infinity."""
_SMALL: Final = 1e-3
"""Numbers below this share of their tensor's largest count as large as that."""


class Memory:
    """Resident memory of this process: now, and its peak since it was last asked to forget.

    Its files are opened at once, as they cannot be later.
    """

    def __init__(self) -> None:
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self._reset = -1
        self._base = 0

    def begin(self) -> None:
        """From here on memory counts."""
        self._base = self._read(b"VmRSS:")
        if self._reset >= 0:
            os.write(self._reset, _RESET_PEAK)

    def peak_mb(self) -> float:
        """The most that was held beyond what there was at the beginning, in MiB."""
        peak = self._read(b"VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
        return round(max(0, peak - self._base) / (_KIB * _KIB), 3)

    def _read(self, name: bytes) -> int:
        for line in os.pread(self._status, 16 * _KIB, 0).splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * _KIB
        return 0


def apart(left: Sequence[Array], right: Sequence[Array]) -> float:
    """The greatest relative difference of two answers; `WORST` where they cannot be compared.

    What is no number is the same or it is not. Tiny numbers are held against the larger ones
    around them, so that the noise of a score of almost nothing does not count as a difference.
    """
    if len(left) != len(right):
        return WORST
    return max(
        (_tensors_apart(one, other) for one, other in zip(left, right, strict=True)), default=0.0
    )


def _tensors_apart(one: Array, other: Array) -> float:
    if one.dtype != other.dtype or one.shape != other.shape:
        return WORST
    if one.dtype.kind != "f":
        return 0.0 if bool((one == other).all()) else WORST
    if not one.size:
        return 0.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(all="ignore"):
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        size = np.maximum(np.abs(a), np.abs(b))
        finite = size[np.isfinite(size)]
        floor = _SMALL * float(finite.max(initial=0.0))
        relative = np.abs(a - b) / np.maximum(size, floor)
    relative[equal] = 0.0
    worst = float(relative.max())
    return worst if np.isfinite(worst) else WORST
