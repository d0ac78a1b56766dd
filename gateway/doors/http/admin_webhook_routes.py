"""The part of the admin API's table that is about webhooks."""

from typing import Final

from gateway.control.webhooks import Redelivered, WebhookDocument, WebhookStanding
from gateway.core.principals import Action
from gateway.doors.http import admin_webhooks as webhooks
from gateway.doors.http.admin_calls import Operation, Query
from gateway.doors.http.admin_webhook_documents import (
    DeadLetterList,
    Nothing,
    Tried,
    WebhookGone,
    WebhookList,
    WebhookWritten,
)

ROOT: Final = "/admin/v1/webhooks"
WEBHOOK: Final = f"{ROOT}/{{name}}"
REASON: Final = Query("reason", "why, for the audit log")

WEBHOOK_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=ROOT,
        action=Action.OPERATE,
        name="listWebhooks",
        summary="Every webhook, and how far each is.",
        handle=webhooks.list_webhooks,
        answer=WebhookList,
    ),
    Operation(
        method="GET",
        path=WEBHOOK,
        action=Action.OPERATE,
        name="getWebhook",
        summary="A webhook, without its secret, and how far it is.",
        handle=webhooks.show_webhook,
        answer=WebhookStanding,
    ),
    Operation(
        method="PUT",
        path=WEBHOOK,
        action=Action.OPERATE,
        name="putWebhook",
        summary="Write a webhook; a secret that is made here is told once.",
        handle=webhooks.put_webhook,
        query=(REASON,),
        body=WebhookDocument,
        answer=WebhookWritten,
    ),
    Operation(
        method="DELETE",
        path=WEBHOOK,
        action=Action.OPERATE,
        name="deleteWebhook",
        summary="Forget a webhook and what it did not take.",
        handle=webhooks.delete_webhook,
        query=(REASON,),
        answer=WebhookGone,
    ),
    Operation(
        method="POST",
        path=f"{WEBHOOK}/test",
        action=Action.OPERATE,
        name="testWebhook",
        summary="Send a webhook an event that says nothing.",
        handle=webhooks.test_webhook,
        body=Nothing,
        answer=Tried,
    ),
    Operation(
        method="GET",
        path=f"{WEBHOOK}/dead-letters",
        action=Action.OPERATE,
        name="listDeadLetters",
        summary="Events that a webhook did not take, the oldest first.",
        handle=webhooks.list_dead_letters,
        answer=DeadLetterList,
    ),
    Operation(
        method="POST",
        path=f"{WEBHOOK}/redeliver",
        action=Action.OPERATE,
        name="redeliver",
        summary="Send dead letters again, until one is not taken.",
        handle=webhooks.redeliver,
        body=Nothing,
        answer=Redelivered,
    ),
)
