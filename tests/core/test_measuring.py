import numpy as np
import pytest
from msgspec.structs import replace

from gateway.core.arms import Pair, overlap, overlap_of, pairs_of, strata
from gateway.core.experiments import Metric, Phase
from gateway.core.measuring import Levels, effect_of, read_effect, verdict_of
from gateway.core.readings import Interval, Reading, Verdict
from gateway.core.stats.moments import Comoments, Moments
from gateway.core.tallies import MetricTally
from tests.studies import SALES, cell, experiment, hits, running, seen

LEVELS = Levels(harm=0.025, safe=0.05, claim=0.05)
LOSS = Metric("loss", "label", direction="decrease", margin=0.1)


def pair(old: MetricTally, new: MetricTally, name: str = "sales", share: float = 0.5) -> Pair:
    """Control and variant of one stratum."""
    control, treatment = (
        replace(cell(variant, 10), metrics={name: tally})
        for variant, tally in enumerate((old, new))
    )
    return Pair(share, (control,), (treatment,))


def read(metric: Metric, *pairs: Pair, display: bool = True) -> Reading:
    """All that is told of a metric."""
    effect = effect_of(metric, pairs, display=display)
    return read_effect(metric, "b", effect, LEVELS, display=display)


def spread(n: int, mean: float, deviation: float = 1.0) -> MetricTally:
    """Units with this mean and deviation."""
    squares = (n - 1) * deviation**2
    return MetricTally(n, moments=Moments(n, mean, (0.0, 0.0), (squares, 0.0)))


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.001, 0.2), Verdict.BETTER),
        ((-0.09, 0.09), Verdict.EQUIVALENT),
        ((-0.09, -0.01), Verdict.EQUIVALENT),
        ((0.001, 0.01), Verdict.BETTER),
        ((-0.2, -0.01), Verdict.WORSE),
        ((-0.2, 0.2), Verdict.INCONCLUSIVE),
        ((-0.01, 0.2), Verdict.INCONCLUSIVE),
        ((None, 0.2), Verdict.INCONCLUSIVE),
        ((None, -0.2), Verdict.WORSE),
    ],
)
def test_a_verdict_is_what_the_interval_allows_to_say(interval: Interval, verdict: Verdict) -> None:
    """A gain is better even if it is small; a loss within the margin is equivalent."""
    metric = Metric("m", "o", margin=0.1)

    assert verdict_of(metric, interval) is verdict


def test_where_less_is_better_the_verdict_turns() -> None:
    """A loss that grew is worse."""
    assert verdict_of(LOSS, (0.2, 0.4)) is Verdict.WORSE
    assert verdict_of(LOSS, (-0.4, -0.2)) is Verdict.BETTER


def test_a_reading_tells_estimate_interval_and_evidence() -> None:
    """Four thousand units, a difference of half a standard deviation."""
    reading = read(LOSS, pair(spread(2_000, 1.0), spread(2_000, 0.5), "loss"))

    assert reading.estimate == pytest.approx(-0.5)
    assert reading.error == pytest.approx((2 / 2_000) ** 0.5)
    assert reading.interval == pytest.approx((-0.596, -0.404), abs=0.001)
    assert reading.relative == pytest.approx(-0.5)
    assert reading.verdict is Verdict.BETTER
    assert reading.is_safe
    assert not reading.is_harm
    assert reading.left == 0
    assert reading.display is not None
    assert reading.display.chance > 0.999


def test_harm_is_a_loss_beyond_the_margin() -> None:
    """A loss of the margin itself is none; four times as much is."""
    slight = read(LOSS, pair(spread(9_000, 1.0), spread(9_000, 1.1), "loss"))
    grave = read(LOSS, pair(spread(9_000, 1.0), spread(9_000, 1.4), "loss"))

    assert (slight.is_harm, slight.is_safe) == (False, False)
    assert (grave.is_harm, grave.is_safe) == (True, False)


def test_nothing_is_read_before_the_burn_in() -> None:
    """Ninety-nine units of an arm are too few for any asymptotic statement."""
    reading = read(LOSS, pair(spread(5_000, 1.0), spread(99, 9.0), "loss"))

    assert not reading.settled
    assert reading.verdict is Verdict.INCONCLUSIVE
    assert reading.interval is None
    assert not reading.harm.holds


def test_a_binary_metric_waits_for_the_rarer_kind_of_unit() -> None:
    """Eight sales among two thousand units say little about a share."""
    assert not read(SALES, pair(hits(1_000, 4), hits(1_000, 4))).settled
    assert read(SALES, pair(hits(1_000, 12), hits(1_000, 12))).settled


