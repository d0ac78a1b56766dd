"""The contract of the GovernanceStore port: on the real server, and on the fake that others use."""

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.adapters.redis import RedisGovernance
from gateway.adapters.redis_keys import keys_of
from gateway.core.errors import StoreUnavailable
from gateway.core.inspections import Inspection, InspectionOrder
from gateway.governance_ports import GovernanceStore
from tests.fakes import FakeInspector, MemoryGovernance, manifest_of


@pytest.fixture(params=["redis", "memory"])
async def governance(
    request: pytest.FixtureRequest, valkey_url: str, namespace: str
) -> AsyncIterator[GovernanceStore]:
    """Empty."""
    store: GovernanceStore = MemoryGovernance()
    if request.param == "redis":
        store = RedisGovernance(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


async def report_of(model: str, number: int) -> Inspection:
    """A report with every check."""
    manifest = manifest_of(model, number)
    order = InspectionOrder(model, number, manifest.digest, "", manifest.files)
    return await FakeInspector().inspect(order)


async def test_reports_come_back_as_they_were(governance: GovernanceStore) -> None:
    """By version, and by model; what was never inspected has none."""
    reports = [await report_of(*which) for which in [("m", 10), ("m", 2), ("m.1", 1)]]
    for report in reports:
        await governance.put_inspection(report)
    assert await governance.inspection("m", 10) == reports[0]
    assert await governance.inspection("m", 1) is None
    assert await governance.inspections("m") == {2: reports[1], 10: reports[0]}
    assert list(await governance.inspections("m")) == [2, 10]
    assert await governance.inspections("other") == {}


async def test_a_newer_report_takes_the_place(governance: GovernanceStore) -> None:
    """One for each version."""
    report = await report_of("m", 1)
    await governance.put_inspection(report)
    await governance.put_inspection(replace(report, at=2.0))
    assert await governance.inspection("m", 1) == replace(report, at=2.0)


async def test_dropped_reports_are_gone(governance: GovernanceStore) -> None:
    """Those that were named, and dropping what is not there does nothing."""
    for number in (1, 2):
        await governance.put_inspection(await report_of("m", number))
    await governance.drop_inspections("m", [1, 7])
    await governance.drop_inspections("m", [])
    assert list(await governance.inspections("m")) == [2]


async def test_a_report_that_cannot_be_read_is_told(valkey_url: str, namespace: str) -> None:
    """Not passed over: a gate would take it for a version that nobody inspected."""
    store = RedisGovernance(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    client: Redis = Redis.from_url(valkey_url)
    await client.hset(keys_of(namespace).inspections, "m:1", "{")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await store.inspection("m", 1)
    await client.aclose()
    await store.close()


async def test_a_store_that_is_away_is_told() -> None:
    """And nothing hangs."""
    away = RedisGovernance("redis://127.0.0.1:1", namespace="test", timeout_s=0.2, name="test")
    with pytest.raises(StoreUnavailable):
        await away.put_inspection(await report_of("m", 1))
    await away.close()
