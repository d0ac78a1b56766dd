"""Retention at the admin door."""

from msgspec.structs import replace

from gateway.control.registry import Edit, Request
from gateway.core.reviews import Review
from gateway.core.snapshot import Snapshot
from tests.doors.http.admin_world import MODEL, READER, World

ROOT = "/admin/v1/retention"
PATH = f"{ROOT}/documents/short"
DOCUMENT = {"schema": 1, "models": ["fl*"], "keep": 1, "min_age_days": 0.0, "ledger_days": 0.0}


async def reviewed() -> World:
    """A world with three versions, of which it is known when they came."""
    world = await World().seed(1, 2, 3)

    async def make(base: Snapshot) -> Snapshot:
        reviews = {
            f"{MODEL}/{number}": Review(digest, registered_by="ana", registered_at=0.0)
            for number, digest in base.models[MODEL].versions.items()
        }
        return replace(base, reviews=reviews)

    await world.registry.commit(Edit("review", f"models/{MODEL}", make), Request(actor="seed"))
    world.clock.at = 100.0
    return world


async def test_a_document_is_written_read_and_dropped() -> None:
    """With an ETag like every document, and a refusal in a sentence."""
    world = await reviewed()
    put = await world.ask("PUT", PATH, json=DOCUMENT)
    assert put.status_code == 200, put.text
    shown = await world.ask("GET", PATH)
    assert shown.headers["etag"] == put.headers["etag"]
    assert shown.json()["document"] == {**DOCUMENT, "delete_files": False}
    listed = (await world.ask("GET", f"{ROOT}/documents")).json()
    assert [row["name"] for row in listed["retentions"]] == ["short"]
    stale = await world.ask("PUT", PATH, json=DOCUMENT, headers={"If-Match": '"00"'})
    assert stale.status_code == 409
    wrong = await world.ask("PUT", PATH, json={**DOCUMENT, "keep": 0})
    assert (wrong.status_code, "'keep' is 0" in wrong.text) == (400, True)
    assert (await world.ask("DELETE", PATH)).status_code == 200
    assert (await world.ask("GET", PATH)).status_code == 404
    assert (await world.ask("DELETE", PATH)).status_code == 404


async def test_what_may_go_is_told_and_then_goes() -> None:
    """Looking changes nothing; collecting retires, and says what it was about."""
    world = await reviewed()
    await world.ask("PUT", PATH, json=DOCUMENT)
    before = world.registry.snapshot.revision
    looked = (await world.ask("GET", ROOT, token=READER)).json()
    assert [(row["number"], row["held_by"] is None) for row in looked["standings"]] == [
        (1, False),
        (2, True),
        (3, False),
    ]
    assert world.registry.snapshot.revision == before
    gone = (await world.ask("POST", f"{ROOT}/collect", json={"reason": "tidy"})).json()["gone"]
    assert [row["number"] for row in gone] == [2]
    entry = world.memory.entries[-1]
    assert (entry.action, entry.reason, entry.actor) == ("model.retire", "tidy", "wim")
    assert 2 not in world.registry.snapshot.models[MODEL].versions


async def test_who_only_reads_lets_nothing_go() -> None:
    """Documents and collecting take more than reading."""
    world = await reviewed()
    assert (await world.ask("PUT", PATH, json=DOCUMENT, token=READER)).status_code == 403
    assert (await world.ask("POST", f"{ROOT}/collect", token=READER)).status_code == 403
    assert world.registry.snapshot.retentions == {}
