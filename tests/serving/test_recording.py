import json
from typing import Any

import numpy as np
import pytest

from gateway.core.assignment import Reason
from gateway.serving.cells import Cells
from gateway.serving.recording import MAX_SPLITS, Recorder, payload_text
from gateway.settings import RecordingSettings
from gateway.telemetry import STANDARD_REASONS, Record
from tests.records import make_record


def record(**changes: Any) -> Record:
    """A record of a good prediction."""
    return make_record(**changes)


def values(cells: Cells, name: str) -> dict[tuple[Any, ...], Any]:
    """Value, or counts, of each series of an instrument."""
    return {
        series.attributes: sum(series.counts) or series.value
        for series in cells.collect()
        if series.instrument.name == name
    }


def test_a_record_is_measured() -> None:
    """One prediction counts in each instrument that speaks of it, under its attributes."""
    cells = Cells()
    Recorder(cells, RecordingSettings()).record(record())
    model = (("tiltyard.model.name", "digits"), ("tiltyard.model.version", 3))
    flag = (("feature_flag.key", "digits"), ("feature_flag.result.variant", "challenger"))
    full = (*flag, *model, ("tiltyard.shadow", False))
    assert values(cells, "tiltyard.prediction.duration") == {full: 1}
    assert values(cells, "tiltyard.inference.duration") == {full: 1}
    assert values(cells, "tiltyard.queue.duration") == {model: 1}
    assert values(cells, "tiltyard.batch.size") == {model: 1}
    reason = ("feature_flag.result.reason", "split")
    assigned = (flag[0], reason, flag[1], ("tiltyard.assignment.reason", "split"))
    assert values(cells, "tiltyard.assignment.count") == {assigned: 1}
    totals = {one.instrument.name: one.total for one in cells.collect()}
    assert totals["tiltyard.prediction.duration"] == pytest.approx(0.002)
    assert totals["tiltyard.inference.duration"] == pytest.approx(0.0003)
    assert totals["tiltyard.queue.duration"] == pytest.approx(0.0002)
    assert totals["tiltyard.batch.size"] == 5


def test_forced_and_pinned_calls_can_be_told_apart() -> None:
    """The standard's word is the same for some of our reasons, so each is counted under ours."""
    cells = Cells()
    recorder = Recorder(cells, RecordingSettings())
    for reason in Reason:
        recorder.record(record(reason=reason))
    told = [dict(names) for names in values(cells, "tiltyard.assignment.count")]
    assert sorted(names["tiltyard.assignment.reason"] for names in told) == sorted(Reason)
    assert {names["feature_flag.result.reason"] for names in told} == set(STANDARD_REASONS.values())


def test_what_never_ran_has_no_run() -> None:
    """A request that failed before its run counts as a prediction, not as an inference of 0 s."""
    cells = Cells()
    recorder = Recorder(cells, RecordingSettings())
    recorder.record(record(error_type="overloaded", batch_rows=0, rows=0, run_ns=0, queue_ns=0))
    (attributes,) = values(cells, "tiltyard.prediction.duration")
    assert ("error.type", "overloaded") in attributes
    assert set(values(cells, "tiltyard.inference.duration").values()) == {0}
    assert set(values(cells, "tiltyard.batch.size").values()) == {0}


def test_a_shadow_is_no_assignment() -> None:
    """A copy counts as a prediction of its own, and nobody was assigned to it."""
    cells = Cells()
    Recorder(cells, RecordingSettings()).record(record(shadow=True))
    (attributes,) = values(cells, "tiltyard.prediction.duration")
    assert ("tiltyard.shadow", True) in attributes
    assert values(cells, "tiltyard.assignment.count") == {}


def test_a_full_ring_loses_the_newest_and_counts_it() -> None:
    """Emitted is settled, dropped and pending together, whatever the ring holds."""
    recorder = Recorder(Cells(), RecordingSettings(max_records=3))
    for number in range(5):
        recorder.record(record(prediction_id=f"p{number}"))
    assert (recorder.emitted, recorder.dropped, recorder.pending) == (5, 2, 3)
    assert [one.prediction_id for one in recorder.drain(2)] == ["p0", "p1"]
    assert [one.prediction_id for one in recorder.drain(9)] == ["p2"]
    assert recorder.drain(9) == []


def test_held_records_take_room() -> None:
    """What the exporter has drained and not settled still counts against the bound."""
    recorder = Recorder(Cells(), RecordingSettings(max_records=3))
    for _ in range(3):
        recorder.record(record())
    recorder.held += len(recorder.drain(2))
    recorder.record(record())
    assert (recorder.dropped, recorder.pending) == (1, 3)
    recorder.held = 0
    recorder.record(record())
    assert (recorder.dropped, recorder.pending) == (1, 2)


def test_without_an_exporter_nothing_is_kept() -> None:
    """Cells are updated; records are neither queued nor counted."""
    cells = Cells()
    recorder = Recorder(cells, RecordingSettings())
    recorder.enabled = False
    recorder.record(record())
    assert (recorder.emitted, recorder.dropped, recorder.pending) == (0, 0, 0)
    assert sum(values(cells, "tiltyard.assignment.count").values()) == 1


