from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.core.endpoints import UnitKey
from gateway.core.errors import InvalidOutput
from gateway.core.evidence import SERVED, SIGHTING, Compared, Counts, Sightings, decode_sightings
from gateway.core.experiments import (
    Experiment,
    Guard,
    Metric,
    Phase,
    Segment,
    ShadowStage,
    State,
    Study,
    study_of,
)
from gateway.core.snapshot import Snapshot
from gateway.core.studies import studies_of
from gateway.core.tensors import Array, Tensors
from gateway.serving import sightings
from gateway.serving.cells import Cells
from gateway.serving.sightings import Watchman, drop_into
from gateway.settings import BatchSettings
from gateway.telemetry import SIGHTING_DROPPED, Kind, Record
from tests.evidence import Folded
from tests.experiments import EVEN, experiment_of, record_of, with_study
from tests.fakes import FailingEngine, FakeEngine
from tests.planes import Plane, until
from tests.records import AT, make_record

ONE, TWO = ("m", 1), ("m", 2)
PHASE = Phase(7, 100.0, 10_000, EVEN)
ALL_GUARDS = (
    Guard(name="errors", event="error"),
    Guard(name="late", event="timeout"),
    Guard(name="nan", event="invalid_output"),
    Guard(name="slow", event="slow", over_ms=20.0),
)
ERROR, TIMEOUT, INVALID, SLOW = 2, 4, 8, 16
CONTROL, CANDIDATE = 0, 1


class Spoiling(FakeEngine):
    """Answers rows that begin with 13 with NaN."""

    def run(self, tensors: Tensors, outputs: Sequence[str]) -> list[Array]:
        (sums,) = super().run(tensors, outputs)
        return [np.where(tensors["x"][:, :1] == 13, np.float32("nan"), sums)]


def kind_of(document: Experiment | None = None, **fields: Any) -> Kind:
    """A kind of prediction in the phase of an experiment."""
    document = document or experiment_of(guards=ALL_GUARDS)
    study = study_of("x", document, PHASE)
    known = {"variant": "candidate", "study": study, "phase": 7, "experiment": "x"}
    return make_record(**{**known, **fields}).kind


def seen(kind: Kind, unit: int = 1, **fields: Any) -> Record:
    """A record of that kind for a unit."""
    record = make_record(unit_hash=unit.to_bytes(16, "big"), **fields)
    record.kind = kind
    return record


def watchman(max_units: int = 1_000) -> Watchman:
    """One that has seen nobody."""
    return Watchman(Cells(), max_units)


def told(watcher: Watchman) -> Sightings:
    """What it hands over; nothing is nothing."""
    data = watcher.take()
    return decode_sightings(data) if data else Sightings()


def rows_of(told_: Sightings) -> list[tuple[int, int, int, int, int]]:
    """Phase, unit, variant, segment and bits of each row."""
    return [
        (phase, int.from_bytes(unit, "big"), variant, segment, bits)
        for phase, unit, variant, segment, bits, _ in SIGHTING.iter_unpack(told_.units)
    ]


def bits_of(kind: Kind, **fields: Any) -> int:
    """The bits that one record is told with."""
    watcher = watchman()
    watcher.note([seen(kind, **fields)])
    ((*_, bits),) = rows_of(told(watcher))
    return bits


def test_a_unit_is_told_when_it_is_first_seen_and_when_something_is_new() -> None:
    """A repeated sight says nothing; a new event is told with all that is known of the unit."""
    kind, watcher = kind_of(), watchman()
    watcher.note([seen(kind), seen(kind), seen(kind, 2)])
    assert rows_of(told(watcher)) == [(7, 1, CANDIDATE, 0, SERVED), (7, 2, CANDIDATE, 0, SERVED)]
    watcher.note([seen(kind), seen(kind, latency_ns=30_000_000), seen(kind)])
    assert rows_of(told(watcher)) == [(7, 1, CANDIDATE, 0, SERVED | SLOW)]
    assert not watcher.has_news
    assert watcher.take() == b""


