"""A writer of inference answers, compiled for one version.

`render_infer` says what every answer looks like; a `Writer` says the same bytes, sooner: what
all answers share is written once. Long outputs are written in pieces, so that no single call
holds the interpreter for long.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import orjson

from gateway.core.oip.answers import Nonfinite, dump, spell, text_of
from gateway.core.oip.binary import write_bytes
from gateway.core.oip.messages import InferRequest, InferResponse, Rendered
from gateway.core.oip.render import Labels, render_infer
from gateway.core.tensors import BYTES, DTYPES, Array, Signature

Outputs: TypeAlias = Mapping[str, Array]

PIECE: Final = 8192
"""Elements that one call writes as JSON."""

_SHAPES: Final = 256
"""Shapes that are known by heart for each output and form."""

_NO_LABELS: Final[Labels] = {}
_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
_OPEN: Final = b"{"
_NEXT: Final = b"},"
_LAST: Final = b"}]}"
_SHARED: Final = 2
"""Parts that stand before the first output."""
_ROWS: Final = 2
"""Dimensions of a tensor that has one list of elements for each row."""
_N: Final = ord("n")
"""Of the texts that numbers have, only `null` holds it."""

_dumps: Final = orjson.dumps


class Writer:
    """Encodes the answers of one version under one name; build it once.

    It may be used by many threads at once.
    """

    __slots__ = (
        "_identity", "_labels", "_names", "_nonfinite", "_ordered", "_outputs", "_stated",
        "_templates",
    )  # fmt: skip

    def __init__(
        self,
        model_name: str,
        model_version: str,
        signature: Signature,
        nonfinite: Nonfinite,
        labels: Labels = _NO_LABELS,
    ) -> None:
        """Write down what all answers share.

        Args:
            model_name: as the caller knows it.
            model_version: as text.
            signature: of that version.
            nonfinite: how JSON says NaN and infinities.
            labels: class labels by output, for the classification extension.
        """
        stated = dump({"model_name": model_name, "model_version": model_version})
        self._stated = stated[1:-1] + b',"outputs":['
        self._identity = (model_name, model_version)
        self._names = tuple(spec.name for spec in signature.outputs)
        self._outputs = {
            spec.name: _Output(spec.name, spec.datatype, nonfinite) for spec in signature.outputs
        }
        self._ordered = list(self._outputs.values())
        self._templates: dict[tuple[tuple[int, ...], ...], bytes] = {}
        self._nonfinite = nonfinite
        self._labels = labels

    def write(self, outputs: Outputs | Sequence[Array], asked: InferRequest) -> Rendered:
        """Encode an answer, as `render_infer` does.

        Args:
            outputs: by name, or all of them in the order of the signature.
            asked: says which outputs are wanted, in which form, and under which id.

        Raises:
            InvalidRequest: an output that is not there; EngineFailed: a value that cannot be said.
        """
        named = outputs if isinstance(outputs, dict) else self._named(outputs)
        head = _OPEN if asked.id is None else b'{"id":%b,' % _dumps(asked.id)
        parts: list[bytes] = [head, self._stated]
        tails: list[bytes | memoryview] = []
        if asked.outputs:
            for wanted in asked.outputs:
                known = self._outputs.get(wanted.name)
                tensor = named.get(wanted.name)
                if known is None or tensor is None or wanted.classification:
                    return self._render(named, asked)
                if not known.say(tensor, wanted.binary, parts, tails):
                    return self._render(named, asked)
        else:
            is_binary = asked.binary_default
            for name, tensor in named.items():
                known = self._outputs.get(name)
                if known is None or not known.say(tensor, is_binary, parts, tails):
                    return self._render(named, asked)
        if len(parts) == _SHARED:
            return self._render(named, asked)
        parts[-1] = _LAST
        text = b"".join(parts)
        return Rendered(b"".join((text, *tails)), len(text)) if tails else Rendered(text)

    def rows(self, outputs: Sequence[Array]) -> "Rows | None":
        """Encode every row of a batch at once, for requests of one row each.

        Args:
            outputs: of the whole batch, in the order of the signature.

        Returns:
            None where each request must be written by itself: outputs that are long, are no
            numbers or were not announced, or values that JSON cannot say.
        """
        if len(outputs) != len(self._ordered) or not outputs or not outputs[0].ndim:
            return None
        count = len(outputs[0])
        columns: list[list[bytes]] = []
        shapes = []
        for known, tensor in zip(self._ordered, outputs, strict=True):
            column = known.column(tensor, count) if count else None
            if column is None:
                return None
            columns.append(column)
            shapes.append(tensor.shape[1:])
        key = tuple(shapes)
        template = self._templates.get(key) or self._template(key)
        return Rows(template, list(zip(*columns, strict=True)))

    def _template(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        """What stands around the elements of a row whose outputs have these extents."""
        parts = [_escaped(self._stated)]
        for known, shape in zip(self._ordered, shapes, strict=True):
            parts += (_escaped(known.head_of((1, *shape))), b"[%b]", _NEXT)
        parts[-1] = _LAST
        template = b"".join(parts)
        if len(self._templates) < _SHAPES:
            self._templates[shapes] = template
        return template

    def _named(self, outputs: Outputs | Sequence[Array]) -> Outputs:
        if isinstance(outputs, Mapping):
            return outputs
        return dict(zip(self._names, outputs, strict=True))

    def _render(self, outputs: Outputs, asked: InferRequest) -> Rendered:
        """Encode an answer of any other form, or say what is wrong with it."""
        name, version = self._identity
        response = InferResponse(name, version, dict(outputs), asked.id)
        return render_infer(
            response, asked.outputs, asked.binary_default, self._nonfinite, self._labels
        )


class Rows:
    """The JSON of each row of a batch."""

    __slots__ = ("_rows", "_template")

    def __init__(self, template: bytes, rows: list[tuple[bytes, ...]]) -> None:
        """Hold a template of an answer, and what each row puts in its places."""
        self._template = template
        self._rows = rows

    def write(self, index: int, asked: InferRequest) -> bytes | None:
        """Encode the answer to the request of that row: the text that `Writer.write` gives.

        Returns:
            None where the request asks for something else than all outputs in JSON.
        """
        if asked.outputs or asked.binary_default:
            return None
        text = self._template % self._rows[index]
        id_ = asked.id
        return b"{" + text if id_ is None else b'{"id":%b,%b' % (_dumps(id_), text)


class _Output:
    """One output that a model gives, and what its usual shapes are introduced with."""

    __slots__ = ("_binary", "_dtype", "_is_bytes", "_json", "_name", "_nonfinite", "_prefix")

    def __init__(self, name: str, datatype: str, nonfinite: Nonfinite) -> None:
        self._name = name
        self._dtype = DTYPES[datatype]
        self._is_bytes = datatype == BYTES
        self._nonfinite: Nonfinite = nonfinite
        self._prefix = dump({"name": name, "datatype": datatype})[:-1] + b',"shape":'
        self._json: dict[tuple[int, ...], bytes] = {}
        self._binary: dict[tuple[int, ...], bytes] = {}

    def say(
        self,
        tensor: Array,
        is_binary: bool,  # noqa: FBT001
        parts: list[bytes],
        tails: list[bytes | memoryview],
    ) -> bool:
        """Append the output to the JSON parts, and its bytes to the tails.

        Returns:
            False where `render_infer` must do it: a datatype that was not announced, or a value
            that the policy forbids.
        """
        if tensor.dtype is not self._dtype and tensor.dtype != self._dtype:
            return False
        if is_binary:
            self._say_binary(tensor, parts, tails)
            return True
        head = self.head_of(tensor.shape)
        if self._is_bytes or tensor.size > PIECE:
            data = self._long(tensor)
        else:
            data = _dumps(tensor.ravel(), None, _OPTIONS)
            if _N in data and self._nonfinite != "null":
                data = self._long(tensor)
        if data is None:
            return False
        parts += (head, data, _NEXT)
        return True

    def head_of(self, shape: tuple[int, ...]) -> bytes:
        """What stands before the data of an output in JSON."""
        return self._json.get(shape) or self._learn(self._json, shape, b',"data":')

    def column(self, tensor: Array, count: int) -> list[bytes] | None:
        """Write each of `count` rows without its brackets; None where that cannot be done."""
        if self._is_bytes or tensor.size > PIECE or not tensor.ndim or len(tensor) != count:
            return None
        if tensor.dtype is not self._dtype and tensor.dtype != self._dtype:
            return None
        if not tensor.flags.c_contiguous:
            tensor = tensor.copy()
        if tensor.ndim == 1:
            text = _dumps(tensor, None, _OPTIONS)
            rows = text[1:-1].split(b",")
        else:
            flat = tensor if tensor.ndim == _ROWS else tensor.reshape(count, -1)
            text = _dumps(flat, None, _OPTIONS)
            rows = text[2:-2].split(b"],[")
        return None if _N in text and self._nonfinite != "null" else rows

    def _say_binary(
        self, tensor: Array, parts: list[bytes], tails: list[bytes | memoryview]
    ) -> None:
        if self._is_bytes:
            tail: bytes | memoryview = write_bytes(tensor.ravel().tolist())
            size = len(tail)
            head = self._prefix + _dumps(tensor.shape) + _size(size)
        else:
            size = tensor.nbytes
            shape = tensor.shape
            head = self._binary.get(shape) or self._learn(self._binary, shape, _size(size))
            tail = (tensor if tensor.flags.c_contiguous else tensor.copy()).data
        parts += (head, b"", _NEXT)
        if size:
            tails.append(tail)

    def _learn(
        self, known: dict[tuple[int, ...], bytes], shape: tuple[int, ...], then: bytes
    ) -> bytes:
        head = self._prefix + _dumps(shape) + then
        if len(known) < _SHAPES:
            known[shape] = head
        return head

    def _long(self, tensor: Array) -> bytes | None:
        """Write the elements piece by piece; None where the policy forbids one of them."""
        flat = tensor.ravel()
        pieces: list[bytes] = []
        for start in range(0, flat.size, PIECE):
            part = flat[start : start + PIECE]
            if self._is_bytes:
                text = dump([text_of(self._name, element) for element in part.tolist()])
            else:
                text = dump(part)
            if not self._is_bytes and _N in text and self._nonfinite != "null":
                if self._nonfinite == "error":
                    return None
                text = dump(spell(self._name, part, self._nonfinite))
            pieces.append(text[1:-1])
        return b"[%b]" % b",".join(pieces)


def _size(size: int) -> bytes:
    return b',"parameters":{"binary_data_size":%d}' % size


def _escaped(text: bytes) -> bytes:
    return text.replace(b"%", b"%%")
