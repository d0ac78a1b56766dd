"""Inference requests of the Open Inference Protocol v2 from their bytes.

Source: Open Inference Protocol v2, "Inference Request"; Triton Inference Server, "Binary Tensor
Data", "Parameters", "Schedule Policy" and "Classification" extensions.
"""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final, Generic, TypeVar

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder

from gateway.core.errors import InvalidRequest, Unsupported, excerpt
from gateway.core.oip.binary import Span, read_span
from gateway.core.oip.documents import check_size, read_document
from gateway.core.oip.elements import bytes_array, check_element, read_tensor
from gateway.core.oip.messages import InferRequest, Limits, RequestedOutput
from gateway.core.targeting import Scalar
from gateway.core.tensors import BYTES, DTYPES, Array, Signature, TensorSpec

D = TypeVar("D")

MAX_NAME: Final = 256
RESERVED: Final = frozenset({"sequence_id", "sequence_start", "sequence_end", "headers"})
RESERVED_PREFIX: Final = "triton_"

_DEFAULTS: Final = Limits()
_ID: Final = re.compile(r"[!-~]{1,128}")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,256}")
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
_SHARED_MEMORY: Final = frozenset(
    {"shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"}
)
_FIELDS: Final = frozenset({"priority", "timeout", "binary_data_output"})


