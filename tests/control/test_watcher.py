import asyncio
import os
import shutil
import threading
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.adapters.disk import StateFolder
from gateway.adapters.folder import FolderStore
from gateway.adapters.redis import RedisStore
from gateway.adapters.redis_keys import keys_of
from gateway.adapters.valkey import EmbeddedValkey
from gateway.control.catalog import Catalog
from gateway.control.keyring import Keyring
from gateway.control.principals import Principals
from gateway.control.reception import Reception, ReceptionParts
from gateway.control.registry import Registry
from gateway.control.watcher import REFRESH_S, Watcher, WatcherParts
from gateway.core.errors import StoreUnavailable
from gateway.core.principals import PrincipalDocument
from gateway.core.snapshot import decode, encode
from gateway.ports import Artifact, Store
from gateway.tasks import Tasks
from tests.control.building import ASKED, describe, put
from tests.fakes import (
    CountingEntropy,
    FakeDataPlane,
    ManualClock,
    MemoryGovernance,
    MemoryStore,
)
from tests.planes import until

pytestmark = pytest.mark.usefixtures("no_server_left")


class Host:
    """One control plane: its parts, and the watcher that follows the store."""

    def __init__(self, store: Store, folder: Path, models: Path, clock: ManualClock) -> None:
        self.disk = StateFolder(folder, entropy=os.urandom, admin_token="admin")
        self.data_plane = FakeDataPlane()
        self.registry = Registry(store, now=clock, entropy=CountingEntropy())
        self.models = FolderStore(models, folder / "cache", describe=describe, now=clock)
        reception = Reception(
            ReceptionParts(
                store=store,
                governance=MemoryGovernance(),
                inspector=None,
                models=self.models,
                registry=self.registry,
                data_plane=self.data_plane,
                now=clock,
            )
        )
        self.catalog = Catalog(store, self.models, self.registry, reception)
        self.keyring = Keyring(store, self.disk, self.data_plane, os.urandom)
        self.watcher = Watcher(
            WatcherParts(
                store=store,
                disk=self.disk,
                data_plane=self.data_plane,
                registry=self.registry,
                catalog=self.catalog,
                keyring=self.keyring,
                now=clock,
                entropy=os.urandom,
            ),
            process=folder.name,
            poll_s=0.05,
        )

    @property
    def revisions(self) -> list[int]:
        """The revisions that the data plane was handed, each once for as long as it stood."""
        every = [update.snapshot.revision for update in self.data_plane.updates]
        return [revision for revision, _ in groupby(every)]

    @property
    def alarms(self) -> set[str]:
        """What is wrong."""
        return set(self.watcher.standing.alarms)

    def loops(self) -> Tasks:
        """Start bringing what is missing to this host."""
        tasks = Tasks()
        tasks.start("verifier", self.catalog.copies.verify)
        tasks.start("fetcher", self.catalog.copies.fetch)
        tasks.start("completer", self.watcher.complete)
        return tasks

    async def completed(self) -> None:
        """Wait until all that is on its way has come, or will not."""
        tasks = self.loops()
        await until(lambda: not self.data_plane.updates[-1].pending)
        await tasks.close()

    async def begin(self) -> None:
        """Start, look at the model store and at the store."""
        await self.watcher.start()
        await self.watcher.tick()
        await self.catalog.scan()
        await self.watcher.tick()


@pytest.fixture
def stocked(root: Path) -> Path:
    """A model store with two versions of one model."""
    put(root, 1)
    put(root, 2, "onnx4 two")
    (root / "m" / "model.toml").write_text("champion = 1")
    return root


@pytest.fixture
def host(store: MemoryStore, tmp_path: Path, stocked: Path, clock: ManualClock) -> Host:
    """A host that has not started."""
    return Host(store, tmp_path / "state", stocked, clock)


@pytest.fixture
def again(store: MemoryStore, tmp_path: Path, stocked: Path, clock: ManualClock) -> Host:
    """The same host after a restart."""
    return Host(store, tmp_path / "state", stocked, clock)


