import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gateway.adapters.journal import Journal, kept_entries
from gateway.control.intake import Intake
from gateway.control.shipping import Shipper
from gateway.core.errors import NotReady, Overloaded, StoreUnavailable
from gateway.core.evidence import Outcome, Sightings, decode_entry, encode_events
from gateway.evidence_ports import ANY_SEQUENCE
from gateway.serving.cells import Cells
from gateway.telemetry import EVIDENCE_DROPPED, EVIDENCE_SHIPPED, OUTCOME_ACCEPTED
from tests.fakes import ManualClock
from tests.planes import until

KEEP = 1 << 20


class SlowJournal(Journal):
    """A journal that counts its writes, and fails when told to."""

    writes = 0
    error: OSError | None = None

    def append(self, entries: Sequence[bytes]) -> int:
        self.writes += 1
        if self.error is not None:
            raise self.error
        return super().append(entries)


class FakeEvidence:
    """The `EvidenceStore` port in memory. `away` fails before, `deaf` after what was asked."""

    def __init__(self) -> None:
        self.away = self.deaf = False
        self.stream: list[bytes] = []
        self.shipped: dict[str, tuple[int, int]] = {}

    async def ship(
        self,
        host: str,
        entries: Sequence[tuple[int, bytes]],
        through_ms: int,
        within: tuple[int, int] = ANY_SEQUENCE,
    ) -> int:
        if self.away:
            raise StoreUnavailable("The store cannot be reached.")
        sequence, through = self.shipped.get(host, (0, 0))
        if not within[0] <= sequence <= within[1]:
            return sequence
        self.stream += [entry for number, entry in entries if number > sequence]
        sequence = max([sequence, *(number for number, _ in entries)])
        self.shipped[host] = (sequence, max(through, through_ms))
        if self.deaf:
            raise StoreUnavailable("The store did not answer in time.")
        return sequence

    async def close(self) -> None:
        return


class House:
    """An intake that is open, and a shipper behind it, that do what they are told."""

    def __init__(self, state: Path, keep_bytes: int = KEEP) -> None:
        self.clock = ManualClock()
        self.cells = Cells()
        self.store = FakeEvidence()
        self.journal = SlowJournal(state, keep_bytes, name="h", entropy=os.urandom)
        self.intake = Intake(self.journal, self.cells, self.clock, keep_bytes)
        self.shipper = Shipper(self.intake, self.journal, self.store, self.cells, lambda: 0.0)

    @property
    def through_ms(self) -> int:
        return self.store.shipped[self.intake.host][1]

    async def accept(self, *names: str) -> None:
        """Accept outcomes and write what waits."""
        accepting = asyncio.create_task(self.intake.accept([events_of(*names)], len(names)))
        await asyncio.sleep(0)
        await self.intake.write()
        await accepting

    def names(self) -> list[str]:
        """The outcomes in the stream."""
        return names_of(self.store.stream)


def outcome(name: str) -> Outcome:
    """An outcome of that name."""
    return Outcome(1, "a", 1, "m", b"u" * 16, b"n" * 8, 5, 0.5, name, 1.0)


def events_of(*names: str) -> bytes:
    """Outcomes as they travel."""
    return encode_events([outcome(name) for name in names])


def names_of(entries: Sequence[bytes]) -> list[str]:
    """Of the outcomes in entries."""
    found = [event for entry in entries for event in decode_entry(entry).events]
    return [event.name for event in found if isinstance(event, Outcome)]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """An intake that is open."""
    made = House(tmp_path)
    await made.intake.open()
    yield made
    await made.intake.close()


async def test_an_accepted_outcome_is_on_disk(house: House, tmp_path: Path) -> None:
    """Before the caller hears of it, with the moment at which it came."""
    await house.accept("x", "y")
    ((_, entry),) = kept_entries(tmp_path)
    assert decode_entry(entry).accepted_ms == 1_000_000
    assert names_of([entry]) == ["x", "y"]
    assert house.cells.counter(OUTCOME_ACCEPTED).value == 2


