import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput

from gateway.core.errors import EngineFailed, InvalidRequest, TooLarge
from gateway.core.oip.binary import bytes_of, write_bytes
from gateway.core.oip.messages import Limits
from gateway.core.oip.parse import parse_header_length
from gateway.core.tensors import Signature, TensorSpec, check_inputs
from tests.core.oip.bodies import (
    DATATYPES,
    LAW,
    NUMPY,
    all_same,
    binary_body,
    parse,
    same,
    signature_of,
    tensor,
    tensors,
)

ONE = struct.pack("<f", 1.5)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([b"-1"], id="B1 negative"),
        pytest.param([b"+1"], id="B1 plus"),
        pytest.param([b"99999999999"], id="B1 99999999999"),
        pytest.param([b"9" * 5000], id="B1 5000 digits"),
        pytest.param([b"0x10"], id="B1 hexadecimal"),
        pytest.param([b" 12"], id="B1 space before"),
        pytest.param([b"12 "], id="B1 space after"),
        pytest.param([b"12\n"], id="B1 newline after"),
        pytest.param([b"1e3"], id="B1 exponent"),
        pytest.param([b"1_0"], id="B1 underscore"),
        pytest.param([b"1.0"], id="B1 float"),
        pytest.param([b""], id="B1 empty"),
        pytest.param(["\u0661".encode()], id="B1 Arabic digit"),
        pytest.param([b"101"], id="B1 beyond the body"),
        pytest.param([b"1", b"1"], id="B1 twice"),
        pytest.param([b"1, 1"], id="B1 joined"),
    ],
)
def test_a_header_length_that_is_no_length_is_refused(values: list[bytes]) -> None:
    """B1 Plain decimal digits, once, within the body; anything else could split elsewhere."""
    with pytest.raises(InvalidRequest):
        parse_header_length(values, 100)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], None, id="absent"),
        pytest.param([b"0"], 0, id="zero"),
        pytest.param([b"42"], 42, id="within"),
        pytest.param([b"100"], 100, id="all"),
    ],
)
def test_a_header_length_is_read(values: list[bytes], expected: int | None) -> None:
    """B1 Absent is not zero: zero says that there is no JSON."""
    assert parse_header_length(values, 100) == expected


@pytest.mark.parametrize("json_bytes", [-1, 10**12], ids=["negative", "beyond"])
def test_a_json_part_outside_the_body_is_refused(json_bytes: int) -> None:
    """B1 The parser itself never reads past the body."""
    with pytest.raises(InvalidRequest, match="Inference-Header-Content-Length"):
        parse(binary_body(ONE)[0], json_bytes)


def test_binary_data_without_the_header_is_refused() -> None:
    """B1 Without the header all is JSON, so there are no bytes for the tensor."""
    head, length = binary_body(b"", size=4)
    assert length == len(head)
    with pytest.raises(InvalidRequest, match="0 are left"):
        parse(head)
    with pytest.raises(InvalidRequest):
        parse(head + ONE)


