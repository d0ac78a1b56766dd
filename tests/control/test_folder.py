import asyncio
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis.asyncio import Redis

from gateway.adapters.redis import RedisEvidence, RedisFolds
from gateway.adapters.redis_keys import keys_of
from gateway.adapters.valkey import EmbeddedValkey
from gateway.control import folder
from gateway.control.folder import HELD_S, RETENTION_S, Folder, FolderParts, watermark
from gateway.core.endpoints import UnitKey
from gateway.core.errors import StoreUnavailable
from gateway.core.evidence import Entry, Outcome, Sightings, encode_entry
from gateway.core.experiments import ExperimentRecord, State
from gateway.core.folding import fold, recompute
from gateway.core.gathering import Work
from gateway.core.studies import Studies, studies_of
from gateway.core.tallies import Evidence
from gateway.core.unit_states import UnitState, decode_unit
from gateway.evidence_ports import FoldBatch, FoldStore, Stored, Waiting
from gateway.serving.cells import Cells
from tests.evidence import (
    UNIT,
    Folded,
    counted,
    killed_record,
    ordered,
    record_of,
    row,
    seen,
    told,
    unit_of,
)

NOW = 2_000_000.0
NOW_MS = int(1000 * NOW)
EARLY_MS = NOW_MS - 100_000
ROOT = Path(__file__).resolve().parents[2]


class Place:
    """A store with a stream, and folders on it."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url, self.namespace = url, namespace
        self.folds = RedisFolds(url, namespace=namespace, timeout_s=5.0, name="test")
        self.evidence = RedisEvidence(url, namespace=namespace, timeout_s=5.0, name="test")
        self.records: dict[str, ExperimentRecord] = {"exp": record_of()}
        self.revision = 100
        self.now = NOW
        self.leads = True
        self.cells = Cells()
        self.shipped = 0

    @property
    def studies(self) -> Studies:
        return studies_of(self.revision, self.records)

    async def newest(self) -> Studies:
        return self.studies

    def folder(self, store: FoldStore | None = None) -> Folder:
        return Folder(
            FolderParts(
                store=store or self.folds,
                studies=lambda: self.studies,
                newest=self.newest,
                leads=lambda: self.leads,
                now=lambda: self.now,
                entropy=os.urandom,
                cells=self.cells,
            )
        )

    async def ship(self, *entries: Entry, through_ms: int = NOW_MS, host: str = "h") -> None:
        numbered = [(self.shipped + place, encode_entry(e)) for place, e in enumerate(entries, 1)]
        self.shipped += len(entries)
        await self.evidence.ship(host, numbered, through_ms)

    async def tell(self, *events: Sightings | Outcome, at_ms: int = NOW_MS) -> None:
        await self.ship(Entry(at_ms, events))

    async def tallies(self) -> Evidence:
        return (await self.folds.evidence(["x1"]))["x1"]

    async def states(self) -> dict[bytes, bytes]:
        client: Any = Redis.from_url(self.url)
        states: dict[bytes, bytes] = await client.hgetall(keys_of(self.namespace).study("x1").units)
        await client.aclose()
        return states

    async def close(self) -> None:
        await self.folds.close()
        await self.evidence.close()


@pytest.fixture
async def place(valkey_url: str, namespace: str) -> AsyncIterator[Place]:
    """Empty, on the real server."""
    empty = Place(valkey_url, namespace)
    yield empty
    await empty.close()


async def drain(folding: Folder) -> None:
    """Turn until nothing is left to do."""
    while await folding.turn():
        pass


def story(units: int = 60, seed: int = 5) -> list[Entry]:
    """Sightings, outcomes, revisions and repetitions of some units, all before now."""
    rng = random.Random(seed)
    entries = []
    for number in range(1, units + 1):
        at_ms = NOW_MS - 60_000 + number
        sighting = seen(row(number, ms=at_ms, variant=number % 2, bits=rng.randrange(8)))
        entries.append(Entry(at_ms, (sighting,)))
        for nonce in range(rng.randrange(4)):
            outcome = told(
                rng.randrange(8) / 4,
                unit=number,
                nonce=10 * number + nonce,
                at_ms=at_ms,
                variant="ab"[number % 2],
                sequence=rng.randrange(2),
            )
            entries += [Entry(at_ms + rng.randrange(2000), (outcome,))] * rng.randrange(1, 3)
    rng.shuffle(entries)
    return entries


def reference(entries: Sequence[Entry], record: ExperimentRecord) -> Folded:
    """All of it in a single pass."""
    study = studies_of(100, {"exp": record}).by_id["x1"]
    return Folded(study).take(*entries).freeze(NOW_MS - 1)


def decoded(states: Mapping[bytes, bytes]) -> dict[bytes, UnitState]:
    """States without the order in which their facts came."""
    return {key: decode_unit(data) for key, data in states.items()}


async def assert_exact(place: Place, entries: Sequence[Entry]) -> None:
    """Nothing is lost and nothing doubled."""
    expected = reference(entries, place.records["exp"])
    stored = await place.tallies()
    # Values are quarters, so that sums have no rounding to hide behind.
    assert stored.cells == expected.evidence.cells
    states = await place.states()
    assert decoded(states) == decoded(expected.units)
    results = (await place.folds.results())["x1"]
    assert results == {name: n for name, n in expected.results.items() if n}


async def test_a_turn_folds_what_waits_and_freezes_what_is_due(place: Place) -> None:
    """Through the watermark, which is told with the tallies."""
    entries = story()
    await place.ship(*entries)
    await drain(place.folder())
    await assert_exact(place, entries)
    assert (await place.tallies()).through_ms == NOW_MS - 1
    assert all(metric.waiting == 0 for cell in (await place.tallies()).cells
               for metric in cell.metrics.values())  # fmt: skip


async def test_many_entries_take_many_turns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn does a bounded part."""
    monkeypatch.setattr(folder, "MAX_ENTRIES", 20)
    monkeypatch.setattr(folder, "MAX_EVENTS", 15)
    monkeypatch.setattr(folder, "MAX_FROZEN", 4)
    entries = story()
    await place.ship(*entries)
    folding, turns = place.folder(), 1
    while await folding.turn():
        turns += 1
    assert turns > len(entries) / 20
    await assert_exact(place, entries)


