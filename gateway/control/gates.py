"""Gates and approvals as commits, and what putting a gate would mean for what serves now."""

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from gateway.control.conditions import etag_of
from gateway.control.registry import Change, Edit, Registry, Request
from gateway.core import governing
from gateway.core.errors import Missing
from gateway.core.gates import Gate
from gateway.core.gating import missing_of
from gateway.core.patterns import matches_any
from gateway.core.reviews import Approval, review_name
from gateway.core.snapshot import Snapshot


class Standing(Struct, frozen=True):
    """A version that an alias names, and what it would miss if it were promoted now."""

    model: str
    alias: str
    version: int
    missing: tuple[Missing, ...]


class GatePreview(Struct, frozen=True):
    """What putting a gate would do. What serves already goes on, though it be among `failing`."""

    name: str
    revision: int
    etag: str | None
    changes: bool
    models: tuple[str, ...]
    failing: tuple[Standing, ...]


class Gates:
    """Commits changes of gates, and approvals of versions."""

    __slots__ = ("_now", "_registry")

    def __init__(self, registry: Registry, now: Callable[[], float]) -> None:
        """On a registry; `now` is in UTC seconds."""
        self._registry = registry
        self._now = now

    async def put(self, name: str, gate: Gate, request: Request) -> Change:
        """Add a gate, or replace it whole.

        Raises:
            InvalidRequest: it contradicts itself.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return governing.put_gate(base, name, gate)

        return await self._registry.commit(Edit("gate.put", f"gates/{name}", make), request)

    async def preview(self, name: str, gate: Gate) -> GatePreview:
        """Say which models a gate would mean, and which of their versions would not pass.

        Raises:
            InvalidRequest: it contradicts itself.
        """
        base = await self._registry.fresh()
        changed = governing.put_gate(base, name, gate)
        alone = replace(changed, gates={name: gate})
        meant = tuple(model for model in sorted(base.models) if matches_any(gate.models, model))
        failing = []
        for model in meant:
            for alias, number in sorted(base.models[model].aliases.items()):
                key = (model, number)
                found = await self._registry.gatekeeper.findings(alone, key, alias, "")
                if missing := missing_of(found):
                    failing.append(Standing(model, alias, number, missing))
        return GatePreview(
            name=name,
            revision=base.revision,
            etag=etag_of(base, f"gates/{name}"),
            changes=changed != base,
            models=meant,
            failing=tuple(failing),
        )

    async def delete(self, name: str, request: Request) -> Change:
        """Drop a gate.

        Raises:
            NotFound: there is none of that name.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return governing.delete_gate(base, name)

        return await self._registry.commit(Edit("gate.delete", f"gates/{name}", make), request)

    async def approve(self, model: str, number: int, request: Request) -> Change:
        """Stand for a version, with the roles held for its model now.

        Raises:
            NotFound: no such model or version.
            Forbidden: who asks registered it.
            Conflict: `if_match` does not hold.
        """
        mine = Approval(
            principal=request.actor,
            roles=(),
            at=self._now(),
            reason=request.reason,
            groups=request.groups,
        )

        async def make(base: Snapshot) -> Snapshot:
            return governing.approve(base, (model, number), mine)

        target = f"reviews/{review_name(model, number)}"
        return await self._registry.commit(Edit("model.approve", target, make), request)

    async def unapprove(self, model: str, number: int, request: Request) -> Change:
        """Take one's approval back; what serves goes on.

        Raises:
            NotFound: no such model or version, or no approval by who asks.
            Conflict: `if_match` does not hold.
        """

        async def make(base: Snapshot) -> Snapshot:
            return governing.unapprove(base, (model, number), request.actor)

        target = f"reviews/{review_name(model, number)}"
        return await self._registry.commit(Edit("model.unapprove", target, make), request)
