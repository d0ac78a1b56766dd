from random import Random
from typing import Any

import numpy as np
import pytest

from gateway.core.endpoints import Recording
from gateway.core.tensors import Tensors
from gateway.serving.reservoirs import MAX_BYTES, Reservoir, Reservoirs
from tests.fakes import FakeEngine
from tests.planes import Plane, endpoint_of, snapshot_of
from tests.records import make_record


def offered(reservoir: Reservoir, *values: float, redact: tuple[str, ...] = ()) -> None:
    """Offer a request for each value, with draws that are fair."""
    random = Random(len(values))
    for value in values:
        tensors: Tensors = {"x": np.array([[value]]), "ssn": np.array([b"078"], dtype=object)}
        record = make_record(prediction_id=f"p{value}")
        reservoir.offer(record, tensors, redact, random.getrandbits(64))


def values_of(reservoir: Reservoir) -> list[float]:
    """The value of each kept request."""
    return [one["request"]["inputs"][0]["data"][0] for one in reservoir.documents()]


def test_a_kept_input_can_be_sent_again() -> None:
    """It is a request body of the Open Inference Protocol, and says what it was part of."""
    reservoir = Reservoir(1)
    tensors: Tensors = {
        "x": np.array([[1.5, 2.0]], dtype=np.float32),
        "who": np.array(["é".encode()], dtype=object),
        "ok": np.array([True]),
    }
    reservoir.offer(make_record(), tensors, (), 0)
    (kept,) = reservoir.documents()
    assert kept["request"] == {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.0]},
            {"name": "who", "shape": [1], "datatype": "BYTES", "data": ["é"]},
            {"name": "ok", "shape": [1], "datatype": "BOOL", "data": [True]},
        ]
    }
    assert (kept["prediction_id"], kept["variant"], kept["model_version"]) == (
        "p1",
        "challenger",
        3,
    )


def test_redacted_inputs_are_never_kept() -> None:
    """Their names are told, their values are not."""
    reservoir = Reservoir(5)
    offered(reservoir, 1.0, redact=("ssn", "unknown"))
    (kept,) = reservoir.documents()
    assert kept["redacted"] == ["ssn"]
    assert "078" not in str(kept)


def test_what_is_kept_is_a_recent_sample() -> None:
    """As many as asked for, of the last thousands and not of the first; newer ones more often."""
    reservoir = Reservoir(100)
    offered(reservoir, *map(float, range(100_000)))
    kept = values_of(reservoir)
    assert len(kept) == len(set(kept)) == 100
    assert min(kept) > 80_000
    assert sum(value > 99_000 for value in kept) < 90


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(np.array([np.nan]), id="not-a-number"),
        pytest.param(np.array([b"\xff"], dtype=object), id="no-text"),
        pytest.param(np.zeros(100_000), id="too-large"),
    ],
)
def test_what_json_cannot_tell_is_not_kept(tensor: Any) -> None:
    """Nor what would take long to write down."""
    reservoir = Reservoir(5)
    reservoir.offer(make_record(), {"x": tensor}, (), 0)
    assert reservoir.documents() == []


def test_a_reservoir_is_bounded_in_bytes() -> None:
    """Large inputs leave room for fewer."""
    reservoir = Reservoir(1_000)
    random = Random(3)
    for _ in range(400):
        tensors: Tensors = {"x": np.random.default_rng(1).random(8_000)}
        reservoir.offer(make_record(), tensors, (), random.getrandbits(64) & ~15)
    assert 10 < len(reservoir.documents()) < 100
    assert sum(map(len, reservoir._kept)) == reservoir._size <= MAX_BYTES


def test_a_reservoir_goes_with_its_endpoint() -> None:
    """What no document asks for any more is forgotten; a change elsewhere forgets nothing."""
    reservoirs = Reservoirs()
    reservoirs.resize({"digits": 2, "other": 0})
    reservoirs.offer(make_record(), {}, (), 0)
    reservoirs.offer(make_record(endpoint="other"), {}, (), 0)
    reservoirs.resize({"digits": 2, "other": 1})
    assert len(reservoirs.recent("digits")) == 1
    assert reservoirs.recent("other") == []
    reservoirs.resize({"digits": 0})
    assert reservoirs.recent("digits") == []


async def test_answered_requests_are_kept_where_that_is_asked_for() -> None:
    """Off unless the endpoint's document says so, and failures are left out."""
    endpoints = {"e": endpoint_of(recording=Recording(reservoir=3))}
    with Plane({("m", 1): FakeEngine()}) as plane:
        await plane.serve(snapshot_of(endpoints=endpoints))
        await plane.ask(plane.call(1.0), "e")
        await plane.ask(plane.call(2.0), "m")
        (kept,) = plane.worker.recent_inputs("e")
        assert kept["request"]["inputs"][0]["data"] == [1.0, 0.0, 0.0, 0.0]
        assert plane.worker.recent_inputs("m") == []
