"""Calls and answers: what a door hands to the pipeline, and what it gets back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from gateway.core.assignment import Reason
from gateway.core.errors import GatewayError
from gateway.core.oip.messages import InferRequest
from gateway.core.plans import Variant
from gateway.core.targeting import Scalar
from gateway.core.tensors import Array, Tensors
from gateway.telemetry import Trace


class Clock(Protocol):
    """The process's clocks, made by `app`."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never jump."""

    def unix_ns(self) -> int:
        """UTC nanoseconds."""


@dataclass(slots=True)
class Call:
    """One request on its way: what was decoded, and what the transport said of it.

    `version` is set by a versioned path, `force` by a caller who may. `headers` are raw, names in
    lower case. Implements `gateway.core.plans.Facts`.
    """

    request: InferRequest
    arrived_ns: int
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    version: int | None = None
    force: str | None = None
    trace: Trace | None = None

    @property
    def parameters(self) -> Mapping[str, Scalar]:
        """Request-level parameters."""
        return self.request.parameters

    @property
    def tensors(self) -> Tensors:
        """Input tensors by name."""
        return self.request.tensors

    def header(self, name: str) -> str | None:
        """The first header of that lower-case name, as Latin-1."""
        wanted = name.encode("latin-1", "replace")
        for key, value in self.headers:
            if key == wanted:
                return value.decode("latin-1")
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a request: outputs, or the error; and who answered, as far as it got.

    `outputs` holds the requested tensors in the order asked for.
    """

    revision: int
    error: GatewayError | None = None
    variant: Variant | None = None
    reason: Reason | None = None
    prediction_id: str | None = None
    outputs: Mapping[str, Array] = field(default_factory=dict)


Reply: TypeAlias = Callable[[Answer], None]
