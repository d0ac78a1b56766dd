import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.adapters.folder import FolderStore
from gateway.adapters.uploads import UploadBounds, UploadFolder
from gateway.control.catalog import ACTOR, Catalog
from gateway.control.reception import Reception, ReceptionParts
from gateway.control.registering import Registrar, Registration
from gateway.control.registry import Edit, Registry, Request
from gateway.core.endpoints import Endpoint, Recording
from gateway.core.errors import Conflict, GatewayError, NotReady, VersionRefused
from gateway.core.inspections import Inspection, InspectionOrder
from gateway.core.reviews import Check, CheckResult, Outcome
from gateway.core.snapshot import Snapshot
from tests.control.building import ASKED, put
from tests.fakes import (
    CountingEntropy,
    FakeDataPlane,
    FakeInspector,
    ManualClock,
    MemoryGovernance,
    MemoryStore,
)

HANGS = CheckResult(Outcome.FAILED, "It hangs.", forced=True)
BOUNDS = UploadBounds(max_bytes=1 << 20, quota_bytes=1 << 21, max_open=9, expire_s=60.0)


class Inspector(FakeInspector):
    """Refuses what says that it is bad, and may be away or slow."""

    away = False
    gate: asyncio.Event | None = None

    async def inspect(self, order: InspectionOrder) -> Inspection:
        if self.away:
            raise NotReady("No inspection can be made now.")
        if self.gate is not None and order.model == "slow":
            await self.gate.wait()
        content = (Path(order.folder) / "model.onnx").read_bytes()
        self.changes = {Check.RUNS: HANGS} if b"bad" in content else {}
        return await super().inspect(order)


class Host:
    """One host with a model store that may be shared, and its own cache."""

    def __init__(self, store: MemoryStore, governance: MemoryGovernance, folder: Path) -> None:
        clock = ManualClock()
        self.folder = folder
        self.inspector = Inspector()
        self.data_plane = FakeDataPlane()
        self.registry = Registry(store, now=clock, entropy=CountingEntropy())
        self.models = FolderStore(
            folder.parent / "models", folder / "cache", describe=None, now=clock
        )
        self.reception = Reception(
            ReceptionParts(
                store=store,
                governance=governance,
                inspector=self.inspector,
                models=self.models,
                registry=self.registry,
                data_plane=self.data_plane,
                now=clock,
            )
        )
        self.catalog = Catalog(store, self.models, self.registry, self.reception)
        uploads = UploadFolder(folder / "uploads", BOUNDS, now=clock, entropy=CountingEntropy())
        self.registrar = Registrar(self.registry, self.models, self.reception, uploads)

    def upload(self, content: bytes, model: str = "m", actor: str = "ana") -> str:
        """A whole upload of one file."""
        upload = self.registrar.uploads.begin(model, actor).id
        incoming = self.registrar.uploads.receive(upload, "model.onnx")
        incoming.write(content)
        incoming.finish(None)
        return upload


@pytest.fixture
def host(store: MemoryStore, governance: MemoryGovernance, root: Path, tmp_path: Path) -> Host:
    """The host under test."""
    return Host(store, governance, tmp_path / "one")


@pytest.fixture
def other(store: MemoryStore, governance: MemoryGovernance, root: Path, tmp_path: Path) -> Host:
    """Another host with the same stores."""
    return Host(store, governance, tmp_path / "two")


async def test_a_version_is_inspected_before_it_is_registered(
    host: Host, root: Path, governance: MemoryGovernance, store: MemoryStore
) -> None:
    """One commit adds it with its Review; the report and the signature come from the sandbox."""
    put(root, 1, "never parsed here")
    await host.catalog.scan()
    (entry,) = store.entries
    assert (entry.action, entry.actor) == ("model.register", ACTOR)
    assert [moved.target for moved in entry.also] == ["reviews/m/1"]
    review = host.registry.snapshot.reviews["m/1"]
    report = await governance.inspection("m", 1)
    assert report is not None
    assert review.digest == report.digest == host.registry.snapshot.models["m"].versions[1]
    assert store.manifests["m", 1].signature == host.inspector.signature


