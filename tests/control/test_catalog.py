import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.adapters.folder import FolderStore
from gateway.control.catalog import Catalog
from gateway.control.reception import Reception
from gateway.control.registry import Registry
from gateway.ports import Artifact, Placement
from tests.control.building import ASKED, put
from tests.fakes import CountingEntropy, MemoryStore


class CountingModels:
    """The real model store, counting how often a version is read."""

    def __init__(self, models: FolderStore) -> None:
        self.models = models
        self.fetched: list[tuple[str, int]] = []

    def scan(self) -> list[tuple[str, int]]:
        return self.models.scan()

    def stamp(self, model: str, number: int) -> str:
        return self.models.stamp(model, number)

    def fetch(self, model: str, number: int, source: str | None = None) -> Artifact:
        self.fetched.append((model, number))
        return self.models.fetch(model, number, source)

    def take(self, model: str, number: int, folder: str) -> Artifact:
        return self.models.take(model, number, folder)

    def read(self, artifact: Artifact, name: str, limit: int) -> bytes | None:
        return self.models.read(artifact, name, limit)

    def place(self, artifact: Artifact) -> Placement:
        return self.models.place(artifact)

    def cached(self, manifest: Any) -> Artifact | None:
        return self.models.cached(manifest)

    def seed(self, model: str) -> Mapping[str, Any]:
        return self.models.seed(model)


def content_of(artifact: Artifact) -> bytes:
    """The bytes that would be loaded."""
    return Path(artifact.path).read_bytes()


@pytest.fixture
def counting(models: FolderStore) -> CountingModels:
    """The model store under test."""
    return CountingModels(models)


@pytest.fixture
def catalog(
    store: MemoryStore, counting: CountingModels, registry: Registry, reception: Reception
) -> Catalog:
    """The catalog under test."""
    return Catalog(store, counting, registry, reception)


async def test_a_first_scan_registers_everything(
    catalog: Catalog, registry: Registry, root: Path, counting: CountingModels
) -> None:
    """Every version is registered once; `model.toml` says which one begins."""
    for number in (1, 2, 3):
        put(root, number, f"onnx4 {number}")
    (root / "m" / "model.toml").write_text(
        'champion = 2\nallow_nonfinite = true\nlabels = ["no", "yes"]\n[features]\nnames = []'
    )
    put(root, 1, model="other")
    put(root, 7, "onnx4 seven", model="other")
    assert await catalog.scan()
    model = registry.snapshot.models["m"]
    assert (sorted(model.versions), model.aliases) == ([1, 2, 3], {"champion": 2})
    assert (model.allow_nonfinite, model.labels) == (True, ("no", "yes"))
    assert registry.snapshot.models["other"].aliases == {"champion": 7}
    assert registry.snapshot.revision == 5
    await catalog.scan()
    assert registry.snapshot.revision == 5
    assert len(counting.fetched) == 5


async def test_the_highest_that_can_be_read_begins(
    catalog: Catalog, registry: Registry, root: Path
) -> None:
    """A broken version does not become champion, even if it is the one that was named."""
    put(root, 1)
    put(root, 2, "onnx4 two")
    put(root, 3, "broken")
    (root / "m" / "model.toml").write_text("champion = 3")
    await catalog.scan()
    assert registry.snapshot.models["m"].aliases == {"champion": 2}
    assert catalog.index() == [
        ("m", 1, None),
        ("m", 2, None),
        ("m", 3, "The file is no ONNX model."),
    ]


async def test_a_version_that_appears_must_hold_still(
    catalog: Catalog, registry: Registry, root: Path
) -> None:
    """A version that is being copied in is not read before it stays as it is."""
    put(root, 1)
    await catalog.scan()
    put(root, 2, "onnx4 h")
    assert not await catalog.scan()
    put(root, 2, "onnx4 half and half")
    assert not await catalog.scan()
    assert sorted(registry.snapshot.models["m"].versions) == [1]
    assert await catalog.scan()
    assert sorted(registry.snapshot.models["m"].versions) == [1, 2]
    assert registry.snapshot.models["m"].aliases == {"champion": 1}


async def test_a_broken_version_is_read_again_when_it_changes(
    catalog: Catalog, registry: Registry, root: Path, counting: CountingModels
) -> None:
    """A refusal is remembered with its reason until the files are others, or gone."""
    put(root, 1)
    put(root, 2, "broken")
    for _ in range(3):
        await catalog.scan()
    assert counting.fetched.count(("m", 2)) == 1
    put(root, 2, "onnx4 mended")
    await catalog.scan()
    await catalog.scan()
    assert catalog.index() == [("m", 1, None), ("m", 2, None)]
    put(root, 3, "broken")
    await catalog.scan()
    await catalog.scan()
    assert catalog.index()[2][2] is not None
    shutil.rmtree(root / "m" / "3")
    await catalog.scan()
    assert [key[:2] for key in catalog.index()] == [("m", 1), ("m", 2)]