def test_the_time_of_a_sighting_is_that_of_the_request() -> None:
    """In Unix milliseconds, at its arrival."""
    watcher = watchman()
    watcher.note([seen(kind_of(), at_ns=AT + 1_999_999)])
    ((*_, at_ms),) = SIGHTING.iter_unpack(told(watcher).units)
    assert at_ms == AT // 1_000_000 + 1


def test_the_control_and_segments_are_told_by_their_index() -> None:
    """As the document lists them."""
    watcher = watchman()
    watcher.note([seen(kind_of(variant="control"), segment=3)])
    assert rows_of(told(watcher)) == [(7, 1, CONTROL, 3, SERVED)]


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({}, SERVED),
        ({"latency_ns": 20_000_000}, SERVED),
        ({"latency_ns": 20_000_001}, SERVED | SLOW),
        ({"invalid": True}, SERVED | INVALID),
        ({"error_type": "model_error"}, ERROR | SLOW),
        ({"error_type": "overloaded"}, ERROR | SLOW),
        ({"error_type": "deadline_exceeded"}, ERROR | TIMEOUT | SLOW),
        ({"error_type": "invalid_output"}, ERROR | INVALID | SLOW),
        ({"error_type": "invalid_request"}, 0),
        ({"error_type": "cancelled", "latency_ns": 99_000_000}, 0),
    ],
)
def test_events_are_what_the_guards_of_the_document_say(fields: dict[str, Any], bits: int) -> None:
    """A caller's own fault is no event; the unit is assigned all the same, and not served."""
    assert bits_of(kind_of(), **fields) == bits


def test_a_failure_that_the_default_made_good_is_the_intended_variants() -> None:
    """Its unit was served, with an error."""
    watcher = watchman()
    watcher.note([seen(kind_of(variant="default", intended="candidate"))])
    assert rows_of(told(watcher)) == [(7, 1, CANDIDATE, 0, SERVED | ERROR | SLOW)]


def test_what_the_default_made_good_hits_the_guard_of_its_cause() -> None:
    """Or a guard on outputs would find a version safe that spoils every one of them."""
    kind = kind_of(variant="default", intended="candidate", failed_with="invalid_output")
    assert bits_of(kind) == SERVED | ERROR | INVALID | SLOW


def test_only_the_guards_of_the_document_are_noted() -> None:
    """Their bits follow its order."""
    slow = (Guard(name="slow", event="slow", over_ms=1.0), Guard(name="e", event="error"))
    kind = kind_of(experiment_of(guards=slow))
    assert bits_of(kind) == SERVED | 2
    assert bits_of(kind, error_type="model_error") == 2 | 4


def test_records_of_no_phase_leave_no_trace() -> None:
    """Most requests are in no experiment."""
    watcher = watchman()
    watcher.note([make_record(unit_hash=bytes(16)), make_record()])
    assert not watcher.has_news


def test_units_of_one_request_each_are_counted() -> None:
    """By variant and segment, with the number of each event."""
    kind = kind_of(experiment_of(unit=None, guards=ALL_GUARDS))
    watcher = watchman()
    watcher.note([seen(kind, n, segment=n % 2) for n in range(5)])
    watcher.note([seen(kind, 9, error_type="deadline_exceeded"), seen(kind, 9, invalid=True)])
    counts = told(watcher).counts
    assert set(counts) == {
        Counts(7, CANDIDATE, 0, 5, 4, (1, 1, 1, 1)),
        Counts(7, CANDIDATE, 1, 2, 2, (0, 0, 0, 0)),
    }
    assert told(watcher) == Sightings()


def test_memory_of_units_is_bounded_and_the_latest_are_known() -> None:
    """Of twice as many units as may be remembered the older half is told again."""
    kind, watcher = kind_of(), watchman(max_units=10)
    watcher.note([seen(kind, n) for n in range(20)])
    assert len(rows_of(told(watcher))) == 20
    watcher.note([seen(kind, n) for n in range(10, 20)])
    assert rows_of(told(watcher)) == []
    watcher.note([seen(kind, n) for n in range(100, 120)])
    told(watcher)
    watcher.note([seen(kind, 0)])
    assert len(rows_of(told(watcher))) == 1


