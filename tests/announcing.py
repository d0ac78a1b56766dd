"""What tests of announcing share: the port's fake, audit entries, and a whole announcer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.adapters.courier import CourierRules, HttpCourier
from gateway.control.announcing import Announcer, AnnouncerParts
from gateway.control.audit_export import AuditExport
from gateway.control.delivering import DeliveryParts
from gateway.control.registry import Edit, Registry, Request
from gateway.control.status import Standing
from gateway.core.announcements import Aliases
from gateway.core.audit import AuditEntry, Moved
from gateway.core.errors import StoreUnavailable
from gateway.core.snapshot import Snapshot
from gateway.core.webhooks import DeadLetter, Posted, Progress, Webhook
from gateway.governance_ports import AlarmEdge, AnnouncementStore, Courier, Overview
from gateway.serving.cells import Cells
from tests.fakes import ManualClock

LOCAL = CourierRules(allow_http=True, allow_hosts=("127.0.0.0/8",), timeout_s=2.0)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def entry_of(action: str, target: str = "models/m", **fields: Any) -> AuditEntry:
    """An audit entry as it would be read from the log."""
    stated: dict[str, Any] = {
        "schema": 1,
        "epoch": 1,
        "revision": 42,
        "at": 1_700_000_000.25,
        "actor": "ana",
        "action": action,
        "target": target,
        "reason": "because",
        "before": "b" * 64,
        "after": "a" * 64,
        "document": {},
        "previous": "p" * 64,
    }
    return AuditEntry(**{**stated, **fields})


def review_moved(number: int, checks: Mapping[str, str], model: str = "m") -> Moved:
    """A Review with checks of these outcomes, as an entry holds it."""
    document = {
        "digest": "d" * 64,
        "checks": {one: {"outcome": how} for one, how in checks.items()},
    }
    return Moved(f"reviews/{model}/{number}", "", "r" * 64, document)


async def note(registry: Registry, action: str, **given: Any) -> None:
    """Commit an entry that changes nothing."""

    async def make(base: Snapshot) -> Snapshot:
        return base

    target = given.pop("target", "models/m")
    edit = Edit(action, target, make, given.pop("evidence", None), noted=True)
    await registry.commit(edit, Request(actor="ana", **given))


class MemoryAnnouncements:
    """The `AnnouncementStore` port in memory, without an audit log behind it."""

    def __init__(self) -> None:
        self.away = False
        self.webhooks: dict[str, Webhook | None] = {}
        self.progress: dict[str, Progress] = {}
        self.letters: dict[str, dict[str, DeadLetter]] = {}

    async def overview(self) -> Overview:
        if self.away:
            raise StoreUnavailable("The store cannot be reached.")
        return Overview("1-7", "0-0", dict(self.webhooks), dict(self.progress))

    async def entries(self, after: str, limit: int) -> list[tuple[str, AuditEntry | None]]:
        return []

    async def aliases_before(self, before: str, target: str, digest: str) -> Aliases | None:
        return None

    async def alerts(self, after: str, limit: int) -> list[tuple[str, bytes]]:
        return []

    async def save_progress(self, listener: str, progress: Progress) -> None:
        self.progress[listener] = progress

    async def bury(self, webhook: str, letter: DeadLetter, progress: Progress) -> None:
        kept = self.letters.setdefault(webhook, {})
        kept[f"{len(kept) + 1}-0"] = letter
        self.progress[f"webhook:{webhook}"] = progress

    async def put_webhook(self, name: str, webhook: Webhook, progress: Progress | None) -> None:
        self.webhooks[name] = webhook
        if progress is not None:
            self.progress[f"webhook:{name}"] = progress

    async def drop_webhook(self, name: str) -> None:
        self.webhooks.pop(name, None)
        self.progress.pop(f"webhook:{name}", None)
        self.letters.pop(name, None)

    async def dead_letters(self, webhook: str, limit: int) -> list[tuple[str, DeadLetter]]:
        return list(self.letters.get(webhook, {}).items())[:limit]

    async def count_dead_letters(self, webhooks: Sequence[str]) -> Mapping[str, int]:
        return {name: len(self.letters.get(name, {})) for name in webhooks}

    async def drop_dead_letter(self, webhook: str, letter_id: str) -> None:
        self.letters[webhook].pop(letter_id, None)

    async def alarms(self) -> Mapping[str, float]:
        return {}

    async def tell_alarms(self, edges: Sequence[AlarmEdge]) -> None:
        return

    async def close(self) -> None:
        return


class FakeCourier:
    """The `Courier` port: keeps what it is given, and says what it is told to."""

    def __init__(self) -> None:
        self.carried: list[tuple[str, dict[str, str], bytes]] = []
        self.posted = Posted(status=204)
        self.forbidden: Exception | None = None

    def check(self, url: str) -> None:
        if self.forbidden is not None:
            raise self.forbidden

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Posted:
        self.carried.append((url, dict(headers), body))
        return self.posted

    async def close(self) -> None:
        return


class Crier:
    """An announcer with everything behind it within a test's reach."""

    def __init__(
        self,
        store: AnnouncementStore,
        clock: ManualClock,
        courier: Courier | None = None,
        export: Callable[[AnnouncementStore, Cells], AuditExport] | None = None,
    ) -> None:
        self.store = store
        self.clock = clock
        self.cells = Cells()
        self.standing = Standing(process="one", leads=True)
        self.courier = courier or HttpCourier(LOCAL, clock)
        self.others: dict[str, dict[str, str]] = {}
        delivery = DeliveryParts(
            store=store,
            courier=self.courier,
            standing=self.standing,
            cells=self.cells,
            now=clock,
            draw=lambda: 0.5,
            give_up_s=86_400.0,
        )
        self.announcer = Announcer(
            AnnouncerParts(
                store=store,
                delivery=delivery,
                export=None if export is None else export(store, self.cells),
                alarms=self.alarms,
                standing=self.standing,
                namespace="tiltyard",
                now=clock,
            )
        )

    async def alarms(self) -> Mapping[str, Mapping[str, str]]:
        """Those of this process and of others."""
        return {**self.others, "one": dict(self.standing.alarms)}

    async def tell(self, after_s: float = 0.0) -> None:
        """Let time go by, and tell everybody what there is now."""
        self.clock.at += after_s
        await self.announcer.tick()
        await self.announcer.settled()

    async def subscribe(self, name: str, url: str, *types: str) -> Webhook:
        """Put a webhook that hears of what comes from now on."""
        overview = await self.store.overview()
        webhook = Webhook(url, types or ("*",), SECRET, self.clock(), "ana")
        progress = Progress(cursor=overview.newest, alerts=overview.newest_alert)
        await self.store.put_webhook(name, webhook, progress)
        return webhook

    async def progress(self, name: str) -> Progress:
        """How far a webhook is."""
        return (await self.store.overview()).progress[f"webhook:{name}"]

    def counted(self, name: str) -> float:
        """The sum over an instrument's series."""
        return sum(one.value for one in self.cells.collect() if one.instrument.name == name)