async def test_all_of_a_moment_share_one_write(house: House) -> None:
    """Each caller hears once that write is synced."""
    accepting = [asyncio.create_task(house.intake.accept([events_of("x")], 1)) for _ in range(50)]
    await asyncio.sleep(0)
    await house.intake.write()
    await asyncio.gather(*accepting)
    assert house.journal.writes == 1


async def test_a_failing_disk_is_told_to_everybody_who_waits(house: House) -> None:
    """Nothing counts as accepted; the next write may succeed."""
    house.journal.error = OSError(28, "No space left on device")
    with pytest.raises(NotReady, match="could not be written"):
        await house.accept("x")
    house.journal.error = None
    await house.accept("y")
    assert house.cells.counter(OUTCOME_ACCEPTED).value == 1
    await house.shipper.ship()
    assert house.names() == ["y"]


async def test_a_full_journal_is_overload(house: House) -> None:
    """It refuses what would push out something unshipped, until that is shipped."""
    big = "x" * 300_000
    for _ in range(3):
        await house.accept(big)
    with pytest.raises(Overloaded, match="retry later"):
        await house.accept(big)
    while await house.shipper.ship():
        pass
    await house.accept("y")
    await house.shipper.ship()
    assert house.names() == [big, big, big, "y"]


async def test_sightings_go_before_outcomes(house: House, tmp_path: Path) -> None:
    """They are kept while the journal is less than half full, and counted when they are not."""
    dropped = house.cells.counter(EVIDENCE_DROPPED)
    house.intake.observe(Sightings(units=b"u" * 35))
    await house.intake.write()
    ((_, entry),) = kept_entries(tmp_path)
    assert decode_entry(entry).events == (Sightings(units=b"u" * 35),)
    await house.accept("x" * 600_000)
    house.intake.observe(Sightings())
    assert dropped.value == 1
    await house.accept("y")


async def test_nothing_is_accepted_before_and_after_its_time(tmp_path: Path) -> None:
    """A closed intake refuses outcomes; one that is over drops sightings."""
    house = House(tmp_path)
    for _ in range(2):
        with pytest.raises(NotReady):
            await house.intake.accept([events_of("x")], 1)
        if not house.intake.host:
            await house.intake.open()
            await house.intake.close()
    house.intake.observe(Sightings())
    assert house.cells.counter(EVIDENCE_DROPPED).value == 1


async def test_sightings_that_come_before_the_journal_opens_are_kept(tmp_path: Path) -> None:
    """What workers saw while control was away is not lost because they are quicker than a disk."""
    house = House(tmp_path)
    for unit in (b"u", b"v"):
        house.intake.observe(Sightings(units=unit * 35))
    await house.intake.open()
    await house.intake.close()
    seen = [decode_entry(entry).events for _, entry in kept_entries(tmp_path)]
    assert seen == [(Sightings(units=unit * 35),) for unit in (b"u", b"v")]
    assert house.cells.counter(EVIDENCE_DROPPED).value == 0


async def test_what_waits_is_written_in_the_end(tmp_path: Path) -> None:
    """An intake that is closed leaves nothing in memory."""
    house = House(tmp_path)
    await house.intake.open()
    accepting = asyncio.create_task(house.intake.accept([events_of("x")], 1))
    await asyncio.sleep(0)
    await house.intake.close()
    await accepting
    assert names_of([entry for _, entry in kept_entries(tmp_path)]) == ["x"]


async def test_moments_never_go_back(tmp_path: Path) -> None:
    """Neither when the clock does nor in the next process."""
    house = House(tmp_path)
    await house.intake.open()
    await house.accept("x")
    await house.intake.close()
    again = House(tmp_path)
    again.clock.at = 950.0
    await again.intake.open()
    await again.accept("y")
    await again.intake.close()
    moments = [decode_entry(entry).accepted_ms for _, entry in kept_entries(tmp_path)]
    assert moments == [1_000_000, 1_000_000]


