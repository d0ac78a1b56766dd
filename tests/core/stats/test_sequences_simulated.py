"""Ten thousand rollouts that nobody waits for: how often a look at every tick misleads.

Each simulation keeps running sums of every rollout and looks at all of them at every tick. Limits
are the stated level plus three standard errors of a share among the simulated rollouts, or tighter
where the truth is known to be far below.
"""

from collections.abc import Callable
from math import sqrt
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from gateway.core.stats.means import Sample
from gateway.core.stats.moments import Moments
from gateway.core.stats.sequences import (
    Epoch,
    inverse_propensity,
    one_sided_e,
    stratified,
    two_sided_e,
    two_sided_multiplier,
)

pytestmark = pytest.mark.slow

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], tuple[Floats, Floats, Floats]]
"""(generator, rollouts, units) to sums, sums of squares and events of one arm's next units."""

ALPHA = 0.05
ROLLOUTS = 10_000
NAIVE = 1.959963984540054


def limit(level: float, rollouts: int = ROLLOUTS) -> float:
    """The level plus three standard errors of a simulated share."""
    return level + 3 * sqrt(level * (1 - level) / rollouts)


def binary(p: float) -> Draw:
    """Units of which a share p has the value one."""

    def draw(rng: np.random.Generator, rollouts: int, units: int) -> tuple[Floats, Floats, Floats]:
        events = rng.binomial(units, p, rollouts).astype(np.float64)
        return events, events, events

    return draw


def skewed(rng: np.random.Generator, rollouts: int, units: int) -> tuple[Floats, Floats, Floats]:
    """Units with log-normal values of skewness 6."""
    values = np.exp(rng.standard_normal((rollouts, units), dtype=np.float32)).astype(np.float64)
    return values.sum(1), (values**2).sum(1), np.full(rollouts, float(units))


