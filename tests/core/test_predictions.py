import hashlib
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from math import inf, isnan, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.assignment import Reason
from gateway.core.errors import InvalidRequest
from gateway.core.predictions import NO_UNIT, PredictionFacts, Signer, SigningKeys, scalars_of

FIRST, SECOND, UNIT_KEY = "11" * 32, "22" * 32, "33" * 32
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
SIGNER = Signer(SigningKeys(schema=1, current=7, keys={7: FIRST}, unit_key=UNIT_KEY))
FACTS = PredictionFacts(
    at_ms=1_767_225_600_123,
    nonce=b"01234567",
    revision=42,
    endpoint="flight-delay",
    rule="canary",
    variant="challenger",
    version=3,
    reason=Reason.SPLIT,
    propensity=0.25,
    unit_hash=b"h" * 16,
    phase=2,
    scalars=((0.5, nan), (1.0, -inf)),
)
REFUSAL = "The prediction id was not issued here, was altered, or its key was retired."


def sealed(body: bytes, secret: str = FIRST) -> str:
    """A token over any body, signed as the layout says."""
    key = bytes.fromhex(secret)
    mac = blake2b(body, digest_size=16, key=key, person=b"tiltyard-token-1").digest()
    return urlsafe_b64encode(body + mac).rstrip(b"=").decode()


def head(reason: int = 1, key: int = 7, version: int = 1) -> bytes:
    """The fixed part of a token."""
    return struct.pack(
        ">BH6s8s16sQBfII", version, key, b"\0" * 6, b"n" * 8, b"u" * 16, 9, reason, 1.0, 5, 0
    )


def bits(value: Any) -> Any:
    """Floats as their bits, so that NaN can be compared."""
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, tuple):
        return tuple(bits(part) for part in value)
    return value


def fields(facts: PredictionFacts) -> list[Any]:
    """Every field in a form that equals itself."""
    return [bits(getattr(facts, name)) for name in facts.__struct_fields__]


names = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", max_size=64)
scalar = st.floats(width=32)
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(*[scalar] * width), max_size=16).map(tuple)
)
any_facts = st.builds(
    PredictionFacts,
    at_ms=st.integers(0, 2**48 - 1),
    nonce=st.binary(min_size=8, max_size=8),
    revision=st.integers(0, 2**63 - 1),
    endpoint=names,
    rule=names,
    intended=names,
    variant=names,
    version=st.integers(1, 999_999_999),
    reason=st.sampled_from(Reason),
    propensity=st.floats(0, 1, width=32),
    unit_hash=st.binary(min_size=16, max_size=16),
    phase=st.integers(0, 2**32 - 1),
    scalars=tables,
)


@given(any_facts)
def test_what_is_signed_is_what_is_read(facts: PredictionFacts) -> None:
    """Every field comes back bit for bit, and the token needs no escaping in a header or URL."""
    token = SIGNER.sign(facts)
    assert set(token) <= set(ALPHABET)
    assert fields(SIGNER.read(token)) == fields(facts)


def test_what_is_not_said_is_phase_0_without_scalars() -> None:
    """Outside an experiment a prediction is of phase 0 and carries no scalars."""
    facts = PredictionFacts(
        at_ms=1,
        nonce=b"n" * 8,
        revision=1,
        endpoint="e",
        rule="",
        variant="default",
        version=1,
        reason=Reason.STATIC,
        propensity=1.0,
        unit_hash=NO_UNIT,
    )
    read = SIGNER.read(SIGNER.sign(facts))
    assert (read.phase, read.scalars, read.unit_hash) == (0, (), bytes(16))


def test_the_layout_is_the_written_one() -> None:
    """A token can be made from the documented layout alone."""
    body = (
        b"\x01"
        + (7).to_bytes(2, "big")
        + (1_767_225_600_123).to_bytes(6, "big")
        + b"01234567"
        + b"h" * 16
        + (42).to_bytes(8, "big")
        + b"\x01"
        + struct.pack(">f", 0.25)
        + (3).to_bytes(4, "big")
        + (2).to_bytes(4, "big")
        + b"\x0cflight-delay\x06canary\x0achallenger\x00"
        + b"\x02\x02"
        + struct.pack(">ffff", 0.5, nan, 1.0, -inf)
    )
    assert SIGNER.sign(FACTS) == sealed(body)


