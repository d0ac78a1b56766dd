from collections.abc import Callable
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.core.stats.evalues import p_value, threshold
from gateway.core.stats.margins import (
    Phase,
    Side,
    log_e_differs_over_phases,
    log_e_each,
    log_e_harm,
    log_e_harm_over_phases,
    log_e_safe,
    log_e_safe_over_phases,
    lower_ratio,
    upper_ratio,
)

Floats = NDArray[np.float64]

counts = st.integers(0, 100_000)
shares = st.floats(0.001, 0.999)
ratios = st.floats(0.2, 5.0)
phases = st.lists(st.builds(Phase, counts, counts, shares), min_size=1, max_size=6)

# A ramp: the canary's share in each phase.
RAMP = np.array([0.01, 0.05, 0.1, 0.25, 0.5])


@pytest.mark.parametrize(
    ("log_e", "events", "share", "ratio", "p"),
    [
        (log_e_harm, (20, 90), 0.1, 1.0, 0.119339),
        (log_e_harm, (30, 90), 0.1, 1.0, 0.00103578),
        (log_e_harm, (30, 90), 0.1, 1.5, 0.0506149),
        (log_e_safe, (100, 900), 0.1, 1.5, 0.000916464),
        (log_e_safe, (100, 900), 0.1, 1.25, 0.194218),
        (log_e_safe, (500, 500), 0.5, 1.25, 0.00585695),
    ],
)
def test_the_closed_form_has_its_known_values(
    log_e: Callable[..., float],
    events: tuple[int, int],
    share: float,
    ratio: float,
    p: float,
) -> None:
    """p-values at k = 100, to six digits."""
    found = p_value(log_e(*events, share, ratio, (100.0,)))
    assert found == pytest.approx(p, rel=5e-6)


def test_without_events_nothing_is_proven() -> None:
    """No data is neither harm nor safety, and leaves every ratio possible."""
    for nothing in ([], [Phase(0, 0, 0.1)], [Phase(0, 0, 0.1), Phase(0, 0, 0.5)]):
        assert log_e_harm_over_phases(nothing) == pytest.approx(0.0, abs=1e-12)
        assert log_e_safe_over_phases(nothing, 1.5) == pytest.approx(0.0, abs=1e-12)
        assert lower_ratio(nothing, 0.05) == 0.0
        assert upper_ratio(nothing, 0.05) == inf


def test_the_guard_is_a_mean_of_likelihood_ratios() -> None:
    """Written out for one phase: 24 ratios, each the likelihood of the counts over that at R."""
    distances = [0.002 * 1.4**i for i in range(24)]
    raw = [1 / (1 + log(d / 0.5) ** 2) for d in distances]
    x, y, rho, allowed = 30, 90, 0.1, 1.2

    def likelihood(ratio: float) -> float:
        theta = rho * ratio / (1 - rho + rho * ratio)
        return x * log(theta) + y * log(1 - theta)

    expected = sum(
        weight / sum(raw) * exp(likelihood(allowed * exp(d)) - likelihood(allowed))
        for weight, d in zip(raw, distances, strict=True)
    )
    found = log_e_harm_over_phases([Phase(x, y, rho)], allowed)
    assert found == pytest.approx(log(expected), rel=1e-12)


@given(phases=phases, ratio=ratios, cut=st.floats(0, 1))
def test_how_phases_are_cut_does_not_matter(phases: list[Phase], ratio: float, cut: float) -> None:
    """Order, and splitting a phase in two of the same share, change nothing."""
    first = phases[0]
    part = Phase(cut * first.treated, cut * first.control, first.share)
    rest = Phase(first.treated - part.treated, first.control - part.control, first.share)
    split = [*reversed(phases[1:]), rest, part]
    for log_e in (log_e_harm_over_phases, log_e_safe_over_phases):
        assert log_e(split, ratio) == pytest.approx(log_e(phases, ratio), abs=1e-6)


@given(phases=phases, ratio=ratios)
def test_harm_of_one_arm_is_safety_of_the_other(phases: list[Phase], ratio: float) -> None:
    """Swapped arms, share and ratio turn one question into the other."""
    swapped = [Phase(control, treated, 1 - share) for treated, control, share in phases]
    harm = log_e_harm_over_phases(phases, ratio)
    assert harm == pytest.approx(log_e_safe_over_phases(swapped, 1 / ratio), abs=1e-5)


@given(phases=phases, ratio=ratios)
def test_two_sides_are_the_mean_of_each(phases: list[Phase], ratio: float) -> None:
    """Evidence of a difference is half of the evidence of each direction."""
    harm, safe = (
        log_e(phases, ratio) for log_e in (log_e_harm_over_phases, log_e_safe_over_phases)
    )
    expected = np.logaddexp(harm, safe) - log(2)
    assert log_e_differs_over_phases(phases, ratio) == pytest.approx(expected, abs=1e-9)


