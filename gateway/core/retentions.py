"""Retention documents: how long versions stay that nothing holds; see `gateway.core.retention`."""

from typing import Final

from msgspec import Struct

from gateway.core.errors import InvalidRequest
from gateway.core.models import check_name
from gateway.core.patterns import check_pattern

SCHEMA: Final = 1
MAX_KEEP: Final = 100_000
MAX_DAYS: Final = 36_500.0


class Retention(Struct, frozen=True, forbid_unknown_fields=True):
    """How long versions of the models that `models` means stay, in days.

    The `keep` highest numbers of a model stay whatever their age; of the others those that were
    registered `min_age_days` ago may go. An entry of the audit log that names a version holds it
    for `ledger_days`. `delete_files` lets them be deleted from the model store as well; without it
    they are only let go of, and lie there unserved.
    """

    schema: int
    models: tuple[str, ...]
    keep: int = 10
    min_age_days: float = 30.0
    ledger_days: float = 365.0
    delete_files: bool = False


def check_retention(name: str, document: Retention) -> None:
    """Refuse a document that contradicts itself.

    Raises:
        InvalidRequest: with the first fault, as a sentence.
    """
    check_name("a retention", name)
    if document.schema != SCHEMA:
        message = f"Retention '{name}' has schema {document.schema}; this gateway reads {SCHEMA}."
        raise InvalidRequest(message)
    if not document.models:
        message = f"Retention '{name}' means no model; 'models' lists names or patterns."
        raise InvalidRequest(message)
    for pattern in document.models:
        check_pattern("models", pattern)
    if not 1 <= document.keep <= MAX_KEEP:
        message = f"Retention '{name}': 'keep' is {document.keep}; it must be 1 to {MAX_KEEP}."
        raise InvalidRequest(message)
    for field, days in (
        ("min_age_days", document.min_age_days),
        ("ledger_days", document.ledger_days),
    ):
        if not 0 <= days <= MAX_DAYS:
            message = f"Retention '{name}': '{field}' is {days}; it must be 0 to {MAX_DAYS:.0f}."
            raise InvalidRequest(message)