async def test_a_clock_that_was_far_ahead_is_believed_once_it_is_right(house: House) -> None:
    """What comes then is not late, and the store is not told of moments that are yet to come."""
    await house.accept("x")
    await house.shipper.ship()
    house.clock.at += 86_400
    await house.accept("y")
    house.store.deaf = True
    with pytest.raises(StoreUnavailable):
        await house.shipper.ship()
    house.store.deaf = False
    ahead = house.intake.host
    house.clock.at -= 86_400
    await house.accept("z")
    while await house.shipper.ship():
        pass
    assert house.intake.host != ahead
    assert (house.names(), house.through_ms) == (["x", "y", "z"], 1_000_000)
    assert decode_entry(house.store.stream[-1]).accepted_ms == 1_000_000


async def test_a_moment_to_come_is_not_told(house: House) -> None:
    """It was accepted by a clock that was wrong, and lies before what was accepted since."""
    house.clock.at += 86_400
    await house.accept("x")
    house.clock.at -= 86_400
    await house.shipper.ship()
    assert (house.names(), house.through_ms) == (["x"], 0)


async def test_a_journal_that_another_process_has_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then outcomes are refused."""
    monkeypatch.setattr("gateway.control.intake.OPEN_LOOK_S", 0.01)
    before, after = House(tmp_path), House(tmp_path)
    await before.intake.open()
    opening = asyncio.create_task(after.intake.open())
    await until(lambda: after.intake._failing)
    with pytest.raises(NotReady):
        await after.intake.accept([events_of("x")], 1)
    await before.intake.close()
    await opening
    await after.accept("x")
    await after.intake.close()


async def test_entries_are_shipped_in_order_and_counted(house: House) -> None:
    """And the store is told through which moment it has them."""
    await house.accept("x")
    house.clock.at += 5
    await house.accept("y")
    assert await house.shipper.ship() == 2
    assert house.names() == ["x", "y"]
    assert house.through_ms == 1_005_000
    assert house.cells.counter(EVIDENCE_SHIPPED).value == 2


async def test_the_moment_moves_while_nothing_comes(house: House) -> None:
    """So that folding need not wait for a host that has nothing to say."""
    assert await house.shipper.ship() == 0
    house.clock.at += 60
    assert await house.shipper.ship() == 0
    assert house.through_ms == 1_060_000


async def test_the_moment_does_not_pass_what_is_on_its_way_to_disk(house: House) -> None:
    """Something was accepted earlier than the store may be told of."""
    await house.shipper.ship()
    accepting = asyncio.create_task(house.intake.accept([events_of("x")], 1))
    await asyncio.sleep(0)
    house.clock.at += 60
    assert await house.shipper.ship() == 0
    assert house.through_ms == 1_000_000
    await house.intake.write()
    await accepting
    await house.shipper.ship()
    assert (house.through_ms, house.names()) == (1_000_000, ["x"])


@pytest.mark.parametrize("fault", ["away", "deaf"])
async def test_a_store_that_comes_back_has_everything_once(house: House, fault: str) -> None:
    """Whether it took what it did not answer to or not."""
    await house.shipper.ship()
    await house.accept("x")
    setattr(house.store, fault, True)
    rests = [await house.shipper.step() for _ in range(9)]
    assert rests[0] < rests[1] < rests[8] <= 5.0
    await house.accept("y")
    setattr(house.store, fault, False)
    await house.shipper.step()
    assert house.names() == ["x", "y"]


async def test_the_next_process_ships_what_is_left_once(tmp_path: Path) -> None:
    """Though the last one ended between the store's answer and its own note of it."""
    house = House(tmp_path)
    await house.intake.open()
    await house.accept("x")
    house.store.deaf = True
    with pytest.raises(StoreUnavailable):
        await house.shipper.ship()
    house.store.deaf = False
    await house.shipper.ship()
    (tmp_path / "journal" / "cursor.json").unlink()
    await house.accept("y")
    await house.intake.close()
    again = House(tmp_path)
    again.store = again.shipper._store = house.store
    await again.intake.open()
    await again.shipper.ship()
    await again.intake.close()
    assert house.names() == ["x", "y"]


