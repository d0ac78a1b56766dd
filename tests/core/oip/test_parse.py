import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import GatewayError, InvalidRequest, Unsupported
from gateway.core.oip.messages import InferRequest, Limits, RequestedOutput
from gateway.core.oip.v1 import parse_predict
from gateway.core.tensors import Signature, TensorSpec
from tests.core.oip.bodies import LAW, X, binary_body, body_of, parse, signature_of, tensor

GOLDEN = Path(__file__).parents[2] / "golden" / "oip"
ABC = signature_of(a="FP32", b="FP32", c="FP32")


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("request_*.json")), ids=lambda path: str(path.stem)
)
def test_requests_in_the_form_of_each_client_are_read(path: Path) -> None:
    """Triton's own bytes, and the forms of KServe (extra keys) and MLServer (nulls)."""
    record = json.loads(path.read_text(encoding="utf-8"))
    payload = bytes.fromhex(record["payload_hex"])
    head = record["head"].encode()
    specs = tuple(TensorSpec(**spec | {"shape": tuple(spec["shape"])}) for spec in record["inputs"])
    outputs = tuple(TensorSpec(name, "FP32", (-1, -1)) for name in record["output_names"])
    signature = Signature(specs, outputs, batched=True)
    request = parse(head + payload, len(head) if payload else None, signature)
    expected = record["expected"]
    assert {name: value.tolist() for name, value in request.tensors.items()} == expected["tensors"]
    assert request.id == expected["id"]
    assert request.parameters == expected["parameters"]
    assert [output.name for output in request.outputs] == expected["outputs"]
    assert request.binary_default is expected["binary_default"]


@pytest.mark.parametrize("id_", ["a", "!~", "0" * 128, "3f2b-{}", "'\"\\"])
def test_an_id_is_read(id_: str) -> None:
    """J18 Up to 128 printable ASCII characters."""
    assert parse(body_of(tensor(), id=id_)).id == id_


@pytest.mark.parametrize(
    "id_",
    [
        pytest.param("", id="J18 empty"),
        pytest.param("0" * 129, id="J18 129 characters"),
        pytest.param("0" * 1_000_000, id="J18 1 MB"),
        pytest.param("a\r\nb", id="J18 CRLF"),
        pytest.param("a\n", id="J18 newline at the end"),
        pytest.param("\x1b[31m", id="J18 escape"),
        pytest.param("a b", id="J18 space"),
        pytest.param("ä", id="J18 not ASCII"),
        pytest.param("\x7f", id="J18 delete"),
        pytest.param(1, id="J18 number"),
        pytest.param(True, id="J18 bool"),
        pytest.param(["a"], id="J18 list"),
        pytest.param({"a": "b"}, id="J18 object"),
    ],
)
def test_an_id_that_could_forge_a_log_line_is_refused(id_: object) -> None:
    """J18 And what is refused is not echoed."""
    with pytest.raises(InvalidRequest) as caught:
        parse(body_of(tensor(), id=id_))
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a" * 257, id="257 characters"),
        pytest.param("a\x00", id="NUL"),
        pytest.param("a\nb", id="newline"),
        pytest.param("\x85", id="C1 control"),
    ],
)
@pytest.mark.parametrize("where", ["input", "output", "parameter"])
def test_names_with_control_characters_are_refused(where: str, name: str) -> None:
    """J18 Names reach logs and errors."""
    body = {
        "input": body_of(tensor() | {"name": name}),
        "output": body_of(tensor(), outputs=[{"name": name}]),
        "parameter": body_of(tensor(), parameters={name: 1}),
    }[where]
    with pytest.raises(InvalidRequest, match="control characters"):
        parse(body)


