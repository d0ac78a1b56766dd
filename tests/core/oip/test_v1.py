import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import EngineFailed, InvalidRequest, TooLarge
from gateway.core.oip.messages import InferRequest, InferResponse, Limits
from gateway.core.oip.v1 import parse_predict, render_predict
from gateway.core.tensors import Signature, TensorSpec
from tests.core.oip.bodies import DATATYPES, LAW, NUMPY, same, tensors

X = TensorSpec("x", "FP32", (-1, 2))
K = TensorSpec("k", "INT64", (-1,))
T = TensorSpec("t", "BYTES", (-1,))
SCALAR = TensorSpec("s", "FP32", ())


def predict(body: Any, *specs: TensorSpec, limits: Limits | None = None) -> InferRequest:
    """Parse a predict request for a model with these inputs."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_predict(text, Signature(specs, (), batched=True), limits or Limits())[0]


@pytest.mark.parametrize(
    ("body", "specs", "expected"),
    [
        pytest.param({"instances": [[1, 2], [3, 4]]}, [X], {"x": [[1, 2], [3, 4]]}, id="rows"),
        pytest.param({"instances": [{"x": [1, 2]}]}, [X], {"x": [[1, 2]]}, id="a named row"),
        pytest.param({"instances": [1, 2]}, [K], {"k": [1, 2]}, id="rows of one number"),
        pytest.param({"instances": []}, [X], {"x": np.zeros((0, 2)).tolist()}, id="no rows"),
        pytest.param(
            {"instances": [{"x": [1, 2], "k": 3}, {"k": 6, "x": [4, 5]}]},
            [X, K],
            {"x": [[1, 2], [4, 5]], "k": [3, 6]},
            id="rows of several inputs",
        ),
        pytest.param({"inputs": [[1, 2]]}, [X], {"x": [[1, 2]]}, id="a column"),
        pytest.param({"inputs": {"x": [[1, 2]]}}, [X], {"x": [[1, 2]]}, id="a named column"),
        pytest.param(
            {"inputs": {"k": [3], "x": [[1, 2]]}}, [X, K], {"x": [[1, 2]], "k": [3]}, id="columns"
        ),
        pytest.param({"inputs": 7}, [SCALAR], {"s": 7}, id="a scalar"),
        pytest.param(
            {"instances": ["a", {"b64": "/w=="}]}, [T], {"t": [b"a", b"\xff"]}, id="bytes"
        ),
        pytest.param({"instances": [{"b64": "YQ=="}]}, [T], {"t": [b"a"]}, id="bytes first"),
        pytest.param({"instances": [{"t": {"b64": "YQ=="}}]}, [T], {"t": [b"a"]}, id="named bytes"),
        pytest.param({"inputs": {"t": ["{"]}}, [T], {"t": [b"{"]}, id="a brace in text"),
        pytest.param(
            {"instances": [[1, 2]], "signature_name": "serving_default", "unknown": 1},
            [X],
            {"x": [[1, 2]]},
            id="signature name",
        ),
    ],
)
@pytest.mark.parametrize("literal", [False, True], ids=["typed", "literals"])
def test_predict_requests_are_read(body: Any, specs: Any, expected: Any, literal: bool) -> None:
    """By the model's own signature, whichever way the parser takes."""
    request = predict(body | ({"other": float("nan")} if literal else {}), *specs)
    assert {name: value.tolist() for name, value in request.tensors.items()} == expected
    for spec in specs:
        assert request.tensors[spec.name].dtype == np.dtype(NUMPY[spec.datatype])
        assert request.tensors[spec.name].ndim == len(spec.shape)
    assert not request.has_nonfinite


