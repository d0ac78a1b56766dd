"""A closed-loop client for the stories of faults: few connections, each answered before it asks.

It behaves as a good client does: it keeps its connection, leaves when it is told `connection:
close`, and comes back at once. Whatever else ends a request is a failure, with its time.
"""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.e2e.gateways import ROOT, Gateway, eventually

BODY = (ROOT / "models" / "flight-delay" / "request.json").read_bytes()
PATH = "/v2/models/flight-delay/infer"
PATIENCE_S = 10.0


@dataclass
class Asker:
    """One connection at a time, for ever."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


class Load:
    """Load on a gateway while the block lasts, from a thread of its own."""

    def __init__(self, gateway: Gateway, askers: int = 8, *, until_gone: bool = False) -> None:
        self.askers = [Asker() for _ in range(askers)]
        self._gateway = gateway
        self._until_gone = until_gone
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        head = f"POST {PATH} HTTP/1.1\r\nhost: g\r\ncontent-length: {len(BODY)}\r\n\r\n"
        self._request = head.encode() + BODY

    def __enter__(self) -> Self:
        self._thread.start()
        self.go_on(20)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S * 2)

    @property
    def answered(self) -> int:
        """Requests that were answered with 200."""
        return sum(asker.answered for asker in self.askers)

    @property
    def failures(self) -> list[str]:
        """Everything that failed."""
        return [failure for asker in self.askers for failure in asker.failures]

    @property
    def slowest_s(self) -> float:
        """The longest that anybody waited for an answer, connecting included."""
        return max(asker.slowest_s for asker in self.askers)

    def go_on(self, answers: int) -> None:
        """Wait until so many more requests were answered."""
        before = self.answered
        eventually(lambda: self.answered >= before + answers)

    def join(self) -> None:
        """Wait until every asker has left by itself."""
        self._thread.join(PATIENCE_S * 2)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask(asker) for asker in self.askers))

    async def _ask(self, asker: Asker) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection("127.0.0.1", self._gateway.port), PATIENCE_S
                )
            except ConnectionRefusedError as error:
                if self._until_gone:
                    return
                asker.failures.append(repr(error))
                await asyncio.sleep(0.01)
                continue
            try:
                while not self._stop.is_set():
                    writer.write(self._request)
                    told_to_leave = await asyncio.wait_for(_answer(reader), PATIENCE_S)
                    asker.answered += 1
                    asker.slowest_s = max(asker.slowest_s, time.monotonic() - began)
                    if told_to_leave and self._until_gone:
                        return
                    if told_to_leave:
                        break
                    began = time.monotonic()
            except (OSError, EOFError, TimeoutError, AssertionError) as error:
                asker.failures.append(repr(error))
            finally:
                writer.close()


async def _answer(reader: asyncio.StreamReader) -> bool:
    """Read one answer; whether it said `connection: close`."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head[:60]
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    return b"connection: close" in head
