"""What all responses of a process share: how they start, and how long they took."""

from bisect import bisect_left
from http import HTTPStatus
from typing import Final

from gateway.doors.http.inference_head import Headers
from gateway.doors.http.routes import TEMPLATES
from gateway.serving.cells import Cells, Histogram
from gateway.telemetry import (
    HTTP_METHOD,
    HTTP_ROUTE,
    HTTP_STATUS,
    REQUEST_DURATION,
    URL_SCHEME,
)

_BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in REQUEST_DURATION.bounds)
KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Requests:
    """The cells of answered requests; few, whatever callers send."""

    def __init__(self, cells: Cells) -> None:
        """Start with nothing answered."""
        self._cells = cells
        self._headers: Headers = []
        self._starts: dict[int, bytes] = {}
        self._durations: dict[tuple[str, str, int, str], Histogram] = {}

    def start(self, status: int, headers: Headers) -> bytes:
        """The status line and the headers of every response, made anew when those change."""
        if headers is not self._headers:
            self._headers = headers
            self._starts = {}
        known = self._starts.get(status)
        if known is None:
            line = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
            known = self._starts[status] = line + b"".join(b"%b: %b\r\n" % one for one in headers)
        return known

    def answered(self, method: str, action: str, status: int, took_ns: int, scheme: str) -> None:
        """Count a request of a route's action that took so long."""
        cell = self._cell(method, action, status, scheme)
        cell.counts[bisect_left(_BOUNDS_NS, took_ns)] += 1
        cell.total += took_ns * 1e-9

    def answered_all(self, action: str, status: int, took_ns: list[int], scheme: str) -> None:
        """Count several POST requests of one kind."""
        cell = self._cell("POST", action, status, scheme)
        counts = cell.counts
        for took in took_ns:
            counts[bisect_left(_BOUNDS_NS, took)] += 1
        cell.total += sum(took_ns) * 1e-9

    def _cell(self, method: str, action: str, status: int, scheme: str) -> Histogram:
        kind = (method, action, status, scheme)
        cell = self._durations.get(kind)
        if cell is None:
            cell = self._new_cell(method if method in KNOWN_METHODS else "_OTHER", *kind[1:])
            if method in KNOWN_METHODS:
                self._durations[kind] = cell
        return cell

    def _new_cell(self, method: str, action: str, status: int, scheme: str) -> Histogram:
        labels = (
            (HTTP_METHOD, method),
            (HTTP_ROUTE, TEMPLATES.get(action, action)),
            (HTTP_STATUS, status),
            (URL_SCHEME, scheme),
        )
        return self._cells.histogram(REQUEST_DURATION, labels)
