"""Landing by way of the registrar: what arrives is inspected and registered as an upload is."""

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.control.registering import Registrar, Registration
from gateway.control.registry import Request
from gateway.core.models import Key
from gateway.following_ports import LandingPlace


class RegistrarLanding:
    """The `Landing` port on the registrar of this host."""

    __slots__ = ("_actor", "_registrar")

    def __init__(self, registrar: Registrar, actor: str) -> None:
        """Versions are registered in the actor's name, and so are their uploads."""
        self._registrar = registrar
        self._actor = actor

    async def begin(self, model: str) -> LandingPlace:
        """The folder of a fresh upload.

        Raises:
            Overloaded: too many uploads are open. NotReady: the disk fails.
        """
        staged = await asyncio.to_thread(self._registrar.uploads.begin, model, self._actor)
        return LandingPlace(staged.id, staged.folder)

    async def enter(
        self, place: LandingPlace, key: Key, lineage: Mapping[str, Any], reason: str
    ) -> None:
        """Register what the folder holds; nothing happens if these bytes have this number.

        Raises:
            VersionRefused: a check forbids it, which is written down. InvalidRequest: it is wrong.
            Conflict: the number is taken by other bytes. NotReady: not now.
            NotFound: the upload expired. StoreUnavailable: whether it was registered is not known.
        """
        wanted = Registration(model=key[0], number=key[1], upload=place.id, lineage=lineage)
        await self._registrar.register(wanted, Request(actor=self._actor, reason=reason))

    async def discard(self, place: LandingPlace) -> None:
        """Drop the folder, if it is still there."""
        await asyncio.to_thread(self._registrar.uploads.discard, place.id)
