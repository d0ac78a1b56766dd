"""A registry with people and gates, for tests."""

from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.control.gates import Gates
from gateway.control.registry import Edit, Registry, Request
from gateway.control.wishes import Wishes
from gateway.core.gates import Gate
from gateway.core.principals import Grant, PrincipalDocument, Role
from gateway.core.snapshot import Snapshot
from gateway.core.tallies import Evidence
from gateway.ports import Store
from tests.fakes import CountingEntropy, ManualClock, manifest_of

ONE_APPROVAL: dict[str, Any] = {"approvals": [{}]}
FROZEN = [{"name": "now", "starts": "1970-01-01T00:00:00Z", "ends": "1970-01-01T01:00:00Z"}]
PEOPLE = {
    "ana": (Role.DEPLOYER, Role.APPROVER),
    "ben": (Role.APPROVER,),
    "cyd": (Role.APPROVER,),
    "dan": (Role.DEPLOYER,),
    "eva": (Role.DEPLOYER, Role.EMERGENCY),
}


def gate_of(**fields: Any) -> Gate:
    """A gate on model m."""
    return msgspec.convert({"schema": 1, "models": ["m"], **fields}, Gate)


class Office:
    """A registry with what governs it, and people."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = ManualClock(1_000.0)
        self.evidence: dict[str, Evidence] = {}
        self.registry = Registry(
            store, now=self.clock, entropy=CountingEntropy(), evidence_of=self.evidence_of
        )
        self.gates = Gates(self.registry, self.clock)
        self.wishes = Wishes(self.registry, self.clock)

    async def evidence_of(self, ids: Any) -> dict[str, Evidence]:
        return {one: self.evidence[one] for one in ids if one in self.evidence}

    async def open(self, gate: Gate | None = None, versions: int = 3) -> "Office":
        """Versions of model m, the first its champion; people; and a gate."""
        await self.people(PEOPLE)
        for number in range(1, versions + 1):
            await self.arrive(number)
        await self.registry.promote("m", 1, Request(actor="admin"))
        if gate is not None:
            await self.gates.put("g", gate, Request(actor="admin"))
        return self

    async def arrive(self, number: int) -> None:
        """A version that the model store brings."""
        manifest = await self.store.put_manifest(manifest_of("m", number))
        await self.registry.register(manifest, Request(actor="model-store"))

    async def people(self, roles: dict[str, tuple[Role, ...]], *, disabled: str = "") -> None:
        """Make these, and nobody else, the principals."""
        known = {
            name: PrincipalDocument(
                schema=1,
                grants=tuple(Grant(role) for role in held),
                disabled=name == disabled,
            )
            for name, held in roles.items()
        }

        async def make(base: Snapshot) -> Snapshot:
            return replace(base, principals=known)

        await self.registry.commit(Edit("principal.put", "principals/x", make), Request("admin"))

    async def approve(self, number: int, *names: str) -> None:
        """Have these approve a version."""
        for name in names:
            await self.gates.approve("m", number, Request(actor=name, reason="looks good"))

    @property
    def champion(self) -> int:
        """The version that the champion's alias names."""
        return self.registry.snapshot.models["m"].aliases["champion"]
