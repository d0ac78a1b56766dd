"""Webhooks at the admin API: secrets are told once, changes are written down."""

from typing import Any

import msgspec
import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.webhooks import OVERLAP_S, DeadLetter, Posted
from tests.doors.http.admin_world import WRITER, World
from tests.webhook_receiver import Delivered, verifies

URL = "https://hooks.example/tiltyard?key=hidden"
HOOK = "/admin/v1/webhooks/ops"
DOCUMENT = {"url": URL, "types": ["tiltyard.version.*"]}


def sent(world: World, place: int = -1) -> Delivered:
    """What the courier was given."""
    _, headers, body = world.courier.carried[place]
    return Delivered("", headers, body, 204)


async def put(world: World, document: dict[str, Any] | None = None) -> str | None:
    """Write the webhook; the secret that was told."""
    answered = await world.ask("PUT", HOOK, document or DOCUMENT)
    assert answered.status_code == 200, answered.text
    secret: str | None = answered.json()["secret"]
    return secret


async def test_a_secret_is_told_once() -> None:
    """With the answer that made it, and nowhere else: not here, not in the log, not in status."""
    world = World()
    secret = await put(world)
    assert secret is not None
    seen = [
        (await world.ask("GET", path)).text
        for path in (HOOK, "/admin/v1/webhooks", "/admin/v1/audit", "/admin/v1/status")
    ]
    assert not any(secret in text for text in seen)
    assert secret not in str(world.memory.document)
    assert await put(world) is None
    told = msgspec.json.encode(await world.parts.webhooks.standing()).decode()
    assert secret not in told
    assert "hooks.example" not in told


async def test_a_change_is_written_down_without_its_words() -> None:
    """Who, when, why and a digest; neither the address nor the secret."""
    world = World()
    await world.ask("PUT", f"{HOOK}?reason=paging", DOCUMENT)
    await world.ask("DELETE", f"{HOOK}?reason=over")
    first, last = world.memory.entries
    assert (first.action, first.target, first.actor, first.reason) == (
        "webhook.put",
        "webhooks/ops",
        "wim",
        "paging",
    )
    assert (last.action, last.reason) == ("webhook.delete", "over")
    assert first.evidence["after"] == last.evidence["before"] != ""
    assert first.evidence["secret"] == "made"
    assert b"hidden" not in msgspec.json.encode(world.memory.entries)
    assert (await world.ask("GET", HOOK)).status_code == 404


async def test_nothing_is_changed_that_cannot_be_written_down() -> None:
    """A store that takes no audit entry gets no webhook either."""
    world = World()
    world.memory.away = True
    assert (await world.ask("PUT", HOOK, DOCUMENT)).status_code == 503
    assert world.announcements.webhooks == {}


async def test_both_secrets_sign_while_one_is_replaced() -> None:
    """For a day; then the new one alone."""
    world = World()
    old = await put(world)
    new = await put(world, {**DOCUMENT, "rotate": True})
    assert old is not None
    assert new is not None
    assert old != new
    await world.ask("POST", f"{HOOK}/test", {})
    assert verifies(old, sent(world), world.clock())
    assert verifies(new, sent(world), world.clock())
    world.clock.at += OVERLAP_S
    await world.ask("POST", f"{HOOK}/test", {})
    assert not verifies(old, sent(world), world.clock())
    assert verifies(new, sent(world), world.clock())


async def test_a_secret_may_be_given() -> None:
    """And is then not told back."""
    world = World()
    given = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert await put(world, {**DOCUMENT, "secret": given}) is None
    await world.ask("POST", f"{HOOK}/test", {})
    assert verifies(given, sent(world), world.clock())


async def test_a_test_tells_what_became_of_it() -> None:
    """A ping, at once, signed like any event."""
    world = World()
    await put(world)
    answered = await world.ask("POST", f"{HOOK}/test", {})
    assert answered.json() == {"taken": True, "status": 204, "problem": ""}
    assert sent(world).event["type"] == "tiltyard.webhook.ping"
    world.courier.posted = Posted(status=500)
    answered = await world.ask("POST", f"{HOOK}/test", {})
    assert answered.json() == {
        "taken": False,
        "status": 500,
        "problem": "The receiver answered 500.",
    }


