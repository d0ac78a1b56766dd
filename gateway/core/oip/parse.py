"""Inference requests of the Open Inference Protocol v2 from their bytes.

Source: Open Inference Protocol v2, "Inference Request"; Triton Inference Server, "Binary Tensor
Data", "Parameters", "Schedule Policy" and "Classification" extensions.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Raw
from msgspec.json import Decoder

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.oip.binary import Span, read_span
from gateway.core.oip.documents import check_size, read_document
from gateway.core.oip.elements import bytes_array, check_element, read_tensor
from gateway.core.oip.messages import InferRequest, Limits
from gateway.core.oip.pieces import Region, read_region
from gateway.core.oip.stated import (
    StatedInput,
    StatedRequest,
    check_id,
    check_input,
    check_name,
    read_outputs,
    read_parameters,
)
from gateway.core.tensors import BYTES, DTYPES, Array, Signature, TensorSpec

_DEFAULTS: Final = Limits()
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
DECODER: Final[Decoder[StatedRequest[Any]]] = Decoder(StatedRequest[Raw])


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
    stated = read_document(head, DECODER, StatedRequest[Any], limits)
    return understand(stated, Span(body, len(head), len(body)), signature, limits)


def understand(
    stated: StatedRequest[Any], rest: Span, signature: Signature, limits: Limits
) -> InferRequest:
    """Give a stated request its meaning.

    Args:
        stated: with data that are `msgspec.Raw`, values, or a `Region` of text.
        rest: the body from the end of its JSON part on.
        signature: of the model that is asked.
        limits: on sizes and counts.

    Raises:
        InvalidRequest: it has none; TooLarge: beyond the limits; Unsupported: shared memory.
    """
    check_id(stated.id)
    request = InferRequest({}, stated.id)
    _read_inputs(request, stated.inputs, rest, signature, limits)
    if stated.outputs:
        request.outputs = read_outputs(stated.outputs, signature, limits)
    if stated.parameters:
        read_parameters(request, stated.parameters, limits)
    return request


def _read_inputs(
    request: InferRequest,
    inputs: list[StatedInput[Any]],
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
        check_name(name)
        size = check_input(tensor, len(body) - at, limits)
        if size is None:
            data = tensor.data
            datatype, shape = tensor.datatype, tensor.shape
            if isinstance(data, Region):
                read, nonfinite = read_region(name, data, datatype, shape, limits)
            else:
                read, nonfinite = read_tensor(name, data, datatype, shape, limits)
            request.nonfinite = nonfinite or request.nonfinite
        else:
            read = read_span(name, Span(body, at, size), tensor.datatype, tensor.shape, limits)
            request.nonfinite = request.nonfinite or None
            at += size
        request.tensors[name] = read
    if at != len(body):
        message = f"The body holds {len(body) - at} bytes after the last input."
        raise InvalidRequest(message)


def _parse_raw(body: bytes, signature: Signature, limits: Limits) -> InferRequest:
    """Take the whole body as the only input; all outputs are answered in binary."""
    specs = signature.inputs
    if len(specs) != 1 or len(specs[0].shape) != 1 + signature.batched:
        message = "A body without JSON suits a model with one input of one dimension only."
        raise InvalidRequest(message)
    tensor = _read_raw(body, specs[0], limits)
    if signature.batched:
        tensor = tensor.reshape(1, *tensor.shape)
    return InferRequest({specs[0].name: tensor}, binary_default=True, nonfinite=None)


def _read_raw(body: bytes, spec: TensorSpec, limits: Limits) -> Array:
    """View the body as one row; of BYTES it is one element and has no length before it."""
    if spec.datatype == BYTES:
        check_element(spec.name, len(body), limits)
        return bytes_array([body], (1,))
    count = len(body) // DTYPES[spec.datatype].itemsize
    return read_span(spec.name, Span(body, 0, len(body)), spec.datatype, (count,), limits)


def _header_refusal(length: int, body_bytes: int) -> InvalidRequest:
    message = (
        f"The header Inference-Header-Content-Length says {length} bytes; "
        f"the body holds {body_bytes}."
    )
    return InvalidRequest(message)
