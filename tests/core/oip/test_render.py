import json
from typing import Any

import numpy as np
import pytest
import rapidjson
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferResult

from gateway.core.errors import EngineFailed, InvalidRequest
from gateway.core.oip.answers import Nonfinite
from gateway.core.oip.messages import InferResponse, RequestedOutput
from gateway.core.oip.render import check_outputs, render_infer
from gateway.core.tensors import Signature, TensorSpec
from tests.core.oip.bodies import DATATYPES, LAW, NUMPY, same, tensors

Y = np.array([[0.1, 0.7, 0.2]], "f4")
N = np.array([3], "i8")


def answer(**outputs: Any) -> InferResponse:
    """An answer with these outputs."""
    return InferResponse("m", "3", outputs)


def read(
    response: InferResponse, *requested: RequestedOutput, nonfinite: Nonfinite = "literal"
) -> Any:
    """Render in JSON and read with a reader that takes literals."""
    rendered = render_infer(response, requested, binary_default=False, nonfinite=nonfinite)
    return json.loads(rendered.body)


def test_a_small_answer_is_written_as_peers_write_it() -> None:
    """Keys stand in the order of the reference server, data flat, floats in their shortest text."""
    response = InferResponse("m", "3", {"n": N, "y": Y}, "7", {"prediction_id": "t"})
    rendered = render_infer(response, (), binary_default=False, nonfinite="literal")
    assert rendered.json_bytes is None
    assert rendered.body == (
        b'{"id":"7","model_name":"m","model_version":"3","parameters":{"prediction_id":"t"},'
        b'"outputs":[{"name":"n","datatype":"INT64","shape":[1],"data":[3]},'
        b'{"name":"y","datatype":"FP32","shape":[1,3],"data":[0.1,0.7,0.2]}]}'
    )


def test_a_binary_answer_is_json_and_then_the_tensors() -> None:
    """The length of the JSON part is told; an output's only parameter is its size."""
    rendered = render_infer(answer(n=N, y=Y), (), binary_default=True, nonfinite="literal")
    assert rendered.json_bytes is not None
    assert json.loads(rendered.body[: rendered.json_bytes])["outputs"] == [
        {"name": "n", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
        {"name": "y", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
    ]
    assert rendered.body[rendered.json_bytes :] == N.tobytes() + Y.tobytes()


def test_outputs_come_in_the_order_and_form_asked_for() -> None:
    """Each output has its own form, whatever the default."""
    requested = (RequestedOutput("y", binary=True), RequestedOutput("n"))
    rendered = render_infer(answer(n=N, y=Y), requested, binary_default=True, nonfinite="null")
    stated = json.loads(rendered.body[: rendered.json_bytes])["outputs"]
    assert [output["name"] for output in stated] == ["y", "n"]
    assert stated[1]["data"] == [3]
    assert rendered.body[rendered.json_bytes :] == Y.tobytes()


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param({"y": np.zeros((0, 3), "f4")}, id="numbers"),
        pytest.param({"y": np.zeros((0,), object)}, id="BYTES"),
    ],
)
def test_binary_outputs_without_a_byte_are_plain_json(outputs: Any) -> None:
    """A size of 0 is stated, and no header follows from it."""
    rendered = render_infer(answer(**outputs), (), binary_default=True, nonfinite="null")
    assert rendered.json_bytes is None
    (stated,) = json.loads(rendered.body)["outputs"]
    assert stated["parameters"] == {"binary_data_size": 0}
    assert "data" not in stated


def test_no_json_output_has_parameters() -> None:
    """A parameters object without a size is a parse error in the C++ client."""
    assert all("parameters" not in output for output in read(answer(n=N, y=Y))["outputs"])


ODD = np.array([[1.5, np.nan], [np.inf, -np.inf]], "f4")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_literals_are_written_in_their_places(dtype: str) -> None:
    """B14 NaN and infinities keep their value and their order."""
    outputs = answer(text=np.array([b"null", b"NaN"], object), y=ODD.astype(dtype), n=N)
    body = render_infer(outputs, (), binary_default=False, nonfinite="literal").body
    assert b'"data":[1.5,NaN,Infinity,-Infinity]' in body
    text, odd, number = rapidjson.loads(body, number_mode=rapidjson.NM_NAN)["outputs"]
    assert text["data"] == ["null", "NaN"]
    assert np.array_equal(odd["data"], ODD.ravel(), equal_nan=True)
    assert number["data"] == [3]


def test_null_is_written_where_the_policy_says_so() -> None:
    """B14 Strict readers get null."""
    assert read(answer(y=ODD), nonfinite="null")["outputs"][0]["data"] == [1.5, None, None, None]


def test_values_that_json_lacks_are_an_error_where_the_policy_says_so() -> None:
    """B14 The message names the way out, and binary output is that way."""
    with pytest.raises(EngineFailed, match="ask for binary"):
        read(answer(y=ODD), nonfinite="error")
    rendered = render_infer(answer(y=ODD), (), binary_default=True, nonfinite="error")
    assert rendered.body.endswith(ODD.tobytes())
    assert read(answer(y=np.array(["null"], object)), nonfinite="error")


