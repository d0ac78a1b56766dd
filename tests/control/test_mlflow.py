from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.adapters.folder import FolderStore
from gateway.adapters.uploads import UploadBounds, UploadFolder
from gateway.control.following import FollowSources, follower_of
from gateway.control.reception import Reception, ReceptionParts
from gateway.control.registering import Registrar
from gateway.control.registry import Registry, Request
from gateway.core.errors import Conflict, StoreUnavailable
from gateway.core.following import decode_following, rules_of
from gateway.core.models import Manifest, StoredFile, bundle_digest
from gateway.core.reviews import Check, CheckResult, Outcome
from gateway.core.snapshot import ModelRecord
from tests.control.building import ASKED
from tests.fake_mlflow import FakeMlflow, sha256
from tests.fakes import (
    CountingEntropy,
    FakeDataPlane,
    FakeInspector,
    MemoryGovernance,
    MemoryStore,
    signature_of,
)

BOUNDS = UploadBounds(max_bytes=1 << 20, quota_bytes=1 << 21, max_open=9, expire_s=60.0)


class Memory:
    """The memory of following, in this process."""

    def __init__(self) -> None:
        self.document: bytes | None = None
        self.asks = 0
        self.away = False

    async def read(self) -> bytes | None:
        if self.away:
            raise StoreUnavailable("The store cannot be reached.")
        return self.document

    async def swap(self, before: bytes | None, after: bytes) -> bool:
        if self.document != before:
            return False
        self.document = after
        return True

    async def ask(self) -> int:
        self.asks += 1
        return self.asks

    async def asked(self) -> int:
        return self.asks

    async def close(self) -> None:
        return


class World:
    """A gateway's registry beside a small MLflow."""

    def __init__(self, root: Path, memory: Memory | None = None, **settings: Any) -> None:
        self.root = root
        self.mlflow = FakeMlflow()
        self.memory = memory or Memory()
        self.store = MemoryStore()
        self.registry = Registry(self.store, now=lambda: 5.0, entropy=CountingEntropy())
        self.inspector: FakeInspector | None = None
        self.wished: list[tuple[str, str, int]] = []
        self.dropped: list[tuple[str, str]] = []
        self.refusal: Exception | None = None
        self.leads = True
        self.settings = settings
        self.again()

    def again(self) -> None:
        """Another follower, as after a restart."""
        self.staged = self.root.parent / "uploads"
        sources = FollowSources(
            there=self.mlflow.registry(),
            memory=self.memory,
            rules=rules_of(
                self.settings.get("models", ["*"]),
                self.settings.get("names", []),
                self.settings.get("aliases", ["champion=champion"]),
            ),
            poll_s=self.settings.get("poll_s", 0.0),
        )
        self.follower = follower_of(
            sources,
            self.registry,
            self._registrar(),
            self,
            leads=lambda: self.leads,
            now=lambda: 5.0,
        )

    def _registrar(self) -> Registrar:
        models = FolderStore(
            self.root,
            self.root.parent / "cache",
            describe=None if self.inspector else lambda _: signature_of(),
            now=lambda: 5.0,
        )
        reception = Reception(
            ReceptionParts(
                store=self.store,
                governance=MemoryGovernance(),
                inspector=self.inspector,
                models=models,
                registry=self.registry,
                data_plane=FakeDataPlane(),
                now=lambda: 5.0,
            )
        )
        uploads = UploadFolder(self.staged, BOUNDS, now=lambda: 5.0, entropy=CountingEntropy())
        return Registrar(self.registry, models, reception, uploads)

    async def put(
        self, model: str, number: int, request: Request, *, alias: str, source: str
    ) -> None:
        """A wish."""
        if self.refusal is not None:
            raise self.refusal
        assert (request.actor, source) == ("mlflow", "mlflow")
        self.wished.append((model, alias, number))

    async def drop(self, model: str, alias: str, request: Request) -> None:
        """A wish that is let go."""
        self.dropped.append((model, alias))

    async def settle(self) -> None:
        """Look, and look again."""
        await self.follower.tick()
        await self.follower.tick()

    async def register(self, model: str, number: int, folder: Path) -> None:
        """Register a folder of the model store."""
        files = _files(folder)
        digest = bundle_digest(files)
        manifest = Manifest(1, model, number, digest, files, signature_of(), {}, 0.0)
        if await self.store.manifest(model, number) is None:
            await self.store.put_manifest(manifest)
            record = ModelRecord(versions={}, aliases={"champion": number})
            await self.registry.register(manifest, ASKED, seed=record)

    def by_hand(self, model: str, number: int, content: bytes) -> Path:
        """A version that somebody put into the model store."""
        folder = self.root / model / str(number)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(content)
        (self.root / model / "model.toml").write_text(f"champion = {number}\n")
        return folder

    async def told(self) -> Mapping[str, Any]:
        """The status."""
        return await self.follower.status()