class _Input(Struct, Generic[D], gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: D | UnsetType = UNSET
    parameters: dict[str, Scalar] | None = None


class _Output(Struct, gc=False):
    name: str
    parameters: dict[str, Scalar] | None = None


class _Request(Struct, Generic[D]):
    inputs: list[_Input[D]]
    id: str | None = None
    parameters: dict[str, Scalar] | None = None
    outputs: list[_Output] | None = None


_DECODER: Final[Decoder[_Request[Any]]] = Decoder(_Request[Raw])


def parse_header_length(values: Sequence[bytes], body_bytes: int) -> int | None:
    """Read the header Inference-Header-Content-Length.

    Args:
        values: what was sent under that name, one for each time; empty when it was not.
        body_bytes: the length of the decompressed body.

    Raises:
        InvalidRequest: sent twice, not plain decimal digits, or beyond the body.
    """
    if not values:
        return None
    if len(values) > 1:
        message = "The header Inference-Header-Content-Length must be sent at most once."
        raise InvalidRequest(message)
    if not _DIGITS.fullmatch(values[0]):
        message = "The header Inference-Header-Content-Length must be a count of bytes."
        raise InvalidRequest(message)
    length = int(values[0])
    if length > body_bytes:
        raise _header_refusal(length, body_bytes)
    return length


def parse_infer(
    body: bytes, json_bytes: int | None, signature: Signature, limits: Limits = _DEFAULTS
) -> InferRequest:
    """Decode an inference request.

    That its tensors suit the signature is for `check_inputs` to say; here it bounds their number.

    Args:
        body: decompressed.
        json_bytes: the length of the JSON part; None when all is JSON, 0 when all is the tensor.
        signature: of the model that is asked.
        limits: on sizes and counts.

    Raises:
        InvalidRequest: the bytes are no such request; TooLarge: beyond the limits;
            Unsupported: shared memory.
    """
    check_size(body, limits)
    if json_bytes is None:
        head = body
    elif json_bytes == 0:
        return _parse_raw(body, signature, limits)
    elif not 0 < json_bytes <= len(body):
        raise _header_refusal(json_bytes, len(body))
    else:
        head = body[:json_bytes]
    stated = read_document(head, _DECODER, _Request[Any], limits)
    if stated.id is not None and not _ID.fullmatch(stated.id):
        message = "The 'id' must be 1 to 128 printable ASCII characters without spaces."
        raise InvalidRequest(message)
    request = InferRequest({}, stated.id)
    _read_inputs(request, stated.inputs, Span(body, len(head), len(body)), signature, limits)
    if stated.outputs:
        request.outputs = _read_outputs(stated.outputs, signature, limits)
    if stated.parameters:
        _read_parameters(request, stated.parameters, limits)
    return request


def _read_inputs(
    request: InferRequest,
    inputs: list[_Input[Any]],
    rest: Span,
    signature: Signature,
    limits: Limits,
) -> None:
    if len(inputs) > min(len(signature.inputs), limits.tensors):
        message = (
            f"The model takes {len(signature.inputs)} inputs; the request holds {len(inputs)}."
        )
        raise InvalidRequest(message)
    body, at, _ = rest
    for tensor in inputs:
        name = tensor.name
        if name in request.tensors:
            message = f"Input '{excerpt(name)}' is given twice."
            raise InvalidRequest(message)
        _check_name(name)
        size = _check_tensor(tensor, len(body) - at, limits)
        if size is None:
            read = read_tensor(name, tensor.data, tensor.datatype, tensor.shape, limits)
        else:
            read = read_span(name, Span(body, at, size), tensor.datatype, tensor.shape, limits)
            at += size
        request.tensors[name], nonfinite = read
        request.has_nonfinite |= nonfinite
    if at != len(body):
        message = f"The body holds {len(body) - at} bytes after the last input."
        raise InvalidRequest(message)


def _check_tensor(tensor: _Input[Any], left: int, limits: Limits) -> int | None:
    """Check where an input's elements are; its size in bytes, or None when they are JSON."""
    if tensor.datatype not in DTYPES:
        message = (
            f"Input '{excerpt(tensor.name)}' has datatype '{excerpt(tensor.datatype)}', "
            "which is not spoken here."
        )
        raise InvalidRequest(message)
    size: Scalar | None = None
    if tensor.parameters:
        _check_parameters(tensor.parameters, limits)
        _refuse_shared_memory(tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
    if (size is None) == (tensor.data is UNSET):
        message = (
            f"Input '{excerpt(tensor.name)}' must hold exactly one of 'data' and "
            "the parameter 'binary_data_size'."
        )
        raise InvalidRequest(message)
    if size is None:
        return None
    count = _natural("binary_data_size", size)
    if count > left:
        message = (
            f"Input '{excerpt(tensor.name)}' states {count} bytes; "
            f"{left} are left after the JSON part."
        )
        raise InvalidRequest(message)
    return count


def _read_outputs(
    outputs: list[_Output], signature: Signature, limits: Limits
) -> tuple[RequestedOutput, ...]:
    if len(outputs) > min(len(signature.outputs), limits.tensors):
        message = (
            f"The model gives {len(signature.outputs)} outputs; the request asks for "
            f"{len(outputs)}."
        )
        raise InvalidRequest(message)
    requested: dict[str, RequestedOutput] = {}
    for output in outputs:
        _check_name(output.name)
        if output.name in requested:
            message = f"Output '{excerpt(output.name)}' is asked for twice."
            raise InvalidRequest(message)
        requested[output.name] = _read_output(output, limits)
    return tuple(requested.values())


def _read_output(output: _Output, limits: Limits) -> RequestedOutput:
    parameters = output.parameters or {}
    _check_parameters(parameters, limits)
    _refuse_shared_memory(parameters)
    classification = parameters.get("classification")
    if classification is None:
        return RequestedOutput(output.name, _flag("binary_data", parameters))
    classes = _natural("classification", classification)
    if classes == 0:
        message = "The parameter 'classification' must be at least 1."
        raise InvalidRequest(message)
    return RequestedOutput(output.name, _flag("binary_data", parameters), classes)


def _read_parameters(request: InferRequest, parameters: dict[str, Scalar], limits: Limits) -> None:
    _check_parameters(parameters, limits)
    for name in parameters:
        if name in RESERVED or name.startswith(RESERVED_PREFIX):
            message = f"The parameter '{excerpt(name)}' is reserved and not supported here."
            raise InvalidRequest(message)
    request.priority = _natural("priority", parameters.get("priority", 0))
    request.timeout_us = _natural("timeout", parameters.get("timeout", 0))
    if _flag("binary_data_output", parameters):
        request.binary_default = not request.outputs
    request.parameters = {key: value for key, value in parameters.items() if key not in _FIELDS}


def _check_parameters(parameters: Mapping[str, Scalar], limits: Limits) -> None:
    if len(parameters) > limits.parameters:
        message = (
            f"There are {len(parameters)} parameters in one place; "
            f"at most {limits.parameters} may be."
        )
        raise InvalidRequest(message)
    for name, value in parameters.items():
        _check_name(name)
        if not isinstance(value, (str, bool)):
            _check_number(name, value)


def _check_number(name: str, value: float) -> None:
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            message = f"The parameter '{excerpt(name)}' is an integer of more than 64 bits."
            raise InvalidRequest(message)
    elif not isfinite(value):
        message = f"The parameter '{excerpt(name)}' must be a finite number."
        raise InvalidRequest(message)


def _refuse_shared_memory(parameters: Mapping[str, Scalar]) -> None:
    if not _SHARED_MEMORY.isdisjoint(parameters):
        message = "Shared memory is not offered here; send the tensor in the body."
        raise Unsupported(message)


def _check_name(name: str) -> None:
    if name.isprintable() and len(name) <= MAX_NAME:
        return
    if not _NAME.fullmatch(name):
        message = (
            f"The name '{excerpt(name)}' must have at most {MAX_NAME} characters "
            "and no control characters."
        )
        raise InvalidRequest(message)


def _natural(name: str, value: Scalar) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        message = f"The parameter '{name}' must be an integer that is not negative."
        raise InvalidRequest(message)
    return value


def _flag(name: str, parameters: Mapping[str, Scalar]) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        message = f"The parameter '{name}' must be true or false."
        raise InvalidRequest(message)
    return value


def _parse_raw(body: bytes, signature: Signature, limits: Limits) -> InferRequest:
    """Take the whole body as the only input; all outputs are answered in binary."""
    specs = signature.inputs
    if len(specs) != 1 or len(specs[0].shape) != 1 + signature.batched:
        message = "A body without JSON suits a model with one input of one dimension only."
        raise InvalidRequest(message)
    tensor, nonfinite = _read_raw(body, specs[0], limits)
    if signature.batched:
        tensor = tensor.reshape(1, *tensor.shape)
    return InferRequest({specs[0].name: tensor}, binary_default=True, has_nonfinite=nonfinite)


def _read_raw(body: bytes, spec: TensorSpec, limits: Limits) -> tuple[Array, bool]:
    """View the body as one row; of BYTES it is one element and has no length before it."""
    if spec.datatype == BYTES:
        check_element(spec.name, len(body), limits)
        return bytes_array([body], (1,)), False
    count = len(body) // DTYPES[spec.datatype].itemsize
    return read_span(spec.name, Span(body, 0, len(body)), spec.datatype, (count,), limits)


def _header_refusal(length: int, body_bytes: int) -> InvalidRequest:
    message = (
        f"The header Inference-Header-Content-Length says {length} bytes; "
        f"the body holds {body_bytes}."
    )
    return InvalidRequest(message)
