"""An inference request as its JSON states it, and the checks on its small parts.

Source: Open Inference Protocol v2, "Inference Request"; Triton Inference Server, "Binary Tensor
Data", "Parameters", "Schedule Policy" and "Classification" extensions.
"""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final, Generic, TypeVar

from msgspec import UNSET, Struct, UnsetType

from gateway.core.errors import InvalidRequest, Unsupported, excerpt
from gateway.core.oip.messages import InferRequest, Limits, RequestedOutput
from gateway.core.targeting import Scalar
from gateway.core.tensors import DTYPES, Signature

D = TypeVar("D")

MAX_NAME: Final = 256
RESERVED: Final = frozenset({"sequence_id", "sequence_start", "sequence_end", "headers"})
RESERVED_PREFIX: Final = "triton_"

_ID: Final = re.compile(r"[!-~]{1,128}")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{0,256}")
_SHARED_MEMORY: Final = frozenset(
    {"shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"}
)
_FIELDS: Final = frozenset({"priority", "timeout", "binary_data_output"})


class StatedInput(Struct, Generic[D], gc=False):
    """One input; `data` is left out where the elements follow the JSON in binary."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: D | UnsetType = UNSET
    parameters: dict[str, Scalar] | None = None


class StatedOutput(Struct, gc=False):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Scalar] | None = None


class KnownOutput(StatedOutput, gc=False, forbid_unknown_fields=True):
    """One output that is asked for, and nothing else."""


class StatedRequest(Struct, Generic[D]):
    """A whole request, with data of any kind `D`."""

    inputs: list[StatedInput[D]]
    id: str | None = None
    parameters: dict[str, Scalar] | None = None
    outputs: list[StatedOutput] | None = None


class KnownInput(StatedInput[D], Generic[D], gc=False, forbid_unknown_fields=True):
    """One input that holds nothing else."""


class KnownRequest(Struct, Generic[D], gc=False, forbid_unknown_fields=True):
    """A request that holds nothing else, so it is no deeper than its type.

    `model_name` is a key that one client adds and nobody reads.
    """

    inputs: list[KnownInput[D]]
    id: str | None = None
    parameters: dict[str, Scalar] | None = None
    outputs: list[KnownOutput] | None = None
    model_name: str | None = None


def check_id(id_: str | None) -> None:
    """Refuse an id that could not stand in a log line or a header.

    Raises:
        InvalidRequest: not 1 to 128 printable ASCII characters.
    """
    if id_ is not None and not _ID.fullmatch(id_):
        message = "The 'id' must be 1 to 128 printable ASCII characters without spaces."
        raise InvalidRequest(message)


def check_name(name: str) -> None:
    """Refuse the name of an input, output or parameter that could forge a log line.

    Raises:
        InvalidRequest: too long, or with control characters.
    """
    if name.isprintable() and len(name) <= MAX_NAME:
        return
    if not _NAME.fullmatch(name):
        message = (
            f"The name '{excerpt(name)}' must have at most {MAX_NAME} characters "
            "and no control characters."
        )
        raise InvalidRequest(message)


def check_input(tensor: StatedInput[D], left: int, limits: Limits) -> int | None:
    """Check where an input's elements are; its size in bytes, or None when they are JSON.

    Args:
        tensor: as stated.
        left: bytes after the JSON part that no input before it took.
        limits: `parameters` is used.

    Raises:
        InvalidRequest: nowhere, in two places, or in more bytes than are left;
            Unsupported: in shared memory.
    """
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


def read_outputs(
    outputs: Sequence[StatedOutput], signature: Signature, limits: Limits
) -> tuple[RequestedOutput, ...]:
    """Read which outputs are asked for, and how.

    Raises:
        InvalidRequest: more than the model gives, one twice, or a mistyped parameter;
            Unsupported: shared memory.
    """
    if len(outputs) > min(len(signature.outputs), limits.tensors):
        message = (
            f"The model gives {len(signature.outputs)} outputs; the request asks for "
            f"{len(outputs)}."
        )
        raise InvalidRequest(message)
    requested: dict[str, RequestedOutput] = {}
    for output in outputs:
        check_name(output.name)
        if output.name in requested:
            message = f"Output '{excerpt(output.name)}' is asked for twice."
            raise InvalidRequest(message)
        requested[output.name] = _read_output(output, limits)
    return tuple(requested.values())


def read_parameters(request: InferRequest, parameters: dict[str, Scalar], limits: Limits) -> None:
    """Check the request's parameters and set the fields that they stand for.

    Raises:
        InvalidRequest: too many, reserved or mistyped ones.
    """
    _check_parameters(parameters, limits)
    for name in parameters:
        if name in RESERVED or name.startswith(RESERVED_PREFIX):
            message = f"The parameter '{excerpt(name)}' is reserved and not supported here."
            raise InvalidRequest(message)
    if _FIELDS.isdisjoint(parameters):
        request.parameters = parameters
        return
    request.priority = _natural("priority", parameters.get("priority", 0))
    request.timeout_us = _natural("timeout", parameters.get("timeout", 0))
    if _flag("binary_data_output", parameters):
        request.binary_default = not request.outputs
    request.parameters = {key: value for key, value in parameters.items() if key not in _FIELDS}


def _read_output(output: StatedOutput, limits: Limits) -> RequestedOutput:
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


def _check_parameters(parameters: Mapping[str, Scalar], limits: Limits) -> None:
    if len(parameters) > limits.parameters:
        message = (
            f"There are {len(parameters)} parameters in one place; "
            f"at most {limits.parameters} may be."
        )
        raise InvalidRequest(message)
    for name, value in parameters.items():
        check_name(name)
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
