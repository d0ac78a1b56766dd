from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.core.oip import writing
from gateway.core.oip.answers import Nonfinite
from gateway.core.oip.messages import InferRequest, InferResponse, RequestedOutput
from gateway.core.oip.render import render_infer
from gateway.core.oip.writing import Writer
from gateway.core.tensors import Array
from tests.core.oip.bodies import DATATYPES, LAW, outcome, signature_of, tensors

POLICIES: tuple[Nonfinite, ...] = ("literal", "null", "error")
LABELS = {"a": ("no", "yes"), "b": ("red",)}


def assert_same(
    outputs: dict[str, Array], asked: InferRequest, writer: Writer, nonfinite: Nonfinite
) -> None:
    """Both ways write the same bytes, or refuse in the same words."""
    response = InferResponse("m", "3", outputs, asked.id)
    by_hand = partial(
        render_infer, response, asked.outputs, asked.binary_default, nonfinite, LABELS
    )
    wanted, got = outcome(by_hand), outcome(partial(writer.write, outputs, asked))
    assert type(wanted) is type(got)
    assert wanted == got or str(wanted) == str(got)


def asked_of(draw: Any, names: list[str]) -> InferRequest:
    """Some wish."""
    wanted = st.builds(
        RequestedOutput,
        st.sampled_from(names),
        st.booleans(),
        st.sampled_from([0, 0, 0, 2]),
    )
    return InferRequest(
        {},
        draw(st.none() | st.text('!"\\a{~', min_size=1, max_size=4)),
        outputs=tuple(draw(st.lists(wanted, max_size=2, unique_by=lambda output: output.name))),
        binary_default=draw(st.booleans()),
    )


@LAW
@given(st.data(), st.sampled_from(POLICIES))
@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_writer_writes_what_the_renderer_writes(
    datatype: str, data: Any, nonfinite: Nonfinite
) -> None:
    """Byte for byte, whatever is asked of whatever outputs, announced or not."""
    writer = Writer("m", "3", signature_of(a=datatype, b="FP32"), nonfinite, LABELS)
    kinds = st.sampled_from([datatype, datatype, "FP32", "BYTES"])
    for _ in range(data.draw(st.integers(1, 3))):
        outputs = {
            name: data.draw(kinds.flatmap(tensors))
            for name in data.draw(st.permutations(["a", "b", "c"]))[: data.draw(st.integers(0, 3))]
        }
        asked = asked_of(data.draw, ["a", "b", "c"])
        assert_same(outputs, asked, writer, nonfinite)
        assert_same(outputs, asked, writer, nonfinite)


@pytest.mark.parametrize("nonfinite", POLICIES)
@pytest.mark.parametrize("odd", [(), (0,), (5, 8191, 8192), (20_000,)], ids=str)
def test_long_outputs_are_written_in_pieces(nonfinite: Nonfinite, odd: tuple[int, ...]) -> None:
    """And nobody can tell from the bytes."""
    values = np.linspace(-1, 1, 20_001, dtype="f4")
    values[list(odd)] = np.nan
    texts = np.array([b"%d" % number for number in range(20_001)], object)
    writer = Writer("m", "3", signature_of(a="FP32", b="BYTES"), nonfinite)
    assert_same({"a": values.reshape(3, -1), "b": texts}, InferRequest({}), writer, nonfinite)


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(np.arange(6, dtype="f4").reshape(2, 3).T, id="transposed"),
        pytest.param(np.arange(6, dtype=">f4"), id="big-endian"),
        pytest.param(np.arange(12, dtype="f4")[::2], id="strided"),
        pytest.param(np.array(1.5, "f4"), id="scalar"),
        pytest.param(np.zeros((0, 3), "f4"), id="empty"),
    ],
)
@pytest.mark.parametrize("is_binary", [False, True], ids=["json", "binary"])
def test_however_an_output_lies_in_memory(output: Array, is_binary: bool) -> None:
    """B11 It is written row by row, little-endian."""
    writer = Writer("m", "3", signature_of(a="FP32"), "literal")
    assert_same({"a": output}, InferRequest({}, binary_default=is_binary), writer, "literal")


def test_outputs_may_come_in_the_order_of_the_signature() -> None:
    """As an engine gives them."""
    writer = Writer("m", "3", signature_of(b="FP32", a="INT64"), "literal")
    one, two = np.array([0.5], "f4"), np.array([3])
    asked = InferRequest({}, "i")
    assert writer.write([one, two], asked) == writer.write({"b": one, "a": two}, asked)


def test_only_so_many_shapes_are_remembered() -> None:
    """What callers send does not grow the process."""
    writer = Writer("m", "3", signature_of(a="BOOL"), "literal")
    for count in range(2 * writing._SHAPES):
        writer.write({"a": np.zeros(count, np.bool_)}, InferRequest({}))
    assert len(writer._outputs["a"]._json) == writing._SHAPES


@LAW
@given(st.data(), st.sampled_from(POLICIES))
@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_rows_of_a_batch_are_written_as_each_by_itself(
    datatype: str, data: Any, nonfinite: Nonfinite
) -> None:
    """Byte for byte, or not at all."""
    writer = Writer("100%b", "3", signature_of(**{"a%": datatype, "b": "FP32"}), nonfinite)
    a, b = data.draw(tensors(datatype)), data.draw(hnp.arrays("f4", st.just((3, 2))))
    rows = writer.rows([a, b])
    if a.shape[:1] != (3,):
        assert rows is None
        return
    if rows is None:
        assert datatype in {"BYTES", "FP16", "FP32", "FP64"} or not np.isfinite(b).all()
        return
    for index in range(3):
        row = slice(index, index + 1)
        asked = InferRequest({}, data.draw(st.sampled_from([None, "i", '"\\%b'])))
        assert rows.write(index, asked) == writer.write([a[row], b[row]], asked).body


def test_rows_are_for_whoever_asks_for_all_in_json() -> None:
    """Another wish is written by itself."""
    writer = Writer("m", "3", signature_of(a="INT64"), "literal")
    rows = writer.rows([np.array([1, 2])])
    assert rows is not None
    assert rows.write(1, InferRequest({})) == writer.write([np.array([2])], InferRequest({})).body
    assert rows.write(1, InferRequest({}, binary_default=True)) is None
    assert rows.write(1, InferRequest({}, outputs=(RequestedOutput("a"),))) is None


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param([], id="none"),
        pytest.param([np.zeros(3)], id="another datatype"),
        pytest.param([np.zeros((), "i8")], id="no rows"),
        pytest.param([np.zeros((0, 2), "i8")], id="an empty batch"),
        pytest.param([np.zeros((3, 5000), "i8")], id="long"),
        pytest.param([np.zeros(3, "i8"), np.zeros(3, "i8")], id="one too many"),
    ],
)
def test_rows_are_not_written_where_that_would_not_do(outputs: list[Array]) -> None:
    """Then each request is written by itself."""
    assert Writer("m", "3", signature_of(a="INT64"), "literal").rows(outputs) is None
