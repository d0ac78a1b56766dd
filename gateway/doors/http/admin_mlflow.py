"""Operations on following an MLflow registry, and the door for its signed webhooks.

The webhook's door stands beside the table of operations: it asks for no token and no Host but for
a signature, and all that it can do is to have the registry looked at a little sooner.
"""

import logging
from collections import OrderedDict
from typing import Final

from gateway.control.following import MlflowDesk
from gateway.core.errors import NotFound, Unauthenticated
from gateway.core.signed_hooks import MAX_SKEW_S, REFUSED, check_hook
from gateway.doors.http.admin_calls import Call, answer
from gateway.doors.http.inference_head import Headers
from gateway.doors.http.messages import (
    Message,
    Receive,
    Response,
    header_values,
    json_response,
    read_body,
)

log: Final = logging.getLogger(__name__)

HOOK_PATH: Final = "/admin/v1/mlflow/webhook"
MAX_HOOK_BYTES: Final = 64 * 1024
MAX_DELIVERIES: Final = 4096
LOG_S: Final = 60.0
"""Forged webhooks are logged at most once in this time."""
_ACCEPTED: Final = 202


async def show_mlflow(call: Call) -> Response:
    """How far following is."""
    return answer(await _desk(call).status())


async def sync_mlflow(call: Call) -> Response:
    """Have the leader look now; `asked` counts up, and `served` follows when it did."""
    return answer({"asked": await _desk(call).ask()})


def _desk(call: Call) -> MlflowDesk:
    desk = call.parts.mlflow
    if desk is None:
        message = "No MLflow registry is followed; the setting mlflow.url names one."
        raise NotFound(message)
    return desk


class HookDoor:
    """Takes signed webhooks. A delivery that came before is answered and does nothing."""

    __slots__ = ("_deliveries", "_desk", "_logged_at")

    def __init__(self, desk: MlflowDesk | None) -> None:
        """Nothing was delivered yet."""
        self._desk = desk
        self._deliveries: OrderedDict[bytes, float] = OrderedDict()
        self._logged_at = float("-inf")

    async def take(self, scope: Message, receive: Receive) -> Response:
        """Answer a webhook.

        Raises:
            NotFound: none is taken here. Unauthenticated: it is not signed as it should be.
            TooLarge: its body. StoreUnavailable: nobody heard it; it may be sent again.
        """
        desk = self._desk
        if desk is None or desk.secret is None:
            message = "No webhooks are taken; the setting mlflow.webhook_secret allows them."
            raise NotFound(message)
        headers: Headers = scope["headers"]
        body = await read_body(receive, headers, MAX_HOOK_BYTES)
        delivery, now = _one(headers, b"x-mlflow-delivery-id"), desk.now()
        stated = (
            delivery,
            _one(headers, b"x-mlflow-timestamp"),
            _one(headers, b"x-mlflow-signature"),
        )
        try:
            check_hook(desk.secret, stated, body, now)
        except Unauthenticated:
            self._warn(now)
            raise
        if not self._came_before(delivery, now):
            await desk.ask()
            self._deliveries[delivery] = now
        return json_response({"accepted": True}, _ACCEPTED)

    def _came_before(self, delivery: bytes, now: float) -> bool:
        """Whether this delivery was taken; those too old to be signed afresh are forgotten."""
        kept = self._deliveries
        while kept and (len(kept) > MAX_DELIVERIES or next(iter(kept.values())) < now - _KEPT_S):
            kept.popitem(last=False)
        return delivery in kept

    def _warn(self, now: float) -> None:
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            log.warning("A webhook for MLflow was refused. %s", REFUSED)


def _one(headers: Headers, name: bytes) -> bytes:
    """The only value of a header, empty where there is none or several."""
    values = header_values(headers, name)
    return values[0] if len(values) == 1 else b""


_KEPT_S: Final = 2 * MAX_SKEW_S
