"""Ports of following another registry: what it asks of that one, of the store and of this host."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from gateway.core.following import FollowedModel, FollowedRun, FollowedVersion
from gateway.core.models import Key


class FollowedRegistry(Protocol):
    """A registry elsewhere whose models are followed. It is only ever read.

    Every method raises UpstreamFailed when it cannot be reached in time or answers nonsense.
    """

    async def models(self) -> Sequence[FollowedModel]:
        """Every registered model, with its aliases."""

    async def versions(self, model: str) -> Sequence[FollowedVersion]:
        """The versions of a model, in no particular order."""

    async def run(self, run_id: str) -> FollowedRun | None:
        """A run with its lineage; None where there is none."""

    async def fetch(
        self, version: FollowedVersion, run: FollowedRun | None, folder: Path
    ) -> Mapping[str, str]:
        """Write a version's files into an empty folder; their names with their SHA-256.

        The model's own file is `model.onnx`, whatever it is called there.

        Raises:
            InvalidRequest: there is no such file, or a name or size is not allowed here.
        """

    async def close(self) -> None:
        """Hang up."""


class FollowMemory(Protocol):
    """What the shared store keeps of following. Every method may raise StoreUnavailable."""

    async def read(self) -> bytes | None:
        """The document as it was written last."""

    async def swap(self, before: bytes | None, after: bytes) -> bool:
        """Replace the document; False if another stands there by now."""

    async def ask(self) -> int:
        """Ask the leader, on whichever host, to look soon; how often that was asked."""

    async def asked(self) -> int:
        """How often looking was asked for."""

    async def close(self) -> None:
        """Let go of the connections."""


class LandingPlace(Struct, frozen=True):
    """A folder of this host for the files of one version that arrives."""

    id: str
    folder: str


class Landing(Protocol):
    """Where versions from elsewhere are handed in, to be registered as any other."""

    async def begin(self, model: str) -> LandingPlace:
        """A fresh folder. Raises Overloaded: not now; NotReady: the disk failed."""

    async def enter(
        self, place: LandingPlace, key: Key, lineage: Mapping[str, Any], reason: str
    ) -> None:
        """Hand in what the folder holds, as this version.

        Raises:
            VersionRefused: a check forbids it, which is written down already.
            Conflict: the number is taken by other bytes. InvalidRequest: it is refused.
            NotReady: not now. StoreUnavailable: that is not known.
        """

    async def discard(self, place: LandingPlace) -> None:
        """Drop the folder, if it is still there."""
