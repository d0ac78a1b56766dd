"""Requests and tensors that these tests send, built without the code under test."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.core.errors import GatewayError
from gateway.core.oip.messages import InferRequest, Limits
from gateway.core.oip.parse import parse_infer
from gateway.core.oip.reading import Reader
from gateway.core.tensors import Array, Signature, TensorSpec

T = TypeVar("T")

NUMPY = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BYTES": "O",
}
DATATYPES = tuple(NUMPY)

LAW = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
"""No law depends on how fast the machine is."""


def signature_of(**datatypes: str) -> Signature:
    """A signature whose inputs and outputs have these names, in two free dimensions."""
    specs = tuple(TensorSpec(name, datatype, (-1, -1)) for name, datatype in datatypes.items())
    return Signature(inputs=specs, outputs=specs, batched=True)


X = signature_of(x="FP32")


def tensor(data: Any = (1.5, 2.5), datatype: str = "FP32", shape: Any = (2,), **more: Any) -> Any:
    """One input with JSON data."""
    return {"name": "x", "shape": shape, "datatype": datatype, "data": data, **more}


def body_of(*inputs: Any, **more: Any) -> bytes:
    """A JSON request; NaN and infinities are written as literals."""
    return json.dumps({"inputs": inputs, **more}).encode()


def raw_body(data: str, datatype: str = "FP32", shape: str = "[1]") -> bytes:
    """A JSON request with literal text as data, whatever it is."""
    text = f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}'
    return text.encode()


def binary_body(
    payload: bytes,
    datatype: str = "FP32",
    shape: Any = (1,),
    size: Any = None,
    **more: Any,
) -> tuple[bytes, int]:
    """A request with one binary input, and the length of its JSON part."""
    parameters = {"binary_data_size": len(payload) if size is None else size}
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": shape, "datatype": datatype, "parameters": parameters}
            ],
            **more,
        }
    ).encode()
    return head + payload, len(head)


def parse(
    body: bytes,
    json_bytes: int | None = None,
    signature: Signature = X,
    limits: Limits | None = None,
) -> InferRequest:
    """Parse with the default limits unless told otherwise, in both ways, which must agree."""
    limits = limits or Limits()
    said = outcome(partial(parse_infer, body, json_bytes, signature, limits))
    again = outcome(partial(Reader(signature, limits).read, body, json_bytes))
    assert agree(said, again), (said, again)
    if isinstance(again, GatewayError):
        raise again
    return again


def outcome(act: Callable[[], T]) -> T | GatewayError:
    """What an act came to: its result, or its refusal."""
    try:
        return act()
    except GatewayError as error:
        return error


def agree(left: object, right: object) -> bool:
    """Whether two outcomes are the same request, or the same refusal word for word."""
    if isinstance(left, InferRequest) and isinstance(right, InferRequest):
        return (
            list(left.tensors) == list(right.tensors)
            and all_same(left.tensors, right.tensors)
            and _rest(left) == _rest(right)
        )
    return type(left) is type(right) and str(left) == str(right)


def _rest(request: InferRequest) -> tuple[Any, ...]:
    """All that a request says beside its tensors."""
    said = (request.id, request.parameters, request.outputs, request.binary_default)
    return (*said, request.has_nonfinite, request.timeout_us, request.priority)


def same(left: Array, right: Array) -> bool:
    """Whether two tensors have the same elements, NaN included, shape and datatype."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return bool(left.tolist() == right.tolist())
    return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


def tensors(datatype: str, *, text_only: bool = False) -> Any:
    """Tensors of a datatype with 0 to 4 dimensions, empty ones included."""
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4) | st.just(())
    if datatype == "BYTES":
        kind = st.text(max_size=8).map(str.encode) if text_only else st.binary(max_size=20)
        return shapes.flatmap(
            lambda shape: st.lists(
                kind, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))
            ).map(lambda values: np.array(values, dtype=object).reshape(shape))
        )
    return hnp.arrays(NUMPY[datatype], shapes)


def all_same(left: Mapping[str, Array], right: Mapping[str, Array]) -> bool:
    """Whether two sets of tensors are the same, name by name."""
    return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
