"""The contract of the FoldStore port, on the real server."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from gateway.adapters.redis import RedisEvidence, RedisFolds
from gateway.adapters.redis_keys import Keys, keys_of
from gateway.core.errors import StoreUnavailable
from gateway.core.evidence import Entry, encode_entry
from gateway.core.folding import StudyChange
from gateway.core.tallies import Cell, ShadowCell
from gateway.evidence_ports import FoldBatch, FoldStore

UNITS = [bytes([number]) * 16 for number in range(5)]


@pytest.fixture
async def folds(valkey_url: str, namespace: str) -> AsyncIterator[RedisFolds]:
    """Empty."""
    store = RedisFolds(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


@pytest.fixture
async def shipping(valkey_url: str, namespace: str) -> AsyncIterator[RedisEvidence]:
    """Puts entries on the stream."""
    store = RedisEvidence(valkey_url, namespace=namespace, timeout_s=2.0, name="test")
    yield store
    await store.close()


@pytest.fixture
def keys(namespace: str) -> Keys:
    """The keys of this test."""
    return keys_of(namespace)


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    """To look behind the port."""
    plain: Redis = Redis.from_url(valkey_url)
    yield plain
    await plain.aclose()


def change(study_id: str = "x1", *, units: int = 3, at_ms: int = 10) -> StudyChange:
    """Some of everything."""
    return StudyChange(
        id=study_id,
        units=dict.fromkeys(UNITS[:units], b"state"),
        due={unit: at_ms + place for place, unit in enumerate(UNITS[:units])},
        undue=[],
        cells=[Cell(7, 1, 0, 3), Cell(7, 0, 2, 4)],
        gone=[],
        shadows=[ShadowCell(7, 1, 10, 2, 1)],
        late=[b"late"],
        results={"accepted": 3},
    )


async def shipped(shipping: RedisEvidence, number: int) -> None:
    """So many empty entries on the stream, from one host."""
    entry = encode_entry(Entry(1, ()))
    await shipping.ship("h", [(place + 1, entry) for place in range(number)], 1000)


async def test_nothing_waits_at_first(folds: FoldStore) -> None:
    """No mark, no entry, no host."""
    waiting = await folds.waiting(10)
    assert (waiting.mark, waiting.through_ms, waiting.entries) == (b"", 0, [])
    assert waiting.is_all
    assert waiting.shipped == {}


async def test_entries_wait_until_a_batch_moves_the_cursor(
    folds: FoldStore, shipping: RedisEvidence
) -> None:
    """They come in the order of the stream, a bounded number at a time."""
    await shipped(shipping, 5)
    first = await folds.waiting(3)
    assert len(first.entries) == 3
    assert not first.is_all
    assert first.shipped == {"h": 1000}
    cursor = first.entries[-1][0]
    assert await folds.write(FoldBatch(expected=b"", mark=b"one", cursor=cursor, through_ms=77))
    second = await folds.waiting(3)
    assert (second.mark, second.through_ms, second.is_all) == (b"one", 77, True)
    assert [entry_id > cursor for entry_id, _ in second.entries] == [True, True]


async def test_a_batch_is_written_whole_and_read_back(folds: FoldStore) -> None:
    """States, tallies, due units and results."""
    batch = FoldBatch(
        expected=b"", mark=b"one", through_ms=5, changes=(change(),), results={"unreadable": 1}
    )
    assert await folds.write(batch)
    stored = (await folds.stored({"x1": [UNITS[0], UNITS[4]]}))["x1"]
    assert stored.states == {UNITS[0]: b"state", UNITS[4]: None}
    assert stored.evidence.cells == (Cell(7, 0, 2, 4), Cell(7, 1, 0, 3))
    assert stored.evidence.shadows == (ShadowCell(7, 1, 10, 2, 1),)
    assert await folds.due(["x1", "none"], 11, 10) == {"x1": UNITS[:2]}
    assert await folds.due(["x1"], 12, 1) == {"x1": UNITS[:1]}
    evidence = await folds.evidence(["x1", "none"])
    assert (evidence["x1"].through_ms, len(evidence["x1"].cells)) == (5, 2)
    assert evidence["none"].cells == ()
    assert await folds.results() == {"x1": {"accepted": 3}, "": {"unreadable": 1}}


async def test_units_are_read_in_parts_up_to_a_limit(folds: FoldStore) -> None:
    """All of them where there are few; no more than about so many where there are many."""
    assert await folds.units("x1", 10) == {}
    many = {bytes((n >> 8, n & 255, *[0] * 14)): b"state" for n in range(3_000)}
    whole = StudyChange("x1", many, {}, [], [], [], [], [], {})
    await folds.write(FoldBatch(expected=b"", mark=b"one", changes=(whole,)))
    assert await folds.units("x1", 5_000) == many
    some = await folds.units("x1", 1_000)
    assert 1_000 <= len(some) < 3_000
    assert some.items() <= many.items()


async def test_a_batch_on_an_older_mark_is_not_written(folds: FoldStore) -> None:
    """Somebody folded in between."""
    assert await folds.write(FoldBatch(expected=b"", mark=b"one", changes=(change(),)))
    assert not await folds.write(FoldBatch(expected=b"", mark=b"two", changes=(change(),)))
    assert (await folds.waiting(1)).mark == b"one"
    assert await folds.results() == {"x1": {"accepted": 3}}


async def test_what_is_gone_is_deleted(folds: FoldStore) -> None:
    """Cells, due units, and everything of a forgotten experiment but the others'."""
    await folds.write(FoldBatch(expected=b"", mark=b"one", changes=(change(), change("x2"))))
    less = StudyChange("x1", {}, {}, UNITS[:1], [], [(7, 1, 0)], [], [], {})
    await folds.write(FoldBatch(expected=b"one", mark=b"two", changes=(less,)))
    assert (await folds.evidence(["x1"]))["x1"].cells == (Cell(7, 0, 2, 4),)
    assert await folds.due(["x1"], 99, 9) == {"x1": UNITS[1:3]}
    await folds.write(FoldBatch(expected=b"two", mark=b"three", forgotten=("x1",)))
    assert (await folds.evidence(["x1"]))["x1"].cells == ()
    assert (await folds.stored({"x1": UNITS[:1]}))["x1"].states == {UNITS[0]: None}
    assert await folds.due(["x1", "x2"], 99, 9) == {"x2": UNITS[:3]}
    assert await folds.results() == {"x2": {"accepted": 3}}