async def test_units_wait_for_the_host_that_shipped_least(place: Place) -> None:
    """Its outcomes may still come; once it says more, they freeze."""
    await place.tell(seen(row(ms=NOW_MS - 5000)))
    await place.ship(host="slow", through_ms=NOW_MS - 4000)
    folding = place.folder()
    await drain(folding)
    (cell,) = (await place.tallies()).cells
    assert cell.metrics["m"].waiting == 1
    await place.ship(host="slow", through_ms=NOW_MS - 3999)
    place.now += 1
    await drain(folding)
    (cell,) = (await place.tallies()).cells
    assert cell.metrics["m"].missing == 1


@pytest.mark.parametrize(
    ("shipped", "expected"),
    [
        ({}, 0),
        ({"a": NOW_MS - 5, "b": NOW_MS - 9}, NOW_MS - 10),
        ({"a": NOW_MS - 5, "gone": NOW_MS - 900_001}, NOW_MS - 6),
        ({"gone": NOW_MS - 900_001}, 0),
        ({"ahead": NOW_MS + 5_000}, NOW_MS),
    ],
)
def test_the_watermark(shipped: dict[str, int], expected: int) -> None:
    """The least of the hosts that were heard of lately, never in the future."""
    assert watermark(shipped, NOW) == expected


def test_a_host_that_comes_back_counts_though_it_is_behind() -> None:
    """Nothing is through that it may still ship, and no moment is before all time."""
    shipped = {"a": NOW_MS - 5, "back": NOW_MS - 900_001}
    assert watermark(shipped, NOW, {"back"}) == NOW_MS - 900_002
    assert watermark({"new": 0}, NOW, {"new"}) == 0