@pytest.mark.parametrize("name", ["", "a b", "ä/ö:0", "\u00a0", "\U0001f600", "a" * 256])
def test_names_may_be_any_other_text(name: str) -> None:
    """ONNX names hold slashes, colons and more."""
    assert list(parse(body_of(tensor() | {"name": name})).tensors) == [name]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param(
            {"a": "text", "b": 1, "c": 1.5, "d": True, "e": 2**64 - 1},
            {"a": "text", "b": 1, "c": 1.5, "d": True, "e": 2**64 - 1},
            id="scalars",
        ),
        pytest.param({"priority": 1, "timeout": 2, "unit": "u"}, {"unit": "u"}, id="reserved"),
        pytest.param(None, {}, id="null"),
    ],
)
def test_parameters_are_read(parameters: Any, expected: Any) -> None:
    """Scalars pass; the scheduling parameters become fields."""
    assert parse(body_of(tensor(), parameters=parameters)).parameters == expected


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"sequence_id": 1}, id="J17 sequence_id"),
        pytest.param({"sequence_start": True}, id="J17 sequence_start"),
        pytest.param({"sequence_end": True}, id="J17 sequence_end"),
        pytest.param({"headers": "a"}, id="J17 headers"),
        pytest.param({"triton_enable_empty_final_response": True}, id="J17 triton_"),
        pytest.param({f"p{index}": 1 for index in range(65)}, id="J17 65 keys"),
        pytest.param({f"p{index}": 1 for index in range(10_000)}, id="J17 10,000 keys"),
        pytest.param({"a": {"b": 1}}, id="J17 object"),
        pytest.param({"a": [1]}, id="J17 list"),
        pytest.param({"a": None}, id="J17 null"),
        pytest.param({"a": 2**64}, id="J17 65-bit integer"),
        pytest.param({"a": -(2**63) - 1}, id="J17 negative 65-bit integer"),
        pytest.param({"a": float("nan")}, id="J17 NaN"),
        pytest.param({"a": float("inf")}, id="J17 infinity"),
        pytest.param([], id="J17 no object"),
        pytest.param({"timeout": -1}, id="negative timeout"),
        pytest.param({"timeout": 1.5}, id="fraction of a microsecond"),
        pytest.param({"timeout": "10"}, id="text for a timeout"),
        pytest.param({"timeout": True}, id="bool for a timeout"),
        pytest.param({"priority": -1}, id="negative priority"),
        pytest.param({"priority": True}, id="bool for a priority"),
        pytest.param({"binary_data_output": 1}, id="number for a flag"),
        pytest.param({"binary_data_output": "true"}, id="text for a flag"),
    ],
)
def test_parameters_that_mean_nothing_here_are_refused(parameters: Any) -> None:
    """J17 Reserved, nested, endless or mistyped ones."""
    with pytest.raises(InvalidRequest):
        parse(body_of(tensor(), parameters=parameters))


def test_the_scheduling_parameters_are_fields() -> None:
    """A timeout is in microseconds; priority 0 is the default."""
    request = parse(body_of(tensor(), parameters={"priority": 3, "timeout": 250}))
    assert (request.priority, request.timeout_us) == (3, 250)
    plain = parse(body_of(tensor()))
    assert (plain.priority, plain.timeout_us) == (0, 0)


@pytest.mark.parametrize(
    ("outputs", "parameters", "expected", "binary_default"),
    [
        pytest.param(None, {}, (), False, id="all in JSON"),
        pytest.param(None, {"binary_data_output": True}, (), True, id="all in binary"),
        pytest.param([], {"binary_data_output": True}, (), True, id="an empty list is no list"),
        pytest.param(
            [{"name": "a"}],
            {"binary_data_output": True},
            (RequestedOutput("a"),),
            False,
            id="listed without a flag is JSON",
        ),
        pytest.param(
            [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a", "parameters": {}}],
            {},
            (RequestedOutput("b", binary=True), RequestedOutput("a")),
            False,
            id="in the order asked for",
        ),
        pytest.param(
            [{"name": "a", "parameters": {"classification": 2, "binary_data": False}}],
            {},
            (RequestedOutput("a", classification=2),),
            False,
            id="classes",
        ),
        pytest.param(
            [{"name": "a", "parameters": {"content_type": "np"}}],
            {},
            (RequestedOutput("a"),),
            False,
            id="a parameter of another server",
        ),
        pytest.param(
            [{"name": "missing", "parameters": None}],
            {},
            (RequestedOutput("missing"),),
            False,
            id="unknown names are for the signature to refuse",
        ),
    ],
)
def test_outputs_are_read(
    outputs: Any, parameters: Any, expected: Any, binary_default: bool
) -> None:
    """The request-level default counts only where no output is listed."""
    body = body_of(tensor() | {"name": "a"}, outputs=outputs, parameters=parameters)
    request = parse(body, signature=ABC)
    assert request.outputs == expected
    assert request.binary_default is binary_default


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param([{"name": "a"}, {"name": "a"}], id="J14 twice"),
        pytest.param([{"name": f"y{index}"} for index in range(4)], id="J14 more than there are"),
        pytest.param([{"name": "a"}] * 100_000, id="J14 100,000"),
        pytest.param([{}], id="no name"),
        pytest.param([{"name": 1}], id="number for a name"),
        pytest.param("a", id="no list"),
        pytest.param([{"name": "a", "parameters": {"binary_data": 1}}], id="number for a flag"),
        pytest.param([{"name": "a", "parameters": {"classification": 0}}], id="0 classes"),
        pytest.param([{"name": "a", "parameters": {"classification": -1}}], id="-1 classes"),
        pytest.param([{"name": "a", "parameters": {"classification": 1.5}}], id="1.5 classes"),
        pytest.param([{"name": "a", "parameters": {"classification": True}}], id="true classes"),
        pytest.param([{"name": "a", "parameters": {"x": [1]}}], id="nested parameter"),
    ],
)
def test_outputs_that_cannot_be_given_are_refused(outputs: Any) -> None:
    """J14 Never more than the model has, and each once."""
    with pytest.raises(InvalidRequest):
        parse(body_of(tensor() | {"name": "a"}, outputs=outputs), signature=ABC)


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param([tensor(), tensor()], id="J14 twice"),
        pytest.param([tensor() | {"name": f"y{i}"} for i in range(4)], id="J14 more than wanted"),
        pytest.param([tensor() | {"name": str(i)} for i in range(10_000)], id="J14 10,000"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(inputs: Any) -> None:
    """J14 Their number is bounded before their data are read."""
    with pytest.raises(InvalidRequest):
        parse(body_of(*inputs), signature=ABC)
    with pytest.raises(InvalidRequest):
        parse(body_of(*inputs), signature=ABC, limits=Limits(tensors=1))


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"binary_data_size": 0}, id="beside binary_data_size"),
        pytest.param({"binary_data_size": [1]}, id="nested"),
        pytest.param({f"p{index}": 1 for index in range(65)}, id="J17 65 keys"),
    ],
)
def test_data_stand_in_one_place_only(parameters: Any) -> None:
    """Exactly one of `data` and `binary_data_size`."""
    with pytest.raises(InvalidRequest):
        parse(body_of(tensor(parameters=parameters)))