@given(phases=phases, ratio=ratios, step=st.floats(1.001, 3.0))
def test_the_more_is_allowed_the_less_is_harm(
    phases: list[Phase], ratio: float, step: float
) -> None:
    """Harm falls and safety rises with the allowed ratio, so that bounds mean what they say."""
    slack = 1e-6
    low, high = ratio, ratio * step
    harm = log_e_harm_over_phases(phases, low), log_e_harm_over_phases(phases, high)
    safe = log_e_safe_over_phases(phases, low), log_e_safe_over_phases(phases, high)
    assert harm[0] >= harm[1] - slack
    assert safe[0] <= safe[1] + slack


@given(phase=st.builds(Phase, st.integers(1, 10**4), st.integers(1, 10**4), shares), more=ratios)
def test_another_event_of_the_treatment_is_harm(phase: Phase, more: float) -> None:
    """Each adds evidence of harm; each of the control takes some away."""
    worse = Phase(phase.treated + 1, phase.control, phase.share)
    better = Phase(phase.treated, phase.control + 1, phase.share)
    before = log_e_harm_over_phases([phase], more)
    assert log_e_harm_over_phases([worse], more) > before - 1e-9
    assert log_e_harm_over_phases([better], more) < before + 1e-9


@given(phases=phases)
def test_bounds_are_where_decisions_turn(phases: list[Phase]) -> None:
    """Just outside of a bound the e-value is beyond its bar, just inside it is not."""
    alpha, bar = 0.05, threshold(0.05)
    lower, upper = lower_ratio(phases, alpha), upper_ratio(phases, alpha)
    assert lower < upper
    # Beyond a ratio of a million no bound is sought.
    if 0 < lower < 1e6:
        assert log_e_harm_over_phases(phases, lower * (1 - 1e-9)) >= bar - 1e-6
        assert log_e_harm_over_phases(phases, lower * (1 + 2e-6)) < bar
    if 1e-6 < upper < inf:
        assert log_e_safe_over_phases(phases, upper * (1 + 1e-9)) >= bar - 1e-6
        assert log_e_safe_over_phases(phases, upper * (1 - 2e-6)) < bar


def test_bounds_close_in_on_the_truth() -> None:
    """Of ten million events with twice the rate, the bounds are within one per cent."""
    found = Phase(6_666_667, 3_333_333, 0.5)
    assert 1.98 < lower_ratio([found], 0.05) < 2.0 < upper_ratio([found], 0.05) < 2.02


def test_a_phase_of_one_arm_says_nothing() -> None:
    """Where the treatment gets all units, or none, there is nothing to compare."""
    before = [Phase(30, 90, 0.1)]
    for alone in (Phase(500, 0, 1.0), Phase(0, 500, 0.0)):
        added = log_e_harm_over_phases([*before, alone], 1.1)
        assert added == pytest.approx(log_e_harm_over_phases(before, 1.1), abs=1e-9)


def test_arrays_give_what_single_runs_give() -> None:
    """Over runs, over shares that differ by run, and over ratios."""
    treated, control = np.array([[3, 9], [0, 70]]), np.array([[30, 20], [1, 50]])
    share = np.array([[0.1, 0.5], [0.2, 0.4]])
    together = log_e_each(treated, control, share, np.array([1.0, 1.5]), "harm")
    alone = [
        log_e_harm_over_phases([Phase(*each) for each in zip(*run, strict=True)], ratio)
        for *run, ratio in zip(treated, control, share, (1.0, 1.5), strict=True)
    ]
    assert together == pytest.approx(np.array(alone))


def ramped(
    ratio: float, allowed: float, side: Side, *, runs: int = 10_000, events: float = 8.0
) -> Floats:
    """The largest log e-value of each run of a ramp: 5 phases of 12 ticks, a look every tick.

    Each tick brings about `events` events of the phase, and a few late ones of earlier phases.
    """
    random = np.random.default_rng(7)
    treated, control = np.zeros((2, runs, len(RAMP)))
    highest = np.full(runs, -inf)
    for phase in range(len(RAMP)):
        for _ in range(12):
            rates = np.where(np.arange(len(RAMP)) < phase, events / 10, 0.0)
            rates[phase] = events
            treated += random.poisson(rates * RAMP * ratio, treated.shape)
            control += random.poisson(rates * (1 - RAMP), control.shape)
            seen = slice(0, phase + 1)
            now = log_e_each(treated[:, seen], control[:, seen], RAMP[seen], allowed, side)
            highest = np.maximum(highest, now)
    return highest


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [1.0, 1.25, 2.0])
def test_false_harm_is_rare_at_the_edge_of_what_is_allowed(allowed: float) -> None:
    """With the true ratio exactly R, at most alpha of 10,000 watched ramps are rolled back."""
    assert (ramped(allowed, allowed, "harm") >= threshold(0.05)).mean() <= 0.05