def test_a_variant_that_lost_all_sales_does_not_hide_behind_the_burn_in() -> None:
    """What is due is reckoned from both arms."""
    reading = read(SALES, pair(hits(1_000, 300), hits(1_000, 0)))

    assert reading.settled
    assert reading.is_harm


def test_without_any_spread_nothing_is_certified() -> None:
    """All units alike: there is no error to divide by."""
    reading = read(LOSS, pair(spread(500, 1.0, 0.0), spread(500, 1.0, 0.0), "loss"))

    assert not reading.settled
    assert not reading.is_safe


def test_strata_are_weighted_by_their_overlap() -> None:
    """Each stratum has no effect; adding up would show one of a quarter."""
    one = pair(spread(9_000, 0.0), spread(1_000, 0.0), "loss", share=0.1)
    two = pair(spread(1_000, 1.0), spread(9_000, 1.0), "loss", share=0.9)

    reading = read(LOSS, one, two)

    assert reading.estimate == pytest.approx(0.0, abs=1e-12)
    assert reading.verdict is Verdict.EQUIVALENT


def test_the_error_over_strata_is_that_of_the_weighted_mean() -> None:
    """Weights n p (1 - p), own variances of arms with thirty units or more."""
    one = pair(spread(900, 0.0, 2.0), spread(100, 0.2, 1.0), "loss", share=0.1)
    two = pair(spread(500, 0.0, 1.0), spread(500, 0.4, 3.0), "loss", share=0.5)
    first, second = overlap(0.1, 1_000), overlap(0.5, 1_000)

    reading = read(LOSS, one, two)

    total = first + second
    variance = (first / total) ** 2 * (4 / 900 + 1 / 100)
    variance += (second / total) ** 2 * (1 / 500 + 9 / 500)
    assert reading.estimate == pytest.approx((first * 0.2 + second * 0.4) / total)
    assert reading.error == pytest.approx(variance**0.5)


def test_a_stratum_in_which_an_arm_has_no_spread_is_left_out() -> None:
    """That depends on counts alone."""
    one = pair(spread(900, 0.0), spread(1, 50.0), "loss", share=0.01)
    two = pair(spread(500, 0.0), spread(500, 0.0), "loss")

    assert read(LOSS, one, two).estimate == pytest.approx(0.0)
    assert not read(LOSS, one, one).settled


def test_the_overlap_of_two_arms_is_that_of_many() -> None:
    """N p (1 - p) is n over the sum of 1 / p."""
    assert overlap_of([7_000, 3_000], 500) == pytest.approx(overlap(0.3, 500))


def correlated(seed: int, effect: float) -> MetricTally:
    """A thousand units whose value follows a covariate closely."""
    drawn = np.random.default_rng(seed)
    x = drawn.normal(size=1_000)
    y = x + effect + 0.1 * drawn.normal(size=1_000)
    pairs = Comoments()
    moments = Moments()
    for one, other in zip(y.tolist(), x.tolist(), strict=True):
        pairs, moments = pairs.add(one, other), moments.add(one)
    return MetricTally(1_000, moments=moments, pair=pairs)


def test_a_covariate_takes_variance_off() -> None:
    """A tenth of a deviation is found with a covariate, and not without."""
    plain = Metric("score", "score")
    adjusted = Metric("score", "score", covariate="output")
    both = pair(correlated(1, 0.0), correlated(2, 0.1), "score")

    assert read(plain, both).verdict is Verdict.INCONCLUSIVE
    assert read(adjusted, both).verdict is Verdict.BETTER


def test_a_covariate_that_is_not_known_of_all_units_is_not_used() -> None:
    """Else only those who answered would be compared."""
    metric = Metric("score", "score", covariate="output")
    known = correlated(1, 0.0)
    more = MetricTally(1_001, moments=(known.moments or Moments()).add(9.0), pair=known.pair)

    reading = read(metric, pair(known, more, "score"))

    assert reading.units == (1_000, 1_001)
    assert reading.treatment == pytest.approx((more.moments or Moments()).mean)


def test_segments_and_phases_of_the_same_weights_are_one_stratum() -> None:
    """A ramp with an equal control adds up."""
    record = running(experiment(), Phase(2, 9.0, 2_000, {"a": 5_000, "b": 5_000}))
    evidence = seen(cell(0, 5), cell(1, 6), cell(1, 7, segment=1), cell(0, 8, phase=2))

    (only,) = pairs_of(strata(record, evidence), 1)

    assert (only.share, only.assigned) == (0.5, (13, 13))