def test_reasons_keep_their_codes() -> None:
    """A token that is read months later means the reason it was signed with."""
    codes = ["static", "split", "targeting_match", "default", "forced", "pinned", "fallback"]
    for code, reason in enumerate(codes):
        token = sealed(head(code) + b"\0\0\0\0" + b"\0\0")
        assert SIGNER.read(token).reason == reason
        assert SIGNER.sign(SIGNER.read(token)) == token


@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    """No bit of the sealed bytes can be changed."""
    token = SIGNER.sign(FACTS)
    raw = bytearray(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    place = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[place // 8] ^= 1 << (place % 8)
    with pytest.raises(InvalidRequest) as refusal:
        SIGNER.read(urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode())
    assert str(refusal.value) == REFUSAL


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_any_other_last_character_is_refused(extra: int) -> None:
    """Unused bits of the last character are part of the token: each id has one spelling."""
    token = SIGNER.sign(replace(FACTS, rule="r" * (1 + extra)))
    for character in ALPHABET:
        if character != token[-1]:
            with pytest.raises(InvalidRequest):
                SIGNER.read(token[:-1] + character)


def test_every_truncation_and_surplus_is_refused() -> None:
    """No part of a token is a token, nor is a token with more behind it."""
    token = SIGNER.sign(FACTS)
    for length in range(len(token)):
        with pytest.raises(InvalidRequest):
            SIGNER.read(token[:length])
        with pytest.raises(InvalidRequest):
            SIGNER.read(token[length + 1 :])
    for character in ALPHABET:
        with pytest.raises(InvalidRequest):
            SIGNER.read(token + character)


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(lambda token: token + "=", id="padded"),
        pytest.param(lambda token: token + "====", id="padded-more"),
        pytest.param(lambda token: token + "\n", id="newline"),
        pytest.param(lambda token: " " + token, id="space"),
        pytest.param(lambda token: token[:9] + "!" + token[9:], id="foreign-character"),
        pytest.param(lambda token: token[:9] + "é" + token[10:], id="not-ascii"),
        pytest.param(lambda token: token[:9] + "\udc80" + token[10:], id="surrogate"),
        pytest.param(lambda token: token.replace("-", "+").replace("_", "/"), id="other-alphabet"),
        pytest.param(lambda token: token.swapcase(), id="case"),
        pytest.param(lambda token: token + token, id="twice"),
        pytest.param(lambda _: "", id="empty"),
        pytest.param(lambda _: "A", id="one-character"),
        pytest.param(lambda _: "A" * 100_000, id="long"),
        pytest.param(lambda _: "\0", id="nul"),
    ],
)
def test_another_spelling_is_refused(spell: Any) -> None:
    """Only the canonical spelling of an id is one."""
    facts = replace(FACTS, nonce=b"\xfb\xef\xbe\xff\xff\xff\xfe\xfb")
    token = SIGNER.sign(facts)
    assert "-" in token
    assert "_" in token
    with pytest.raises(InvalidRequest) as refusal:
        SIGNER.read(spell(token))
    assert str(refusal.value) == REFUSAL


