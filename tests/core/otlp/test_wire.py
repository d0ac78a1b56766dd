from typing import Any

import pytest
from google.protobuf.internal import encoder
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from gateway.core.errors import InvalidRequest
from gateway.core.otlp import wire

NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1)


@given(number=NUMBERS)
def test_a_varint_reads_back(number: int) -> None:
    """A number, negative ones as 64 bits of two's complement, is read as it was written."""
    written = wire.varint(number)
    assert wire.read_varint(written, 0, len(written)) == (number & (1 << 64) - 1, len(written))


@given(number=st.integers(0, (1 << 63) - 1))
def test_a_varint_is_protobufs(number: int) -> None:
    """The official encoder writes the same digits."""
    assert wire.varint(number) == encoder._VarintBytes(number)


@pytest.mark.parametrize(
    ("value", "theirs"),
    [
        pytest.param("é\0", AnyValue(string_value="é\ufffd"), id="text"),
        pytest.param("", AnyValue(string_value=""), id="no-text"),
        pytest.param(True, AnyValue(bool_value=True), id="true"),
        pytest.param(False, AnyValue(bool_value=False), id="false"),
        pytest.param(-3, AnyValue(int_value=-3), id="negative"),
        pytest.param(1 << 80, AnyValue(int_value=(1 << 63) - 1), id="too-large"),
        pytest.param(0.1, AnyValue(double_value=0.1), id="double"),
    ],
)
def test_a_value_is_of_its_type(value: Any, theirs: AnyValue) -> None:
    """Each type of Python is told as the protocol's own."""
    assert KeyValue.FromString(wire.key_value("k", value)) == KeyValue(key="k", value=theirs)


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3_000))
def test_a_text_attribute_is_a_key_and_a_string(text: str) -> None:
    """Whatever its length, what stands before the text fits it."""
    attribute = wire.TextAttribute(6, "name")
    for _ in range(2):
        ((number, kind, start, end),) = wire.fields(attribute.encode(text))
        assert (number, kind) == (6, wire.BYTES)
        told = KeyValue.FromString(attribute.encode(text)[start:end])
        assert told == KeyValue(key="name", value=AnyValue(string_value=text))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x0a\x05abc", id="cut-text"),
        pytest.param(b"\x09\x01", id="cut-number"),
        pytest.param(b"\x0b\x00", id="a-group"),
        pytest.param(b"\x08" + b"\xff" * 11, id="endless-number"),
        pytest.param(b"\x80", id="cut-tag"),
    ],
)
def test_what_is_no_message_is_refused(content: bytes) -> None:
    """Bytes from a damaged disk are an error, never a wrong record."""
    with pytest.raises(InvalidRequest):
        list(wire.fields(content))


@given(content=st.binary(max_size=200))
def test_any_bytes_end(content: bytes) -> None:
    """Reading what is no message ends with fields inside of it, or with the error."""
    try:
        found = list(wire.fields(content))
    except InvalidRequest:
        return
    assert all(start <= end <= len(content) for _, _, start, end in found)