async def test_what_is_refused_is_written_down_once(
    host: Host, other: Host, root: Path, store: MemoryStore
) -> None:
    """Over scans and hosts one entry for these bytes; other bytes are another refusal."""
    put(root, 1, "bad")
    for each in (host, host, other):
        await each.catalog.scan()
    assert [entry.action for entry in store.entries] == ["model.refuse"]
    assert store.entries[0].evidence["failed"] == {"runs": "It hangs."}
    ((_, _, reason),) = host.catalog.refused()
    assert "runs: It hangs." in reason
    assert host.registry.snapshot.models == {}
    put(root, 1, "bad too")
    await host.catalog.scan()
    await host.catalog.scan()
    assert [entry.action for entry in store.entries] == ["model.refuse"] * 2
    assert host.catalog.refused() != []


async def test_a_known_version_is_not_inspected_again(host: Host, other: Host, root: Path) -> None:
    """A host that merely fetches a registered version, or starts again, inspects nothing."""
    put(root, 1)
    await host.catalog.scan()
    await other.registry.fresh()
    await other.catalog.scan()
    assert len(host.inspector.orders) == 1
    assert other.inspector.orders == []


async def test_a_version_is_held_against_the_champion(host: Host, root: Path) -> None:
    """Its folder and signature, golden requests and recent inputs are in the order."""
    put(root, 1)
    await host.catalog.scan()
    document = Endpoint(schema=1, model="m", recording=Recording(reservoir=4))
    await host.registry.put_endpoint("front", document, ASKED)
    request: dict[str, object] = {"inputs": []}
    host.data_plane.recent_inputs = (  # type: ignore[method-assign]
        lambda endpoint: [{"request": request}] if endpoint == "front" else []
    )
    folder = put(root, 2, "second")
    (folder / "golden.json").write_text(
        '{"schema":1,"golden":[{"request":{},"expected":{},"name":"g"}]}'
    )
    await host.catalog.scan()
    await host.catalog.scan()
    order = host.inspector.orders[-1]
    assert order.champion is not None
    assert (Path(order.champion) / "model.onnx").read_bytes() == b"onnx4"
    assert order.champion_signature == host.inspector.signature
    assert order.inputs == (request,)
    assert [golden.name for golden in order.golden] == ["g"]


async def test_a_bad_golden_file_is_a_fault(host: Host, root: Path) -> None:
    """It is part of the version, so the version is refused, in words."""
    (put(root, 1) / "golden.json").write_text("[]")
    await host.catalog.scan()
    ((_, _, reason),) = host.catalog.refused()
    assert "golden.json cannot be read" in reason
    assert host.inspector.orders == []


