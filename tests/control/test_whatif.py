"""From the states of units to what another policy would have earned."""

import pytest
from msgspec.structs import replace

from gateway.control.whatif import logged_units
from gateway.core.errors import InvalidRequest
from gateway.core.experiments import ExperimentRecord, Metric, Phase, Segment
from gateway.core.unit_states import Seen, UnitState, Value, encode_unit
from tests.rollouts import document_of, record_of, started

LOSS = Metric(name="loss", outcome="arrival", direction="decrease", margin=0.01)


def studied() -> ExperimentRecord:
    """An experiment with two phases and a declared segment."""
    record = record_of(started(document_of(segment=Segment(header="x-region", values=("eu",)))))
    later = Phase(99, 500.0, 10_000, {"control": 2_000, "candidate": 8_000})
    return replace(record, phases=(*record.phases, later))


def unit(
    phase: int, variant: int, ms: int, *, value: Value | None = (0.5,), segment: int = 0
) -> bytes:
    """A unit that was seen once; `value` is that of the frozen metric, None while it waits."""
    seen = Seen(variant, ms, phase, ms, segment, {0: ms})
    frozen = {} if value is None else {0: value}
    return encode_unit(UnitState(seen=[seen], frozen=frozen, first=(ms, phase, variant, segment)))


def key(number: int) -> bytes:
    """A unit's key."""
    return bytes((number, *[0] * 15))


def test_a_unit_has_the_propensities_of_the_phase_that_enrolled_it() -> None:
    """Weights that moved later do not matter to it."""
    record = studied()
    first = record.phases[0].number
    found = logged_units(
        record, LOSS, {key(1): unit(99, 1, 2_000), key(2): unit(first, 0, 1_000, segment=1)}
    )
    assert [(one.variant, one.segment) for one in found] == [
        ("control", "eu"),
        ("candidate", "other"),
    ]
    assert found[0].propensities == {"control": 0.5, "candidate": 0.5}
    assert found[1].propensities == {"control": 0.2, "candidate": 0.8}


def test_only_final_values_count_and_silence_is_no_value() -> None:
    """A unit that waits is left out; one whose outcome never came has no reward."""
    record = studied()
    units = {key(1): unit(99, 1, 1, value=None), key(2): unit(99, 1, 2, value=())}
    assert [one.reward for one in logged_units(record, LOSS, units)] == [None]


@pytest.mark.parametrize("phase", [5, 10_000])
def test_units_of_no_phase_of_it_are_left_out(phase: int) -> None:
    """Their propensities are not known."""
    assert logged_units(studied(), LOSS, {key(1): unit(phase, 1, 1)}) == []


def test_requests_that_are_units_cannot_be_judged_by_those_that_were_told_of_alone() -> None:
    """Who bought is told; that the others did not is in counts."""
    record = studied()
    each = replace(record, document=replace(record.document, unit=None))
    bought = replace(LOSS, silence="default")

    with pytest.raises(InvalidRequest, match="Silence is a value of 'loss'"):
        logged_units(each, bought, {key(1): unit(99, 1, 1)})
    assert logged_units(each, LOSS, {key(1): unit(99, 1, 1)})
