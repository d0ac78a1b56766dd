"""The prediction id: a signed, self-describing token that joins a later outcome to its prediction.

Layout, big-endian, then base64url without padding:

    1  token version (1)              8  revision
    2  key id                         1  reason
    6  milliseconds since the epoch   4  propensity, float32
    8  nonce                          4  version number
    16 unit hash (zeros: no unit)     4  phase
    1+n endpoint, 1+n rule, 1+n variant, 1+n intended variant (empty: the same), UTF-8
    1  rows, 1 scalars per row, then float32 each, row by row
    16 keyed BLAKE2b over all of it

Nothing needs to be looked up to credit an outcome, and an id cannot be altered or invented.
"""

import struct
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from math import nan
from typing import Any, Final, TypeAlias

from msgspec import Struct
from numpy import errstate, float32

from gateway.core.assignment import Reason
from gateway.core.errors import InvalidRequest
from gateway.core.models import is_hex256
from gateway.core.tensors import Tensors

TOKEN_VERSION: Final = 1
MAC_BYTES: Final = 16
UNIT_HASH_BYTES: Final = 16
MAX_ROWS: Final = 16
MAX_SCALARS: Final = 4
MAX_KEY_ID: Final = 2**16 - 1
NO_UNIT: Final = bytes(UNIT_HASH_BYTES)
Scalars: TypeAlias = tuple[tuple[float, ...], ...]
"""Output scalars, one tuple per row."""
_HEAD: Final = struct.Struct(">BH6s8s16sQBfII")
_KIND: Final = struct.Struct(">QBfII")
_MAX_BLINDERS: Final = 1024
_NO_SCALARS: Final = b"\0\0"
_REASONS: Final = tuple(Reason)
_REASON_CODES: Final = {reason: code for code, reason in enumerate(_REASONS)}
_TOKEN_PERSON: Final = b"tiltyard-token-1"
_UNIT_PERSON: Final = b"tiltyard-unit-1"
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class SigningKeys(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The keys that hosts share: `current` signs, every key in `keys` verifies.

    `unit_key` blinds units in tokens and records; it does not rotate with the signing keys, so a
    unit keeps its hash within a split. All keys are 32 bytes as lower-case hex. `made` says when a
    key began to sign, in UTC seconds; one that it leaves out is of unknown age. `waiting` is the
    key of a rotation that is under way: it is to sign next and has never signed.
    """

    schema: int
    current: int
    keys: dict[int, str]
    unit_key: str
    made: dict[int, float] = {}
    waiting: int | None = None


class PredictionFacts(Struct, frozen=True):
    """What a prediction id says.

    `at_ms` is UTC; `scalars` holds one tuple per row; `intended` names the variant that could not
    answer, where the default fell in for it.
    """

    at_ms: int
    nonce: bytes
    revision: int
    endpoint: str
    rule: str
    variant: str
    version: int
    reason: Reason
    propensity: float
    unit_hash: bytes
    intended: str = ""
    phase: int = 0
    scalars: Scalars = ()


class Signer:
    """Makes prediction ids with the current key and reads those of any known key."""

    __slots__ = ("_blinders", "_head", "_mac", "_macs", "_unit_key")

    def __init__(self, keys: SigningKeys) -> None:
        """Prepare one hasher per key.

        Raises:
            InvalidRequest: a key is not 32 bytes of hex, or the current one is not among them.
        """
        _check_keys(keys)
        self._macs = {
            key_id: blake2b(digest_size=MAC_BYTES, key=bytes.fromhex(secret), person=_TOKEN_PERSON)
            for key_id, secret in keys.keys.items()
        }
        self._mac = self._macs[keys.current]
        self._head = struct.pack(">BH", TOKEN_VERSION, keys.current)
        self._unit_key = bytes.fromhex(keys.unit_key)
        self._blinders: dict[str, Any] = {}

    def unit_hash(self, salt: str, unit: bytes) -> bytes:
        """Blind a unit: linkable within one split, not across, and not without the key."""
        blinder = self._blinders.get(salt)
        if blinder is None:
            if len(self._blinders) >= _MAX_BLINDERS:
                self._blinders.clear()
            blinder = self._blinders[salt] = self._blinder(salt)
        hasher = blinder.copy()
        hasher.update(unit)
        digest: bytes = hasher.digest()
        return digest

    def sign(self, facts: PredictionFacts) -> str:
        """The prediction id of these facts: ASCII, safe in a header and a URL."""
        return self.issue(facts.at_ms, facts.nonce, facts.unit_hash, stub(facts), facts.scalars)

    def issue(
        self, at_ms: int, nonce: bytes, unit_hash: bytes, of_kind: bytes, scalars: Scalars = ()
    ) -> str:
        """The same, for many predictions of one kind: `of_kind` is the `stub` of any of them."""
        at = at_ms.to_bytes(6, "big")
        packed = _pack_scalars(scalars) if scalars else _NO_SCALARS
        body = b"".join((self._head, at, nonce, unit_hash, of_kind, packed))
        mac = self._mac.copy()
        mac.update(body)
        text = b2a_base64(body + mac.digest(), newline=False).translate(_URL_SAFE)
        return text.rstrip(b"=").decode()

    def read(self, prediction_id: str) -> PredictionFacts:
        """Verify an id and say what it holds.

        Raises:
            InvalidRequest: not an id of this gateway: malformed, altered, or of an unknown key.
        """
        try:
            padding = "=" * (-len(prediction_id) % 4)
            sealed = urlsafe_b64decode(prediction_id.encode("ascii") + padding.encode())
            body, tag = sealed[:-MAC_BYTES], sealed[-MAC_BYTES:]
            head = _HEAD.unpack_from(body)
        except (ValueError, struct.error) as error:
            raise InvalidRequest(_NOT_OURS) from error
        if _armoured(sealed) != prediction_id:
            raise InvalidRequest(_NOT_OURS)
        hasher = self._macs.get(head[1])
        if head[0] != TOKEN_VERSION or hasher is None:
            raise InvalidRequest(_NOT_OURS)
        mac = hasher.copy()
        mac.update(body)
        if not compare_digest(mac.digest(), tag):
            raise InvalidRequest(_NOT_OURS)
        try:
            return _read_body(head, body)
        except (IndexError, ValueError, struct.error) as error:
            raise InvalidRequest(_NOT_OURS) from error

    def _blinder(self, salt: str) -> Any:  # noqa: ANN401 - a hasher's type has no public name
        encoded = salt.encode()
        return blake2b(
            struct.pack(">H", len(encoded)) + encoded,
            digest_size=UNIT_HASH_BYTES,
            key=self._unit_key,
            person=_UNIT_PERSON,
        )


_NOT_OURS: Final = "The prediction id was not issued here, was altered, or its key was retired."


def stub(facts: PredictionFacts) -> bytes:
    """What the ids of all predictions of one kind share, from the revision to the variants."""
    return b"".join(
        (
            _KIND.pack(
                facts.revision,
                _REASON_CODES[facts.reason],
                facts.propensity,
                facts.version,
                facts.phase,
            ),
            _text(facts.endpoint),
            _text(facts.rule),
            _text(facts.variant),
            _text(facts.intended),
        )
    )


def scalars_of(declared: Sequence[str], outputs: Tensors) -> Scalars:
    """The declared output scalars of each row, at most 4 for each of the first 16 rows.

    Args:
        declared: `name` for an output of shape (rows,) or (rows, 1), `name:i` for column i of an
            output of shape (rows, columns). What an answer does not hold becomes NaN.
        outputs: the answer's tensors, batch first.
    """
    columns = [_column(spec, outputs) for spec in declared[:MAX_SCALARS]]
    rows = min(max((len(column) for column in columns), default=0), MAX_ROWS)
    return tuple(
        tuple(column[row] if row < len(column) else nan for column in columns)
        for row in range(rows)
    )


def _column(spec: str, outputs: Tensors) -> list[float]:
    name, _, place = (spec, "", "0") if spec in outputs else spec.rpartition(":")
    tensor = outputs.get(name)
    if tensor is None or tensor.ndim == 0 or tensor.size == 0 or tensor.dtype == object:
        return []
    flat = tensor.reshape(len(tensor), -1)
    index = int(place)
    if index >= flat.shape[1]:
        return []
    with errstate(all="ignore"):
        narrowed = flat[:MAX_ROWS, index].astype(float32)
    return [float(value) for value in narrowed]


def _check_keys(keys: SigningKeys) -> None:
    secrets = [*keys.keys.values(), keys.unit_key]
    if keys.current not in keys.keys or not all(is_hex256(secret) for secret in secrets):
        message = "The signing keys must be 32 bytes as lower-case hex, the current one among them."
        raise InvalidRequest(message)
    if not all(0 <= key_id <= MAX_KEY_ID for key_id in keys.keys):
        message = f"The ids of signing keys are 0 to {MAX_KEY_ID}."
        raise InvalidRequest(message)


def _armoured(sealed: bytes) -> str:
    """Base64url without padding."""
    return b2a_base64(sealed, newline=False).translate(_URL_SAFE, b"=").decode("ascii")


def _text(value: str) -> bytes:
    encoded = value.encode()
    return bytes((len(encoded),)) + encoded


def _pack_scalars(scalars: Scalars) -> bytes:
    if not scalars:
        return _NO_SCALARS
    flat = [value for row in scalars for value in row]
    return struct.pack(f">BB{len(flat)}f", len(scalars), len(scalars[0]), *flat)


def _read_body(head: tuple[Any, ...], body: bytes) -> PredictionFacts:
    _, _, at_ms, nonce, unit_hash, revision, reason, propensity, version, phase = head
    texts: list[str] = []
    offset = _HEAD.size
    for _ in range(4):
        end = offset + 1 + body[offset]
        texts.append(body[offset + 1 : end].decode())
        offset = end
    rows, width = body[offset], body[offset + 1]
    flat = struct.unpack_from(f">{rows * width}f", body, offset + 2)
    scalars = tuple(tuple(flat[row * width : (row + 1) * width]) for row in range(rows))
    return PredictionFacts(
        at_ms=int.from_bytes(at_ms, "big"),
        nonce=nonce,
        revision=revision,
        endpoint=texts[0],
        rule=texts[1],
        variant=texts[2],
        intended=texts[3],
        version=version,
        reason=_REASONS[reason],
        propensity=propensity,
        unit_hash=unit_hash,
        phase=phase,
        scalars=scalars,
    )
