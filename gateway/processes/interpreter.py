"""The interpreter, as it suits a process that serves."""

import gc
import sys
from typing import Final

SWITCH_S: Final = 0.001
"""How soon a thread that decodes a large body lets the event loop have its turn."""
YOUNG: Final = 10_000
"""Objects between two looks for garbage in circles; requests make none, so looks are rare."""


def settle_down() -> None:
    """Call it once everything is imported and built: what is here now is here to stay."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 50)
