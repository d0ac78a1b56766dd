"""A reader of inference requests, compiled for one signature.

`parse_infer` says what every request means; a `Reader` says the same, sooner. It decodes the
common forms in one typed pass, straight to the elements that the signature asks for. Whatever
that pass does not understand, right or wrong, goes to `parse_infer`, so no refusal is told twice.
"""

import struct
from collections.abc import Sequence
from functools import reduce
from itertools import chain
from operator import or_
from typing import Any, Final

import numpy as np
from msgspec import UNSET
from msgspec.json import Decoder

from gateway.core.errors import InvalidRequest
from gateway.core.oip.binary import Span, read_span
from gateway.core.oip.documents import read_document, read_literals
from gateway.core.oip.elements import CODES, bytes_array, check_element, count_of
from gateway.core.oip.messages import InferRequest, Limits, RequestedOutput
from gateway.core.oip.parse import DECODER, parse_infer, understand
from gateway.core.oip.pieces import PIECE, UNREADABLE, cut, put_back
from gateway.core.oip.stated import (
    KnownInput,
    KnownRequest,
    StatedOutput,
    StatedRequest,
    check_id,
    check_input,
    check_name,
    read_outputs,
    read_parameters,
)
from gateway.core.tensors import BYTES, DTYPES, FLOATS, MAX_RANK, Array, Signature, TensorSpec

SMALL: Final = 256 * 1024
"""Bytes of JSON that one call may decode; more is read in pieces."""

_DEPTH: Final = MAX_RANK + 3
"""Levels of the deepest document that the typed pass accepts."""

_SHAPES: Final = 256
"""Shapes that are known by heart for each input."""

_DEFAULTS: Final = Limits()
_ndarray: Final = np.ndarray


class Reader:
    """Decodes the requests of one version; build it once.

    It may be used by many threads at once.
    """

    __slots__ = (
        "_decode",
        "_inputs",
        "_limits",
        "_most",
        "_piece_bytes",
        "_signature",
        "_small",
        "_usual",
        "_whole",
    )

    def __init__(
        self, signature: Signature, limits: Limits = _DEFAULTS, piece_bytes: int = PIECE
    ) -> None:
        """Compile the forms that this signature makes likely.

        Args:
            signature: of the model that is asked.
            limits: on sizes and counts.
            piece_bytes: of long JSON data that one call decodes.
        """
        kinds = {_kind(spec.datatype) for spec in signature.inputs}
        is_plain = bool not in kinds and limits.depth >= _DEPTH
        self._signature = signature
        self._limits = limits
        self._piece_bytes = piece_bytes
        self._inputs = {spec.name: _Input(spec) for spec in signature.inputs if _is_fit(spec)}
        self._most = min(len(signature.inputs), limits.tensors)
        self._small = min(SMALL, limits.json_bytes) if is_plain and kinds else 0
        self._whole = min(self._small, limits.body_bytes)
        self._usual = {
            (spec.name, is_binary): RequestedOutput(spec.name, is_binary)
            for spec in signature.outputs
            for is_binary in (False, True)
            if _is_fit(spec) and limits.parameters
        }
        self._decode = _decoder(kinds).decode

    def read(self, body: bytes, json_bytes: int | None = None) -> InferRequest:
        """Decode an inference request, as `parse_infer` does.

        Args:
            body: decompressed.
            json_bytes: the length of the JSON part; None when all is JSON, 0 when all is the
                tensor.

        Raises:
            InvalidRequest: the bytes are no such request; TooLarge: beyond the limits;
                Unsupported: shared memory.
        """
        if json_bytes is None:
            request = self._read_known(body, body) if len(body) <= self._whole else None
        elif 0 < json_bytes <= self._small and json_bytes <= len(body) <= self._limits.body_bytes:
            request = self._read_known(body[:json_bytes], body)
        else:
            request = None
        return request or self._read_otherwise(body, json_bytes)

    def _read_otherwise(self, body: bytes, json_bytes: int | None) -> InferRequest:
        """Read a long request in pieces, or else any request as the parser does."""
        length = len(body) if json_bytes is None else json_bytes
        limits = self._limits
        is_long = SMALL < length <= limits.json_bytes and length <= len(body) <= limits.body_bytes
        if is_long and limits.depth >= _DEPTH:
            text = body if json_bytes is None else body[:json_bytes]
            try:
                return self._read_pieces(text, body)
            except UNREADABLE:
                pass  # the parser says why
        return parse_infer(body, json_bytes, self._signature, limits)

    def _read_pieces(self, text: bytes, body: bytes) -> InferRequest:
        """Read a long request whose length is in its numbers.

        Raises:
            pieces.UNREADABLE: it has another form.
        """
        short, regions = cut(text, self._most, self._piece_bytes)
        if not regions or len(short) > SMALL:
            raise ValueError
        stated = read_document(short, DECODER, StatedRequest[Any], self._limits)
        if any(region.literals for region in regions):
            stated = read_literals(short, StatedRequest[Any])
        put_back(stated.inputs, regions)
        rest = Span(body, len(text), len(body))
        return understand(stated, rest, self._signature, self._limits)

    def _read_known(self, text: bytes, body: bytes) -> InferRequest | None:
        """Read a request of a known form; None where another way must say what it is."""
        try:
            stated = self._decode(text)
            id_ = stated.id
            if id_ is not None:
                check_id(id_)
            tensors = self._read_inputs(stated.inputs, body, len(text))
        except (ValueError, OverflowError, struct.error):
            return None
        if tensors is None:
            return None
        request = InferRequest(tensors, id_)
        if text is not body:
            request.nonfinite = None
        if stated.outputs:
            request.outputs = self._read_outputs(stated.outputs)
        if stated.parameters:
            read_parameters(request, stated.parameters, self._limits)
        return request

    def _read_outputs(self, outputs: Sequence[StatedOutput]) -> tuple[RequestedOutput, ...]:
        """Find the requests for outputs that are as likely as any."""
        found: list[RequestedOutput] = []
        names: set[str] = set()
        for output in outputs:
            parameters = output.parameters
            is_binary = parameters.get("binary_data") if parameters else False
            if type(is_binary) is not bool or (parameters and len(parameters) > 1):
                break
            usual = self._usual.get((output.name, is_binary))
            if usual is None:
                break
            names.add(output.name)
            found.append(usual)
        if len(names) == len(outputs) <= self._limits.tensors:
            return tuple(found)
        return read_outputs(outputs, self._signature, self._limits)

    def _size_of(self, stated: KnownInput[Any], left: int) -> int | None:
        """The size of a binary input in bytes; None when its elements are JSON."""
        parameters = stated.parameters
        if parameters and len(parameters) == 1 and stated.data is UNSET and self._usual:
            size = parameters.get("binary_data_size")
            if type(size) is int and 0 <= size <= left:
                return size
        return check_input(stated, left, self._limits)

    def _read_inputs(
        self, inputs: list[KnownInput[Any]], body: bytes, at: int
    ) -> dict[str, Array] | None:
        """Read every input; None where one has another form.

        Args:
            inputs: as stated.
            body: holds the elements of binary inputs.
            at: where the first of those starts.
        """
        if len(inputs) > self._most:
            return None
        tensors: dict[str, Array] = {}
        for stated in inputs:
            name = stated.name
            known = self._inputs.get(name)
            if known is None or name in tensors or stated.datatype != known.datatype:
                return None
            if stated.parameters:
                size = self._size_of(stated, len(body) - at)
                if size is not None:
                    tensors[name] = known.view(stated.shape, body, at, size, self._limits)
                    at += size
                    continue
            data = stated.data
            if data is UNSET:
                return None
            tensors[name] = known.pack(stated.shape, data, self._limits)
        return tensors if at == len(body) else None


