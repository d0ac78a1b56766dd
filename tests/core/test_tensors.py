from typing import Any

import numpy as np
import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.tensors import (
    DTYPES,
    NAMES,
    Signature,
    TensorSpec,
    check_inputs,
    has_nonfinite,
    rows_of,
)

X = TensorSpec("x", "FP32", (-1, 4), ("batch", None))
TEXT = TensorSpec("text", "BYTES", (-1,), ("batch",))
PAIRED = Signature(inputs=(X, TEXT), outputs=(), batched=True)
SQUARE = Signature(
    inputs=(
        TensorSpec("left", "INT64", (-1, -1), ("n", "m")),
        TensorSpec("right", "INT64", (-1, -1), ("m", "n")),
    ),
    outputs=(),
    batched=False,
)


def zeros(*shape: int, dtype: str = "<f4") -> np.ndarray[Any, Any]:
    """A tensor of zeros."""
    return np.zeros(shape, dtype=dtype)


def texts(*values: bytes) -> np.ndarray[Any, Any]:
    """A BYTES tensor."""
    return np.array(values, dtype=object)


@pytest.mark.parametrize(
    ("signature", "tensors"),
    [
        pytest.param(PAIRED, {"x": zeros(2, 4), "text": texts(b"a", b"b")}, id="two-rows"),
        pytest.param(PAIRED, {"text": texts(b"a"), "x": zeros(1, 4)}, id="any-order"),
        pytest.param(PAIRED, {"x": zeros(0, 4), "text": texts()}, id="no-rows"),
        pytest.param(
            SQUARE,
            {"left": zeros(2, 3, dtype="<i8"), "right": zeros(3, 2, dtype="<i8")},
            id="symbols-agree",
        ),
        pytest.param(Signature(inputs=(), outputs=(), batched=False), {}, id="no-inputs"),
        pytest.param(
            Signature(inputs=(TensorSpec("s", "BOOL", ()),), outputs=(), batched=False),
            {"s": np.array(True)},
            id="scalar",
        ),
        pytest.param(
            Signature(inputs=(TensorSpec("x", "FP32", (-1, 2)),), outputs=(), batched=True),
            {"x": zeros(5, 2)},
            id="no-symbols",
        ),
    ],
)
def test_inputs_that_fit_are_let_through(signature: Signature, tensors: dict[str, Any]) -> None:
    """Every input of the right name, datatype, rank and extents is accepted."""
    check_inputs(signature, tensors)


