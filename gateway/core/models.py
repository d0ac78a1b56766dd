"""Models, their immutable Versions and the Aliases that name one of them."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeAlias

import msgspec
from msgspec import Struct

from gateway.core.errors import Conflict, InvalidRequest, excerpt
from gateway.core.tensors import Signature, TensorSpec

Key: TypeAlias = tuple[str, int]
"""Model name and version number."""

CHAMPION: Final = "champion"
MAX_NAME: Final = 64
MAX_VERSION: Final = 999_999_999
HEX256_LENGTH: Final = 64
_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_REST = _FIRST | frozenset("._-")
_HEX = frozenset("0123456789abcdef")


class StoredFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a version: its path below the version's folder, size and SHA-256."""

    path: str
    size: int
    sha256: str


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a Version for ever: written once, on first sight.

    `digest` is the SHA-256 over the canonical list of its files, so two versions with equal
    bytes share one and a changed byte gives another.
    """

    schema: int
    model: str
    number: int
    digest: str
    files: tuple[StoredFile, ...]
    signature: Signature
    lineage: Mapping[str, Any]
    created_at: float


def is_name(text: str) -> bool:
    """Whether this may name a model, endpoint, alias, rule or variant."""
    return (
        0 < len(text) <= MAX_NAME
        and text[0] in _FIRST
        and all(c in _REST for c in text)
        and ".." not in text
    )


def check_name(what: str, text: str) -> str:
    """Return the name, or refuse it with a sentence that says what a name may hold."""
    if not is_name(text):
        message = (
            f"'{excerpt(text)}' cannot name {what}: use 1 to {MAX_NAME} letters, digits, '.', "
            "'_' or '-', starting with a letter or digit, without '..'."
        )
        raise InvalidRequest(message)
    return text


def is_hex256(text: str) -> bool:
    """Whether this is 32 bytes in lower-case hex: a SHA-256, fit to name a file, or a key."""
    return len(text) == HEX256_LENGTH and all(c in _HEX for c in text)


def parse_version(text: str) -> int:
    """Read a version number: decimal digits without sign or leading zero, at most nine.

    Raises:
        InvalidRequest: anything else.
    """
    if text.isascii() and text.isdigit() and text[0] != "0" and len(text) <= len(str(MAX_VERSION)):
        return int(text)
    message = f"'{excerpt(text)}' is not a version number; use 1 to {MAX_VERSION}."
    raise InvalidRequest(message)


def bundle_digest(files: tuple[StoredFile, ...]) -> str:
    """SHA-256 over the canonical JSON of the files, sorted by path."""
    listing = msgspec.json.encode(sorted(files, key=lambda file: file.path))
    return hashlib.sha256(listing).hexdigest()


def check_compatible(serving: Signature, candidate: Signature) -> None:
    """Refuse a version that callers of another would notice: names, datatypes, ranks, extents.

    The first dimension may be free in the candidate where the serving version fixes it.

    Raises:
        Conflict: with the first tensor that differs.
    """
    if candidate.batched != serving.batched:
        _differ("its batching")
    for what, old, new in (
        ("input", serving.inputs, candidate.inputs),
        ("output", serving.outputs, candidate.outputs),
    ):
        known = {spec.name: spec for spec in new}
        if len(new) != len(old):
            _differ(f"the number of {what}s ({len(new)} instead of {len(old)})")
        for spec in old:
            found = known.get(spec.name)
            if found is None or not _is_alike(spec, found):
                _differ(f"{what} '{excerpt(spec.name)}'")


def _is_alike(old: TensorSpec, new: TensorSpec) -> bool:
    return (
        new.datatype == old.datatype
        and len(new.shape) == len(old.shape)
        and new.shape[1:] == old.shape[1:]
        and new.shape[:1] in (old.shape[:1], (-1,))
    )


def _differ(what: str) -> NoReturn:
    message = (
        f"The signatures differ in {what}; callers would notice. "
        "Allow the change of signature if that is meant."
    )
    raise Conflict(message)
