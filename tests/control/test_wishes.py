"""Promotions that were asked for, and the loop that grants them."""

import pytest
from msgspec.structs import replace

from gateway.control.granting import Granter
from gateway.control.registry import Edit, Request
from gateway.control.status import Standing
from gateway.core.errors import Conflict, NotFound
from gateway.core.snapshot import Snapshot
from tests.control.governing import FROZEN, ONE_APPROVAL, PEOPLE, Office, gate_of
from tests.fakes import MemoryStore

DAN = Request(actor="dan", reason="a better model")


class Desk(Office):
    """An office with somebody who grants."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.memory = store
        self.standing = Standing(process="one", leads=True)
        self.granter = Granter(self.registry, self.wishes, self.standing)


@pytest.fixture
async def desk(store: MemoryStore) -> Desk:
    """A gate that wants an approval."""
    made = Desk(store)
    await made.open(gate_of(promotion=ONE_APPROVAL))
    return made


async def test_a_wish_is_granted_at_once_where_the_gates_allow_it(desk: Desk) -> None:
    """As a promotion like any other; an earlier wish for the alias is gone with it."""
    assert not (await desk.wishes.put("m", 3, DAN)).granted
    await desk.approve(2, "ben")
    wished = await desk.wishes.put("m", 2, DAN)
    assert (wished.granted, wished.missing, desk.champion) == (True, (), 2)
    assert desk.registry.snapshot.wishes == {}
    assert desk.memory.entries[-1].action == "model.promote"


async def test_a_wish_stands_until_it_is_approved(desk: Desk) -> None:
    """Then one commit promotes, drops it, and names who asked and what satisfied it."""
    wished = await desk.wishes.put("m", 2, DAN)
    assert not wished.granted
    assert [one.requirement for one in wished.missing] == ["approvals.approver"]
    assert await desk.granter.tick() == 0
    assert (await desk.wishes.put("m", 2, DAN)).change.entry is None
    await desk.approve(2, "ben")
    assert await desk.granter.tick() == 1
    entry = desk.memory.entries[-1]
    assert (entry.actor, entry.action, entry.reason) == ("dan", "model.promote", DAN.reason)
    assert [moved.target for moved in entry.also] == ["wishes/m/champion"]
    assert entry.evidence["granted_by"] == "gatekeeper"
    assert entry.evidence["wish"] == "m/champion"
    assert entry.evidence["gates"][0]["approvals"] == ["ben"]
    assert (desk.champion, desk.registry.snapshot.wishes) == (2, {})


async def test_a_wish_waits_for_the_end_of_a_freeze(store: MemoryStore) -> None:
    """Though nothing moves the Snapshot then."""
    desk = Desk(store)
    await desk.open(gate_of(freezes=FROZEN))
    await desk.wishes.put("m", 2, DAN)
    assert await desk.granter.tick() == 0
    desk.clock.at = 3_600.0
    assert await desk.granter.tick() == 1
    assert desk.champion == 2


async def test_who_asks_does_not_approve_through_a_wish(desk: Desk) -> None:
    """The wish's own author is not counted when it is granted."""
    await desk.wishes.put("m", 2, replace(DAN, actor="ana"))
    await desk.approve(2, "ana")
    assert await desk.granter.tick() == 0
    await desk.wishes.put("m", 2, DAN)
    assert desk.champion == 2


async def test_a_newer_wish_replaces_an_older_one(desk: Desk) -> None:
    """For each alias one stands."""
    await desk.wishes.put("m", 2, DAN)
    await desk.wishes.put("m", 3, DAN)
    assert {name: wish.version for name, wish in desk.registry.snapshot.wishes.items()} == {
        "m/champion": 3
    }
    await desk.wishes.drop("m", "champion", DAN)
    with pytest.raises(NotFound, match="Nobody asked"):
        await desk.wishes.drop("m", "champion", DAN)


async def test_a_wish_for_what_serves_is_refused(desk: Desk) -> None:
    """There is nothing to wait for; nor for a version that is not there."""
    with pytest.raises(Conflict, match="already"):
        await desk.wishes.put("m", 1, DAN)
    with pytest.raises(NotFound):
        await desk.wishes.put("m", 9, DAN)
    assert desk.registry.snapshot.wishes == {}


async def test_a_wish_is_let_go_once_the_alias_moved(desk: Desk) -> None:
    """What was wanted over another version would surprise now; it goes in the same commit."""
    await desk.wishes.put("m", 2, DAN)
    await desk.approve(3, "ben")
    await desk.registry.promote("m", 3, DAN)
    entry = desk.memory.entries[-1]
    assert (entry.action, [one.target for one in entry.also]) == (
        "model.promote",
        ["wishes/m/champion"],
    )
    await desk.approve(2, "ben")
    assert await desk.granter.tick() == 0
    assert (desk.champion, desk.registry.snapshot.wishes) == (3, {})


async def test_no_wish_brings_back_what_was_rolled_back(desk: Desk) -> None:
    """Somebody else was faster, and took it back before anybody looked at the wish."""
    await desk.wishes.put("m", 2, DAN)
    await desk.approve(2, "ben")
    await desk.registry.promote("m", 2, DAN)
    await desk.registry.rollback("m", DAN)
    assert await desk.granter.tick() == 0
    assert (desk.champion, desk.registry.snapshot.wishes) == (1, {})


async def test_a_wish_out_of_date_is_let_go_with_a_reason(desk: Desk) -> None:
    """One that an older gateway left, whose alias moved: the newest word stands in the log."""
    await desk.wishes.put("m", 2, DAN)
    wish = replace(desk.registry.snapshot.wishes["m/champion"], over=3)

    async def make(base: Snapshot) -> Snapshot:
        return replace(base, wishes={"m/champion": wish})

    await desk.registry.commit(Edit("wish.put", "wishes/m/champion", make), DAN)
    assert await desk.granter.tick() == 0
    entry = desk.memory.entries[-1]
    assert (entry.actor, entry.action) == ("gatekeeper", "wish.drop")
    assert "moved to version 1 since; ask again" in entry.reason


async def test_a_wish_ends_with_the_right_to_ask(desk: Desk) -> None:
    """Who may not promote any more, or is gone, has nothing granted; a machine has no roles."""
    await desk.wishes.put("m", 2, DAN)
    await desk.wishes.put("m", 3, replace(DAN, actor="mlflow"), alias="blue", source="mlflow")
    await desk.approve(2, "ben")
    await desk.people({name: roles for name, roles in PEOPLE.items() if name != "dan"})
    await desk.granter.tick()
    assert desk.champion == 1
    assert "'dan' may not promote 'm' any more" in desk.memory.entries[-1].reason
    assert desk.registry.snapshot.models["m"].aliases["blue"] == 3


async def test_only_the_leader_grants(desk: Desk) -> None:
    """And nobody while the store is away."""
    await desk.wishes.put("m", 2, DAN)
    await desk.approve(2, "ben")
    desk.standing.leads = False
    assert await desk.granter.tick() == 0
    desk.standing.leads, desk.memory.away = True, True
    assert await desk.granter.tick() == 0
    desk.memory.away = False
    assert await desk.granter.tick() == 1
