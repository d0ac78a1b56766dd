"""The admin API on the audit log: filters, refusals, and denials that are counted."""

import pytest

from tests.doors.http.admin_world import READER, World


async def test_the_newest_come_first_where_asked() -> None:
    """And `next` leads on."""
    world = await World().seed()
    page = (await world.ask("GET", "/admin/v1/audit?newest&limit=2")).json()
    assert [item["entry"]["revision"] for item in page["entries"]] == [3, 2]
    page = (await world.ask("GET", f"/admin/v1/audit?newest&before={page['next']}")).json()
    assert [item["entry"]["revision"] for item in page["entries"]] == [1]
    assert page["next"] is None


@pytest.mark.parametrize(
    "query",
    ["since=yesterday", "newest&after=1", "before=2", "limit=0", "overrides=maybe", "who=ana"],
)
async def test_a_filter_that_means_nothing_is_refused(query: str) -> None:
    """A slip is never taken for everything."""
    world = await World().seed()
    assert (await world.ask("GET", f"/admin/v1/audit?{query}")).status_code == 400


@pytest.mark.parametrize(
    "document", [{}, {"before": 1, "older_than_days": 1}, {"before": 1}, {"before": "x"}]
)
async def test_what_is_to_be_archived_must_be_said_once(document: dict[str, object]) -> None:
    """Nothing at all is refused as well."""
    world = await World().seed()
    answer = await world.ask("POST", "/admin/v1/audit/checkpoint", document)
    assert answer.status_code in (400, 409)


async def test_who_is_refused_is_counted() -> None:
    """Whose token may not, and tokens that nobody holds, of which nothing is kept."""
    world = await World().seed()
    await world.ask("POST", "/admin/v1/models/flights/rollback", {}, token=READER)
    for _ in range(3):
        await world.ask("GET", "/admin/v1/models", token="tilt_guess_secret")
    assert await world.denials.flush()
    entry = world.memory.entries[-1]
    told = {
        (one.get("principal"), one["action"]): one["count"] for one in entry.evidence["denials"]
    }
    assert told == {("rita", "promote"): 1, (None, "unknown token"): 3}
    assert "guess" not in str(entry)
