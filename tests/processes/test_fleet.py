import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any, cast

import pytest

from gateway.core.errors import NotFound, NotReady, Overloaded
from gateway.core.evidence import SIGHTING, Sightings, encode_events, encode_sightings
from gateway.core.experiments import Phase, study_of
from gateway.core.models import Key
from gateway.ports import Artifact, EndpointReport, Parcel, Update, VersionReport, WorkerReport
from gateway.processes import homeward as homeward_page
from gateway.processes.birth import Birth
from gateway.processes.fleet import Fleet
from gateway.processes.frames import (
    Apply,
    Ask,
    Entrust,
    Handed,
    Hello,
    Message,
    Pulse,
    Reply,
    Row,
    Standing,
    Terms,
)
from gateway.processes.homeward import FarOutcomes, FarRepository, Homeward
from gateway.processes.link import AWAY, Link
from gateway.processes.roster import Roster, size_of
from gateway.serving.cells import Cells
from gateway.serving.vitals import FIRST_LANE, HANDED_OVER, RECORDS
from gateway.settings import Settings
from gateway.telemetry import ASSIGNMENT_COUNT, PREDICTION_LOST, SIGHTING_DROPPED
from tests.experiments import EVEN, experiment_of
from tests.fakes import FakeEngine, FakeRepository, FakeSink, manifest_of
from tests.planes import SECRETS, Plane, model_of, snapshot_of, until
from tests.records import make_record

SECRET = "a secret"
ONE: Key = ("m", 1)
UPDATE = Update(snapshot=snapshot_of(3), artifacts={}, missing={})


class Sink:
    """Notes what the fleet does with records."""

    def __init__(self) -> None:
        self.sources: list[tuple[str, int, int]] = []
        self.received: list[tuple[str, int]] = []
        self.losses: list[tuple[str, int]] = []

    def source(self, name: str, pid: int, settled: int) -> None:
        self.sources.append((name, pid, settled))

    def receive(self, source: str, parcel: Parcel) -> None:
        self.received.append((source, parcel.first))

    def lost(self, source: str, made: int) -> None:
        self.losses.append((source, made))


class House:
    """A fleet that listens, with a roster of three workers."""

    def __init__(self) -> None:
        self.roster = Roster(bytearray(size_of(4)), 4)
        self.cells = Cells()
        self.sink = Sink()
        self.fleet = Fleet(self.roster, SECRET, self.cells, shadow_samples=2)
        self.fleet.record_to(self.sink, with_spans=False)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind("")
        self.watching: asyncio.Task[None] | None = None
        self.server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return cast(bytes, self.listening.getsockname()).decode("latin-1")

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_unix_server(self.fleet.link, sock=self.listening)
        self.watching = asyncio.create_task(self.fleet.watch())

    async def close(self) -> None:
        assert self.server is not None
        assert self.watching is not None
        self.fleet.close()
        await self.fleet.emptied()
        self.watching.cancel()
        self.server.close()

    async def worker(self, slot: int, life: int = 1, *, secret: str = SECRET) -> "FakeWorker":
        """A worker that said hello."""
        if self.roster.life(slot) < life:
            self.roster.open(slot, life, 0)
        worker = FakeWorker(self, slot, life)
        nearby = socket.socket(socket.AF_UNIX)
        nearby.connect(self.address)
        nearby.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: worker.link, sock=nearby)
        worker.link.send(Hello(slot, life, 1000 + slot, secret))
        return worker


