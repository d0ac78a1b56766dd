"""What decisions are made on here: the versions and the CPU that the ledger records."""

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from gateway import __version__
from gateway.core.deciding import Circumstances

CPUINFO: Final = Path("/proc/cpuinfo")
_MODEL: Final = "model name"


@cache
def circumstances() -> Circumstances:
    """Those of this process; they do not change while it lives."""
    return Circumstances(
        code=__version__,
        python=platform.python_version(),
        numpy=version("numpy"),
        scipy=version("scipy"),
        cpu=_cpu(),
    )


def _cpu() -> str:
    """The CPU's own name where the system tells it, else its architecture."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    stated = (line.partition(":")[2].strip() for line in lines if line.startswith(_MODEL))
    return next(stated, "") or platform.machine()