async def test_no_unit_is_frozen_before_hosts_that_the_store_kept_waiting(place: Place) -> None:
    """Whoever ships first after a long outage does not make the others' outcomes late."""
    away_ms = NOW_MS - 1_200_000
    for host in ("a", "b"):
        await place.ship(through_ms=away_ms, host=host)
    await place.tell(seen(row(ms=away_ms - 500)), at_ms=away_ms - 500)
    folding = place.folder()
    await place.ship(host="a")
    await drain(folding)
    place.now += folder.BACK_S - 1
    bought = Entry(away_ms + 100, (told(at_ms=away_ms - 500),))
    await place.ship(bought, host="b", through_ms=away_ms + 100)
    await place.ship(host="b")
    await drain(folding)
    (cell,) = (await place.tallies()).cells
    assert (cell.metrics["m"].units, cell.metrics["m"].late) == (1, 0)


async def test_a_host_that_does_not_catch_up_is_given_up(place: Place) -> None:
    """Neither one that is gone nor one with a slow clock keeps units waiting for ever."""
    await place.ship(through_ms=NOW_MS - 1_200_000, host="gone")
    await place.tell(seen(row(ms=NOW_MS - 5000)))
    folding = place.folder()
    waiting = []
    for _ in range(4):
        await place.ship(through_ms=int(1000 * place.now) - 1_200_000, host="slow")
        await place.ship(through_ms=int(1000 * place.now))
        await drain(folding)
        (cell,) = (await place.tallies()).cells
        waiting.append(cell.metrics["m"].waiting)
        place.now += 11
    assert waiting == [1, 1, 1, 0]


async def test_a_newer_phase_waits_for_its_snapshot(place: Place) -> None:
    """What is behind it waits, too; nothing is set aside."""
    place.revision = 8
    await place.tell(seen(row()))
    await place.tell(seen(row(2, phase=9)))
    place.records["exp"] = record_of(phases=(7,))
    folding = place.folder()
    await drain(folding)
    assert [cell.assigned for cell in (await place.tallies()).cells] == [1]
    place.revision, place.records["exp"] = 9, record_of()
    await drain(folding)
    assert [cell.assigned for cell in (await place.tallies()).cells] == [1, 1]
    assert "" not in await place.folds.results()


async def test_a_phase_that_stays_unknown_is_set_aside(place: Place) -> None:
    """After a while, and the next one at once."""
    place.revision = 8
    await place.tell(seen(row(phase=50)), told(phase=50))
    folding = place.folder()
    assert not await folding.turn()
    place.now += HELD_S
    await drain(folding)
    await place.tell(told(phase=51), told(phase=0), told(name="other"), told(variant="z"))
    await drain(folding)
    assert (await place.folds.results())[""] == {
        "unknown_phase": 3, "no_experiment": 1, "unknown_outcome": 1, "unknown_variant": 1
    }  # fmt: skip


async def test_an_entry_that_cannot_be_read_stops_nothing(place: Place) -> None:
    """It is set aside and counted."""
    await place.evidence.ship("h", [(1, b"\xc1"), (2, b"")], NOW_MS)
    await place.evidence.ship(
        "g", [(1, encode_entry(Entry(1, (Sightings(b"short"), seen(row())))))], NOW_MS
    )
    await place.evidence.ship("i", [(1, encode_entry(Entry(1, (seen(row()),))))], NOW_MS)
    await drain(place.folder())
    assert (await place.folds.results())[""] == {"unreadable": 3}
    assert [cell.assigned for cell in (await place.tallies()).cells] == [1]


