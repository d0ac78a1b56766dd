"""The link: one connection between control and a worker, the same class on both ends.

Nothing here waits for the other side. What is sent goes to the transport's buffer; a side that
does not read until that buffer is full is hung up on, and when it comes back it is told all that
matters anew. Runs on the event loop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

from gateway.core.errors import NotReady
from gateway.processes.frames import (
    Ask,
    ForeignFrame,
    Message,
    Reply,
    Splitter,
    What,
    encode,
    error_of,
)

log: Final = logging.getLogger(__name__)

MAX_UNSENT_BYTES: Final = 96 * 1024 * 1024
"""Beyond this the other side is taken for stuck: one frame of the largest kind, and some."""
AWAY: Final = "Control is away; ask again in a moment."


class Link(asyncio.Protocol):
    """Requires: made by the loop as the protocol of a stream connection.

    `received` is called for each message that is no reply, `lost` once at the end.
    """

    def __init__(
        self,
        received: Callable[["Link", Message], None],
        lost: Callable[["Link"], None],
        opened: Callable[["Link"], None] | None = None,
    ) -> None:
        """Not connected yet; `opened` is called when it is."""
        self._received = received
        self._lost = lost
        self._opened = opened
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None
        # Questions under way.
        self._serial = 0
        self._asked: dict[int, asyncio.Future[Any]] = {}

    @property
    def unsent_bytes(self) -> int:
        """What the other side has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def is_open(self) -> bool:
        """Whether anything can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)  # a stream's, as required
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            for message in self._splitter.feed(data):
                if isinstance(message, Reply):
                    self._settle(message)
                else:
                    self._received(self, message)
        except ForeignFrame as error:
            log.error("The link brought what is no frame of ours and is cut. %s", error)  # noqa: TRY400 - known
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's words
        """Called by the loop."""
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(NotReady(AWAY))
        self._lost(self)

    def send(self, message: Message) -> bool:
        """Send a message; False if there is nobody to take it."""
        return self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> bool:
        """Send what `encode` made; False if there is nobody to take it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        transport.write(frame)
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.error("The other end of a link reads nothing any more; the link is cut.")
            self.cut()
            return False
        return True

    async def ask(self, what: What, *words: str | int | None, timeout_s: float) -> Any:  # noqa: ANN401 - as the other side has it
        """Ask the other side and wait for its answer, as `exchange` does."""
        return await self.exchange(lambda serial: Ask(serial, what, words), timeout_s)

    async def exchange(self, question: Callable[[int], Message], timeout_s: float) -> Any:  # noqa: ANN401 - as the other side has it
        """Send what `question` makes of a serial, and wait for the reply to it.

        Raises:
            NotReady: it went away, or did not answer in time.
            GatewayError: what it answered, if it refused.
        """
        self._serial += 1
        serial = self._serial
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[serial] = future
        try:
            if not self.send(question(serial)):
                raise NotReady(AWAY)
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            raise NotReady(AWAY) from error
        finally:
            self._asked.pop(serial, None)

    def cut(self) -> None:
        """Hang up at once, whatever is unsent."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Hang up once what was sent has been taken."""
        if self._transport is not None:
            self._transport.close()

    def _settle(self, reply: Reply) -> None:
        future = self._asked.get(reply.serial)
        if future is None or future.done():
            return
        if reply.refused is not None:
            future.set_exception(error_of(reply.refused))
        else:
            future.set_result(reply.result)
