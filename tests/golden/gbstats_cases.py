"""What gbstats, GrowthBook's statistics, says of randomised inputs: written to `gbstats.json`.

gbstats needs an older numpy and pandas than the gateway, so this script runs in an environment
of its own, with these requirements:

    gbstats==0.8.0
    numpy==1.26.4
    pandas==1.5.3
    scipy==1.17.1

Install them into a new environment and run, from the root of the repository and with the Python
of that environment:

    python tests/golden/gbstats_cases.py

gbstats 0.8.0 has no one-sided sequential test, no ratio with regression adjustment and no power
in the middle of an experiment; for these the tests hold the values that GrowthBook's own tests
publish. Control means are drawn above zero: for negative ones this version divides by the mean and
not by its magnitude, so that an improvement has the sign of a loss.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gbstats.bayesian.tests import (  # type: ignore[import-not-found]
    EffectBayesianABTest,
    EffectBayesianConfig,
    GaussianPrior,
)
from gbstats.frequentist.tests import (  # type: ignore[import-not-found]
    FrequentistConfig,
    OneSidedTreatmentGreaterTTest,
    OneSidedTreatmentLesserTTest,
    SequentialConfig,
    SequentialTwoSidedTTest,
    TwoSidedTTest,
)
from gbstats.models.statistics import (  # type: ignore[import-not-found]
    ProportionStatistic,
    QuantileClusteredStatistic,
    QuantileStatistic,
    RatioStatistic,
    RegressionAdjustedStatistic,
    SampleMeanStatistic,
)

CASES_PER_KIND = 25
PACKAGES = ("gbstats", "numpy", "pandas", "scipy")
TARGET = Path(__file__).with_name("gbstats.json")

Arm = dict[str, Any]


def mean_arm(rng: np.random.Generator) -> Arm:
    """Raw sums of gamma values."""
    values = rng.gamma(rng.uniform(0.3, 5), rng.uniform(0.1, 50), rng.integers(5, 400))
    return {"n": len(values), "sum": values.sum(), "sum_squares": (values**2).sum()}


def pair_arm(rng: np.random.Generator) -> Arm:
    """Raw sums of two correlated positive values per unit."""
    x = rng.gamma(rng.uniform(1, 5), 2.0, rng.integers(20, 400))
    y = rng.uniform(0.2, 2) * x + rng.gamma(2.0, rng.uniform(0.1, 3), len(x))
    return {
        "n": len(x),
        "sum": y.sum(),
        "sum_squares": (y**2).sum(),
        "x_sum": x.sum(),
        "x_sum_squares": (x**2).sum(),
        "products": (x * y).sum(),
    }


def proportion_arm(rng: np.random.Generator) -> Arm:
    """Events out of units, neither none nor all."""
    n = int(rng.integers(10, 5000))
    return {"n": n, "sum": int(rng.integers(1, n))}


def quantile_arm(rng: np.random.Generator) -> Arm:
    """A sample quantile with two order statistics, and sums per cluster."""
    n, middle, nu = int(rng.integers(200, 20_000)), rng.uniform(1, 10), 0.9
    clusters = n // 5
    sizes = rng.poisson(5, clusters) + 1
    below = rng.binomial(sizes, nu)
    return {
        "n": n,
        "nu": nu,
        "quantile": middle,
        "lower": middle * (1 - rng.uniform(0.01, 0.05)),
        "upper": middle * (1 + rng.uniform(0.01, 0.05)),
        "clusters": clusters,
        "sum": int(below.sum()),
        "sum_squares": int((below**2).sum()),
        "x_sum": int(sizes.sum()),
        "x_sum_squares": int((sizes**2).sum()),
        "products": int((below * sizes).sum()),
    }


def statistic(kind: str, arm: Arm) -> Any:
    """The arm as gbstats has it."""
    if kind == "proportion":
        return ProportionStatistic(n=arm["n"], sum=arm["sum"])
    if kind == "quantile":
        return QuantileStatistic(
            n=arm["n"],
            n_star=arm["n"],
            nu=arm["nu"],
            quantile_hat=arm["quantile"],
            quantile_lower=arm["lower"],
            quantile_upper=arm["upper"],
        )
    if kind == "clustered quantile":
        return QuantileClusteredStatistic(
            n=arm["n"],
            n_star=arm["n"],
            nu=arm["nu"],
            quantile_hat=arm["quantile"],
            quantile_lower=arm["lower"],
            quantile_upper=arm["upper"],
            main_sum=arm["sum"],
            main_sum_squares=arm["sum_squares"],
            denominator_sum=arm["x_sum"],
            denominator_sum_squares=arm["x_sum_squares"],
            main_denominator_sum_product=arm["products"],
            n_clusters=arm["clusters"],
        )
    y = SampleMeanStatistic(n=arm["n"], sum=arm["sum"], sum_squares=arm["sum_squares"])
    if kind == "mean":
        return y
    x = SampleMeanStatistic(n=arm["n"], sum=arm["x_sum"], sum_squares=arm["x_sum_squares"])
    if kind == "ratio":
        return RatioStatistic(
            n=arm["n"], m_statistic=y, d_statistic=x, m_d_sum_of_products=arm["products"]
        )
    return RegressionAdjustedStatistic(
        n=arm["n"],
        post_statistic=y,
        pre_statistic=x,
        post_pre_sum_of_products=arm["products"],
        theta=0,
    )


DRAWS = {
    "mean": mean_arm,
    "proportion": proportion_arm,
    "ratio": pair_arm,
    "adjusted": pair_arm,
    "quantile": quantile_arm,
    "clustered quantile": quantile_arm,
}


def frequentist(test: Any) -> dict[str, Any]:
    """A frequentist result; infinite ends as None."""
    result = test.compute_result()
    lower, upper = (end if np.isfinite(end) else None for end in result.ci)
    return {
        "effect": result.expected,
        "se": result.uplift.stddev,
        "lower": lower,
        "upper": upper,
        "p": result.p_value,
    }


def bayesian(test: Any) -> dict[str, Any]:
    """A Bayesian result."""
    result = test.compute_result()
    return {
        "mean": result.expected,
        "deviation": result.uplift.stddev,
        "lower": result.ci[0],
        "upper": result.ci[1],
        "chance_to_win": result.chance_to_win,
        "control_risk": result.risk[0],
        "treatment_risk": result.risk[1],
    }


def answers(kind: str, arms: list[Arm], difference: str, setup: Arm) -> dict[str, Any]:
    """What every test of gbstats says of two arms."""

    def pair() -> list[Any]:
        return [statistic(kind, arm) for arm in arms]

    fixed = FrequentistConfig(
        alpha=setup["alpha"], test_value=setup["null"], difference_type=difference
    )
    sequential = SequentialConfig(
        alpha=setup["alpha"],
        test_value=setup["null"],
        difference_type=difference,
        sequential_tuning_parameter=setup["planned"],
    )
    prior = GaussianPrior(setup["prior_mean"], setup["prior_variance"], proper=True)
    flat = EffectBayesianConfig(difference_type=difference, alpha=setup["alpha"])
    proper = EffectBayesianConfig(
        difference_type=difference,
        alpha=setup["alpha"],
        prior_type=difference,
        prior_effect=prior,
    )
    return {
        "both": frequentist(TwoSidedTTest(*pair(), fixed)),
        "greater": frequentist(OneSidedTreatmentGreaterTTest(*pair(), fixed)),
        "less": frequentist(OneSidedTreatmentLesserTTest(*pair(), fixed)),
        "sequential": frequentist(SequentialTwoSidedTTest(*pair(), sequential)),
        "flat": bayesian(EffectBayesianABTest(*pair(), flat)),
        "prior": bayesian(EffectBayesianABTest(*pair(), proper)),
    }


def main() -> None:
    """Draw the inputs and write them with gbstats' answers."""
    rng = np.random.default_rng(20240607)
    cases = []
    for kind, draw in DRAWS.items():
        for number in range(CASES_PER_KIND):
            arms = [draw(rng), draw(rng)]
            difference = "absolute" if number % 2 else "relative"
            setup = {
                "alpha": float(rng.choice([0.01, 0.05, 0.1])),
                "null": float(rng.normal(0, 0.05)),
                "planned": float(rng.integers(100, 20_000)),
                "prior_mean": float(rng.normal(0, 0.1)),
                "prior_variance": float(rng.uniform(0.001, 1)),
            }
            said = answers(kind, arms, difference, setup)
            cases.append({"kind": kind, "difference": difference, "arms": arms, **setup, **said})
    document = {"versions": {name: version(name) for name in PACKAGES}, "cases": cases}
    text = json.dumps(document, indent=1, default=lambda number: number.item())
    TARGET.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
