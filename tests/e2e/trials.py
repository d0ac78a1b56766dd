"""Experiments from outside: callers with units, what they were answered, and what that adds up to.

The callers keep everything that they were told, so that a test can work out in a single pass what
the tallies must be, and hold the store against it.
"""

import asyncio
import itertools
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean, variance
from types import TracebackType
from typing import Any, Self

import aiohttp
import httpx
import redis

from gateway.core.tallies import Cell, decode_cell
from gateway.doors.cli.traffic import infer_body, read_flights
from tests.e2e.gateways import Gateway, eventually
from tests.e2e.test_flights import PATH, TRAFFIC
from tests.e2e.valkeys import ValkeyProcess

BODIES = [infer_body(flight) for flight in read_flights(TRAFFIC, 200)]
ENDPOINT = {"schema": 1, "model": "flight-delay", "token_scalars": ["probabilities:1"]}
ERRORS = {"name": "errors", "event": "error", "negligible": 0.3}
"""A guard that some dozens of units without an error certify."""
PATIENCE_S = 30.0
PACE_S = 0.008
"""Of each caller between two units: enough to go on with, and no load test."""
OK, ACCEPTED = 200, 202


def document(**fields: Any) -> dict[str, Any]:
    """A quick ramp of version 2 against version 1, guarded against errors."""
    return {
        "schema": 1,
        "endpoint": "flight-delay",
        "variants": [{"name": "control", "version": 1}, {"name": "candidate", "version": 2}],
        "strategy": {"kind": "ramp", "steps": [2_000, 5_000], "dwell_s": 0.5, "min_units": 20},
        "guards": [ERRORS],
        **fields,
    }


def begin(gateway: Gateway, name: str, written: Mapping[str, Any]) -> None:
    """Put a draft, start it, and wait until every process serves it."""
    gateway.told("PUT", f"/admin/v1/experiments/{name}", written)
    gateway.told("POST", f"/admin/v1/experiments/{name}/start", {})
    gateway.settle()


def record(gateway: Gateway, name: str) -> dict[str, Any]:
    """What is known of an experiment."""
    found: dict[str, Any] = gateway.told("GET", f"/admin/v1/experiments/{name}")["record"]
    return found


def report(gateway: Gateway, name: str) -> dict[str, Any]:
    """What its evidence says."""
    return gateway.told("GET", f"/admin/v1/experiments/{name}/report")


def reaches(gateway: Gateway, name: str, *states: str, within_s: float = 30.0) -> dict[str, Any]:
    """Its record once it is in one of these states."""

    def looked() -> dict[str, Any] | None:
        with suppress(httpx.TransportError, AssertionError):
            found = record(gateway, name)
            return found if found["state"] in states else None
        return None

    found = eventually(looked, within_s)
    assert found is not None
    return found


def steps_of(gateway: Gateway, name: str) -> list[dict[str, Any]]:
    """Audit entries of what the steward did with an experiment, oldest first."""
    return [
        entry
        for entry in gateway.audit()
        if entry["action"] == "experiment.step" and entry["target"] == f"experiments/{name}"
    ]


def champion(gateway: Gateway, model: str = "flight-delay") -> int:
    """The version that the alias names."""
    found: int = gateway.told("GET", f"/admin/v1/models/{model}")["aliases"]["champion"]
    return found


def alias_moves(gateway: Gateway, model: str = "flight-delay") -> list[int]:
    """The champions that commits made, oldest first."""
    moves = [
        one["document"]["aliases"]["champion"]
        for entry in gateway.audit()
        for one in (entry, *entry.get("also", ()))
        if one["target"] == f"models/{model}" and one["document"]
    ]
    return [after for before, after in itertools.pairwise(moves) if before != after]


@dataclass(frozen=True)
class Told:
    """One answer: whom it was for, and when it came, in UTC seconds."""

    unit: str
    variant: str
    version: str
    revision: int
    id: str
    at: float


