"""Versions on their way into the registry: the Review that an inspection leads to, and refusals."""

from typing import Any, Final

from msgspec.structs import replace

from gateway.core.errors import VersionRefused, excerpt
from gateway.core.inspections import Inspection, is_acceptable, report_digest
from gateway.core.models import MAX_VERSION, Key
from gateway.core.reviews import REQUIRED, Check, CheckResult, Outcome, Review
from gateway.core.snapshot import ModelRecord

MAX_SUMMARY: Final = 160
"""Characters of a check's words that the Snapshot keeps; the report has them whole."""
MAX_NAMED: Final = 300


def review_of(inspection: Inspection, registered_by: str, at: float) -> Review:
    """What the Snapshot keeps of a report: outcomes, measures, and words where one did not pass."""
    return Review(
        digest=inspection.digest,
        registered_by=registered_by,
        registered_at=at,
        inspected_at=inspection.at,
        report=report_digest(inspection),
        checks={
            name: replace(result, summary=_words(result))
            for name, result in inspection.checks.items()
        },
    )


def refusal_of(inspection: Inspection) -> VersionRefused | None:
    """Why a version may not be registered, None if it may."""
    if is_acceptable(inspection.checks):
        return None
    against = forbidding(inspection)
    said = " ".join(f"{name}: {excerpt(text, MAX_NAMED)}" for name, text in against.items())
    message = (
        f"Version {inspection.number} of '{inspection.model}' is refused: it did not pass what "
        f"every version must pass. {said}"
    )
    return VersionRefused(message, {str(name): check for name, check in inspection.checks.items()})


def forbidding(inspection: Inspection) -> dict[str, str]:
    """The checks that forbid a version, with their words, in the order of an inspection.

    Those that were not made for another one's failure are not named beside it.
    """
    against = {name: inspection.checks.get(name) for name in Check if name in REQUIRED}
    against |= {name: one for name, one in inspection.checks.items() if one.forced}
    failed = {
        str(name): one.summary or "It failed."
        for name, one in against.items()
        if one is not None and one.outcome is Outcome.FAILED
    }
    return failed or {
        str(name): (one and one.summary) or "It was not made."
        for name, one in against.items()
        if one is None or one.outcome is not Outcome.PASSED
    }


def refusal_evidence(inspection: Inspection) -> dict[str, Any]:
    """What the audit log keeps of a refusal."""
    return {
        "number": inspection.number,
        "digest": inspection.digest,
        "report": report_digest(inspection),
        "failed": {
            name: excerpt(text, MAX_SUMMARY) for name, text in forbidding(inspection).items()
        },
    }


def next_number(record: ModelRecord | None, model: str, found: list[Key]) -> int:
    """The number after all that were ever given, and those of what lies in the model store."""
    known = set() if record is None else {*record.versions, *record.retired}
    lying = {number for name, number in found if name == model}
    return min(max({0, *known, *lying}) + 1, MAX_VERSION)


def _words(result: CheckResult) -> str:
    return "" if result.outcome is Outcome.PASSED else excerpt(result.summary, MAX_SUMMARY)
