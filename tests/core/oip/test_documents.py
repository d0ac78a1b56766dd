import json

import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.oip.messages import Limits
from tests.core.oip.bodies import body_of, parse, raw_body, tensor

FIRST = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":'
DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * DEEP, id="J1 nothing else"),
        pytest.param(b'{"a":' * DEEP, id="J1 objects"),
        pytest.param(FIRST + b"[" * DEEP, id="J1 data"),
        pytest.param(FIRST + b"[" * DEEP + b"]" * DEEP + b"}]}", id="J1 closed data"),
        pytest.param(b'{"unknown":' + b"[" * DEEP + b"]" * DEEP + b"}", id="J1 unknown key"),
        pytest.param(b'{"unknown":[NaN,' + b"[" * DEEP, id="J1 behind a literal"),
        pytest.param(b'{"a":"\\"[","b":' + b"[" * 65 + b"]" * 65 + b"}", id="J1 behind a quote"),
        pytest.param(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", id="J1 one too deep"),
    ],
)
def test_deep_nesting_is_refused(body: bytes) -> None:
    """J1 Depth is checked before anything recurses, and is the caller's error."""
    with pytest.raises(InvalidRequest, match=r"^The JSON is nested more than 64 levels deep\.$"):
        parse(body)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(b'"' + b"[" * 1000 + b'"', id="in text"),
        pytest.param(b'"\\\\", "b": "' + b"{" * 1000 + b'"', id="in text after a backslash"),
        pytest.param(b'"\\"' + b"[" * 1000 + b'"', id="in text after a quote"),
        pytest.param(b"[" + b"[]," * 1000 + b"[]]", id="side by side"),
        pytest.param(b"[" * 63 + b"]" * 63, id="just deep enough"),
    ],
)
def test_brackets_that_do_not_nest_do_not_count(more: bytes) -> None:
    """J1 Only open brackets outside text are depth."""
    body = body_of(tensor())
    assert parse(body[:-1] + b', "unknown": ' + more + b"}").tensors["x"].tolist() == [1.5, 2.5]


def test_a_depth_beyond_the_stack_is_still_refused() -> None:
    """J1 Even limits that are set too wide end in a refusal and not in a crash."""
    body = b'{"inputs":[],"unknown":' + b"[" * DEEP + b"]" * DEEP + b"}"
    limits = Limits(depth=10 * DEEP)
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        parse(body, limits=limits)
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        parse(body.replace(b'{"inputs"', b'{"a":NaN,"inputs"'), limits=limits)


