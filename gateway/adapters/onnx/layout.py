"""Layout: weights beside a model, moved to where processors can read them.

onnxruntime writes packed weights right behind the weights that they were packed from, wherever
that is, and crashes when it then maps them at an odd address (1.31). So the file is written again
with every part aligned, and the places that the model names are changed. For that a few messages
of the ONNX format are read, by number and without a schema: what is not named here is copied.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

ALIGNMENT: Final = 4096
"""Bytes; a page, so that no kernel can want more."""
CHUNK: Final = 1024 * 1024
Change: TypeAlias = Callable[[bytes], bytes]
# Numbers of fields in onnx.proto.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE: Final = 1
_GRAPH_INITIALIZER: Final = 5
_NODE_ATTRIBUTE: Final = 5
_ATTRIBUTE_TENSOR: Final = 5
_ATTRIBUTE_GRAPH: Final = 6
_ATTRIBUTE_TENSORS: Final = 10
_ATTRIBUTE_GRAPHS: Final = 11
_TENSOR_EXTERNAL: Final = 13
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2
_MORE: Final = 0x80
_FIXED: Final = {1: 8, 5: 4}
"""Bytes of the wire types that have a fixed size."""
_VARINT: Final = 0
_BYTES: Final = 2


def align(model: Path, weights: Path) -> None:
    """Write a model and its weights again, with every part of the weights aligned.

    Args:
        model: a model whose external data are all in `weights`, each named with its length.
        weights: the file beside it.

    Raises:
        ValueError: the model names weights in a way that is not known here; both files are of no
            use then.
    """
    aligned = weights.with_name(f"{weights.name}.aligned")
    content = model.read_bytes()
    with weights.open("rb") as source, aligned.open("xb") as target:
        moving = _Moving(source, target)
        changed = moving.model(content)
    # Were one named where nobody looked, it would now be read from the wrong place.
    if content.count(weights.name.encode()) != moving.tensors:
        message = "A tensor that lies outside is named in an unknown place."
        raise ValueError(message)
    model.write_bytes(changed)
    aligned.replace(weights)


class _Moving:
    """Copies each part of the weights as it is met, and says where it is now."""

    def __init__(self, source: BinaryIO, target: BinaryIO) -> None:
        self._source = source
        self._target = target
        self._moved: dict[tuple[int, int], int] = {}
        self.tensors = 0

    def model(self, message: bytes) -> bytes:
        return _changed(message, {_MODEL_GRAPH: self._graph})

    def _graph(self, message: bytes) -> bytes:
        return _changed(message, {_GRAPH_NODE: self._node, _GRAPH_INITIALIZER: self._tensor})

    def _node(self, message: bytes) -> bytes:
        return _changed(message, {_NODE_ATTRIBUTE: self._attribute})

    def _attribute(self, message: bytes) -> bytes:
        changes = {
            _ATTRIBUTE_TENSOR: self._tensor,
            _ATTRIBUTE_TENSORS: self._tensor,
            _ATTRIBUTE_GRAPH: self._graph,
            _ATTRIBUTE_GRAPHS: self._graph,
        }
        return _changed(message, changes)

    def _tensor(self, message: bytes) -> bytes:
        entries = dict(
            _entry(content) for number, content, _ in _fields(message) if number == _TENSOR_EXTERNAL
        )
        if not entries:
            return message
        self.tensors += 1
        if not {"location", "offset", "length"} <= entries.keys():
            message_ = "A tensor that lies outside does not say where."
            raise ValueError(message_)
        for key, value in entries.items():
            if key == "offset":
                entries[key] = str(self._place(int(value), int(entries["length"])))
            elif key.startswith("prepacked"):
                entries[key] = self._packed(value)
        return _changed(message, {_TENSOR_EXTERNAL: lambda entry: _renewed(entry, entries)})

    def _packed(self, value: str) -> str:
        """`<kernel>+<hash>|<offset>;<length>;<checksum>|...`, with new offsets."""
        kernel, *parts = value.split("|")
        moved = [kernel]
        for part in parts:
            offset, length, checksum = part.split(";")
            moved.append(f"{self._place(int(offset), int(length))};{length};{checksum}")
        return "|".join(moved)

    def _place(self, offset: int, length: int) -> int:
        """Copy a part, if it was not met before; its new offset."""
        known = self._moved.get((offset, length))
        if known is not None:
            return known
        place = -(-self._target.tell() // ALIGNMENT) * ALIGNMENT
        self._target.write(bytes(place - self._target.tell()))
        self._source.seek(offset)
        left = length
        while left:
            chunk = self._source.read(min(CHUNK, left))
            if not chunk:
                message = "The weights are shorter than the model says."
                raise ValueError(message)
            self._target.write(chunk)
            left -= len(chunk)
        self._moved[offset, length] = place
        return place


def _changed(message: bytes, changes: Mapping[int, Change]) -> bytes:
    """A message with the content of some fields changed, in the order in which they were."""
    parts = []
    for number, content, whole in _fields(message):
        change = changes.get(number)
        parts.append(whole if change is None else _field(number, change(content)))
    return b"".join(parts)


def _entry(message: bytes) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    found = {number: content.decode() for number, content, _ in _fields(message)}
    return found.get(_ENTRY_KEY, ""), found.get(_ENTRY_VALUE, "")


def _renewed(entry: bytes, entries: Mapping[str, str]) -> bytes:
    key, _ = _entry(entry)
    return _field(_ENTRY_KEY, key.encode()) + _field(_ENTRY_VALUE, entries[key].encode())


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, content (empty where it has no length) and whole encoding of each field."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        content = b""
        if wire == _BYTES:
            length, at = _varint(message, at)
            content = message[at : at + length]
            at += length
        elif wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            at = len(message) + 1
        if at > len(message):
            text = "A message is cut or not of the ONNX format."
            raise ValueError(text)
        yield number, content, message[begin:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where the next byte is."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & ~_MORE) << shift
        shift += 7
        if not byte & _MORE:
            return value, at
    text = "A message is cut or not of the ONNX format."
    raise ValueError(text)


def _field(number: int, content: bytes) -> bytes:
    """A field with a length."""
    return _number(number << 3 | _BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value >= _MORE:
        encoded.append(value & ~_MORE & 0xFF | _MORE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