def test_what_was_known_of_a_unit_before_is_told_with_what_is_new() -> None:
    """Also where it was remembered in the older half."""
    kind, watcher = kind_of(), watchman(max_units=2)
    watcher.note([seen(kind, n, error_type="model_error") for n in range(3)])
    told(watcher)
    watcher.note([seen(kind, 0)])
    assert rows_of(told(watcher)) == [(7, 0, CANDIDATE, 0, SERVED | ERROR | SLOW)]


def test_units_are_told_again_after_what_was_handed_over_may_be_lost() -> None:
    """A repeated row changes nothing, and a missing one is a unit too few."""
    kind, watcher = kind_of(), watchman()
    watcher.note([seen(kind)])
    told(watcher)
    watcher.forget()
    watcher.note([seen(kind)])
    assert len(rows_of(told(watcher))) == 1


def test_without_room_a_sighting_is_dropped_counted_and_told_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded, whoever fails to take what is seen."""
    monkeypatch.setattr(sightings, "MAX_WAITING", 2)
    cells = Cells()
    watcher, kind = Watchman(cells, 1_000), kind_of()
    watcher.note([seen(kind, n) for n in range(3)])
    assert cells.counter(SIGHTING_DROPPED).value == 1
    assert [unit for _, unit, *_ in rows_of(told(watcher))] == [0, 1]
    watcher.note([seen(kind, n) for n in range(3)])
    assert [unit for _, unit, *_ in rows_of(told(watcher))] == [2]


def test_many_sightings_leave_in_several_parcels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first."""
    monkeypatch.setattr(sightings, "MAX_AT_ONCE", 2)
    kind, watcher = kind_of(), watchman()
    watcher.note([seen(kind, n) for n in range(5)])
    taken = []
    while watcher.has_news:
        taken.append([unit for _, unit, *_ in rows_of(told(watcher))])
    assert taken == [[0, 1], [2, 3], [4]]


def test_while_nobody_keeps_evidence_it_is_counted() -> None:
    """So that an experiment that learns nothing has a number to show for it."""
    cells = Cells()
    drop_into(cells)(Sightings(bytes(64), (Counts(7, 0, 0, 5, 5, ()),)))
    assert cells.counter(SIGHTING_DROPPED).value == 7


def handed_over(plane: Plane) -> Sightings:
    """What the process hands over of its sightings."""
    while plane.recorder.encode_pending():
        pass
    parcel = plane.recorder.take()
    return decode_sightings(parcel.sightings) if parcel and parcel.sightings else Sightings()


def studied(**fields: Any) -> Snapshot:
    """Endpoint `m` under an experiment that enrols everybody."""
    return with_study(record_of(experiment_of(guards=ALL_GUARDS, **fields)))


def unit_given(plane: Plane, version: int) -> str:
    """A unit that the experiment gives to a version."""
    served = plane.pipeline.find("m")
    drawer = served.plan.experiments[0]
    for number in range(100):
        unit = f"u{number}"
        taken = drawer.take(plane.call(1.0, unit=unit), b"")
        if taken is not None and taken.variant.version == version:
            return unit
    raise AssertionError


