"""Landing by way of the model store: what arrives is put there, and the catalog registers it."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from gateway.control.registry import Registry
from gateway.core.errors import Conflict
from gateway.core.models import Key
from gateway.core.toml import toml_of
from gateway.following_ports import LandingPlace, Shelf

OWN_FILES: Final = frozenset({"version.toml"})
"""Written here, so they are not compared."""


class StoreLanding:
    """The `Landing` port on the model store of this host."""

    __slots__ = ("_registry", "_shelf")

    def __init__(self, shelf: Shelf, registry: Registry) -> None:
        """On a model store and the registry that its versions are compared with."""
        self._shelf = shelf
        self._registry = registry

    async def begin(self, _model: str) -> LandingPlace:
        """A fresh folder beside the models."""
        folder = await asyncio.to_thread(self._shelf.stage)
        return LandingPlace(folder, folder)

    async def enter(
        self,
        place: LandingPlace,
        key: Key,
        lineage: Mapping[str, Any],
        actor: str,  # noqa: ARG002 - the catalog registers, in its own name
        reason: str,  # noqa: ARG002
    ) -> None:
        """Put a version into the model store, unless the same bytes have this number already.

        Raises:
            Conflict: other bytes have it. InvalidRequest: the disk failed.
        """
        shelf, record = self._shelf, self._registry.snapshot.models.get(key[0])
        standing: Mapping[str, str] | None
        if record is not None and key[1] in record.versions:
            manifest = await self._registry.manifest(*key)
            standing = {file.path: file.sha256 for file in manifest.files}
        else:
            standing = await asyncio.to_thread(shelf.standing, *key)
        if standing is not None:
            _check_same(standing, await asyncio.to_thread(shelf.digests, place.folder), key)
            return
        if record is None:
            await asyncio.to_thread(shelf.seed, key[0], f"champion = {key[1]}\n")
        texts = {"version.toml": toml_of(lineage)}
        await asyncio.to_thread(shelf.place, place.folder, *key, texts)

    async def discard(self, place: LandingPlace) -> None:
        """Drop the folder, if it is still there."""
        await asyncio.to_thread(self._shelf.discard, place.folder)


def _check_same(standing: Mapping[str, str], digests: Mapping[str, str], key: Key) -> None:
    """Refuse a version whose number is taken by other bytes."""
    kept = {name: digest for name, digest in standing.items() if name not in OWN_FILES}
    if kept != dict(digests):
        message = (
            f"Version {key[1]} of '{key[0]}' is taken by other bytes here, and a version never "
            "changes; register it in MLflow once more to give it another number."
        )
        raise Conflict(message)