@pytest.mark.slow
def test_false_harm_is_rarer_within_what_is_allowed() -> None:
    """A better rate than allowed gives fewer false alarms than the edge does."""
    within = (ramped(0.9, 1.25, "harm") >= threshold(0.05)).mean()
    assert within < (ramped(1.25, 1.25, "harm") >= threshold(0.05)).mean()


@pytest.mark.slow
@pytest.mark.parametrize("margin", [1.1, 1.25, 2.0])
def test_false_safety_is_rare_at_the_margin(margin: float) -> None:
    """With the true ratio exactly at the margin, at most beta of 10,000 ramps are certified."""
    assert (ramped(margin, margin, "safe") >= threshold(0.05)).mean() <= 0.05


@pytest.mark.slow
def test_true_safety_is_certified() -> None:
    """Without a difference, most ramps of some thousand events are certified at a margin of 1.5."""
    assert (ramped(1.0, 1.5, "safe", runs=2000, events=40.0) >= threshold(0.05)).mean() > 0.8


@pytest.mark.slow
def test_shares_that_chase_the_evidence_win_nothing() -> None:
    """A share that is chosen each tick from all that was seen keeps the false alarms at alpha."""
    random = np.random.default_rng(11)
    runs, ticks = 5_000, 40
    treated, control, share = np.zeros((3, runs, ticks))
    now = np.zeros(runs)
    ever = np.zeros(runs, dtype=np.bool_)
    for tick in range(ticks):
        # Bold while evidence is low, careful while it is high.
        share[:, tick] = np.where(now < 0, 0.5, np.where(now < 1.5, 0.2, 0.02))
        events = random.poisson(6.0, runs)
        treated[:, tick] = random.binomial(events, share[:, tick])
        control[:, tick] = events - treated[:, tick]
        seen = slice(0, tick + 1)
        now = log_e_each(treated[:, seen], control[:, seen], share[:, seen], 1.0, "harm")
        ever |= now >= threshold(0.05)
    assert ever.mean() <= 0.05


def each_once(
    treated: Floats, control: Floats, log_e: Callable[[Floats, Floats], Floats]
) -> Floats:
    """The log e-values of whole counts, of which few differ: each pair of them is read once."""
    pairs, where = np.unique(treated + 1j * control, return_inverse=True)
    found: Floats = log_e(pairs.real, pairs.imag)[where].reshape(treated.shape)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("closed", [False, True])
def test_one_share_watched_at_every_event_keeps_alpha(closed: bool) -> None:
    """The guard and its closed form, looked at after each of 400 events at a 5 % canary."""
    random = np.random.default_rng(3)
    runs, events = 2_000, 400
    treated = (random.random((runs, events)) < 0.05).cumsum(axis=1).astype(np.float64)
    control = np.arange(1, events + 1) - treated

    def log_e(treated: Floats, control: Floats) -> Floats:
        if closed:
            from gateway.core.stats.bernoulli import log_e_each as log_e_closed

            return log_e_closed(treated, control, 0.05, "above")
        return log_e_each(treated[..., None], control[..., None], [0.05], 1.0, "harm")

    seen = each_once(treated, control, log_e)
    assert (seen.max(axis=1) >= threshold(0.05)).mean() <= 0.05


def canary_requests(size_of_control: int, canary: int, *, rate: float, base: float) -> Floats:
    """Requests of the canary until it is rolled back, in each of 1,000 runs; `inf` if not."""
    random = np.random.default_rng(5)
    treated = (random.random((1000, canary)) < rate).cumsum(axis=1).astype(np.float64)
    control = random.binomial(size_of_control, base, (1000, canary)).cumsum(axis=1)
    share = 1 / (1 + size_of_control)

    def log_e(treated: Floats, control: Floats) -> Floats:
        return log_e_each(treated[:, None], control[:, None], [share], 1.0, "harm")

    crossed = each_once(treated, control.astype(np.float64), log_e) >= threshold(0.05)
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1.0, inf)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size_of_control", "most"),
    [pytest.param(19, 200, id="all-remaining"), pytest.param(1, 700, id="equal-size")],
)
def test_five_times_the_errors_are_seen_soon(size_of_control: int, most: int) -> None:
    """5 % of errors against 1 %, at a 5 % canary: the median of requests until the rollback.

    Nineteen times the canary's traffic as control, or as much as the canary itself.
    """
    taken = canary_requests(size_of_control, 2 * most, rate=0.05, base=0.01)
    assert np.median(taken) <= most