async def test_an_answer_says_its_phase_in_its_id_and_its_record() -> None:
    """Signed, so that a later outcome is credited without a lookup."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine(1.0)}) as plane:
        await plane.serve(studied())
        unit = unit_given(plane, 2)
        answer = await plane.ask(plane.call(1.0, unit=unit))
        (record,) = plane.recorder.drain()
        assert (record.kind.experiment, record.kind.phase) == ("x0", 7)
        assert plane.worker.signer is not None
        facts = plane.worker.signer.read(answer.prediction_id or "")
        assert (facts.phase, facts.rule, facts.variant, facts.propensity) == (
            7,
            "x0",
            "candidate",
            0.5,
        )
        ((phase, seen_unit, *_),) = rows_of(handed_over(plane))
        assert (phase, seen_unit) == (7, int.from_bytes(facts.unit_hash, "big"))


@pytest.mark.parametrize("enabled", [True, False])
async def test_sightings_travel_whether_or_not_records_are_wanted(*, enabled: bool) -> None:
    """Evidence does not depend on a collector."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        plane.recorder.enabled = enabled
        await plane.serve(studied())
        for number in range(8):
            await plane.ask(plane.call(1.0, unit=f"u{number}"))
        assert len(rows_of(handed_over(plane))) == 8


async def test_forced_and_pinned_requests_are_no_evidence() -> None:
    """Nor those that name no unit."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(studied())
        await plane.ask(plane.call(1.0, unit="u", force="candidate"))
        await plane.ask(plane.call(1.0, unit="u", version=2))
        await plane.ask(plane.call(1.0))
        assert handed_over(plane) == Sightings()


async def test_a_run_with_answers_that_are_not_finite_names_them_only() -> None:
    """Its neighbours in the run are sound."""
    batching = BatchSettings()
    with Plane({ONE: Spoiling(), TWO: Spoiling()}, batching=batching) as plane:
        await plane.serve(studied())
        unit = unit_given(plane, 2)
        asked = [plane.submit(plane.call(value, unit=unit)) for value in (1.0, 13.0, 2.0)]
        await until(lambda: all(asked))
        assert {answers[0].ran is None for answers in asked} == {True}
        records = plane.recorder.drain()
        assert [record.invalid for record in records] == [False, True, False]
        assert records[0].batch_rows == 3
        ((*_, bits), *_) = rows_of(handed_over(plane))[::-1]
        assert bits == SERVED | INVALID


async def test_an_answer_concluded_alone_is_looked_at_too() -> None:
    """As one of several rows is."""
    with Plane({ONE: Spoiling(), TWO: Spoiling()}) as plane:
        await plane.serve(studied())
        await plane.ask(plane.call(1.0, 13.0, unit="u"))
        (record,) = plane.recorder.drain()
        assert record.invalid


async def test_outputs_are_not_looked_at_where_no_guard_asks() -> None:
    """It costs whoever asks for it."""
    with Plane({ONE: Spoiling(), TWO: Spoiling()}) as plane:
        await plane.serve(with_study(record_of()))
        await plane.ask(plane.call(13.0, unit="u"))
        (record,) = plane.recorder.drain()
        assert not record.invalid


async def test_a_candidate_that_fails_is_an_error_of_its_unit() -> None:
    """Answered by nobody, or by the default where the document says so."""
    engine = FailingEngine()
    with Plane({ONE: FakeEngine(), TWO: engine}) as plane:
        await plane.serve(studied())
        unit = unit_given(plane, 2)
        engine.broken = True
        answer = await plane.ask(plane.call(1.0, unit=unit))
        assert answer.error is not None
        ((_, _, variant, _, bits),) = rows_of(handed_over(plane))
        assert (variant, bits) == (CANDIDATE, ERROR | SLOW)
        await plane.serve(studied(on_error="fallback"))
        answer = await plane.ask(plane.call(1.0, unit=unit))
        assert answer.error is None
        ((_, _, variant, _, bits),) = rows_of(handed_over(plane))
        assert (variant, bits) == (CANDIDATE, ERROR | SLOW | SERVED)


async def test_outputs_that_the_default_made_good_are_the_candidates() -> None:
    """The guard on outputs hears of them, though every answer was finite."""
    engine = FailingEngine(InvalidOutput("The model's output holds NaN."))
    with Plane({ONE: FakeEngine(), TWO: engine}) as plane:
        await plane.serve(studied(on_error="fallback"))
        answer = await plane.ask(plane.call(engine.poison, unit=unit_given(plane, 2)))
        assert answer.error is None
        ((_, _, variant, _, bits),) = rows_of(handed_over(plane))
        assert (variant, bits) == (CANDIDATE, ERROR | INVALID | SLOW | SERVED)


async def test_requests_as_units_leave_counts() -> None:
    """Assigned and served, for each variant."""
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(studied(unit=None))
        for _ in range(40):
            await plane.ask(plane.call(1.0))
        counts = handed_over(plane).counts
        assert {one.variant for one in counts} == {CONTROL, CANDIDATE}
        assert sum(one.assigned for one in counts) == sum(one.served for one in counts) == 40


async def test_the_segment_of_the_request_is_that_of_the_unit() -> None:
    """As it was when it was assigned."""
    segment = Segment(parameter="country", values=("de", "fr"))
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(studied(segment=segment, unit=UnitKey(parameter="user")))
        for user, country in (("a", "fr"), ("b", "es"), ("c", "de")):
            parameters = {"user": user, "country": country}
            await plane.ask(plane.call(1.0, parameters=parameters))
        assert [row[3] for row in rows_of(handed_over(plane))] == [2, 0, 1]


async def test_a_shadow_stage_tells_what_its_copies_found() -> None:
    """Compared, disagreed and failed, for the candidate of its phase; nobody is sighted."""
    engine = FailingEngine(bias=5.0)
    stage = record_of(experiment_of(shadow=ShadowStage()), state=State.SHADOW, exposure=0)
    with Plane({ONE: FakeEngine(), TWO: engine}) as plane:
        await plane.serve(with_study(stage))
        (study,) = [shadow.study for shadow in plane.pipeline.find("m").plan.shadows]
        assert isinstance(study, Study)
        for value in (1.0, 2.0, FailingEngine.poison):
            await plane.ask(plane.call(value, unit="u"))
        await until(lambda: len(plane.recorder.shown) == 6)
        told_ = handed_over(plane)
        assert told_.compared == (Compared(7, CANDIDATE, 2, 2, 1),)
        assert (told_.units, told_.counts) == (b"", ())
        copies = [record for record in plane.recorder.drain() if record.kind.shadow]
        assert {(record.kind.experiment, record.kind.phase) for record in copies} == {("x0", 7)}


async def test_the_next_phase_is_told_by_its_own_number() -> None:
    """The unit keeps its variant, and is seen anew."""
    wide = Phase(8, 200.0, 10_000, EVEN)
    first = record_of(exposure=5_000)
    second = replace(first, exposure=10_000, phases=(*first.phases, wide))
    with Plane({ONE: FakeEngine(), TWO: FakeEngine()}) as plane:
        await plane.serve(with_study(first))
        unit = unit_given(plane, 2)
        await plane.ask(plane.call(1.0, unit=unit))
        await plane.serve(with_study(second))
        await plane.ask(plane.call(1.0, unit=unit))
        seen_ = rows_of(handed_over(plane))
        assert [(phase, variant) for phase, _, variant, *_ in seen_] == [
            (7, CANDIDATE),
            (8, CANDIDATE),
        ]
        assert len({unit_hash for _, unit_hash, *_ in seen_}) == 1


@pytest.mark.parametrize("silence", ["missing", "default"])
@pytest.mark.parametrize("unit", [None, UnitKey(header="X-Unit")])
def test_what_is_told_is_what_folding_counts(silence: Any, unit: UnitKey | None) -> None:
    """Whatever units are, and whatever their silence means: none is told in vain."""
    metric = Metric(name="q", outcome="bought", silence=silence)
    document = experiment_of(unit=unit, metrics=(metric,))
    watcher = watchman()
    watcher.note([seen(kind_of(document), number) for number in (1, 2, 3)])
    record = record_of(document, number=PHASE.number)
    folded = Folded(studies_of(9, {"x": record}).by_id[record.id]).tell(told(watcher))
    assert [(cell.variant, cell.assigned) for cell in folded.evidence.cells] == [(CANDIDATE, 3)]