async def test_a_host_whose_folder_was_put_back_takes_a_new_id(house: House) -> None:
    """The store has more of its journal than is there, so its sequences would be passed over."""
    before = house.intake.host
    house.store.shipped[before] = (1, 5)
    await house.accept("x")
    await house.accept("y")
    await house.shipper.ship()
    assert house.intake.host != before
    assert house.names() == ["x", "y"]


async def test_what_a_store_has_lost_is_shipped_again(house: House) -> None:
    """It failed over to a replica that lagged: what it said to have is gone, and here."""
    await house.accept("x")
    await house.shipper.ship()
    had = dict(house.store.shipped)
    await house.accept("y")
    await house.shipper.ship()
    house.store.stream, house.store.shipped = house.store.stream[:1], had
    await house.accept("z")
    await house.shipper.ship()
    assert house.names() == ["x", "y", "z"]
    house.store.stream, house.store.shipped = [], {}
    await house.shipper.ship()
    assert house.names() == ["x", "y", "z"]


async def test_what_was_not_lost_is_passed_over_in_whatever_batches(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal goes back to the beginning of a segment, and the store has a part of that."""
    for name in "abcde":
        await house.accept(name)
        await house.shipper.ship()
    host = house.intake.host
    house.store.stream, house.store.shipped[host] = house.store.stream[:3], (3, 5)
    monkeypatch.setattr("gateway.control.shipping.MAX_ENTRIES", 1)
    while await house.shipper.ship():
        pass
    assert (house.intake.host, house.names()) == (host, list("abcde"))


async def test_what_a_store_lost_meanwhile_is_shipped_by_the_next_process(tmp_path: Path) -> None:
    """Which knows from its journal what the store had."""
    house = House(tmp_path)
    await house.intake.open()
    for name in ("x", "y"):
        await house.accept(name)
        await house.shipper.ship()
    await house.intake.close()
    again = House(tmp_path)
    await again.intake.open()
    await again.shipper.ship()
    await again.intake.close()
    assert again.names() == ["x", "y"]


async def test_of_two_hosts_with_one_id_one_takes_another(house: House, tmp_path: Path) -> None:
    """A copied folder: what one ships does not pass for what the other has to ship."""
    await house.accept("x")
    await house.shipper.ship()
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "journal", copied / "journal")
    twin = House(copied)
    twin.store = twin.shipper._store = house.store
    await twin.intake.open()
    await twin.shipper.ship()
    for one, names in ((house, "abc"), (twin, "pqrst")):
        for name in names:
            await one.accept(name)
        await one.shipper.ship()
    await twin.intake.close()
    assert house.names() == list("xabcpqrst")


async def test_the_shipper_wakes_when_something_is_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not sleep its time out."""
    monkeypatch.setattr("gateway.control.shipping.IDLE_S", 3_600.0)
    step = asyncio.create_task(house.shipper.step())
    await until(lambda: bool(house.store.shipped) and house.through_ms > 0)
    await house.accept("x")
    await step
    await house.shipper.step()
    assert house.names() == ["x"]


async def test_the_last_word_ships_what_is_left(house: House) -> None:
    """In bounded time; with the store away it stays in the journal."""
    await house.accept("x")
    await house.shipper.finish(5.0)
    assert house.names() == ["x"]
    house.store.away = True
    await house.accept("y")
    await house.shipper.finish(5.0)
    assert house.journal.unshipped > 0
