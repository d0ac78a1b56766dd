"""The ledger: the decisions in the audit log, each with all that it was made from.

An entry of a decision holds a `Basis` as its evidence: the record as it stood, the tallies, the
moment and the decision. So anybody can decide again, from nothing but the entry, and compare.
"""

from collections.abc import Iterable
from math import isclose
from typing import Any, Final

import msgspec
from msgspec import Struct

from gateway.core.audit import AuditEntry
from gateway.core.chain import STEP
from gateway.core.deciding import Circumstances, Decide
from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.experiments import ExperimentRecord
from gateway.core.readings import Decision
from gateway.core.snapshot import canonical
from gateway.core.stepping import next_record
from gateway.core.tallies import Evidence

SCHEMA: Final = 1
NEAR: Final = 1e-9
"""How far numbers may lie apart where other code computed them, relative to them or to 1."""


class Basis(Struct, frozen=True, forbid_unknown_fields=True):
    """All that a decision was made from, and the decision. `now` is in UTC seconds.

    `champion` is the version that the experiment's alias named, None where it named none. `closed`
    is what gates missed of the winner, `passed` what they found: facts from outside the experiment.
    """

    schema: int
    record: ExperimentRecord
    evidence: Evidence
    now: float
    champion: int | None
    decision: Decision
    made_on: Circumstances
    closed: tuple[str, ...] = ()
    passed: Any = None


class Replayed(Struct, frozen=True):
    """What deciding again came to. `exact` is whether every bit had to be the same.

    `difference` is the first one found, None where there is none.
    """

    revision: int
    target: str
    exact: bool
    difference: str | None


def basis_document(basis: Basis) -> Any:  # noqa: ANN401 - a JSON document
    """A basis as an audit entry holds it."""
    return msgspec.json.decode(canonical(basis))


def basis_of(entry: AuditEntry) -> Basis:
    """What the decision of an entry was made from.

    Raises:
        InvalidRequest: it is no decision, or one that this version cannot read.
    """
    if not isinstance(entry.evidence, dict) or entry.evidence.get("schema") != SCHEMA:
        message = f"Revision {entry.revision} holds no evidence that can be read here."
        raise InvalidRequest(message)
    try:
        return msgspec.convert(entry.evidence, Basis, str_keys=True)
    except msgspec.ValidationError as error:
        message = f"The evidence of revision {entry.revision} is damaged: {excerpt(str(error))}."
        raise InvalidRequest(message) from error


def decisions_in(entries: Iterable[AuditEntry]) -> list[AuditEntry]:
    """Those entries that are decisions; others have evidence of their own."""
    return [entry for entry in entries if entry.action == STEP and entry.evidence is not None]


def replay(entry: AuditEntry, decide: Decide, here: Circumstances) -> Replayed:
    """Decide again from an entry's evidence, and see whether the same comes of it.

    Bit for bit where code, libraries and CPU are those recorded. Elsewhere numbers may differ by
    `NEAR`, and nothing else. What the decision did to the record is worked out again as well.
    """
    try:
        basis = basis_of(entry)
    except InvalidRequest as error:
        return Replayed(entry.revision, entry.target, exact=False, difference=str(error))
    exact = here == basis.made_on
    again = decide(basis.record, basis.evidence, basis.now)
    became = next_record(
        basis.record,
        again,
        at=basis.now,
        number=entry.revision,
        champion=basis.champion,
        closed=basis.closed,
    )
    pairs = (
        ("decision", entry.evidence["decision"], again),
        ("record", entry.document, became),
    )
    for what, stored, made in pairs:
        found = first_difference(
            stored, msgspec.json.decode(canonical(made)), what, tolerance=0.0 if exact else NEAR
        )
        if found is not None:
            return Replayed(entry.revision, entry.target, exact, found)
    return Replayed(entry.revision, entry.target, exact, None)


def first_difference(stored: object, made: object, where: str, *, tolerance: float) -> str | None:
    """Where two JSON documents differ first, as a sentence; None where they agree."""
    if isinstance(stored, dict) and isinstance(made, dict):
        if stored.keys() != made.keys():
            name = min(stored.keys() ^ made.keys())
            owner = "the entry" if name in stored else "the replay"
            return f"{where}.{name} is in {owner} only."
        parts = [(f"{where}.{name}", stored[name], made[name]) for name in stored]
    elif isinstance(stored, list) and isinstance(made, list):
        if len(stored) != len(made):
            return f"{where} has {len(stored)} items in the entry and {len(made)} in the replay."
        parts = [
            (f"{where}[{place}]", one, other)
            for place, (one, other) in enumerate(zip(stored, made, strict=True))
        ]
    else:
        if _same(stored, made, tolerance):
            return None
        return f"{where} is {excerpt(stored)} in the entry and {excerpt(made)} in the replay."
    found = (
        first_difference(one, other, place, tolerance=tolerance) for place, one, other in parts
    )
    return next((sentence for sentence in found if sentence is not None), None)


def _same(stored: object, made: object, tolerance: float) -> bool:
    if type(stored) is not type(made):
        return False
    if isinstance(stored, float) and isinstance(made, float) and tolerance:
        return isclose(stored, made, rel_tol=tolerance, abs_tol=tolerance)
    return stored == made
