"""Ports of evidence: the way of outcomes and sightings, from a door to where they are folded."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from msgspec import Struct

from gateway.core.folding import StudyChange
from gateway.core.gathering import StreamEntry
from gateway.core.tallies import Evidence

ANY_SEQUENCE: Final = (0, 2**63 - 1)


class JournalTail(Struct, frozen=True):
    """How a journal was found: its host's id, its last sequence (0: none yet) and last entry.

    `shipped` is the sequence up to which the store has had it under this id; 0 if that is not
    known.
    """

    host: str
    last: int
    newest: bytes | None
    shipped: int = 0


class Journal(Protocol):
    """Entries that outlive the process, in order, until they are shipped. Blocking.

    Every method raises OSError when the disk fails.
    """

    @property
    def size(self) -> int:
        """Bytes on disk."""

    @property
    def unshipped(self) -> int:
        """Bytes behind the cursor."""

    def open(self) -> JournalTail:
        """Find what an earlier process left. Called first, once."""

    def append(self, entries: Sequence[bytes]) -> int:
        """Write entries behind the others, all of them or none, and sync; the last one's sequence.

        Raises:
            Overloaded: what is not shipped yet fills the journal.
        """

    def read(self, max_entries: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """The first entries behind the cursor with their sequences; at least one if there is one.

        Sequences rise, with gaps.
        """

    def mark(self, sequence: int) -> None:
        """Put the cursor behind an entry of those that were read last."""

    def rewind(self, sequence: int) -> None:
        """Put the cursor back behind this sequence or before, as far as entries are kept."""

    def rename(self) -> str:
        """Take a new id for this host, and return it."""

    def close(self) -> None:
        """Let go of the files."""


class OutcomeSink(Protocol):
    """What the inference door hands outcomes to: control, in this process or at the link's end."""

    async def accept(self, events: Sequence[bytes], outcomes: int) -> None:
        """Keep outcomes; return once they outlive any process.

        Args:
            events: what `gateway.core.outcomes.events_of` made; each becomes an entry.
            outcomes: how many they are.

        Raises:
            Overloaded: there is no room. NotReady: control is away, or its disk fails.
        """


class EvidenceStore(Protocol):
    """The side of the shared store on which evidence is gathered and folded.

    Every method raises StoreUnavailable when the store cannot be reached in time.
    """

    async def ship(
        self,
        host: str,
        entries: Sequence[tuple[int, bytes]],
        through_ms: int,
        within: tuple[int, int] = ANY_SEQUENCE,
    ) -> int:
        """Add the entries of a host's journal to the stream, each once however often it is tried.

        Args:
            host: the journal's id.
            entries: sequences, rising, and entries. Those that are there already are passed over.
            through_ms: whatever the host accepted before this moment is in the stream by now.
            within: the least and the most that the stream may have of the host until now. Where it
                has less it has lost some, where it has more another host has this id, and nothing
                is written.

        Returns:
            The sequence up to which the stream has what the journal holds.
        """

    async def close(self) -> None:
        """Let go of the connections."""


class Waiting(Struct, frozen=True):
    """How far folding is, and what waits to be folded.

    Attributes:
        mark: Of the batch that was written last; empty before the first.
        through_ms: What was due until then is frozen.
        entries: The first ones behind the cursor, in the order of the stream.
        is_all: There are no more.
        shipped: Host to the moment before which all that it accepted is in the stream. It was read
            together with the entries.
    """

    mark: bytes
    through_ms: int
    entries: list[StreamEntry]
    is_all: bool
    shipped: dict[str, int]


class Stored(Struct, frozen=True):
    """What is stored of some units of an experiment, None for those without a state."""

    states: dict[bytes, bytes | None]
    evidence: Evidence


class FoldBatch(Struct, frozen=True, kw_only=True):
    """What one turn of folding writes, all of it or nothing.

    Attributes:
        expected: The mark that must still stand, or another folder has written since.
        mark: The new one, never used before.
        cursor: The last entry of the stream that is in it; None if none is.
        through_ms: What was due until then is frozen with this batch; None if that is not known.
        changes: Of experiments.
        quarantined: (cause, encoded entry) of what belongs nowhere.
        results: How often what was set aside, by cause.
        forgotten: Ids of experiments of which everything is deleted.
    """

    expected: bytes
    mark: bytes
    cursor: bytes | None = None
    through_ms: int | None = None
    changes: tuple[StudyChange, ...] = ()
    quarantined: tuple[tuple[str, bytes], ...] = ()
    results: Mapping[str, int] = {}
    forgotten: tuple[str, ...] = ()


class FoldStore(Protocol):
    """The side of the shared store on which evidence is folded and read.

    Every method raises StoreUnavailable when the store cannot be reached in time.
    """

    async def waiting(self, limit: int) -> Waiting:
        """How far folding is, and at most so many entries that wait."""

    async def stored(self, wanted: Mapping[str, Sequence[bytes]]) -> dict[str, Stored]:
        """By experiment id, the states of these units and the tallies."""

    async def due(self, ids: Sequence[str], through_ms: int, limit: int) -> dict[str, list[bytes]]:
        """By experiment id, at most so many units that are due, the earliest first."""

    async def write(self, batch: FoldBatch) -> bool:
        """Write a batch at once; False if another one was written since its mark was read.

        When this raises, the batch may have been written or not: look at `waiting` again.
        """

    async def evidence(self, ids: Sequence[str]) -> dict[str, Evidence]:
        """The tallies of experiments, all of one moment."""

    async def units(self, experiment_id: str, limit: int) -> dict[bytes, bytes]:
        """The states of an experiment's units and cohorts, at most about so many, in no order."""

    async def results(self) -> dict[str, dict[str, int]]:
        """What became of events, by experiment id; that of none under the empty string."""

    async def close(self) -> None:
        """Let go of the connections."""


class HistoryStore(Protocol):
    """The side of the shared store that holds points of experiments' histories, for reports.

    Every method raises StoreUnavailable when the store cannot be reached in time.
    """

    async def keep_points(self, points: Mapping[str, bytes]) -> None:
        """Add a point to the history of each of these experiments, by id; old ones give way."""

    async def points_of(self, experiment_id: str, limit: int) -> list[bytes]:
        """The newest points of an experiment's history, oldest first."""

    async def close(self) -> None:
        """Let go of the connections."""
