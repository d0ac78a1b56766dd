"""The V1 predict form of TensorFlow Serving and KServe, read by the model's own signature.

A row request is `{"instances": [...]}` and is answered with `predictions`; a columnar one is
`{"inputs": ...}`, answered with `outputs`. With one input (or output) values stand bare, with
several they stand in objects by name. Bytes may be `{"b64": "<text>"}`.

Source: TensorFlow Serving, "RESTful API", Predict API.
"""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar

from msgspec import UNSET, MsgspecError, Raw, Struct, UnsetType, convert
from msgspec.json import Decoder

from gateway.core.errors import InvalidRequest
from gateway.core.oip.answers import (
    Nonfinite,
    datatype_of,
    dump,
    little_endian,
    spell,
)
from gateway.core.oip.binary import bytes_of
from gateway.core.oip.documents import check_size, read_document, refusal
from gateway.core.oip.elements import read_nested
from gateway.core.oip.messages import InferRequest, InferResponse, Limits
from gateway.core.tensors import BYTES, Array, Signature, TensorSpec, refuse_names

D = TypeVar("D")
T = TypeVar("T")

SIGNATURE_NAME: Final = "serving_default"

_DEFAULTS: Final = Limits()


class _Predict(Struct, Generic[D]):
    instances: D | UnsetType = UNSET
    inputs: D | UnsetType = UNSET
    signature_name: str | None = None


_DECODER: Final[Decoder[_Predict[Any]]] = Decoder(_Predict[Raw])
_LIST: Final[Decoder[list[Any]]] = Decoder(list[Raw])
_ROWS: Final[Decoder[list[dict[str, Any]]]] = Decoder(list[dict[str, Raw]])
_COLUMNS: Final[Decoder[dict[str, Any]]] = Decoder(dict[str, Raw])


def parse_predict(
    body: bytes, signature: Signature, limits: Limits = _DEFAULTS
) -> tuple[InferRequest, bool]:
    """Decode a predict request, and say whether it is columnar.

    Rows are stacked along the first dimension of every input.

    Raises:
        InvalidRequest: not such a request, or a value that the signature does not allow;
            TooLarge: beyond the limits.
    """
    check_size(body, limits)
    stated = read_document(body, _DECODER, _Predict[Any], limits)
    if stated.signature_name not in (None, SIGNATURE_NAME):
        message = f"The only 'signature_name' is '{SIGNATURE_NAME}'."
        raise InvalidRequest(message)
    if (stated.instances is UNSET) == (stated.inputs is UNSET):
        message = "A predict request holds either 'instances' or 'inputs'."
        raise InvalidRequest(message)
    is_columnar = stated.instances is UNSET
    if is_columnar:
        sources = _columns(stated.inputs, signature)
    else:
        sources = _rows(stated.instances, signature)
    request = InferRequest({})
    for spec in signature.inputs:
        read = read_nested(spec.name, sources[spec.name], spec.datatype, spec.shape, limits)
        request.tensors[spec.name], nonfinite = read
        request.nonfinite = nonfinite or request.nonfinite
    return request, is_columnar


def render_predict(response: InferResponse, columnar: bool, nonfinite: Nonfinite) -> bytes:  # noqa: FBT001
    """Encode an answer in the form of its request.

    Raises:
        InvalidRequest: rows are asked for and the outputs have none in common;
            EngineFailed: a value that cannot be said.
    """
    outputs = response.outputs
    if columnar:
        columns = {name: _spelled(name, tensor, nonfinite) for name, tensor in outputs.items()}
        return dump({"outputs": _alone(columns)})
    count = _count_rows(outputs)
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        return dump({"predictions": _spelled(name, tensor, nonfinite)})
    return dump(
        {
            "predictions": [
                {
                    name: _spelled(name, tensor[row, ...], nonfinite)
                    for name, tensor in outputs.items()
                }
                for row in range(count)
            ]
        }
    )


def _rows(source: object, signature: Signature) -> dict[str, object]:
    """Give each input its rows, as one undecoded list."""
    specs = signature.inputs
    if any(not spec.shape for spec in specs):
        message = "The model has an input without dimensions; send 'inputs' instead of 'instances'."
        raise InvalidRequest(message)
    if len(specs) == 1 and not _is_named(_first(source), specs[0]):
        return {specs[0].name: source}
    rows = _decode(source, _ROWS, list[dict[str, Any]])
    for row in rows:
        _check_names(row, signature)
    return {spec.name: _stack(source, [row[spec.name] for row in rows]) for spec in specs}


def _columns(source: object, signature: Signature) -> dict[str, object]:
    specs = signature.inputs
    if len(specs) == 1 and not _is_named(source, specs[0]):
        return {specs[0].name: source}
    columns: dict[str, object] = _decode(source, _COLUMNS, dict[str, Any])
    _check_names(columns, signature)
    return columns


def _first(source: object) -> object:
    """The first row, when there may be one that is an object; None otherwise."""
    if isinstance(source, Raw):
        if b"{" not in bytes(source):
            return None
        source = _decode(source, _LIST, list[Any])
    return source[0] if isinstance(source, list) and source else None


def _is_named(source: object, spec: TensorSpec) -> bool:
    """Whether a value is an object with inputs in it, and not a lone `{"b64": ...}`."""
    if isinstance(source, Raw):
        if not bytes(source).lstrip().startswith(b"{"):
            return False
        source = _decode(source, _COLUMNS, dict[str, Any])
    return isinstance(source, dict) and not (spec.datatype == BYTES and source.keys() == {"b64"})


def _decode(source: object, decoder: Decoder[T], loose: type[T]) -> T:
    try:
        return decoder.decode(source) if isinstance(source, Raw) else convert(source, loose)
    except (MsgspecError, ValueError) as error:
        raise refusal(error) from None


def _check_names(values: Mapping[str, object], signature: Signature) -> None:
    if values.keys() != {spec.name for spec in signature.inputs}:
        refuse_names(signature, values)


def _stack(source: object, cells: list[object]) -> object:
    """One list of the cells, undecoded when they are."""
    if not isinstance(source, Raw):
        return cells
    return Raw(b"[" + b",".join(bytes(cell) for cell in cells if isinstance(cell, Raw)) + b"]")


def _count_rows(outputs: Mapping[str, Array]) -> int:
    counts: set[int] = {tensor.shape[0] if tensor.ndim else -1 for tensor in outputs.values()}
    if len(counts) != 1 or -1 in counts:
        message = "The outputs have no rows in common; send 'inputs' instead of 'instances'."
        raise InvalidRequest(message)
    return counts.pop()


def _alone(columns: dict[str, object]) -> object:
    return next(iter(columns.values())) if len(columns) == 1 else columns


def _spelled(name: str, tensor: Array, nonfinite: Nonfinite) -> object:
    if datatype_of(name, tensor) == BYTES:
        return _texts(tensor.tolist())
    return spell(name, little_endian(tensor), nonfinite)


def _texts(nested: object) -> object:
    if isinstance(nested, list):
        return [_texts(element) for element in nested]
    content = bytes_of(nested)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"b64": b64encode(content).decode()}