def test_data_must_stand_somewhere() -> None:
    """Exactly one of `data` and `binary_data_size`, so not none."""
    with pytest.raises(InvalidRequest, match="exactly one"):
        parse(body_of({"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"a": 1}}))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body_of(tensor(parameters={"shared_memory_region": "r"})), id="input"),
        pytest.param(
            body_of(
                tensor(),
                outputs=[{"name": "x", "parameters": {"shared_memory_region": "r"}}],
            ),
            id="output",
        ),
    ],
)
def test_shared_memory_is_not_offered(body: bytes) -> None:
    """It would let a caller name memory of this machine."""
    with pytest.raises(Unsupported):
        parse(body)


SEEDS = [
    (body_of(tensor(), id="a", parameters={"unit": "u"}, outputs=[{"name": "x"}]), None),
    (body_of(tensor([["a"], ["b"]], "BYTES", [2, 1])), None),
    (body_of(tensor([float("nan"), 1.0])), None),
    (body_of(tensor([True, False], "BOOL")), None),
    binary_body(bytes(8), shape=[2]),
    binary_body(b"\x01\0\0\0a", "BYTES"),
    (b'{"instances":[[1.0,2.0]]}', None),
    (b'{"instances":[{"x":[1.0]}],"signature_name":"serving_default"}', None),
    (b'{"inputs":{"x":[[NaN]]}}', None),
]
PIECES = [b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"NaN", b"-", b"1e999", b"null", b"0"]
PIECES += [b"\xff", b"\x00", b"true", b"9" * 30, b'"x"', b"\\ud800", b"[" * 70]


@LAW
@given(st.data())
def test_no_body_raises_anything_but_an_error_for_the_caller(data: Any) -> None:
    """Whatever is cut, doubled or put in, the parsers answer or refuse in a sentence."""
    body, length = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 8)))
        body = (
            body[:start] + data.draw(st.sampled_from(PIECES) | st.binary(max_size=4)) + body[end:]
        )
    for signature in (X, signature_of(x="BYTES"), signature_of(x="INT64", y="BOOL")):
        for json_bytes in (None, length, 0):
            assert _says(partial(parse, body, json_bytes, signature)).endswith(".")
        assert _says(partial(_predict, body, signature)).endswith(".")


def _says(read: Callable[[], InferRequest]) -> str:
    """The refusal, or a word of thanks."""
    try:
        return f"{len(read().tensors)} inputs."
    except GatewayError as error:
        return str(error)


def _predict(body: bytes, signature: Signature) -> InferRequest:
    return parse_predict(body, signature)[0]
