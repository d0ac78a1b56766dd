"""Payloads: what is kept of inputs and outputs where an endpoint asks for it, redacted and cut."""

from collections.abc import Collection
from math import isfinite
from typing import Final

import msgspec

from gateway.core.tensors import NAMES, Array, Tensors


def payload_text(tensors: Tensors, redact: Collection[str], max_bytes: int) -> str:
    """Render tensors as compact JSON of at most `max_bytes`; nothing of them is kept.

    Each tensor has an equal share of what is left. `cut` counts the elements that did not fit;
    a tensor for which there is no room at all is missing. Names in `redact` are listed under
    `redacted`, and their values are never looked at. NaN and infinities become strings.
    """
    shown = [name for name in tensors if name not in redact]
    hidden = msgspec.json.encode(sorted(name for name in tensors if name in redact)).decode()
    tail = f'}},"redacted":{hidden}}}' if hidden != "[]" else "}}"
    room = max_bytes - len(_PAYLOAD_HEAD) - len(tail.encode())
    parts: list[str] = []
    for index, name in enumerate(shown):
        part = _tensor_text(name, tensors[name], room // (len(shown) - index) - 1)
        if part is not None:
            parts.append(part)
            room -= len(part.encode()) + 1
    text = _PAYLOAD_HEAD + ",".join(parts) + tail
    return text if len(text.encode()) <= max_bytes else "{}"


_PAYLOAD_HEAD: Final = '{"tensors":{'


def _tensor_text(name: str, tensor: Array, room: int) -> str | None:
    """One member of the object, or None when not even an empty one fits."""
    key = msgspec.json.encode(name).decode()
    datatype = NAMES.get(tensor.dtype, str(tensor.dtype))
    shape = msgspec.json.encode(tensor.shape).decode()
    head = f'{key}:{{"datatype":"{datatype}","shape":{shape},'
    left = room - len(head.encode()) - len('"data":[],"cut":}') - len(str(tensor.size))
    if left < 0:
        return None
    # An element takes two bytes at least, with its comma.
    first = tensor.reshape(-1)[: left // 2 + 1].tolist()
    texts: list[str] = []
    for value in first:
        text = msgspec.json.encode(_plain(value, left)).decode()
        left -= len(text.encode()) + 1
        if left < -1:
            break
        texts.append(text)
    cut = int(tensor.size) - len(texts)
    tail = f',"cut":{cut}}}' if cut else "}"
    return f'{head}"data":[{",".join(texts)}]{tail}'


def _plain(value: object, limit: int) -> object:
    if isinstance(value, bytes):
        return value[: max(limit, 0) + 1].decode("utf-8", "replace")
    if isinstance(value, float) and not isfinite(value):
        return {"nan": "NaN", "inf": "Infinity"}.get(str(value), "-Infinity")
    return value