async def test_an_inspector_that_is_away_is_asked_again(
    host: Host, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is registered unseen; once it is back, the version is."""
    monkeypatch.setattr("gateway.control.copies.FIRST_RETRY_S", 0.0)
    put(root, 1)
    host.inspector.away = True
    await host.catalog.scan()
    assert host.registry.snapshot.models == {}
    assert "No inspection" in host.catalog.refused()[0][2]
    host.inspector.away = False
    await host.catalog.scan()
    assert host.catalog.refused() == []
    assert list(host.registry.snapshot.models) == ["m"]


async def test_a_slow_inspection_delays_no_other_model(host: Host, root: Path) -> None:
    """While one model's version is looked at, another's is registered."""
    host.inspector.gate = asyncio.Event()
    put(root, 1, model="slow")
    put(root, 1, model="m")
    scanning = asyncio.create_task(host.catalog.scan())
    async with asyncio.timeout(5):
        while "m" not in host.registry.snapshot.models:  # noqa: ASYNC110 - the scan changes it
            await asyncio.sleep(0.005)
    assert "slow" not in host.registry.snapshot.models
    host.inspector.gate.set()
    assert await scanning
    assert "slow" in host.registry.snapshot.models


async def test_two_uploads_of_one_number_have_one_winner(host: Host, other: Host) -> None:
    """M22 over hosts: the number is taken once; the loser is told and leaves nothing."""
    wishes = [
        each.registrar.register(
            Registration("m", number=1, upload=each.upload(content)), Request(actor="ana")
        )
        for each, content in ((host, b"one"), (other, b"two"))
    ]
    results = await asyncio.gather(*wishes, return_exceptions=True)
    lost = [error for error in results if isinstance(error, GatewayError)]
    assert [type(error) for error in lost] == [Conflict]
    assert sorted(host.models.scan()) == [("m", 1)]
    snapshot = await host.registry.fresh()
    assert host.models.fetch("m", 1).manifest.digest == snapshot.models["m"].versions[1]


async def test_two_uploads_without_a_number_get_two(host: Host, other: Host) -> None:
    """Whoever comes second takes the next one."""
    wishes = [
        each.registrar.register(
            Registration("m", upload=each.upload(content)), Request(actor="ana")
        )
        for each, content in ((host, b"one"), (other, b"two"))
    ]
    entered = await asyncio.gather(*wishes)
    assert sorted(one.manifest.number for one in entered) == [1, 2]
    assert host.models.scan() == [("m", 1), ("m", 2)]
    snapshot = await host.registry.fresh()
    assert snapshot.models["m"].aliases["champion"] in (1, 2)


async def test_a_registered_version_is_found_by_other_hosts(host: Host, other: Host) -> None:
    """Their catalogs see it whole, known already, and make no entry of their own."""
    upload = host.upload(b"one")
    await host.registrar.register(Registration("m", upload=upload), Request(actor="ana"))
    await other.registry.fresh()
    await other.catalog.scan()
    assert other.catalog.index() == [("m", 1, None)]
    assert other.registry.snapshot.reviews["m/1"].registered_by == "ana"
    assert other.inspector.orders == []


async def test_a_refused_upload_takes_no_number(host: Host, root: Path) -> None:
    """The next good one gets it, and the model store never saw the bad one."""
    with pytest.raises(VersionRefused):
        await host.registrar.register(Registration("m", upload=host.upload(b"bad")), ASKED_BY_ANA)
    assert host.models.scan() == []
    entered = await host.registrar.register(
        Registration("m", upload=host.upload(b"good")), ASKED_BY_ANA
    )
    assert entered.manifest.number == 1


async def test_files_that_were_lost_are_brought_back(host: Host, root: Path) -> None:
    """After a crash between commit and publishing, the same bytes heal the model store."""
    await host.registrar.register(Registration("m", upload=host.upload(b"one")), ASKED_BY_ANA)
    (root / "m" / "1" / "model.onnx").unlink()
    (root / "m" / "1").rmdir()
    again = await host.registrar.register(
        Registration("m", upload=host.upload(b"one")), ASKED_BY_ANA
    )
    assert (again.manifest.number, again.change) == (1, None)
    assert (root / "m" / "1" / "model.onnx").read_bytes() == b"one"


ASKED_BY_ANA = Request(actor="ana")


async def test_the_same_bytes_from_two_hosts_are_one_version(host: Host, other: Host) -> None:
    """Both are told that it stands, though only one of them puts its files in their place."""
    wishes = [
        each.registrar.register(
            Registration("m", number=1, upload=each.upload(b"one")), ASKED_BY_ANA
        )
        for each in (host, other)
    ]
    entered = await asyncio.gather(*wishes)
    assert {one.manifest.number for one in entered} == {1}
    assert sum(one.change is not None for one in entered) == 1
    assert host.models.scan() == [("m", 1)]
    assert sorted(path.name for path in (host.folder.parent / "models" / "m").iterdir()) == ["1"]


async def test_files_under_a_retired_number_are_left_alone(
    host: Host, other: Host, root: Path, store: MemoryStore
) -> None:
    """They are neither refused nor inspected again, also after a restart, whatever they are."""
    put(root, 1)
    put(root, 2, "second")
    await host.catalog.scan()

    async def make(base: Snapshot) -> Snapshot:
        model = base.models["m"]
        gone = {1: model.versions[1]}
        kept = replace(model, versions={2: model.versions[2]}, retired=gone)
        return replace(base, models={"m": kept}, reviews={})

    await host.registry.commit(Edit("model.retire", "models/m", make), ASKED)
    await other.registry.fresh()
    for each in (host, other, other):
        await each.catalog.scan()
    put(root, 1, "third")
    for each in (host, host, other, other):
        await each.catalog.scan()
        assert each.catalog.index() == [("m", 2, None)]
    assert other.inspector.orders == []
    assert [entry.action for entry in store.entries][-1] == "model.retire"
    with pytest.raises(Conflict, match=r"was retired; take another number"):
        await host.registrar.register(Registration("m", number=1, source="m/1"), ASKED_BY_ANA)


async def test_a_refusal_that_could_not_be_written_down_is_later(
    host: Host, other: Host, root: Path, store: MemoryStore, governance: MemoryGovernance
) -> None:
    """The report says that it was written down, so it must not be kept before that."""
    put(root, 1, "bad")
    store.away = True
    await host.catalog.scan()
    assert governance.reports == {}
    store.away = False
    await other.catalog.scan()
    assert [entry.action for entry in store.entries] == ["model.refuse"]
    assert list(governance.reports) == [("m", 1)]