@pytest.mark.parametrize(
    ("body", "specs"),
    [
        pytest.param({}, [X], id="neither form"),
        pytest.param({"instances": [[1, 2]], "inputs": [[1, 2]]}, [X], id="both forms"),
        pytest.param({"instances": [[1, 2]], "signature_name": "other"}, [X], id="signature name"),
        pytest.param({"instances": [[1, 2]], "signature_name": 1}, [X], id="number for a name"),
        pytest.param({"instances": {"x": [[1, 2]]}}, [X], id="object for rows"),
        pytest.param({"instances": 1}, [X], id="number for rows"),
        pytest.param({"instances": [1]}, [SCALAR], id="rows for a scalar"),
        pytest.param({"instances": [[1, 2], [3]]}, [X], id="J9 ragged"),
        pytest.param({"instances": [1, 2]}, [X], id="J9 nested too little"),
        pytest.param({"instances": [[[1, 2]]]}, [X], id="J9 nested too deep"),
        pytest.param({"instances": [["1", 2]]}, [X], id="J8 text"),
        pytest.param({"instances": [[True, 2]]}, [X], id="J8 bool"),
        pytest.param({"instances": [[None, 2]]}, [X], id="J7 null"),
        pytest.param({"instances": [[1e300, 2]]}, [X], id="J6 1e300"),
        pytest.param({"instances": [1.5]}, [K], id="J8 fraction"),
        pytest.param({"instances": [2**63]}, [K], id="J4 2^63"),
        pytest.param({"instances": [1]}, [T], id="number for bytes"),
        pytest.param({"instances": [{"b64": "?"}]}, [T], id="no base64"),
        pytest.param({"instances": [{"b64": "YQ"}]}, [T], id="base64 cut"),
        pytest.param({"instances": [{"b64": 1}]}, [T], id="number for base64"),
        pytest.param({"instances": [{"b64": "YQ==", "x": 1}]}, [T], id="base64 and more"),
        pytest.param({"instances": [{"b64": "YQ=="}]}, [K], id="base64 for numbers"),
        pytest.param({"instances": [{"x": [1, 2]}]}, [X, K], id="input missing"),
        pytest.param({"instances": [{"x": [1, 2], "k": 1, "z": 1}]}, [X, K], id="input surplus"),
        pytest.param({"instances": [{"x": [1, 2], "k": 1}, [1]]}, [X, K], id="a row of values"),
        pytest.param({"instances": [[1, 2]]}, [X, K], id="values for several inputs"),
        pytest.param({"instances": [[1, 2], {"x": [1, 2]}]}, [X], id="mixed rows"),
        pytest.param({"inputs": [[1, 2]]}, [X, K], id="bare column of several"),
        pytest.param({"inputs": {"z": [[1, 2]]}}, [X], id="unknown column"),
    ],
)
@pytest.mark.parametrize("literal", [False, True], ids=["typed", "literals"])
def test_predict_requests_that_do_not_suit_are_refused(
    body: Any, specs: Any, literal: bool
) -> None:
    """The checks are as strict as for the other protocol."""
    with pytest.raises(InvalidRequest):
        predict(body | ({"other": float("nan")} if literal else {}), *specs)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"instances":[{"\xff":1}]}', id="J12 no UTF-8"),
        pytest.param(b'{"instances":[{"\\ud800":1}]}', id="J10 half a pair"),
        pytest.param(b'{"instances":' + b"[" * 100_000, id="J1 deep"),
        pytest.param(b'{"instances":[[1' + b"0" * 5000 + b",1]]}", id="J3 5000 digits"),
    ],
)
def test_text_that_cannot_be_read_is_refused(body: bytes) -> None:
    """J1 J10 J12 The reader is the same."""
    with pytest.raises(InvalidRequest):
        predict(body, X)


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        pytest.param(Limits(elements=3), {"instances": [[1, 2], [3, 4]]}, id="elements"),
        pytest.param(Limits(body_bytes=9), {"instances": [[1, 2]]}, id="body bytes"),
        pytest.param(Limits(json_bytes=9), {"instances": [[1, 2]]}, id="JSON bytes"),
    ],
)
def test_more_than_the_limits_is_too_large(limits: Limits, body: Any) -> None:
    """The bounds are the same."""
    with pytest.raises(TooLarge):
        predict(body, X, limits=limits)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_reported(number: str) -> None:
    """J2 As for the other protocol."""
    body = f'{{"instances":[[1.0,{number}]]}}'.encode()
    request = predict(body, TensorSpec("x", "FP64", (-1, 2)))
    assert request.has_nonfinite
    assert request.tensors["x"].tolist()[0][0] == 1.0


def rendered(form: bool, nonfinite: Any = "literal", **outputs: Any) -> bytes:
    """An answer in the columnar form or not."""
    return render_predict(InferResponse("m", "3", outputs), form, nonfinite)


Y = np.array([[0.1, 0.2], [0.3, 0.4]], "f4")
N = np.array([7, 8], "i8")
TEXT = np.array(["a", b"\xff"], object)