def _files(folder: Path) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(path.name, path.stat().st_size, sha256(path.read_bytes()))
        for path in sorted(folder.iterdir())
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Nothing is registered anywhere."""
    return World(tmp_path / "models")


async def test_a_version_comes_with_its_lineage(world: World) -> None:
    """Under its number, whole, and with nothing secret in it."""
    world.mlflow.register("m", 3, b"onnx4", description="better")
    await world.settle()
    lineage = world.store.manifests["m", 3].lineage
    assert (world.root / "m" / "3" / "model.onnx").read_bytes() == b"onnx4"
    assert (lineage["trainer"], lineage["commit"]) == ("tina", "abc123")
    assert lineage["data"][0]["location"] == "https://data.test/flights.csv"
    assert lineage["metrics"] == {"auc": 0.71, "loss": "NaN"}
    assert "secret" not in str(lineage)
    assert list(world.staged.iterdir()) == []
    (entry,) = world.store.entries
    assert (entry.action, entry.actor) == ("model.register", "mlflow")


async def test_what_a_check_forbids_is_refused_and_written_down_once(world: World) -> None:
    """By who checked, whatever looks at it again; nothing of it stays."""
    world.inspector = FakeInspector()
    world.inspector.changes = {Check.RUNS: CheckResult(Outcome.FAILED, "It hangs.", forced=True)}
    world.again()
    world.mlflow.register("m", 1)
    await world.settle()
    assert [entry.action for entry in world.store.entries] == ["model.refuse"]
    assert "It hangs." in (await world.told())["refused"]["m/1"]
    assert list(world.staged.iterdir()) == []
    assert not (world.root / "m").exists()


async def test_a_new_model_begins_with_the_champion_of_there(world: World) -> None:
    """No wish is needed for what nobody served before."""
    for number in (1, 2, 3):
        world.mlflow.register("m", number, b"onnx%d" % number)
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    assert world.registry.snapshot.models["m"].aliases == {"champion": 2}
    assert world.wished == []


async def test_a_move_is_wished_for_once(world: World) -> None:
    """And not again while the alias stands still."""
    world.mlflow.register("m", 1)
    world.mlflow.alias("m", "champion", 1)
    await world.settle()
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    await world.settle()
    assert world.wished == [("m", "champion", 2)]


async def test_following_does_not_fight_a_rollback(world: World) -> None:
    """An alias that stands still there asks for nothing, also after a restart."""
    world.mlflow.register("m", 1)
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    await world.registry.promote("m", 1, ASKED)
    world.again()
    await world.settle()
    assert world.wished == []
    assert world.registry.snapshot.models["m"].aliases == {"champion": 1}


async def test_what_stood_before_it_was_followed_is_no_move(world: World) -> None:
    """A model that is served here keeps its champion when following is turned on."""
    folder = world.by_hand("m", 1, b"onnx4")
    await world.register("m", 1, folder)
    world.mlflow.register("m", 1, b"onnx4")
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    await world.settle()
    assert world.wished == []


async def test_a_removed_alias_does_nothing(world: World) -> None:
    """But set again it is a move."""
    world.mlflow.register("m", 1)
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 1)
    await world.settle()
    world.mlflow.alias("m", "champion", None)
    await world.settle()
    assert world.registry.snapshot.models["m"].aliases == {"champion": 1}
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    assert world.wished == [("m", "champion", 2)]


async def test_a_number_with_other_bytes_is_refused_and_audited_once(world: World) -> None:
    """Also after a restart; and its alias asks for nothing, as other bytes would be promoted."""
    folder = world.by_hand("m", 1, b"mine")
    await world.register("m", 1, folder)
    world.mlflow.register("m", 1, b"theirs", created_ms=9_000)
    await world.settle()
    world.mlflow.alias("m", "champion", 1)
    world.again()
    await world.settle()
    refused = [entry for entry in world.store.entries if entry.action == "model.refuse"]
    assert len(refused) == 1
    assert "other bytes" in (await world.told())["refused"]["m/1"]
    assert world.wished == []
    assert (folder / "model.onnx").read_bytes() == b"mine"


async def test_the_same_bytes_under_the_same_number_are_taken_for_it(world: World) -> None:
    """So a version that was put here by hand may be promoted from there."""
    for number, content in ((1, b"onnx4"), (2, b"onnx2")):
        (world.root / "m").mkdir(parents=True, exist_ok=True)
        folder = world.root / "m" / str(number)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(content)
        (world.root / "m" / "model.toml").write_text("champion = 1\n")
        await world.register("m", number, folder)
        world.mlflow.register("m", number, content)
    await world.settle()
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    assert world.wished == [("m", "champion", 2)]


async def test_a_model_made_anew_under_its_old_name_moves_nothing(world: World) -> None:
    """Its version 1 is not ours, though it has the number."""
    world.mlflow.register("m", 1, b"onnx4")
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    world.mlflow.models.clear()
    world.mlflow.versions.clear()
    world.mlflow.register("m", 1, b"other", created_ms=9_000_000)
    world.mlflow.alias("m", "champion", 1)
    await world.settle()
    assert world.wished == []
    assert "m@champion" in (await world.told())["waiting"]


async def test_a_version_is_fetched_once(world: World) -> None:
    """Later looks ask for lists only."""
    world.mlflow.register("m", 1)
    await world.settle()
    world.mlflow.asked.clear()
    await world.settle()
    world.again()
    await world.settle()
    assert {request.url.path.rpartition("/")[2] for request in world.mlflow.asked} == {"search"}


async def test_a_version_in_the_making_waits(world: World) -> None:
    """Until MLflow says that it is ready."""
    world.mlflow.register("m", 1, status="PENDING_REGISTRATION")
    await world.settle()
    assert list((await world.told())["waiting"]) == ["m/1"]


async def test_a_name_that_cannot_be_one_here_is_skipped(world: World) -> None:
    """With a reason; others are followed (M20)."""
    world.mlflow.register("flight delays", 1)
    world.mlflow.register("../etc", 1)
    world.mlflow.register("m", 1)
    await world.settle()
    assert list((await world.told())["skipped"]) == ["flight delays", "../etc"]
    assert list(world.registry.snapshot.models) == ["m"]


async def test_of_two_models_with_one_name_here_the_first_is_followed(tmp_path: Path) -> None:
    """Else their aliases would fight."""
    world = World(tmp_path / "models", names=["Other=m"])
    world.mlflow.register("Other", 1)
    world.mlflow.register("m", 1, b"onnx2")
    await world.settle()
    assert list((await world.told())["skipped"]) == ["m"]


async def test_what_is_refused_here_is_told_and_not_asked_again(world: World) -> None:
    """Until the alias moves there once more."""
    world.mlflow.register("m", 1)
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 1)
    await world.settle()
    world.refusal = Conflict("The signatures differ.")
    world.mlflow.alias("m", "champion", 2)
    await world.settle()
    world.refusal = None
    await world.settle()
    assert world.wished == []
    assert (await world.told())["aliases"][0]["refused"] == "The signatures differ."


async def test_a_store_that_is_away_keeps_a_move(world: World) -> None:
    """It is asked for when the store is back."""
    world.mlflow.register("m", 1)
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 1)
    await world.settle()
    world.refusal = StoreUnavailable("away")
    world.mlflow.alias("m", "champion", 2)
    with pytest.raises(StoreUnavailable):
        await world.follower.tick()
    world.refusal = None
    await world.settle()
    assert world.wished == [("m", "champion", 2)]


async def test_an_mlflow_that_is_away_changes_nothing(world: World) -> None:
    """The status says so; what was seen stays."""
    world.mlflow.register("m", 1)
    await world.settle()
    world.mlflow.down = True
    await world.follower.tick()
    told = await world.told()
    assert told["error"] == "MLflow cannot be reached."
    assert told["aliases"]


async def test_a_move_is_asked_for_as_soon_as_its_version_is_registered(tmp_path: Path) -> None:
    """Not at the next look of its own, which may be far away."""
    world = World(tmp_path / "models", poll_s=1000.0)
    world.mlflow.register("m", 1)
    world.mlflow.alias("m", "champion", 1)
    await world.settle()
    world.mlflow.register("m", 2, b"onnx2")
    world.mlflow.alias("m", "champion", 2)
    await world.follower.ask()
    await world.settle()
    assert world.wished == [("m", "champion", 2)]
    assert not await world.follower.tick()


async def test_only_the_leader_looks(world: World) -> None:
    """Others ask nobody."""
    world.leads = False
    assert not await world.follower.tick()
    assert world.mlflow.asked == []


async def test_who_was_overtaken_asks_for_nothing(world: World) -> None:
    """Another process that follows has written meanwhile."""
    await world.follower.tick()
    state = decode_following(world.memory.document)
    assert state.seen == {}

    class Overtaken(Memory):
        async def swap(self, before: bytes | None, after: bytes) -> bool:
            return False

    other = World(world.root, Overtaken())
    with pytest.raises(StoreUnavailable):
        await other.follower.tick()