async def test_a_first_start_registers_and_serves(host: Host, store: MemoryStore) -> None:
    """From nothing, the models in the store are registered, served, saved and acknowledged."""
    await host.begin()
    assert host.revisions == [2]
    assert sorted(host.data_plane.updates[-1].artifacts) == [("m", 1)]
    known = host.disk.last_good()
    assert known is not None
    assert known.snapshot == host.watcher.snapshot
    assert [manifest.number for manifest in known.manifests] == [1, 2]
    assert msgspec.json.decode(store.processes["state"])["revision"] == 2
    assert host.watcher.standing.source == "redis"
    assert host.data_plane.secrets[-1].keys == store.keys


async def test_without_store_and_disk_it_waits(host: Host, store: MemoryStore) -> None:
    """With nothing to serve and no store, the process lives and says that it is not ready."""
    store.away = True
    await host.watcher.start()
    await host.watcher.tick()
    await host.catalog.scan()
    status = await host.watcher.status()
    assert (status["ready"], status["source"]) == (False, "none")
    assert not status["store"]["reachable"]
    assert host.data_plane.secrets[-1].keys is not None
    store.away = False
    await host.catalog.scan()
    await host.watcher.tick()
    assert (await host.watcher.status())["ready"]


async def test_without_the_store_the_last_good_serves(
    host: Host, again: Host, store: MemoryStore, root: Path
) -> None:
    """A restart without the store serves what was served last, with the same signing keys."""
    await host.begin()
    store.away = True
    await again.watcher.start()
    assert again.revisions == [2]
    assert again.data_plane.updates[-1].pending == {("m", 1)}
    await again.completed()
    assert sorted(again.data_plane.updates[-1].artifacts) == [("m", 1)]
    assert again.data_plane.secrets[-1] == host.data_plane.secrets[-1]
    await again.watcher.tick()
    status = await again.watcher.status()
    assert (status["ready"], status["source"], status["revision"]) == (True, "disk", 2)
    store.away = False
    await again.watcher.tick()
    assert again.revisions == [2]
    assert again.watcher.standing.source == "redis"


async def test_a_store_that_goes_away_disturbs_nothing(
    host: Host, store: MemoryStore, clock: ManualClock
) -> None:
    """While the store is away nothing is applied, and the status says since when."""
    await host.begin()
    since = clock.at = clock.at + 100
    store.away = True
    for _ in range(5):
        await host.watcher.tick()
        clock.at += 1
    status = await host.watcher.status()
    assert status["store"] == {
        "reachable": False,
        "since": since,
        "reason": "The store cannot be reached.",
    }
    assert host.revisions == [2]
    with pytest.raises(StoreUnavailable):
        await host.registry.promote("m", 2, ASKED)


