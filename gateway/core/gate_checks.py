"""Checks on gates: what is refused in a document before anything is held to it."""

from collections.abc import Iterable
from math import isfinite
from typing import Final, NoReturn

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.freezes import check_freeze
from gateway.core.gates import MEASURED, SCHEMA, CheckRule, EvidenceRule, Gate, Requirements
from gateway.core.models import MAX_NAME, check_name
from gateway.core.patterns import check_pattern

MAX_GATES: Final = 200
MAX_ITEMS: Final = 50
"""Patterns, aliases, checks, fields, roles and freezes: of each at most so many."""
MAX_APPROVALS: Final = 20
MAX_PATH: Final = 256
MAX_COUNT: Final = 10**12
ROOT: Final = "lineage."


def check_gate(name: str, gate: Gate) -> None:
    """Refuse a gate that contradicts itself, or that nothing could ever pass.

    Raises:
        InvalidRequest: the first fault found, as a sentence.
    """
    check_name("a gate", name)
    where = f"Gate '{name}'"
    if gate.schema != SCHEMA:
        _refuse(where, f"it has schema {excerpt(gate.schema)}; this gateway writes {SCHEMA}")
    _listed(where, "models", gate.models, needed=True)
    for pattern in gate.models:
        check_pattern("models", pattern)
    _listed(where, "aliases", gate.aliases, needed=True)
    for alias in gate.aliases:
        check_name("an alias", alias)
    _check_requirements(f"{where}, trial", gate.trial)
    _check_requirements(f"{where}, promotion", gate.promotion)
    _listed(where, "freezes", [freeze.name for freeze in gate.freezes])
    for freeze in gate.freezes:
        if not 0 < len(freeze.name) <= MAX_NAME:
            _refuse(where, f"a freeze needs a name of 1 to {MAX_NAME} characters")
        check_freeze(f"{where}, freeze '{excerpt(freeze.name)}'", freeze)


def _check_requirements(where: str, wanted: Requirements) -> None:
    _listed(where, "checks", [rule.check for rule in wanted.checks])
    for rule in wanted.checks:
        _check_rule(f"{where}, check '{rule.check}'", rule)
    _listed(where, "lineage", wanted.lineage)
    for path in wanted.lineage:
        if not path.startswith(ROOT) or not all(path.split(".")) or len(path) > MAX_PATH:
            _refuse(
                where,
                f"'{excerpt(path)}' names no field of the lineage; write it like "
                "'lineage.data_sha256'",
            )
    if wanted.evidence is not None:
        _check_evidence(f"{where}, evidence", wanted.evidence)
    _listed(where, "approvals", [rule.role for rule in wanted.approvals])
    for rule_ in wanted.approvals:
        if not 1 <= rule_.count <= MAX_APPROVALS:
            _refuse(
                where,
                f"{excerpt(rule_.count)} approvals by '{rule_.role}' are wanted; ask for 1 to "
                f"{MAX_APPROVALS}",
            )


def _check_rule(where: str, rule: CheckRule) -> None:
    bounds = [bound for bound in (rule.at_most, rule.at_least) if bound is not None]
    if bounds and rule.check not in MEASURED:
        measured = ", ".join(sorted(MEASURED))
        _refuse(where, f"it finds no number that could be bounded; these do: {measured}")
    if not all(isfinite(bound) for bound in bounds):
        _refuse(where, "its bounds must be finite")
    if rule.at_most is not None and rule.at_least is not None and rule.at_least > rule.at_most:
        _refuse(where, "'at_least' is above 'at_most', so nothing could pass")


def _check_evidence(where: str, rule: EvidenceRule) -> None:
    counts = (rule.min_units, rule.min_shadow_compared)
    if not all(0 <= count <= MAX_COUNT for count in counts):
        _refuse(where, f"counts must be 0 to {MAX_COUNT}")
    if not rule.experiment and not any(counts):
        _refuse(
            where,
            "it asks for nothing; set 'experiment', 'min_units' or 'min_shadow_compared'",
        )
    if rule.max_disagreement is None:
        return
    if not 0 <= rule.max_disagreement <= 1:
        _refuse(where, "'max_disagreement' is a share, 0 to 1")
    if not rule.min_shadow_compared:
        _refuse(where, "'max_disagreement' says nothing without 'min_shadow_compared'")


def _listed(where: str, what: str, items: Iterable[str], *, needed: bool = False) -> None:
    """Refuse an empty list where one is needed, a long one, and whatever stands twice."""
    listed = list(items)
    if needed and not listed:
        _refuse(where, f"'{what}' is empty, so the gate would mean nothing")
    if len(listed) > MAX_ITEMS:
        _refuse(where, f"'{what}' has {len(listed)} items; at most {MAX_ITEMS} are allowed")
    for item in listed:
        if listed.count(item) > 1:
            _refuse(where, f"'{excerpt(str(item))}' stands twice in '{what}'")


def _refuse(where: str, fault: str) -> NoReturn:
    message = f"{where}: {fault}."
    raise InvalidRequest(message)
