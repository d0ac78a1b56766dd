import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest, TooLarge
from gateway.core.oip.messages import Limits
from tests.core.oip.bodies import (
    DATATYPES,
    LAW,
    NUMPY,
    body_of,
    parse,
    raw_body,
    same,
    signature_of,
    tensor,
    tensors,
)

REFUSED = [
    pytest.param("FP32", "1" * 5000, id="J3 5000-digit integer"),
    pytest.param("FP64", "1" * 5000, id="J3 5000-digit integer in FP64"),
    pytest.param("INT64", "1" * 5000, id="J3 5000-digit integer in INT64"),
    pytest.param("FP32", "1" * 4000, id="J4 4000-digit integer in FP32"),
    pytest.param("FP64", "1" * 4000, id="J4 4000-digit integer in FP64"),
    pytest.param("INT64", "1" + "0" * 40, id="J4 10^40 in INT64"),
    pytest.param("INT64", str(2**63), id="J4 2^63 in INT64"),
    pytest.param("UINT64", str(2**64), id="J4 2^64 in UINT64"),
    pytest.param("UINT8", "300", id="J5 300 in UINT8"),
    pytest.param("UINT8", "-1", id="J5 -1 in UINT8"),
    pytest.param("INT8", "128", id="J5 128 in INT8"),
    pytest.param("UINT16", "65536", id="J5 65536 in UINT16"),
    pytest.param("INT32", "-2147483649", id="J5 below INT32"),
    pytest.param("FP32", "1e300", id="J6 1e300 in FP32"),
    pytest.param("FP32", "1e999", id="J6 1e999 in FP32"),
    pytest.param("FP16", "65520", id="J6 65520 in FP16"),
    pytest.param("FP32", "null", id="J7 null in FP32"),
    pytest.param("INT32", "null", id="J7 null in INT32"),
    pytest.param("BYTES", "null", id="J7 null in BYTES"),
    pytest.param("BOOL", "null", id="J7 null in BOOL"),
    pytest.param("FP32", '"3.5"', id="J8 text in FP32"),
    pytest.param("INT64", '"3"', id="J8 text in INT64"),
    pytest.param("INT64", "1.9", id="J8 1.9 in INT64"),
    pytest.param("INT64", "1.0", id="J8 1.0 in INT64"),
    pytest.param("INT64", "1e2", id="J8 1e2 in INT64"),
    pytest.param("FP32", "true", id="J8 bool in FP32"),
    pytest.param("INT32", "true", id="J8 bool in INT32"),
    pytest.param("BOOL", "2", id="J8 2 in BOOL"),
    pytest.param("BOOL", "-1", id="J8 -1 in BOOL"),
    pytest.param("BOOL", "256", id="J8 256 in BOOL"),
    pytest.param("BOOL", "1.0", id="J8 1.0 in BOOL"),
    pytest.param("BOOL", '"true"', id="J8 text in BOOL"),
    pytest.param("BYTES", "1", id="J8 number in BYTES"),
    pytest.param("FP32", '{"a": 1}', id="J9 object in FP32"),
    pytest.param("BYTES", '{"b64": "YQ=="}', id="J9 object in BYTES"),
    pytest.param("FP32", "[1]", id="J9 deeper than the shape"),
    pytest.param("BYTES", '"\\ud800"', id="J10 lone surrogate"),
    pytest.param("INT64", "NaN", id="J2 NaN in INT64"),
    pytest.param("BYTES", "NaN", id="J2 NaN in BYTES"),
]


@pytest.mark.parametrize(("datatype", "element"), REFUSED)
def test_elements_that_the_datatype_cannot_hold_are_refused(datatype: str, element: str) -> None:
    """A wrong element is the caller's error."""
    with pytest.raises(InvalidRequest):
        parse(raw_body(f"[{element}]", datatype), signature=signature_of(x=datatype))


