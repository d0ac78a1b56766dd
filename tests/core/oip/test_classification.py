from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.core.oip.classification import top_classes
from gateway.core.oip.messages import InferResponse, RequestedOutput
from gateway.core.oip.render import render_infer
from tests.core.oip.bodies import LAW


@pytest.mark.parametrize(
    ("output", "count", "labels", "expected"),
    [
        pytest.param([[0.1, 0.7, 0.2]], 1, (), [[b"0.7:1"]], id="best"),
        pytest.param(
            [[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]],
            2,
            (),
            [[b"0.7:1", b"0.2:2"], [b"0.5:0", b"0.25:1"]],
            id="rows",
        ),
        pytest.param([[0.5, 1.5]], 2, ("cat", "dog"), [[b"1.5:1:dog", b"0.5:0:cat"]], id="labels"),
        pytest.param(
            [[0.5, 1.5]], 2, ("kätzchen",), [[b"1.5:1", "0.5:0:kätzchen".encode()]], id="few"
        ),
        pytest.param([[1.0, 1.0, 1.0]], 2, (), [[b"1.0:0", b"1.0:1"]], id="ties"),
        pytest.param([[1.5]], 5, (), [[b"1.5:0"]], id="more than there are"),
        pytest.param([1.5, 2.5], 1, (), [b"2.5:1"], id="one row"),
        pytest.param([[[1.5], [2.5]]], 1, (), [[b"2.5:1"]], id="flattened"),
        pytest.param(
            [[np.nan, 1.0, np.inf, -np.inf]],
            4,
            (),
            [[b"inf:2", b"1.0:1", b"-inf:3", b"nan:0"]],
            id="not finite",
        ),
    ],
)
def test_the_largest_values_come_first(output: Any, count: int, labels: Any, expected: Any) -> None:
    """Each row is judged alone; ties go to the lower index and NaN comes last."""
    classes = top_classes("y", np.array(output, "f4"), count, labels)
    assert classes.tolist() == expected
    assert classes.dtype == object


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty_outputs_have_no_classes(shape: tuple[int, ...]) -> None:
    """Nothing is made up."""
    assert top_classes("y", np.zeros(shape, "f4"), 3).shape == (shape[0], min(3, shape[1]))


def test_integers_are_written_as_such() -> None:
    """Beyond what a float could hold."""
    output = np.array([[0, 2**64 - 1]], "u8")
    assert top_classes("y", output, 1).tolist() == [[b"18446744073709551615:1"]]


def test_outputs_without_order_are_refused() -> None:
    """Text has no largest value."""
    with pytest.raises(InvalidRequest):
        top_classes("y", np.array([[b"a"]], object), 1)


@LAW
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_classes_are_the_sorted_values(values: list[float]) -> None:
    """Index and value agree with a plain sort."""
    (texts,) = top_classes("y", np.array([values], "f4"), len(values)).tolist()
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert [int(text.split(b":")[1]) for text in texts] == order
    assert [np.float32(text.split(b":")[0]) for text in texts] == [
        np.float32(values[index]) for index in order
    ]


def test_classes_are_answered_as_bytes() -> None:
    """In either form, with the labels of that output."""
    response = InferResponse("m", "3", {"y": np.array([[0.25, 0.75]], "f4")})
    labels = {"y": ("cat", "dog")}
    asked = (RequestedOutput("y", classification=1),)
    plain = render_infer(response, asked, False, "literal", labels)
    assert b'"datatype":"BYTES","shape":[1,1],"data":["0.75:1:dog"]' in plain.body
    asked = (RequestedOutput("y", binary=True, classification=1),)
    binary = render_infer(response, asked, False, "literal")
    assert binary.body.endswith(b"\x06\0\0\x000.75:1")
