"""How long requests took: the standard's histogram, whichever door answered."""

from typing import Final

from gateway.doors.http.routes import TEMPLATES
from gateway.serving.cells import Cells, Histogram
from gateway.telemetry import (
    HTTP_METHOD,
    HTTP_ROUTE,
    HTTP_STATUS,
    REQUEST_DURATION,
    URL_SCHEME,
)

KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class Requests:
    """The cells of answered requests; few, whatever callers send."""

    def __init__(self, cells: Cells) -> None:
        """Start with nothing answered."""
        self._cells = cells
        self._durations: dict[tuple[str, str, int, str], Histogram] = {}

    def answered(self, method: str, action: str, status: int, took_ns: int, scheme: str) -> None:
        """Count a request of a route's action that took so long."""
        kind = (method, action, status, scheme)
        cell = self._durations.get(kind)
        if cell is None:
            cell = self._cell(method if method in KNOWN_METHODS else "_OTHER", *kind[1:])
            if method in KNOWN_METHODS:
                self._durations[kind] = cell
        cell.observe(took_ns * 1e-9)

    def _cell(self, method: str, action: str, status: int, scheme: str) -> Histogram:
        labels = (
            (HTTP_METHOD, method),
            (HTTP_ROUTE, TEMPLATES.get(action, action)),
            (HTTP_STATUS, status),
            (URL_SCHEME, scheme),
        )
        return self._cells.histogram(REQUEST_DURATION, labels)
