"""Versions as they are read: manifests, Reviews and reports put together, and asked through."""

from typing import Final

from msgspec import Struct

from gateway.control.registry import Registry
from gateway.core.differing import VersionDiff, VersionFacts, diff
from gateway.core.errors import NotFound, excerpt
from gateway.core.inspections import Inspection
from gateway.core.lineage import Lineage, Wanted, ancestors, children, is_wanted, lineage_of
from gateway.core.models import Manifest
from gateway.core.reviews import Review, review_name
from gateway.core.transitions import model_of
from gateway.governance_ports import GovernanceStore

MAX_LISTED: Final = 500


class Known(Struct, frozen=True):
    """One version: what it is, where it comes from, and what stands for and against it."""

    manifest: Manifest
    lineage: Lineage
    review: Review | None
    aliases: tuple[str, ...]


class Origins(Struct, frozen=True, omit_defaults=True):
    """Where a version comes from: its parent, those before that, and those made from it.

    `parent` is `model/number`; ancestors and children are versions of the same model.
    """

    number: int
    lineage: Lineage
    parent: str | None = None
    ancestors: tuple[int, ...] = ()
    children: tuple[int, ...] = ()


class Versions:
    """Answers what is asked about versions. Safe to use from several requests at once."""

    __slots__ = ("_registry", "_reports")

    def __init__(self, registry: Registry, reports: GovernanceStore) -> None:
        """Nothing is kept here."""
        self._registry = registry
        self._reports = reports

    async def known(self, model: str, number: int) -> Known:
        """One version; of one that was retired, what is still known.

        Raises:
            NotFound: no such model or version. StoreUnavailable: the store is away.
        """
        snapshot = self._registry.snapshot
        record = model_of(snapshot, model)
        if number not in record.versions and number not in record.retired:
            message = f"Model '{excerpt(model)}' has no version {number}."
            raise NotFound(message)
        manifest = await self._registry.manifest(model, number)
        return Known(
            manifest=manifest,
            lineage=lineage_of(manifest.lineage, model),
            review=snapshot.reviews.get(review_name(model, number)),
            aliases=tuple(sorted(name for name, at in record.aliases.items() if at == number)),
        )

    async def listed(self, model: str, wanted: Wanted) -> list[Known]:
        """The newest versions with such a lineage, highest number first."""
        found = []
        for number in sorted(model_of(self._registry.snapshot, model).versions, reverse=True):
            one = await self.known(model, number)
            if is_wanted(one.lineage, wanted, model):
                found.append(one)
                if len(found) >= MAX_LISTED:
                    break
        return found

    async def report(self, model: str, number: int) -> Inspection | None:
        """The report on a version's bytes; None where it was never inspected."""
        known = await self.known(model, number)
        report = await self._reports.inspection(model, number)
        return report if report is not None and report.digest == known.manifest.digest else None

    async def origins(self, model: str, number: int | None) -> list[Origins]:
        """Where versions come from: one, or all of a model."""
        numbers = sorted(model_of(self._registry.snapshot, model).versions)
        lineages = {one: (await self.known(model, one)).lineage for one in numbers}
        parents = {
            one: lineage.parent.number
            if lineage.parent is not None and lineage.parent.model == model
            else None
            for one, lineage in lineages.items()
        }
        if number is not None and number not in lineages:
            message = f"Model '{excerpt(model)}' has no version {number}."
            raise NotFound(message)
        return [
            Origins(
                number=one,
                lineage=lineages[one],
                parent=_named(lineages[one]),
                ancestors=ancestors(one, parents),
                children=children(one, parents),
            )
            for one in (numbers if number is None else [number])
        ]

    async def diff(self, model: str, before: int, after: int) -> VersionDiff:
        """What changed between two versions.

        Raises:
            NotFound: no such model or version.
        """
        return diff(await self._facts(model, before), await self._facts(model, after))

    async def _facts(self, model: str, number: int) -> VersionFacts:
        known = await self.known(model, number)
        return VersionFacts(known.manifest, await self.report(model, number))


def _named(lineage: Lineage) -> str | None:
    parent = lineage.parent
    return None if parent is None else f"{parent.model}/{parent.number}"
