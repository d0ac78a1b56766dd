"""Rotation of the signing keys, as pure steps from one document of keys to the next.

A new key is made known first and signs only later, once every host can read what it signs. An old
one goes only when no id that it signed would be accepted any more.
"""

from math import inf
from typing import Final

from msgspec.structs import replace

from gateway.core.errors import Conflict
from gateway.core.predictions import SigningKeys

GRACE_S: Final = 86_400.0
"""A key is kept for so much longer than its youngest id is good for: a host that did not reach the
store went on signing with it for a while."""
_STEP_S: Final = 1.0


def with_next(keys: SigningKeys, key_id: int, secret: str) -> SigningKeys:
    """Make a key known, which is to sign next.

    Raises:
        Conflict: another one waits for that, or the id is taken.
    """
    if keys.waiting is not None or key_id in keys.keys:
        message = f"Signing key {key_id} cannot be added: its id is taken, or another one waits."
        raise Conflict(message)
    return replace(keys, keys={**keys.keys, key_id: secret}, waiting=key_id)


def signing_with(keys: SigningKeys, key_id: int, now: float) -> SigningKeys:
    """Let a known key sign from now on, in UTC seconds.

    Should the clock have gone back, the key still counts as begun after all others, so that none
    of them seems to have stopped before it did.

    Raises:
        Conflict: the key is not known.
    """
    if key_id not in keys.keys:
        message = f"Signing key {key_id} is not known any more."
        raise Conflict(message)
    began = max(now, max(keys.made.values(), default=-inf) + _STEP_S)
    waiting = None if keys.waiting == key_id else keys.waiting
    return replace(keys, current=key_id, made={**keys.made, key_id: began}, waiting=waiting)


def stopped_at(keys: SigningKeys, key_id: int) -> float | None:
    """When a key's successor began to sign, in UTC seconds; None if it has none that is known of.

    A key of unknown age signed before all whose age is known.
    """
    if key_id in (keys.current, keys.waiting):
        return None
    began = keys.made.get(key_id, -inf)
    return min((at for at in keys.made.values() if at > began), default=None)


def retired(keys: SigningKeys, now: float, max_age_s: float) -> SigningKeys:
    """Drop the keys of which no id would be accepted any more.

    Args:
        keys: to look through; the one that signs and the one that waits always stay.
        now: in UTC seconds.
        max_age_s: how old a prediction may be when its outcome comes.
    """
    oldest = now - max_age_s - GRACE_S
    stops = {key_id: stopped_at(keys, key_id) for key_id in keys.keys}
    kept = {key_id for key_id, stop in stops.items() if stop is None or stop >= oldest}
    return replace(
        keys,
        keys={key_id: secret for key_id, secret in keys.keys.items() if key_id in kept},
        made={key_id: at for key_id, at in keys.made.items() if key_id in kept},
    )
