"""Telling: the announcer and the webhooks, put together for governance."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.control.announcing import Announcer, AnnouncerParts
from gateway.control.audit_export import AuditExport, AuditExportParts
from gateway.control.delivering import DeliveryParts
from gateway.control.export_parts import Clock, Sender
from gateway.control.registry import Registry
from gateway.control.status import Standing, read_acknowledgements
from gateway.control.webhooks import WebhookParts, Webhooks
from gateway.governance_ports import AnnouncementStore, Courier
from gateway.ports import Store
from gateway.serving.cells import Cells
from gateway.tasks import Tasks
from gateway.telemetry import Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class TellingParts:
    """What telling others of the audit log needs of the world.

    `sender` is the way to the collector, None where logs are not exported; `resource` is who
    speaks. Events that are older than `give_up_s` are given up.
    """

    store: AnnouncementStore
    courier: Courier
    sender: Sender | None
    clock: Clock
    resource: Attributes
    namespace: str
    give_up_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TellingPlace:
    """What it needs of the control plane. `now` is in UTC seconds, `entropy` gives random bytes."""

    registry: Registry
    store: Store
    standing: Standing
    cells: Cells
    now: Callable[[], float]
    entropy: Callable[[int], bytes]


class Telling:
    """Requires: `start` with the control plane's tasks, `close` when they are over."""

    __slots__ = ("_announcer", "_parts", "_place", "webhooks")

    def __init__(self, parts: TellingParts, place: TellingPlace) -> None:
        """Put the parts together; nothing runs yet."""
        self._parts = parts
        self._place = place
        self.webhooks = Webhooks(
            WebhookParts(
                store=parts.store,
                courier=parts.courier,
                registry=place.registry,
                namespace=parts.namespace,
                now=place.now,
                entropy=place.entropy,
            )
        )
        self._announcer = Announcer(
            AnnouncerParts(
                store=parts.store,
                delivery=DeliveryParts(
                    store=parts.store,
                    courier=parts.courier,
                    standing=place.standing,
                    cells=place.cells,
                    now=place.now,
                    draw=parts.clock.draw,
                    give_up_s=parts.give_up_s,
                ),
                export=self._export(),
                alarms=self._alarms,
                standing=place.standing,
                namespace=parts.namespace,
                now=place.now,
            )
        )

    def start(self, tasks: Tasks) -> None:
        """Begin the loop."""
        tasks.start("announcer", self._announcer.run)

    async def close(self) -> None:
        """Close every connection."""
        await self._parts.courier.close()
        if self._parts.sender is not None:
            await self._parts.sender.close()
        await self._parts.store.close()

    def _export(self) -> AuditExport | None:
        parts, place = self._parts, self._place
        if parts.sender is None:
            return None
        return AuditExport(
            AuditExportParts(
                store=parts.store,
                sender=parts.sender,
                clock=parts.clock,
                cells=place.cells,
                resource=parts.resource,
                leads=lambda: place.standing.leads,
            )
        )

    async def _alarms(self) -> dict[str, dict[str, str]]:
        """The alarms of every process that is known, by name."""
        others = read_acknowledgements(await self._place.store.acknowledgements())
        own = self._place.standing
        return {ack.process: ack.alarms for ack in others} | {own.process: dict(own.alarms)}
