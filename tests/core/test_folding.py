import itertools
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.evidence import Counts, Entry, Outcome, Sightings, decode_entry
from gateway.core.experiments import Segment
from gateway.core.folding import recompute
from gateway.core.studies import Study
from gateway.core.tallies import Cell, MetricTally, edges_of
from gateway.core.unit_states import MAX_OUTCOMES
from tests.evidence import Folded, counted, metric, row, seen, shadowed, study_from, told, unit_of

LATER = 10**9


def near(one: Sequence[Cell], other: Sequence[Cell]) -> bool:
    """Whether cells are equal, sums to 1e-12."""
    return _near(msgspec.to_builtins(one), msgspec.to_builtins(other))


def _near(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
    if isinstance(one, dict) and isinstance(other, dict):
        # Zeros are left out of moments, as long as nothing was computed of them.
        return all(_near(one.get(k, 0.0), other.get(k, 0.0)) for k in {*one, *other})
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_near, one, other))
    return bool(one == other)


def m(folded: Folded, name: str = "m") -> MetricTally:
    """A metric of the only cell."""
    return folded.cell.metrics[name]


def mean(folded: Folded, name: str = "m") -> float:
    """The mean of a metric of the only cell."""
    moments = m(folded, name).moments
    assert moments is not None
    return moments.mean


# Serving.


def test_a_unit_counts_once_for_each_thing_that_happened() -> None:
    """Repeated rows change nothing; new bits do."""
    folded = Folded(study_from()).tell(seen(row(bits=1), row(bits=1, ms=5), row(2, bits=0)))
    folded.tell(seen(row(bits=0b11, ms=9), row(bits=0b11, ms=9)))
    cell = folded.cell
    assert (cell.assigned, cell.served, cell.events) == (2, 1, (1, 0))
    assert folded.results["sightings"] == 5


def test_the_earliest_sighting_decides_the_phase_and_segment() -> None:
    """Whatever comes first, the unit stands where it was first seen."""
    study = study_from(segment=Segment(header="x", values=("de", "fr")))
    folded = Folded(study).tell(seen(row(ms=9, phase=9, segment=1), row(2)))
    folded.tell(seen(row(ms=3, phase=7, segment=0)))
    assert folded.cell.key == (7, 0, 0)
    assert folded.cell.assigned == 2


def test_a_unit_seen_in_a_later_phase_stays_in_its_cell() -> None:
    """Its new events count there."""
    folded = Folded(study_from()).tell(seen(row(ms=1)), seen(row(ms=50, phase=9, bits=2)))
    assert folded.cell.key == (7, 0, 0)
    assert folded.cell.events == (1, 0)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_unit_under_two_variants_is_contaminated_once(*, is_reversed: bool) -> None:
    """What came before counts in the cell of its first exposure, what came after does not."""
    rows = [row(ms=1), row(ms=5, bits=2), row(ms=9, variant=1), row(ms=12, bits=4)]
    folded = Folded(study_from())
    for one in reversed(rows) if is_reversed else rows:
        folded.tell(seen(one))
    cell = folded.cell
    assert cell.key == (7, 0, 0)
    assert (cell.assigned, cell.contaminated, cell.events) == (1, 1, (1, 0))


def test_a_unit_first_known_by_an_outcome_is_assigned_served_and_received() -> None:
    """A sighting may be lost with its worker; the signed id says as much."""
    study = study_from(segment=Segment(header="x", values=("de", "fr")))
    folded = Folded(study).tell(told(at_ms=5))
    cell = folded.cell
    assert (cell.key, cell.assigned, cell.served, cell.received) == ((7, 0, 0), 1, 1, 1)
    folded.tell(seen(row(ms=5, segment=1)))
    assert folded.cell.key == (7, 0, 1)