async def test_what_is_kept_for_people_is_bounded(
    folds: FoldStore, keys: Keys, client: Redis
) -> None:
    """Late outcomes and quarantined ones are streams that do not grow for ever."""
    mark = b""
    for number in range(4):
        many = change()
        many.late = [b"late"] * 900
        new = b"%d" % number
        quarantined = (("unreadable", b"?"),) * 900
        assert await folds.write(
            FoldBatch(expected=mark, mark=new, changes=(many,), quarantined=quarantined)
        )
        mark = new
    assert 1000 <= await client.xlen(keys.study("x1").late) <= 1200
    assert 1000 <= await client.xlen(keys.quarantine) <= 1200


async def test_the_stream_is_trimmed_behind_the_cursor(
    folds: FoldStore, shipping: RedisEvidence, keys: Keys, client: Redis
) -> None:
    """What was folded is needed no more; the rest stays."""
    await shipped(shipping, 1000)
    entries = (await folds.waiting(900)).entries
    await folds.write(FoldBatch(expected=b"", mark=b"one", cursor=entries[-1][0]))
    assert 100 <= await client.xlen(keys.evidence) <= 300
    assert len((await folds.waiting(900)).entries) == 100


@pytest.mark.parametrize("name", ["due", "late", "quarantine", "folding", "tally", "units"])
async def test_a_key_of_another_type_is_seen_before_anything_is_written(
    folds: FoldStore, keys: Keys, client: Redis, name: str
) -> None:
    """EXEC would write the rest."""
    key = getattr(keys.study("x1"), name, None) or getattr(keys, name)
    await client.set(key, "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await folds.stored({"x1": UNITS[:1]})


async def test_tallies_that_cannot_be_read_are_unavailable(
    folds: FoldStore, keys: Keys, client: Redis
) -> None:
    """Nothing is concluded from the rest of them, and nothing added to it."""
    await client.hset(keys.study("x1").tally, "7:0:0", "\xff")
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await folds.evidence(["x1"])
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await folds.stored({"x1": UNITS[:1]})
