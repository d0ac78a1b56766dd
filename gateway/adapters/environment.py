"""The environment that a process of ours must find when it starts.

Libraries read these variables once, before any line of ours runs, so whoever starts a process
sets them. Nothing is imported here that would read them.
"""

from collections.abc import Mapping
from typing import Final

ALWAYS: Final[Mapping[str, str]] = {"ORT_DISABLE_TELEMETRY": "1"}
"""Official builds of onnxruntime phone home otherwise."""
UNLESS_SET: Final[Mapping[str, str]] = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 * 1024 * 1024),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""glibc keeps freed memory for each arena, and of large bodies too once it has met a few, unless it
is told from which size on memory is given back; several processes share the cores."""
NEVER: Final = frozenset({"ORT_LOAD_CONFIG_FROM_MODEL"})
"""A model file must not configure its host."""


def process_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a process is to be started with; what an operator chose of `UNLESS_SET` stands.

    Args:
        inherited: the environment of the process that starts it.
    """
    kept = {name: value for name, value in inherited.items() if name not in NEVER}
    return {**UNLESS_SET, **kept, **ALWAYS}