@pytest.mark.parametrize(
    ("payload", "size", "shape"),
    [
        pytest.param(ONE, -4, [1], id="B2 negative"),
        pytest.param(ONE, 4.0, [1], id="B2 float"),
        pytest.param(ONE, "4", [1], id="B2 text"),
        pytest.param(ONE, True, [1], id="B2 bool"),
        pytest.param(ONE, 8, [2], id="B2 more than is left"),
        pytest.param(ONE, 2**63, [1], id="B2 2^63"),
        pytest.param(ONE, 10**30, [1], id="B2 10^30"),
        pytest.param(ONE + b"x", 4, [1], id="B2 a byte behind"),
        pytest.param(ONE + ONE, 4, [1], id="B2 a tensor behind"),
        pytest.param(ONE, 0, [0], id="B2 nothing stated and bytes behind"),
        pytest.param(ONE, 4, [2], id="B2 less than the shape"),
        pytest.param(ONE + ONE, 8, [1], id="B2 more than the shape"),
        pytest.param(ONE, 4, [2**4, 2**60 + 2], id="B3 elements overflow"),
        pytest.param(ONE, 4, [2**2, 2**60 + 2], id="B3 bytes overflow"),
        pytest.param(b"", 0, [2**33, 2**33], id="B3 product is 0 modulo 2^64"),
        pytest.param(b"", 0, [0, 2**62], id="B3 empty with an endless extent"),
        pytest.param(ONE, 4, [-1], id="B4 negative extent"),
        pytest.param(ONE, 4, [1] * 9, id="B4 9 dimensions"),
        pytest.param(b"abc", 3, [1], id="B9 odd length"),
    ],
)
def test_bytes_are_accounted_for_exactly(payload: bytes, size: Any, shape: Any) -> None:
    """B2 Neither too few nor too many, before anything is allocated."""
    body, length = binary_body(payload, size=size, shape=shape)
    with pytest.raises(InvalidRequest):
        parse(body, length)


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        pytest.param(b"\xff\xff\xff\xff", 1, id="B7 endless element"),
        pytest.param(b"\x01\x00\x00", 1, id="B7 cut length"),
        pytest.param(b"\x01\x00\x00\x00a\x01\x00\x00", 2, id="B7 second length cut"),
        pytest.param(b"\x02\x00\x00\x00a", 1, id="B7 element cut"),
        pytest.param(b"\x00" * 8, 1, id="B7 more elements than the shape"),
        pytest.param(b"\x00" * 8, 3, id="B7 fewer elements than the shape"),
        pytest.param(b"\x04\x00\x00\x00\x00\x00\x00\x00", 2, id="B7 length swallows the next"),
        pytest.param(b"", 1, id="B7 nothing"),
        pytest.param(b"", 2**62, id="B7 nothing, many times"),
    ],
)
def test_bytes_elements_end_where_their_lengths_say(payload: bytes, count: int) -> None:
    """B7 Lengths are followed one by one and never past the tensor."""
    body, length = binary_body(payload, "BYTES", [count])
    with pytest.raises(InvalidRequest):
        parse(body, length, signature_of(x="BYTES"))


@pytest.mark.parametrize(
    ("limits", "payload", "datatype", "count"),
    [
        pytest.param(Limits(elements=2), ONE * 3, "FP32", 3, id="B16 elements"),
        pytest.param(Limits(elements=2), bytes(12), "BYTES", 3, id="B7 zero-length elements"),
        pytest.param(
            Limits(element_bytes=2), b"\x03\x00\x00\x00abc", "BYTES", 1, id="B7 element bytes"
        ),
        pytest.param(Limits(body_bytes=9), ONE, "FP32", 1, id="B16 body bytes"),
    ],
)
def test_more_than_the_limits_is_too_large(
    limits: Limits, payload: bytes, datatype: str, count: int
) -> None:
    """B16 Each bound holds for binary data too."""
    body, length = binary_body(payload, datatype, [count])
    with pytest.raises(TooLarge):
        parse(body, length, signature_of(x=datatype), limits)


@pytest.mark.parametrize(
    ("shape", "datatype"),
    [
        pytest.param([1, 5], "FP32", id="B5 fixed extent"),
        pytest.param([2, 3], "FP32", id="B5 symbol with two extents"),
        pytest.param([4], "FP32", id="B5 rank"),
        pytest.param([4, 4], "FP64", id="B6 FP64 for FP32"),
        pytest.param([4, 4], "INT32", id="B6 INT32 for FP32"),
    ],
)
def test_tensors_that_the_signature_does_not_allow_are_refused(
    shape: list[int], datatype: str
) -> None:
    """B5 B6 What is well formed may still not suit the model, and never reaches its engine."""
    spec = TensorSpec("x", "FP32", (-1, 4) if shape == [1, 5] else (-1, -1), ("n", "n"))
    signature = Signature(inputs=(spec,), outputs=(), batched=False)
    payload = np.zeros(shape, NUMPY[datatype]).tobytes()
    body, length = binary_body(payload, datatype, shape)
    request = parse(body, length, signature)
    with pytest.raises(InvalidRequest):
        check_inputs(signature, request.tensors)


