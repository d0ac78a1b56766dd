"""Inference answers of the Open Inference Protocol v2 to their bytes.

Source: Open Inference Protocol v2, "Inference Response"; Triton Inference Server, "Binary Tensor
Data" and "Classification" extensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from gateway.core.errors import InvalidRequest, excerpt
from gateway.core.oip.answers import (
    Nonfinite,
    datatype_of,
    dump,
    little_endian,
    may_hide_nonfinite,
    spell,
    text_of,
)
from gateway.core.oip.binary import write_bytes
from gateway.core.oip.classification import REFUSED, top_classes
from gateway.core.oip.messages import InferResponse, Rendered, RequestedOutput
from gateway.core.tensors import BYTES, Array, Signature

Labels: TypeAlias = Mapping[str, Sequence[str]]
"""Class labels by output."""

_NO_LABELS: Final[Labels] = {}


def check_outputs(requested: tuple[RequestedOutput, ...], signature: Signature) -> None:
    """Refuse what a model cannot give, before it runs.

    Raises:
        InvalidRequest: the model has no such output, or no classes can be read from it.
    """
    for output in requested:
        spec = next((spec for spec in signature.outputs if spec.name == output.name), None)
        if spec is None:
            raise _missing(output.name)
        if output.classification and (
            spec.datatype in REFUSED or len(spec.shape) < 1 + signature.batched
        ):
            message = f"Output '{excerpt(output.name)}' has no classes to choose from."
            raise InvalidRequest(message)


def render_infer(
    response: InferResponse,
    requested: tuple[RequestedOutput, ...],
    binary_default: bool,  # noqa: FBT001
    nonfinite: Nonfinite,
    labels: Labels = _NO_LABELS,
) -> Rendered:
    """Encode an answer: a JSON part and, behind it, the outputs that are asked for in binary.

    Args:
        response: with every requested output.
        requested: empty for all outputs.
        binary_default: whether those are binary when `requested` is empty.
        nonfinite: how JSON says NaN and infinities.
        labels: class labels by output, for the classification extension.

    Raises:
        InvalidRequest: an output that is not there; EngineFailed: a value that cannot be said.
    """
    outputs: list[dict[str, Any]] = []
    tails: list[bytes] = []
    for name, tensor, is_binary in _choose(response, requested, binary_default, labels):
        datatype = datatype_of(name, tensor)
        stated: dict[str, Any] = {"name": name, "datatype": datatype, "shape": tensor.shape}
        if is_binary:
            tail = _binary(tensor, datatype)
            stated["parameters"] = {"binary_data_size": len(tail)}
            tails.append(tail)
        else:
            stated["data"] = _values(name, tensor, datatype)
        outputs.append(stated)
    document = _document(response, outputs)
    head = dump(document)
    if may_hide_nonfinite(head, nonfinite):
        head = _dump_spelled(document, nonfinite)
    if not any(tails):
        return Rendered(head)
    return Rendered(b"".join((head, *tails)), len(head))


def _choose(
    response: InferResponse,
    requested: tuple[RequestedOutput, ...],
    binary_default: bool,  # noqa: FBT001
    labels: Labels,
) -> Iterator[tuple[str, Array, bool]]:
    if not requested:
        for name, tensor in response.outputs.items():
            yield name, tensor, binary_default
        return
    for output in requested:
        name = output.name
        if name not in response.outputs:
            raise _missing(name)
        tensor = response.outputs[name]
        if output.classification:
            tensor = top_classes(name, tensor, output.classification, labels.get(name, ()))
        yield name, tensor, output.binary


def _document(response: InferResponse, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {} if response.id is None else {"id": response.id}
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    document["outputs"] = outputs
    return document


def _values(name: str, tensor: Array, datatype: str) -> Array | list[str]:
    if datatype == BYTES:
        return [text_of(name, element) for element in tensor.ravel().tolist()]
    return little_endian(tensor).ravel()


def _binary(tensor: Array, datatype: str) -> bytes:
    if datatype == BYTES:
        return write_bytes(tensor.ravel().tolist())
    return little_endian(tensor).tobytes()


def _dump_spelled(document: dict[str, Any], nonfinite: Nonfinite) -> bytes:
    for output in document["outputs"]:
        values = output.get("data")
        if isinstance(values, np.ndarray):
            output["data"] = spell(output["name"], values, nonfinite)
    return dump(document)


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Output '{excerpt(name)}' is not an output of this model.")
