"""Calls and answers: what a door hands to the pipeline, and what it gets back."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from gateway.core.assignment import Reason
from gateway.core.errors import GatewayError
from gateway.core.oip.messages import InferRequest
from gateway.core.plans import Variant
from gateway.core.targeting import Scalar
from gateway.core.tensors import Array, Tensors
from gateway.telemetry import Kind, Record, Trace


class Clock(Protocol):
    """The process's clocks, made by `app`."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never jump."""

    def unix_ns(self) -> int:
        """UTC nanoseconds."""


class Call(Struct):
    """One request on its way: what was decoded, and what the transport said of it.

    `version` is set by a versioned path, `force` by a caller who may. `headers` are raw, names in
    lower case, the first of each name. `deadline_ns` is monotonic, 0 for none. Where all calls of a
    run are plain and have the same `together`, that is called once in place of each reply.
    Implements `gateway.core.naming.Facts`.
    """

    request: InferRequest
    arrived_ns: int
    headers: Mapping[bytes, bytes] = {}
    version: int | None = None
    force: str | None = None
    trace: Trace | None = None
    deadline_ns: int = 0
    together: "Together | None" = None

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
        value = self.headers.get(_raw(name))
        return None if value is None else value.decode("latin-1")

    def raw_header(self, name: bytes) -> bytes | None:
        """The same, as it came."""
        return self.headers.get(name)


@lru_cache(maxsize=1024)
def _raw(name: str) -> bytes:
    return name.encode("latin-1", "replace")


class Ran:
    """What one run gave to several requests of one row each.

    `records` are those of the requests, in the order of the rows. `texts` is for those who make
    their answers of it: what they keep for the others of the run.
    """

    __slots__ = ("names", "outputs", "records", "texts")

    def __init__(self, names: Sequence[str], outputs: list[Array]) -> None:
        """`outputs` have one row for each request, in the order of `names`."""
        self.names = names
        self.outputs = outputs
        self.records: list[Record] = []
        self.texts: dict[object, object] = {}

    def answer(self, index: int) -> "Answer":
        """The answer to one request. Requires: its record is known."""
        record = self.records[index]
        kind = record.kind
        variant = Variant(kind.variant, kind.version)
        return Answer(
            kind.revision,
            None,
            variant,
            kind.reason,
            record.prediction_id,
            kind=kind,
            ran=self,
            index=index,
        )

    def row(self, index: int) -> dict[str, Array]:
        """The outputs of one request, as views."""
        end = index + 1
        named = zip(self.names, self.outputs, strict=True)
        return {name: output[index:end] for name, output in named}


class Answer(Struct):
    """The end of a request: outputs, or the error; and who answered, as far as it got.

    `outputs` holds the requested tensors in the order asked for. `cache` is that of the job.
    Where `ran` is given, `outputs` is empty: they are row `index` of it.
    """

    revision: int
    error: GatewayError | None = None
    variant: Variant | None = None
    reason: Reason | None = None
    prediction_id: str | None = None
    outputs: Mapping[str, Array] = {}
    kind: Kind | None = None
    cache: str = ""
    ran: Ran | None = None
    index: int = 0

    def settle(self) -> None:
        """Fill in `outputs` where they are a row of a run."""
        if self.ran is not None:
            self.outputs = self.ran.row(self.index)
            self.ran = None


Reply: TypeAlias = Callable[[Answer], None]
Together: TypeAlias = Callable[[list[Any], Ran], None]
"""Takes the replies of several calls in the order of the rows that answer them."""
