from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.oip import pieces, reading
from gateway.core.oip.parse import parse_infer
from gateway.core.oip.pieces import UNREADABLE, _pieces, cut
from gateway.core.oip.reading import Reader
from tests.core.oip.bodies import (
    LAW,
    X,
    agree,
    body_of,
    outcome,
    parse,
    raw_body,
    signature_of,
    tensor,
)
from tests.core.oip.texts import ELEMENTS, SPACES, data_texts

PIECE = 8


def test_a_long_request_is_read_in_pieces() -> None:
    """J16 And nobody can tell from what is read."""
    values = np.linspace(-1, 1, 60_000, dtype="f4").reshape(2, 3, -1)
    for data in (values.ravel().tolist(), values.tolist()):
        body = body_of(tensor(data, shape=[2, 3, 10_000]), id="7", parameters={"a": 1})
        assert len(body) > 4 * reading.SMALL
        assert Reader(X)._read_pieces(body, body).id == "7"
        assert np.array_equal(parse(body).tensors["x"], values)


@pytest.mark.parametrize(
    ("inputs", "more"),
    [
        pytest.param([tensor([[1, 2], [3.5, 4]], shape=[2, 2])], {}, id="nested"),
        pytest.param([tensor([[[1, 2]], [[3, 4]]], shape=[2, 1, 2])], {}, id="nested deeper"),
        pytest.param([tensor([1.5] * 9, shape=[3, 3])], {"id": "data"}, id="flat"),
        pytest.param([tensor([1, 2, float("nan")], shape=[3])], {}, id="NaN"),
        pytest.param([tensor([[1], [-float("inf")], [3]], shape=[3, 1])], {}, id="-Infinity"),
        pytest.param([tensor([1, 2, 3, 4], "INT64", [4])], {"a": float("nan")}, id="NaN elsewhere"),
        pytest.param(
            [tensor([1.5, 2.5, 3], shape=[3]), tensor([4, 5, 6], "UINT8", [3]) | {"name": "y"}],
            {},
            id="two inputs",
        ),
    ],
)
def test_numbers_are_read_wherever_they_are_cut(inputs: Any, more: Any) -> None:
    """Every length of piece gives the same tensors."""
    body = body_of(*inputs, **more)
    signature = signature_of(x="FP32", y="UINT8")
    wanted = parse_infer(body, None, signature)
    for size in range(1, 9):
        assert agree(wanted, Reader(signature, piece_bytes=size)._read_pieces(body, body))


ALIKE = st.sampled_from(["1", "2.5", "-3", "0"]) | ELEMENTS
HIDDEN = [
    '"id":"x\\"data\\":[1,1,1,1,1]"',
    '"x\\"data":[1,1,1,1,1]',
    '"unknown":{"data":[1,1,1,1,1]}',
    '"id":"\\u0000elements 0"',
    '"id":"NaN"',
    '"unknown":NaN',
    '"unknown":"data"',
    '"data":[1,1,1,1,1]',
    '"outputs":[{"name":"x","data":[1,1,1,1,1]}]',
]


@st.composite
def rows(draw: Any, extents: tuple[int, ...]) -> str:
    """The text of rows of that shape, now and then with something wrong in it."""
    if not extents:
        return str(draw(ALIKE if draw(st.integers(0, 9)) == 0 else st.sampled_from(["1", "2.5"])))
    count = extents[0] + (draw(st.sampled_from([-1, 1])) if draw(st.integers(0, 19)) == 0 else 0)
    items = [draw(rows(extents[1:])) for _ in range(count)]
    odd = draw(st.integers(0, 29))
    comma = draw(SPACES) + "," + draw(SPACES)
    text = comma.join(items)
    if odd == 0:
        return f"[{text},]"
    if odd == 1:
        return f"[,{text}]"
    return f"[{draw(SPACES)}{text}{draw(SPACES)}]"


@LAW
@given(st.data())
@pytest.mark.parametrize("datatype", ["FP32", "INT8", "FP64", "BYTES"])
def test_what_is_read_in_pieces_is_what_the_parser_reads(datatype: str, data: Any) -> None:
    """Numbers, literals and shapes stand or fall by the same rules; what is odd is left alone."""
    extents = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    signature = signature_of(x=datatype, y="FP32")
    text = data.draw(rows(extents) | rows((int(np.prod(extents)),)) | data_texts())
    members = [f'"name":"x","shape":{list(extents)},"datatype":"{datatype}"', f'"data":{text}']
    members += data.draw(st.lists(st.sampled_from(HIDDEN), max_size=1))
    others = ['{"name":"y","shape":[6],"datatype":"FP32","data":[1,2,3,4,5,6]}']
    inputs = ["{" + ",".join(data.draw(st.permutations(members))) + "}"]
    inputs += data.draw(st.sampled_from([[], others]))
    whole = [
        f'"inputs":[{",".join(inputs)}]',
        *data.draw(st.lists(st.sampled_from(HIDDEN), max_size=1)),
    ]
    body = ("{" + ",".join(data.draw(st.permutations(whole))) + "}").encode()
    wanted = outcome(partial(parse_infer, body, None, signature))
    for size in (1, PIECE):
        reader = Reader(signature, piece_bytes=size)
        try:
            read = reader._read_pieces(body, body)
        except UNREADABLE:
            continue
        assert agree(wanted, read)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(raw_body("[" + "1,1," * 99_999 + "1]", shape="[199999]"), id="flat"),
        pytest.param(raw_body("[" + "[1,1]," * 99_999 + "[1,1]]", shape="[100000,2]"), id="nested"),
        pytest.param(raw_body("[[" + "1," * 99_999 + "1]]", shape="[1,100000]"), id="one row"),
        pytest.param(raw_body("[" + "NaN," * 99_999 + "1]", shape="[100000]"), id="literals"),
    ],
)
def test_no_single_call_decodes_much(body: bytes) -> None:
    """J16 Between two pieces the event loop has its turn."""
    short, regions = cut(body, 1)
    assert len(short) < 200
    (region,) = regions
    rank = 2 if body.count(b"[") > 3 or b"[[" in body else 1
    assert max(len(piece) for _, piece, _ in _pieces(region, rank)) <= pieces.PIECE
    assert Reader(X)._read_pieces(body, body).tensors["x"].size >= 100_000


def test_many_inputs_make_one_call_no_longer() -> None:
    """J16 Data that are no longer than a piece are cut out all the same."""
    many = signature_of(**{f"x{index}": "FP32" for index in range(100)})
    inputs = [tensor([1.5] * 1000, shape=[1000]) | {"name": f"x{index}"} for index in range(100)]
    body = body_of(*inputs)
    short, regions = cut(body, 100)
    assert len(body) > reading.SMALL > len(short)
    assert len(regions) == len(Reader(many)._read_pieces(body, body).tensors) == 100


def test_many_odd_keys_are_refused_in_linear_time() -> None:
    """J16 No key makes the search for data start over."""
    for text in (b'"data":[', b'"data":', b'"data":[1]}', b'\\"data":['):
        with pytest.raises(UNREADABLE):
            Reader(X)._read_pieces(text * 200_000, text * 200_000)