class Rollouts:
    """Running sums of two arms over many rollouts."""

    def __init__(self, control: Draw, treatment: Draw, seed: int, rollouts: int = ROLLOUTS) -> None:
        self.rng = np.random.default_rng(seed)
        self.draws = (control, treatment)
        self.sums = np.zeros((2, 3, rollouts))
        self.n = 0

    def step(self, units: int) -> None:
        """Let each arm of each rollout have so many units more."""
        for arm, draw in enumerate(self.draws):
            self.sums[arm] += np.stack(draw(self.rng, self.sums.shape[2], units))
        self.n += units

    def look(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Effects, standard errors, and whether a rollout has ten events in each arm."""
        total, squares, events = self.sums.transpose(1, 0, 2)
        variance = (squares - total**2 / self.n) / (self.n - 1)
        means = total / self.n
        effect, se = means[1] - means[0], np.sqrt(variance.sum(0) / self.n)
        return effect, se, (events.min(0) >= 10) & (se > 0)


def log_spaced(first: int, last: int, looks: int) -> list[int]:
    """Units to add before each look."""
    sizes = np.unique(np.geomspace(first, last, looks).astype(int))
    return [int(step) for step in np.diff(sizes, prepend=0)]


@pytest.mark.parametrize("p", [0.002, 0.1, 0.5])
def test_looking_all_the_time_does_not_mislead_where_nothing_differs(p: float) -> None:
    """A/A, 200 looks from 100 to 100,000 units: the band errs within alpha, z = 1.96 does not."""
    rollouts = Rollouts(binary(p), binary(p), seed=1)
    wrong, naive = np.zeros(ROLLOUTS, bool), np.zeros(ROLLOUTS, bool)
    for step in log_spaced(100, 100_000, 200):
        rollouts.step(step)
        effect, se, settled = rollouts.look()
        z = np.divide(effect, se, where=se > 0, out=np.zeros_like(se))
        e = np.asarray(two_sided_e(z, 2 * rollouts.n, ALPHA, 20_000))
        wrong |= settled & (e >= 1 / ALPHA)
        naive |= settled & (np.abs(z) > NAIVE)
    assert wrong.mean() <= ALPHA
    assert naive.mean() > 0.25


def test_every_tick_of_a_short_rollout() -> None:
    """A/A, a look after each unit from the hundredth to the thousandth: 900 ticks."""
    rollouts = Rollouts(binary(0.3), binary(0.3), seed=2)
    rollouts.step(99)
    wrong, naive = np.zeros(ROLLOUTS, bool), np.zeros(ROLLOUTS, bool)
    for _ in range(900):
        rollouts.step(1)
        effect, se, settled = rollouts.look()
        e = np.asarray(two_sided_e(effect / se, 2 * rollouts.n, ALPHA, 1000))
        wrong |= settled & (e >= 1 / ALPHA)
        naive |= settled & (np.abs(effect / se) > NAIVE)
    assert wrong.mean() <= ALPHA
    assert naive.mean() > 0.3


@pytest.mark.parametrize("beta", [0.05, 0.2])
def test_a_harm_exactly_at_the_margin_is_rarely_certified(beta: float) -> None:
    """The treatment is worse by the margin itself: `safe` is said at most beta of the time."""
    margin, base = 0.02, 0.10
    rollouts = Rollouts(binary(base), binary(base + margin), seed=3)
    certified, naive = np.zeros(ROLLOUTS, bool), np.zeros(ROLLOUTS, bool)
    for step in log_spaced(100, 50_000, 200):
        rollouts.step(step)
        effect, se, settled = rollouts.look()
        e = np.asarray(one_sided_e(-(effect - margin) / se, 2 * rollouts.n, beta, 20_000))
        certified |= settled & (e >= 1 / beta)
        naive |= settled & ((effect - margin) / se < special.ndtri(beta))
    assert certified.mean() <= beta
    assert naive.mean() > 2 * beta


def test_without_harm_the_margin_is_certified() -> None:
    """The same test has power: no difference is certified in nearly every rollout."""
    rollouts = Rollouts(binary(0.1), binary(0.1), seed=4)
    certified = np.zeros(ROLLOUTS, bool)
    for step in log_spaced(100, 50_000, 60):
        rollouts.step(step)
        effect, se, settled = rollouts.look()
        e = np.asarray(one_sided_e(-(effect - 0.02) / se, 2 * rollouts.n, 0.05, 20_000))
        certified |= settled & (e >= 20)
    assert certified.mean() > 0.99


def test_skewed_values_are_covered() -> None:
    """Log-normal values: the band holds the truth at every look after 100 units of each arm."""
    rollouts = Rollouts(skewed, skewed, seed=5, rollouts=2_000)
    missed = np.zeros(2_000, bool)
    for step in log_spaced(100, 4_000, 60):
        rollouts.step(step)
        effect, se, settled = rollouts.look()
        width = se * np.asarray(two_sided_multiplier(2 * rollouts.n, ALPHA, 5_000))
        missed |= settled & (np.abs(effect) > width)
    assert missed.mean() <= limit(ALPHA, 2_000)


def test_rare_events_are_covered_from_ten_events_on() -> None:
    """A rate of one in a thousand against one in five hundred: the effect stays in the band."""
    rollouts = Rollouts(binary(0.001), binary(0.002), seed=6)
    missed = np.zeros(ROLLOUTS, bool)
    for step in log_spaced(500, 200_000, 150):
        rollouts.step(step)
        effect, se, settled = rollouts.look()
        width = se * np.asarray(two_sided_multiplier(2 * rollouts.n, ALPHA, 50_000))
        missed |= settled & (np.abs(effect - 0.001) > width)
    assert missed.mean() <= limit(ALPHA)


def test_a_ramp_through_changing_times_is_read_by_phase() -> None:
    """A/A while the rate doubles and the treatment's share grows: pooled arms mislead, phases hold.

    Shares 5, 20 and 50 per cent; 20 looks in each phase of 4,000 units.
    """
    rng = np.random.default_rng(9)
    done: list[tuple[Sample, Sample]] = []
    wrong, pooled = np.zeros(ROLLOUTS, bool), np.zeros(ROLLOUTS, bool)
    all_n, all_events = np.zeros(2), np.zeros((2, ROLLOUTS))
    for share, rate in ((0.05, 0.2), (0.2, 0.3), (0.5, 0.4)):
        n, events = np.zeros(2), np.zeros((2, ROLLOUTS))
        phase = done
        for _ in range(20):
            step = np.array([200 * (1 - share), 200 * share])
            new = rng.binomial(step.astype(int)[:, None], rate, (2, ROLLOUTS))
            n, events, all_n, all_events = n + step, events + new, all_n + step, all_events + new
            phase = [*done, (arm_of(n[0], events[0]), arm_of(n[1], events[1]))]
            if all_n.min() >= 100:
                effect, se = effect_of(*stratified(phase))
                e = np.asarray(two_sided_e(effect / se, all_n.sum(), ALPHA, 8_000))
                wrong |= e >= 1 / ALPHA
                means = all_events / all_n[:, None]
                z = np.diff(means, axis=0)[0] / np.sqrt(
                    (means * (1 - means) / all_n[:, None]).sum(0)
                )
                pooled |= np.asarray(two_sided_e(z, all_n.sum(), ALPHA, 8_000)) >= 1 / ALPHA
        done = phase
    assert wrong.mean() <= ALPHA
    assert pooled.mean() > 0.9


def arm_of(n: float, events: Floats) -> Sample:
    """One arm of all rollouts at once: the arithmetic of `stratified` is that of arrays too."""
    mean = events / n
    return Sample(int(n), cast("float", mean), cast("float", mean * (1 - mean)))


def effect_of(control: Sample, treatment: Sample) -> tuple[Floats, Floats]:
    """Effects and standard errors of all rollouts."""
    effect = np.asarray(treatment.mean - control.mean)
    return effect, np.sqrt(np.asarray(control.squared_error + treatment.squared_error))


def bandit(rates: tuple[float, float], seed: int, rollouts: int) -> tuple[float, float]:
    """Thompson sampling in 100 epochs of 100 units: how often each reading misses the truth.

    Returns:
        Shares of rollouts in which, at some epoch after the burn-in, the propensity-weighted band
        and the naive 95 per cent interval of plain means left out the true difference.
    """
    rng = np.random.default_rng(seed)
    truth, units = rates[1] - rates[0], 100
    n, events = np.zeros((2, rollouts)), np.zeros((2, rollouts))
    phi, phi2 = np.zeros(rollouts), np.zeros(rollouts)
    weights = np.zeros((2, 3, rollouts))  # per arm: sums of 1/p, c/p and c^2/p over all units
    steps = np.zeros((3, rollouts))  # number, sum and sum of squares of c_B - c_A over all units
    share = np.full(rollouts, 0.5)
    missed, naive = np.zeros(rollouts, bool), np.zeros(rollouts, bool)
    for epoch in range(1, 101):
        centres = np.where(n > 0, events / np.maximum(n, 1), 0.1)
        drawn = rng.binomial(units, share)
        taken = np.stack([units - drawn, drawn])
        ones = rng.binomial(taken, np.array(rates)[:, None])
        step = centres[1] - centres[0]
        for arm, (p, sign) in enumerate(((1 - share, -1.0), (share, 1.0))):
            for value, count in ((1.0, ones[arm]), (0.0, taken[arm] - ones[arm])):
                score = step + sign * (value - centres[arm]) / p
                phi += count * score
                phi2 += count * score**2
            weights[arm] += (
                units / p * np.stack([np.ones(rollouts), centres[arm], centres[arm] ** 2])
            )
        steps += units * np.stack([np.ones(rollouts), step, step**2])
        n, events = n + taken, events + ones
        total = epoch * units
        effect = phi / total
        seen = events / np.maximum(n, 1)  # for zeros and ones E(y - c)^2 is m - 2 m c + c^2
        expected = (seen * weights[:, 0] - 2 * seen * weights[:, 1] + weights[:, 2]).sum(0)
        gap = seen[1] - seen[0]
        expected = (expected - gap**2 * steps[0] + 2 * gap * steps[1] - steps[2]) / total
        se = np.sqrt(np.maximum(phi2 / total - effect**2, expected) / total)
        settled = (n.min(0) >= 100) & (events.min(0) >= 10)
        width = se * np.asarray(two_sided_multiplier(total, ALPHA, 5_000))
        missed |= settled & (np.abs(effect - truth) > width)
        means = (events + 1) / (n + 2)
        errors = means * (1 - means) / (n + 2)
        spread = np.sqrt(errors.sum(0))
        naive |= np.abs(means[1] - means[0] - truth) > NAIVE * spread
        share = 0.05 + 0.9 * special.ndtr((means[1] - means[0]) / spread)
    return float(missed.mean()), float(naive.mean())


@pytest.mark.parametrize("rates", [(0.3, 0.3), (0.3, 0.36), (0.05, 0.04), (0.02, 0.02)])
def test_a_bandits_units_are_read_without_bias(rates: tuple[float, float]) -> None:
    """Weights that chase outcomes: weighting by logged propensities stays within alpha."""
    missed, naive = bandit(rates, seed=7, rollouts=ROLLOUTS)
    assert missed <= limit(ALPHA)
    assert naive > 3 * ALPHA


def test_a_bandits_sums_per_epoch_are_enough() -> None:
    """The estimate over many epochs of Thompson weights has no bias, from sums per epoch alone."""
    rng = np.random.default_rng(8)
    effects = []
    for _ in range(200):
        share, epochs = 0.5, []
        counts = np.array([[1, 1], [2, 2]])
        for _ in range(8):
            drawn = int(rng.binomial(100, share))
            ones = rng.binomial([100 - drawn, drawn], [0.3, 0.4])
            control = Moments.of_counts(100 - drawn, int(ones[0]))
            treatment = Moments.of_counts(drawn, int(ones[1]))
            epochs.append(Epoch(100, control, treatment, 1 - share, share))
            counts += np.stack([ones, [100 - drawn, drawn]])
            means = counts[0] / counts[1]
            spread = np.sqrt((means * (1 - means) / counts[1]).sum() + 1e-9)
            share = float(0.1 + 0.8 * special.ndtr((means[1] - means[0]) / spread))
        effects.append(inverse_propensity(epochs, 0.3).effect)
    assert np.mean(effects) == pytest.approx(0.1, abs=3 * float(np.std(effects)) / sqrt(200))
