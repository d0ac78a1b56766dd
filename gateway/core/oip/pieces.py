"""Long JSON data, read piece by piece.

A decoder holds the interpreter from its first byte to its last. So the elements of a long
request are cut out of its text, which leaves a short document, and are decoded some thousands
at a time; between two pieces other threads may run. A piece starts and ends at a comma and is
closed like the whole: the brackets that are open at a cut are opened again before what follows.
What is not plainly a list of numbers is not read here at all.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from math import isfinite
from typing import Any, Final

import numpy as np
from msgspec import MsgspecError, Raw, Struct, convert

from gateway.core.errors import GatewayError
from gateway.core.oip.documents import read_values
from gateway.core.oip.elements import CODES, count_of, reader_of
from gateway.core.oip.messages import Limits
from gateway.core.oip.stated import StatedInput
from gateway.core.tensors import DTYPES, FLOATS, Array

PIECE: Final = 32 * 1024
"""Bytes of text that one call decodes, up to the comma before them."""

MARK: Final = b'"\\u0000elements '
"""Stands in the short document where data were cut out; no other text may hold it."""

UNREADABLE: Final = (GatewayError, MsgspecError, OverflowError, ValueError, struct.error)
"""What reading in pieces may raise; it does not say what is wrong, or not in the right order."""

_START: Final = re.compile(rb'"data"[ \t\r\n]{0,64}:[ \t\r\n]{0,64}\[')
_NESTED: Final = re.compile(rb"\[[ \t\r\n]{0,64}\[")
_BLANKS: Final = b" \t\r\n"
_SHORT: Final = 1024
"""Bytes of data that are not worth cutting out."""

_MARGIN: Final = 256
"""Bytes behind the elements that may be blank."""


class Region(Struct, frozen=True, gc=False):
    """The elements of one input: `text` from `start` to `end`, both brackets included.

    Where `literals`, NaN or Infinity may stand among them.
    """

    text: bytes
    start: int
    end: int
    piece_bytes: int
    literals: bool


def cut(text: bytes, most: int, piece_bytes: int = PIECE) -> tuple[bytes, list[Region]]:
    """Cut long data out of a request.

    Args:
        text: of the whole request.
        most: places to cut at.
        piece_bytes: that one call may decode.

    Returns:
        A short document with a mark where data stood, and those data in order; data that are
        short themselves stay where they are.

    Raises:
        ValueError: it cannot be told where they end, or there are too many.
    """
    kept: list[bytes] = []
    regions: list[Region] = []
    done = 0
    for start, end in _places(text):
        if end - start <= min(piece_bytes, _SHORT):
            continue
        if len(regions) == most:
            raise ValueError
        kept += (text[done:start], MARK + b'%d"' % len(regions))
        literals = text.find(b"N", start, end) >= 0 or text.find(b"I", start, end) >= 0
        regions.append(Region(text, start, end, piece_bytes, literals))
        done = end
    kept.append(text[done:])
    if any(MARK in piece for piece in kept[::2]):
        raise ValueError
    return b"".join(kept), regions


def put_back(inputs: Sequence[StatedInput[Any]], regions: Sequence[Region]) -> None:
    """Give the inputs of the short document the data that were cut out of them.

    Raises:
        ValueError: some belong to no input.
    """
    marks = {MARK + b'%d"' % index: region for index, region in enumerate(regions)}
    for stated in inputs:
        data = stated.data
        if isinstance(data, Raw):
            stated.data = marks.pop(bytes(data), data) if len(data) < _MARGIN else data
        elif isinstance(data, str) and data.startswith("\0"):
            stated.data = marks.pop(b'"\\u0000%b"' % data[1:].encode(), data)
    if marks:
        raise ValueError


def read_region(
    where: str, region: Region, datatype: str, shape: Sequence[int], limits: Limits
) -> tuple[Array, bool]:
    """Read the elements of a tensor, flat or nested, and whether one is not finite.

    Raises:
        UNREADABLE: they are not such elements, or too many; whoever reads them in one piece
            may say why.
    """
    count = count_of(where, shape, limits)
    is_nested = _NESTED.match(region.text, region.start) is not None
    extents = tuple(shape) if is_nested else (count,)
    code = CODES.get(datatype)
    if code is None or not extents or not 0 < count <= limits.elements:
        raise ValueError
    kind, decoder = reader_of(datatype, len(extents))
    nesting = _Nesting(extents)
    packed: list[bytes] = []
    is_finite = True
    for depth, piece, after in _pieces(region, len(extents)):
        closed = b"%b%b%b" % (b"[" * depth, piece, b"]" * after)
        rows = convert(read_values(closed), kind) if region.literals else decoder.decode(closed)
        flat = nesting.flatten(rows, depth, after)
        packed.append(struct.pack(f"<{len(flat)}{code}", *flat))
        if region.literals and datatype in FLOATS:
            is_finite = is_finite and all(map(isfinite, flat))
    return np.ndarray(shape, DTYPES[datatype], b"".join(packed)), not is_finite


class _Nesting:
    """Checks rows of a known shape, some of which began in the piece before."""

    __slots__ = ("_begun", "_extents")

    def __init__(self, extents: tuple[int, ...]) -> None:
        self._extents = extents
        self._begun = [0] * len(extents)

    def flatten(self, rows: list[Any], depth: int, after: int) -> list[Any]:
        """Give the elements of one piece.

        Args:
            rows: nested; the first row of each of the first `depth` levels goes on with the last
                one of the piece before.
            depth: levels that were open before the piece.
            after: levels that it leaves open.

        Raises:
            ValueError: a row is over and has another extent.
        """
        level = [rows]
        for axis, extent in enumerate(self._extents):
            lengths = list(map(len, level))
            if axis < depth:
                is_inner_begun = axis + 1 < depth
                lengths[0] += self._begun[axis] - is_inner_begun  # a row in two parts is one row
            if axis < after:
                self._begun[axis] = lengths.pop()
            if lengths and lengths.count(extent) != len(lengths):
                raise ValueError
            level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
        return level


def _places(text: bytes) -> Iterator[tuple[int, int]]:
    """Where the data of inputs seem to start and to end; who decodes them finds out."""
    at = 0
    while (key := text.find(b'"data"', at)) >= 0:
        at = key + 1
        found = _START.match(text, key)
        if found is None or text[key - 1 : key] == b"\\":
            continue
        start = found.end() - 1
        quote = text.find(b'"', start)
        brace = text.find(b"}", start, quote if quote >= 0 else len(text))
        if quote < 0 and brace < 0:
            raise ValueError
        at = brace if brace >= 0 else quote
        before = text[max(start, at - _MARGIN) : at].rstrip(_BLANKS)
        before = before.removesuffix(b",").rstrip(_BLANKS)
        if not before.endswith(b"]"):
            raise ValueError
        yield start, max(start, at - _MARGIN) + len(before)


def _pieces(region: Region, rank: int) -> Iterator[tuple[int, bytes, int]]:
    """Pieces of text, each with the levels that are open before and after it."""
    text, at, end = region.text, region.start, region.end
    size = region.piece_bytes
    depth = 0
    while True:
        comma = text.rfind(b",", at, at + size) if end - at > size else end
        if comma < 0:
            comma = text.find(b",", at + size, end)
        is_last = comma < 0 or comma >= end
        stop = end if is_last else comma
        piece = text[at:stop]
        bare = piece.strip(_BLANKS)
        if not bare or bare.startswith(b"]") or bare.endswith(b"["):
            raise ValueError
        if is_last:
            after = 0
        elif rank == 1:
            after = 1
        else:
            after = depth + piece.count(b"[") - piece.count(b"]")
        if not is_last and not 1 <= after <= rank:
            raise ValueError
        yield depth, piece, after
        if is_last:
            return
        depth, at = after, comma + 1
