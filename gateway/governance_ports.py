"""Ports of governance: what registering, checking and telling others ask of the world."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.core.inspections import Inspection, InspectionOrder


class Inspector(Protocol):
    """Takes a version apart and runs it, where nothing that it does can reach this process."""

    async def inspect(self, order: InspectionOrder) -> Inspection:
        """The report. A version that crashes, hangs or takes too much has failed a check.

        Raises:
            NotReady: no inspection can be made on this host now, with a sentence that says why.
        """

    async def close(self) -> None:
        """End what runs."""


class GovernanceStore(Protocol):
    """What the shared store keeps beside the Snapshot for governance.

    Every method raises StoreUnavailable when the store cannot be reached in time.
    """

    async def put_inspection(self, inspection: Inspection) -> None:
        """Keep a version's report in the place of an earlier one."""

    async def inspection(self, model: str, number: int) -> Inspection | None:
        """The newest report of a version."""

    async def inspections(self, model: str) -> Mapping[int, Inspection]:
        """The newest reports of a model's versions."""

    async def drop_inspections(self, model: str, numbers: Sequence[int]) -> None:
        """Forget the reports of versions that are gone."""

    async def close(self) -> None:
        """Let go of the connections."""


class VersionFiles(Protocol):
    """The files of versions that nobody needs any more. Blocking; raises OSError."""

    def remove(self, model: str, number: int, digest: str) -> bool:
        """Delete a version from the model store, if what lies there still has this digest."""

    def sweep(self, known: frozenset[str], before: float) -> int:
        """Delete this host's copies of unknown digests, untouched since then; how many went.

        `before` is in UTC seconds.
        """
