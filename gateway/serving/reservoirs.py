"""Reservoirs: a few recent inputs of the endpoints that ask for it, ready to be sent again.

Once a reservoir is full, each answered request has a chance of one in sixteen to take the place of
one that is drawn. So what is kept is a sample of about the last sixteen times as many requests,
newer ones more often, and fifteen of sixteen requests cost a comparison.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from gateway.core.tensors import NAMES, Array, Tensors
from gateway.telemetry import Record

MAX_INPUT_BYTES: Final = 64 * 1024
"""Larger inputs are not kept: writing them down would hold the event loop up."""
MAX_BYTES: Final = 8 * 1024 * 1024
"""Of one endpoint's reservoir."""
_CHANCE_BITS: Final = 4


class Reservoir:
    """The kept inputs of one endpoint, each a JSON document."""

    __slots__ = ("_kept", "_size", "limit")

    def __init__(self, limit: int) -> None:
        """Keep at most `limit`."""
        self.limit = limit
        self._kept: list[bytes] = []
        self._size = 0

    def offer(self, record: Record, tensors: Tensors, redact: Collection[str], draw: int) -> None:
        """Keep a request, or not.

        Args:
            record: what is recorded of it.
            tensors: its inputs; nothing of them is kept but their text.
            redact: names of inputs whose values are never looked at.
            draw: a number out of 0..2**64 - 1, fresh for each request.
        """
        kept = self._kept
        is_full = len(kept) >= self.limit
        if is_full and draw & _CHANCE_MASK:
            return
        document = _document(record, tensors, redact)
        if document is None:
            return
        place = (draw >> _CHANCE_BITS) % self.limit if is_full else len(kept)
        while kept and self._size + len(document) > MAX_BYTES:
            self._drop((draw >> _CHANCE_BITS) % len(kept))
            place = len(kept)
        if place < len(kept):
            self._drop(place)
        kept.append(document)
        self._size += len(document)

    def documents(self) -> list[dict[str, Any]]:
        """What is kept, oldest first."""
        return [msgspec.json.decode(one) for one in self._kept]

    def _drop(self, place: int) -> None:
        self._size -= len(self._kept.pop(place))


class Reservoirs:
    """All reservoirs of a process, by endpoint."""

    __slots__ = ("_by_endpoint",)

    def __init__(self) -> None:
        """Keep nothing."""
        self._by_endpoint: dict[str, Reservoir] = {}

    def resize(self, limits: Mapping[str, int]) -> None:
        """Keep so many inputs of these endpoints, and forget what was kept of all others."""
        known = self._by_endpoint
        self._by_endpoint = {
            name: known[name] if name in known and known[name].limit == limit else Reservoir(limit)
            for name, limit in limits.items()
            if limit
        }

    def offer(self, record: Record, tensors: Tensors, redact: Collection[str], draw: int) -> None:
        """Keep a request of an endpoint that asked for it, or not; as `Reservoir.offer`."""
        reservoir = self._by_endpoint.get(record.kind.endpoint)
        if reservoir is not None:
            reservoir.offer(record, tensors, redact, draw)

    def recent(self, endpoint: str) -> list[dict[str, Any]]:
        """The kept inputs of an endpoint, oldest first."""
        reservoir = self._by_endpoint.get(endpoint)
        return [] if reservoir is None else reservoir.documents()


_CHANCE_MASK: Final = (1 << _CHANCE_BITS) - 1


def _document(record: Record, tensors: Tensors, redact: Collection[str]) -> bytes | None:
    """A request as JSON that can be sent again; None if it is too large or no JSON."""
    shown = {name: tensor for name, tensor in tensors.items() if name not in redact}
    if sum(tensor.nbytes for tensor in shown.values()) > MAX_INPUT_BYTES:
        return None
    inputs: list[dict[str, Any]] = []
    for name, tensor in shown.items():
        data = _data(tensor)
        if data is None:
            return None
        datatype = NAMES.get(tensor.dtype, str(tensor.dtype))
        inputs.append({"name": name, "shape": tensor.shape, "datatype": datatype, "data": data})
    document = msgspec.json.encode(
        {
            "time_unix_nano": record.at_ns,
            "prediction_id": record.prediction_id,
            "variant": record.kind.variant,
            "model_version": record.kind.version,
            "redacted": sorted(name for name in tensors if name in redact),
            "request": {"inputs": inputs},
        }
    )
    return document if len(document) <= 8 * MAX_INPUT_BYTES else None


def _data(tensor: Array) -> list[Any] | None:
    """The elements in row-major order; None if JSON has no word for one of them."""
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        return None
    elements: list[Any] = tensor.reshape(-1).tolist()
    if tensor.dtype.kind != "O":
        return elements
    try:
        return [element.decode() if isinstance(element, bytes) else element for element in elements]
    except UnicodeDecodeError:
        return None
