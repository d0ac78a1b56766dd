"""Model cards at the admin door."""

from gateway.core.inspections import InspectionOrder
from tests.doors.http.admin_world import MODEL, READER, World
from tests.fakes import FakeInspector

CARD = f"/admin/v1/models/{MODEL}/versions/2/card"


async def test_a_card_comes_as_document_markdown_and_page() -> None:
    """All three say the same of the version: its digest, its checks, that it was promoted."""
    world = await World().seed(1, 2)
    digest = world.registry.snapshot.models[MODEL].versions[2]
    order = InspectionOrder(MODEL, 2, digest, folder="", files=())
    await world.governance.put_inspection(await FakeInspector().inspect(order))
    promoted = await world.ask(
        "POST", f"/admin/v1/models/{MODEL}/promote", json={"version": 2, "reason": "because"}
    )
    assert promoted.status_code == 200
    card = await world.ask("GET", CARD, token=READER)
    assert card.json()["standing"] == ["champion"]
    assert [one["action"] for one in card.json()["history"]] == ["model.promote"]
    markdown = await world.ask("GET", f"{CARD}.md", token=READER)
    assert markdown.headers["content-type"] == "text/markdown; charset=utf-8"
    page = await world.ask("GET", f"{CARD}.html", token=READER)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for text in (markdown.text, page.text):
        assert digest in text
        assert "It is as it should be." in text
        assert "model.promote" in text


async def test_a_version_that_is_not_there_has_no_card() -> None:
    """A number that is none is 400, one that is not registered 404."""
    world = await World().seed(1)
    assert (await world.ask("GET", CARD)).status_code == 404
    assert (await world.ask("GET", CARD.replace("/2/", "/02/"))).status_code == 400