def test_an_outcome_under_another_variant_is_not_counted() -> None:
    """It is kept and counted as such, and its unit as contaminated."""
    folded = Folded(study_from()).tell(seen(row()), told(variant="b", at_ms=5)).freeze(LATER)
    assert folded.cell.contaminated == 1
    assert m(folded).missing == 1
    assert folded.results["contaminated"] == 1


# Outcomes.


def test_outcomes_are_idempotent_and_revisions_replace() -> None:
    """Each is one of the results; the highest sequence is the value."""
    folded = Folded(study_from()).tell(
        told(1.0), told(1.0), told(5.0), told(3.0, sequence=4), told(2.0, sequence=2)
    )
    assert mean(folded.freeze(LATER)) == 3.0
    results = {k: v for k, v in folded.results.items() if k != "sightings"}
    assert results == {
        "accepted": 1, "duplicate": 1, "contradiction": 1, "revision": 1, "superseded": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("combine", "expected"), [("mean", 3.0), ("sum", 9.0), ("last", 2.0), ("max", 6.0)]
)
def test_several_outcomes_make_one_value(combine: str, expected: float) -> None:
    """A unit contributes once."""
    folded = Folded(study_from(metric(combine=combine)))
    folded.tell(
        told(6.0, nonce=1, at_ms=1), told(2.0, nonce=2, at_ms=9), told(1.0, nonce=3, at_ms=5)
    ).freeze(LATER)
    assert m(folded).units == 1
    assert mean(folded) == expected


def test_windows_end_and_outcomes_ripen_at_the_millisecond() -> None:
    """In: predictions until first + window, accepted until that + maturity. Frozen then, too."""
    study = study_from(metric(combine="sum", window_s=0.1, maturity_s=0.05))
    folded = Folded(study).tell(seen(row(ms=1000)))
    folded.tell(told(1.0, nonce=1, at_ms=1100), at_ms=1150)
    folded.tell(told(10.0, nonce=2, at_ms=1101), at_ms=1150)
    folded.tell(told(100.0, nonce=3, at_ms=1050), at_ms=1151)
    folded.freeze(1149)
    assert m(folded).waiting == 1
    folded.freeze(1150)
    assert (m(folded).waiting, m(folded).units, m(folded).late) == (0, 1, 1)
    assert mean(folded) == 1.0
    assert folded.results["late"] == 1
    assert [decode_entry(data).accepted_ms for data in folded.late] == [1151]


def test_what_comes_after_freezing_is_kept_and_shown_only() -> None:
    """A late outcome and a late revision leave the value as it was; each is counted once."""
    folded = Folded(study_from()).tell(seen(row()), told(1.0)).freeze(1000)
    folded.tell(told(9.0, sequence=1), told(7.0, nonce=2), told(7.0, nonce=2), at_ms=1001)
    assert mean(folded) == 1.0
    assert (m(folded).units, m(folded).late, m(folded).revised) == (1, 1, 1)
    assert (folded.results["late"], folded.results["revised"]) == (1, 1)


def test_an_outcome_in_time_that_is_folded_after_freezing_is_late() -> None:
    """Its host was away for too long."""
    folded = Folded(study_from()).tell(seen(row())).freeze(1000)
    folded.tell(told(1.0), at_ms=500)
    assert (m(folded).missing, m(folded).late) == (1, 1)
    assert near(recompute(folded.study, folded.units), folded.evidence.cells)


def test_metrics_of_one_outcome_freeze_each_at_its_own_time() -> None:
    """What is late for the short one counts for the long one."""
    study = study_from(metric("short", window_s=0.1), metric("long", window_s=10.0, combine="sum"))
    folded = Folded(study).tell(seen(row()), told(1.0, nonce=1)).freeze(100)
    assert (m(folded, "short").units, m(folded, "long").waiting) == (1, 1)
    folded.tell(told(2.0, nonce=2, at_ms=50), at_ms=90).freeze(10_000)
    assert (m(folded, "short").late, m(folded, "long").late) == (1, 0)
    assert mean(folded, "long") == 3.0
    assert folded.due == {}


