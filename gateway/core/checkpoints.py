"""Checkpoints: what stands for the part of the audit log that was archived and trimmed.

A checkpoint is signed by the host that trims, before it does. The signature shows that this host
saw the whole chain up to there; what it does not show stands in the decision record on archives.
"""

import hashlib
import hmac
from typing import Final

from msgspec import Struct

from gateway.core.errors import InvalidRequest
from gateway.core.snapshot import canonical

SCHEMA: Final = 1
KEY_FILE: Final = "audit.key"
"""In the state folder: the key of a host, in hex."""
KEY_BYTES: Final = 32
KEY_ID_LENGTH: Final = 16


class Checkpoint(Struct, frozen=True, forbid_unknown_fields=True):
    """Entries from revision `first` to `last` in one archived file.

    They follow revision `after`, whose entry has the hash `before`; `head` is that of the last, and
    `epoch` its epoch. `sha256` is over the file, `base_sha256` over the documents as they stood
    after the last. `at` is in UTC seconds; `key` names the key that signs.
    """

    schema: int
    namespace: str
    epoch: int
    after: int
    first: int
    last: int
    entries: int
    before: str
    head: str
    sha256: str
    base_sha256: str
    at: float
    key: str


class Signed(Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint and the HMAC-SHA256 over its canonical JSON, in lower-case hex."""

    checkpoint: Checkpoint
    signature: str


def read_key(content: bytes) -> bytes:
    """A key as its file holds it.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        message = f"{KEY_FILE} holds no key: {2 * KEY_BYTES} hex digits."
        raise InvalidRequest(message)
    return key


def key_id(key: bytes) -> str:
    """The public name of a key."""
    return hashlib.sha256(b"tiltyard audit key\0" + key).hexdigest()[:KEY_ID_LENGTH]


def sign(checkpoint: Checkpoint, key: bytes) -> Signed:
    """Sign a checkpoint that names this key."""
    return Signed(checkpoint, hmac.digest(key, canonical(checkpoint), "sha256").hex())


def signature_state(signed: Signed, key: bytes | None) -> str:
    """`good` or `bad`; `unknown` where the key is another one or is not at hand."""
    if key is None or signed.checkpoint.key != key_id(key):
        return "unknown"
    expected = sign(signed.checkpoint, key).signature
    return "good" if hmac.compare_digest(expected, signed.signature) else "bad"
