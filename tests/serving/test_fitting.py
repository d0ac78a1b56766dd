import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.serving.fitting import HOLD_NS, RETURN_AFTER, STALL_NS, STALLS, Fit, Pace, Targets

TARGETS = Targets(inline_ns=500_000, inline_run_ns=2_000_000, run_ns=20_000_000, jobs=64)
FAST = ((1, 20_000), (2, 21_000), (8, 27_000), (64, 83_000))
SLOW = ((1, 3_000_000), (2, 4_000_000), (8, 10_000_000))


def fit_of(*runs: tuple[int, float]) -> Fit:
    """A fit that saw these runs."""
    fit = Fit()
    for size, ns in runs:
        fit.observe(size, ns)
    return fit


def told(pace: Pace, *, size: int, ns: int, times: int, at_ns: int = 0) -> None:
    """Tell of so many runs of one request each."""
    for _ in range(times):
        pace.ran(size, 1, ns, at_ns)


def test_a_line_is_found_from_runs_of_several_sizes() -> None:
    """Slope and base come out of noisy times."""
    chance = random.Random(1)
    fit = Fit()
    for _ in range(2_000):
        size = chance.randint(1, 64)
        fit.observe(size, (30_000 + 4_000 * size) * chance.uniform(0.9, 1.1))
    assert fit.slope == pytest.approx(4_000, rel=0.15)
    assert fit.base == pytest.approx(30_000, rel=0.5)


def test_runs_of_one_size_are_predicted_as_they_were() -> None:
    """Without any spread there is no line; the time of that size is known all the same."""
    fit = fit_of(*[(32, 150_000.0)] * 500)
    assert fit.predict(32) == pytest.approx(150_000)
    assert 0 <= fit.slope <= 150_000 / 32
    assert fit.base >= 0


def test_runs_of_one_size_keep_the_slope_that_was_learned() -> None:
    """A slope from warming outlives a thousand runs of one size."""
    fit = fit_of(*FAST)
    fit.trust()
    before = fit.slope
    for _ in range(1_000):
        fit.observe(1, 20_000)
    assert fit.slope == pytest.approx(before, rel=0.2)


def test_large_models_run_their_rows_apart() -> None:
    """Where a run costs next to nothing beside its rows, sharing one only makes callers wait."""
    pace = Pace(TARGETS, ((1, 6_500_000), (2, 13_400_000)))
    assert pace.most == 1
    assert Pace(TARGETS, FAST).most >= 64


def test_one_outlier_moves_little() -> None:
    """A run that the machine interrupted is not what the model costs."""
    fit = fit_of(*[(1, 100_000.0)] * 100, (1, 1_000_000_000.0))
    assert fit.predict(1) < 150_000


def test_times_that_stay_high_are_believed_soon() -> None:
    """A change by a factor of a thousand is learned in a few runs."""
    fit = fit_of(*[(1, 100_000.0)] * 100, *[(1, 100_000_000.0)] * 12)
    assert fit.predict(1) > 20_000_000


runs = st.lists(st.tuples(st.integers(1, 100_000), st.integers(0, 10**11)), min_size=1, max_size=60)


@settings(deadline=None)
@given(runs)
def test_a_prediction_is_never_negative_and_never_falls_with_size(
    seen: list[tuple[int, int]],
) -> None:
    """Whatever is observed, more takes longer, and nothing takes less than no time."""
    fit = fit_of(*seen)
    predicted = [fit.predict(size) for size in (0, 1, 10, 1_000, 10**6)]
    assert all(ns >= -1e-3 for ns in predicted)
    assert all(low <= high for low, high in pairwise(predicted))


@settings(deadline=None)
@given(runs)
def test_whatever_was_seen_a_run_may_hold_something(seen: list[tuple[int, int]]) -> None:
    """The cap on what shares a run is never below one."""
    pace = Pace(TARGETS, FAST)
    for size, ns in seen:
        pace.ran(size, 1, ns, 0)
    assert pace.most >= 1
    assert pace.each_ns() >= 0


@pytest.mark.parametrize(
    ("timings", "inline"),
    [
        pytest.param(FAST, True, id="fast"),
        pytest.param(SLOW, False, id="slow"),
        pytest.param((), False, id="unknown"),
    ],
)
def test_warming_decides_where_a_version_starts(
    timings: tuple[tuple[int, int], ...], inline: bool
) -> None:
    """The loop is for versions whose single request is known to be quick."""
    assert Pace(TARGETS, timings).inline is inline


def test_what_shares_a_run_stays_below_the_target() -> None:
    """The cap follows the line: 1 ms for each row and 1 ms beside leave 19 rows in 20 ms."""
    pace = Pace(TARGETS, [(1, 2_000_000), (8, 9_000_000), (16, 17_000_000)])
    assert 16 <= pace.most <= 22