class FakeWorker:
    """The far end of a link, which says what it is told to."""

    def __init__(self, house: House, slot: int, life: int) -> None:
        self.house, self.slot, self.life = house, slot, life
        self.heard: list[Message] = []
        self.counted = 0
        self.mute = False
        self.link = Link(self._received, self._lost)
        self.is_cut = False

    def stand(self, revision: int, *, ready: bool = True, state: str = "ready") -> None:
        report = WorkerReport(
            revision=revision,
            ready=ready,
            endpoints={"m": EndpointReport(revision=revision)},
            versions=(VersionReport("m", 1, state),),
        )
        self.link.send(Standing(report, {FIRST_LANE: ONE}))

    def die(self, code: int = -signal.SIGKILL) -> None:
        """Go as a killed process does: the link ends, and the supervisor notes it."""
        self.link.cut()
        self.house.roster.end(self.slot, self.life, code)

    def _received(self, link: Link, message: Message) -> None:
        self.heard.append(message)
        if isinstance(message, Ask) and message.what == "inputs" and not self.mute:
            link.send(Reply(message.serial, [{"time_unix_nano": self.counted}]))
        elif isinstance(message, Ask) and not self.mute:
            row = Row(ASSIGNMENT_COUNT.name, (), self.counted, (), 0.0)
            link.send(Pulse((row,), [], {}))

    def _lost(self, link: Link) -> None:
        self.is_cut = True


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A fleet that listens."""
    made = House()
    await made.open()
    yield made
    await made.close()


def assigned(fleet: Fleet) -> float:
    """What all workers counted."""
    return sum(one.value for one in fleet.collect() if one.instrument is ASSIGNMENT_COUNT)


async def test_a_worker_is_told_all_that_matters_when_it_comes(house: House) -> None:
    """Who comes late hears the terms, the secrets and the newest Snapshot, in that order."""
    house.fleet.apply(Update(snapshot=snapshot_of(2), artifacts={}, missing={}))
    house.fleet.apply(UPDATE)
    house.fleet.entrust(SECRETS)

    worker = await house.worker(1)
    await until(lambda: len(worker.heard) == 3)

    assert worker.heard == [Terms(records=True, spans=False), Entrust(SECRETS), Apply(UPDATE)]


async def test_a_change_reaches_every_worker(house: House) -> None:
    """What is handed over goes to all that are there."""
    workers = [await house.worker(slot) for slot in (1, 2, 3)]
    await until(lambda: all(worker.heard for worker in workers))

    house.fleet.apply(UPDATE)
    await until(lambda: all(len(worker.heard) == 2 for worker in workers))

    assert {type(worker.heard[-1]) for worker in workers} == {Apply}


@pytest.mark.parametrize(
    ("slot", "secret"),
    [pytest.param(1, "another", id="secret"), pytest.param(9, SECRET, id="slot")],
)
async def test_a_stranger_is_sent_away(house: House, slot: int, secret: str) -> None:
    """Who does not know the secret, or claims a place that there is not, hears nothing."""
    house.fleet.entrust(SECRETS)
    stranger = FakeWorker(house, slot, 1)
    nearby = socket.socket(socket.AF_UNIX)
    nearby.connect(house.address)
    loop = asyncio.get_running_loop()
    nearby.setblocking(False)
    await loop.create_unix_connection(lambda: stranger.link, sock=nearby)

    stranger.link.send(Hello(slot, 1, 1, secret))
    await until(lambda: stranger.is_cut)

    assert stranger.heard == []


async def test_a_new_worker_does_not_hold_the_others_back(house: House) -> None:
    """A worker that is starting again is part of the host's report once it serves."""
    first = await house.worker(1)
    first.stand(5)
    await until(lambda: house.fleet.report().revision == 5)
    second = await house.worker(2)

    second.stand(4, ready=False, state="loading")
    second.link.send(Pulse((), [], None))
    await until(lambda: has_stood(house, 2))
    assert (house.fleet.report().revision, house.fleet.report().ready) == (5, True)

    second.stand(4)
    await until(lambda: house.fleet.report().revision == 4)


async def test_what_a_dead_worker_counted_is_kept(house: House) -> None:
    """Counters never go back, whoever dies."""
    one, two = await house.worker(1), await house.worker(2)
    one.counted, two.counted = 3, 4
    await until(lambda: house.fleet.connected == 2 and len(house.fleet._members) == 2)
    await house.fleet.refresh()
    assert assigned(house.fleet) == 7

    one.die()
    await until(lambda: 1 not in house.fleet._members)
    again = await house.worker(1, life=2)
    again.counted = 10
    await until(lambda: 1 in house.fleet._members)
    await house.fleet.refresh()

    assert assigned(house.fleet) == 17


async def test_what_workers_see_of_units_is_handed_on(house: House) -> None:
    """To whoever keeps evidence; until somebody does it is dropped and counted."""
    worker = await house.worker(1)
    seen = Sightings(units=bytes(2 * SIGHTING.size))
    parcel = Parcel(1, 0, 0, b"", sightings=encode_sightings(seen))
    worker.link.send(Handed(parcel))
    await until(lambda: bool(house.cells.counter(SIGHTING_DROPPED).value))
    assert house.cells.counter(SIGHTING_DROPPED).value == 2

    kept: list[Sightings] = []
    house.fleet.observe_with(kept.append)
    worker.link.send(Handed(parcel))
    await until(lambda: bool(kept))
    assert kept == [seen]