def test_an_earlier_exposure_moves_what_is_due_until_something_is_frozen() -> None:
    """After that the unit stays where it is, and that is counted."""
    folded = Folded(study_from()).tell(seen(row(ms=500)))
    folded.tell(seen(row(ms=200, phase=9)))
    assert list(folded.due.values()) == [1200]
    assert folded.cell.key == (9, 0, 0)
    folded.freeze(1200).tell(seen(row(ms=100)))
    assert folded.cell.key == (9, 0, 0)
    assert folded.results["settled"] == 1


@pytest.mark.parametrize(("silence", "units"), [("missing", 0), ("default", 1)])
def test_silence_is_missing_or_a_value(silence: str, units: int) -> None:
    """By the metric's policy, once the time is over."""
    study = study_from(metric(silence=silence, default=0.25))
    folded = Folded(study).tell(seen(row())).freeze(1000)
    assert (m(folded).units, m(folded).missing) == (units, 1 - units)
    assert folded.cell.received == 0
    assert m(folded).moments is None or mean(folded) == 0.25


def test_what_cannot_be_computed_is_missing_and_counted() -> None:
    """Also where silence would be a value: an outcome came."""
    study = study_from(metric(score="log_loss", scalar="p", silence="default"))
    folded = Folded(study).tell(told(1.0, scalars=(math.nan, 0.5))).freeze(LATER)
    assert m(folded).missing == 1
    assert folded.results["unscored"] == 1


def test_a_ratio_is_a_pair_of_sums() -> None:
    """Several outcomes of a unit are added up on both sides."""
    study = study_from(metric(kind="ratio", denominator="visits"))
    folded = Folded(study).tell(
        told(2.0, nonce=1), told(3.0, nonce=2), told(4.0, nonce=1, name="visits"),
        told(6.0, unit=2, nonce=3, name="visits"),
    ).freeze(LATER)  # fmt: skip
    pair = m(folded).pair
    assert pair is not None
    assert (pair.n, pair.y.total[0], pair.x.total[0], pair.products[0]) == (2, 5.0, 10.0, 20.0)


def test_a_covariate_makes_pairs_of_the_units_that_have_it() -> None:
    """Those without an outcome have none; their value counts alone."""
    study = study_from(metric(covariate="q", silence="default"))
    folded = Folded(study).tell(told(2.0, scalars=(0.5, 3.0)), seen(row(2))).freeze(LATER)
    tally = m(folded)
    assert (tally.moments and tally.moments.n, tally.pair and tally.pair.n) == (2, 1)
    assert tally.pair is not None
    assert tally.pair.x.mean == 3.0


def test_quantiles_are_histograms_of_unit_values() -> None:
    """Each value lies in its bin, which is narrow."""
    values = [-3.0, 0.0, 0.1, 2.5, 2.5, 1e6]
    study = study_from(metric(kind="quantile"))
    outcomes = [told(value, unit=i + 1, nonce=i) for i, value in enumerate(values)]
    histogram = m(Folded(study).tell(*outcomes).freeze(LATER)).histogram
    assert list(histogram.values()) == [1, 1, 1, 2, 1]
    for value, index in zip(sorted({*values}), histogram, strict=True):
        low, high = edges_of(index)
        assert low <= value <= high
        assert high - low <= abs(value) / 100 + 1e-300


def test_a_unit_with_too_many_outcomes_keeps_some_of_them() -> None:
    """Memory is bounded; what is left out is counted."""
    folded = Folded(study_from(metric(combine="sum")))
    folded.tell(*(told(1.0, nonce=i) for i in range(MAX_OUTCOMES + 5))).freeze(LATER)
    assert mean(folded) == MAX_OUTCOMES
    assert folded.results["overfull"] == 5


# Requests that are units.


