"""Restoring on a real server: what hosts serve comes back, and what was lost is told."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.adapters.disk import StateFolder
from gateway.adapters.folder import FolderStore
from gateway.adapters.redis import RedisAuditLog, RedisStore
from gateway.adapters.redis_keys import keys_of
from gateway.control.auditing import Auditing, AuditingParts, AuditPlace
from gateway.control.catalog import Catalog
from gateway.control.keyring import Keyring
from gateway.control.reception import Reception, ReceptionParts
from gateway.control.registry import Edit, Registry, Request
from gateway.control.restoring import Restored, Restoring, RestoringParts
from gateway.control.status import Acknowledgement
from gateway.control.watcher import DATA_LOSS, Watcher, WatcherParts
from gateway.core.chain import Chain, Gap, begin
from gateway.core.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from gateway.core.gates import Gate
from gateway.core.snapshot import Snapshot, decode, encode
from tests.chains import facts
from tests.control.building import describe, put
from tests.fakes import CountingEntropy, FakeDataPlane, ManualClock, MemoryGovernance

LOST = Request(actor="ana", reason="somebody flushed it")


class Host:
    """The control plane's parts of one host, on a real server and its own state folder."""

    def __init__(self, url: str, namespace: str, folder: Path, root: Path, name: str) -> None:
        self.clock = ManualClock()
        self.store = RedisStore(url, namespace=namespace, timeout_s=2.0, name=name)
        self.log = RedisAuditLog(url, namespace=namespace, timeout_s=2.0, name=name)
        self.disk = StateFolder(folder, entropy=os.urandom, admin_token="admin")
        models = FolderStore(root, folder / "cache", describe=describe, now=self.clock)
        self.registry = Registry(self.store, now=self.clock, entropy=CountingEntropy())
        data_plane = FakeDataPlane()
        reception = Reception(
            ReceptionParts(
                store=self.store,
                governance=MemoryGovernance(),
                inspector=None,
                models=models,
                registry=self.registry,
                data_plane=data_plane,
                now=self.clock,
            )
        )
        self.catalog = Catalog(self.store, models, self.registry, reception)
        self.keyring = Keyring(self.store, self.disk, data_plane, os.urandom)
        self.watcher = Watcher(
            WatcherParts(
                store=self.store,
                disk=self.disk,
                data_plane=data_plane,
                registry=self.registry,
                catalog=self.catalog,
                keyring=self.keyring,
                now=self.clock,
                entropy=os.urandom,
            ),
            process=name,
            poll_s=0.1,
        )
        self.restoring = Restoring(
            RestoringParts(
                log=self.log,
                store=self.store,
                registry=self.registry,
                catalog=self.catalog,
                keyring=self.keyring,
                standing=self.watcher.standing,
                served=lambda: self.watcher.snapshot,
                now=self.clock,
            )
        )
        self.auditing = Auditing(
            AuditingParts(
                place=AuditPlace(log=self.log, namespace=namespace, keep_s=0.0),
                registry=self.registry,
                key=lambda: bytes(32),
                now=self.clock,
            )
        )

    async def begin(self) -> "Host":
        """Serve what was served last, then what the model store and the store hold."""
        await self.watcher.start()
        await self.watcher.tick()
        if self.watcher.snapshot.revision == 0:
            await self.catalog.scan()
        await self.watcher.tick()
        return self

    async def look(self) -> None:
        """Look at the store, secrets included."""
        self.clock.at += 60.0
        await self.watcher.tick()

    async def restore(self, *, dry_run: bool = False) -> Restored:
        """For the usual reason."""
        return await self.restoring.restore(LOST, dry_run=dry_run)

    async def verify(self) -> Chain:
        """Look at the whole log."""
        head = await self.auditing.head()
        chain = begin(head)
        async for line in self.auditing.past.lines(chain.revision):
            chain.add(line)
        chain.finish(head)
        return chain

    async def close(self) -> None:
        """Hang up."""
        await self.log.close()
        await self.store.close()


class Stage:
    """Two hosts on one server, and a client that knows no rules."""

    def __init__(self, url: str, namespace: str, folder: Path) -> None:
        self._place = (url, namespace, folder)
        self.root = folder / "models"
        for number in (1, 2):
            put(self.root, number)
        self.redis: Any = Redis.from_url(url)
        self.keys = keys_of(namespace)
        self.hosts: list[Host] = []

    async def host(self, name: str) -> Host:
        """A host of this name on its own folder, which may be there already."""
        url, namespace, folder = self._place
        host = Host(url, namespace, folder / name, self.root, name)
        self.hosts.append(host)
        return await host.begin()

    async def flush(self) -> None:
        """Delete every key of the namespace."""
        for key in await self.redis.keys(f"{self.keys.audit.partition(':')[0]}:*"):
            await self.redis.delete(key)

    async def close(self) -> None:
        """Hang up."""
        for host in self.hosts:
            await host.close()
        await self.redis.aclose()


