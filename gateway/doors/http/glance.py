"""A glance: heads like the last one of their connection, told from it without the parser.

Callers send the same head again and again, but for the length of the body and a value or two, such
as the unit. A `Glance` is learned from two heads that passed the parser and every check. It takes a
request only if each byte of its head is that of the learned one, but for those few values, and only
if these are visible ASCII: then parser and checks would say what they said before. Everything else
goes to the parser.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from gateway.doors.http.heads import SPECIAL
from gateway.doors.http.inference_head import Head, Headers
from gateway.doors.http.routes import Route

MAX_FREE: Final = 4
"""Values that may differ from head to head."""
MAX_HEAD_BYTES: Final = 4 * 1024
_LENGTH: Final = b"content-length"
_BOUND: Final = SPECIAL | {b"content-type"}
"""Headers that say how a request is read: a head with another value is judged anew."""
_END: Final = b"\r\n\r\n"
_VISIBLE: Final = b"([!-~]+)"


class Glance:
    """What the heads of one connection have in common, and which values are free."""

    __slots__ = ("_fixed", "_length", "_match", "_names", "route")

    def __init__(self, route: Route, lines: list[bytes], free: set[bytes], max_digits: int) -> None:
        """Learn from one head.

        Args:
            route: where its path leads.
            lines: as sent; each header as `name: value`, each name once.
            free: names, in lower case, of headers whose value may differ; none that says how a
                head is read but the length.
            max_digits: of a length that may be taken unseen.
        """
        self.route = route
        self._fixed = dict(map(_header, lines[1:]))
        self._names = [name for name in self._fixed if name in free]
        self._length = self._names.index(_LENGTH)
        known = [b"" if name in free else value for name, value in self._fixed.items()]
        names = [line.partition(b":")[0] for line in lines[1:]]
        self._match = _matcher(lines[0], tuple(zip(names, known, strict=True)), max_digits)

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of a request that is like those before; None for any other.

        Args:
            data: all that came; it must be one whole request.
        """
        match = self._match(data)
        if match is None:
            return None
        values, at = match.groups(), match.end()
        size = len(data) - at
        if int(values[self._length]) != size:
            return None
        headers = self._fixed.copy()
        headers.update(zip(self._names, values))  # noqa: B905 - made of each other, and quicker
        return Head(headers, size), data[at:]


def learn(
    data: bytes, asked: tuple[bytes, Route], headers: Headers, differ: set[bytes], max_digits: int
) -> Glance | None:
    """Learn from a plain request that came whole; None where that cannot be done.

    Args:
        data: all that came.
        asked: the target, and where it leads.
        headers: of the last request in it, as parsed.
        differ: names of headers that have differed on this connection.
        max_digits: of a length that may be taken unseen.
    """
    url, route = asked
    raw = data[: data.find(_END) + len(_END)]
    told = dict(headers)
    if (
        not 0 < len(raw) <= MAX_HEAD_BYTES
        or b"" in told.values()
        or told.get(_LENGTH) != b"%d" % (len(data) - len(raw))
    ):
        return None
    lines = raw[: -len(_END)].split(b"\r\n")
    if lines[0] != b"POST %b HTTP/1.1" % url or list(map(_header, lines[1:])) != headers:
        return None
    free = {_LENGTH} | (differ.intersection(told) - _BOUND)
    return None if len(free) > MAX_FREE else Glance(route, lines, free, max_digits)


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name.lower(), value


@lru_cache(maxsize=256)
def _matcher(
    line: bytes, headers: tuple[tuple[bytes, bytes], ...], max_digits: int
) -> Callable[[bytes], re.Match[bytes] | None]:
    """Matches a head; made once for all callers of one kind. A header without a value is free."""
    rows = [re.escape(line)]
    for name, value in headers:
        told = re.escape(value) or _VISIBLE
        if name.lower() == _LENGTH:
            told = b"([0-9]{1,%d})" % max_digits
        rows.append(b"%b: %b" % (re.escape(name), told))
    return re.compile(b"\r\n".join([*rows, b"", b""])).match
