"""Signed webhooks of MLflow: who sent one, and when.

`X-MLflow-Signature` is `v1,` and the base64 of HMAC-SHA256 over delivery id, timestamp and body,
joined by full stops.
"""

import base64
import hashlib
import hmac
from typing import Final

from gateway.core.errors import Unauthenticated

VERSION: Final = b"v1,"
MAX_SKEW_S: Final = 300.0
MAX_ID: Final = 128
MAX_DIGITS: Final = 12
REFUSED: Final = "The webhook's signature or timestamp is not good."


def signature_of(secret: bytes, delivery: bytes, timestamp: bytes, body: bytes) -> bytes:
    """What the header must hold."""
    signed = b".".join((delivery, timestamp, body))
    digest = hmac.new(secret, signed, hashlib.sha256).digest()
    return VERSION + base64.b64encode(digest)


def check_hook(secret: bytes, headers: tuple[bytes, bytes, bytes], body: bytes, now: float) -> None:
    """Refuse a webhook that the holder of the secret did not send within the last minutes.

    Args:
        secret: the shared one.
        headers: delivery id, timestamp in Unix seconds, and signature.
        body: as it came.
        now: UTC seconds.

    Raises:
        Unauthenticated: the same for every cause, so that nobody learns from it.
    """
    delivery, timestamp, stated = headers
    wanted = signature_of(secret, delivery, timestamp, body)
    good = hmac.compare_digest(wanted, stated)
    timely = (
        timestamp.isdigit()
        and len(timestamp) <= MAX_DIGITS
        and abs(int(timestamp) - now) <= MAX_SKEW_S
    )
    if not (good and timely and 0 < len(delivery) <= MAX_ID):
        raise Unauthenticated(REFUSED)
