"""Model cards: all that is known of one version, put together for people. Nothing is decided here.

Lineage from its manifest, checks from its inspection, trials from experiments, and what became of
it from the audit log.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from gateway.core.audit import AuditEntry
from gateway.core.errors import NotFound
from gateway.core.inspections import Inspection
from gateway.core.models import Manifest
from gateway.core.readings import Reading
from gateway.core.reporting import Report
from gateway.core.retention import model_of_endpoint
from gateway.core.reviews import Review, review_name
from gateway.core.snapshot import Snapshot, named_versions
from gateway.core.transitions import model_of

MAX_HISTORY: Final = 200
"""Decisions that a card tells, the newest."""


class Trial(Struct, frozen=True):
    """An experiment that ran the version: as which variant, how it stands, what was read."""

    experiment: str
    variant: str
    is_control: bool
    state: str
    reason: str
    started_at: float
    units: int
    readings: tuple[Reading, ...]


class Decided(Struct, frozen=True):
    """Something that was decided about the version. `at` is in UTC seconds."""

    at: float
    revision: int
    actor: str
    action: str
    reason: str
    forced: bool
    """Whether a gate was passed by force."""


class Card(Struct, frozen=True):
    """All that is known of one version. `made_at` is in UTC seconds; `standing` is in words."""

    model: str
    number: int
    revision: int
    made_at: float
    standing: tuple[str, ...]
    manifest: Manifest
    review: Review | None
    inspection: Inspection | None
    labels: tuple[str, ...]
    trials: tuple[Trial, ...]
    history: tuple[Decided, ...]
    history_since: float | None = None


class Facts(Struct, frozen=True):
    """What is known of a version beside the Snapshot.

    `reports` are those of the experiments that ran it, by name; `history` is what was decided
    about it, oldest first. What was decided before `history_since`, in UTC seconds, the store does
    not hold any more; None where it holds all.
    """

    manifest: Manifest
    inspection: Inspection | None
    reports: Mapping[str, Report]
    history: tuple[Decided, ...]
    history_since: float | None = None


def card_of(snapshot: Snapshot, facts: Facts, now: float) -> Card:
    """Put a card together; `now` is in UTC seconds.

    Raises:
        NotFound: the model or the version is not registered.
    """
    model, number = facts.manifest.model, facts.manifest.number
    record = model_of(snapshot, model)
    if number not in record.versions and number not in record.retired:
        message = f"Model '{model}' has no version {number}."
        raise NotFound(message)
    return Card(
        model=model,
        number=number,
        revision=snapshot.revision,
        made_at=now,
        standing=_standing(snapshot, model, number),
        manifest=facts.manifest,
        review=snapshot.reviews.get(review_name(model, number)),
        inspection=facts.inspection,
        labels=record.labels,
        trials=tuple(
            trial
            for name in sorted(facts.reports)
            for trial in _trials(name, facts.reports[name], number)
        ),
        history=facts.history[-MAX_HISTORY:],
        history_since=facts.history_since,
    )


def experiments_on(snapshot: Snapshot, model: str, number: int) -> list[str]:
    """The experiments that run the version or ran it, sorted."""
    return sorted(
        name
        for name, record in snapshot.experiments.items()
        if number in record.versions.values()
        and model_of_endpoint(snapshot, record.document.endpoint) == model
    )


class Biography:
    """Picks what was decided about one version out of the audit log, oldest entry first."""

    __slots__ = (
        "_experiments",
        "_gone",
        "_model",
        "_named",
        "_number",
        "_read",
        "decided",
        "since",
    )

    def __init__(self, model: str, number: int, experiments: Iterable[str]) -> None:
        """Nothing was read yet; `experiments` are those that ran the version."""
        self._model = model
        self._number = number
        self._experiments = {f"experiments/{name}" for name in experiments}
        # The aliases that name it; None where that is not known.
        self._named: frozenset[str] | None = frozenset()
        self._gone = False
        self._read = 0
        self.decided: list[Decided] = []
        self.since: float | None = None
        """What came before, in UTC seconds, was archived or lost; None where nothing was."""

    def read(self, entry: AuditEntry) -> None:
        """Take note of an entry, if it is about the version."""
        if entry.revision != self._read + 1:
            self.since, self._named = entry.at, None
        self._read = entry.revision
        documents = {moved.target: moved.document for moved in entry.also}
        documents[entry.target] = entry.document
        moved = self._moved(documents.get(f"models/{self._model}"))
        is_own = f"reviews/{self._model}/{self._number}" in documents
        is_tried = entry.target in self._experiments and entry.action != "experiment.put"
        if moved or is_own or is_tried:
            self.decided.append(
                Decided(
                    at=entry.at,
                    revision=entry.revision,
                    actor=entry.actor,
                    action=entry.action,
                    reason=entry.reason,
                    forced=isinstance(entry.evidence, dict)
                    and entry.evidence.get("override") is True,
                )
            )

    def _moved(self, document: Any) -> bool:  # noqa: ANN401 - a JSON document
        """Whether other aliases name the version than before."""
        if not isinstance(document, dict):
            return False
        aliases = document.get("aliases", {})
        named = frozenset(alias for alias, number in aliases.items() if number == self._number)
        before, self._named = self._named, named
        gone = str(self._number) in document.get("retired", {})
        retired, self._gone = gone and not self._gone, gone
        return retired or (before is not None and named != before)


def _standing(snapshot: Snapshot, model: str, number: int) -> tuple[str, ...]:
    record = snapshot.models[model]
    if number in record.retired:
        return ("retired: its files may be gone, its number stays taken",)
    said = [alias for alias, named in sorted(record.aliases.items()) if named == number]
    before = [alias for alias, numbers in sorted(record.previous.items()) if number in numbers[-1:]]
    said += [f"{alias} before, and warm to go back to" for alias in before]
    if not said and number in named_versions(snapshot)[model]:
        said.append("named by an endpoint or an experiment, or loaded by hand")
    return tuple(said) or ("registered, not served",)


def _trials(name: str, report: Report, number: int) -> Iterable[Trial]:
    for index, variant in enumerate(report.variants):
        if variant.version == number:
            yield Trial(
                experiment=name,
                variant=variant.name,
                is_control=index == 0,
                state=report.state.value,
                reason=report.reason,
                started_at=report.started_at,
                units=variant.assigned,
                readings=tuple(one for one in report.readings if one.variant == variant.name),
            )
