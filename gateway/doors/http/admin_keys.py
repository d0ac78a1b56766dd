"""Operations on the keys that sign prediction ids. No key ever leaves through here, only its id."""

from gateway.core.errors import NotReady
from gateway.core.predictions import SigningKeys
from gateway.core.signing_keys import stopped_at
from gateway.doors.http.admin_calls import Call, answer
from gateway.doors.http.admin_documents import KeyEntry, KeyList
from gateway.doors.http.messages import Response


async def list_keys(call: Call) -> Response:
    """What this host signs and reads ids with, whether or not the store is there."""
    keys = call.parts.keys()
    if keys is None:
        message = "The gateway has no signing keys yet."
        raise NotReady(message)
    return answer(_listed(keys))


async def rotate_keys(call: Call) -> Response:
    """Let a new key sign on every host; answers once it does."""
    actor = "" if call.principal is None else call.principal.name
    return answer(_listed(await call.parts.rotate_keys(actor)))


def _listed(keys: SigningKeys) -> KeyList:
    entries = tuple(
        KeyEntry(
            id=key_id,
            signs=key_id == keys.current,
            waiting=key_id == keys.waiting,
            since=keys.made.get(key_id),
            until=stopped_at(keys, key_id),
        )
        for key_id in sorted(keys.keys)
    )
    return KeyList(keys.current, entries)