@dataclass
class Diary:
    """What callers know.

    `values` holds outcomes that were accepted at least once, by prediction id; `again` counts the
    further times, `lost` the reports that nobody answered.
    """

    told: list[Told] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    again: int = 0
    lost: int = 0
    refused: int = 0

    def by_unit(self) -> dict[str, set[str]]:
        """Every variant that each unit was ever given."""
        variants: dict[str, set[str]] = defaultdict(set)
        for one in self.told:
            variants[one.unit].add(one.variant)
        return variants


class Callers:
    """A few callers, each with one unit after the other: ask once, report until it is accepted.

    They run in a thread while the block lasts. Where a connection breaks they try again, so a
    fact may be reported more than once, and every third one is, on purpose.
    """

    def __init__(
        self,
        *gateways: Gateway,
        name: str = "u",
        callers: int = 4,
        units: int | None = None,
        returning: int | None = None,
        path: str = PATH,
        metric: str | None = "arrival",
    ) -> None:
        """Go round the gateways; without a limit of units until the block ends.

        With `returning` there are only so many units, who come again and again.
        """
        self.diary = Diary()
        self._gateways = gateways
        self._callers = callers
        self._path = path
        self._metric = metric
        self._chance = random.Random(7)
        numbers: Iterable[int] = itertools.count() if units is None else range(units)
        if returning is not None:
            numbers = itertools.cycle(range(returning))
        self._units = (f"{name}{number}" for number in numbers)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.faults: list[BaseException] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive()
        if error is None:
            assert self.faults == []

    def go_on(self, answers: int) -> None:
        """Wait until so many more answers came."""
        before = len(self.diary.told)
        eventually(lambda: self.faults or len(self.diary.told) >= before + answers, PATIENCE_S)
        assert self.faults == []

    def catch_up(self) -> None:
        """Wait until all that was answered so far is reported and accepted."""
        told = self.diary.told[-2 * self._callers :]
        eventually(
            lambda: self.faults or all(one.id in self.diary.values for one in told), PATIENCE_S
        )
        assert self.faults == []

    async def _run(self) -> None:
        try:
            await asyncio.gather(*(self._call(number) for number in range(self._callers)))
        except BaseException as error:  # noqa: BLE001 - told where the block ends
            self.faults.append(error)

    async def _call(self, number: int) -> None:
        gateways = itertools.cycle(self._gateways[number % len(self._gateways) :])
        timeout = aiohttp.ClientTimeout(10)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            for unit in self._units:
                gateway = next(gateways)
                told = await self._ask(client, gateway, unit)
                if told is None:
                    return
                self.diary.told.append(told)
                if self._metric is not None and not await self._report(client, gateway, told):
                    return
                await asyncio.sleep(PACE_S)
                if self._stop.is_set():
                    return

    async def _ask(self, client: aiohttp.ClientSession, gateway: Gateway, unit: str) -> Told | None:
        while not self._stop.is_set():
            body = BODIES[self._chance.randrange(len(BODIES))]
            url, headers = gateway.url + self._path, {"X-Unit-Id": unit}
            with suppress(aiohttp.ClientError, TimeoutError):
                async with client.post(url, data=body, headers=headers) as answer:
                    await answer.read()
                    assert answer.status == OK, await answer.text()
                    return told_by(unit, answer.headers)
            await asyncio.sleep(0.02)
        return None

    async def _report(self, client: aiohttp.ClientSession, gateway: Gateway, told: Told) -> bool:
        """Whether it was accepted before it was time to go."""
        value = round(self._chance.gauss(5.0, 2.0), 3)
        item = {"prediction_id": told.id, "metric": self._metric, "value": value}
        headers = {"Authorization": f"Bearer {gateway.token}"}
        times = 2 if self._chance.random() < 1 / 3 else 1
        given_up = time.monotonic() + PATIENCE_S
        while times:
            status = 0
            with suppress(aiohttp.ClientError, TimeoutError):
                async with client.post(
                    f"{gateway.url}/v1/outcomes", json=[item], headers=headers
                ) as answer:
                    await answer.read()
                    status = answer.status
            if status == ACCEPTED:
                self.diary.again += told.id in self.diary.values
                self.diary.values[told.id] = value
                times -= 1
                continue
            assert status in {0, 503}, status
            self.diary.lost += status == 0
            self.diary.refused += status != 0
            assert time.monotonic() < given_up
            await asyncio.sleep(0.02)
        return True