async def test_what_died_with_a_worker_is_counted(house: House) -> None:
    """Requests in flight are lost predictions of their version; records are settled by serial."""
    worker = await house.worker(2)
    worker.stand(1)
    worker.link.send(Handed(Parcel(first=1, records=5, dropped=0, logs=b"x")))
    await until(lambda: bool(house.sink.received) and house.fleet.report().revision == 1)
    region = house.roster.region(2, 1)
    region[FIRST_LANE], region[RECORDS] = 3, 9

    worker.die()
    await until(lambda: bool(house.sink.losses))

    lost = [one for one in house.cells.collect() if one.instrument is PREDICTION_LOST]
    assert [one.value for one in lost] == [3]
    assert dict(lost[0].attributes) == {
        "tiltyard.model.name": "m",
        "tiltyard.model.version": 1,
        "error.type": "process_lost",
    }
    assert house.sink.sources == [("2", 1002, 0)]
    assert house.sink.received == [("2", 1)]
    assert house.sink.losses == [("2", 9)]


async def test_a_worker_that_ends_after_its_link_is_missed_all_the_same(house: House) -> None:
    """A link may be lost long before the process is gone."""
    worker = await house.worker(2)
    await until(lambda: 2 in house.fleet._members)
    worker.link.cut()
    await until(lambda: house.fleet.connected == 0)
    assert 2 in house.fleet._members

    house.roster.end(2, 1, 0)
    await until(lambda: 2 not in house.fleet._members)


async def test_a_link_that_was_lost_is_no_death(house: House) -> None:
    """A worker that lives and comes back is known as it was; nothing of it is lost."""
    worker = await house.worker(1)
    worker.stand(7)
    await until(lambda: house.fleet.report().revision == 7)
    house.roster.region(1, 1)[FIRST_LANE] = 2

    worker.link.cut()
    await until(lambda: house.fleet.connected == 0)
    assert house.fleet.report().revision == 7
    await house.worker(1)
    await until(lambda: house.fleet.connected == 1)

    assert house.sink.losses == []
    assert house.sink.sources == [("1", 1001, 0)]


async def test_a_new_control_does_not_miss_what_the_old_one_took(house: House) -> None:
    """Serials that a worker handed over before are settled."""
    house.roster.open(1, 1, 0)
    house.roster.region(1, 1)[HANDED_OVER] = 41

    await house.worker(1)
    await until(lambda: bool(house.sink.sources))

    assert house.sink.sources == [("1", 1001, 41)]


async def test_a_worker_that_does_not_answer_keeps_nobody_waiting(house: House) -> None:
    """A refresh takes what comes in time; of the others, what they said last counts."""
    one, two = await house.worker(1), await house.worker(2)
    one.counted, two.counted = 3, 4
    await until(lambda: len(house.fleet._members) == 2)
    await house.fleet.refresh()
    one.mute, one.counted, two.counted = True, 30, 40

    await house.fleet.refresh()

    assert assigned(house.fleet) == 43


async def test_recent_inputs_are_those_of_all_workers(house: House) -> None:
    """What workers kept is fetched when it is asked for, oldest first, and not kept here."""
    one, two = await house.worker(1), await house.worker(2)
    one.counted, two.counted = 20, 10
    await until(lambda: len(house.fleet._members) == 2)

    await house.fleet.refresh("m")

    kept = [{"time_unix_nano": 10}, {"time_unix_nano": 20}]
    assert house.fleet.recent_inputs("m") == kept
    assert house.fleet.recent_inputs("m") == []


async def test_doors_of_workers_are_answered(house: House) -> None:
    """A worker's questions go to control's repository; its refusals come back as they are."""
    repository = FakeRepository()
    repository.loaded = lambda model, version: [{"name": model, "version": version}]
    worker = await house.worker(1)

    async def ask(what: Any, *words: str | int | None) -> Any:
        return await worker.link.ask(what, *words, timeout_s=5)

    with pytest.raises(NotReady, match="away"):
        await ask("index")
    house.fleet.serve(repository, FakeSink())
    entries = await ask("index")
    assert [entry["name"] for entry in entries] == ["m", "m"]
    assert await ask("statistics", "m", 2) == [{"name": "m", "version": 2}]
    await ask("load", "m", None, "admin")
    repository.error = NotFound("There is no 'm'.")
    with pytest.raises(NotFound, match="There is no 'm'"):
        await ask("unload", "m", 1, "admin")
    assert repository.asked[0] == ("load", "m", None, "admin")