@given(st.text(max_size=300) | st.text(ALPHABET, max_size=300))
def test_any_text_is_refused_cleanly(text: str) -> None:
    """What was not signed here is refused, whatever it is, with one error only."""
    with pytest.raises(InvalidRequest):
        SIGNER.read(text)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(head(99) + b"\0\0\0\0\0", id="unknown-reason"),
        pytest.param(head(), id="no-texts"),
        pytest.param(head() + b"\0\0\0", id="no-scalars"),
        pytest.param(head() + b"\xffabc", id="text-beyond-the-end"),
        pytest.param(head() + b"\x01\xff\0\0\0\0", id="text-not-utf-8"),
        pytest.param(head() + b"\0\0\0\x10\x04", id="scalars-beyond-the-end"),
        pytest.param(head(version=2) + b"\0\0\0\0\0", id="other-token-version"),
        pytest.param(head(key=8) + b"\0\0\0\0\0", id="unknown-key"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_a_body_of_another_make_is_refused_even_when_signed(body: bytes) -> None:
    """A host with the same key and another layout gets a refusal, not a crash."""
    with pytest.raises(InvalidRequest):
        SIGNER.read(sealed(body))


def test_a_token_of_another_key_is_refused() -> None:
    """The id of a key does not help without its secret."""
    forged = Signer(SigningKeys(schema=1, current=7, keys={7: SECOND}, unit_key=UNIT_KEY))
    with pytest.raises(InvalidRequest):
        SIGNER.read(forged.sign(FACTS))


def test_keys_rotate_without_losing_outcomes() -> None:
    """After a rotation the new key signs, the old one verifies, and a retired one does not."""
    old = SIGNER.sign(FACTS)
    both = Signer(SigningKeys(schema=1, current=8, keys={7: FIRST, 8: SECOND}, unit_key=UNIT_KEY))
    retired = Signer(SigningKeys(schema=1, current=8, keys={8: SECOND}, unit_key=UNIT_KEY))
    new = both.sign(FACTS)
    assert both.read(old).revision == 42
    assert retired.read(new).revision == 42
    assert new != old
    with pytest.raises(InvalidRequest):
        retired.read(old)
    with pytest.raises(InvalidRequest):
        SIGNER.read(new)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"current": 8}, id="no-current-key"),
        pytest.param({"keys": {}}, id="no-keys"),
        pytest.param({"keys": {7: ""}}, id="empty-key-would-sign-for-anyone"),
        pytest.param({"keys": {7: "11" * 31}}, id="short-key"),
        pytest.param({"keys": {7: "zz" * 32}}, id="not-hex"),
        pytest.param({"keys": {7: FIRST, 9: ""}}, id="empty-old-key"),
        pytest.param({"keys": {7: FIRST, 65_536: SECOND}}, id="large-id"),
        pytest.param({"keys": {7: FIRST, -1: SECOND}}, id="negative-id"),
        pytest.param({"unit_key": ""}, id="empty-unit-key"),
    ],
)
def test_keys_that_could_not_protect_are_refused(keys: dict[str, Any]) -> None:
    """A missing, short or malformed key is refused before anything is signed with it."""
    whole = {"schema": 1, "current": 7, "keys": {7: FIRST}, "unit_key": UNIT_KEY, **keys}
    with pytest.raises(InvalidRequest) as refusal:
        Signer(SigningKeys(**whole))
    assert FIRST not in str(refusal.value)


@pytest.mark.parametrize("key_id", [0, 65_535])
def test_a_key_may_have_any_id_of_two_bytes(key_id: int) -> None:
    """The smallest and the largest id sign what they verify."""
    keys = SigningKeys(schema=1, current=key_id, keys={key_id: FIRST}, unit_key=UNIT_KEY)
    signer = Signer(keys)
    assert signer.read(signer.sign(FACTS)).revision == 42


def test_a_unit_hash_links_within_one_salt_and_key_only() -> None:
    """The same unit has one hash in a split, others in other splits and under other keys."""
    other = Signer(SigningKeys(schema=1, current=7, keys={7: FIRST}, unit_key="44" * 32))
    assert SIGNER.unit_hash("salt", b"unit") == SIGNER.unit_hash("salt", b"unit")
    hashes = [
        SIGNER.unit_hash("salt", b"unit"),
        SIGNER.unit_hash("salt2", b"unit"),
        SIGNER.unit_hash("salt", b"Unit"),
        SIGNER.unit_hash("sal", b"tunit"),
        SIGNER.unit_hash("saltu", b"nit"),
        other.unit_hash("salt", b"unit"),
    ]
    assert len(set(hashes)) == 6
    assert {len(value) for value in hashes} == {16}
    assert bytes(16) == NO_UNIT


def test_a_unit_hash_outlives_the_rotation_of_signing_keys() -> None:
    """Rotating what signs leaves units linkable, because their key stays."""
    rotated = Signer(SigningKeys(schema=1, current=8, keys={8: SECOND}, unit_key=UNIT_KEY))
    assert rotated.unit_hash("salt", b"unit") == SIGNER.unit_hash("salt", b"unit")


def test_a_unit_hash_is_the_documented_one() -> None:
    """The hash is keyed BLAKE2b over the length-prefixed salt and the unit."""
    expected = hashlib.blake2b(
        b"\x00\x06s\xc3\xa4lz!" + b"unit",
        digest_size=16,
        key=bytes.fromhex(UNIT_KEY),
        person=b"tiltyard-unit-1",
    ).digest()
    found = SIGNER.unit_hash("sälz!", b"unit")
    assert found == expected


