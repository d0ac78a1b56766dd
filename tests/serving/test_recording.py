from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from opentelemetry.proto.logs.v1.logs_pb2 import ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from gateway.core.assignment import Reason
from gateway.ports import Parcel
from gateway.serving.cells import Cells
from gateway.serving.recording import AT_ONCE, WORTHWHILE, Recorder
from gateway.serving.vitals import HANDED_OVER, RECORDS, vitals
from gateway.settings import RecordingSettings
from gateway.telemetry import STANDARD_REASONS, Record, Trace
from tests.otlp_receiver import plain
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


def recorder_of(**bounds: int) -> Recorder:
    """A recorder with these bounds."""
    return Recorder(Cells(), RecordingSettings(**bounds))


def ids_of(parcel: Parcel) -> list[str]:
    """Prediction ids in a parcel."""
    rows = ScopeLogs.FromString(parcel.logs).log_records
    return [plain(row.attributes)["tiltyard.prediction.id"] for row in rows]


def assert_balanced(recorder: Recorder, handed_over: int) -> None:
    """Nothing is lost without being counted."""
    assert recorder.made == handed_over + recorder.dropped + recorder.pending


def test_records_are_handed_over_in_order() -> None:
    """A parcel settles the next serials, and its bytes tell the records in their order."""
    recorder = recorder_of()
    for number in range(5):
        recorder.record(record(prediction_id=f"p{number}"))
    assert recorder.take() is None
    assert recorder.encode_pending(3) == 2
    parcel = recorder.take()
    assert parcel is not None
    assert (parcel.first, parcel.records, parcel.dropped) == (1, 3, 0)
    assert ids_of(parcel) == ["p0", "p1", "p2"]
    assert recorder.encode_pending() == 0
    parcel = recorder.take()
    assert parcel is not None
    assert (parcel.first, ids_of(parcel)) == (4, ["p3", "p4"])
    assert recorder.take() is None
    assert (recorder.encoded_bytes, recorder.pending) == (0, 0)


def test_a_full_recorder_loses_the_newest_and_says_so() -> None:
    """The next parcel tells how many found no room, and the serials go on behind them."""
    recorder = recorder_of(max_records=3)
    for number in range(5):
        recorder.record(record(prediction_id=f"p{number}"))
    recorder.encode_pending()
    assert (recorder.dropped, recorder.pending) == (2, 3)
    parcel = recorder.take()
    assert parcel is not None
    assert (ids_of(parcel), parcel.dropped) == (["p0", "p1", "p2"], 2)
    recorder.record(record(prediction_id="p5"))
    recorder.encode_pending()
    parcel = recorder.take()
    assert parcel is not None
    assert (parcel.first, ids_of(parcel), parcel.dropped) == (6, ["p5"], 0)


def test_bytes_are_bounded_too() -> None:
    """Records of much payload do not fill the memory: what is over is lost by the flush."""
    recorder = recorder_of(max_bytes=10_000)
    for _ in range(10):
        recorder.record(record(inputs="x" * 4_000))
        recorder.encode_pending()
    assert recorder.encoded_bytes < 10_000 + 5_000
    assert (recorder.pending, recorder.dropped) == (3, 7)


def test_parcels_are_of_limited_size() -> None:
    """A parcel takes whole flushes as long as they fit, and one at least."""
    recorder = recorder_of()
    for _ in range(10):
        recorder.record(record(inputs="x" * 1_000))
        recorder.encode_pending()
    sizes = []
    while (parcel := recorder.take(4_000)) is not None:
        sizes.append(parcel.records)
    assert sum(sizes) == 10
    assert max(sizes) == 2
    recorder.record(record())
    recorder.encode_pending()
    assert recorder.take(1) is not None


def test_serials_outlive_the_process() -> None:
    """Shared memory knows what was made with every record, what was handed over by parcel."""
    shared = vitals()
    recorder = Recorder(Cells(), RecordingSettings(), shared)
    for number in range(3):
        recorder.record(record())
        assert shared[RECORDS] == number + 1
    recorder.encode_pending(2)
    recorder.take()
    assert (shared[RECORDS], shared[HANDED_OVER]) == (3, 2)


def test_a_long_list_is_encoded_by_itself() -> None:
    """Where nobody flushes, the list of fresh records stays short."""
    recorder = recorder_of()
    for _ in range(2_000):
        recorder.record(record())
        assert len(recorder._fresh) < 256
    assert recorder.pending == 2_000