async def test_outcomes_of_workers_are_kept_before_they_are_answered(house: House) -> None:
    """Control's sink has them, or its refusal comes back as it is; without control it is away."""
    sink, events = FakeSink(), encode_events((Sightings(units=b"u"),))
    with Plane({ONE: FakeEngine()}) as plane:
        homeward = homeward_of(house, plane)
        outcomes = FarOutcomes(homeward)
        with pytest.raises(NotReady, match="away"):
            await outcomes.accept((events,), 1)
        running = asyncio.create_task(homeward.run())
        await until(lambda: house.fleet.connected == 1)
        with pytest.raises(NotReady, match="away"):
            await outcomes.accept((events,), 1)
        house.fleet.serve(FakeRepository(), sink)
        await outcomes.accept((events, events), 2)
        sink.error = Overloaded("Too many outcomes wait for the store; retry later.")
        with pytest.raises(Overloaded, match="wait for the store"):
            await outcomes.accept((events,), 1)
        assert sink.kept == [Sightings(units=b"u")] * 2
        running.cancel()
        await homeward.flush()
    await until(lambda: house.fleet.connected == 0)


async def test_a_question_ends_with_its_link(house: House) -> None:
    """Who asks while control goes away is told so at once."""
    worker = await house.worker(1)
    await until(lambda: house.fleet.connected == 1)
    worker.mute = True
    asking = asyncio.create_task(worker.link.ask("pulse", timeout_s=60))
    await asyncio.sleep(0)

    worker.link.cut()

    with pytest.raises(NotReady, match=AWAY[:15]):
        await asking


async def test_a_worker_lives_on_the_link(house: House) -> None:
    """A real worker hears of a Snapshot, serves it, tells it, and does not go back."""
    with Plane({ONE: FakeEngine()}) as plane:
        homeward = homeward_of(house, plane)
        running = asyncio.create_task(homeward.run())
        newest = snapshot_of(5, models={"m": model_of(1)})
        house.fleet.entrust(SECRETS)
        house.fleet.apply(
            Update(
                snapshot=newest,
                artifacts={ONE: plane.artifact(ONE)},
                missing={},
            )
        )
        await until(lambda: house.fleet.report().ready)
        await plane.ask(plane.call(1.0))
        await house.fleet.refresh()
        house.fleet.apply(Update(snapshot=snapshot_of(4), artifacts={}, missing={}))
        with pytest.raises(NotReady):
            await FarRepository(homeward).index()

        assert house.fleet.report().revision == 5
        (row,) = house.fleet.statistics("m", 1)
        assert row["inference_count"] == 1
        running.cancel()
        await homeward.flush()
    await until(lambda: house.fleet.connected == 0)


async def test_a_quiet_worker_still_hands_over_what_comes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is recorded it looks less often, and goes on looking."""
    monkeypatch.setattr(homeward_page, "LOOK_S", 0.001)
    with Plane({ONE: FakeEngine()}) as plane:
        homeward = homeward_of(house, plane)
        running = asyncio.create_task(homeward.run())
        await until(lambda: homeward._looks > 5 * homeward_page.PULSE_LOOKS)
        assert house.sink.received == []
        plane.recorder.record(make_record())
        await until(lambda: house.sink.received == [("1", 1)])
        running.cancel()
        await homeward.flush()
    await until(lambda: house.fleet.connected == 0)


def homeward_of(house: House, plane: Plane) -> Homeward:
    """A real worker's end of the link, in the first slot."""
    house.roster.open(1, 1, 0)
    birth = Birth(
        settings=Settings(), workers=3, slot=1, life=1, address=house.address, secret=SECRET
    )
    return Homeward(birth, plane.worker, plane.recorder)


async def test_a_worker_that_may_open_no_file_comes_when_it_may(house: House) -> None:
    """What could not be connected is tried again."""
    with Plane({ONE: FakeEngine()}) as plane:
        homeward = homeward_of(house, plane)
        bounds = getrlimit(RLIMIT_NOFILE)
        setrlimit(RLIMIT_NOFILE, (0, bounds[1]))
        try:
            running = asyncio.create_task(homeward.run())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            setrlimit(RLIMIT_NOFILE, bounds)
        assert not running.done()
        await until(lambda: house.fleet.connected == 1 or running.done())
        assert not running.done()
        running.cancel()
        await homeward.flush()
    await until(lambda: house.fleet.connected == 0)