def test_a_missing_id_and_empty_parameters_are_left_out() -> None:
    """Only what there is to say is said."""
    assert list(read(answer(n=N))) == ["model_name", "model_version", "outputs"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(np.array([2**64 - 1, 2**63], "u8"), b"[18446744073709551615,", id="UINT64"),
        pytest.param(np.array([-(2**63)], "i8"), b"[-9223372036854775808]", id="INT64"),
        pytest.param(np.array([True, False]), b"[true,false]", id="BOOL"),
        pytest.param(np.array([0.1], "f8"), b"[0.1]", id="FP64"),
        pytest.param(np.array(7, "i4"), b'"shape":[],"data":[7]', id="scalar"),
        pytest.param(np.array(["ä", b"b"], object), '["ä","b"]'.encode(), id="BYTES"),
        pytest.param(np.array([[1, 2], [3, 4]], "i4").T, b"[1,3,2,4]", id="B11 transposed"),
        pytest.param(np.arange(6, dtype="i4")[::2], b"[0,2,4]", id="B11 strided"),
        pytest.param(np.array([1, 2], ">i4"), b'"INT32","shape":[2],"data":[1,2]', id="B11 big"),
    ],
)
def test_elements_are_written_exactly(value: Any, text: bytes) -> None:
    """Row-major, without a detour through another datatype."""
    body = render_infer(answer(y=value), (), binary_default=False, nonfinite="literal").body
    assert text in body


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(np.array([[1, 2], [3, 4]], "<i4").T, id="transposed"),
        pytest.param(np.array([[1, 3], [2, 4]], ">i4"), id="big-endian"),
        pytest.param(np.array([[1, 0, 3], [2, 0, 4]], "<i4")[:, ::2], id="strided"),
    ],
)
def test_binary_outputs_are_little_endian_and_packed(value: Any) -> None:
    """B11 However the model's memory lies."""
    rendered = render_infer(answer(y=value), (), binary_default=True, nonfinite="literal")
    expected = np.array([1, 3, 2, 4], "<i4").tobytes()
    assert rendered.body[rendered.json_bytes :] == expected


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(np.array([b"\xff"], object), id="not UTF-8"),
        pytest.param(np.array(["\ud800"], object), id="half a pair"),
        pytest.param(np.array([1], object), id="B15 an object"),
        pytest.param(np.array([1j]), id="complex"),
        pytest.param(np.array(["a"]), id="fixed-width text"),
    ],
)
def test_what_json_cannot_say_is_the_models_failure(value: Any) -> None:
    """B15 And never an answer that no reader takes."""
    with pytest.raises(EngineFailed):
        read(answer(y=value))


def test_bytes_that_are_no_text_point_to_binary() -> None:
    """The message names the way out."""
    with pytest.raises(EngineFailed, match="ask for binary"):
        read(answer(y=np.array([b"\xff"], object)))


def test_parameters_that_json_cannot_say_are_a_failure() -> None:
    """An integer of more than 64 bits, for one."""
    response = InferResponse("m", "3", {"n": N}, parameters={"a": 2**70})
    with pytest.raises(EngineFailed):
        read(response)


def test_an_output_that_is_not_there_is_refused() -> None:
    """Should the model not have been asked before."""
    with pytest.raises(InvalidRequest, match="'z' is not an output"):
        read(answer(n=N), RequestedOutput("z"))


SIGNATURE = Signature(
    inputs=(),
    outputs=(
        TensorSpec("n", "INT64", (-1,)),
        TensorSpec("y", "FP32", (-1, 3)),
        TensorSpec("t", "BYTES", (-1, 1)),
        TensorSpec("b", "BOOL", (-1, 1)),
    ),
    batched=True,
)


@pytest.mark.parametrize(
    "requested",
    [
        pytest.param((), id="all"),
        pytest.param((RequestedOutput("y"), RequestedOutput("n")), id="some"),
        pytest.param((RequestedOutput("y", classification=2),), id="classes"),
    ],
)
def test_outputs_that_can_be_given_are_let_through(requested: Any) -> None:
    """All of them, some in any order, and classes of what has an order."""
    check_outputs(requested, SIGNATURE)


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(RequestedOutput("z"), id="unknown"),
        pytest.param(RequestedOutput("t", classification=1), id="classes of text"),
        pytest.param(RequestedOutput("b", classification=1), id="classes of bools"),
        pytest.param(RequestedOutput("n", classification=1), id="classes across rows"),
    ],
)
def test_outputs_that_cannot_be_given_are_refused_before_the_run(output: Any) -> None:
    """J14 So that no model runs for nothing."""
    with pytest.raises(InvalidRequest):
        check_outputs((output,), SIGNATURE)


@LAW
@given(st.data())
@pytest.mark.parametrize("is_binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_reference_client_reads_the_same_tensors(
    datatype: str, is_binary: bool, data: Any
) -> None:
    """Any outputs survive the way to Triton's own client, bit for bit."""
    kind = tensors(datatype, text_only=not is_binary)
    sent = {name: data.draw(kind) for name in ("y", "longer")}
    rendered = render_infer(answer(**sent), (), binary_default=is_binary, nonfinite="literal")
    result = InferResult.from_response_body(rendered.body, header_length=rendered.json_bytes)
    for name, value in sent.items():
        got = result.as_numpy(name)
        if datatype == "BYTES" and not is_binary:
            got = np.array([text.encode() for text in got.ravel()], object).reshape(got.shape)
        assert same(got.astype(NUMPY[datatype], copy=False), value)