def test_a_few_records_wait_for_company() -> None:
    """After a flush of answers only what is worth a call is encoded; a timer takes the rest."""
    recorder = recorder_of()
    for _ in range(WORTHWHILE):
        assert not recorder.has_many()
        recorder.record(record())
    assert recorder.has_many()
    for _ in range(AT_ONCE):
        recorder.record(record())
    assert recorder.encode_pending() == WORTHWHILE
    assert recorder.has_many()
    assert recorder.encode_pending() == 0
    assert not recorder.has_many()
    parcel = recorder.take()
    assert parcel is not None
    assert parcel.records == WORTHWHILE + AT_ONCE


def test_a_record_that_cannot_be_encoded_costs_itself() -> None:
    """Its neighbours are told, and it is counted."""
    recorder = recorder_of()
    for at_ns in (1, -1, 2):
        recorder.record(record(at_ns=at_ns, prediction_id=f"p{at_ns}"))
    recorder.encode_pending()
    parcel = recorder.take()
    assert parcel is not None
    assert (ids_of(parcel), parcel.dropped) == (["p1", "p2"], 1)


def test_spans_travel_with_their_records() -> None:
    """Sampled records have spans in the parcel, unless they are not wanted."""
    sampled = record(trace=Trace(b"t" * 16, b"s" * 8, None, sampled=True))
    for wanted, spans in ((True, 3), (False, 0)):
        recorder = Recorder(Cells(), RecordingSettings(), with_spans=wanted)
        recorder.record(sampled)
        recorder.encode_pending()
        parcel = recorder.take()
        assert parcel is not None
        assert parcel.span_count == len(ScopeSpans.FromString(parcel.spans).spans) == spans


@given(st.lists(st.sampled_from("reto"), max_size=60), st.integers(1, 8))
def test_nothing_is_lost_without_being_counted(steps: list[str], max_records: int) -> None:
    """Made is handed over, dropped and pending together at every moment."""
    recorder = recorder_of(max_records=max_records)
    handed_over = 0
    settled = 0
    for step in steps:
        if step == "r":
            recorder.record(record())
        elif step == "o":
            recorder.enabled = not recorder.enabled
        elif step == "e":
            recorder.encode_pending(3)
        elif (parcel := recorder.take(1)) is not None:
            assert parcel.first == settled + 1
            handed_over += parcel.records
            settled += parcel.records + parcel.dropped
        assert_balanced(recorder, handed_over)
    assert recorder.dropped + handed_over >= settled


def test_while_nobody_exports_nothing_is_kept() -> None:
    """Cells are updated; records are neither kept nor counted."""
    cells = Cells()
    recorder = Recorder(cells, RecordingSettings())
    recorder.enabled = False
    recorder.record(record())
    recorder.encode_pending()
    assert (recorder.made, recorder.dropped, recorder.pending) == (0, 0, 0)
    assert recorder.take() is None
    assert sum(values(cells, "tiltyard.assignment.count").values()) == 1


def test_predictions_of_one_run_are_measured_like_others() -> None:
    """Neighbours that are added together give the same cells as records one by one."""
    cells, others = Cells(), Cells()
    kind = record().kind
    told = [
        structs.replace(record(), kind=kind, run_ns=run_ns, batch_rows=rows, latency_ns=run_ns * 2)
        for run_ns, rows in ((5_000, 2), (5_000, 2), (5_000, 3), (9_000_000, 2), (5_000, 2), (0, 0))
    ]
    together, alone = Recorder(cells, RecordingSettings()), Recorder(others, RecordingSettings())
    for one in told:
        together.record(one)
        alone.record(one)
        alone.encode_pending()
    assert [structs.replace(series, total=0.0) for series in cells.collect()] == [
        structs.replace(series, total=0.0) for series in others.collect()
    ]
    totals = [series.total for series in others.collect()]
    assert [series.total for series in cells.collect()] == pytest.approx(totals)


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
    """The most recent units are known, as many as asked for and no more than twice as many."""
    recorder = recorder_of(max_units=100)
    units = [number.to_bytes(8, "big") for number in range(1_000)]
    for unit in units:
        assert recorder.exposed("s", unit) is True
    assert not any(recorder.exposed("s", unit) for unit in units[-100:])
    assert all(recorder.exposed("s", unit) for unit in units[:800])
    assert len(recorder._seen) + len(recorder._seen_before) <= 200


def test_a_unit_that_comes_again_is_kept() -> None:
    """Who was seen lately is not forgotten for being old."""
    recorder = recorder_of(max_units=10)
    recorder.exposed("s", b"regular")
    for number in range(1_000):
        recorder.exposed("s", number.to_bytes(8, "big"))
        assert recorder.exposed("s", b"regular") is False