def test_requests_without_an_outcome_are_silent_once_their_slot_is_over() -> None:
    """They are told apart by number; the others have states of their own."""
    study = study_from(metric(silence="default"), unit=None)
    folded = Folded(study).tell(counted(10, served=9), at_ms=500)
    folded.tell(told(1.0, unit=5, at_ms=400), at_ms=900)
    cell = folded.cell
    assert (cell.assigned, cell.served, cell.received, cell.events) == (10, 9, 1, (1, 0))
    assert m(folded).waiting == 10
    folded.freeze(1999)
    assert (m(folded).units, m(folded).waiting) == (0, 10)
    folded.freeze(2000)
    assert (m(folded).units, m(folded).waiting, mean(folded)) == (10, 0, 0.1)
    assert near(recompute(study, folded.units), folded.evidence.cells)


def test_counts_of_a_closed_slot_are_closed_at_once() -> None:
    """Their host was away for too long; they are silent."""
    folded = Folded(study_from(unit=None)).tell(counted(3), at_ms=10).freeze(5000)
    folded.tell(counted(2), at_ms=20)
    assert (m(folded).missing, m(folded).waiting) == (5, 0)
    assert near(recompute(folded.study, folded.units), folded.evidence.cells)


def test_shadows_add_up() -> None:
    """Over parcels."""
    folded = Folded(study_from()).tell(shadowed(10, 2, 1), shadowed(5)).tell(shadowed(1, 1))
    (cell,) = folded.evidence.shadows
    assert (cell.compared, cell.disagreed, cell.failed) == (16, 3, 1)


# In whatever order.

METRICS = (
    metric("a", window_s=0.05, maturity_s=0.01),
    metric("b", window_s=0.02, combine="last", silence="default"),
    metric("c", kind="ratio", denominator="visits", window_s=0.03),
    metric("d", outcome="visits", kind="quantile", window_s=0.04, combine="max"),
    metric("e", score="squared_error", scalar="p", covariate="q", window_s=0.05),
)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[int, Outcome]:
    """One that never contradicts another, and when it was accepted."""
    number, sequence = draw(st.integers(0, 5)), draw(st.integers(0, 3))
    name = draw(st.sampled_from(["bought", "visits"]))
    at_ms = number * 11
    outcome = told(
        sequence + number / 3,
        unit=number % 3,
        nonce=number,
        sequence=sequence,
        name=name,
        at_ms=at_ms,
        variant="ab"[number == 4],
        phase=7 if at_ms < 30 else 9,
        scalars=(number / 7, 0.5),
        row=draw(st.integers(0, 1)),
    )
    return at_ms + draw(st.integers(0, 60)), outcome


@st.composite
def sightings(draw: st.DrawFn) -> tuple[int, Sightings]:
    """One row, and when it was accepted."""
    ms = draw(st.integers(0, 60))
    one = row(
        draw(st.integers(0, 2)),
        ms=ms,
        variant=int(draw(st.integers(0, 9)) == 0),
        phase=7 if ms < 30 else 9,
        segment=draw(st.integers(0, 1)),
        bits=draw(st.integers(0, 7)),
    )
    return ms + 1, seen(one)


def in_parts(
    study: Study, events: Sequence[tuple[int, Sightings | Outcome]], cuts: Sequence[int]
) -> Folded:
    """Fold events in batches that end at the cuts."""
    folded = Folded(study)
    edges = [0, *sorted({cut % (len(events) + 1) for cut in cuts}), len(events)]
    for start, end in itertools.pairwise(edges):
        folded.take(*(Entry(at_ms, (event,)) for at_ms, event in events[start:end]))
    return folded


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(st.one_of(outcomes(), sightings()), min_size=1, max_size=25),
    data=st.data(),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_order_parts_and_duplicates_make_no_difference(
    events: list[tuple[int, Sightings | Outcome]], data: st.DataObject, cuts: list[int]
) -> None:
    """Any of them twice, in any order, in any batches: the same tallies, and recomputed ones."""
    study = study_from(*METRICS, segment=Segment(header="x", values=("de",)))
    twice = [*events, *data.draw(st.lists(st.sampled_from(events), max_size=8))]
    shuffled = data.draw(st.permutations(twice))
    one, other = in_parts(study, events, []), in_parts(study, shuffled, cuts)
    assert one.evidence == other.evidence
    assert one.due == other.due
    assert near(recompute(study, other.units), other.evidence.cells)
    one.freeze(LATER)
    for through_ms in (40, 70, LATER):
        other.freeze(through_ms)
    assert near(one.evidence.cells, other.evidence.cells)
    assert near(recompute(study, other.units), other.evidence.cells)


