"""Tensor elements from JSON, strictly by datatype; flat in row-major order, or nested to the shape.

A number must be one that the datatype can hold: no text, no bool, no null, no fraction in an
integer, no overflow. BOOL takes true, false, 0 and 1. BYTES takes text, kept as its UTF-8.
A `source` is either `msgspec.Raw` or values that were decoded already.
"""

import struct
from base64 import b64decode
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from math import isfinite, prod
from typing import Any, Final, TypeAlias

import numpy as np
from msgspec import MsgspecError, Raw, Struct, convert
from msgspec.json import Decoder

from gateway.core.errors import InvalidRequest, TooLarge, excerpt
from gateway.core.oip.documents import read_values, refusal
from gateway.core.oip.messages import Limits
from gateway.core.tensors import BYTES, DTYPES, FLOATS, MAX_RANK, Array

Nested: TypeAlias = Any
"""Elements in lists in lists, as deep as the rank; an element alone where the rank is 0."""


class Base64(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes in the V1 form, `{"b64": "<text>"}`."""

    b64: str


CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""How `struct` writes one element; it refuses what does not fit."""

_TYPES: Final[dict[str, Any]] = {
    "BOOL": bool | int,
    BYTES: str,
    **{name: float if name in FLOATS else int for name in CODES},
}


def count_of(where: str, shape: Sequence[int], limits: Limits) -> int:
    """Multiply the extents of a stated shape, exactly.

    Raises:
        InvalidRequest: a negative extent, too many dimensions, or an extent beyond all bounds.
    """
    if len(shape) > MAX_RANK:
        message = (
            f"Input '{excerpt(where)}' has {len(shape)} dimensions; at most {MAX_RANK} may be."
        )
        raise InvalidRequest(message)
    if shape and min(shape) < 0:
        message = f"Input '{excerpt(where)}' has a negative extent in its shape."
        raise InvalidRequest(message)
    count = prod(shape)
    if count == 0 and prod(filter(None, shape)) > limits.elements:
        message = f"Input '{excerpt(where)}' is empty and still has an extent beyond all bounds."
        raise InvalidRequest(message)
    return count


def read_tensor(
    where: str, source: object, datatype: str, shape: Sequence[int], limits: Limits
) -> tuple[Array, bool]:
    """Read the elements of a tensor whose shape is stated, and whether one is not finite.

    Raises:
        InvalidRequest: an element that the datatype does not allow, or another number of them.
    """
    count = count_of(where, shape, limits)
    try:
        flat = _read_flat(where, source, datatype, shape)
    except (MsgspecError, ValueError) as error:
        if not _overflows(error, source, datatype):
            raise _element_refusal(where, datatype, error) from None
        return read_tensor(where, _reread(source), datatype, shape, limits)
    if len(flat) != count:
        message = (
            f"Input '{excerpt(where)}' holds {len(flat)} elements; its shape asks for "
            f"{excerpt(str(count))}."
        )
        raise InvalidRequest(message)
    return _pack(where, flat, datatype, shape, limits), _has_nonfinite(flat, source, datatype)


def read_nested(
    where: str, source: object, datatype: str, like: Sequence[int], limits: Limits
) -> tuple[Array, bool]:
    """Read a tensor that is nested to the rank of `like`; its shape is that of the nesting.

    BYTES elements may be `{"b64": ...}`. Free extents of an empty tensor become 0.

    Raises:
        InvalidRequest: an element that the datatype does not allow, or rows of unlike length.
    """
    try:
        nested = _decode(source, datatype, len(like), encoded=True)
    except (MsgspecError, ValueError) as error:
        if not _overflows(error, source, datatype):
            raise _element_refusal(where, datatype, error) from None
        return read_nested(where, _reread(source), datatype, like, limits)
    shape: list[int] = []
    level = nested
    for extent in like:
        shape.append(len(level) if level is not None else max(extent, 0))
        level = level[0] if level else None
    count_of(where, shape, limits)
    flat = _flatten(where, nested, shape)
    return _pack(where, flat, datatype, shape, limits), _has_nonfinite(flat, source, datatype)


def bytes_array(elements: list[bytes], shape: Sequence[int]) -> Array:
    """Stand BYTES elements in an object array, never in one as wide as its longest element."""
    return np.array(elements, dtype=object).reshape(shape)


def check_element(where: str, size: int, limits: Limits) -> None:
    """Refuse a BYTES element of `size` bytes that is too long."""
    if size > limits.element_bytes:
        message = (
            f"Input '{excerpt(where)}' holds an element of {size} bytes; "
            f"at most {limits.element_bytes} may be."
        )
        raise TooLarge(message)


@cache
def reader_of(datatype: str, levels: int, *, encoded: bool = False) -> tuple[Any, Decoder[Any]]:
    """The type of elements in lists in lists, that many levels deep, and its decoder.

    Where `encoded`, BYTES may be `{"b64": ...}`.
    """
    kind = str | Base64 if encoded and datatype == BYTES else _TYPES[datatype]
    for _ in range(levels):
        kind = list[kind]  # type: ignore[valid-type]
    return kind, Decoder(kind)


@lru_cache(maxsize=512)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def _decode(source: object, datatype: str, levels: int, *, encoded: bool = False) -> Nested:
    kind, decoder = reader_of(datatype, levels, encoded=encoded)
    if isinstance(source, Raw):
        return decoder.decode(source)
    return convert(source, kind)


def _read_flat(where: str, source: object, datatype: str, shape: Sequence[int]) -> list[Any]:
    try:
        flat: list[Any] = _decode(source, datatype, 1)
        return flat
    except MsgspecError:
        if len(shape) == 1 or not _is_nested(source, len(shape)):
            raise
    return _flatten(where, _decode(source, datatype, len(shape)), shape)


def _is_nested(source: object, rank: int) -> bool:
    """Whether data that are no flat list look nested to the rank: bare, or lists in a list."""
    if isinstance(source, Raw):
        text = bytes(source).lstrip()
        if rank == 0:
            return not text.startswith(b"[")
        return text.startswith(b"[") and text[1:].lstrip().startswith(b"[")
    if rank == 0:
        return not isinstance(source, list)
    return isinstance(source, list) and bool(source) and isinstance(source[0], list)


def _flatten(where: str, nested: Nested, shape: Sequence[int]) -> list[Any]:
    level = [nested]
    for axis, extent in enumerate(shape):
        if any(len(row) != extent for row in level):
            message = (
                f"Input '{excerpt(where)}' has a row in dimension {axis} that does not hold "
                f"{excerpt(str(extent))} elements."
            )
            raise InvalidRequest(message)
        level = list(chain.from_iterable(level))
    return level


def _overflows(error: Exception, source: object, datatype: str) -> bool:
    """Whether a decoder refused a number such as 1e999, which FP64 reads as an infinity."""
    return (
        datatype == "FP64"
        and isinstance(source, Raw)
        and str(error).startswith("Number out of range")
    )


def _reread(source: object) -> object:
    return read_values(bytes(source)) if isinstance(source, Raw) else source


def _has_nonfinite(flat: list[Any], source: object, datatype: str) -> bool:
    """Undecoded JSON holds finite numbers only: its decoder refuses any other."""
    if isinstance(source, Raw) or datatype not in FLOATS:
        return False
    return not all(map(isfinite, flat))


def _pack(
    where: str, flat: list[Any], datatype: str, shape: Sequence[int], limits: Limits
) -> Array:
    if len(flat) > limits.elements:
        message = (
            f"Input '{excerpt(where)}' holds {len(flat)} elements; "
            f"at most {limits.elements} may be."
        )
        raise TooLarge(message)
    if datatype == BYTES:
        return bytes_array([_encode(where, element, limits) for element in flat], shape)
    try:
        packed = (
            bytes(flat) if datatype == "BOOL" else _packer(CODES[datatype], len(flat)).pack(*flat)
        )
    except (struct.error, OverflowError, ValueError):
        raise _range_refusal(where, datatype) from None
    if datatype == "BOOL" and packed and max(packed) > 1:
        raise _range_refusal(where, datatype)
    return np.ndarray(shape, DTYPES[datatype], packed)


def _encode(where: str, element: str | Base64, limits: Limits) -> bytes:
    try:
        if isinstance(element, str):
            content = element.encode()
        else:
            content = b64decode(element.b64, validate=True)
    except ValueError:
        message = f"Input '{excerpt(where)}' holds text that is neither Unicode nor valid base64."
        raise InvalidRequest(message) from None
    check_element(where, len(content), limits)
    return content


def _element_refusal(where: str, datatype: str, error: Exception) -> InvalidRequest:
    said = str(refusal(error)).removeprefix("The request is not valid: ")
    return InvalidRequest(f"Input '{excerpt(where)}' does not hold {datatype} elements: {said}")


def _range_refusal(where: str, datatype: str) -> InvalidRequest:
    return InvalidRequest(
        f"Input '{excerpt(where)}' holds a number that is out of range for {datatype}."
    )
