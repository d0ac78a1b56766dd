"""Replaying flights: requests in the order of departure, outcomes in the order of arrival.

Time is compressed: the clock of the story is the departure of the flight that was asked last, and
an arrival is reported once that clock has passed it, so outcomes are as late as they were, in
proportion.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final

import httpx

from gateway.doors.cli.chapters import OUTCOME
from gateway.doors.cli.traffic import Flight, infer_body

SENDERS: Final = 4
REPORT_S: Final = 0.1
AT_ONCE: Final = 500
TRIES: Final = 20
_OK: Final = 200
_ACCEPTED: Final = 202


@dataclass(slots=True)
class Replay:
    """What clients sent and saw. `more` gives flights until the source is dry, or `stop`."""

    client: httpx.AsyncClient
    flights: Iterator[Flight]
    advance: Callable[[], None]
    token: str
    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    outcomes: int = 0
    _due: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)
    _clock: float = 0.0
    _stopped: bool = False

    async def run(self, endpoint: str, limit: int) -> None:
        """Send at most so many flights to an endpoint, and every arrival among them."""
        self._stopped = False
        left = iter(range(limit))
        reporter = asyncio.create_task(self._report())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(SENDERS):
                    group.create_task(self._send(endpoint, left))
        finally:
            reporter.cancel()
            with suppress(asyncio.CancelledError):
                await reporter
        self._clock = float("inf")
        await self._post_due()
        self._clock = 0.0

    def stop(self) -> None:
        """Ask for no more flights."""
        self._stopped = True

    async def _send(self, endpoint: str, left: Iterator[int]) -> None:
        path = f"/v2/models/{endpoint}/infer"
        for _ in left:
            flight = next(self.flights, None)
            if flight is None or self._stopped:
                return
            headers = {"X-Unit-Id": flight.tail_number, "Content-Type": "application/json"}
            response = await self.client.post(path, content=infer_body(flight), headers=headers)
            self._clock = max(self._clock, flight.departs)
            self.advance()
            if response.status_code != _OK:
                self.errors[str(response.status_code)] += 1
                continue
            variant = response.headers["X-Variant"]
            self.answers[variant] += 1
            if flight.arrived is not None and flight.late is not None:
                outcome = {
                    "prediction_id": response.headers["X-Prediction-Id"],
                    "metric": OUTCOME,
                    "value": flight.late,
                }
                heappush(self._due, (flight.arrived, id(outcome), outcome))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            await self._post_due()

    async def _post_due(self) -> None:
        """Report every arrival that the clock has passed, some hundred at a time."""
        while self._due and self._due[0][0] <= self._clock:
            batch: list[dict[str, Any]] = []
            while self._due and self._due[0][0] <= self._clock and len(batch) < AT_ONCE:
                batch.append(heappop(self._due)[2])
            await self._post(batch)

    async def _post(self, batch: list[dict[str, Any]]) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        for _ in range(TRIES):
            response = await self.client.post("/v1/outcomes", json=batch, headers=headers)
            if response.status_code == _ACCEPTED:
                self.outcomes += response.json()["accepted"]
                return
            await asyncio.sleep(REPORT_S)
        self.errors[f"outcomes {response.status_code}"] += len(batch)
