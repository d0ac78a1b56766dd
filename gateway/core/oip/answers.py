"""Output tensors as JSON text, and the one way to spell what strict JSON cannot."""

from math import isnan
from typing import Final, Literal, TypeAlias

import numpy as np
import orjson

from gateway.core.errors import EngineFailed, excerpt
from gateway.core.oip.binary import bytes_of
from gateway.core.tensors import NAMES, Array, has_nonfinite

Nonfinite: TypeAlias = Literal["literal", "null", "error"]
"""How a NaN or an infinity is written in JSON: as a literal that strict readers refuse, as null,
or not at all."""

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
_NULL: Final = b"null"


def datatype_of(name: str, tensor: Array) -> str:
    """The protocol's name for the elements of an output.

    Raises:
        EngineFailed: the protocol has none.
    """
    datatype = NAMES.get(tensor.dtype) or NAMES.get(tensor.dtype.newbyteorder("<"))
    if datatype is None:
        message = f"The model answered '{excerpt(name)}' in a datatype that the protocol lacks."
        raise EngineFailed(message)
    return datatype


def little_endian(tensor: Array) -> Array:
    """The same tensor with its bytes in the order that JSON writers and the wire expect."""
    return tensor if tensor.dtype.isnative else tensor.astype(tensor.dtype.newbyteorder("<"))


def dump(document: object) -> bytes:
    """Write JSON; NumPy arrays become lists, in the shortest text that reads back the same.

    Raises:
        EngineFailed: something that JSON cannot say.
    """
    try:
        return orjson.dumps(document, option=_OPTIONS)
    except TypeError:
        message = "The answer holds a value that JSON cannot say."
        raise EngineFailed(message) from None


def may_hide_nonfinite(text: bytes, nonfinite: Nonfinite) -> bool:
    """Whether text written by `dump` may hold a null that the policy forbids."""
    return nonfinite != "null" and _NULL in text


def spell(name: str, tensor: Array, nonfinite: Nonfinite) -> object:
    """Give what `dump` writes for a numeric tensor, with NaN and infinities by the policy.

    Raises:
        EngineFailed: the policy is "error" and there is one.
    """
    plain = np.array(tensor, order="C", copy=None)
    values = plain if plain.ndim else _scalar(plain)
    if tensor.dtype.kind != "f" or nonfinite == "null" or not has_nonfinite(tensor):
        return values
    if nonfinite == "error":
        message = (
            f"Output '{excerpt(name)}' holds a value that is not finite; JSON cannot say it here, "
            "so ask for binary output."
        )
        raise EngineFailed(message)
    first, *pieces = dump(values).split(_NULL)
    odd = plain[~np.isfinite(plain)].tolist()  # row-major, as the text
    parts = (_literal(value) + piece for value, piece in zip(odd, pieces, strict=True))
    return orjson.Fragment(first + b"".join(parts))


def _scalar(tensor: Array) -> object:
    """A single number as JSON writers know it: floats of NumPy's own kinds, all else Python's.

    NumPy has integer types that differ in name only, and not all of them are known to writers.
    """
    return tensor[()] if tensor.dtype.kind == "f" else tensor.item()


def text_of(name: str, element: object) -> str:
    """The text of one BYTES element.

    Raises:
        EngineFailed: it is not UTF-8.
    """
    try:
        return bytes_of(element).decode()
    except UnicodeDecodeError:
        message = (
            f"Output '{excerpt(name)}' holds bytes that are not UTF-8; "
            "JSON cannot say them, so ask for binary output."
        )
        raise EngineFailed(message) from None


def _literal(value: float) -> bytes:
    if isnan(value):
        return b"NaN"
    return b"Infinity" if value > 0 else b"-Infinity"
