"""Traffic: the flights that the sample model is asked about, read from the committed file."""

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from math import nan
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

FEATURES: Final = (
    "sched_dep",
    "sched_arr",
    "month",
    "day_of_week",
    "distance",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
)
"""Columns of the input `features`, in order; an empty cell is a missing measurement."""
LATE_MINUTES: Final = 15


class Flight(Struct, frozen=True):
    """One scheduled flight, and what became of it.

    `departs` is when it should leave, and `arrived` when its outcome was known, in Unix seconds.
    `late` and `arrived` are None for a flight that was cancelled or diverted: it has no outcome.
    """

    id: str
    tail_number: str
    carrier: str
    origin: str
    dest: str
    features: tuple[float, ...]
    late: bool | None
    departs: float = 0.0
    arrived: float | None = None


def read_flights(path: Path, limit: int | None = None) -> Iterator[Flight]:
    """Read flights in the order of their scheduled departure, at most `limit`.

    Raises:
        OSError: the file is not there.
    """
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for index, row in enumerate(csv.DictReader(lines)):
            if limit is not None and index >= limit:
                return
            delay = row["arr_delay"]
            yield Flight(
                id=row["flight"],
                tail_number=row["tailnum"],
                carrier=row["carrier"],
                origin=row["origin"],
                dest=row["dest"],
                features=tuple(float(row[name]) if row[name] else nan for name in FEATURES),
                late=float(delay) >= LATE_MINUTES if delay else None,
                departs=_seconds(row["time"]),
                arrived=_seconds(row["arrived_at"]) if delay else None,
            )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def infer_body(flight: Flight) -> bytes:
    """The flight as an inference request in JSON; missing measurements are NaN literals."""
    words = {"carrier": flight.carrier, "origin": flight.origin, "dest": flight.dest}
    inputs: list[dict[str, Any]] = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [word]}
        for name, word in words.items()
    ]
    features = {"name": "features", "datatype": "FP32", "shape": [1, len(flight.features)]}
    inputs.append({**features, "data": list(flight.features)})
    return json.dumps({"id": flight.id, "inputs": inputs}).encode()
