"""A glance: heads like the last one of their connection, told from it without the parser.

Callers send the same head again and again, but for the length of the body and a value or two, such
as the unit. A `Glance` is learned from a head that passed the parser and every check. It takes a
request only if each byte of its head is that of the learned one, but for those few values, and only
if these are visible ASCII: then parser and checks would say what they said before. Everything else
goes to the parser.
"""

from itertools import pairwise
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
_VISIBLE: Final = bytes(range(0x21, 0x7F))


class Glance:
    """What the heads of one connection have in common, and which values are free."""

    __slots__ = ("_first", "_fixed", "_length", "_max_digits", "_names", "_pieces", "route")

    def __init__(
        self, route: Route, raw: bytes, headers: Headers, free: set[bytes], max_digits: int
    ) -> None:
        """Learn from one head.

        Args:
            route: where its path leads.
            raw: the head as it came, with the empty line; each header as `name: value`.
            headers: the same as parsed, each name once, names in lower case.
            free: names of headers whose value may differ; none that says how a head is read but
                the length.
            max_digits: of a length that may be taken unseen.
        """
        names = [name for name, _ in headers if name in free]
        cuts: list[int] = [0]
        at = raw.index(b"\r\n") + 2
        for name, value in headers:
            start = at + len(name) + 2
            at = start + len(value) + 2
            if name in free:
                cuts += (start, at - 2)
        cuts.append(len(raw))
        literals = [raw[start:end] for start, end in list(pairwise(cuts))[::2]]
        self.route = route
        self._first = literals[0]
        self._pieces = [(piece, len(piece)) for piece in literals[1:]]
        self._names = names
        self._length = names.index(_LENGTH)
        self._fixed = dict(headers)
        self._max_digits = max_digits

    def differs(self, name: bytes, value: bytes) -> bool:
        """Whether the value of this header is free, or would have to be."""
        return name in self._names or not (name in _BOUND or self._fixed.get(name, value) == value)

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of a request that is like those before; None for any other.

        Args:
            data: all that came; it must be one whole request.
        """
        first = self._first
        if not data.startswith(first):
            return None
        at = len(first)
        values = []
        for piece, size in self._pieces:
            end = data.find(b"\r", at)
            if end <= at or not data.startswith(piece, end):
                return None
            values.append(data[at:end])
            at = end + size
        length = values[self._length]
        if (
            not length.isdigit()
            or len(length) > self._max_digits
            or int(length) != len(data) - at
            or b"".join(values).translate(None, _VISIBLE)
        ):
            return None
        headers = self._fixed.copy()
        headers.update(zip(self._names, values))  # noqa: B905 - made of each other, and quicker
        return Head.like(headers, len(data) - at), data[at:]


def learn(
    data: bytes, asked: tuple[bytes, Route], headers: Headers, before: Glance | None, digits: int
) -> Glance | None:
    """Learn from a plain request that came whole; None where that cannot be done.

    Args:
        data: all that came.
        asked: the target, and where it leads.
        headers: of the last request in it, as parsed.
        before: what was learned of an earlier head: where this one differs is free from now on.
        digits: of a length that may be taken unseen.
    """
    url, route = asked
    raw = data[: data.find(_END) + len(_END)]
    told = dict(headers)
    if not 0 < len(raw) <= MAX_HEAD_BYTES or told.get(_LENGTH) != b"%d" % (len(data) - len(raw)):
        return None
    first, *rows = raw[: -len(_END)].split(b"\r\n")
    found = [row.partition(b": ") for row in rows]
    if (
        first != b"POST %b HTTP/1.1" % url
        or [(name.lower(), value) for name, _, value in found] != headers
    ):
        return None
    free = {_LENGTH}
    if before is not None:
        free |= {name for name, value in headers if before.differs(name, value)}
    return None if len(free) > MAX_FREE else Glance(route, raw, headers, free, digits)