@pytest.fixture
async def stage(valkey_url: str, namespace: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage without hosts."""
    stage = Stage(valkey_url, namespace, tmp_path)
    yield stage
    await stage.close()


async def govern(host: Host) -> None:
    """Write a gate, so that there is something that no worker is told of."""

    async def make(base: Snapshot) -> Snapshot:
        return replace(base, gates={"all": Gate(schema=1, models=("*",))})

    await host.registry.commit(Edit("gate.put", "gates/all", make), Request(actor="ana"))
    await host.look()


async def test_an_emptied_store_gets_everything_back(stage: Stage) -> None:
    """Documents and those of governance, manifests and keys, under a new epoch; writes work."""
    one = await stage.host("one")
    await govern(one)
    served, keys = one.watcher.snapshot, one.keyring.keys
    manifests = await stage.redis.hgetall(stage.keys.manifests)
    await stage.flush()
    await one.look()
    assert DATA_LOSS in one.watcher.standing.alarms
    with pytest.raises(StoreUnavailable):
        await one.registry.promote("m", 1, LOST)
    done = await one.restore()
    await one.look()

    assert one.watcher.standing.alarms == {}
    now = one.watcher.snapshot
    assert (now.epoch, now.revision) == (served.epoch + 1, served.revision + 1)
    assert (done.done, done.revision, done.lost_revisions) == (True, now.revision, (1, 3))
    assert replace(now, epoch=1, revision=3, audit_head=served.audit_head) == served
    assert now.gates
    assert await stage.redis.hgetall(stage.keys.manifests) == manifests
    assert one.keyring.keys == keys
    assert msgspec.json.decode(await stage.redis.get(stage.keys.signing_keys))["current"]
    change = await one.registry.promote("m", 1, LOST)
    assert change.revision == now.revision + 1


async def test_the_chain_says_what_was_lost_and_holds(stage: Stage) -> None:
    """Its first entry is the restore; earlier revisions are refused, later ones told."""
    one = await stage.host("one")
    head = one.watcher.snapshot.audit_head
    await stage.flush()
    await one.restore()
    await one.look()
    await one.registry.promote("m", 1, LOST)

    chain = await one.verify()
    assert (chain.faults, chain.gaps, chain.entries) == ([], [Gap(1, 2, 3)], 2)
    entry = (await one.store.audit())[0]
    assert (entry.action, entry.actor, entry.reason) == ("store.restore", "ana", LOST.reason)
    assert (entry.epoch, entry.revision, entry.previous) == (2, 3, head)
    assert entry.evidence["process"] == "one"
    assert (entry.evidence["revision"], entry.evidence["audit_head"]) == (2, head)
    for revision in (2, 3, 4):
        past = await one.auditing.past.snapshot_at(revision)
        assert sorted(past.models["m"].versions) == [1, 2]
    with pytest.raises(NotFound):
        await one.auditing.past.snapshot_at(1)


async def test_other_hosts_follow_the_new_epoch(stage: Stage) -> None:
    """By themselves, and their alarm goes away."""
    one, other = await stage.host("one"), await stage.host("other")
    await stage.flush()
    await other.look()
    assert DATA_LOSS in other.watcher.standing.alarms
    await one.restore()
    await other.look()
    assert other.watcher.standing.alarms == {}
    assert other.watcher.snapshot.epoch == 2


async def test_an_older_copy_of_the_store_is_brought_forward(stage: Stage) -> None:
    """What it still has of the log stays, and what it lacks is a gap."""
    one = await stage.host("one")
    old = {
        key: await stage.redis.dump(key)
        for key in (stage.keys.snapshot, stage.keys.audit, stage.keys.manifests)
    }
    old_keys = await stage.redis.get(stage.keys.signing_keys)
    await govern(one)
    await stage.flush()
    for key, content in old.items():
        await stage.redis.restore(key, 0, content)
    await stage.redis.set(stage.keys.signing_keys, old_keys)
    await one.look()
    assert "went back to revision 2" in one.watcher.standing.alarms[DATA_LOSS]
    done = await one.restore()
    assert (done.store, done.lost_revisions) == ("revision 2 of epoch 1", (3, 3))
    await one.look()
    chain = await one.verify()
    assert (chain.faults, chain.gaps) == ([], [Gap(3, 3, 4)])
    assert sorted((await one.auditing.past.snapshot_at(1)).models["m"].versions) == [2]
    assert (await one.auditing.past.snapshot_at(4)).gates


async def test_keys_of_an_older_store_do_not_take_the_place_of_those_that_sign(
    stage: Stage,
) -> None:
    """Ids that were signed since stay good over a restore."""
    one = await stage.host("one")
    snapshot, keys = await stage.redis.get(stage.keys.snapshot), one.keyring.keys
    assert keys is not None
    await govern(one)
    older = replace(keys, current=9, keys={9: "09" * 32})
    await stage.redis.set(stage.keys.snapshot, snapshot)
    await stage.redis.set(stage.keys.signing_keys, msgspec.json.encode(older))
    await one.look()
    assert one.keyring.keys == keys
    await one.restore()
    await one.look()
    assert one.keyring.keys is not None
    assert one.keyring.keys.current == keys.current


async def test_a_log_that_is_ahead_is_gone_on_with(stage: Stage) -> None:
    """Only the Snapshot is gone: the chain has no gap, and revisions are not used twice."""
    one = await stage.host("one")
    older = one.watcher.snapshot
    await govern(one)
    await stage.redis.delete(stage.keys.snapshot)
    behind = await stage.host("behind")
    behind.watcher._snapshot = older
    await stage.redis.delete(stage.keys.process("one"))
    done = await behind.restore()
    assert (done.revision, done.lost_revisions) == (4, None)
    await one.look()
    assert one.watcher.snapshot.gates == {}
    assert (await one.verify()).faults == []


async def test_a_dry_run_changes_nothing(stage: Stage) -> None:
    """It says the same."""
    one = await stage.host("one")
    await stage.flush()
    would = await one.restore(dry_run=True)
    assert await stage.redis.exists(stage.keys.snapshot, stage.keys.audit) == 0
    assert replace(await one.restore(), done=False) == would


async def test_nothing_is_restored_over_a_store_that_is_not_behind(stage: Stage) -> None:
    """Nor without a reason."""
    one = await stage.host("one")
    with pytest.raises(Conflict, match="not behind"):
        await one.restore()
    await stage.flush()
    with pytest.raises(InvalidRequest, match="reason"):
        await one.restoring.restore(Request(actor="ana", reason=" "), dry_run=False)
    await one.restore()
    with pytest.raises(Conflict, match="not behind"):
        await one.restore()


async def test_the_host_that_served_the_newest_restores(stage: Stage) -> None:
    """Another one is refused, and told who."""
    one = await stage.host("one")
    await stage.flush()
    ahead = Acknowledgement(
        process="ahead",
        at=one.clock.at,
        epoch=1,
        revision=9,
        source="redis",
        ready=True,
        leads=False,
        endpoints={},
        versions=(),
    )
    await one.store.acknowledge("ahead", msgspec.json.encode(ahead), 60)
    with pytest.raises(Conflict, match="'ahead' serves revision 9"):
        await one.restore()


async def test_a_restart_after_the_loss_can_still_restore(stage: Stage) -> None:
    """From the last good Snapshot on disk."""
    one = await stage.host("one")
    await govern(one)
    await stage.flush()
    again = await stage.host("one")
    assert again.watcher.standing.source == "disk"
    done = await again.restore()
    assert done.manifests == 2
    document = await again.store.read()
    assert document is not None
    assert decode(document).gates


async def test_a_manifest_that_is_nowhere_is_told(stage: Stage) -> None:
    """And all others come back."""
    one = await stage.host("one")
    snapshot = one.watcher.snapshot
    models = {
        "m": replace(
            snapshot.models["m"],
            versions={1: snapshot.models["m"].versions[1], 7: "7" * 64},
            aliases={},
        )
    }
    one.watcher._snapshot = replace(snapshot, models=models)
    await stage.flush()
    done = await one.restore()
    assert (done.manifests, done.without_manifest) == (1, ("m/7",))


async def test_a_store_that_moves_meanwhile_is_looked_at_again(stage: Stage) -> None:
    """What somebody put there between the look and the write is not written over."""
    one = await stage.host("one")
    await stage.flush()
    seed = one.restoring._seed(
        one.watcher.snapshot,
        await one.restoring._look(one.watcher.snapshot),
        LOST,
        (),
    )
    await stage.redis.set(stage.keys.snapshot, encode(one.watcher.snapshot))
    with pytest.raises(Conflict, match="moved"):
        await one.log.reseed(seed)
    assert facts((await one.verify()).faults) == [(1, "cut")]
