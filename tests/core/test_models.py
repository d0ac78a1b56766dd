import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Conflict, InvalidRequest
from gateway.core.models import (
    StoredFile,
    bundle_digest,
    check_compatible,
    check_name,
    is_hex256,
    is_name,
    parse_version,
)
from gateway.core.tensors import Signature, TensorSpec

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a", id="one-letter"),
        pytest.param("0", id="digit"),
        pytest.param("Flight_delay-v2.1", id="all-kinds"),
        pytest.param("a.", id="ends-in-dot"),
        pytest.param("a" * 64, id="longest"),
    ],
)
def test_a_plain_name_is_returned(name: str) -> None:
    """Letters, digits, dots, underscores and dashes make a name of up to 64."""
    assert check_name("a model", name) == name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("../etc", id="parent"),
        pytest.param("a/../b", id="inner-parent"),
        pytest.param("..", id="dots"),
        pytest.param(".", id="dot"),
        pytest.param(".hidden", id="hidden"),
        pytest.param("a..b", id="double-dot"),
        pytest.param(" ..", id="space-dots"),
        pytest.param("/etc", id="absolute"),
        pytest.param("model/", id="slash"),
        pytest.param("a b", id="space"),
        pytest.param(" a", id="leading-space"),
        pytest.param("a\n", id="newline"),
        pytest.param("a\r\nb", id="crlf"),
        pytest.param("\t", id="tab"),
        pytest.param("a\0", id="nul"),
        pytest.param("a" * 65, id="65"),
        pytest.param("a" * 300, id="300"),
        pytest.param("%2e%2e", id="percent"),
        pytest.param("\\..\\", id="backslash"),
        pytest.param("a}:x", id="brace"),
        pytest.param("{a}", id="braces"),
        pytest.param("a*", id="star"),
        pytest.param("a:b", id="colon"),
        pytest.param("-a", id="dash-first"),
        pytest.param("_a", id="underscore-first"),
        pytest.param("é", id="accent"),
        pytest.param("\u0430", id="cyrillic"),
        pytest.param("a٣", id="other-digit"),
        pytest.param("\x1b[31m", id="ansi"),
    ],
)
def test_what_could_be_a_path_key_or_line_is_no_name(name: str) -> None:
    """Separators, wildcards, blanks, controls and foreign letters are refused cleanly."""
    assert not is_name(name)
    with pytest.raises(InvalidRequest) as refusal:
        check_name("a model", name)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


@given(st.text(max_size=80))
def test_names_follow_the_written_rule(text: str) -> None:
    """A text is a name by its first character, its others, its length and no double dot."""
    allowed = all(character in ALPHABET + "._-" for character in text)
    expected = 1 <= len(text) <= 64 and text[0] in ALPHABET and allowed and ".." not in text
    assert is_name(text) is expected


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("10", 10), ("999999999", 999_999_999)])
def test_a_version_is_a_plain_number(text: str, number: int) -> None:
    """Up to nine digits without a leading zero are a version."""
    assert parse_version(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "-1", "+1", "007", "1e3", "1.0", "1_0", " 1", "1 ", "1\n", "latest",
        "latest/../1", "1/../2", "9223372036854775808", "1000000000", "٣", "²", "0x1", "1" * 5000,
    ],
)  # fmt: skip
def test_anything_else_is_no_version(text: str) -> None:
    """Signs, zeros in front, other digits and more than nine digits are refused."""
    with pytest.raises(InvalidRequest, match="is not a version number"):
        parse_version(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("0123456789abcdef" * 4, True, id="hex"),
        pytest.param("", False, id="empty"),
        pytest.param("a" * 63, False, id="short"),
        pytest.param("a" * 65, False, id="long"),
        pytest.param("A" * 64, False, id="upper"),
        pytest.param("g" * 64, False, id="not-hex"),
        pytest.param("../" + "a" * 61, False, id="path"),
        pytest.param("a" * 63 + "\n", False, id="newline"),
    ],
)
def test_a_digest_is_64_lower_case_hex_digits(text: str, expected: bool) -> None:
    """Only what can be a SHA-256 may name stored bytes."""
    assert is_hex256(text) is expected


