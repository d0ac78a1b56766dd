"""Letting versions go, as commits on a store that others write to."""

import pytest
from msgspec.structs import replace

from gateway.control.registry import Edit, Registry
from gateway.control.retention import Retainer, RetentionParts
from gateway.control.status import Standing
from gateway.core.errors import Conflict
from gateway.core.inspections import InspectionOrder
from gateway.core.retention import DAY_S
from gateway.core.retentions import Retention
from gateway.core.reviews import Review
from gateway.core.snapshot import Snapshot
from tests.control.building import ASKED, register
from tests.fakes import FakeFiles, FakeInspector, ManualClock, MemoryGovernance, MemoryStore

POLICY = Retention(schema=1, models=("m",), keep=1, min_age_days=1.0, ledger_days=10.0)


@pytest.fixture
def reports() -> MemoryGovernance:
    """Reports of inspections."""
    return MemoryGovernance()


@pytest.fixture
def files() -> FakeFiles:
    """What was deleted."""
    return FakeFiles()


@pytest.fixture
def retainer(
    registry: Registry,
    store: MemoryStore,
    clock: ManualClock,
    files: FakeFiles,
    reports: MemoryGovernance,
) -> Retainer:
    """On the registry, leading."""
    return Retainer(
        RetentionParts(
            registry=registry,
            store=store,
            reports=reports,
            files=files,
            standing=Standing("here", leads=True),
            served=lambda: registry.snapshot,
            now=clock,
        )
    )


async def keep(registry: Registry, policy: Retention = POLICY) -> None:
    """Put a document of retention, and reviews that say when the versions came."""

    async def make(base: Snapshot) -> Snapshot:
        reviews = {
            f"m/{number}": Review(digest, registered_by="ana", registered_at=0.0)
            for number, digest in base.models["m"].versions.items()
        }
        return replace(base, retentions={"p": policy}, reviews=reviews)

    await registry.commit(Edit("retention.put", "retentions/p", make), ASKED)


async def test_what_may_go_goes_in_one_commit_and_then_its_files(
    *,
    registry: Registry,
    store: MemoryStore,
    clock: ManualClock,
    retainer: Retainer,
    files: FakeFiles,
    reports: MemoryGovernance,
) -> None:
    """The entry says which digests went; files are deleted only because the document says so."""
    await register(registry, store, 1, 2, 3, 4)
    await keep(registry, replace(POLICY, delete_files=True))
    for number in (1, 2, 3, 4):
        order = InspectionOrder("m", number, f"{number:064x}", folder="", files=())
        await reports.put_inspection(await FakeInspector().inspect(order))
    clock.at = 50 * DAY_S
    digests = registry.snapshot.models["m"].versions
    collected = await retainer.collect(ASKED)
    assert [one.number for one in collected.gone] == [2, 3]
    assert sorted(registry.snapshot.models["m"].versions) == [1, 4]
    entry = store.entries[-1]
    assert (entry.action, entry.target) == ("model.retire", "models/m")
    assert entry.evidence == {"retired": {str(n): digests[n] for n in (2, 3)}}
    assert files.removed == [("m", n, digests[n]) for n in (2, 3)]
    assert sorted(await reports.inspections("m")) == [1, 4]


async def test_without_leave_the_files_stay(
    registry: Registry, store: MemoryStore, clock: ManualClock, retainer: Retainer, files: FakeFiles
) -> None:
    """By default a version is let go of, and its files lie where they lay."""
    await register(registry, store, 1, 2, 3)
    await keep(registry)
    clock.at = 50 * DAY_S
    await retainer.collect(ASKED)
    assert registry.snapshot.models["m"].retired.keys() == {2}
    assert files.removed == []


async def test_looking_changes_nothing(
    registry: Registry, store: MemoryStore, clock: ManualClock, retainer: Retainer, files: FakeFiles
) -> None:
    """A dry run says what would go and what holds the rest."""
    await register(registry, store, 1, 2, 3)
    await keep(registry)
    clock.at = 50 * DAY_S
    before = registry.snapshot
    looked = await retainer.look()
    assert {one.number: one.held_by is None for one in looked.standings} == {
        1: False,
        2: True,
        3: False,
    }
    assert registry.snapshot == before
    assert files.removed == []


async def test_a_young_promotion_holds_both_of_its_versions(
    registry: Registry, store: MemoryStore, clock: ManualClock, retainer: Retainer
) -> None:
    """Two promotions later nothing but the log names the first version; then its time is over."""
    await register(registry, store, 1, 2, 3, 4)
    await keep(registry)
    clock.at = 50 * DAY_S
    await registry.promote("m", 2, ASKED)
    await registry.promote("m", 3, ASKED)
    clock.at = 59 * DAY_S
    assert (await retainer.look()).gone == ()
    clock.at = 60 * DAY_S
    assert [one.number for one in (await retainer.look()).gone] == [1]


async def test_one_that_is_promoted_meanwhile_stays(
    registry: Registry, store: MemoryStore, clock: ManualClock, retainer: Retainer
) -> None:
    """The commit asks again: between look and commit another host promoted it."""
    await register(registry, store, 1, 2, 3)
    await keep(registry)
    clock.at = 50 * DAY_S
    other = Registry(store, now=clock, entropy=bytes)
    committing, store.commit = store.commit, None  # type: ignore[assignment, method-assign]

    async def commit(*args: object) -> None:
        store.commit = committing  # type: ignore[method-assign]
        await other.promote("m", 2, ASKED)
        await committing(*args)  # type: ignore[arg-type]

    store.commit = commit  # type: ignore[assignment, method-assign]
    with pytest.raises(Conflict, match="served"):
        await retainer.collect(ASKED)
    assert 2 in registry.snapshot.models["m"].versions


async def test_only_the_leader_lets_go_and_every_host_sweeps(
    registry: Registry, store: MemoryStore, clock: ManualClock, retainer: Retainer, files: FakeFiles
) -> None:
    """Copies of what is registered are known; the rest is old after an hour."""
    await register(registry, store, 1, 2, 3)
    await keep(registry)
    clock.at = 50 * DAY_S
    retainer._parts.standing.leads = False
    await retainer.tick()
    versions = registry.snapshot.models["m"].versions
    assert sorted(versions) == [1, 2, 3]
    assert files.swept == [(frozenset(versions.values()), 50 * DAY_S - 3600)]
    retainer._parts.standing.leads = True
    await retainer.tick()
    assert sorted(registry.snapshot.models["m"].versions) == [1, 3]


async def test_what_an_archive_may_name_is_held(
    registry: Registry, store: MemoryStore, clock: ManualClock, retainer: Retainer
) -> None:
    """Of a log that begins later than ledger_days ago nobody knows what it named before."""
    await register(registry, store, 1, 2, 3, 4)
    await keep(registry)
    clock.at = 50 * DAY_S
    await registry.promote("m", 2, ASKED)
    await registry.promote("m", 3, ASKED)
    clock.at = 55 * DAY_S
    await registry.load("m", 4, ASKED)
    del store.entries[:-1]
    clock.at = 64 * DAY_S
    looked = await retainer.look()
    assert looked.gone == ()
    assert "holds no 10 days of the audit log" in str(looked.standings[0].held_by)
    clock.at = 65 * DAY_S
    assert [one.number for one in (await retainer.look()).gone] == [1]
    store.entries.clear()
    retainer = Retainer(retainer._parts)
    assert (await retainer.look()).gone == ()
