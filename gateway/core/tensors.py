"""Tensors as the Open Inference Protocol names them: datatypes, specs and the checks against them.

A shape's first dimension is the batch when a model is batched; `-1` stands for any extent.
Source of the datatype names: Open Inference Protocol v2, "Tensor Data Types".
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.core.errors import InvalidRequest, excerpt

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]

BYTES: Final = "BYTES"
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(object),
}
"""Every datatype that is spoken here; BYTES elements are Python `bytes` in an object array."""

NAMES: Final[Mapping[np.dtype[Any], str]] = {dtype: name for name, dtype in DTYPES.items()}
FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})
MAX_RANK: Final = 8

_MANY: Final = 4096
_KNOWN_SHAPES: Final = 1024
_HALF_SIZE: Final = 0x7FFF
_HALF_INFINITY: Final = 0x7C00


class TensorSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """What one input or output of a model looks like.

    `shape` holds -1 where any extent will do. `symbols` names those free dimensions (None where
    fixed or unnamed): a name that appears twice must have one extent in a request.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    symbols: tuple[str | None, ...] = ()


class Signature(Struct, frozen=True, forbid_unknown_fields=True):
    """All inputs and outputs of a version, in the model's order.

    `batched` says that every tensor shares a free first dimension by name or position, so rows
    of several requests may stand in one run (once that was verified by running it).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool


def check_inputs(signature: Signature, tensors: Tensors) -> None:
    """Refuse tensors that this signature does not allow, before any engine sees them.

    Raises:
        InvalidRequest: a missing, surplus or misshapen input, or one of another datatype.
    """
    specs = signature.inputs
    if len(tensors) != len(specs) or any(spec.name not in tensors for spec in specs):
        refuse_names(signature, tensors)
    symbols: dict[str, int] = {}
    for spec in specs:
        _check_input(spec, tensors[spec.name], symbols)
    if signature.batched:
        _check_rows(specs, tensors)


class InputCheck:
    """`check_inputs` for one signature, which knows the usual shapes by heart."""

    __slots__ = ("_dtypes", "_known", "_names", "_only", "_signature")

    def __init__(self, signature: Signature) -> None:
        """Know no shape yet."""
        self._signature = signature
        self._names = [spec.name for spec in signature.inputs]
        self._dtypes = [DTYPES[spec.datatype] for spec in signature.inputs]
        self._only = self._names[0] if len(self._names) == 1 else None
        self._known: dict[object, int] = {}

    def rows(self, tensors: Tensors) -> int:
        """Rows in a request: the shared first dimension, or 1 where the model is not batched.

        Raises:
            InvalidRequest: as `check_inputs`.
        """
        shapes: object = None
        if self._only is not None:
            tensor = tensors.get(self._only)
            if tensor is not None and len(tensors) == 1 and tensor.dtype is self._dtypes[0]:
                shapes = tensor.shape
        elif len(tensors) == len(self._names):
            found = [tensors.get(name) for name in self._names]
            shapes = self._shapes(found)
        rows = self._known.get(shapes)
        return self._learn(tensors, shapes) if rows is None else rows

    def _shapes(self, found: list[Array | None]) -> object:
        """The shapes of all inputs, None where a datatype is not the one that is asked for."""
        shapes = []
        for tensor, dtype in zip(found, self._dtypes, strict=True):
            if tensor is None or tensor.dtype is not dtype:
                return None
            shapes.append(tensor.shape)
        return tuple(shapes)

    def _learn(self, tensors: Tensors, shapes: object) -> int:
        check_inputs(self._signature, tensors)
        rows = rows_of(self._signature, tensors)
        if shapes is not None and len(self._known) < _KNOWN_SHAPES:
            self._known[shapes] = rows
        return rows


def has_nonfinite(tensor: Array) -> bool:
    """Whether a tensor is of floats and holds NaN or an infinity."""
    if tensor.dtype.kind != "f":
        return False
    if tensor.size < _MANY:
        return not np.isfinite(tensor).all()
    if (
        tensor.dtype == np.float16 and tensor.dtype.isnative
    ):  # processors compare halves as integers sooner
        return bool((tensor.view(np.uint16) & _HALF_SIZE).max() >= _HALF_INFINITY)
    # NaN is both the greatest and the least; over many elements this is cheaper than marking each.
    return not (np.isfinite(tensor.max()) and np.isfinite(tensor.min()))


def invalid_rows(outputs: Sequence[Array]) -> Collection[int]:
    """Which rows of a run's outputs, of as many rows each, hold NaN or an infinity."""
    rows: set[int] = set()
    for output in outputs:
        if has_nonfinite(output):
            marked = ~np.isfinite(output.reshape(len(output), -1)).all(axis=1)
            rows.update(np.flatnonzero(marked).tolist())
    return rows or ()


def rows_of(signature: Signature, tensors: Tensors) -> int:
    """Rows in a request: the shared first dimension, or 1 where the model is not batched."""
    if not signature.batched:
        return 1
    return int(tensors[signature.inputs[0].name].shape[0])


def refuse_names(signature: Signature, names: Collection[str]) -> NoReturn:
    """Say which input is missing, or else which is none, where the names are not the model's.

    Raises:
        InvalidRequest: always.
    """
    wanted = [spec.name for spec in signature.inputs]
    missing = [name for name in wanted if name not in names]
    if missing:
        message = f"Input '{excerpt(missing[0])}' is missing; the model needs {len(wanted)} inputs."
        raise InvalidRequest(message)
    surplus = next(name for name in names if name not in wanted)
    message = f"Input '{excerpt(surplus)}' is not an input of this model."
    raise InvalidRequest(message)


def _check_input(spec: TensorSpec, tensor: Array, symbols: dict[str, int]) -> None:
    if tensor.dtype != DTYPES[spec.datatype]:
        got = NAMES.get(tensor.dtype, "another datatype")
        message = f"Input '{spec.name}' must be {spec.datatype}; the request holds {got}."
        raise InvalidRequest(message)
    if tensor.ndim != len(spec.shape):
        message = (
            f"Input '{spec.name}' must have {len(spec.shape)} dimensions; "
            f"the request holds {tensor.ndim}."
        )
        raise InvalidRequest(message)
    for axis, (extent, wanted) in enumerate(zip(tensor.shape, spec.shape, strict=True)):
        if wanted not in (-1, extent):
            message = (
                f"Input '{spec.name}' must have extent {wanted} in dimension {axis}; "
                f"the request holds {extent}."
            )
            raise InvalidRequest(message)
    for symbol, extent in zip(spec.symbols, tensor.shape, strict=False):
        if symbol is not None and symbols.setdefault(symbol, extent) != extent:
            message = (
                f"Dimension '{excerpt(symbol)}' has extent {symbols[symbol]} in one input "
                f"and {extent} in '{spec.name}'."
            )
            raise InvalidRequest(message)


def _check_rows(specs: tuple[TensorSpec, ...], tensors: Tensors) -> None:
    rows = tensors[specs[0].name].shape[0]
    for spec in specs[1:]:
        if tensors[spec.name].shape[0] != rows:
            message = (
                f"Input '{spec.name}' holds {tensors[spec.name].shape[0]} rows; "
                f"'{specs[0].name}' holds {rows}."
            )
            raise InvalidRequest(message)
