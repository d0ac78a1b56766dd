"""A collector that only counts: OTLP over HTTP in, 200 out, nothing kept.

    python loadtests/sink.py PORT

`GET /count` answers what came so far: `{"records": ..., "requests": ..., "bytes": ...}`. Records
are counted by walking the length prefixes of resource logs, scope logs and log records; nothing
below that is read.
"""

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from typing import Any, Final

import uvloop

LENGTH_PREFIXED: Final = 2
RESOURCE_LOGS: Final = 1
SCOPE_LOGS: Final = 2
LOG_RECORDS: Final = 2


def count_records(message: bytes | memoryview) -> int:
    """Log records in a serialised `ExportLogsServiceRequest`.

    Raises:
        ValueError: the bytes are no such message.
    """
    try:
        return sum(
            1
            for resource in _fields(memoryview(message), RESOURCE_LOGS)
            for scope in _fields(resource, SCOPE_LOGS)
            for _ in _fields(scope, LOG_RECORDS)
        )
    except IndexError as error:
        raise ValueError("The message ends within a field.") from error


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """The length-prefixed fields of this number."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == LENGTH_PREFIXED:
            size, at = _varint(message, at)
            if at + size > end:
                raise ValueError("A field is longer than the message.")
            if key >> 3 == number:
                yield message[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"Wire type {kind} is unknown.")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


class Counts:
    """What came since the start."""

    def __init__(self) -> None:
        self.records = 0
        self.requests = 0
        self.bytes = 0
        self.unread = 0

    def take(self, path: bytes, encoding: bytes, body: bytes) -> None:
        """Count one message; one that cannot be read is counted, too."""
        self.requests += 1
        self.bytes += len(body)
        if path != b"/v1/logs":
            return
        try:
            self.records += count_records(gzip.decompress(body) if encoding == b"gzip" else body)
        except (ValueError, OSError, EOFError, zlib.error):
            self.unread += 1

    def told(self) -> bytes:
        """All counts as JSON."""
        return json.dumps(vars(self)).encode()


class Connection(asyncio.Protocol):
    """Just enough HTTP/1.1: a head, a Content-Length or chunks, the next request."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._held = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Keep the way back."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._held += data
        while self._answer_one():
            pass

    def _answer_one(self) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = bytes(self._held[:end]).split(b"\r\n")
        headers = {
            name.strip().lower(): value.strip().lower()
            for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        found = _body(self._held, end + 4, headers)
        if found is None:
            return False
        body, after = found
        del self._held[:after]
        path = lines[0].split(b" ")[1]
        answer = b""
        if path == b"/count":
            answer = self._counts.told()
        else:
            self._counts.take(path, headers.get(b"content-encoding", b""), body)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(answer), answer)
        )
        return bool(self._held)


def _body(held: bytearray, start: int, headers: dict[bytes, bytes]) -> tuple[bytes, int] | None:
    """The body and where it ends; None while it is not whole."""
    if headers.get(b"transfer-encoding") != b"chunked":
        after = start + int(headers.get(b"content-length", b"0"))
        return (bytes(held[start:after]), after) if len(held) >= after else None
    parts: list[bytes] = []
    while (line := held.find(b"\r\n", start)) >= 0:
        size = int(held[start:line], 16)
        start = line + 2 + size + 2
        if len(held) < start:
            return None
        if not size:
            return b"".join(parts), start
        parts.append(bytes(held[line + 2 : line + 2 + size]))
    return None


async def serve(port: int) -> None:
    """Count until the process is ended."""
    counts = Counts()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(counts), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
