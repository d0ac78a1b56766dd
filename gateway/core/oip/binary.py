"""Tensors as bytes: little-endian, row-major, packed; each BYTES element after its length.

Source: Triton Inference Server, "Binary Tensor Data Extension".
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from gateway.core.errors import EngineFailed, InvalidRequest, TooLarge, excerpt
from gateway.core.oip.elements import bytes_array, check_element, count_of
from gateway.core.oip.messages import Limits
from gateway.core.tensors import BYTES, DTYPES, Array

_LENGTH: Final = struct.Struct("<I")


class Span(NamedTuple):
    """`size` bytes of a body from `start` on, which hold one tensor."""

    body: bytes
    start: int
    size: int


def read_span(where: str, span: Span, datatype: str, shape: Sequence[int], limits: Limits) -> Array:
    """View a span as a tensor, copied where unaligned. Floats may be NaN or infinite.

    A view is read-only and keeps the body alive.

    Raises:
        InvalidRequest: another size than the shape asks for, or an element that is not allowed.
    """
    count = count_of(where, shape, limits)
    if datatype == BYTES:
        return _read_bytes(where, span, shape, limits)
    dtype = DTYPES[datatype]
    if span.size != count * dtype.itemsize:
        message = (
            f"Input '{excerpt(where)}' holds {span.size} bytes; its shape asks for "
            f"{excerpt(str(count * dtype.itemsize))}."
        )
        raise InvalidRequest(message)
    _check_count(where, count, limits)
    if datatype == "BOOL":
        return _read_bools(where, span, shape)
    tensor: Array = np.ndarray(shape, dtype, span.body, span.start)
    return tensor if tensor.flags.aligned else tensor.copy()


def write_bytes(elements: list[bytes | str]) -> bytes:
    """Write BYTES elements, each after its length.

    Raises:
        EngineFailed: an element that is neither bytes nor Unicode text.
    """
    parts: list[bytes] = []
    for element in elements:
        content = bytes_of(element)
        parts += (_LENGTH.pack(len(content)), content)
    return b"".join(parts)


def bytes_of(element: object) -> bytes:
    """The bytes of one BYTES element that a model gave.

    Raises:
        EngineFailed: neither bytes nor Unicode text.
    """
    if isinstance(element, bytes):
        return element
    try:
        if isinstance(element, str):
            return element.encode()
    except UnicodeEncodeError:
        pass
    message = "The model answered a BYTES element that is neither bytes nor Unicode text."
    raise EngineFailed(message)


def _read_bools(where: str, span: Span, shape: Sequence[int]) -> Array:
    """Read BOOL bytes; any other than 0 and 1 would be undefined in compiled code."""
    octets: Array = np.ndarray(shape, np.uint8, span.body, span.start)
    if octets.size and int(octets.max()) > 1:
        message = f"Input '{excerpt(where)}' holds a BOOL byte that is neither 0 nor 1."
        raise InvalidRequest(message)
    return octets.view(np.bool_)


def _read_bytes(where: str, span: Span, shape: Sequence[int], limits: Limits) -> Array:
    count = count_of(where, shape, limits)
    if span.size < count * _LENGTH.size:
        raise _count_refusal(where, count)
    _check_count(where, count, limits)
    body, at, end = span.body, span.start, span.start + span.size
    elements: list[bytes] = []
    for _ in range(count):
        start = at + _LENGTH.size
        size = _LENGTH.unpack_from(body, at)[0] if start <= end else 0
        if start + size > end:
            message = f"Input '{excerpt(where)}' holds a BYTES element longer than what is left."
            raise InvalidRequest(message)
        check_element(where, size, limits)
        at = start + size
        elements.append(body[start:at])
    if at != end:
        raise _count_refusal(where, count)
    return bytes_array(elements, shape)


def _check_count(where: str, count: int, limits: Limits) -> None:
    if count > limits.elements:
        message = (
            f"Input '{excerpt(where)}' holds {count} elements; at most {limits.elements} may be."
        )
        raise TooLarge(message)


def _count_refusal(where: str, count: int) -> InvalidRequest:
    message = (
        f"Input '{excerpt(where)}' does not hold the {excerpt(str(count))} BYTES elements "
        "that its shape asks for."
    )
    return InvalidRequest(message)