async def test_pauses_grow_while_the_store_is_away(host: Host, store: MemoryStore) -> None:
    """A store that is away, or flapping, is asked ever more seldom, with jitter."""
    store.away = True
    pauses = []
    for _ in range(4):
        await host.watcher.tick()
        started = time.monotonic()
        await host.watcher.pause()
        pauses.append(time.monotonic() - started)
    for pause, most in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True):
        assert most / 2 <= pause < most + 0.1


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        pytest.param(b"not json", "cannot be read", id="no-json"),
        pytest.param(b"\x1f\x8b\x08\x00" + b"\xff" * 100, "cannot be read", id="gzip"),
        pytest.param(b"\xff" * (1024 * 1024), "cannot be read", id="megabyte"),
        pytest.param(b"", "cannot be read", id="empty"),
        pytest.param(b"x" * (8 * 1024 * 1024 + 1), "at most", id="too-large"),
        pytest.param(b'{"schema":1,"revision":9.5}', "cannot be read", id="float"),
        pytest.param(
            b'{"audit_head":"","endpoints":{},"epoch":1,"models":{},"revision":99,"schema":2}',
            "schema",
            id="schema",
        ),
        pytest.param(
            b'{"audit_head":"","endpoints":{},"epoch":1,"models":{},'
            b'"revision":9223372036854775808,"schema":1}',
            "",
            id="beyond-int64",
        ),
        pytest.param(
            b'{"audit_head":"","endpoints":{"e":{"document":{"schema":1,"model":"gone"},'
            b'"splits":{}}},"epoch":1,"models":{},"revision":99,"schema":1}',
            "not registered",
            id="missing-model",
        ),
    ],
)
async def test_a_document_that_does_not_hold_together_is_refused(
    host: Host,
    store: MemoryStore,
    document: bytes,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What cannot be served is told once, and the last good Snapshot serves on."""
    await host.begin()
    good = store.document
    store.document = document
    for _ in range(3):
        await host.watcher.tick()
    status = await host.watcher.status()
    assert reason in status["rejected"]["reason"]
    assert len(status["rejected"]["sha256"]) == 64
    assert host.revisions == [2]
    assert len([record for record in caplog.records if "refused" in record.message]) == 1
    with pytest.raises(StoreUnavailable):
        await host.registry.promote("m", 2, ASKED)
    store.document = good
    await host.watcher.tick()
    assert (await host.watcher.status())["rejected"] is None


async def test_lost_data_is_an_alarm_and_no_update(
    host: Host, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A document that vanished or went back is never served, and nothing is written over it."""
    await host.begin()
    older = store.document
    await host.registry.promote("m", 2, ASKED)
    await host.watcher.tick()
    newest = store.document
    for lost in (None, older):
        store.document = lost
        for _ in range(3):
            await host.watcher.tick()
            await host.catalog.scan()
        assert host.alarms == {"data_loss"}
        assert host.revisions == [2, 3]
        assert store.document == lost
    store.document = newest
    await host.watcher.tick()
    assert host.alarms == set()


async def test_an_emptied_store_is_not_seeded_after_a_restart(
    host: Host, again: Host, store: MemoryStore
) -> None:
    """With a last good Snapshot on disk, an empty store stays empty until it is restored."""
    await host.begin()
    store.document = None
    store.entries.clear()
    store.manifests.clear()
    await again.begin()
    assert store.document is None
    assert again.alarms == {"data_loss"}
    assert again.revisions == [2]


async def test_a_damaged_last_good_holds_the_store_empty(
    host: Host, again: Host, store: MemoryStore, tmp_path: Path
) -> None:
    """When the disk cannot tell what was served, nothing is begun in an empty store."""
    await host.begin()
    path = tmp_path / "state" / "last-good.json"
    path.write_bytes(path.read_bytes()[:-10])
    kept, store.document = store.document, None
    await again.begin()
    assert store.document is None
    assert again.alarms == {"last_good"}
    store.document = kept
    await again.watcher.tick()
    assert again.revisions == [2]
    assert again.disk.last_good() is not None
    assert again.alarms == set()


async def test_another_document_of_the_same_revision_is_a_divergence(
    host: Host, store: MemoryStore
) -> None:
    """Two documents with one revision are an alarm; the one served stays."""
    await host.begin()
    served = store.document or b""
    store.document = served.replace(b'"allow_nonfinite":false', b'"allow_nonfinite":true')
    await host.watcher.tick()
    assert host.alarms == {"divergence"}
    store.document = served.replace(b":", b": ")
    await host.watcher.tick()
    assert host.alarms == set()
    assert host.revisions == [2]


async def test_a_jump_forward_and_a_new_epoch_are_taken(host: Host, store: MemoryStore) -> None:
    """Any higher revision is newer; a higher epoch is newer whatever its revision."""
    await host.begin()
    snapshot = decode(store.document or b"")
    for epoch, revision in ((1, 9_999_999), (1, 2**63 - 1), (2, 1)):
        changed = msgspec.structs.replace(snapshot, epoch=epoch, revision=revision)
        store.document = encode(changed)
        await host.watcher.tick()
        assert host.watcher.snapshot == changed


async def test_a_full_disk_costs_only_the_copy(
    host: Host, store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last good cannot be saved, serving goes on with an alarm, until it can."""
    await host.begin()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gateway.adapters.disk.write_whole", full)
        await host.registry.promote("m", 2, ASKED)
        await host.watcher.tick()
        assert host.revisions == [2, 3]
        assert host.alarms == {"last_good"}
        known = host.disk.last_good()
        assert known is not None
        assert known.snapshot.revision == 2
    clock.at += REFRESH_S
    await host.watcher.tick()
    assert host.alarms == set()
    known = host.disk.last_good()
    assert known is not None
    assert known.snapshot.revision == 3


async def test_a_missing_version_is_taken_when_it_comes(
    host: Host, store: MemoryStore, root: Path, tmp_path: Path, clock: ManualClock
) -> None:
    """A host that lacks a version's files says so, and serves it once they are there."""
    await host.begin()
    await host.registry.promote("m", 2, ASKED)
    late_root = tmp_path / "late-models"
    put(late_root, 1)
    late = Host(store, tmp_path / "late", late_root, clock)
    await late.begin()
    assert list(late.data_plane.updates[-1].missing) == [("m", 2)]
    await late.completed()
    await late.watcher.tick()
    assert list(late.data_plane.updates[-1].missing) == [("m", 2)]
    assert "m/2" in msgspec.json.decode(store.processes["late"])["missing"]
    put(late_root, 2, "onnx4 two")
    await late.catalog.scan()
    await late.catalog.scan()
    await late.watcher.tick()
    assert late.data_plane.updates[-1].missing == {}
    assert late.revisions == [3]


async def test_a_slow_copy_delays_nothing_else(
    host: Host,
    store: MemoryStore,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one version is copied, other endpoints move and go back, and the host reports."""
    for number in (1, 2):
        put(root, number, f"onnx4 other {number}", model="other")
    (root / "other" / "model.toml").write_text("champion = 1")
    await host.begin()
    await host.registry.promote("other", 2, ASKED)
    shutil.copytree(root, tmp_path / "late-models")
    late = Host(store, tmp_path / "late", tmp_path / "late-models", ManualClock())
    gate, real = threading.Event(), FolderStore.fetch

    def slow(models: FolderStore, model: str, number: int, source: str | None = None) -> Artifact:
        if models is late.models and (model, number) == ("m", 2):
            assert gate.wait(20)
        return real(models, model, number, source)

    monkeypatch.setattr(FolderStore, "fetch", slow)
    await late.watcher.start()
    tasks = late.loops()
    tasks.start("watcher", late.watcher.run)
    tasks.start("catalog", lambda: late.catalog.run(0.05))
    try:
        async with asyncio.timeout(10):
            others = {("m", 1), ("other", 1), ("other", 2)}
            await until(lambda: bool(late.data_plane.updates))
            await until(lambda: set(late.data_plane.updates[-1].artifacts) == others)
            await host.registry.promote("m", 2, ASKED)
            await until(lambda: late.data_plane.updates[-1].pending == {("m", 2)})
            change = await host.registry.rollback("other", ASKED)
            await until(lambda: late.revisions[-1] == change.revision)
            said = f'"revision":{change.revision}'.encode()
            await until(lambda: said in store.processes["late"])
            update = late.data_plane.updates[-1]
            assert set(update.artifacts) == {("m", 1), ("other", 1)}
            assert update.pending == {("m", 2)}
            assert b"It is being copied to this host." in store.processes["late"]
            gate.set()
            await until(lambda: not late.data_plane.updates[-1].missing)
    finally:
        gate.set()
        await tasks.close()


async def test_a_start_waits_for_no_copy(
    host: Host, again: Host, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that lie here are verified after the start, which does not wait for them."""
    await host.begin()
    store.away = True
    gate, real = threading.Event(), FolderStore.cached

    def slow(models: FolderStore, manifest: Any) -> Artifact | None:
        assert gate.wait(20)
        return real(models, manifest)

    monkeypatch.setattr(FolderStore, "cached", slow)
    tasks = again.loops()
    try:
        async with asyncio.timeout(10):
            await again.watcher.start()
            assert again.data_plane.updates[-1].pending == {("m", 1)}
            gate.set()
            await until(lambda: not again.data_plane.updates[-1].missing)
    finally:
        gate.set()
        await tasks.close()


async def test_a_copy_that_the_disk_refuses_is_tried_again(
    host: Host, again: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is reported as the reason, and the version comes when there is room."""
    await host.begin()
    cache = tmp_path / "state" / "cache"
    for folder in cache.iterdir():
        folder.chmod(0o700)
    shutil.rmtree(cache)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.control.copies.FIRST_RETRY_S", 0.01)
    await again.watcher.start()
    with monkeypatch.context() as patched:
        patched.setattr("gateway.adapters.artifacts._copy", full)
        await again.completed()
        reason = again.data_plane.updates[-1].missing["m", 1]
        assert reason == "Version 1 of 'm' cannot be read: No space left on device."
    tasks = again.loops()
    async with asyncio.timeout(10):
        await until(lambda: not again.data_plane.updates[-1].missing)
    await tasks.close()


async def test_refused_versions_are_in_the_status(host: Host, root: Path) -> None:
    """What was not taken from the model store is told with the reason."""
    put(root, 3, "broken")
    await host.begin()
    refused = [{"model": "m", "version": 3, "reason": "The file is no ONNX model."}]
    assert (await host.watcher.status())["refused"] == refused


async def test_reports_follow_what_is_served(
    host: Host, store: MemoryStore, clock: ManualClock
) -> None:
    """A process reports at once when something changed, and now and then in any case."""
    await host.begin()
    store.processes.clear()
    await host.watcher.tick()
    assert store.processes == {}
    host.data_plane.lagging["m"] = "version 2 is loading"
    await host.watcher.tick()
    assert b"version 2 is loading" in store.processes.pop("state")
    clock.at += REFRESH_S
    await host.watcher.tick()
    assert "state" in store.processes


async def test_every_host_sees_who_has_moved(
    host: Host, store: MemoryStore, tmp_path: Path, root: Path, clock: ManualClock
) -> None:
    """A promotion is complete when every process serves its revision, and the status counts."""
    await host.begin()
    other = Host(store, tmp_path / "other", root, clock)
    await other.begin()
    await host.registry.promote("m", 2, ASKED)
    await host.watcher.tick()
    half = await host.watcher.status()
    assert half["promotion"]["text"] == "promotion complete on 1 of 2"
    await other.watcher.tick()
    whole = await host.watcher.status()
    assert whole["promotion"]["text"] == "promotion complete on 2 of 2"


async def test_a_token_that_is_revoked_is_told_at_the_next_look(
    host: Host, store: MemoryStore, tmp_path: Path, root: Path, clock: ManualClock
) -> None:
    """Another host's commit reaches the data plane with the Snapshot, also a revocation."""
    await host.begin()
    other = Host(store, tmp_path / "other", root, clock)
    await other.begin()
    principals = Principals(other.registry, now=clock, entropy=os.urandom)
    await principals.put("ci", PrincipalDocument(schema=1), ASKED)
    issued = await principals.issue("ci", None, ASKED)
    await host.watcher.tick()
    assert [token.holder.name for token in host.data_plane.secrets[-1].tokens] == ["admin", "ci"]
    await principals.revoke(issued.id, ASKED)
    await host.watcher.tick()
    assert [token.holder.name for token in host.data_plane.secrets[-1].tokens] == ["admin"]


async def test_a_flood_of_changes_is_coalesced(
    redis_store: RedisStore, valkey_url: str, namespace: str, tmp_path: Path, stocked: Path
) -> None:
    """However many hints come, the store is read at most once each 50 ms, and the end is right."""
    host = Host(redis_store, tmp_path / "state", stocked, ManualClock())
    await host.begin()
    client: Any = Redis.from_url(valkey_url)
    tasks = Tasks()
    tasks.start("watcher", host.watcher.run)
    started = time.monotonic()
    for _ in range(100):
        for _ in range(50):
            await client.publish(keys_of(namespace).events, b"forged")
        if host.registry.snapshot.models["m"].previous.get("champion"):
            await host.registry.rollback("m", ASKED)
        else:
            await host.registry.promote("m", 2, ASKED)
    took = time.monotonic() - started
    async with asyncio.timeout(5):
        while host.watcher.snapshot != host.registry.snapshot:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(host.revisions) <= 3 + took / 0.05
    await tasks.close()
    await client.aclose()


async def test_serving_outlives_the_embedded_store(tmp_path: Path, stocked: Path) -> None:
    """When the store dies and comes back, the watcher follows it again by itself."""
    server = EmbeddedValkey(tmp_path / "state")
    await server.start()
    store = RedisStore(server.url, namespace="t", timeout_s=0.5, name="test")
    host = Host(store, tmp_path / "state", stocked, ManualClock())
    await host.begin()
    tasks = Tasks()
    tasks.start("watcher", host.watcher.run)
    await server.stop()
    async with asyncio.timeout(5):
        while host.watcher.standing.reachable:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailable):
        await host.registry.promote("m", 2, ASKED)
    await server.start()
    await host.registry.promote("m", 2, ASKED)
    async with asyncio.timeout(10):
        while host.watcher.snapshot.models["m"].aliases != {"champion": 2}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert host.alarms == set()
    await tasks.close()
    await store.close()
    await server.stop()
