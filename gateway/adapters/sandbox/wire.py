"""What the sandbox is sent and what it tells: untrusted in that direction, so typed and bounded.

The nursery gets one frame for each inspection and answers with one when it is over. What the child
finds goes through a pipe of its own, one line of JSON for each thing, so that it is known how far
it came however it ends.
"""

import struct
from typing import Final

from msgspec import Struct

from gateway.core.inspections import BatchCost, GoldenAnswer, InspectionOrder
from gateway.core.reviews import Check, CheckResult
from gateway.core.tensors import Signature

HEAD: Final = struct.Struct(">Q")
"""Before a frame: its length in bytes."""
READY: Final = b"ready"
MAX_TOLD_BYTES: Final = 4 * 1024 * 1024
"""Of one inspection, all lines together."""
MAX_NAMES: Final = 1024
"""Inputs, or outputs, of one version."""
MAX_NAME: Final = 128
_MARKS: Final = frozenset("_.-:/[]()@#+=% ")


class Errand(Struct, frozen=True):
    """One inspection: what, how thoroughly, and within which limits (see InspectionSettings)."""

    order: InspectionOrder
    short: bool
    time_s: float
    run_s: float
    memory_mb: int


class Confined(Struct, frozen=True, tag="confined", forbid_unknown_fields=True):
    """The child holds itself in by these means; first of all it tells."""

    tools: dict[str, str]


class Begun(Struct, frozen=True, tag="begun", forbid_unknown_fields=True):
    """A check is under way."""

    check: Check


class Checked(Struct, frozen=True, tag="checked", forbid_unknown_fields=True):
    """A check is over."""

    check: Check
    result: CheckResult


class Anatomy(Struct, frozen=True, tag="anatomy", forbid_unknown_fields=True):
    """What the file says of itself; as fields of an Inspection."""

    producer: str = ""
    ir_version: int = 0
    opsets: dict[str, int] = {}
    operators: dict[str, int] = {}
    parameters: int = 0


class Behaviour(Struct, frozen=True, tag="behaviour", forbid_unknown_fields=True):
    """What was seen of it so far; the last one told stands. As fields of an Inspection."""

    signature: Signature | None = None
    costs: tuple[BatchCost, ...] = ()
    peak_mb: float = 0.0
    golden: tuple[GoldenAnswer, ...] = ()


Told = Confined | Begun | Checked | Anatomy | Behaviour


class Ended(Struct, frozen=True, forbid_unknown_fields=True):
    """How the child ended: by itself with a code, or by a signal, or because of its time."""

    code: int = 0
    signal: int = 0
    late: bool = False


def name_fault(names: list[str]) -> str | None:
    """What speaks against the names of a version's inputs, or of its outputs, if anything does.

    They go into log lines, attributes and pages, and callers write them.
    """
    if len(names) > MAX_NAMES:
        return f"There are {len(names)} of them; at most {MAX_NAMES} may be."
    for name in names:
        if not 0 < len(name) <= MAX_NAME:
            return f"One has {len(name)} characters; 1 to {MAX_NAME} are allowed."
        if not all(c.isascii() and (c.isalnum() or c in _MARKS) for c in name):
            return "One holds a character that is no letter, digit or ordinary mark."
        if ".." in name or name != name.strip():
            return "One holds '..', or begins or ends with a space."
    if len({name.casefold() for name in names}) < len(names):
        return "Two are the same, or differ by case only."
    return None
