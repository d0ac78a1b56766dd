"""Webhooks: who wants to hear of which events, how deliveries are signed, and how they end.

A delivery is signed in the form of Standard Webhooks: HMAC-SHA256 over its id, the moment of the
try and the body. While a secret is replaced, the old one signs too.

Source: Standard Webhooks specification 1.0.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from enum import Enum
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.errors import InvalidRequest
from gateway.core.patterns import ANY, check_pattern, matches_any

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
_SECRET_SIZES: Final = range(24, 65)
OVERLAP_S: Final = 86_400.0
"""How long a secret that was replaced signs beside the new one."""
MAX_TYPES: Final = 32

FIRST_RETRY_S: Final = 5.0
LAST_RETRY_S: Final = 3_600.0
FEWEST_TRIES: Final = 6
"""Before an event is given up: minutes, for one that the receiver answers and does not want."""
MAX_PROBLEM: Final = 200

_OK: Final = range(200, 300)
_GONE: Final = 410
_REFUSALS: Final = frozenset(range(300, 500)) - {408, 425, 429}
_STATED: Final = frozenset({429, 503})
"""Answers whose `Retry-After` is heard."""


class Webhook(Struct, frozen=True, omit_defaults=True):
    """A subscription as it is stored: where to, what of, and its secrets.

    `previous` is a secret that still signs, until `previous_until`. Times are in UTC seconds.
    """

    url: str
    types: tuple[str, ...]
    secret: str
    made_at: float
    made_by: str
    previous: str = ""
    previous_until: float = 0.0

    def __repr__(self) -> str:
        """Leave the secrets out, and the address, which may hold one."""
        return f"Webhook(types={self.types!r})"


class Posted(Struct, frozen=True):
    """What became of a try: the status of the answer, None where there was none.

    `refused` says that nothing was sent, because it may not be.
    """

    status: int | None = None
    problem: str = ""
    retry_after_s: float | None = None
    refused: bool = False


class Progress(Struct, frozen=True, omit_defaults=True):
    """How far a listener is; kept in the store, so that whoever leads next goes on from there.

    Attributes:
        cursor: Of the audit log: the last entry of which everything is settled.
        alerts: The same of the alerts.
        settled: Events of the next entry that are settled.
        trying: Id of the event whose turn it is, once a try of it failed.
        tries: Of that event.
        next_at: Not before this, in UTC seconds.
        delivered: Events, or records.
        failed: Tries.
        dead: Events that were given up.
        missed: Entries that were trimmed before they could be told, or cannot be read.
        problem: Of the last try; empty once one succeeded.
        problem_at: Since when every try failed.
        disabled: Why nothing is sent any more.
    """

    cursor: str
    alerts: str
    settled: int = 0
    trying: str = ""
    tries: int = 0
    next_at: float = 0.0
    delivered: int = 0
    failed: int = 0
    dead: int = 0
    missed: int = 0
    problem: str = ""
    problem_at: float = 0.0
    disabled: str = ""


class DeadLetter(Struct, frozen=True):
    """An event that was given up: itself, when, after how many tries, and what the last one met."""

    event: msgspec.Raw
    at: float
    tries: int
    problem: str


class Verdict(Enum):
    """What becomes of an event after a try."""

    DELIVERED = "delivered"
    LATER = "later"
    DEAD = "dead"
    DISABLED = "disabled"


def fresh_secret(entropy: bytes) -> str:
    """A secret in the form in which it is shown."""
    return PREFIX + base64.b64encode(entropy).decode()


def check_secret(secret: str) -> str:
    """Return a secret, or refuse it; no part of it is repeated."""
    if len(_key_of(secret)) not in _SECRET_SIZES:
        message = f"A webhook's secret is '{PREFIX}' and 24 to 64 bytes in base64."
        raise InvalidRequest(message)
    return secret


def check_types(types: Sequence[str]) -> tuple[str, ...]:
    """Return patterns of event types, or refuse them."""
    if not 0 < len(types) <= MAX_TYPES:
        message = f"A webhook names 1 to {MAX_TYPES} patterns of event types; '*' is all."
        raise InvalidRequest(message)
    return tuple(check_pattern("event types", one) for one in types)


def wants(webhook: Webhook, kind: str) -> bool:
    """Whether a subscription is for events of this type."""
    return ANY in webhook.types or matches_any(webhook.types, kind)


def signed_headers(webhook: Webhook, event_id: str, at: float, body: bytes) -> dict[str, str]:
    """The headers that show a receiver who sends this, at this try.

    Args:
        webhook: with its secrets.
        event_id: the same at each try; it holds no full stop.
        at: of the try, in UTC seconds.
        body: what is sent.
    """
    stamp = str(int(at))
    content = f"{event_id}.{stamp}.".encode() + body
    secrets = [webhook.secret]
    if webhook.previous and at < webhook.previous_until:
        secrets.append(webhook.previous)
    signatures = [
        base64.b64encode(hmac.digest(_key_of(secret), content, hashlib.sha256)).decode()
        for secret in secrets
    ]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{one}" for one in signatures),
    }


def after_try(
    progress: Progress,
    posted: Posted,
    now: float,
    *,
    event: tuple[str, float],
    limits: tuple[float, float],
) -> tuple[Progress, Verdict]:
    """What a try did to a listener, and what becomes of the event; who calls moves the cursor.

    A receiver that is away is tried again until the event is older than the bound, one that answers
    and refuses a few times, so that later events get their turn.

    Args:
        progress: before the try.
        posted: what became of it.
        now: UTC seconds.
        event: its id, and when it happened.
        limits: how old an event may become, in seconds, and a draw from [0, 1).
    """
    give_up_s, draw = limits
    event_id, since = event
    if posted.status in _OK:
        done = replace(progress, delivered=progress.delivered + 1, problem="", problem_at=0.0)
        return _next(done), Verdict.DELIVERED
    problem = posted.problem or f"The receiver answered {posted.status}."
    failing = replace(
        progress,
        trying=event_id,
        tries=progress.tries + 1 if progress.trying == event_id else 1,
        failed=progress.failed + 1,
        problem=problem[:MAX_PROBLEM],
        problem_at=progress.problem_at or now,
    )
    if posted.status == _GONE:
        told = "The receiver answered 410: it wants no more. Put the webhook again to go on."
        return replace(failing, disabled=told), Verdict.DISABLED
    wants_none = posted.refused or posted.status in _REFUSALS
    if failing.tries >= FEWEST_TRIES and (wants_none or now - since >= give_up_s):
        return _next(replace(failing, dead=failing.dead + 1)), Verdict.DEAD
    wait_s = min(FIRST_RETRY_S * 2.0 ** min(failing.tries - 1, 16), LAST_RETRY_S)
    wait_s *= 0.5 + draw / 2
    if posted.status in _STATED and posted.retry_after_s is not None:
        wait_s = max(wait_s, min(posted.retry_after_s, give_up_s))
    return replace(failing, next_at=now + wait_s), Verdict.LATER


def _next(progress: Progress) -> Progress:
    """The event is settled; the next one has its tries before it."""
    return replace(progress, trying="", tries=0, next_at=0.0)


def _key_of(secret: str) -> bytes:
    """The bytes that sign; none of what is no secret."""
    if not secret.startswith(PREFIX):
        return b""
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""