OUTPUTS = {
    "flat": np.array([1.0, 2.0, 3.0], dtype="<f4"),
    "column": np.array([[4.0], [5.0], [6.0]], dtype="<f8"),
    "wide": np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], dtype="<f8"),
    "int": np.array([2**53 + 1, -7, 0], dtype="<i8"),
    "bool": np.array([True, False, True]),
    "text": np.array([b"a", b"b", b"c"], dtype=object),
    "scalar": np.array(5.0, dtype="<f4"),
    "huge": np.array([1e300, -1e300, nan], dtype="<f8"),
    "none": np.zeros((0,), dtype="<f4"),
    "none-wide": np.zeros((0, 3), dtype="<f4"),
    "no-columns": np.zeros((3, 0), dtype="<f4"),
    "short": np.array([9.0], dtype="<f4"),
    "many": np.arange(40, dtype="<f4"),
    "Identity:0": np.array([[1.5, 2.5]], dtype="<f4"),
}


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        pytest.param([], (), id="nothing-declared"),
        pytest.param(["flat"], ((1.0,), (2.0,), (3.0,)), id="flat"),
        pytest.param(["column"], ((4.0,), (5.0,), (6.0,)), id="one-column"),
        pytest.param(["wide:1"], ((0.9,), (0.8,), (0.7,)), id="a-column"),
        pytest.param(["wide:0", "flat"], ((0.1, 1.0), (0.2, 2.0), (0.3, 3.0)), id="two-outputs"),
        pytest.param(["int"], ((2.0**53,), (-7.0,), (0.0,)), id="integers"),
        pytest.param(["bool"], ((1.0,), (0.0,), (1.0,)), id="booleans"),
        pytest.param(["huge"], ((inf,), (-inf,), (nan,)), id="beyond-float32"),
        pytest.param(["flat", "missing"], ((1.0, nan), (2.0, nan), (3.0, nan)), id="missing"),
        pytest.param(["text", "flat"], ((nan, 1.0), (nan, 2.0), (nan, 3.0)), id="text"),
        pytest.param(["scalar", "flat"], ((nan, 1.0), (nan, 2.0), (nan, 3.0)), id="no-rows-axis"),
        pytest.param(["wide:2", "flat"], ((nan, 1.0), (nan, 2.0), (nan, 3.0)), id="no-column"),
        pytest.param(["no-columns", "flat"], ((nan, 1.0), (nan, 2.0), (nan, 3.0)), id="empty-row"),
        pytest.param(["short", "flat"], ((9.0, 1.0), (nan, 2.0), (nan, 3.0)), id="fewer-rows"),
        pytest.param(["none"], (), id="no-rows"),
        pytest.param(["none-wide:1"], (), id="no-rows-with-columns"),
        pytest.param(["missing"], (), id="only-missing"),
        pytest.param(["many"], tuple((float(row),) for row in range(16)), id="first-16-rows"),
        pytest.param(["flat:0"] * 5, ((1.0,) * 4, (2.0,) * 4, (3.0,) * 4), id="first-4-scalars"),
        pytest.param(["Identity:0:1"], ((2.5,),), id="colon-in-name-and-column"),
        pytest.param(["Identity:0"], ((1.5,),), id="colon-in-name"),
        pytest.param(["flat:1"], (), id="column-of-flat"),
    ],
)
def test_declared_scalars_are_read_row_by_row(
    declared: list[str], expected: tuple[tuple[float, ...], ...]
) -> None:
    """Each row holds one number for each declared scalar; what is not there is NaN."""
    found = scalars_of(declared, OUTPUTS)
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    token = SIGNER.sign(replace(FACTS, scalars=found))
    assert bits(SIGNER.read(token).scalars) == bits(found)


def test_nothing_in_an_answer_can_keep_it_from_being_signed() -> None:
    """Sixteen rows of the four scalars that fit no float32 are signed as infinities."""
    outputs = {"y": np.full((50, 4), 1e308)}
    found = scalars_of(["y:0", "y:1", "y:2", "y:3"], outputs)
    read = SIGNER.read(SIGNER.sign(replace(FACTS, scalars=found))).scalars
    assert read == ((inf,) * 4,) * 16
    assert not any(isnan(value) for row in read for value in row)
