"""Gating: what a gate wants of a version, held against what is known of it. Pure.

What is not known is never taken for a pass: a check that did not run, a lineage that cannot be
read, an experiment without units are all missing, each with a sentence that says what to do.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from gateway.core.entrances import Stage
from gateway.core.errors import Missing
from gateway.core.experimenting import promoted_variant
from gateway.core.experiments import TERMINAL, ExperimentRecord, State
from gateway.core.freezes import held_until
from gateway.core.gates import ApprovalRule, CheckRule, EvidenceRule, Gate, Requirements
from gateway.core.models import Key
from gateway.core.people import roles_now
from gateway.core.principals import MACHINES, STEWARD, PrincipalDocument
from gateway.core.readings import Verdict
from gateway.core.reviews import Approval, Check, Outcome, Review, review_name
from gateway.core.snapshot import Snapshot, endpoint_record
from gateway.core.tallies import Evidence

GOOD: Final = frozenset({Verdict.BETTER.value, Verdict.EQUIVALENT.value})
UNITS: Final[Mapping[Check, str]] = {Check.LATENCY: " ms", Check.MEMORY: " MiB"}
_AN: Final = "aeiou"


class Trial(Struct, frozen=True):
    """What one experiment says of a version: `proves` if it certified or promoted it.

    `differed` counts the shadow answers that were unlike the control's, or failed.
    """

    experiment: str
    proves: bool
    units: int = 0
    compared: int = 0
    differed: int = 0


class Facts(Struct, frozen=True):
    """What is known of a version, and who asks for it.

    `lineage` is None where the manifest cannot be read. `asked_by` is empty for nobody in
    particular.
    """

    model: str
    number: int
    asked_by: str
    review: Review | None
    lineage: Mapping[str, Any] | None
    principals: Mapping[str, PrincipalDocument]
    behind: frozenset[str] = frozenset()
    """For whom the steward asks: those who started the experiments that run the version."""
    trials: tuple[Trial, ...] = ()


class Finding(Struct, frozen=True):
    """One requirement of a gate, and whether it is met; the sentence says by what, or how."""

    gate: str
    requirement: str
    met: bool
    sentence: str


def examine(name: str, gate: Gate, stage: Stage, facts: Facts, now: float) -> tuple[Finding, ...]:
    """Every requirement that a gate has for this stage, met or not; `now` is in UTC seconds."""
    wanted = [gate.trial, gate.promotion] if stage is Stage.PROMOTION else [gate.trial]
    told = [
        Finding(name, requirement, met, sentence)
        for one in wanted
        for requirement, met, sentence in _examined(one, facts)
    ]
    for freeze in gate.freezes:
        until = held_until(freeze, now)
        sentence = (
            f"The freeze '{freeze.name}' does not hold now."
            if until is None
            else f"The freeze '{freeze.name}' holds until {until}: nothing new gets traffic."
        )
        told.append(Finding(name, f"freezes.{freeze.name}", until is None, sentence))
    return tuple(dict.fromkeys(told))


def missing_of(findings: Iterable[Finding]) -> tuple[Missing, ...]:
    """Those that are not met."""
    return tuple(
        Missing(found.gate, found.requirement, found.sentence)
        for found in findings
        if not found.met
    )


def missing(
    gates: Mapping[str, tuple[Gate, Stage]], facts: Facts, now: float
) -> tuple[Missing, ...]:
    """What several gates want of one version and do not find: they add up."""
    return missing_of(
        found
        for name, (gate, stage) in sorted(gates.items())
        for found in examine(name, gate, stage, facts, now)
    )


def counted(rule: ApprovalRule, facts: Facts) -> list[Approval]:
    """The approvals that count for a rule: by who held the role then, and holds it now.

    Neither who asks nor who registered the version is counted; nor who is gone or disabled.
    """
    review = facts.review
    if review is None:
        return []
    found: dict[str, Approval] = {}
    for approval in review.approvals:
        name, groups = approval.principal, approval.groups
        if name in _concerned(facts) or name in MACHINES or rule.role not in approval.roles:
            continue
        if rule.role in roles_now(facts.principals, name, groups, facts.model):
            found.setdefault(approval.principal, approval)
    return list(found.values())


def trials_of(snapshot: Snapshot, key: Key, evidence: Mapping[str, Evidence]) -> tuple[Trial, ...]:
    """What the experiments of a Snapshot say of a version; `evidence` is by their ids."""
    return tuple(
        _trial(snapshot, name, record, key[1], evidence.get(record.id))
        for name, record in sorted(snapshot.experiments.items())
        if _model_of(snapshot, record) == key[0] and _variants(record, key[1])
    )


def facts_of(  # noqa: PLR0913 - each is known from elsewhere
    base: Snapshot,
    changed: Snapshot,
    key: Key,
    *,
    asked_by: str,
    lineage: Mapping[str, Any] | None,
    evidence: Mapping[str, Evidence],
) -> Facts:
    """What two Snapshots know of a version.

    Who is who, and what was approved, is what stood before: a change cannot bring along what lets
    it pass. An experiment that promotes by this very change is proof all the same.
    """
    name = review_name(*key)
    known = base.models.get(key[0])
    is_new = known is None or key[1] not in known.versions
    review = (changed if is_new else base).reviews.get(name)
    digest = changed.models[key[0]].versions.get(key[1])
    return Facts(
        model=key[0],
        number=key[1],
        asked_by=asked_by,
        review=review if review is not None and review.digest == digest else None,
        lineage=lineage,
        principals=base.principals,
        behind=_starters(base, key) if asked_by == STEWARD else frozenset(),
        trials=trials_of(changed, key, evidence),
    )


_Told = Iterator[tuple[str, bool, str]]


def _examined(wanted: Requirements, facts: Facts) -> _Told:
    for rule in wanted.checks:
        yield f"checks.{rule.check}", *_check(rule, facts)
    for path in wanted.lineage:
        met = _is_told(_walk({"lineage": facts.lineage}, path.split(".")))
        field = path.partition(".")[2]
        yield (
            path,
            met,
            f"The lineage says '{field}'."
            if met
            else f"The lineage of version {facts.number} does not say '{field}', and it never "
            "changes; register the bytes with it under a new number.",
        )
    if wanted.evidence is not None:
        yield from _evidence(wanted.evidence, facts)
    for rule_ in wanted.approvals:
        yield f"approvals.{rule_.role}", *_approved(rule_, facts)


def _check(rule: CheckRule, facts: Facts) -> tuple[bool, str]:
    found = None if facts.review is None else facts.review.checks.get(rule.check)
    if found is None:
        return False, (
            f"The check '{rule.check}' was not made of version {facts.number}; have it inspected "
            "again."
        )
    why = f": {found.summary.rstrip('.')}" if found.summary else ""
    if found.outcome is not Outcome.PASSED:
        also = "; no data is no pass" if found.outcome is Outcome.SKIPPED else ""
        return False, f"The check '{rule.check}' {_ended(found.outcome)}{also}{why}."
    bounds = _bounds(rule)
    if not bounds:
        return True, f"The check '{rule.check}' passed."
    if found.measure is None:
        return False, f"The check '{rule.check}' passed without a number; {bounds} is wanted."
    unit = UNITS.get(rule.check, "")
    keeps = (rule.at_most is None or found.measure <= rule.at_most) and (
        rule.at_least is None or found.measure >= rule.at_least
    )
    return keeps, f"The check '{rule.check}' found {found.measure:.6g}{unit}; wanted is {bounds}."


def _ended(outcome: Outcome) -> str:
    return "was skipped" if outcome is Outcome.SKIPPED else "failed"


def _bounds(rule: CheckRule) -> str:
    unit = UNITS.get(rule.check, "")
    told = [
        f"{words} {bound:.6g}{unit}"
        for words, bound in (("at least", rule.at_least), ("at most", rule.at_most))
        if bound is not None
    ]
    return " and ".join(told)


def _approved(rule: ApprovalRule, facts: Facts) -> tuple[bool, str]:
    found = sorted(approval.principal for approval in counted(rule, facts))
    names = ", ".join(f"'{name}'" for name in found)
    if len(found) >= rule.count:
        return True, f"Approved by {names} ({rule.role})."
    lacking = rule.count - len(found)
    article = "an" if rule.role[0] in _AN else "a"
    amount = "1 approval" if lacking == 1 else f"{lacking} approvals"
    verb = "is" if lacking == 1 else "are"
    concerned = _concerned(facts)
    asker = "whoever asks" + (f" ('{facts.asked_by}')" if facts.asked_by in concerned else "")
    if facts.behind & concerned:
        started = ", ".join(f"'{name}'" for name in sorted(facts.behind & concerned))
        asker = f"whoever started the experiment ({started})"
    others = f" besides {names}" if found else ""
    return False, (
        f"{amount} by {article} {rule.role} {verb} missing{others}: {asker} or registered it may "
        f"not approve; say `tiltyard approve {facts.model} {facts.number}`."
    )


def _concerned(facts: Facts) -> set[str]:
    """Who may not approve: who asks, has the steward ask, or registered it; a machine is nobody."""
    registered = "" if facts.review is None else facts.review.registered_by
    return {facts.asked_by, registered, *facts.behind} - MACHINES - {""}


def _starters(snapshot: Snapshot, key: Key) -> frozenset[str]:
    """Who started the experiments, of those that have not ended, in which a version is tried."""
    return frozenset(
        record.started_by
        for record in snapshot.experiments.values()
        if record.state not in TERMINAL
        and _model_of(snapshot, record) == key[0]
        and _variants(record, key[1])
    )


def _evidence(rule: EvidenceRule, facts: Facts) -> _Told:
    trials = facts.trials
    version = f"version {facts.number}"
    if rule.experiment:
        proofs = [trial.experiment for trial in trials if trial.proves]
        yield (
            "evidence.experiment",
            bool(proofs),
            f"Experiment '{proofs[0]}' speaks for {version}."
            if proofs
            else f"No experiment has certified or promoted {version}; run one on it.",
        )
    if rule.min_units:
        units = sum(trial.units for trial in trials)
        yield (
            "evidence.min_units",
            units >= rule.min_units,
            f"Experiments gave {version} {units} units; the gate wants {rule.min_units}.",
        )
    compared = sum(trial.compared for trial in trials)
    if wanted := rule.min_shadow_compared:
        yield (
            "evidence.min_shadow_compared",
            compared >= wanted,
            f"Shadow stages compared {compared} answers of {version}; the gate wants {wanted}.",
        )
    if rule.max_disagreement is not None:
        differed = sum(trial.differed for trial in trials)
        share = differed / compared if compared else 1.0
        share_allowed = f"a share of {rule.max_disagreement:.6g}"
        yield (
            "evidence.max_disagreement",
            bool(compared) and share <= rule.max_disagreement,
            f"{differed} of {compared} shadow answers differed; allowed is {share_allowed}.",
        )


def _trial(
    snapshot: Snapshot, name: str, record: ExperimentRecord, number: int, found: Evidence | None
) -> Trial:
    numbers = _variants(record, number)
    proves = any(_proves(snapshot, record, variant) for variant in numbers.values())
    if found is None:
        return Trial(name, proves)
    cells = [cell for cell in found.cells if cell.variant in numbers]
    shadows = [cell for cell in found.shadows if cell.variant in numbers]
    return Trial(
        experiment=name,
        proves=proves,
        units=sum(cell.assigned for cell in cells),
        compared=sum(cell.compared + cell.failed for cell in shadows),
        differed=sum(cell.disagreed + cell.failed for cell in shadows),
    )


def _variants(record: ExperimentRecord, number: int) -> dict[int, str]:
    """The treatments that run a version, by their place in the document."""
    return {
        place: variant.name
        for place, variant in enumerate(record.document.variants)
        if place > 0 and record.versions.get(variant.name) == number
    }


def _proves(snapshot: Snapshot, record: ExperimentRecord, variant: str) -> bool:
    """Whether an experiment has promoted a treatment, or certified it.

    The record does not name the winner. Of two variants it is the treatment; of several it is
    known while a hold-out runs, and by the alias that it moved.
    """
    if record.state is State.ROLLED_BACK:
        return False
    alone = len(record.document.variants) == _PAIR
    if record.state is State.HOLDING_OUT:
        return promoted_variant(record) == variant
    if record.state is State.PROMOTED and (alone or _was_moved(snapshot, record, variant)):
        return True
    document = record.document
    gating = [guard.name for guard in document.guards]
    gating += [metric.name for metric in document.metrics if metric.role != "watch"]
    said = [record.verdicts.get(f"{name}/{variant}") for name in gating]
    return bool(said) and all(verdict in GOOD for verdict in said)


def _was_moved(snapshot: Snapshot, record: ExperimentRecord, variant: str) -> bool:
    """Whether the experiment's alias names the version of a variant, or did."""
    model = snapshot.models[_model_of(snapshot, record) or ""]
    alias, number = record.document.alias, record.versions[variant]
    weights = {} if record.phase is None else record.phase.weights
    stood = (model.aliases.get(alias), *model.previous.get(alias, ()))
    return number in stood and bool(weights.get(variant))


def _model_of(snapshot: Snapshot, record: ExperimentRecord) -> str | None:
    """The model of an experiment; None where its endpoint has gone since it ended."""
    called = record.document.endpoint
    if called not in snapshot.endpoints and called not in snapshot.models:
        return None
    return endpoint_record(snapshot, called).document.model


def _walk(document: object, path: list[str]) -> object:
    """What stands at a path; in a list, what stands there in every item, else None."""
    for place, step in enumerate(path):
        if isinstance(document, Mapping):
            document = document.get(step)
        elif isinstance(document, list | tuple):
            found = [_walk(item, path[place:]) for item in document]
            return found if all(_is_told(one) for one in found) else None
        else:
            return None
    return document


def _is_told(value: object) -> bool:
    """Whether a field says something; zero and false do."""
    return value is not None and value not in ("", [], {}, ())


_PAIR: Final = 2
