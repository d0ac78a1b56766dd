from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import GatewayError, InvalidRequest
from gateway.core.oip import reading
from gateway.core.oip.messages import Limits
from gateway.core.oip.parse import parse_infer
from gateway.core.oip.reading import Reader
from gateway.core.tensors import Signature, TensorSpec
from tests.core.oip.bodies import (
    DATATYPES,
    LAW,
    X,
    agree,
    binary_body,
    body_of,
    outcome,
    parse,
    raw_body,
    signature_of,
    tensor,
)
from tests.core.oip.texts import data_texts

MIXED = signature_of(x="FP32", n="INT64", t="BYTES")
WITH_BOOL = signature_of(x="FP32", flag="BOOL")
HALF = Signature((TensorSpec("x", "FP16", (-1,)),), (), batched=True)

KEYS = {
    "id": ['"a"', '""', '"a b"', "1", "null", '"\\ud800"', '"a\\u0062"'],
    "parameters": ["{}", "null", '{"a":1}', '{"timeout":5}', '{"timeout":-1}', '{"a":[1]}'],
    "outputs": [
        "[]",
        "null",
        '[{"name":"x"}]',
        '[{"name":"x"},{"name":"x"}]',
        '[{"name":"x","parameters":{"binary_data":true}}]',
        '[{"name":"x","parameters":{"classification":0}}]',
        '[{"name":"x","more":[]}]',
    ],
    "model_name": ['"m"', "1", "NaN"],
    "unknown": ["[" * 63 + "]" * 63, "[" * 64 + "]" * 64, "NaN", '"\xe9"', '"[[["', "1e999"],
}


@st.composite
def request_texts(draw: Any) -> str:
    """The text of some request, right or wrong in its parts."""
    inputs = []
    for name in draw(st.lists(st.sampled_from(["x", "n", "t", "y"]), max_size=3)):
        datatype = draw(st.sampled_from(["FP32", "FP32", "INT64", "BYTES", "BOOL", "FP64", "FP8"]))
        shape = draw(
            st.sampled_from(["[1]", "[2]", "[1,2]", "[2,2]", "[]", "[0]", "[0,3]", "[-1,-2]"])
            | st.sampled_from(["[1.0]", "[true]", "1", "[1,1,1,1,1,1,1,1,1]", "[4294967296,0]"])
        )
        parts = [f'"name":"{name}"', f'"datatype":"{datatype}"', f'"shape":{shape}']
        parts += [
            f'"data":{draw(data_texts())}' for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2])))
        ]
        if draw(st.integers(0, 5)) == 0:
            parts.append(
                draw(st.sampled_from(['"parameters":{"a":1}', '"parameters":{"a":[]}', '"b":1']))
            )
        inputs.append("{" + ",".join(draw(st.permutations(parts))) + "}")
    members = [f'"inputs":[{",".join(inputs)}]']
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=3))
    members += [f'"{key}":{draw(st.sampled_from(KEYS[key]))}' for key in keys]
    return "{" + ",".join(draw(st.permutations(members))) + "}"


@LAW
@given(st.data())
@pytest.mark.parametrize(
    "signature", [X, MIXED, WITH_BOOL, HALF], ids=["x", "mixed", "bool", "half"]
)
def test_a_reader_says_what_the_parser_says(signature: Signature, data: Any) -> None:
    """The same request, or the same refusal word for word."""
    reader = Reader(signature)
    for text in data.draw(st.lists(request_texts(), min_size=1, max_size=8)):
        body = text.encode()
        wanted = outcome(partial(parse_infer, body, None, signature))
        assert agree(wanted, outcome(partial(reader.read, body)))
        assert agree(wanted, outcome(partial(reader.read, body)))  # what it learnt changes nothing


@LAW
@given(st.data())
@pytest.mark.parametrize("datatype", DATATYPES)
def test_any_element_of_any_datatype_is_read_as_the_parser_reads_it(
    datatype: str, data: Any
) -> None:
    """Every number stands or falls by the same rule."""
    signature = signature_of(x=datatype, n="INT16", f="FP64", t="BYTES")
    reader, alone = Reader(signature), Reader(signature_of(x=datatype))
    for text in data.draw(st.lists(data_texts(), min_size=1, max_size=8)):
        for shape in ("[1]", "[2]", "[2,2]"):
            body = raw_body(text, datatype, shape)
            wanted = outcome(partial(parse_infer, body, None, signature))
            assert agree(wanted, outcome(partial(reader.read, body)))
            wanted = outcome(partial(parse_infer, body, None, signature_of(x=datatype)))
            assert agree(wanted, outcome(partial(alone.read, body)))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(body_bytes=20),
        Limits(json_bytes=20),
        Limits(elements=1),
        Limits(element_bytes=1),
        Limits(tensors=0),
        Limits(parameters=0),
        Limits(depth=3),
    ],
    ids=str,
)
def test_a_reader_keeps_every_limit(limits: Limits) -> None:
    """And says the same of what is beyond."""
    texts = tensor(["ab", "c"], "BYTES") | {"name": "t"}
    body = body_of(tensor(), texts, parameters={"a": 1})
    with pytest.raises(GatewayError):
        parse(body, None, signature_of(x="FP32", t="BYTES"), limits)


def test_a_reader_reads_the_usual_forms_itself() -> None:
    """The parser is asked for odd requests only."""
    reader = Reader(MIXED)
    everything = [tensor(), tensor([1, 2], "INT64") | {"name": "n"}]
    everything.append(tensor([["a"], ["ä"]], "BYTES", [2, 1]) | {"name": "t"})
    bodies = [
        body_of(*everything, id="7", model_name="m", outputs=[{"name": "x"}]),
        body_of(tensor([[1, 2.5]], shape=[1, 2]), parameters={"a": 1, "timeout": 3}),
    ]
    for body in bodies:
        assert reader._read_known(body, body) is not None
    body, length = binary_body(bytes(8), shape=[2])
    assert reader._read_known(body[:length], body) is not None


def test_only_so_many_shapes_are_remembered() -> None:
    """What callers send does not grow the process."""
    reader = Reader(X)
    for count in range(1, 2 * reading._SHAPES):
        assert reader.read(body_of(tensor([1.5] * count, shape=[count]))).tensors["x"].size == count
    assert len(reader._inputs["x"]._packings) == reading._SHAPES


@pytest.mark.parametrize("flag", [1, 1.0, "true", None, 0])
def test_only_a_bool_is_a_flag(flag: Any) -> None:
    """A number that equals one is not one."""
    with pytest.raises(InvalidRequest):
        parse(body_of(tensor(), outputs=[{"name": "x", "parameters": {"binary_data": flag}}]))