GOOD = body_of(tensor()).decode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(GOOD.encode("utf-16"), id="J12 UTF-16"),
        pytest.param(GOOD.encode("utf-16-le"), id="J12 UTF-16 without mark"),
        pytest.param(GOOD.encode("utf-32"), id="J12 UTF-32"),
        pytest.param(GOOD.encode("utf-8-sig"), id="J12 byte order mark"),
        pytest.param(GOOD.replace("1.5", "NaN").encode("utf-16"), id="J12 UTF-16 and a literal"),
        pytest.param(GOOD.replace("1.5", "NaN").encode("utf-8-sig"), id="J12 mark and a literal"),
        pytest.param(GOOD.encode()[:-1] + b',"a":"\xff"}', id="J12 no UTF-8 in what is ignored"),
        pytest.param(GOOD.encode()[:-1] + b',"a":NaN,"b":"\xff"}', id="J12 nor beside a literal"),
        pytest.param(b'{"inputs":[],"\xe9":1}', id="J12 latin-1"),
        pytest.param(b"", id="nothing"),
        pytest.param(b" ", id="a space"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"NaN", id="a literal"),
        pytest.param(b"Infinity", id="another literal"),
        pytest.param(b"{}", id="no inputs"),
        pytest.param(b'{"inputs":{}}', id="inputs that are no list"),
        pytest.param(b'{"inputs":[1]}', id="an input that is no object"),
        pytest.param(b'{"inputs":[{"name":"x"}]}', id="an input of a name only"),
        pytest.param(GOOD.encode() + b"x", id="text behind"),
        pytest.param(GOOD.encode()[:-1], id="cut off"),
        pytest.param(GOOD.replace("1.5", "01.5").encode(), id="leading zero"),
        pytest.param(GOOD.replace("1.5", "+1.5").encode(), id="leading plus"),
        pytest.param(GOOD.replace("1.5", "1.5,").encode(), id="double comma"),
        pytest.param(GOOD.replace("1.5", "nan").encode(), id="lower-case literal"),
        pytest.param(GOOD.replace("1.5", "-NaN").encode(), id="negative NaN"),
        pytest.param(GOOD.replace("1.5", "0x10").encode(), id="hexadecimal"),
        pytest.param(GOOD.replace("[1.5", "[1.5 /*NaN*/").encode(), id="comment"),
    ],
)
def test_what_is_no_json_request_is_refused_in_a_sentence(body: bytes) -> None:
    """J12 Only UTF-8 JSON is read; the error names no internals."""
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    sentence = str(caught.value)
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    for internal in ("msgspec", "Traceback", "$", "`", "codec", "0x"):
        assert internal not in sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        pytest.param(
            b'{"inputs":[{"name":1}]}',
            "The request is not valid: expected 'str', got 'int' at 'inputs[0].name'.",
            id="where",
        ),
        pytest.param(
            b'{"a":NaN,"inputs":3}',
            "The request is not valid: expected 'array', got 'int' at 'inputs'.",
            id="where-beside-a-literal",
        ),
        pytest.param(
            raw_body('["a"]'),
            "Input 'x' does not hold FP32 elements: expected 'float', got 'str' at '[0]'.",
            id="element",
        ),
        pytest.param(
            b"{]", "The body is not valid JSON: object keys must be strings (byte 1).", id="syntax"
        ),
    ],
)
def test_a_refusal_says_where(body: bytes, sentence: str) -> None:
    """The caller learns which part of the request to mend."""
    with pytest.raises(InvalidRequest) as caught:
        parse(body)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("value", ["1", "NaN"], ids=["typed", "literals"])
def test_the_last_of_duplicate_keys_wins(value: str) -> None:
    """J11 A key that is given twice has its last value, on either way through the parser."""
    body = raw_body(f'[9], "unknown": {value}, "shape": [2], "data": [1, 2]')
    assert parse(body).tensors["x"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("more", [{}, {"unknown": float("nan")}], ids=["typed", "literals"])
def test_unknown_keys_are_ignored(more: dict[str, float]) -> None:
    """Clients post keys of their own, such as the model's name."""
    body = body_of(tensor(unknown={"a": [1]}), model_name="m", **more)
    assert parse(body).tensors["x"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"id":"\\ud800","inputs":[]}', id="J10 id"),
        pytest.param(b'{"parameters":{"\\ud800":1},"inputs":[]}', id="J10 parameter"),
        pytest.param(b'{"parameters":{"a":"\\udc00"},"inputs":[]}', id="J10 parameter value"),
        pytest.param(raw_body("[1]").replace(b'"x"', b'"\\ud800"'), id="J10 name"),
        pytest.param(raw_body('["\\ud800"]', "BYTES"), id="J10 BYTES"),
    ],
)
def test_half_a_surrogate_pair_is_refused(body: bytes) -> None:
    """J10 Text that no UTF-8 can spell is refused at the door, not when it is answered."""
    with pytest.raises(InvalidRequest):
        parse(body)
    with pytest.raises(InvalidRequest):
        parse(body[:-1] + b',"unknown":NaN}')


def test_a_whole_surrogate_pair_is_text() -> None:
    """J10 A pair is one character."""
    body = json.dumps({"inputs": [tensor(["\U0001f600"], "BYTES", [1])], "a": float("nan")})
    assert "\\ud83d" in body
    assert parse(body.encode()).tensors["x"].tolist() == ["\U0001f600".encode()]