def told_by(unit: str, headers: Mapping[str, str]) -> Told:
    """What an answer says of itself."""
    return Told(
        unit=unit,
        variant=headers["X-Variant"],
        version=headers["X-Model-Version"],
        revision=int(headers["X-Revision"]),
        id=headers["X-Prediction-Id"],
        at=time.time(),
    )


@dataclass(frozen=True)
class Sum:
    """One variant in one phase, of the units that reported: how many, and of their values."""

    units: int
    mean: float
    variance: float


def reference(
    diary: Diary, phases: Sequence[Mapping[str, Any]], variants: Sequence[str]
) -> dict[tuple[int, int], Sum]:
    """What the tallies must be, in a single pass over what the callers know.

    Each of their units asked once, so its phase is the one that was served then.
    """
    numbers = [phase["number"] for phase in phases]
    values: dict[tuple[int, int], list[float]] = defaultdict(list)
    for one in diary.told:
        if one.variant in variants and one.id in diary.values:
            phase = max(number for number in numbers if number <= one.revision)
            values[phase, variants.index(one.variant)].append(diary.values[one.id])
    return {
        key: Sum(len(found), fmean(found), variance(found) if len(found) > 1 else 0.0)
        for key, found in values.items()
    }


class Books:
    """The store's side: tallies and what became of events, read from Redis."""

    def __init__(self, valkey: ValkeyProcess) -> None:
        """Connect when asked."""
        self._client: Any = redis.Redis.from_url(valkey.url)

    def cells(self, experiment_id: str) -> dict[tuple[int, int], Cell]:
        """Tallies by phase and variant; none while the store is away."""
        try:
            found = self._client.hgetall(f"{{tiltyard}}:tally:{experiment_id}")
        except redis.RedisError:
            return {}
        cells = [decode_cell(data) for key, data in found.items() if not key.startswith(b"s:")]
        return {(cell.phase, cell.variant): cell for cell in cells}

    def results(self, experiment_id: str) -> dict[str, int]:
        """What became of its events."""
        found = self._client.hgetall("{tiltyard}:folding")
        prefix = f"{experiment_id}:".encode()
        return {
            key.removeprefix(prefix).decode(): int(number)
            for key, number in found.items()
            if key.startswith(prefix)
        }

    def received(self, experiment_id: str) -> int:
        """Units with an outcome."""
        return sum(cell.received for cell in self.cells(experiment_id).values())

    def counted(self, experiment_id: str, metric: str) -> int:
        """Units whose time is over and whose value counts."""
        return sum(cell.metrics[metric].units for cell in self.cells(experiment_id).values())

    def waiting(self, experiment_id: str, metric: str) -> int:
        """Units whose time is not over."""
        return sum(cell.metrics[metric].waiting for cell in self.cells(experiment_id).values())

    def sums(self, experiment_id: str, metric: str) -> dict[tuple[int, int], Sum]:
        """The tallies of a metric, as `reference` has them."""
        sums = {}
        for key, cell in self.cells(experiment_id).items():
            moments = cell.metrics[metric].moments
            if moments is not None:
                sums[key] = Sum(moments.n, moments.mean, moments.variance)
        return sums


def close_to(one: Sum, other: Sum) -> bool:
    """Whether two are the same but for the last digits."""
    return (
        one.units == other.units
        and abs(one.mean - other.mean) <= 1e-9 * max(1.0, abs(other.mean))
        and abs(one.variance - other.variance) <= 1e-9 * max(1.0, other.variance)
    )