@pytest.mark.parametrize(
    ("datatype", "element"), [row for row in REFUSED if row.values != ("FP32", "1e999")]
)
def test_wrong_elements_beside_a_literal_are_refused(datatype: str, element: str) -> None:
    """The way through the parser that takes literals is as strict."""
    body = raw_body(f"[{element}, NaN]", datatype, "[2]")
    with pytest.raises(InvalidRequest):
        parse(body, signature=signature_of(x=datatype))


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        pytest.param([[1, 2], [3]], [2, 2], id="J9 ragged"),
        pytest.param([[1, 2], [3, 4, 5]], [2, 2], id="J9 a row too long"),
        pytest.param([[1, 2], 3], [2, 2], id="J9 a number among rows"),
        pytest.param([1, [2, 3]], [2, 2], id="J9 a row among numbers"),
        pytest.param([[1, 2], [3, 4]], [4], id="J9 nested deeper than the shape"),
        pytest.param([[1, 2], [3, 4]], [1, 2, 2], id="J9 nested less than the shape"),
        pytest.param([[1, 2, 3], [4, 5, 6]], [3, 2], id="J9 nested to another shape"),
        pytest.param([1, 2, 3], [2], id="J15 more than the shape"),
        pytest.param([1], [2], id="J15 fewer than the shape"),
        pytest.param([], [1], id="J15 none"),
        pytest.param([1], [0], id="J15 one in an empty tensor"),
        pytest.param([1, 2], [], id="J15 two in a scalar"),
        pytest.param(1, [1], id="J15 bare number in a vector"),
        pytest.param("text", [1], id="J15 text for data"),
        pytest.param({"0": 1}, [1], id="J15 object for data"),
        pytest.param(None, [1], id="J15 null for data"),
        pytest.param([1], [2**4, 2**60 + 2], id="B3 elements overflow"),
        pytest.param([1], [2**2, 2**60 + 2], id="B3 bytes overflow"),
        pytest.param([1], [2**33, 2**33], id="B3 product is 0 modulo 2^64"),
        pytest.param([], [0, 2**62], id="B3 empty with an endless extent"),
        pytest.param([1], [-1], id="B4 negative"),
        pytest.param([1], [-1, -1], id="B4 negative twice"),
        pytest.param([1], [True], id="B4 bool"),
        pytest.param([1], [1.0], id="B4 float"),
        pytest.param([1], ["1"], id="B4 text"),
        pytest.param([1], [None], id="B4 null"),
        pytest.param([1], [[1]], id="B4 list"),
        pytest.param([1], 1, id="B4 no list"),
        pytest.param([1], [1] * 65, id="B4 65 dimensions"),
        pytest.param([1], [1] * 9, id="B4 9 dimensions"),
        pytest.param([1], [2**63], id="B4 2^63"),
        pytest.param([1], [10**400], id="B4 400 digits"),
    ],
)
@pytest.mark.parametrize("literal", [False, True], ids=["typed", "literals"])
def test_shapes_that_do_not_fit_the_data_are_refused(data: Any, shape: Any, literal: bool) -> None:
    """Data must be flat or nested exactly to the shape, which is checked before allocation."""
    more = {"unknown": float("nan")} if literal else {}
    with pytest.raises(InvalidRequest):
        parse(body_of(tensor(data, shape=shape), **more))


@pytest.mark.parametrize(
    ("datatype", "data", "shape", "expected"),
    [
        pytest.param("FP32", "[1, -2.5]", "[2]", [1.0, -2.5], id="floats"),
        pytest.param("FP32", "[ [1, 2] , [3, 4] ]", "[2,2]", [[1, 2], [3, 4]], id="nested"),
        pytest.param("FP32", "[1, 2, 3, 4]", "[2,2]", [[1, 2], [3, 4]], id="flat"),
        pytest.param("FP32", "[]", "[0]", [], id="J15 empty"),
        pytest.param("FP32", "[]", "[0,3]", np.zeros((0, 3)), id="J15 empty rows"),
        pytest.param("FP32", "[[],[]]", "[2,0]", np.zeros((2, 0)), id="J15 rows of nothing"),
        pytest.param("FP32", "[7]", "[]", 7.0, id="J15 scalar in a list"),
        pytest.param("FP32", "7", "[]", 7.0, id="J15 bare scalar"),
        pytest.param("FP16", "[0.1, 65504]", "[2]", [0.1, 65504], id="FP16"),
        pytest.param("FP64", "[1e300]", "[1]", [1e300], id="FP64"),
        pytest.param("BOOL", "[true, false, 0, 1]", "[4]", [1, 0, 0, 1], id="BOOL"),
        pytest.param(
            "INT64", f"[{-(2**63)}, {2**53 + 1}]", "[2]", [-(2**63), 2**53 + 1], id="INT64"
        ),
        pytest.param(
            "UINT64", f"[{2**63 + 1}, {2**64 - 1}]", "[2]", [2**63 + 1, 2**64 - 1], id="UINT64"
        ),
    ],
)
def test_elements_are_read_exactly(datatype: str, data: str, shape: str, expected: Any) -> None:
    """What the datatype can hold is read without a detour through another one."""
    request = parse(raw_body(data, datatype, shape), signature=signature_of(x=datatype))
    assert same(request.tensors["x"], np.array(expected, dtype=NUMPY[datatype]))
    assert not request.has_nonfinite