def test_a_bundle_digest_is_over_the_files_in_the_order_of_their_paths() -> None:
    """The digest can be computed with hashlib from the listing, in whatever order files came."""
    first = StoredFile(path="a/weights.bin", size=3, sha256="0" * 64)
    second = StoredFile(path="model.onnx", size=5, sha256="1" * 64)
    listing = (
        '[{"path":"a/weights.bin","size":3,"sha256":"' + "0" * 64 + '"},'
        '{"path":"model.onnx","size":5,"sha256":"' + "1" * 64 + '"}]'
    )
    expected = hashlib.sha256(listing.encode()).hexdigest()
    assert bundle_digest((first, second)) == expected
    assert bundle_digest((second, first)) == expected


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(StoredFile(path="model.onnx", size=5, sha256="2" * 64), id="bytes"),
        pytest.param(StoredFile(path="model.onny", size=5, sha256="1" * 64), id="path"),
        pytest.param(StoredFile(path="model.onnx", size=6, sha256="1" * 64), id="size"),
    ],
)
def test_a_changed_file_changes_the_bundle_digest(changed: StoredFile) -> None:
    """Path, size and hash of every file count."""
    stored = StoredFile(path="model.onnx", size=5, sha256="1" * 64)
    assert bundle_digest((changed,)) != bundle_digest((stored,))


def signature(
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 4)),),
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "INT64", (4,)),),
    *,
    batched: bool = True,
) -> Signature:
    """A signature with one input and one output."""
    return Signature(inputs=inputs, outputs=outputs, batched=batched)


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param(signature(), id="the-same"),
        pytest.param(
            signature(inputs=(TensorSpec("x", "FP32", (-1, 4), ("rows", None)),)), id="symbols"
        ),
        pytest.param(
            signature(outputs=(TensorSpec("y", "INT64", (-1,)),)), id="first-dimension-freed"
        ),
    ],
)
def test_a_version_that_callers_cannot_tell_apart_is_compatible(candidate: Signature) -> None:
    """Names of dimensions do not count, and a fixed first dimension may become free."""
    check_compatible(signature(), candidate)


@pytest.mark.parametrize(
    ("candidate", "sentence"),
    [
        pytest.param(signature(batched=False), "its batching", id="batching"),
        pytest.param(signature(inputs=()), "inputs (0 instead of 1)", id="input-gone"),
        pytest.param(
            signature(outputs=(TensorSpec("y", "INT64", (4,)), TensorSpec("z", "FP32", ()))),
            "outputs (2 instead of 1)",
            id="output-more",
        ),
        pytest.param(
            signature(inputs=(TensorSpec("X", "FP32", (-1, 4)),)), "input 'x'", id="renamed"
        ),
        pytest.param(
            signature(inputs=(TensorSpec("x", "FP64", (-1, 4)),)), "input 'x'", id="datatype"
        ),
        pytest.param(
            signature(inputs=(TensorSpec("x", "FP32", (-1, 4, 1)),)), "input 'x'", id="rank-more"
        ),
        pytest.param(signature(inputs=(TensorSpec("x", "FP32", (-1,)),)), "input 'x'", id="rank"),
        pytest.param(
            signature(inputs=(TensorSpec("x", "FP32", (-1, 5)),)), "input 'x'", id="extent"
        ),
        pytest.param(
            signature(inputs=(TensorSpec("x", "FP32", (-1, -1)),)), "input 'x'", id="freed-column"
        ),
        pytest.param(
            signature(inputs=(TensorSpec("x", "FP32", (8, 4)),)), "input 'x'", id="fixed-rows"
        ),
        pytest.param(
            signature(outputs=(TensorSpec("y", "INT64", (5,)),)), "output 'y'", id="output-extent"
        ),
    ],
)
def test_a_version_that_callers_would_notice_is_a_conflict(
    candidate: Signature, sentence: str
) -> None:
    """Another name, datatype, rank or extent of any tensor is named in the refusal."""
    with pytest.raises(Conflict) as refusal:
        check_compatible(signature(), candidate)
    assert sentence in str(refusal.value)
