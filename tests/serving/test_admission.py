from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import Overloaded, ShareExceeded
from gateway.serving.admission import CUT_GAP_NS, MAX_IDLE_GATES, UNEASY_NS, Admission
from gateway.settings import AdmissionSettings
from tests.fakes import NanoClock


def admission_of(limit: int = 100, floor: int = 10) -> tuple[Admission, NanoClock]:
    """Admission with these bounds, on a clock that moves when told to."""
    clock = NanoClock()
    bounds = AdmissionSettings(max_in_flight=limit, min_in_flight=floor)
    return Admission(bounds, clock.monotonic_ns), clock


def entered(admission: Admission, caller: str, times: int, endpoint: str = "e") -> int:
    """How many of so many tries of a caller got in."""
    count = 0
    for _ in range(times):
        try:
            admission.enter(endpoint, caller)
        except (Overloaded, ShareExceeded):
            continue
        count += 1
    return count


def test_a_lone_caller_uses_nearly_everything() -> None:
    """With nobody else there, only what is kept for newcomers is out of reach."""
    admission, _ = admission_of(100)
    assert entered(admission, "a", 200) == 90


def test_many_callers_fill_an_endpoint_to_its_limit_and_no_further() -> None:
    """Beyond the limit everybody is refused, whoever they are."""
    admission, _ = admission_of(100)
    assert sum(entered(admission, f"caller-{i}", 1) for i in range(150)) == 100
    with pytest.raises(Overloaded, match="in flight"):
        admission.enter("e", "one more")
    assert admission.in_flight == 100


def test_a_noisy_neighbour_leaves_room_for_a_second_caller() -> None:
    """Whoever fills an endpoint is held to their share as soon as another comes."""
    admission, _ = admission_of(100)
    assert entered(admission, "noisy", 1_000) == 90
    assert entered(admission, "quiet", 5) == 5
    with pytest.raises(ShareExceeded):
        admission.enter("e", "noisy")
    for _ in range(85):  # what finishes for the one is free for the other, up to a half each
        admission.leave("e", "noisy")
    assert entered(admission, "quiet", 100) == 40, "with the five before it is its half"
    assert entered(admission, "noisy", 100) == 40, "and this the other's"


def test_nobody_is_held_to_a_share_while_there_is_room() -> None:
    """Below half of the limit there is nothing to share."""
    admission, _ = admission_of(100)
    entered(admission, "b", 1)
    assert entered(admission, "a", 49) == 49


def test_one_endpoint_that_is_full_closes_no_other() -> None:
    """Each has its own limit."""
    admission, _ = admission_of(10)
    for i in range(10):
        admission.enter("full", str(i))
    admission.enter("other", "0")
    assert admission.in_flight == 11


def test_a_refused_request_leaves_nothing_behind() -> None:
    """What did not enter takes no room: the place that was left is free."""
    admission, _ = admission_of(10)
    for i in range(10):
        admission.enter("e", str(i))
    assert entered(admission, "late", 50) == 0
    admission.leave("e", "3")
    assert entered(admission, "late", 50) == 1


def test_a_full_queue_lowers_the_limit_to_what_it_took() -> None:
    """What the queue behind refuses is turned away at the door from then on."""
    admission, clock = admission_of(1_000)
    for i in range(60):
        admission.enter("e", str(i))
    admission.leave("e", "0", refused=True)
    assert admission.limit("e") == 54
    assert admission.limit("other") == 1_000
    admission.leave("e", "1", refused=True)
    assert admission.limit("e") == 54, "one overload is heard once"
    clock.at_ns += CUT_GAP_NS
    admission.leave("e", "2", refused=True)
    assert 48 <= admission.limit("e") <= 53


def test_the_limit_falls_to_a_floor_and_climbs_back_with_answers() -> None:
    """However often the queue refuses, some are let in, and in the end all are again."""
    admission, clock = admission_of(100, floor=10)
    for _ in range(50):
        clock.at_ns += CUT_GAP_NS
        admission.enter("e", "a")
        admission.leave("e", "a", refused=True)
    assert admission.limit("e") == 10
    for _ in range(901):
        admission.enter("e", "a")
        admission.leave("e", "a")
    assert admission.limit("e") == 100


def test_it_is_calm_while_there_is_room_and_nothing_was_refused() -> None:
    """Shadows are the first to go: from half of the limit on, and for a while after an overload."""
    admission, clock = admission_of(100)
    entered(admission, "a", 49)
    calm = [admission.calm]
    entered(admission, "a", 1)
    calm.append(admission.calm)
    admission.leave("e", "a")
    calm.append(admission.calm)
    admission.leave("e", "a", refused=True)
    calm.append(admission.calm)
    clock.at_ns += UNEASY_NS
    assert [*calm, admission.calm] == [True, False, True, False, True]


def test_made_up_endpoints_are_forgotten() -> None:
    """Callers choose the names, so what is remembered of them is bounded."""
    admission, _ = admission_of()
    for i in range(3 * MAX_IDLE_GATES):
        admission.enter(f"made-up-{i}", f"caller-{i}")
        admission.leave(f"made-up-{i}", f"caller-{i}")
    assert len(admission._gates) <= MAX_IDLE_GATES
    assert all(not gate.callers for gate in admission._gates.values())


def refusal_of(admission: Admission, endpoint: str, caller: str) -> type[Exception] | None:
    """Try to enter; why not, or None."""
    try:
        admission.enter(endpoint, caller)
    except (Overloaded, ShareExceeded) as error:
        return type(error)
    return None


steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "refused", "wait"]),
        st.sampled_from(["e", "f"]),
        st.sampled_from(["a", "b", "c", "d"]),
    ),
    max_size=300,
)


@settings(deadline=None)
@given(limit=st.integers(1, 20), floor=st.integers(1, 20), steps=steps)
def test_whatever_comes_and_goes_counts_and_bounds_hold(
    limit: int, floor: int, steps: list[tuple[str, str, str]]
) -> None:
    """In flight is what entered and did not leave, below the limit; a first request gets in."""
    admission, clock = admission_of(limit, min(floor, limit))
    held: Counter[tuple[str, str]] = Counter()
    for step, endpoint, caller in steps:
        inside = sum(n for (name, _), n in held.items() if name == endpoint)
        if step == "wait":
            clock.at_ns += CUT_GAP_NS
        elif step == "enter":
            before = admission.limit(endpoint)
            refusal = refusal_of(admission, endpoint, caller)
            assert (refusal is Overloaded) == (inside >= before)
            assert refusal is not ShareExceeded or held[endpoint, caller] > 0
            held[endpoint, caller] += refusal is None
        elif held[endpoint, caller]:
            held[endpoint, caller] -= 1
            admission.leave(endpoint, caller, refused=step == "refused")
        assert admission.in_flight == held.total() >= 0
        assert 1 <= admission.limit(endpoint) <= limit


def test_large_bodies_have_one_bound() -> None:
    """What is on its way counts; one body comes in whatever its size, and room comes back."""
    admission = Admission(AdmissionSettings(max_held_mb=1), lambda: 0)
    admission.hold(5 * 1024 * 1024)
    with pytest.raises(Overloaded):
        admission.hold(1)
    admission.let_go(5 * 1024 * 1024)
    admission.hold(1024 * 1024)
    assert admission.held_bytes == 1024 * 1024