@settings(max_examples=100, deadline=None)
@given(
    came=st.lists(outcomes(), min_size=1, max_size=25),
    steps=st.lists(st.integers(0, 130), max_size=6),
)
def test_freezing_on_time_is_freezing_at_the_end(
    came: list[tuple[int, Outcome]], steps: list[int]
) -> None:
    """With a watermark that nothing accepted passes, it does not matter how often units freeze."""
    study = study_from(*METRICS)
    units = seen(*(row(number, variant=0) for number in range(3)))
    at_once, step_by_step = Folded(study).tell(units), Folded(study).tell(units)
    came = sorted(came, key=lambda one: one[0])
    at_once.take(*(Entry(at_ms, (event,)) for at_ms, event in came)).freeze(LATER)
    done = 0
    for through_ms in [*sorted(steps), LATER]:
        upto = sum(at_ms <= through_ms for at_ms, _ in came)
        step_by_step.take(*(Entry(at_ms, (event,)) for at_ms, event in came[done:upto]))
        step_by_step.freeze(through_ms)
        done = upto
    assert near(at_once.evidence.cells, step_by_step.evidence.cells)
    assert near(recompute(study, step_by_step.units), step_by_step.evidence.cells)


@settings(max_examples=60, deadline=None)
@given(
    parcels=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 50)), min_size=1, max_size=12),
    told_of=st.sets(st.integers(0, 20), max_size=10),
    steps=st.lists(st.integers(0, 12_000), max_size=4),
    silence=st.sampled_from(["missing", "default"]),
)
def test_requests_are_closed_the_same_in_whatever_steps(
    parcels: list[tuple[int, int]], told_of: set[int], steps: list[int], silence: str
) -> None:
    """Silent requests come and go with what is closed and told; in the end the sums are exact."""
    study = study_from(metric(silence=silence, default=0.3), unit=None)
    folded = Folded(study)
    for at_ms, number in parcels:
        folded.tell(counted(number), at_ms=at_ms)
    folded.tell(*(told(1.0, unit=number + 1, at_ms=number * 400) for number in told_of))
    for through_ms in [*sorted(steps), LATER]:
        folded.freeze(through_ms)
        assert near(recompute(study, folded.units), folded.evidence.cells)
    total, tally = sum(number for _, number in parcels), m(folded)
    silent = max(0, total - len(told_of))
    if silence == "missing":
        assert (tally.units, tally.missing) == (len(told_of), silent)
    else:
        assert tally.units == len(told_of) + silent
        expected = (len(told_of) + 0.3 * silent) / (len(told_of) + silent)
        assert math.isclose(mean(folded), expected, rel_tol=1e-12)


def test_a_damaged_state_costs_its_own_unit_only() -> None:
    """What came of it is counted as lost; the others are folded."""
    folded = Folded(study_from())
    folded.units[unit_of(1)] = b"\xc1"
    folded.tell(seen(row(1), row(2)), told(1.0))
    assert folded.cell.assigned == 1
    assert folded.results["damaged"] == 2


def test_counts_of_fewer_guards_are_taken() -> None:
    """Missing numbers are zero."""
    folded = Folded(study_from(unit=None))
    folded.tell(Sightings(counts=(Counts(7, 0, 0, 1, 1, ()),)))
    assert folded.cell.events == (0, 0)
