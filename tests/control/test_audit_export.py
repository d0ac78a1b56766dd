"""The audit log at a collector: real OTLP over HTTP, decoded with the official messages."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from gateway.adapters.otel import OtelConfig, OtlpSender, SignalConfig
from gateway.adapters.redis import RedisAnnouncements, RedisStore
from gateway.control.audit_export import LISTENER, AuditExport, AuditExportParts
from gateway.control.export_parts import Clock
from gateway.control.registry import Registry
from gateway.core.audit import entry_hash
from gateway.governance_ports import AnnouncementStore
from gateway.serving.cells import Cells
from tests.announcing import Crier, note
from tests.fakes import CountingEntropy, ManualClock
from tests.otlp_receiver import Answer, Receiver, log_records, plain


@pytest.fixture
def clock() -> ManualClock:
    """Time that stands still."""
    return ManualClock(1_700_000_000.0)


@pytest.fixture
def registry(redis_store: RedisStore, clock: ManualClock) -> Registry:
    """Who commits."""
    return Registry(redis_store, now=clock, entropy=CountingEntropy())


@pytest.fixture
def collector() -> Iterator[Receiver]:
    """Who takes logs."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def crier(
    valkey_url: str, namespace: str, clock: ManualClock, collector: Receiver
) -> AsyncIterator[Crier]:
    """An announcer that exports, and has begun."""
    store = RedisAnnouncements(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    config = OtelConfig(logs=SignalConfig(f"{collector.url}/v1/logs", timeout_s=2.0))
    sender = OtlpSender(config, clock)
    crier = Crier(store, clock, export=exporting(sender, clock))
    await crier.tell()
    yield crier
    await sender.close()
    await crier.courier.close()
    await store.close()


def exporting(
    sender: OtlpSender, clock: ManualClock
) -> Callable[[AnnouncementStore, Cells], AuditExport]:
    """What makes the export under test."""

    def make(store: AnnouncementStore, cells: Cells) -> AuditExport:
        return AuditExport(
            AuditExportParts(
                store=store,
                sender=sender,
                clock=Clock(clock, lambda: int(clock() * 1e9), lambda: 0.5),
                cells=cells,
                resource=(("service.name", "tiltyard"),),
                leads=lambda: True,
            )
        )

    return make


def taken(collector: Receiver) -> list[LogRecord]:
    """Records of requests that were answered with 200."""
    good = [one for one in collector.received if one.answer.status == 200]
    return [record for one in good for record in log_records(one.message)]


def revisions(collector: Receiver) -> list[int]:
    """Of the entries that were taken."""
    return [plain(one.attributes)["tiltyard.audit.revision"] for one in taken(collector)]


async def test_an_entry_is_a_log_record(
    crier: Crier, registry: Registry, redis_store: RedisStore, collector: Receiver
) -> None:
    """With who, what and why, the digests and the hash; nothing of documents or evidence."""
    reason = "x\nadmin: promoted\x1b[2J" + "r" * 900
    await note(registry, "gate.put", reason=reason, evidence={"secret": "hush"})
    await crier.tell()
    (record,) = taken(collector)
    (entry,) = await redis_store.audit()
    attributes: dict[str, Any] = plain(record.attributes)
    assert record.event_name == "tiltyard.admin.audit"
    assert (record.severity_number, record.severity_text) == (9, "INFO")
    assert record.time_unix_nano == int(entry.at * 1e9)
    assert attributes["tiltyard.audit.hash"] == entry_hash(entry)
    assert attributes["tiltyard.audit.actor"] == "ana"
    assert attributes["tiltyard.audit.action"] == "gate.put"
    assert attributes["tiltyard.audit.target"] == "models/m"
    assert (attributes["tiltyard.audit.epoch"], attributes["tiltyard.audit.revision"]) == (1, 1)
    told = attributes["tiltyard.audit.reason"]
    assert told.startswith("x\\u000aadmin: promoted\\u001b[2J")
    assert len(told) < 600
    assert b"hush" not in record.SerializeToString()


@pytest.mark.parametrize(
    ("action", "evidence"),
    [("access.denied", None), ("model.promote", {"override": True, "missing": []})],
)
async def test_denials_and_overrides_are_warnings(
    crier: Crier, registry: Registry, collector: Receiver, action: str, evidence: object
) -> None:
    """So that an alert on severity finds them."""
    await note(registry, action, evidence=evidence)
    await crier.tell()
    (record,) = taken(collector)
    assert (record.severity_number, record.severity_text) == (13, "WARN")


async def test_a_collector_that_comes_back_gets_every_entry_in_order(
    crier: Crier, registry: Registry, collector: Receiver
) -> None:
    """Away, busy, or without a place for us: the audit log itself is the queue."""
    collector.stop()
    for _ in range(4):
        await note(registry, "gate.put")
    await crier.tell()
    collector.start()
    collector.script.extend([Answer(status=503, retry_after="30"), Answer(status=401)])
    await crier.tell(10.0)
    await crier.tell(10.0)
    assert len(collector.received) == 1
    await crier.tell(60.0)
    await crier.tell(60.0)
    assert revisions(collector) == [1, 2, 3, 4]
    assert crier.counted("tiltyard.audit.exported") == 4
    assert crier.counted("tiltyard.audit.dropped") == 0


async def test_one_entry_that_is_invalid_costs_itself(
    crier: Crier, registry: Registry, collector: Receiver
) -> None:
    """It is found by halves, counted, and the others arrive."""
    for _ in range(4):
        await note(registry, "gate.put")
    collector.script.extend([Answer(status=400)] * 3)
    await crier.tell()
    assert revisions(collector) == [2, 3, 4]
    assert crier.counted("tiltyard.audit.exported") == 3
    assert crier.counted("tiltyard.audit.dropped") == 1


async def test_what_a_collector_rejects_is_counted(
    crier: Crier, registry: Registry, collector: Receiver
) -> None:
    """A partial success is not a whole one."""
    for _ in range(3):
        await note(registry, "gate.put")
    collector.script.append(Answer(rejected=2))
    await crier.tell()
    assert crier.counted("tiltyard.audit.exported") == 1
    assert crier.counted("tiltyard.audit.dropped") == 2


async def test_the_next_leader_goes_on_behind_the_cursor(
    crier: Crier, registry: Registry, collector: Receiver, clock: ManualClock
) -> None:
    """Nothing is left out and nothing is sent twice in an orderly change."""
    await note(registry, "gate.put")
    await crier.tell()
    crier.standing.leads = False
    await note(registry, "gate.put")
    await crier.tell()
    config = OtelConfig(logs=SignalConfig(f"{collector.url}/v1/logs", timeout_s=2.0))
    sender = OtlpSender(config, clock)
    successor = Crier(crier.store, clock, crier.courier, exporting(sender, clock))
    await successor.tell()
    await sender.close()
    assert revisions(collector) == [1, 2]
    assert (await crier.store.overview()).progress[LISTENER].cursor == "1-2"
