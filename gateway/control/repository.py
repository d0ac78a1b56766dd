"""The repository: the model store and the registry in the words of the OIP repository extension."""

import asyncio
from typing import Any, Final

from gateway.control.catalog import Catalog
from gateway.control.registry import Registry, Request
from gateway.core.errors import EngineFailed, NotReady
from gateway.ports import DataPlane, RepositoryEntry

READY_WITHIN_S: Final = 60.0
LOOK_S: Final = 0.02
_STATES: Final = {
    "loading": "LOADING",
    "warming": "LOADING",
    "ready": "READY",
    "draining": "UNLOADING",
    "failed": "UNAVAILABLE",
}


class ServedRepository:
    """Implements `gateway.ports.Repository` on the control plane."""

    def __init__(self, registry: Registry, catalog: Catalog, data_plane: DataPlane) -> None:
        """Answer from what is registered, what lies in the store and what is loaded here."""
        self._registry = registry
        self._catalog = catalog
        self._data_plane = data_plane

    async def index(self) -> list[RepositoryEntry]:
        """Every version that is known, served or not."""
        here = {(row.model, row.number): row for row in self._data_plane.report().versions}
        entries = []
        for model, number, fault in self._catalog.index():
            row = here.get((model, number))
            state = "UNAVAILABLE" if row is None else _STATES.get(row.state, "UNAVAILABLE")
            reason = fault or (row.reason if row is not None else "unloaded") or ""
            entries.append(RepositoryEntry(model, str(number), state, reason))
        return entries

    async def statistics(self, model: str | None, version: int | None) -> list[dict[str, Any]]:
        """Triton-shaped statistics of each loaded version, those of one model or of all."""
        await self._data_plane.refresh()
        return self._data_plane.statistics(model, version)

    async def load(self, model: str, number: int | None, actor: str) -> None:
        """Commit that a version (None: the highest) is kept warm; return once it is ready here."""
        await self._registry.load(model, number, Request(actor=actor, reason="repository load"))
        chosen = number or max(self._registry.snapshot.models[model].versions)
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while not self._is_ready(model, chosen):  # noqa: ASYNC110 - threads load it
                    await asyncio.sleep(LOOK_S)
        except TimeoutError as error:
            message = f"Version {chosen} of '{model}' is still loading; ask for its state later."
            raise NotReady(message) from error

    async def unload(self, model: str, number: int | None, actor: str) -> None:
        """Commit that a version is let go."""
        await self._registry.unload(model, number, Request(actor=actor, reason="repository unload"))

    def _is_ready(self, model: str, number: int) -> bool:
        for row in self._data_plane.report().versions:
            if (row.model, row.number) == (model, number):
                if row.state == "failed":
                    raise EngineFailed(row.reason or "The version cannot be loaded.")
                return row.state == "ready"
        return False