@pytest.mark.parametrize(
    ("columnar", "outputs", "expected"),
    [
        pytest.param(False, {"y": Y}, b'{"predictions":[[0.1,0.2],[0.3,0.4]]}', id="rows"),
        pytest.param(
            False,
            {"y": Y, "n": N},
            b'{"predictions":[{"y":[0.1,0.2],"n":7},{"y":[0.3,0.4],"n":8}]}',
            id="named rows",
        ),
        pytest.param(True, {"n": N}, b'{"outputs":[7,8]}', id="column"),
        pytest.param(
            True, {"n": N, "y": Y[:1]}, b'{"outputs":{"n":[7,8],"y":[[0.1,0.2]]}}', id="columns"
        ),
        pytest.param(True, {"n": np.array(7)}, b'{"outputs":7}', id="scalar"),
        pytest.param(False, {"t": TEXT}, b'{"predictions":["a",{"b64":"/w=="}]}', id="bytes"),
        pytest.param(
            False,
            {"t": TEXT, "n": N},
            b'{"predictions":[{"t":"a","n":7},{"t":{"b64":"/w=="},"n":8}]}',
            id="named bytes",
        ),
        pytest.param(False, {"y": Y.T}, b'{"predictions":[[0.1,0.3],[0.2,0.4]]}', id="transposed"),
        pytest.param(False, {"n": N.astype(">i8")}, b'{"predictions":[7,8]}', id="big-endian"),
        pytest.param(False, {"n": N[:0]}, b'{"predictions":[]}', id="no rows"),
        pytest.param(False, {"b": np.array([True])}, b'{"predictions":[true]}', id="bools"),
    ],
)
def test_predictions_are_written(columnar: bool, outputs: Any, expected: bytes) -> None:
    """In the form of the request, nested, by name where there are several."""
    assert rendered(columnar, **outputs) == expected


@pytest.mark.parametrize(
    ("nonfinite", "expected"),
    [
        pytest.param("literal", b'[{"y":[1.0,NaN],"s":-Infinity}]', id="literal"),
        pytest.param("null", b'[{"y":[1.0,null],"s":null}]', id="null"),
    ],
)
def test_numbers_that_are_not_finite_are_written_by_the_policy(
    nonfinite: str, expected: bytes
) -> None:
    """B14 In nested data and in bare numbers."""
    body = rendered(False, nonfinite, y=np.array([[1, np.nan]], "f4"), s=np.array([-np.inf]))
    assert body == b'{"predictions":' + expected + b"}"


def test_numbers_that_are_not_finite_may_be_an_error() -> None:
    """B14 Where the policy says so."""
    with pytest.raises(EngineFailed):
        rendered(True, "error", y=np.array([[1, np.nan]], "f4"))


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param({"s": np.array(1.5)}, id="scalar"),
        pytest.param({"n": N, "y": Y[:1]}, id="unlike rows"),
        pytest.param({}, id="nothing"),
    ],
)
def test_outputs_without_common_rows_need_the_columnar_form(outputs: Any) -> None:
    """Row 3 of one output beside row 3 of another means nothing here."""
    with pytest.raises(InvalidRequest, match="'inputs'"):
        rendered(False, **outputs)


@LAW
@given(st.data())
@pytest.mark.parametrize("datatype", DATATYPES)
def test_tensors_survive_the_way_there_and_back(datatype: str, data: Any) -> None:
    """What is answered in columns and sent again as a column is the same tensor."""
    sent = data.draw(tensors(datatype).filter(lambda value: 0 not in value.shape))
    answer = json.loads(rendered(True, y=sent))
    spec = TensorSpec("y", datatype, (-1,) * sent.ndim)
    assert same(predict({"inputs": answer["outputs"]}, spec).tensors["y"], sent)


@pytest.mark.parametrize("code", "?bBhHiIlLqQefd")
def test_every_numeric_kind_that_numpy_knows_is_said_row_by_row(code: str) -> None:
    """Engines return types that differ in name only; rows of each of them are plain numbers."""
    label = np.array([1, 0], code)
    response = InferResponse("m", "1", {"label": label, "score": np.array([0.5, 1.5], "f")})

    text = render_predict(response, columnar=False, nonfinite="error")

    rows = json.loads(text)["predictions"]
    assert rows == [{"label": 1, "score": 0.5}, {"label": 0, "score": 1.5}]