@pytest.mark.parametrize("datatype", ["FP8", "BF16", "fp32", "FP32 ", "float32", "", "STRING"])
def test_unknown_datatypes_are_refused(datatype: str) -> None:
    """B6 Names are exact."""
    body, length = binary_body(ONE, datatype)
    with pytest.raises(InvalidRequest, match="datatype"):
        parse(body, length)


@pytest.mark.parametrize("octet", [2, 5, 255])
def test_bool_bytes_are_zero_or_one(octet: int) -> None:
    """B8 Any other value would be undefined downstream."""
    body, length = binary_body(bytes([1, octet]), "BOOL", [2])
    with pytest.raises(InvalidRequest, match="neither 0 nor 1"):
        parse(body, length, signature_of(x="BOOL"))


@pytest.mark.parametrize("pad", range(8))
def test_unaligned_tensors_are_copied(pad: int) -> None:
    """B9 Wherever the JSON part ends, engines see aligned memory."""
    payload = np.arange(3, dtype="<f8").tobytes()
    body, length = binary_body(payload, "FP64", [3], pad="x" * pad)
    read = parse(body, length, signature_of(x="FP64")).tensors["x"]
    assert read.flags.aligned
    assert read.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        pytest.param("FP32", np.nan, True, id="B10 NaN"),
        pytest.param("FP64", np.inf, True, id="B10 infinity"),
        pytest.param("FP16", -np.inf, True, id="B10 negative infinity"),
        pytest.param("FP32", 3.4e38, False, id="B10 large"),
    ],
)
def test_binary_numbers_that_are_not_finite_are_reported(
    datatype: str, value: float, expected: bool
) -> None:
    """B10 Whether the model may see them is for its policy to say."""
    payload = np.array([1, value], NUMPY[datatype]).tobytes()
    body, length = binary_body(payload, datatype, [2])
    assert parse(body, length, signature_of(x=datatype)).has_nonfinite is expected


def test_bytes_are_little_endian_whatever_is_claimed() -> None:
    """B11 A hint of another order is ignored as any unknown parameter."""
    head = (
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT32",'
        b'"parameters":{"binary_data_size":4,"byte_order":"big"}}]}'
    )
    request = parse(head + b"\x01\x00\x00\x00", len(head), signature_of(x="INT32"))
    assert request.tensors["x"].tolist() == [1]


@pytest.mark.parametrize(
    ("datatype", "shape", "batched", "body", "expected"),
    [
        pytest.param("FP32", (-1, 2), True, ONE + ONE, [[1.5, 1.5]], id="batched"),
        pytest.param("FP32", (-1,), False, ONE, [1.5], id="not batched"),
        pytest.param("FP32", (-1, -1), True, b"", [[]], id="empty"),
        pytest.param("BYTES", (-1, 1), True, b"\xff\x00", [[b"\xff\x00"]], id="BYTES"),
        pytest.param("BYTES", (1,), False, b"", [b""], id="empty BYTES"),
    ],
)
def test_a_body_without_json_is_the_only_input(
    datatype: str, shape: tuple[int, ...], batched: bool, body: bytes, expected: Any
) -> None:
    """A header length of 0 says so; all outputs are then answered in binary."""
    spec = TensorSpec("x", datatype, shape)
    request = parse(body, 0, Signature((spec,), (), batched))
    assert request.tensors["x"].tolist() == expected
    assert request.binary_default
    assert request.outputs == ()