@pytest.mark.parametrize(
    ("signature", "tensors", "sentence"),
    [
        pytest.param(PAIRED, {}, "Input 'x' is missing", id="nothing"),
        pytest.param(PAIRED, {"x": zeros(1, 4)}, "Input 'text' is missing", id="missing"),
        pytest.param(
            PAIRED,
            {"x": zeros(1, 4), "text": texts(b""), "more": zeros(1)},
            "Input 'more' is not an input of this model",
            id="surplus",
        ),
        pytest.param(
            PAIRED, {"x": zeros(1, 4), "Text": texts(b"")}, "Input 'text' is missing", id="renamed"
        ),
        pytest.param(
            PAIRED,
            {"x": zeros(1, 4, dtype="<f8"), "text": texts(b"")},
            "Input 'x' must be FP32; the request holds FP64",
            id="datatype",
        ),
        pytest.param(
            PAIRED,
            {"x": zeros(1, 4, dtype=">f4"), "text": texts(b"")},
            "the request holds another datatype",
            id="byte-order",
        ),
        pytest.param(
            PAIRED,
            {"x": zeros(1, 4), "text": np.array([b"a"])},
            "Input 'text' must be BYTES",
            id="fixed-width-text",
        ),
        pytest.param(
            PAIRED,
            {"x": zeros(4), "text": texts(b"")},
            "Input 'x' must have 2 dimensions; the request holds 1",
            id="rank-too-low",
        ),
        pytest.param(
            PAIRED, {"x": zeros(1, 4, 1), "text": texts(b"")}, "must have 2 dim", id="rank-too-high"
        ),
        pytest.param(
            PAIRED,
            {"x": zeros(1, 5), "text": texts(b"")},
            "Input 'x' must have extent 4 in dimension 1; the request holds 5",
            id="extent",
        ),
        pytest.param(
            PAIRED,
            {"x": zeros(2, 4), "text": texts(b"", b"", b"")},
            "Dimension 'batch' has extent 2 in one input and 3 in 'text'",
            id="symbol-across-inputs",
        ),
        pytest.param(
            SQUARE,
            {"left": zeros(2, 3, dtype="<i8"), "right": zeros(3, 3, dtype="<i8")},
            "Dimension 'n' has extent 2 in one input and 3 in 'right'",
            id="symbol-on-another-axis",
        ),
        pytest.param(
            Signature(
                inputs=(TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))),
                outputs=(),
                batched=True,
            ),
            {"a": zeros(2), "b": zeros(3)},
            "Input 'b' holds 3 rows; 'a' holds 2",
            id="unequal-rows",
        ),
        pytest.param(
            Signature(
                inputs=(TensorSpec("a", "FP32", (-1, -1), ("n", "n")),), outputs=(), batched=False
            ),
            {"a": zeros(2, 3)},
            "Dimension 'n' has extent 2 in one input and 3 in 'a'",
            id="symbol-twice-in-one-input",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    signature: Signature, tensors: dict[str, Any], sentence: str
) -> None:
    """A missing, surplus or misshapen input is named together with what was wanted."""
    with pytest.raises(InvalidRequest) as refusal:
        check_inputs(signature, tensors)
    assert sentence in str(refusal.value)


def test_a_surplus_name_is_quoted_short_and_printable() -> None:
    """A refused name of any length and content fills at most 64 characters of the error."""
    tensors = {"x": zeros(1, 4), "text": texts(b""), "\n" * 10_000: zeros(1)}
    with pytest.raises(InvalidRequest) as refusal:
        check_inputs(PAIRED, tensors)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 120


def test_rows_are_the_shared_first_dimension() -> None:
    """A batched request holds as many rows as its tensors; any other request is one row."""
    assert rows_of(PAIRED, {"x": zeros(7, 4), "text": texts(*[b""] * 7)}) == 7
    square = {"left": zeros(2, 3, dtype="<i8"), "right": zeros(3, 2, dtype="<i8")}
    assert rows_of(SQUARE, square) == 1


def test_datatypes_and_dtypes_name_each_other() -> None:
    """Thirteen datatypes are spoken, little-endian, and each dtype leads back to its name."""
    assert {name: (dtype.kind, dtype.itemsize) for name, dtype in DTYPES.items()} == {
        "BOOL": ("b", 1),
        "UINT8": ("u", 1),
        "UINT16": ("u", 2),
        "UINT32": ("u", 4),
        "UINT64": ("u", 8),
        "INT8": ("i", 1),
        "INT16": ("i", 2),
        "INT32": ("i", 4),
        "INT64": ("i", 8),
        "FP16": ("f", 2),
        "FP32": ("f", 4),
        "FP64": ("f", 8),
        "BYTES": ("O", 8),
    }
    assert all(NAMES[dtype] == name for name, dtype in DTYPES.items())


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", "<f8"])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 10_000])
def test_one_value_that_is_not_finite_is_found(dtype: str, size: int) -> None:
    """Wherever it stands among however many others."""
    tensor = np.full(size, -np.finfo(dtype).max, dtype)
    assert not has_nonfinite(tensor)
    for place in {0, size // 2, size - 1} if size else ():
        for value in (np.nan, np.inf, -np.inf):
            odd = tensor.copy()
            odd[place] = value
            assert has_nonfinite(odd)
            assert has_nonfinite(odd[::-1])


def test_what_is_no_float_is_finite() -> None:
    """Texts and integers know no infinity."""
    assert not has_nonfinite(texts(b"NaN"))
    assert not has_nonfinite(np.zeros(3, np.int64))
