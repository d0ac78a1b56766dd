"""Denials: a flood of them is one entry now and then, and says how many there were."""

import asyncio

from gateway.control.denials import MAX_KINDS, Denials
from gateway.control.registry import Registry
from tests.fakes import ManualClock, MemoryStore


def evidence_of(store: MemoryStore) -> dict[str, object]:
    """Of the newest entry."""
    evidence: dict[str, object] = store.entries[-1].evidence
    return evidence


async def test_alike_denials_are_counted_together(
    registry: Registry, store: MemoryStore, clock: ManualClock
) -> None:
    """One entry says who was refused what, how often, first and last."""
    denials = Denials(registry, now=clock)
    for _ in range(3):
        denials.note("eve", "promote", "flights")
        clock.at += 1.0
    denials.stranger("10.0.0.9")
    assert await denials.flush()
    (entry,) = store.entries
    assert (entry.action, entry.target, entry.document) == ("access.denied", "access", None)
    began = clock.at - 3.0
    assert entry.evidence == {
        "denials": [
            {
                "principal": "eve",
                "action": "promote",
                "model": "flights",
                "count": 3,
                "first_at": began,
                "last_at": began + 2.0,
            },
            {
                "action": "unknown token",
                "peer": "10.0.0.9",
                "count": 1,
                "first_at": began + 3.0,
                "last_at": began + 3.0,
            },
        ],
        "others": 0,
        "count": 4,
    }


async def test_a_flood_is_one_entry_of_bounded_size(
    registry: Registry, store: MemoryStore, clock: ManualClock
) -> None:
    """So many kinds are told apart; the others are counted."""
    denials = Denials(registry, now=clock)
    for number in range(10_000):
        denials.stranger(f"10.0.{number // 250}.{number % 250}")
    await denials.flush()
    assert len(store.entries) == 1
    evidence = evidence_of(store)
    assert isinstance(evidence["denials"], list)
    assert len(evidence["denials"]) == MAX_KINDS
    assert evidence["others"] == 10_000 - MAX_KINDS


async def test_nothing_is_written_where_nobody_was_refused(
    registry: Registry, store: MemoryStore, clock: ManualClock
) -> None:
    """Nor twice."""
    denials = Denials(registry, now=clock)
    assert not await denials.flush()
    denials.note("eve", "promote")
    assert await denials.flush()
    assert not await denials.flush()
    assert len(store.entries) == 1


async def test_denials_wait_while_the_store_is_away(
    registry: Registry, store: MemoryStore, clock: ManualClock
) -> None:
    """Nothing is lost, and what comes meanwhile joins them."""
    denials = Denials(registry, now=clock)
    denials.note("eve", "promote")
    store.away = True
    assert not await denials.flush()
    denials.note("eve", "promote")
    denials.note("mallory", "gates")
    store.away = False
    assert await denials.flush()
    told = evidence_of(store)["denials"]
    assert isinstance(told, list)
    assert [(one["principal"], one["count"]) for one in told] == [("eve", 2), ("mallory", 1)]


async def test_what_is_left_at_a_stop_is_written(
    registry: Registry, store: MemoryStore, clock: ManualClock
) -> None:
    """Also where the last turn was cut off: nothing that was counted is lost by that."""
    denials = Denials(registry, now=clock)
    denials.note("eve", "promote", "m")
    committing = store.commit

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    store.commit = hang  # type: ignore[assignment, method-assign]
    flushing = asyncio.create_task(denials.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    await asyncio.gather(flushing, return_exceptions=True)
    await denials.finish(0.0)
    assert store.entries == []
    store.commit = committing  # type: ignore[method-assign]
    await denials.finish(5.0)
    assert evidence_of(store)["count"] == 1