@pytest.mark.parametrize(
    ("specs", "body"),
    [
        pytest.param((), ONE, id="no input"),
        pytest.param((("a", (-1, 1)), ("b", (-1, 1))), ONE, id="two inputs"),
        pytest.param((("a", (-1,)),), ONE, id="rows only"),
        pytest.param((("a", (-1, 1, 1)),), ONE, id="two dimensions"),
        pytest.param((("a", (-1, 1)),), ONE + b"x", id="B9 odd length"),
    ],
)
def test_a_body_without_json_suits_one_vector_only(specs: Any, body: bytes) -> None:
    """The shape of anything else could not be told."""
    inputs = tuple(TensorSpec(name, "FP32", shape) for name, shape in specs)
    with pytest.raises(InvalidRequest):
        parse(body, 0, Signature(inputs, (), batched=True))


def test_a_body_without_json_has_bounded_elements() -> None:
    """B7 The one BYTES element is bounded as any other."""
    signature = Signature((TensorSpec("x", "BYTES", (-1, 1)),), (), batched=True)
    with pytest.raises(TooLarge):
        parse(b"abc", 0, signature, Limits(element_bytes=2))


def test_json_and_binary_inputs_may_stand_together() -> None:
    """Bytes belong to those inputs only that state a size, in their order."""
    first, length = binary_body(ONE)
    head = first[:length].replace(b'"inputs": [', b'"inputs": [' + _json("a") + b",")
    head = head.replace(b"}]}", b"}," + _json("z") + b"]}")
    request = parse(head + ONE, len(head), signature_of(a="FP32", x="FP32", z="FP32"))
    assert {name: value.tolist() for name, value in request.tensors.items()} == {
        "a": [1.5, 2.5],
        "x": [1.5],
        "z": [1.5, 2.5],
    }


def _json(name: str) -> bytes:
    return str(tensor([1.5, 2.5], shape=[2]) | {"name": name}).replace("'", '"').encode()


@LAW
@given(st.data())
@pytest.mark.parametrize("datatype", DATATYPES)
def test_what_the_reference_client_sends_is_read_back(datatype: str, data: Any) -> None:
    """Any tensors survive the binary form of Triton's own client, at any alignment."""
    sent = {name: data.draw(tensors(datatype)) for name in ("x", "longer")}
    inputs = []
    for name, value in sent.items():
        inputs.append(InferInput(name, list(value.shape), datatype))
        inputs[-1].set_data_from_numpy(value, binary_data=True)
    body, length = InferenceServerClient.generate_request_body(inputs, request_id="id-1")
    request = parse(body, length, signature_of(x=datatype, longer=datatype))
    assert request.id == "id-1"
    assert request.binary_default
    assert all_same(request.tensors, sent)


@LAW
@given(st.data())
@pytest.mark.parametrize("datatype", DATATYPES)
def test_what_the_reference_client_sends_as_json_is_read_back(datatype: str, data: Any) -> None:
    """Any tensor survives the JSON form of Triton's own client."""
    sent = data.draw(tensors(datatype, text_only=True))
    stated = InferInput("x", list(sent.shape), datatype)
    stated.set_data_from_numpy(sent, binary_data=False)
    body, length = InferenceServerClient.generate_request_body([stated])
    assert length is None
    assert same(parse(body, signature=signature_of(x=datatype)).tensors["x"], sent)


def test_bytes_are_written_after_their_lengths() -> None:
    """Text from a model is written as UTF-8."""
    assert write_bytes([b"\xff", "ä", b""]) == b"\x01\0\0\0\xff\x02\0\0\0\xc3\xa4\0\0\0\0"


@pytest.mark.parametrize(
    "element", [1, None, "\ud800", [b"a"]], ids=["number", "nothing", "half a pair", "list"]
)
def test_a_model_that_answers_no_bytes_failed(element: object) -> None:
    """B15 Only bytes and text are BYTES elements."""
    with pytest.raises(EngineFailed):
        bytes_of(element)