async def test_a_disk_that_was_full_is_tried_again(
    catalog: Catalog,
    registry: Registry,
    root: Path,
    counting: CountingModels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the disk refused is read again with back-off, though its files stay as they are."""
    put(root, 1)
    await catalog.scan()
    put(root, 2, "onnx4 two")
    monkeypatch.setattr("gateway.control.copies.FIRST_RETRY_S", 0.05)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gateway.adapters.artifacts._copy", full)
        for _ in range(5):
            await catalog.scan()
    assert counting.fetched.count(("m", 2)) == 1
    reason = "Version 2 of 'm' cannot be read: No space left on device."
    assert catalog.refused() == [("m", 2, reason)]
    await asyncio.sleep(0.06)
    assert await catalog.scan()
    assert sorted(registry.snapshot.models["m"].versions) == [1, 2]
    assert catalog.refused() == []


async def test_other_bytes_under_a_number_are_refused(
    catalog: Catalog, registry: Registry, root: Path
) -> None:
    """A registered version keeps its bytes: the known copy serves on, the change has a reason."""
    put(root, 1)
    await catalog.scan()
    before = registry.snapshot
    put(root, 1, "onnx4 changed")
    await catalog.scan()
    await catalog.scan()
    assert registry.snapshot == before
    ((model, number, reason),) = catalog.index()
    assert (model, number) == ("m", 1)
    assert reason is not None
    assert "other bytes" in reason
    update = await catalog.prepare(registry.snapshot)
    assert content_of(update.artifacts["m", 1]) == b"onnx4"


async def test_a_store_that_was_away_is_told_later(
    catalog: Catalog, registry: Registry, store: MemoryStore, root: Path, counting: CountingModels
) -> None:
    """What could not be registered is registered by a later scan, and not read again for it."""
    put(root, 1)
    store.away = True
    await catalog.scan()
    await catalog.scan()
    assert registry.snapshot.revision == 0
    store.away = False
    await catalog.scan()
    assert registry.snapshot.revision == 1
    assert counting.fetched == [("m", 1)]


async def test_what_a_snapshot_names_is_made_ready(
    catalog: Catalog, registry: Registry, root: Path
) -> None:
    """Only named versions are prepared; one that is nowhere is missing with a reason."""
    put(root, 1)
    put(root, 2, "onnx4 two")
    await catalog.scan()
    await registry.promote("m", 1, ASKED)
    await registry.promote("m", 2, ASKED, alias="challenger")
    update = await catalog.prepare(registry.snapshot)
    assert sorted(update.artifacts) == [("m", 1), ("m", 2)]
    assert update.missing == {}
    assert [manifest.number for manifest in catalog.manifests_of(registry.snapshot)] == [1, 2]


async def test_a_host_without_the_files_says_so(  # noqa: PLR0917 - fixtures
    registry: Registry,
    store: MemoryStore,
    catalog: Catalog,
    reception: Reception,
    root: Path,
    tmp_path: Path,
) -> None:
    """A version that another host registered is missing until its files come to this one."""
    elsewhere = tmp_path / "elsewhere"
    put(elsewhere, 1)
    other = FolderStore(
        elsewhere, tmp_path / "cache2", describe=lambda _: pytest.fail("unused"), now=lambda: 0.0
    )
    put(root, 1)
    await catalog.scan()
    shutil.rmtree(root / "m")
    shutil.move(tmp_path / "state" / "cache", tmp_path / "lost")
    host = Registry(store, now=lambda: 0.0, entropy=CountingEntropy())
    host.learn(registry.snapshot)
    late = Catalog(store, CountingModels(other), host, reception)
    shutil.rmtree(elsewhere)
    update = await late.prepare(registry.snapshot)
    assert update.artifacts == {}
    assert list(update.missing) == [("m", 1)]


async def test_scanning_goes_on(catalog: Catalog, registry: Registry, root: Path) -> None:
    """The loop finds what comes later, soon."""
    scanning = asyncio.create_task(catalog.run(0.01))
    put(root, 1)
    async with asyncio.timeout(5):
        while registry.snapshot.revision == 0:  # noqa: ASYNC110 - the loop under test changes it
            await asyncio.sleep(0.01)
    scanning.cancel()
