"""What the exporter is made of: its way out, its clock, its settings."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from gateway.ports import RecordFolder
from gateway.serving.cells import Cells
from gateway.telemetry import Delivery, Series


class Encoder(Protocol):
    """Makes request bodies of metrics. Called from one thread at a time, not the event loop's."""

    def metrics(self, series: Sequence[Series], at_ns: int) -> bytes:
        """All series at this Unix time."""


class Sender(Protocol):
    """Carries request bodies to a collector. Never raises for the network."""

    async def send(self, signal: Literal["logs", "traces", "metrics"], body: bytes) -> Delivery:
        """Send one body and say what became of it."""

    async def close(self) -> None:
        """Let go of the connections."""


class Wire(Struct, frozen=True):
    """The way out."""

    encoder: Encoder
    sender: Sender


class Clock(Struct, frozen=True):
    """Time and chance: monotonic seconds, Unix nanoseconds, and a draw from [0, 1)."""

    monotonic: Callable[[], float]
    unix_ns: Callable[[], int]
    draw: Callable[[], float]


class ExportSettings(Struct, frozen=True):
    """What is exported, and how often. Retries wait between `first` and `last`, doubling.

    `max_records` and `max_bytes` bound what waits in memory. `drain_bytes_s` bounds how fast a
    backlog is sent, unless twice the rate at which records come is more.
    """

    logs: bool = True
    traces: bool = True
    metrics: bool = True
    batch_records: int = 512
    batch_bytes: int = 4 * 1024 * 1024
    linger_s: float = 0.2
    metric_interval_s: float = 60.0
    first_retry_s: float = 0.5
    last_retry_s: float = 30.0
    max_records: int = 50_000
    max_bytes: int = 32 * 1024 * 1024
    drain_bytes_s: int = 32 * 1024 * 1024


class ExportParts(Struct, frozen=True):
    """What the exporter needs of its process.

    `cells` is where it counts. `folder` is the record log, None for none. `collect` gives the
    series of all processes when metrics are sent; None for those of `cells`.
    """

    cells: Cells
    wire: Wire
    clock: Clock
    folder: RecordFolder | None = None
    collect: Callable[[], Awaitable[list[Series]]] | None = None
