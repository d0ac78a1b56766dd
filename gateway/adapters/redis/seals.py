"""Seals: proof that a stored Snapshot was written by who has a key that Redis does not hold.

A seal is the HMAC-SHA256 over the document's bytes, in lower-case hex. It is written in the
transaction that writes the document, and both are read in one, so they are never of two commits.
"""

import hmac
from typing import Final

SEAL_CHARACTERS: Final = 64


def seal_of(key: str, document: bytes) -> str:
    """The seal of a document."""
    return hmac.digest(key.encode(), document, "sha256").hex()


def is_sealed(key: str, document: bytes, seal: bytes) -> bool:
    """Whether this is the document's seal."""
    return hmac.compare_digest(seal_of(key, document).encode(), seal)