def has_stood(house: House, slot: int) -> bool:
    """Whether a worker said what it serves."""
    member = house.fleet._members.get(slot)
    return member is not None and member.report is not None


async def crash(house: House, slot: int, life: int, code: int = -signal.SIGSEGV) -> None:
    """A worker that dies while it loads what it was told."""
    worker = await house.worker(slot, life)
    await until(lambda: any(isinstance(message, Apply) for message in worker.heard))
    worker.stand(0, ready=False, state="loading")
    await until(lambda: has_stood(house, slot))
    worker.die(code)
    await until(lambda: slot not in house.fleet._members)


def update_of(revision: int) -> Update:
    """A Snapshot with an artifact of version 1."""
    artifact = Artifact(manifest=manifest_of("m", 1), path="cache/m")
    return Update(snapshot=snapshot_of(revision), artifacts={ONE: artifact}, missing={})


async def told(house: House, slot: int, life: int) -> Update:
    """What the next worker is told to serve."""
    worker = await house.worker(slot, life)
    await until(lambda: any(isinstance(message, Apply) for message in worker.heard))
    return next(message.update for message in worker.heard if isinstance(message, Apply))


async def test_a_version_that_ends_processes_is_quarantined(house: House) -> None:
    """The second process that it takes along is the last."""
    house.fleet.apply(update_of(3))
    survivor = await house.worker(3)
    await crash(house, slot=1, life=1)
    assert (await told(house, slot=2, life=1)).artifacts.keys() == {ONE}

    await crash(house, slot=1, life=2)

    next_told = await told(house, slot=1, life=3)
    assert next_told.artifacts == {}
    assert "twice" in next_told.missing[ONE]
    await until(lambda: len([m for m in survivor.heard if isinstance(m, Apply)]) == 2)


async def test_who_is_killed_accuses_nobody(house: House) -> None:
    """An operator's SIGKILL while a version is loading says nothing about the version."""
    house.fleet.apply(update_of(3))
    for life in (1, 2, 3):
        await crash(house, slot=1, life=life, code=-signal.SIGKILL)

    assert (await told(house, slot=1, life=4)).artifacts.keys() == {ONE}


async def test_a_worker_without_a_plan_first_serves_what_was_whole(house: House) -> None:
    """After a quarantine, who starts serves the Snapshot before, then hears of the newest."""
    two: Key = ("m", 2)
    house.fleet.apply(update_of(3))
    first = await house.worker(1)
    first.stand(3)
    await until(lambda: house.fleet.report().ready)
    bad = Artifact(manifest=manifest_of("m", 2), path="cache/m2")
    newest = Update(snapshot=snapshot_of(4), artifacts={ONE: bad, two: bad}, missing={})
    house.fleet.apply(newest)
    for life in (1, 2):
        worker = await house.worker(2, life)
        worker.stand(4, ready=False)
        await until(lambda: has_stood(house, 2))
        worker.die(-signal.SIGABRT)
        await until(lambda: 2 not in house.fleet._members)

    again = await house.worker(2, 3)
    await until(lambda: any(isinstance(message, Apply) for message in again.heard))
    assert [m.update.snapshot.revision for m in again.heard if isinstance(m, Apply)] == [3]
    again.stand(3)
    await until(lambda: len([m for m in again.heard if isinstance(m, Apply)]) == 2)

    last = again.heard[-1]
    assert isinstance(last, Apply)
    assert (last.update.snapshot.revision, list(last.update.missing)) == (4, [two])


async def test_units_are_told_again_after_a_link_was_lost(house: House) -> None:
    """What was on its way may be lost with it; told twice, a unit is one all the same."""
    kept: list[Sightings] = []
    house.fleet.observe_with(kept.append)
    study = study_of("x", experiment_of(), Phase(7, 0.0, 10_000, EVEN))
    seen = make_record(variant="control", study=study, unit_hash=bytes(16))
    with Plane({ONE: FakeEngine()}) as plane:
        homeward = homeward_of(house, plane)
        running = asyncio.create_task(homeward.run())
        await until(lambda: house.fleet.connected == 1)
        plane.recorder.record(seen)
        await until(lambda: len(kept) == 1)
        for link in list(house.fleet._links):
            link.cut()
        await until(lambda: house.fleet.connected == 0)
        await until(lambda: house.fleet.connected == 1)
        plane.recorder.record(seen)
        await until(lambda: len(kept) == 2)
        assert kept[0].units == kept[1].units
        running.cancel()
        await homeward.flush()
    await until(lambda: house.fleet.connected == 0)