async def test_dead_letters_are_listed_and_sent_again() -> None:
    """In order, until one is not taken."""
    world = World()
    await put(world)
    progress = world.announcements.progress["webhook:ops"]
    for number in (1, 2):
        event = msgspec.Raw(b'{"id":"1-%d","type":"t","subject":"s"}' % number)
        await world.announcements.bury("ops", DeadLetter(event, 5.0, 6, "no"), progress)
    listed = (await world.ask("GET", f"{HOOK}/dead-letters")).json()["dead_letters"]
    assert [(one["event"]["id"], one["tries"], one["problem"]) for one in listed] == [
        ("1-1", 6, "no"),
        ("1-2", 6, "no"),
    ]
    world.courier.posted = Posted(problem="The receiver cannot be reached.")
    answered = (await world.ask("POST", f"{HOOK}/redeliver", {})).json()
    assert answered == {"delivered": 0, "left": 2, "problem": "The receiver cannot be reached."}
    world.courier.posted = Posted(status=200)
    answered = (await world.ask("POST", f"{HOOK}/redeliver", {})).json()
    assert answered == {"delivered": 2, "left": 0, "problem": ""}
    assert [sent(world, place).headers["webhook-id"] for place in (-2, -1)] == ["1-1", "1-2"]


async def test_a_disabled_webhook_goes_on_when_it_is_put_again() -> None:
    """From where it was."""
    world = World()
    await put(world)
    known = world.announcements.progress["webhook:ops"]
    stopped = msgspec.structs.replace(known, cursor="1-3", disabled="410", tries=4)
    world.announcements.progress["webhook:ops"] = stopped
    assert (await world.ask("GET", HOOK)).json()["disabled"] == "410"
    await put(world)
    shown = (await world.ask("GET", HOOK)).json()
    assert (shown["disabled"], shown["tries"], shown["waiting"]) == ("", 0, 4)


@pytest.mark.parametrize(
    "document",
    [
        {"url": URL, "types": []},
        {"url": URL, "types": ["a b"]},
        {"url": URL, "types": ["*"] * 33},
        {"url": URL, "secret": "hush"},
        {"url": URL, "unknown": 1},
        {"types": ["*"]},
        {"url": 7},
    ],
)
async def test_a_document_that_is_wrong_is_refused(document: dict[str, Any]) -> None:
    """With 400, and nothing is written."""
    world = World()
    assert (await world.ask("PUT", HOOK, document)).status_code == 400
    assert world.memory.entries == []


async def test_an_address_that_may_not_be_is_refused() -> None:
    """The courier knows which."""
    world = World()
    world.courier.forbidden = InvalidRequest("Not there.")
    answered = await world.ask("PUT", HOOK, DOCUMENT)
    assert (answered.status_code, answered.json()["error"]) == (400, "Not there.")


async def test_webhooks_are_few() -> None:
    """The thirty-third is refused; one of the others may still be changed."""
    world = World()
    for number in range(32):
        await world.ask("PUT", f"/admin/v1/webhooks/w{number}", DOCUMENT)
    assert (await world.ask("PUT", HOOK, DOCUMENT)).status_code == 409
    assert (await world.ask("PUT", "/admin/v1/webhooks/w7", DOCUMENT)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", HOOK),
        ("DELETE", HOOK),
        ("POST", f"{HOOK}/test"),
        ("GET", f"{HOOK}/dead-letters"),
        ("POST", f"{HOOK}/redeliver"),
    ],
)
async def test_what_is_not_there_is_404(method: str, path: str) -> None:
    """Whatever is asked of it."""
    world = World()
    answered = await world.ask(method, path, {} if method == "POST" else None, token=WRITER)
    assert answered.status_code == 404
