"""Gates: what a version must have before it gets traffic, declared as documents.

A gate speaks for the models that its patterns mean. Before a rule, a shadow, an experiment or a
load by hand may name a version, `trial` must be met; before one of the gate's aliases, or the
default of an endpoint, `promotion` as well. Going back to what served before is always allowed.
"""

from typing import Final

from msgspec import Struct

from gateway.core.models import CHAMPION
from gateway.core.principals import Role
from gateway.core.reviews import Check

SCHEMA: Final = 1
MEASURED: Final = frozenset(
    {
        Check.DETERMINISM,
        Check.BATCHING,
        Check.GOLDEN,
        Check.LATENCY,
        Check.MEMORY,
        Check.AGREEMENT,
    }
)
"""Checks that find a number, so that a gate may bound it."""


class CheckRule(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A check that must have passed, and the bounds that its measure must keep."""

    check: Check
    at_most: float | None = None
    at_least: float | None = None


class ApprovalRule(Struct, frozen=True, forbid_unknown_fields=True):
    """So many principals who hold the role for the model; who asks or registered is not counted.

    Written out whole: an empty rule would say nothing to who reads it.
    """

    role: Role = Role.APPROVER
    count: int = 1


class EvidenceRule(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Proof from traffic: an experiment on the version, or copies that it answered as a shadow.

    `experiment`: one that ran it has ended as promoted, or certified it. `min_units` are the units
    that experiments gave it, `min_shadow_compared` the answers that their shadow stages compared,
    at least; `max_disagreement` bounds the share of these that differed or failed.
    """

    experiment: bool = False
    min_units: int = 0
    min_shadow_compared: int = 0
    max_disagreement: float | None = None


class Requirements(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What must be there. `lineage` lists fields as dotted paths, such as `lineage.data_sha256`."""

    checks: tuple[CheckRule, ...] = ()
    lineage: tuple[str, ...] = ()
    evidence: EvidenceRule | None = None
    approvals: tuple[ApprovalRule, ...] = ()


class Freeze(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A time in which nothing new gets traffic.

    Either once, from `starts` to `ends` (RFC 3339 with an offset), or every week, from
    `weekly_from` to `weekly_until` (such as `fri 16:00` and `mon 08:00`) at `utc_offset` (such as
    `+01:00`).
    """

    name: str
    starts: str | None = None
    ends: str | None = None
    weekly_from: str | None = None
    weekly_until: str | None = None
    utc_offset: str = "+00:00"


class Gate(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the models that `models` means must meet; see the page's head."""

    schema: int
    models: tuple[str, ...]
    aliases: tuple[str, ...] = (CHAMPION,)
    trial: Requirements = Requirements()
    promotion: Requirements = Requirements()
    freezes: tuple[Freeze, ...] = ()