async def test_an_entry_that_cannot_be_folded_costs_itself_only(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours is looked for entry by entry, set aside and logged; the rest is folded."""

    def fail(self: Work, *rest: Any) -> Any:
        if unit_of(13) in self.sightings:
            message = "a fault"
            raise RuntimeError(message)
        return fold(self, *rest)

    monkeypatch.setattr(folder, "fold", fail)
    await place.ship(*(Entry(NOW_MS, (seen(row(number)),)) for number in range(11, 16)))
    folding = place.folder()
    await drain(folding)
    assert [cell.assigned for cell in (await place.tallies()).cells] == [4]
    assert (await place.folds.results())[""] == {"unreadable": 1}
    assert "could not be folded" in caplog.text


async def test_an_experiment_is_forgotten_on_demand(place: Place) -> None:
    """Also while somebody else folds."""
    await place.tell(seen(row()))
    folding = place.folder()
    await drain(folding)
    await asyncio.gather(folding.forget("x1"), place.folder().forget("x1"))
    assert await place.states() == {}


async def test_an_experiment_is_forgotten_after_its_retention(place: Place) -> None:
    """Everything of it; what still comes is of an unknown phase."""
    await place.tell(seen(row()))
    await drain(place.folder())
    place.records["exp"] = record_of(state=State.STOPPED, since=NOW - RETENTION_S)
    folding = place.folder()
    await drain(folding)
    assert (await place.tallies()).cells != ()
    place.now += 1
    await place.tell(seen(row(2)))
    await drain(folding)
    assert (await place.tallies()).cells == ()
    assert await place.states() == {}
    assert await place.folds.results() == {"": {"unknown_phase": 1}}


@pytest.mark.parametrize("unit", [UNIT, None])
async def test_nothing_is_left_of_an_experiment_that_was_deleted(
    place: Place, unit: UnitKey | None
) -> None:
    """Also if it was deleted while nobody led, and of one whose requests are its units."""
    place.records["exp"] = record_of(unit=unit)
    place.records["other"] = record_of(id="x2", phases=(20,))
    await place.tell(seen(row(phase=20)), seen(row()) if unit else counted(3))
    await drain(place.folder())
    del place.records["exp"]
    await place.folder().sweep()
    assert (await place.states(), await place.folds.results()) == ({}, {"x2": {"sightings": 1}})
    assert (await place.tallies()).cells == ()


async def test_no_snapshot_is_no_reason_to_delete(place: Place) -> None:
    """A store that lost it may get it back."""
    await place.tell(seen(row()))
    await drain(place.folder())
    place.records, place.revision = {}, 0
    await place.folder().sweep()
    assert len(await place.states()) == 1


async def test_what_was_folded_is_counted_in_cells(place: Place) -> None:
    """By result, for dashboards."""
    await place.tell(seen(row()), told(1.0), told(1.0), told(phase=0))
    await drain(place.folder())
    values = {
        (series.instrument.name, *(value for _, value in series.attributes)): series.value
        for series in place.cells.collect()
    }
    assert values["tiltyard.evidence.folded", "accepted"] == 1
    assert values["tiltyard.evidence.folded", "duplicate"] == 1
    assert values["tiltyard.evidence.quarantined", "no_experiment"] == 1


async def until(is_so: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until an awaitable says yes."""
    async with asyncio.timeout(seconds):
        while not await is_so():  # noqa: ASYNC110 - the store tells nobody
            await asyncio.sleep(0.02)


async def test_only_the_leader_folds(place: Place) -> None:
    """Another process takes over when the lead does."""
    await place.tell(seen(row()))
    place.leads = False
    task = asyncio.create_task(place.folder().run())

    async def is_folded() -> bool:
        return bool((await place.tallies()).cells)

    await asyncio.sleep(0)
    assert not await is_folded()
    place.leads = True
    await until(is_folded)
    task.cancel()


# Exactly once.


async def test_two_folders_at_once_never_double(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both believe that they lead; each turn is won by one of them."""
    monkeypatch.setattr(folder, "MAX_EVENTS", 5)
    entries = story(120)
    await place.ship(*entries)
    others = [RedisFolds(place.url, namespace=place.namespace, timeout_s=5.0, name=name)
              for name in "ab"]  # fmt: skip
    async with asyncio.TaskGroup() as group:
        for store in others:
            group.create_task(drain(place.folder(store)))
    for store in others:
        await store.close()
    await assert_exact(place, entries)


_Done = TypeVar("_Done")


class Breaking:
    """A store that fails at one step of all, before or after it was done."""

    def __init__(self, store: FoldStore, at: int) -> None:
        self.store, self.at = store, at
        self.steps = 0

    async def _do(self, step: Awaitable[_Done]) -> _Done:
        self._break()
        done = await step
        self._break()
        return done

    def _break(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            raise StoreUnavailable("Broken.")

    async def waiting(self, limit: int) -> Waiting:
        return await self._do(self.store.waiting(limit))

    async def stored(self, wanted: Mapping[str, Sequence[bytes]]) -> dict[str, Stored]:
        return await self._do(self.store.stored(wanted))

    async def due(self, ids: Sequence[str], through_ms: int, limit: int) -> dict[str, list[bytes]]:
        return await self._do(self.store.due(ids, through_ms, limit))

    async def write(self, batch: FoldBatch) -> bool:
        return await self._do(self.store.write(batch))

    async def evidence(self, ids: Sequence[str]) -> dict[str, Evidence]:
        return await self._do(self.store.evidence(ids))

    async def units(self, experiment_id: str, limit: int) -> dict[bytes, bytes]:
        return await self._do(self.store.units(experiment_id, limit))

    async def results(self) -> dict[str, dict[str, int]]:
        return await self._do(self.store.results())

    async def close(self) -> None:
        """Nothing of its own."""


@pytest.mark.filterwarnings("ignore:coroutine")
async def test_a_failure_between_any_two_steps_loses_and_doubles_nothing(
    valkey_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after every call to the store, in turn; then the turn is taken again."""
    monkeypatch.setattr(folder, "MAX_EVENTS", 10)
    monkeypatch.setattr(folder, "MAX_FROZEN", 8)
    entries = story(12)
    for at in itertools.count(1):
        place = Place(valkey_url, f"{namespace}-{at}")
        await place.ship(*entries)
        breaking = Breaking(place.folds, at)
        folding = place.folder(breaking)
        try:
            await drain(folding)
        except StoreUnavailable:
            await drain(folding)
        await assert_exact(place, entries)
        await place.close()
        if breaking.steps < at:
            break
    assert at > 30


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.e2e
async def test_kill_9_at_any_moment_loses_and_doubles_nothing(place: Place) -> None:
    """A process that folds is killed again and again while more comes, until all is folded."""
    rng = random.Random(3)
    place.records["exp"] = killed_record()
    entries = story(150)
    parts = [entries[start : start + 40] for start in range(0, len(entries), 40)]
    kills, place.now = 0, time.time()

    async def is_done() -> bool:
        waiting = await place.folds.waiting(1)
        return waiting.is_all and waiting.entries == [] and not parts

    children = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("folding_child.py")),
        place.url, place.namespace,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert children.stdin is not None
    assert children.stdout is not None
    async with asyncio.timeout(120):
        while not await is_done():
            if parts:
                await place.ship(*parts.pop(), through_ms=0)
            children.stdin.write(b"\n")
            pid = int(await children.stdout.readline())
            try:
                # Longer and longer, so that a slow machine comes to an end, too.
                await asyncio.sleep(rng.uniform(0.0, 0.03 * (1 + kills / 3)))
            finally:
                os.kill(pid, signal.SIGKILL)
            kills += 1
    children.stdin.close()
    assert await children.wait() == 0
    assert kills >= 5
    place.now = NOW
    await place.ship(through_ms=NOW_MS)
    await drain(place.folder())
    await assert_exact(place, entries)


@pytest.mark.usefixtures("no_server_left")
async def test_redis_away_and_back(tmp_path: Path) -> None:
    """Folding stands still meanwhile and goes on by itself; nothing is lost."""
    server = EmbeddedValkey(tmp_path)
    await server.start()
    place = Place(server.url, "away")
    entries = story(40)
    await place.ship(*entries[:20], through_ms=EARLY_MS)
    task = asyncio.create_task(place.folder().run())

    async def is_folded() -> bool:
        waiting = await place.folds.waiting(1)
        return waiting.mark != b"" and not waiting.entries

    await until(is_folded)
    await server.stop()
    with pytest.raises(StoreUnavailable):
        await place.folds.waiting(1)
    await server.start()
    await place.ship(*entries[20:])
    place.now += 1
    await until(is_folded)
    task.cancel()
    await drain(place.folder())
    await assert_exact(place, entries)
    await place.close()
    await server.stop()


async def test_recomputed_from_the_store_it_is_the_same(place: Place) -> None:
    """Tallies are sums over the states that are stored."""
    await place.ship(*story(80, seed=9))
    await drain(place.folder())
    study = place.studies.by_id["x1"]
    assert recompute(study, await place.states()) == ordered((await place.tallies()).cells)
