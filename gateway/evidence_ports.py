"""Ports of evidence: the way of outcomes and sightings, from a door to where they are folded."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class JournalTail(Struct, frozen=True):
    """How a journal was found: its host's id, its last sequence (0: none yet) and last entry."""

    host: str
    last: int
    newest: bytes | None


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

    async def ship(self, host: str, entries: Sequence[tuple[int, bytes]], through_ms: int) -> int:
        """Add the entries of a host's journal to the stream, each once however often it is tried.

        Args:
            host: the journal's id.
            entries: sequences, rising, and entries. Those that are there already are passed over.
            through_ms: whatever the host accepted before this moment is in the stream by now.

        Returns:
            The sequence up to which the stream has what the journal holds.
        """

    async def close(self) -> None:
        """Let go of the connections."""
