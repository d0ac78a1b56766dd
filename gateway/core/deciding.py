"""What deciding is, for those who hand it around; what it does is in `gateway.core.judging`.

Apart from that, because statistics take a while to import, and the command line starts fast.
"""

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from gateway.core.experiments import ExperimentRecord
from gateway.core.readings import Decision
from gateway.core.tallies import Evidence

Decide: TypeAlias = Callable[[ExperimentRecord, Evidence, float], Decision]
"""From a record, its evidence and the moment (UTC seconds) to a decision; pure."""


class Circumstances(Struct, frozen=True):
    """What the last bits of a number depend on."""

    code: str
    python: str
    numpy: str
    scipy: str
    cpu: str
