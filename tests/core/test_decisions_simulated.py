"""Rates of false decisions where much comes together: variants, metrics, weights that change.

The same decisions as in production, with a look at every tick. Fewer rollouts than in
`test_simulation`, so that each takes seconds; the bound is that of the risk itself, several times
what is found, so that chance alone does not break it. Of 250 rollouts, a rate of 10 per cent would
be found within the bound of 5 less than once in 400 times.
"""

import numpy as np
import pytest

from gateway.core.drawing import Scenario, Truth, Value
from gateway.core.experiments import Bandit, Experiment, Fixed, Guard, Metric, Ramp, Strategy
from gateway.core.simulation import Summary, rollouts, summary
from tests.studies import EVEN, SALES, experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ALPHA = BETA = 0.05
LOSS = Metric("loss", "loss", direction="decrease", margin=0.1)
GUARDS = (Guard("errors", "error"), Guard("slow", "slow", over_ms=5.0))
THREE = Fixed({"a": 4_000, "b": 3_000, "c": 3_000})
REMAINING = Ramp((500, 1_000, 2_500, 5_000), control="remaining", dwell_s=180, min_units=50)
BANDIT = Bandit(every_s=60, min_units=50)
RARE = {"errors": 0.01, "slow": 0.03}
NEVER = {"errors": 0.0, "slow": 0.0}


def truth(sales: float = 0.3, loss: float = 1.0, events: dict[str, float] = RARE) -> Truth:
    """Of units of which so many buy, with such a loss."""
    return Truth(events=events, metrics={"sales": Value(sales), "loss": Value(loss)})


def simulated(document: Experiment, scenario: Scenario, count: int) -> Summary:
    """So many rollouts, always the same ones."""
    return summary(rollouts(document, scenario, count, np.random.default_rng(20)))


@pytest.mark.parametrize(
    ("strategy", "names", "units", "count"),
    [(THREE, "abc", 600, 250), (REMAINING, "ab", 2_000, 400), (BANDIT, "abc", 600, 100)],
    ids=["three variants", "a ramp against the rest", "a bandit"],
)
def test_without_an_effect_two_goals_and_two_guards_raise_no_more_false_alarms_than_alpha(
    strategy: Strategy, names: str, units: int, count: int
) -> None:
    """Neither harm of any treatment, nor a claim, nor a hold for the split."""
    document = experiment(
        strategy,
        guards=GUARDS,
        metrics=(SALES, LOSS),
        names=names,
        promote="never",
        srm_alpha=ALPHA,
    )
    scenario = Scenario(dict.fromkeys(names, truth()), units=units, ticks=20)

    told = simulated(document, scenario, count)

    assert told.harmed.rate <= ALPHA
    assert told.claimed.rate <= ALPHA
    assert "srm" not in told.held or told.held["srm"].rate <= ALPHA


@pytest.mark.parametrize(
    ("strategy", "names", "worse", "count"),
    [
        (THREE, "abc", truth(0.4, 1.1, NEVER), 250),
        (THREE, "abc", truth(0.27, 0.5, NEVER), 250),
        (REMAINING, "ab", truth(0.4, 1.1, NEVER), 250),
        (BANDIT, "ab", truth(0.27, 0.5, NEVER), 150),
    ],
    ids=["less is better", "more is better", "a ramp against the rest", "a bandit"],
)
def test_one_metric_at_its_margin_among_better_ones_is_promoted_no_more_than_beta(
    strategy: Strategy, names: str, worse: Truth, count: int
) -> None:
    """All else would promote; every treatment is exactly as bad as is not allowed."""
    document = experiment(strategy, guards=GUARDS, metrics=(SALES, LOSS), names=names)
    control = truth(0.3, 1.0, NEVER)
    scenario = Scenario({**dict.fromkeys(names, worse), "a": control}, units=1_000, ticks=20)

    told = simulated(document, scenario, count)

    assert told.promoted.rate <= BETA
    assert told.harmed.rate <= ALPHA


@pytest.mark.parametrize(
    ("metric", "same", "at_margin"),
    [
        (
            Metric("m", "m", kind="quantile", quantile=0.9, margin=2.0, direction="decrease"),
            Value(50.0, 10.0),
            Value(52.0, 10.0),
        ),
        (
            Metric("m", "m", kind="ratio", denominator="d", margin=0.05),
            Value(0.5, 0.3),
            Value(0.45, 0.3),
        ),
        (
            Metric("m", "m", covariate="output", margin=0.1, direction="decrease"),
            Value(1.0, 1.0, 0.8),
            Value(1.1, 1.0, 0.8),
        ),
    ],
    ids=["quantile", "ratio", "covariate"],
)
def test_other_kinds_of_metrics_keep_both_risks(
    metric: Metric, same: Value, at_margin: Value
) -> None:
    """Without an effect nothing is claimed; at the margin nothing is promoted."""
    alike, off = Truth(metrics={"m": same}), Truth(metrics={"m": at_margin})
    quiet = experiment(EVEN, guards=(), metrics=(metric,), promote="never")
    open_ = experiment(EVEN, guards=(), metrics=(metric,))

    without = simulated(quiet, Scenario({"a": alike, "b": alike}, units=300, ticks=15), 200)
    within = simulated(open_, Scenario({"a": alike, "b": off}, units=300, ticks=15), 200)

    assert max(without.claimed.rate, without.harmed.rate) <= ALPHA
    assert within.promoted.rate <= BETA
    assert within.harmed.rate <= ALPHA