class _Input:
    """One input that a model takes, and how the elements of its usual shapes are packed."""

    __slots__ = ("_code", "_dtype", "_name", "_packings", "datatype")

    def __init__(self, spec: TensorSpec) -> None:
        self.datatype = spec.datatype
        self._name = spec.name
        self._dtype = DTYPES[spec.datatype]
        self._code = CODES.get(spec.datatype, "")
        self._packings: dict[tuple[int, ...], struct.Struct] = {}

    def pack(self, shape: tuple[int, ...], data: list[Any], limits: Limits) -> Array:
        """Pack elements that are flat or nested to the shape.

        Raises:
            ValueError, OverflowError, struct.error: they are not; `parse_infer` says why.
        """
        packing = self._packings.get(shape) or self._learn(shape, limits)
        if data and type(data[0]) is list:
            data = _flatten(data, shape)
        if self._code:
            return _ndarray(shape, self._dtype, packing.pack(*data))
        return self._texts(shape, data, packing.size, limits)

    def view(
        self, shape: tuple[int, ...], body: bytes, start: int, size: int, limits: Limits
    ) -> Array:
        """View bytes of the body as a tensor, as `read_span` does."""
        packing = self._packings.get(shape) or self._learn(shape, limits)
        if size != packing.size or not self._code:
            return read_span(self._name, Span(body, start, size), self.datatype, shape, limits)
        tensor: Array = _ndarray(shape, self._dtype, body, start)
        return tensor if tensor.flags.aligned else tensor.copy()

    def _learn(self, shape: tuple[int, ...], limits: Limits) -> struct.Struct:
        """How many elements there are, and how they are packed; texts are only counted."""
        count = count_of(self._name, shape, limits)
        if count > limits.elements:
            raise ValueError
        packing = struct.Struct(f"<{count}{self._code or 'x'}")
        if len(self._packings) < _SHAPES:
            self._packings[shape] = packing
        return packing

    def _texts(self, shape: tuple[int, ...], data: list[Any], count: int, limits: Limits) -> Array:
        if len(data) != count or any(type(element) is not str for element in data):
            raise ValueError
        texts = [element.encode() for element in data]
        for text in texts:
            check_element(self._name, len(text), limits)
        return bytes_array(texts, shape)


def _kind(datatype: str) -> type:
    if datatype == BYTES:
        return str
    if datatype == "BOOL":
        return bool
    return float if datatype in FLOATS else int


def _is_fit(spec: TensorSpec) -> bool:
    """Whether an input of that name is not refused anyway."""
    try:
        check_name(spec.name)
    except InvalidRequest:
        return False
    return True


def _decoder(kinds: set[type]) -> Decoder[KnownRequest[Any]]:
    """A decoder whose data are a list of elements, or of lists, as deep as a tensor can be."""
    element: Any = reduce(or_, kinds) if kinds else float
    rows: Any = list[element]
    for _ in range(MAX_RANK - 1):
        rows = list[element | rows]
    kind: Any = KnownRequest
    return Decoder(kind[rows])


def _flatten(rows: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if not shape or len(rows) != shape[0]:
        raise ValueError
    for extent in shape[1:]:
        if any(type(row) is not list or len(row) != extent for row in rows):
            raise ValueError
        rows = rows[0] if len(rows) == 1 else list(chain.from_iterable(rows))
    return rows
