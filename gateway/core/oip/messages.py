"""What an inference says, whatever the wire: the request, the answer and their small parts."""

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct

from gateway.core.targeting import Scalar
from gateway.core.tensors import Array, has_nonfinite


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one request, in bytes and counts."""

    body_bytes: int = 64 * 1024 * 1024
    json_bytes: int = 16 * 1024 * 1024
    tensors: int = 1024
    elements: int = 64 * 1024 * 1024
    element_bytes: int = 16 * 1024 * 1024
    parameters: int = 64
    depth: int = 64


class RequestedOutput(Struct, frozen=True, gc=False):
    """One output that the caller asks for. `classification` > 0 asks for the top classes."""

    name: str
    binary: bool = False
    classification: int = 0


class InferRequest(Struct, gc=False):
    """A decoded inference request.

    `tensors` holds every input by name in its stated shape; BYTES elements are `bytes`.
    `outputs` is empty when all outputs are asked for; `binary_default` then says how.
    `nonfinite` says that a float input holds NaN or an infinity; None that nobody looked yet.
    `timeout_us` and `priority` are the reserved scheduling parameters, 0 when not given.
    """

    tensors: dict[str, Array]
    id: str | None = None
    parameters: Mapping[str, Scalar] = {}
    outputs: tuple[RequestedOutput, ...] = ()
    binary_default: bool = False
    nonfinite: bool | None = False
    timeout_us: int = 0
    priority: int = 0

    @property
    def has_nonfinite(self) -> bool:
        """Whether a float input holds NaN or an infinity; binary inputs are scanned once."""
        if self.nonfinite is None:
            self.nonfinite = any(map(has_nonfinite, self.tensors.values()))
        return self.nonfinite


class InferResponse(Struct, gc=False):
    """An answer: the outputs asked for, in order, and who gave it."""

    model_name: str
    model_version: str
    outputs: dict[str, Array]
    id: str | None = None
    parameters: Mapping[str, Scalar] = {}


class Rendered(Struct, frozen=True, gc=False):
    """An encoded answer. `json_bytes` is the length of the JSON part when tensors follow it."""

    body: bytes
    json_bytes: int | None = None
