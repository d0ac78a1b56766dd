"""A line to a server that can be cut at any moment, to test what a client makes of it."""

import asyncio
from collections.abc import Callable
from typing import Self


class Line:
    """Forwards between a TCP port and a unix socket.

    `cut_before` and `cut_after` look at what the client sends: the connection is closed before it
    is handed on, or after the server answered and before the answer is.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.cut_before: Callable[[bytes], bool] = lambda _: False
        self.cut_after: Callable[[bytes], bool] = lambda _: False
        self.silent = False
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"redis://127.0.0.1:{port}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for line in list(self._lines):
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._lines.add(task)
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._lines.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self.target)
        back = asyncio.create_task(self._back(up_reader, writer))
        try:
            while asked := await reader.read(1 << 20):
                if self.silent:
                    continue
                if self.cut_before(asked):
                    return
                if self.cut_after(asked):
                    back.cancel()
                    await asyncio.gather(back, return_exceptions=True)
                    up_writer.write(asked)
                    await up_reader.read(1 << 20)
                    return
                up_writer.write(asked)
        finally:
            back.cancel()
            up_writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answered := await reader.read(1 << 20):
            writer.write(answered)
        writer.close()