def test_a_version_that_turns_slow_leaves_the_loop() -> None:
    """Some dozens of slow runs are enough; one is not."""
    pace = Pace(TARGETS, FAST)
    told(pace, size=1, ns=20_000, times=100)
    told(pace, size=1, ns=3_000_000, times=1)
    places = [pace.inline]
    told(pace, size=1, ns=3_000_000, times=40)
    assert [*places, pace.inline] == [True, False]


@pytest.mark.parametrize(
    ("times", "ns", "stays"),
    [
        pytest.param(STALLS - 1, STALL_NS, True, id="once-or-twice"),
        pytest.param(STALLS, STALL_NS, False, id="again-and-again"),
        pytest.param(1, STALLS * STALL_NS, False, id="at-length"),
    ],
)
def test_stalls_end_the_running_on_the_loop(times: int, ns: int, stays: bool) -> None:
    """What keeps everybody waiting for so long is not tried often."""
    pace = Pace(TARGETS, FAST)
    told(pace, size=1, ns=ns, times=times)
    assert pace.inline is stays


@pytest.mark.parametrize("size", [1, 32])
def test_a_busy_machine_moves_no_version(size: int) -> None:
    """Where most runs are held up, those that were not tell how fast the version is."""
    pace = Pace(TARGETS, FAST)
    for _ in range(300):
        for ns in (*[9_000_000] * 5, 20_000 + 1_000 * size):
            pace.ran(size, size, ns, 0)
    assert pace.inline


def test_a_version_comes_back_when_its_fastest_runs_are_quick() -> None:
    """Runs that waited for a core do not speak against it, but a hold after a move does."""
    pace = Pace(TARGETS, FAST)
    told(pace, size=1, ns=STALL_NS, times=STALLS)
    for _ in range(RETURN_AFTER):
        told(pace, size=1, ns=20_000, times=1)
        told(pace, size=1, ns=5_000_000, times=3)
    places = [pace.inline]
    told(pace, size=1, ns=20_000, times=1, at_ns=HOLD_NS)
    assert [*places, pace.inline] == [False, True]
    assert pace.fit.predict(1) < TARGETS.inline_ns


def test_a_version_between_fast_and_slow_stays_where_it_is() -> None:
    """Between half of what is allowed and all of it nothing moves, in either place."""
    inline, threaded = Pace(TARGETS, FAST), Pace(TARGETS, SLOW)
    for pace in (inline, threaded):
        told(pace, size=1, ns=400_000, times=2_000, at_ns=10 * HOLD_NS)
    assert (inline.inline, threaded.inline) == (True, False)


def test_coming_and_going_is_held_longer_each_time() -> None:
    """A version that must leave again soon waits twice as long."""
    pace = Pace(TARGETS, FAST)
    at_ns = 0
    holds: list[int] = []
    for _ in range(3):
        told(pace, size=1, ns=STALL_NS, times=STALLS, at_ns=at_ns)
        left_ns = at_ns
        while not pace.inline:
            at_ns += HOLD_NS // 4
            told(pace, size=1, ns=20_000, times=RETURN_AFTER, at_ns=at_ns)
        holds.append(at_ns - left_ns)
    assert holds == [HOLD_NS, 2 * HOLD_NS, 4 * HOLD_NS]


def test_with_loop_runs_forbidden_nothing_comes_back() -> None:
    """A negative bound keeps even the quickest off the loop."""
    pace = Pace(Targets(-1.0, 2e6, 2e7), FAST)
    told(pace, size=1, ns=0, times=1_000, at_ns=100 * HOLD_NS)
    assert not pace.inline


def test_a_request_beyond_what_was_ever_run_is_not_for_the_loop() -> None:
    """The line is not believed far beyond the largest run that was seen."""
    pace = Pace(TARGETS, FAST)
    assert pace.fits_loop(256)
    assert not pace.fits_loop(257)
    told(pace, size=200, ns=220_000, times=1)
    assert pace.fits_loop(257)


def test_a_large_request_is_not_for_the_loop_when_it_would_take_long() -> None:
    """The bound on size follows from the times: 40 µs for each row leave 49 in 2 ms."""
    pace = Pace(TARGETS, [(1, 50_000), (8, 330_000), (64, 2_570_000)])
    assert pace.fits_loop(40)
    assert not pace.fits_loop(60)


def test_runs_far_over_the_target_shrink_what_may_share_one() -> None:
    """Where the line is wrong, the cap follows what happened; and it grows again in steps."""
    pace = Pace(TARGETS, SLOW)
    for _ in range(2):
        pace.ran(12, 12, 200_000_000, 0)
    shrunk = pace.most
    assert shrunk <= 9
    for _ in range(300):
        pace.ran(pace.most, pace.most, 1_000_000 * pace.most, 0)
    assert pace.most > shrunk