@pytest.mark.parametrize(
    ("datatype", "data", "shape", "expected"),
    [
        pytest.param("FP32", "[NaN, 1]", "[2]", [np.nan, 1], id="J2 NaN"),
        pytest.param("FP16", "[-Infinity, 1]", "[2]", [-np.inf, 1], id="J2 -Infinity"),
        pytest.param("FP64", "[Infinity, 1]", "[2]", [np.inf, 1], id="J2 Infinity"),
        pytest.param("FP32", "[[NaN], [1]]", "[2,1]", [[np.nan], [1]], id="J2 nested"),
        pytest.param("FP32", "NaN", "[]", np.nan, id="J2 bare"),
        pytest.param("FP64", "[1e999, -1e999]", "[2]", [np.inf, -np.inf], id="J2 1e999"),
        pytest.param("FP64", "[[1e999], [1]]", "[2,1]", [[np.inf], [1]], id="J2 1e999 nested"),
    ],
)
def test_numbers_that_are_not_finite_are_read_and_reported(
    datatype: str, data: str, shape: str, expected: Any
) -> None:
    """Whether the model may see them is for its policy to say, later."""
    request = parse(raw_body(data, datatype, shape), signature=signature_of(x=datatype))
    assert same(request.tensors["x"], np.array(expected, dtype=NUMPY[datatype]))
    assert request.has_nonfinite


def test_a_literal_elsewhere_does_not_mark_finite_data() -> None:
    """Only inputs count: a literal under an unknown key is ignored with it."""
    request = parse(body_of(tensor(), unknown=float("nan")))
    assert not request.has_nonfinite
    assert request.tensors["x"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("literal", [False, True], ids=["typed", "literals"])
def test_long_text_costs_its_own_length_only(literal: bool) -> None:
    """J13 BYTES never become an array as wide as its longest element (B15: nor of any object)."""
    data = ["x"] * 2000 + ["y" * 20_000]
    more = {"unknown": float("nan")} if literal else {}
    body = body_of(tensor(data, "BYTES", [2001]), **more)
    tracemalloc.start()
    read = parse(body, signature=signature_of(x="BYTES")).tensors["x"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    assert read.dtype == object
    assert {type(element) for element in read.tolist()} == {bytes}


@pytest.mark.parametrize(
    ("limits", "data", "datatype"),
    [
        pytest.param(Limits(elements=2), [1, 2, 3], "INT32", id="B16 elements"),
        pytest.param(Limits(elements=2), ["a", "b", "c"], "BYTES", id="B16 BYTES elements"),
        pytest.param(Limits(element_bytes=5), ["a", "b", "äöü"], "BYTES", id="J13 element bytes"),
        pytest.param(Limits(json_bytes=10), [1, 2, 3], "INT32", id="J16 JSON bytes"),
        pytest.param(Limits(body_bytes=10), [1, 2, 3], "INT32", id="B16 body bytes"),
    ],
)
def test_more_than_the_limits_is_too_large(limits: Limits, data: Any, datatype: str) -> None:
    """Each bound holds, on the bytes and not on the characters."""
    body = body_of(tensor(data, datatype, [3]))
    with pytest.raises(TooLarge):
        parse(body, signature=signature_of(x=datatype), limits=limits)


@LAW
@given(st.data())
@pytest.mark.parametrize("is_nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_json_data_read_back_the_same(datatype: str, is_nested: bool, data: Any) -> None:
    """Any tensor survives JSON, flat or nested, with its literals."""
    sent = data.draw(tensors(datatype, text_only=True))
    shaped = sent if is_nested else sent.ravel()
    values = json.loads(json.dumps(shaped.tolist(), default=bytes.decode))
    request = parse(
        body_of(tensor(values, datatype, sent.shape)), signature=signature_of(x=datatype)
    )
    assert same(request.tensors["x"], sent)
    assert request.has_nonfinite == (sent.dtype.kind == "f" and not np.isfinite(sent).all())
