"""Operations on webhooks. A secret leaves through here once, in the answer to its making."""

import msgspec

from gateway.control.webhooks import Redelivered
from gateway.doors.http.admin_calls import Call, answer
from gateway.doors.http.admin_webhook_documents import (
    DeadLetterEntry,
    DeadLetterList,
    Tried,
    WebhookGone,
    WebhookList,
    WebhookWritten,
)
from gateway.doors.http.messages import Response

_OK = range(200, 300)


async def list_webhooks(call: Call) -> Response:
    """Every webhook."""
    return answer(WebhookList(tuple(await call.parts.webhooks.everything())))


async def show_webhook(call: Call) -> Response:
    """One of them."""
    return answer(await call.parts.webhooks.show(call.path["name"]))


async def put_webhook(call: Call) -> Response:
    """Write one; the secret is told if it was made here."""
    name, asked = call.path["name"], call.asked(call.text("reason") or "")
    secret = await call.parts.webhooks.put(name, call.document, asked)
    return answer(WebhookWritten(name, secret))


async def delete_webhook(call: Call) -> Response:
    """Forget one."""
    name = call.path["name"]
    await call.parts.webhooks.delete(name, call.asked(call.text("reason") or ""))
    return answer(WebhookGone(name))


async def test_webhook(call: Call) -> Response:
    """Try one out."""
    actor = "" if call.principal is None else call.principal.name
    posted = await call.parts.webhooks.test(call.path["name"], actor)
    taken = posted.status in _OK
    problem = posted.problem or ("" if taken else f"The receiver answered {posted.status}.")
    return answer(Tried(taken, posted.status, problem))


async def list_dead_letters(call: Call) -> Response:
    """What one did not take."""
    name = call.path["name"]
    entries = tuple(
        DeadLetterEntry(
            id=letter_id,
            at=letter.at,
            tries=letter.tries,
            problem=letter.problem,
            event=msgspec.json.decode(letter.event),
        )
        for letter_id, letter in await call.parts.webhooks.dead_letters(name)
    )
    return answer(DeadLetterList(name, entries))


async def redeliver(call: Call) -> Response:
    """Send what one did not take again."""
    done: Redelivered = await call.parts.webhooks.redeliver(call.path["name"])
    return answer(done)