def test_the_queue_is_measured_when_asked() -> None:
    """The instruments show what the recorder itself says."""
    cells = Cells()
    recorder = Recorder(cells, RecordingSettings(max_records=1))
    recorder.record(record())
    recorder.record(record())
    assert values(cells, "tiltyard.record.queue.size") == {(): 1}
    assert values(cells, "tiltyard.record.emitted") == {(): 2}
    dropped = values(cells, "tiltyard.record.dropped")
    assert dropped == {(("tiltyard.drop.reason", "queue_full"),): 1}


def test_cached_cells_stay_bounded_and_right() -> None:
    """Many kinds of records do not grow the cache without end, nor lose a count."""
    cells = Cells()
    recorder = Recorder(cells, RecordingSettings())
    for number in range(5_000):
        recorder.record(record(variant=f"v{number}"))
    assert len(recorder._measures) <= 4_096
    assert sum(values(cells, "tiltyard.assignment.count").values()) == 5_000


def test_a_unit_is_seen_once_in_each_split() -> None:
    """The first time is an exposure, the second is not; another split is another matter."""
    recorder = Recorder(Cells(), RecordingSettings())
    assert recorder.exposed("s1", b"u") is True
    assert recorder.exposed("s1", b"u") is False
    assert recorder.exposed("s2", b"u") is True


def test_the_units_of_late_are_remembered() -> None:
    """Of more units than fit, the one that was longest away is forgotten."""
    recorder = Recorder(Cells(), RecordingSettings(max_units=2))
    assert [recorder.exposed("s", unit) for unit in (b"a", b"b", b"a", b"c")] == [
        True,
        True,
        False,
        True,
    ]
    assert recorder.exposed("s", b"a") is False
    assert recorder.exposed("s", b"b") is True


def test_splits_are_bounded_too() -> None:
    """A new split takes the place of the oldest."""
    recorder = Recorder(Cells(), RecordingSettings())
    for number in range(MAX_SPLITS + 1):
        recorder.exposed(f"s{number}", b"u")
    assert len(recorder._seen) == MAX_SPLITS
    assert recorder.exposed("s0", b"u") is True


def test_a_payload_is_json() -> None:
    """Names, datatypes, shapes and values, in the order of the request."""
    tensors = {
        "x": np.array([[1.5, np.nan], [np.inf, -np.inf]], dtype=np.float64),
        "ok": np.array([True, False]),
        "who": np.array([b"a\x00b", b"\xff"], dtype=object),
    }
    assert json.loads(payload_text(tensors, (), 4096)) == {
        "tensors": {
            "x": {
                "datatype": "FP64",
                "shape": [2, 2],
                "data": [1.5, "NaN", "Infinity", "-Infinity"],
            },
            "ok": {"datatype": "BOOL", "shape": [2], "data": [True, False]},
            "who": {"datatype": "BYTES", "shape": [2], "data": ["a\x00b", "\ufffd"]},
        }
    }


def test_redacted_values_are_never_looked_at() -> None:
    """A redacted input is named; nothing of its value is in the text."""
    tensors = {"x": np.array([1]), "ssn": np.array([b"078-05-1120"], dtype=object)}
    text = payload_text(tensors, ("ssn", "unknown"), 4096)
    assert json.loads(text)["redacted"] == ["ssn"]
    assert "078" not in text
    assert "unknown" not in text


@pytest.mark.parametrize("max_bytes", [0, 2, 60, 61, 100, 200, 1000, 4096])
def test_a_payload_is_capped_and_still_json(max_bytes: int) -> None:
    """At most so many bytes, valid JSON, and what was cut is counted."""
    tensors = {
        "x": np.arange(100_000, dtype=np.int64).reshape(1000, 100),
        "é": np.array(["é".encode() * 50_000, b"s"], dtype=object),
        "z": np.zeros((0, 4), dtype=np.float32),
    }
    text = payload_text(tensors, ("é",) if max_bytes == 200 else (), max_bytes)
    assert len(text.encode()) <= max(max_bytes, 2)
    shown = json.loads(text).get("tensors", {})
    for name, tensor in shown.items():
        assert len(tensor["data"]) + tensor.get("cut", 0) == tensors[name].size
    if max_bytes == 4096:
        assert shown["x"]["data"][:3] == [0, 1, 2]
        assert shown["z"] == {"datatype": "FP32", "shape": [0, 4], "data": []}


def test_a_payload_keeps_no_buffer() -> None:
    """The text is a copy: a request's memory changes or goes without it."""
    buffer = bytearray(np.array([1.0, 2.0]).tobytes())
    text = payload_text({"x": np.frombuffer(buffer)}, (), 4096)
    buffer[:] = bytes(16)
    buffer.clear()
    assert json.loads(text)["tensors"]["x"]["data"] == [1.0, 2.0]
